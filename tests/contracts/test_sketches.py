"""Sketches kept as bins tell what the library's own DDSketch tells, whatever was merged, added and taken away."""

import math
import struct
from collections import Counter

import numpy as np
from ddsketch import DDSketch
from hypothesis import example, given
from hypothesis import strategies as st

from domain.stats import ACCURACY, QUANTILES
from infra.sketches import GAMMA, SMALLEST, ZERO, key, merged, quantiles

RANKS = (0.0, 0.01, 0.25, *QUANTILES, 1.0)
# Zeros, what counts as zero, the largest a record may have, one value many times, and powers of gamma: ends of bins.
VALUES = st.one_of(
    st.floats(SMALLEST, 1e12),
    st.floats(0.001, 100),
    st.integers(-1000, 1300).map(lambda n: GAMMA**n),
    st.sampled_from([0.0, 1e-12, 9.99e-10, SMALLEST, 1e-6, 1.0, 1e6, 1e12]),
)
LISTS = st.lists(VALUES, max_size=60)


def sketch(values: list[float], sign: int = 1) -> bytes:
    """What Postgres writes of these values."""
    counts = Counter(key(value) for value in values)
    return b"".join(struct.pack(">hq", place, sign * count) for place, count in counts.items())


def at_rank(values: list[float], wanted: float) -> float:
    """The exact quantile, by the rank that a DDSketch gives it."""
    return sorted(values)[math.floor(wanted * (len(values) - 1))]


def near(found: float | None, exact: float) -> bool:
    assert found is not None
    if exact < SMALLEST:
        return found == 0
    return abs(found - exact) <= ACCURACY * exact * (1 + 1e-9)


@given(values=LISTS)
@example(values=[])
@example(values=[0.0])
@example(values=[1e-12, 0.0, 1e-12])
@example(values=[1e12] * 3)
@example(values=[0.0, 1e12])
@example(values=[SMALLEST])
def test_quantiles_are_the_librarys_and_near_the_exact_ones(values: list[float]) -> None:
    theirs = DDSketch(ACCURACY)
    for value in values:
        theirs.add(value if value >= SMALLEST else 0.0)
    for bins in (sketch(values), merged(sketch(values)), b"".join(sketch([value]) for value in values)):
        found = quantiles(bins, RANKS)
        assert found == tuple(theirs.get_quantile_value(wanted) for wanted in RANKS)
        for wanted, value in zip(RANKS, found, strict=True):
            assert near(value, at_rank(values, wanted)) if values else value is None


@given(value=VALUES)
def test_a_value_lies_in_its_bin(value: float) -> None:
    place = key(value)
    assert ZERO <= place <= 32767
    if value < SMALLEST:
        assert place == ZERO
    else:
        assert GAMMA ** (place - 1) * (1 - 1e-9) <= value <= GAMMA**place * (1 + 1e-9)


@given(kept=LISTS, gone=LISTS)
def test_what_is_taken_away_was_never_there(kept: list[float], gone: list[float]) -> None:
    both = merged(sketch(kept + gone))
    for left in (merged(both + sketch(gone, -1)), merged(sketch(gone, -1) + both)):
        assert left == merged(sketch(kept))
        assert quantiles(left, QUANTILES) == quantiles(sketch(kept), QUANTILES)
    # The same without merging first, as a question does with deltas.
    assert quantiles(both + sketch(gone, -1), QUANTILES) == quantiles(sketch(kept), QUANTILES)
    assert merged(both + sketch(kept + gone, -1)) == b""


@given(one=LISTS, two=LISTS, three=LISTS)
def test_the_order_of_merging_does_not_matter(one: list[float], two: list[float], three: list[float]) -> None:
    a, b, c = sketch(one), sketch(two), sketch(three, -1)
    whole = merged(a + b + c)
    assert merged(merged(a + b) + c) == merged(a + merged(b + c)) == merged(c + b + a) == whole
    assert merged(whole) == whole


def test_nothing_has_no_quantiles() -> None:
    assert merged(b"") == b""
    assert quantiles(b"", QUANTILES) == (None, None, None)
    assert quantiles(sketch([1.0]) + sketch([1.0], -1), QUANTILES) == (None, None, None)
    assert quantiles(sketch([0.0]), QUANTILES) == (0, 0, 0)


def test_counts_of_millions_are_exact() -> None:
    many = np.array([(key(1.0), 3_000_000_000), (key(100.0), 1)], dtype=[("key", ">i2"), ("count", ">i8")]).tobytes()
    assert merged(many + many)[2:10] == struct.pack(">q", 6_000_000_000)
    low, high = quantiles(many + many, (0.5, 1.0))
    assert near(low, 1.0)
    assert near(high, 100.0)
