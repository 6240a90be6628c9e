"""Texts with places in them: `{name}` stands for the value of that name."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from domain.errors import invalid

# What values may add to texts, in characters: a text may name one as often as it likes.
MAX_FILLED: Final = 4_000_000
_PLACE: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


def places(text: str) -> list[str]:
    """The names in a text, each once, in the order in which they come."""
    return list(dict.fromkeys(_PLACE.findall(text)))


def filler(values: Mapping[str, Any], field: str) -> Callable[[str], str]:
    """Fills the texts that it is given one after the other. A name that has no value stays as it stands.

    Values are put in as they are: what they hold is no place. Errors: `invalid_field` naming `field` when they come to
    too much.
    """
    room = MAX_FILLED

    def put(found: re.Match[str]) -> str:
        nonlocal room
        if found[1] not in values:
            return found[0]
        words = worded(values[found[1]])
        room -= len(words)
        if room < 0:
            raise invalid(field, f"add more than {MAX_FILLED} characters to the texts that name them.")
        return words

    return lambda text: _PLACE.sub(put, text)


def worded(value: Any) -> str:
    """A value as it stands in a text: a text itself, all else as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
