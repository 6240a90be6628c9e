"""Read JSON with comments and trailing commas (JSONC), with the line of each value.

Only comments and one comma before a closing bracket are taken beside JSON; everything else is as strict as JSON. The
text is scanned once, so reading takes time in proportion to its length, and its values have the limits of YAML.
"""

import bisect
import re
from typing import Final

import msgspec

from domain.shared.json_limits import JsonLimits, JsonTooLarge, check_json
from domain.shared.yaml_reader import (
    MAX_PATH_LENGTH,
    MAX_YAML_BYTES,
    MAX_YAML_DEPTH,
    MAX_YAML_NODES,
    DuplicateKey,
    YamlDocument,
    YamlError,
)

# What is read may be kept as YAML.
_JSONC_LIMITS: Final = JsonLimits(depth=MAX_YAML_DEPTH, values=MAX_YAML_NODES)
# A string, the start of a comment, a bracket, colon or comma; or anything else that is no white space.
_TOKEN_PATTERN: Final = re.compile(r'"|//|/\*|[\[\]{}:,]|[^\s"\[\]{}:,/]+|/')
_STRING_PART: Final = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)
_WHOLE_NUMBER: Final = re.compile(r"-?[0-9]{19,}", re.ASCII)
_LINE_BREAK: Final = re.compile(r"\r\n|[\n\r]")
_VALUE_STARTS: Final = frozenset({"", "[", "{", ":", ","})
_BYTE_PLACE: Final = re.compile(r"\(byte (\d+)\)")


class _Symbol(msgspec.Struct, frozen=True):
    """Hold a string, a bracket, a comma, a colon or another value, and where it begins."""

    text: str
    start: int


class _OpenBracket(msgspec.Struct):
    """Hold a list or an object while its lines are found; `keys` has the lines of an object's keys."""

    path: str | None
    keys: dict[str, int] | None
    key: str | None = None
    index: int = 0


def read_jsonc(text: str) -> YamlDocument:
    """Read one document; `duplicates` lists keys that stand twice. Errors: `YamlError`."""
    text = text.removeprefix("\ufeff")
    if len(text.encode("utf-8", "surrogatepass")) > MAX_YAML_BYTES:
        raise YamlError(count_lines(text), f"the document has more than {MAX_YAML_BYTES} bytes.")
    plain, symbols = _remove_extras(text)
    if not symbols:
        raise YamlError(1, "the document is empty.")
    try:
        written = plain.encode("utf-8")
        check_json(written, _JSONC_LIMITS)
        value = msgspec.json.decode(written)
    except JsonTooLarge as error:
        raise YamlError(1, f"the document {error.reason}") from None
    except UnicodeEncodeError as error:
        raise YamlError(count_lines(plain[: error.start]), "text cannot hold half of a surrogate pair.") from None
    except (msgspec.DecodeError, RecursionError) as error:
        problem = _BYTE_PLACE.sub("", str(error)).removeprefix("JSON is malformed: ").strip()
        raise YamlError(_find_line(plain, str(error)), f"is not JSON with comments: {problem}.") from None
    lines, duplicates = _find_lines(plain, symbols)
    return YamlDocument(value=value, lines=lines, duplicates=duplicates, float_texts={})


def _find_lines(plain: str, symbols: list[_Symbol]) -> tuple[dict[str, int], list[DuplicateKey]]:
    """Return the line of each place in valid JSON, and its duplicate keys. Errors: `YamlError`."""
    breaks = [match.end() for match in _LINE_BREAK.finditer(plain)]
    lines: dict[str, int] = {}
    duplicates: list[DuplicateKey] = []
    opened: list[_OpenBracket] = []
    for symbol in symbols:
        outer = opened[-1] if opened else None
        line = bisect.bisect_right(breaks, symbol.start) + 1
        if symbol.text in ("}", "]"):
            opened.pop()
        elif symbol.text == "," and outer is not None:
            outer.index, outer.key = outer.index + 1, None
        elif outer is not None and outer.keys is not None and outer.key is None:
            outer.key = str(msgspec.json.decode(symbol.text))
            if outer.key in outer.keys:
                duplicates.append(DuplicateKey(key=outer.key, line=line, first_line=outer.keys[outer.key]))
            outer.keys.setdefault(outer.key, line)
        elif symbol.text != ":":
            path = "" if outer is None else _join_path(outer)
            if path is not None:
                lines.setdefault(path, line)
            if _WHOLE_NUMBER.fullmatch(symbol.text) and not -(2**63) <= int(symbol.text) < 2**63:
                raise YamlError(line, "whole numbers have at most 64 bits.")
            if symbol.text in ("{", "["):
                opened.append(_OpenBracket(path, {} if symbol.text == "{" else None))
    return lines, duplicates


def _join_path(outer: _OpenBracket) -> str | None:
    """Return the path of the present place in a list or an object, None for one that is too long."""
    if outer.path is None:
        return None
    if outer.keys is None:
        path = f"{outer.path}[{outer.index}]"
    else:
        path = f"{outer.path}.{outer.key}" if outer.path else str(outer.key)
    return path if len(path) <= MAX_PATH_LENGTH else None


def count_lines(text: str) -> int:
    """Return the number of the line on which a text ends, from 1."""
    return len(_LINE_BREAK.findall(text)) + 1


def _find_line(plain: str, problem: str) -> int:
    place = _BYTE_PLACE.search(problem)
    before = plain.encode()[: int(place[1])] if place is not None else plain.encode()
    return count_lines(before.decode("utf-8", "ignore"))


def _remove_extras(text: str) -> tuple[str, list[_Symbol]]:
    """Return JSON of the same length, without comments and trailing commas, and its symbols. Errors: `YamlError`."""
    parts: list[str] = []
    symbols: list[_Symbol] = []
    end, previous, comma = 0, "", -1
    while (match := _TOKEN_PATTERN.search(text, end)) is not None:
        start, symbol = match.span()[0], match[0]
        parts.append(text[end:start])
        end = match.end()
        if symbol in ("//", "/*"):
            end = _find_comment_end(text, start)
            parts.append(re.sub(r"[^\r\n]", " ", text[start:end]))
            continue
        if symbol == '"':
            end = _find_string_end(text, start)
            symbol = text[start:end]
        if symbol in ("]", "}") and comma >= 0:
            parts[comma] = " "
            symbols.pop()
        comma = len(parts) if symbol == "," and previous not in _VALUE_STARTS else -1
        parts.append(symbol)
        symbols.append(_Symbol(symbol, start))
        previous = symbol
    parts.append(text[end:])
    return "".join(parts), symbols


def _find_comment_end(text: str, start: int) -> int:
    if text.startswith("//", start):
        line_end = _LINE_BREAK.search(text, start)
        return len(text) if line_end is None else line_end.start()
    end = text.find("*/", start + 2)
    if end < 0:
        raise YamlError(count_lines(text[:start]), "a comment that begins with /* does not end.")
    return end + 2


def _find_string_end(text: str, start: int) -> int:
    match = _STRING_PART.match(text, start + 1)
    end = start + 1 if match is None else match.end()
    if end >= len(text) or text[end] != '"':
        raise YamlError(count_lines(text[:start]), "a text in quotes does not end.")
    return end + 1
