"""Sketches kept as bins tell what the library's own DDSketch tells, whatever was merged, added and taken away."""

import struct
from collections import Counter

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from domain.stats import QUANTILE_FRACTIONS
from infra.sketches import BIN_GAMMA, SMALLEST_VALUE, ZERO_BIN_KEY, compute_quantiles, find_bin_key, merge_sketches
from tests.support.stats_oracle import assert_near, interpolate_quantile

RANKS = (0.0, 0.01, 0.25, *QUANTILE_FRACTIONS, 1.0)
# Zeros, what counts as zero, the largest a record may have, one value many times, and powers of gamma: ends of bins.
VALUES = st.one_of(
    st.floats(SMALLEST_VALUE, 1e12),
    st.floats(0.001, 100),
    st.integers(-1000, 1300).map(lambda n: BIN_GAMMA**n),
    st.sampled_from([0.0, 1e-12, 9.99e-10, SMALLEST_VALUE, 1e-6, 1.0, 1e6, 1e12]),
)
LISTS = st.lists(VALUES, max_size=60)


def sketch(values: list[float], sign: int = 1) -> bytes:
    """What Postgres writes of these values."""
    counts = Counter(find_bin_key(value) for value in values)
    return b"".join(struct.pack(">hq", place, sign * count) for place, count in counts.items())


@given(values=LISTS)
@example(values=[])
@example(values=[0.0])
@example(values=[1e-12, 0.0, 1e-12])
@example(values=[1e12] * 3)
@example(values=[0.0, 1e12])
@example(values=[SMALLEST_VALUE])
@example(values=[1.0, 1000.0])
@example(values=[1.0] * 99 + [1000.0])
def test_quantiles_are_those_of_percentile_cont_within_the_stated_error(values: list[float]) -> None:
    for bins in (sketch(values), merge_sketches(sketch(values)), b"".join(sketch([value]) for value in values)):
        found = compute_quantiles(bins, RANKS)
        for wanted, value in zip(RANKS, found, strict=True):
            assert_near(value, interpolate_quantile(values, wanted))


def test_the_slowest_of_a_few_shows() -> None:
    p50, p95, p99 = compute_quantiles(sketch([1.0, 1000.0]), (0.5, 0.95, 0.99))
    assert_near(p50, 500.5)
    assert_near(p95, 950.05)
    assert_near(p99, 990.01)
    (of_hundred,) = compute_quantiles(sketch([1.0] * 99 + [1000.0]), (0.99,))
    assert_near(of_hundred, 10.99)


async def test_postgres_itself_tells_the_same(resources) -> None:
    for values in ([7.0], [1.0, 1000.0], [3.0, 1.0, 2.0], [float(number**3) for number in range(1, 101)]):
        async with resources.store.system_transaction() as tx:
            row = await tx._raw.fetchrow(
                "SELECT percentile_cont($1::float8[]) WITHIN GROUP (ORDER BY v) AS found FROM unnest($2::float8[]) v",
                list(RANKS),
                values,
            )
        for ours, theirs in zip(compute_quantiles(sketch(values), RANKS), row["found"], strict=True):
            assert_near(ours, theirs)


@given(value=VALUES)
def test_a_value_lies_in_its_bin(value: float) -> None:
    place = find_bin_key(value)
    assert ZERO_BIN_KEY <= place <= 32767
    if value < SMALLEST_VALUE:
        assert place == ZERO_BIN_KEY
    else:
        assert BIN_GAMMA ** (place - 1) * (1 - 1e-9) <= value <= BIN_GAMMA**place * (1 + 1e-9)


@given(kept=LISTS, gone=LISTS)
def test_what_is_taken_away_was_never_there(kept: list[float], gone: list[float]) -> None:
    both = merge_sketches(sketch(kept + gone))
    for left in (merge_sketches(both + sketch(gone, -1)), merge_sketches(sketch(gone, -1) + both)):
        assert left == merge_sketches(sketch(kept))
        assert compute_quantiles(left, QUANTILE_FRACTIONS) == compute_quantiles(sketch(kept), QUANTILE_FRACTIONS)
    # The same without merging first, as a question does with deltas.
    assert compute_quantiles(both + sketch(gone, -1), QUANTILE_FRACTIONS) == compute_quantiles(
        sketch(kept), QUANTILE_FRACTIONS
    )
    assert merge_sketches(both + sketch(kept + gone, -1)) == b""


@given(one=LISTS, two=LISTS, three=LISTS)
def test_the_order_of_merging_does_not_matter(one: list[float], two: list[float], three: list[float]) -> None:
    a, b, c = sketch(one), sketch(two), sketch(three, -1)
    whole = merge_sketches(a + b + c)
    assert (
        merge_sketches(merge_sketches(a + b) + c)
        == merge_sketches(a + merge_sketches(b + c))
        == merge_sketches(c + b + a)
        == whole
    )
    assert merge_sketches(whole) == whole


def test_nothing_has_no_quantiles() -> None:
    assert merge_sketches(b"") == b""
    assert compute_quantiles(b"", QUANTILE_FRACTIONS) == (None, None, None)
    assert compute_quantiles(sketch([1.0]) + sketch([1.0], -1), QUANTILE_FRACTIONS) == (None, None, None)
    assert compute_quantiles(sketch([0.0]), QUANTILE_FRACTIONS) == (0, 0, 0)


def test_counts_of_millions_are_exact() -> None:
    many = np.array(
        [(find_bin_key(1.0), 3_000_000_000), (find_bin_key(100.0), 1)], dtype=[("key", ">i2"), ("count", ">i8")]
    ).tobytes()
    assert merge_sketches(many + many)[2:10] == struct.pack(">q", 6_000_000_000)
    low, high = compute_quantiles(many + many, (0.5, 1.0))
    assert_near(low, 1.0)
    assert_near(high, 100.0)
