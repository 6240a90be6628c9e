"""Sketches kept as bins agree with the library's own DDSketch after any merging, adding and subtracting."""

import struct
from collections import Counter

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from domain.stats import QUANTILE_FRACTIONS
from infra.sketches import BIN_GAMMA, SMALLEST_VALUE, ZERO_BIN_KEY, compute_quantiles, find_bin_key, merge_sketches
from tests.support.stats_oracle import assert_near, interpolate_quantile

RANKS = (0.0, 0.01, 0.25, *QUANTILE_FRACTIONS, 1.0)
# Zeros, values that count as zero, the largest value of a record, repeated values, and powers of gamma: ends of bins.
VALUES = st.one_of(
    st.floats(SMALLEST_VALUE, 1e12),
    st.floats(0.001, 100),
    st.integers(-1000, 1300).map(lambda n: BIN_GAMMA**n),
    st.sampled_from([0.0, 1e-12, 9.99e-10, SMALLEST_VALUE, 1e-6, 1.0, 1e6, 1e12]),
)
LISTS = st.lists(VALUES, max_size=60)


def build_sketch(values: list[float], sign: int = 1) -> bytes:
    """Build what Postgres writes for these values."""
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
def test_quantiles_equal_percentile_cont_within_the_stated_error(values: list[float]) -> None:
    for bins in (
        build_sketch(values),
        merge_sketches(build_sketch(values)),
        b"".join(build_sketch([value]) for value in values),
    ):
        quantiles = compute_quantiles(bins, RANKS)
        for rank, value in zip(RANKS, quantiles, strict=True):
            assert_near(value, interpolate_quantile(values, rank))


def test_slowest_of_a_few_values_shows() -> None:
    p50, p95, p99 = compute_quantiles(build_sketch([1.0, 1000.0]), (0.5, 0.95, 0.99))
    assert_near(p50, 500.5)
    assert_near(p95, 950.05)
    assert_near(p99, 990.01)
    (of_hundred,) = compute_quantiles(build_sketch([1.0] * 99 + [1000.0]), (0.99,))
    assert_near(of_hundred, 10.99)


async def test_postgres_computes_the_same_quantiles(resources) -> None:
    for values in ([7.0], [1.0, 1000.0], [3.0, 1.0, 2.0], [float(number**3) for number in range(1, 101)]):
        async with resources.store.system_transaction() as tx:
            row = await tx._raw.fetchrow(
                "SELECT percentile_cont($1::float8[]) WITHIN GROUP (ORDER BY v) AS found FROM unnest($2::float8[]) v",
                list(RANKS),
                values,
            )
        for ours, theirs in zip(compute_quantiles(build_sketch(values), RANKS), row["found"], strict=True):
            assert_near(ours, theirs)


@given(value=VALUES)
def test_value_lies_in_its_bin(value: float) -> None:
    place = find_bin_key(value)
    assert ZERO_BIN_KEY <= place <= 32767
    if value < SMALLEST_VALUE:
        assert place == ZERO_BIN_KEY
    else:
        assert BIN_GAMMA ** (place - 1) * (1 - 1e-9) <= value <= BIN_GAMMA**place * (1 + 1e-9)


@given(kept_values=LISTS, removed_values=LISTS)
def test_subtracted_values_leave_no_trace(kept_values: list[float], removed_values: list[float]) -> None:
    both = merge_sketches(build_sketch(kept_values + removed_values))
    for sketch_left in (
        merge_sketches(both + build_sketch(removed_values, -1)),
        merge_sketches(build_sketch(removed_values, -1) + both),
    ):
        assert sketch_left == merge_sketches(build_sketch(kept_values))
        assert compute_quantiles(sketch_left, QUANTILE_FRACTIONS) == compute_quantiles(
            build_sketch(kept_values), QUANTILE_FRACTIONS
        )
    # The same without merging first, as a query does with deltas.
    assert compute_quantiles(both + build_sketch(removed_values, -1), QUANTILE_FRACTIONS) == compute_quantiles(
        build_sketch(kept_values), QUANTILE_FRACTIONS
    )
    assert merge_sketches(both + build_sketch(kept_values + removed_values, -1)) == b""


@given(first=LISTS, second=LISTS, third=LISTS)
def test_order_of_merging_does_not_matter(first: list[float], second: list[float], third: list[float]) -> None:
    a, b, c = build_sketch(first), build_sketch(second), build_sketch(third, -1)
    whole = merge_sketches(a + b + c)
    assert (
        merge_sketches(merge_sketches(a + b) + c)
        == merge_sketches(a + merge_sketches(b + c))
        == merge_sketches(c + b + a)
        == whole
    )
    assert merge_sketches(whole) == whole


def test_empty_sketch_has_no_quantiles() -> None:
    assert merge_sketches(b"") == b""
    assert compute_quantiles(b"", QUANTILE_FRACTIONS) == (None, None, None)
    assert compute_quantiles(build_sketch([1.0]) + build_sketch([1.0], -1), QUANTILE_FRACTIONS) == (None, None, None)
    assert compute_quantiles(build_sketch([0.0]), QUANTILE_FRACTIONS) == (0, 0, 0)


def test_counts_of_billions_are_exact() -> None:
    many = np.array(
        [(find_bin_key(1.0), 3_000_000_000), (find_bin_key(100.0), 1)], dtype=[("key", ">i2"), ("count", ">i8")]
    ).tobytes()
    assert merge_sketches(many + many)[2:10] == struct.pack(">q", 6_000_000_000)
    low, high = compute_quantiles(many + many, (0.5, 1.0))
    assert_near(low, 1.0)
    assert_near(high, 100.0)
