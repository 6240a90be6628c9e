r"""Fill placeholders in texts: `{name}` stands for the value of that name.

One grammar for all texts of agents, crews, tasks and templates:
- A name begins with a letter of any script or `_`, and goes on with letters, digits, `_` and `-`: `{target-audience}`.
- `\{name}` is the text `{name}`. Backslashes count in pairs there: `\\{name}` is one backslash and the value.
- `{{name}}` and `${name}` belong to other tools (Jinja, Langfuse, shells), and stay as they are.
- Other texts in braces, for example JSON, are no placeholders.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec

from domain.shared.errors import InvalidField

# Characters that values may add to texts: a text may repeat a placeholder without limit.
MAX_FILLED_LENGTH: Final = 4_000_000
# More words in braces are a sentence or code, and no mistaken placeholder.
_MAX_WORDS: Final = 3
# The lookbehinds keep the work linear: a match never begins within a run of backslashes or braces.
_BRACE_PATTERN: Final = re.compile(r"(?<!\\)(\\*+)(\$?)(?<!\{)(\{++)([^{}\\\r\n\"']++)(\}++)")
_JOINING_CHARACTERS: Final = re.compile(r"[\s.]+")


def find_placeholders(text: str) -> list[str]:
    """Return the names in a text, each once, in their order."""
    matches = [match for match in _BRACE_PATTERN.finditer(text) if _is_placeholder(match) and not _is_escaped(match)]
    return list(dict.fromkeys(match[4] for match in matches))


def create_filler(
    values: Mapping[str, Any], field: str, *, keep_escapes: bool = False, allow_nested: bool = False
) -> Callable[[str], str]:
    """Return a function that fills placeholders in texts. Names without a value stay as they are.

    Placeholders within values are not filled. With `keep_escapes` the result is filled a second time: escapes stay
    until then, and values are escaped, except with `allow_nested`, when they may contain placeholders of their own.
    Errors: `invalid_field` naming `field` for values that add too much.
    """
    remaining_length = MAX_FILLED_LENGTH

    def replace_match(match: re.Match[str]) -> str:
        nonlocal remaining_length
        slashes, _, _, name, closing = match.groups()
        if not _is_placeholder(match) or (keep_escapes and (_is_escaped(match) or name not in values)):
            return match[0]
        half = len(slashes) // 2
        if _is_escaped(match) or name not in values:
            return match[0][len(slashes) - half :]
        text = format_value(values[name])
        remaining_length -= len(text)
        if remaining_length < 0:
            raise InvalidField(field, f"add more than {MAX_FILLED_LENGTH} characters to the texts that name them.")
        text = slashes[:half] + text
        return (escape_placeholders(text) if keep_escapes and not allow_nested else text) + closing[1:]

    return lambda text: _BRACE_PATTERN.sub(replace_match, text)


def escape_placeholders(text: str) -> str:
    """Return a text whose filled form is this text."""
    return _BRACE_PATTERN.sub(
        lambda match: f"{match[1] * 2}\\{match[0][len(match[1]) :]}" if _is_placeholder(match) else match[0], text
    )


def find_unfilled(text: str) -> list[str]:
    """Return what looks like a placeholder but is none, each once: `{{name}}`, `${name}`, `{ name }`, `{user.name}`."""
    return list(dict.fromkeys(_iterate_lookalikes(text)))


def format_value(value: Any) -> str:
    """Return a value as it stands in a text: a text itself, other values as JSON."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _is_placeholder(match: re.Match[str]) -> bool:
    """Tell whether braces are a placeholder, escaped or not. More braces may close after it: `{"age": {age}}`."""
    return not match[2] and len(match[3]) == 1 and _is_name(match[4])


def _is_escaped(match: re.Match[str]) -> bool:
    return len(match[1]) % 2 == 1


def _is_name(text: str) -> bool:
    return (text[0] == "_" or _is_letter(text[0])) and all(_can_continue_name(character) for character in text)


def _is_letter(character: str) -> bool:
    return (character.isascii() and character.isalpha()) or unicodedata.category(character)[0] == "L"


def _can_continue_name(character: str) -> bool:
    # Marks and joiners are parts of letters in many scripts.
    return (
        (character.isascii() and (character.isalnum() or character in "_-"))
        or unicodedata.category(character)[0] in "LMN"
        or character in "\u200c\u200d"
    )


def _iterate_lookalikes(text: str) -> Iterator[str]:
    for match in _BRACE_PATTERN.finditer(text):
        words = _JOINING_CHARACTERS.split(match[4].strip())
        if not _is_placeholder(match) and len(words) <= _MAX_WORDS and all(word and _is_name(word) for word in words):
            yield match[0][len(match[1]) :]
