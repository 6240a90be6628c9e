"""Quantile sketches: DDSketch (Masson et al., VLDB 2019) by the library `ddsketch`, kept as bins.

A value's bin is `ceil(log_gamma(value))`, its count an exact number. Sketches are merged by adding the counts
of their bins, and a deleted record is taken out by subtracting them, which a DDSketch allows and most
others do not. Bins are kept as pairs of a 2-byte key and an 8-byte count, big-endian, as Postgres writes them.
"""

from typing import Any, Final

import numpy as np
from ddsketch.mapping import LogarithmicMapping

from domain.stats import QUANTILE_ACCURACY

_MAPPING: Final = LogarithmicMapping(QUANTILE_ACCURACY)
# Below this a value counts as zero, which has a key of its own.
SMALLEST_VALUE: Final = 1e-9
ZERO_BIN_KEY: Final = -32768
BIN_GAMMA: Final[float] = _MAPPING.gamma
_BIN: Final = np.dtype([("key", ">i2"), ("count", ">i8")])


def build_bin_expression(value: str) -> str:
    """The bin of an SQL expression of type double precision, as `LogarithmicMapping.key` has it."""
    return (
        f"CASE WHEN {value} < {SMALLEST_VALUE!r} THEN {ZERO_BIN_KEY} "
        f"ELSE ceil(ln({value}) / ln({BIN_GAMMA!r}::double precision)) END::smallint"
    )


def find_bin_key(value: float) -> int:
    """The bin of a value."""
    return ZERO_BIN_KEY if value < SMALLEST_VALUE else int(_MAPPING.key(value))


def _summed(bins: bytes) -> tuple[Any, Any]:
    """The keys in order, and what their counts come to; keys whose counts come to nothing are left out."""
    pairs = np.frombuffer(bins, dtype=_BIN)
    counts = np.zeros(1 << 16, dtype=np.int64)
    np.add.at(counts, pairs["key"].astype(np.int64) - ZERO_BIN_KEY, pairs["count"].astype(np.int64))
    (places,) = counts.nonzero()
    return places + ZERO_BIN_KEY, counts[places]


def merge_sketches(bins: bytes) -> bytes:
    """Bins of any number of sketches, one after the other, as one sketch. Bins that came to nothing are left out."""
    if not bins:
        return b""
    keys, counts = _summed(bins)
    made = np.empty(len(keys), dtype=_BIN)
    made["key"], made["count"] = keys, counts
    return made.tobytes()


def compute_quantiles(bins: bytes, wanted: tuple[float, ...]) -> tuple[float | None, ...]:
    """Return quantiles of concatenated sketches, interpolated as Postgres' `percentile_cont` does.

    The quantile `q` of `n` values lies at rank `q * (n - 1)`, between the two values on either side of it. Each of
    those is known within `ACCURACY`, so the quantile is too. None where no value is counted.
    """
    keys, counts = _summed(bins) if bins else (np.empty(0, np.int64), np.empty(0, np.int64))
    keys, counts = keys[counts > 0], counts[counts > 0]
    if not len(keys):
        return (None,) * len(wanted)
    ends = counts.cumsum()
    last_rank = int(ends[-1]) - 1

    def value_at(rank: int) -> float:
        bin_key = int(keys[np.searchsorted(ends, rank, side="right")])
        return 0.0 if bin_key == ZERO_BIN_KEY else float(_MAPPING.value(bin_key))

    def quantile(fraction: float) -> float:
        rank = fraction * last_rank
        below = min(int(rank), last_rank)
        low, high = value_at(below), value_at(min(below + 1, last_rank))
        return low + (rank - below) * (high - low)

    return tuple(quantile(fraction) for fraction in wanted)
