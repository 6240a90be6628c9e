"""Estimate quantiles with DDSketch (Masson et al., VLDB 2019) by the library `ddsketch`, kept as bins.

A value's bin is `ceil(log_gamma(value))`, its count an exact number. Sketches are merged by adding the counts
of their bins. A deleted record is subtracted from them, which a DDSketch allows and most other sketches do not.
Bins are kept as pairs of a 2-byte key and an 8-byte count, big-endian, as Postgres writes them.
"""

from typing import Any, Final

import numpy as np
from ddsketch.mapping import LogarithmicMapping

from domain.stats import QUANTILE_ACCURACY

_BIN_MAPPING: Final = LogarithmicMapping(QUANTILE_ACCURACY)
# Below this a value counts as zero, which has a key of its own.
SMALLEST_VALUE: Final = 1e-9
ZERO_BIN_KEY: Final = -32768
BIN_GAMMA: Final[float] = _BIN_MAPPING.gamma
_BIN_TYPE: Final = np.dtype([("key", ">i2"), ("count", ">i8")])


def build_bin_expression(value: str) -> str:
    """Build the SQL of the bin of a double precision expression, equal to `LogarithmicMapping.key`."""
    return (
        f"CASE WHEN {value} < {SMALLEST_VALUE!r} THEN {ZERO_BIN_KEY} "
        f"ELSE ceil(ln({value}) / ln({BIN_GAMMA!r}::double precision)) END::smallint"
    )


def find_bin_key(value: float) -> int:
    """Return the key of the bin that a value falls into."""
    return ZERO_BIN_KEY if value < SMALLEST_VALUE else int(_BIN_MAPPING.key(value))


def _sum_bins(bins: bytes) -> tuple[Any, Any]:
    """Return the keys in order and the sums of their counts, without keys whose counts sum to zero."""
    pairs = np.frombuffer(bins, dtype=_BIN_TYPE)
    counts = np.zeros(1 << 16, dtype=np.int64)
    np.add.at(counts, pairs["key"].astype(np.int64) - ZERO_BIN_KEY, pairs["count"].astype(np.int64))
    (offsets,) = counts.nonzero()
    return offsets + ZERO_BIN_KEY, counts[offsets]


def merge_sketches(bins: bytes) -> bytes:
    """Merge the bins of any number of sketches, one after the other, into one sketch without empty bins."""
    if not bins:
        return b""
    keys, counts = _sum_bins(bins)
    merged = np.empty(len(keys), dtype=_BIN_TYPE)
    merged["key"], merged["count"] = keys, counts
    return merged.tobytes()


def compute_quantiles(bins: bytes, fractions: tuple[float, ...]) -> tuple[float | None, ...]:
    """Return quantiles of concatenated sketches, interpolated as Postgres' `percentile_cont` does.

    The quantile `q` of `n` values lies at rank `q * (n - 1)`, between the two values on either side of it. Each of
    those is known within `QUANTILE_ACCURACY`, so the quantile is too. None where no value is counted.
    """
    keys, counts = _sum_bins(bins) if bins else (np.empty(0, np.int64), np.empty(0, np.int64))
    keys, counts = keys[counts > 0], counts[counts > 0]
    if not len(keys):
        return (None,) * len(fractions)
    ends = counts.cumsum()
    last_rank = int(ends[-1]) - 1

    def get_value(rank: int) -> float:
        bin_key = int(keys[np.searchsorted(ends, rank, side="right")])
        return 0.0 if bin_key == ZERO_BIN_KEY else float(_BIN_MAPPING.value(bin_key))

    def compute_quantile(fraction: float) -> float:
        rank = fraction * last_rank
        below = min(int(rank), last_rank)
        low, high = get_value(below), get_value(min(below + 1, last_rank))
        return low + (rank - below) * (high - low)

    return tuple(compute_quantile(fraction) for fraction in fractions)
