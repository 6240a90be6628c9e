"""Quantile sketches: DDSketch (Masson et al., VLDB 2019) by the library `ddsketch`, kept as bins.

A value's bin is `ceil(log_gamma(value))`, its count an exact number. Sketches are merged by adding the counts
of their bins, and a deleted record is taken out by subtracting them, which a DDSketch allows and most
others do not. Bins are kept as pairs of a 2-byte key and an 8-byte count, big-endian, as Postgres writes them.
"""

from typing import Any, Final

import numpy as np
from ddsketch.ddsketch import BaseDDSketch
from ddsketch.mapping import LogarithmicMapping
from ddsketch.store import DenseStore

from domain.stats import ACCURACY

_MAPPING: Final = LogarithmicMapping(ACCURACY)
# Below this a value counts as zero, which has a key of its own.
SMALLEST: Final = 1e-9
ZERO: Final = -32768
GAMMA: Final[float] = _MAPPING.gamma
_BIN: Final = np.dtype([("key", ">i2"), ("count", ">i8")])


def bin_of(value: str) -> str:
    """The bin of an SQL expression of type double precision, as `LogarithmicMapping.key` has it."""
    return (
        f"CASE WHEN {value} < {SMALLEST!r} THEN {ZERO} ELSE ceil(ln({value}) / ln({GAMMA!r}::double precision)) END"
        "::smallint"
    )


def key(value: float) -> int:
    """The bin of a value."""
    return ZERO if value < SMALLEST else int(_MAPPING.key(value))


def _summed(bins: bytes) -> tuple[Any, Any]:
    """The keys in order, and what their counts come to; keys whose counts come to nothing are left out."""
    pairs = np.frombuffer(bins, dtype=_BIN)
    counts = np.zeros(1 << 16, dtype=np.int64)
    np.add.at(counts, pairs["key"].astype(np.int64) - ZERO, pairs["count"].astype(np.int64))
    (places,) = counts.nonzero()
    return places + ZERO, counts[places]


def merged(bins: bytes) -> bytes:
    """Bins of any number of sketches, one after the other, as one sketch. Bins that came to nothing are left out."""
    if not bins:
        return b""
    keys, counts = _summed(bins)
    made = np.empty(len(keys), dtype=_BIN)
    made["key"], made["count"] = keys, counts
    return made.tobytes()


def quantiles(bins: bytes, wanted: tuple[float, ...]) -> tuple[float | None, ...]:
    """Quantiles of sketches one after the other, each within `ACCURACY` of the value at that rank."""
    store, zeros = DenseStore(), 0
    if bins:
        keys, counts = _summed(bins)
        for place, count in zip(keys.tolist(), counts.tolist(), strict=True):
            if count > 0 and place == ZERO:
                zeros = count
            elif count > 0:
                store.add(place, count)
    sketch = BaseDDSketch(_MAPPING, store, DenseStore(), zeros)
    return tuple(None if (found := sketch.get_quantile_value(q)) is None else float(found) for q in wanted)
