"""Write the place of a value as people read it: `payload.order.items[3].price`."""

import itertools
import re
from collections.abc import Iterable
from typing import Final

MAX_PLACE_PARTS: Final = 40
MAX_NAME_CHARACTERS: Final = 100
_PLAIN_NAME: Final = re.compile(r"[\w$@-]+")


def join_place(place: str, part: str | int) -> str:
    """Return the place of an item or a property within a place."""
    if isinstance(part, int):
        return f"{place}[{part}]"
    name = part if len(part) <= MAX_NAME_CHARACTERS else part[: MAX_NAME_CHARACTERS - 1] + "…"
    if _PLAIN_NAME.fullmatch(name):
        return f"{place}.{name}"
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'{place}["{quoted}"]'


def format_place(root: str, parts: Iterable[str | int]) -> str:
    """Return the place at the end of a path."""
    place = root
    for part in itertools.islice(parts, MAX_PLACE_PARTS):
        place = join_place(place, part)
    return place
