"""Keys that are there twice in a mapping of a YAML document, and the document without the second ones."""

import re
from collections.abc import Iterator
from typing import Final

import msgspec
import yaml

from domain.shared.yaml_reader import MAX_YAML_DEPTH, MAX_YAML_NODES

# A document of so many values has no more.
_MAX_EVENTS: Final = 3 * MAX_YAML_NODES
_LINE: Final = re.compile(r"[^\r\n]+")
_COMMA: Final = re.compile(r"\s*,")


class Twin(msgspec.Struct, frozen=True, kw_only=True):
    """A key that was there before, and the characters of it and its value."""

    key: str
    line: int
    first: int
    begin: int
    end: int


class _Open(msgspec.Struct, kw_only=True):
    """A mapping or a list that is being read; `key` is one whose value is next."""

    is_map: bool
    seen: dict[str, int]
    key: tuple[str, int, int] | None = None


def apart(text: str) -> tuple[list[Twin], str]:
    """The twins, and the text without them, with all else on the lines where it was.

    Of what cannot be read to its end there are none.
    """
    text = text.removeprefix("\ufeff")
    try:
        twins = list(_found(text))
    except (yaml.YAMLError, _TooMuch):
        return [], text
    for twin in reversed(twins):
        comma = _COMMA.match(text, twin.end)
        gone = text[twin.begin : twin.end].rstrip() if comma is None else text[twin.begin : comma.end()]
        text = text[: twin.begin] + _LINE.sub("", gone) + text[twin.begin + len(gone) :]
    return twins, text


class _TooMuch(Exception):
    pass


def _found(text: str) -> Iterator[Twin]:
    stack: list[_Open] = []
    hidden: _Open | None = None
    for number, event in enumerate(yaml.parse(text, Loader=yaml.CSafeLoader)):
        if number > _MAX_EVENTS or len(stack) > MAX_YAML_DEPTH:
            raise _TooMuch
        # PyYAML's own parsers always say where.
        assert event.start_mark is not None
        assert event.end_mark is not None
        begin, end, line = event.start_mark.index, event.end_mark.index, event.start_mark.line + 1
        if isinstance(event, yaml.CollectionEndEvent):
            stack.pop()
        elif not isinstance(event, yaml.NodeEvent):
            continue
        elif stack and stack[-1].is_map and stack[-1].key is None:
            if not isinstance(event, yaml.ScalarEvent):
                raise _TooMuch
            stack[-1].key = (event.value, line, begin)
            if event.value in stack[-1].seen and hidden is None:
                hidden = stack[-1]
            continue
        elif isinstance(event, yaml.CollectionStartEvent):
            stack.append(_Open(is_map=isinstance(event, yaml.MappingStartEvent), seen={}))
            continue
        # A value has come to its end.
        inside = stack[-1] if stack else None
        if inside is not None and inside.key is not None:
            key, key_line, key_begin = inside.key
            if hidden is inside:
                yield Twin(key=key, line=key_line, first=inside.seen[key], begin=key_begin, end=end)
                hidden = None
            inside.seen.setdefault(key, key_line)
            inside.key = None
