"""Convert US dollars to whole nano-dollars, in which sums are exact, and back to text."""

import math

from domain.stats import NANOS_PER_UNIT


def nanos_from_usd(usd: float) -> int:
    """Return dollars as whole nano-dollars, rounded as statistics round them."""
    return round(usd * NANOS_PER_UNIT)


def ceil_nanos_from_usd(usd: float) -> int:
    """Return dollars as whole nano-dollars, rounded up; the error of a float adds no extra one."""
    return math.ceil(round(usd * NANOS_PER_UNIT, 3))


def format_dollars(nanos: int, up: bool = False) -> str:
    """Format nano-dollars for a sentence, rounded down or up, with more decimals for small amounts."""
    size = abs(nanos)
    places = 2 if size >= NANOS_PER_UNIT or size == 0 else 4 if size >= NANOS_PER_UNIT // 10_000 else 9
    step = 10 ** (9 - places)
    rounded = (-(-nanos // step) if up else nanos // step) * step
    return f"{'-' if rounded < 0 else ''}${abs(rounded) / NANOS_PER_UNIT:.{places}f}"
