"""YAML and JSON that people write: values with the lines they stand on, and back.

JSON's kinds of values and no more. What lets a small text become a large value (anchors, aliases, merge keys), or a
text become anything else (tags), is refused. Only `true` and `false` are booleans: `on: push`, `country: no` are text.
"""

import math
import re
from typing import Any, Final

import msgspec
import yaml

from domain.shared.errors import DomainError, InvalidField

# Bytes.
MAX_YAML_BYTES: Final = 256 * 1024
MAX_YAML_DEPTH: Final = 32
MAX_YAML_NODES: Final = 20_000
# Characters of a place that is still kept: long names would repeat in all that is below them.
MAX_PATH_LENGTH: Final = 500
_BREAK: Final = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_UNPRINTABLE: Final = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")
_NULL: Final = frozenset({"", "~", "null", "Null", "NULL"})
_BOOL: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT: Final = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT: Final = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_PAIR: Final = re.compile(r"\\(?:u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|.)", re.DOTALL)
_NOT_FINITE: Final = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


class YamlDocument(msgspec.Struct, kw_only=True):
    """A value, and the line (from 1) of each place in it, such as `steps[2].agent`. The whole is at ``""``."""

    value: Any
    lines: dict[str, int]


class _Refused(Exception):
    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


class _Open(msgspec.Struct):
    """A list or an object that is being read; `key` is one whose value is next. `place` is None when it is too long."""

    value: dict[str, Any] | list[Any]
    place: str | None
    key: str | None = None
    seen: dict[str, int] = {}


def parse_yaml(text: str, field: str) -> YamlDocument:
    """Read one document. Errors: DomainError invalid_field, which names `field` and the line."""
    try:
        return _read(text)
    except _Refused as error:
        raise _invalid(field, error.line, error.message) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = ", ".join(filter(None, (error.context, error.problem)))[:300]
        raise _invalid(field, mark.line + 1 if mark is not None else 1, f"is not YAML: {problem}.") from None
    except yaml.YAMLError:
        raise _invalid(field, 1, "is not YAML.") from None


def dump_yaml(value: Any) -> str:
    """A JSON value as YAML that `parse` reads: names in their order, text of several lines as it is read."""
    # Left to PyYAML's types: a Dumper is given as a class.
    text: str = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=100_000
    )
    return text


def _invalid(field: str, line: int, message: str) -> DomainError:
    return InvalidField(field, f"line {line}: {message}")


def _read(text: str) -> YamlDocument:
    if text.startswith("\ufeff"):
        text = text[1:]
    bad = _UNPRINTABLE.search(text)
    if bad is not None:
        raise _Refused(_line(text, bad.start()), f"the character U+{ord(bad[0]):04X} cannot be part of a document.")
    size = len(text.encode())
    if size > MAX_YAML_BYTES:
        raise _Refused(_line(text, len(text)), f"the document has more than {MAX_YAML_BYTES} bytes.")
    reader = _Reader()
    for event in yaml.parse(_as_yaml(text), Loader=yaml.CSafeLoader):
        reader.take(event)
    if not reader.done:
        raise _Refused(1, "the document is empty.")
    return YamlDocument(value=reader.value, lines=reader.lines)


def _as_yaml(text: str) -> str:
    """JSON has two things that YAML has not: tabs between values, and characters written as two escapes."""
    if not text.lstrip().startswith(("{", "[")) or ("\t" not in text and "\\u" not in text):
        return text
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text

    def joined(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0]
        return chr(0x10000 + ((int(match[1], 16) - 0xD800) << 10) + int(match[2], 16) - 0xDC00)

    return _PAIR.sub(joined, text.replace("\t", " "))


def _line(text: str, at: int) -> int:
    return len(_BREAK.findall(text, 0, at)) + 1


class _Reader:
    """Puts the value together, event by event: nothing is read after the first thing that is refused."""

    def __init__(self) -> None:
        self.value: Any = None
        self.lines: dict[str, int] = {}
        self.done = False
        self.open: list[_Open] = []
        self.nodes = 0

    def take(self, event: yaml.Event) -> None:
        line = event.start_mark.line + 1 if event.start_mark is not None else 1
        if isinstance(event, yaml.DocumentStartEvent):
            if self.done:
                raise _Refused(line, "there is more than one document.")
            if event.tags:
                raise _Refused(line, "tags are not allowed.")
        elif isinstance(event, yaml.AliasEvent):
            raise _Refused(line, f"aliases are not allowed: *{str(event.anchor)[:100]}.")
        elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
            self.open.pop()
        elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            self._node(event, line)

    def _node(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent, line: int) -> None:
        if event.anchor is not None:
            raise _Refused(line, f"anchors are not allowed: &{event.anchor[:100]}.")
        if event.tag is not None:
            raise _Refused(line, f"tags are not allowed: {event.tag[:100]}.")
        self.nodes += 1
        if self.nodes > MAX_YAML_NODES:
            raise _Refused(line, f"there are more than {MAX_YAML_NODES} values.")
        inside = self.open[-1] if self.open else None
        if inside is not None and isinstance(inside.value, dict) and inside.key is None:
            inside.key = self._key(event, line, inside)
            return
        place = self._place(inside, line)
        if isinstance(event, yaml.ScalarEvent):
            self._put(inside, _scalar(event, line))
            return
        if len(self.open) >= MAX_YAML_DEPTH:
            raise _Refused(line, f"values are nested deeper than {MAX_YAML_DEPTH}.")
        made: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
        self._put(inside, made)
        self.open.append(_Open(value=made, place=place, seen={}))

    def _key(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent, line: int, inside: _Open) -> str:
        if not isinstance(event, yaml.ScalarEvent):
            told = "a name must be text, not a list or an object. Put a value that begins with {{ in quotes."
            raise _Refused(line, told)
        if event.implicit[0] and event.value == "<<":
            raise _Refused(line, "merge keys (<<) are not allowed.")
        key = _scalar(event, line)
        if not isinstance(key, str):
            raise _Refused(line, f"a name must be text: put {event.value[:100] or 'it'} in quotes.")
        if key in inside.seen:
            raise _Refused(line, f"{key[:100]!r} is there twice, first on line {inside.seen[key]}.")
        inside.seen[key] = line
        return key

    def _place(self, inside: _Open | None, line: int) -> str | None:
        if inside is None:
            place: str | None = ""
        elif inside.place is None:
            place = None
        elif inside.key is None:
            place = f"{inside.place}[{len(inside.value)}]"
        else:
            line = inside.seen[inside.key]
            place = f"{inside.place}.{inside.key}" if inside.place else inside.key
        if place is None or len(place) > MAX_PATH_LENGTH:
            return None
        self.lines[place] = line
        return place

    def _put(self, inside: _Open | None, value: Any) -> None:
        if inside is None:
            self.value, self.done = value, True
        elif isinstance(inside.value, list):
            inside.value.append(value)
        elif inside.key is not None:
            inside.value[inside.key] = value
            inside.key = None


def _scalar(event: yaml.ScalarEvent, line: int) -> Any:
    text: str = event.value
    if _UNSTORABLE.search(text):
        raise _Refused(line, "text cannot hold U+0000 or half of a surrogate pair.")
    if not event.implicit[0]:
        return text
    if _NOT_FINITE.fullmatch(text):
        raise _Refused(line, f"{text} is not a number that JSON has.")
    value = _plain(text)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise _Refused(line, "whole numbers have at most 64 bits.")
    if isinstance(value, float) and not math.isfinite(value):
        raise _Refused(line, f"{text[:100]} is too large for a number.")
    return value


def _plain(text: str) -> Any:
    """What text without quotes means."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text):
        return int(text) if len(text) < 32 else 2**64
    return float(text) if _FLOAT.fullmatch(text) else text


class _Dumper(yaml.CSafeDumper):
    """Quotes what `parse` would take for something else than text, and repeats a value that is there twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represented(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None
    if "\n" in text:
        style = "|"
    elif not isinstance(_plain(text), str) or _NOT_FINITE.fullmatch(text):
        style = "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represented)
