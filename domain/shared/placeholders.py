r"""Texts with places in them: `{name}` stands for the value of that name.

One grammar for all texts of agents, crews, tasks and templates:
- A name begins with a letter of any script or `_`, and goes on with letters, digits, `_` and `-`: `{target-audience}`.
- `\{name}` is `{name}` itself. Backslashes count in pairs there: `\\{name}` is one backslash and the value.
- `{{name}}` and `${name}` belong to others (Jinja, Langfuse, shells), and are left as they stand.
- All else in braces, such as JSON, is no place.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

from domain.shared.errors import InvalidField

# What values may add to texts, in characters: a text may name one as often as it likes.
MAX_FILLED_LENGTH: Final = 4_000_000
# Words in braces that may be meant as a place and are none: more are a sentence, or code.
_MAX_WORDS: Final = 3
# The lookbehinds keep the work linear: no run of backslashes or braces is begun in its middle.
_BRACES: Final = re.compile(r"(?<!\\)(\\*+)(\$?)(?<!\{)(\{++)([^{}\\\r\n\"']++)(\}++)")
_JOINTS: Final = re.compile(r"[\s.]+")


def find_placeholders(text: str) -> list[str]:
    """The names in a text, each once, in the order in which they come."""
    return list(dict.fromkeys(found[4] for found in _BRACES.finditer(text) if _is_place(found) and not _escaped(found)))


def create_filler(
    values: Mapping[str, Any], field: str, *, keep_escapes: bool = False, allow_nested: bool = False
) -> Callable[[str], str]:
    """Fills the texts that it is given one after the other. A name that has no value stays as it stands.

    Values are put in as they are: what they hold is no place. With `again` what is made is a text to be filled once
    more: escapes stay for then, and values are escaped, unless they are `nested` and may hold places of their own.
    Errors: `invalid_field` naming `field` when they come to too much.
    """
    room = MAX_FILLED_LENGTH

    def put(found: re.Match[str]) -> str:
        nonlocal room
        slashes, _, _, name, closing = found.groups()
        if not _is_place(found) or (keep_escapes and (_escaped(found) or name not in values)):
            return found[0]
        half = len(slashes) // 2
        if _escaped(found) or name not in values:
            return found[0][len(slashes) - half :]
        words = format_value(values[name])
        room -= len(words)
        if room < 0:
            raise InvalidField(field, f"add more than {MAX_FILLED_LENGTH} characters to the texts that name them.")
        words = slashes[:half] + words
        return (escape_placeholders(words) if keep_escapes and not allow_nested else words) + closing[1:]

    return lambda text: _BRACES.sub(put, text)


def escape_placeholders(text: str) -> str:
    """Return a text that, once filled, is this one."""
    return _BRACES.sub(
        lambda found: f"{found[1] * 2}\\{found[0][len(found[1]) :]}" if _is_place(found) else found[0], text
    )


def find_unfilled(text: str) -> list[str]:
    """Return what looks like a place and is none, each once: `{{name}}`, `${name}`, `{ name }`, `{user.name}`."""
    return list(dict.fromkeys(_looking_like_places(text)))


def format_value(value: Any) -> str:
    """A value as it stands in a text: a text itself, all else as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _is_place(found: re.Match[str]) -> bool:
    """Whether braces are a place, escaped or not. More may be closed after one, as in JSON: `{"age": {age}}`."""
    return not found[2] and len(found[3]) == 1 and _is_name(found[4])


def _escaped(found: re.Match[str]) -> bool:
    return len(found[1]) % 2 == 1


def _is_name(text: str) -> bool:
    return (text[0] == "_" or _is_letter(text[0])) and all(_continues_name(one) for one in text)


def _is_letter(one: str) -> bool:
    return (one.isascii() and one.isalpha()) or unicodedata.category(one)[0] == "L"


def _continues_name(one: str) -> bool:
    # Marks and joiners are parts of letters in many scripts.
    return (
        (one.isascii() and (one.isalnum() or one in "_-"))
        or unicodedata.category(one)[0] in "LMN"
        or one in "\u200c\u200d"
    )


def _looking_like_places(text: str) -> Iterator[str]:
    for found in _BRACES.finditer(text):
        words = _JOINTS.split(found[4].strip())
        if not _is_place(found) and len(words) <= _MAX_WORDS and all(word and _is_name(word) for word in words):
            yield found[0][len(found[1]) :]
