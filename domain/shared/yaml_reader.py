"""Read YAML and JSON that people write, with the line of each value, and write YAML.

Values are those of JSON. Refused is what expands a small text into a large value (anchors, aliases, merge keys) or
turns a text into something else (tags). Only `true` and `false` are booleans: `on: push` and `country: no` are texts.
"""

import math
import re
from typing import Any, Final

import msgspec
import yaml

from domain.shared.errors import FieldError, InvalidField, InvalidFields

MAX_YAML_BYTES: Final = 256 * 1024
MAX_YAML_DEPTH: Final = 32
MAX_YAML_NODES: Final = 20_000
# Longer paths get no line of their own: long keys would repeat in the path of everything below them.
MAX_PATH_LENGTH: Final = 500
_LINE_BREAK: Final = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_UNPRINTABLE_CHARACTERS: Final = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_UNSTORABLE_CHARACTERS: Final = re.compile("[\x00\ud800-\udfff]")
_NULL_TEXTS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEAN_WORDS: Final = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER_PATTERN: Final = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT_PATTERN: Final = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE: Final = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_SURROGATE_PAIR: Final = re.compile(r"\\(?:u([dD][89abAB][0-9a-fA-F]{2})\\u([dD][c-fC-F][0-9a-fA-F]{2})|.)", re.DOTALL)


class DuplicateKey(msgspec.Struct, frozen=True, kw_only=True):
    """Report a key that stands in its mapping already. Lines count from 1."""

    key: str
    line: int
    first_line: int

    @property
    def message(self) -> str:
        """The sentence for people."""
        return f"duplicate key {self.key[:100]!r}, first on line {self.first_line}."


class YamlDocument(msgspec.Struct, kw_only=True):
    """Hold a value, and the line (from 1) of each place in it, like `steps[2].agent`. The whole is at ``""``.

    The value of a duplicate key is left out. `float_texts` holds the source text of numbers with a fraction: `3.10`.
    """

    value: Any
    lines: dict[str, int]
    duplicates: list[DuplicateKey]
    float_texts: dict[str, str]


class YamlError(Exception):
    """Report a document that cannot be read, and the duplicate keys before the error. `line` counts from 1."""

    def __init__(self, line: int, message: str, duplicates: list[DuplicateKey] | None = None) -> None:
        super().__init__(message)
        self.line, self.message, self.duplicates = line, message, duplicates or []


class _OpenCollection(msgspec.Struct):
    """Hold a list or an object while it is read; `key` waits for its value. `path` is None when it is too long."""

    value: dict[str, Any] | list[Any]
    path: str | None
    key: str | None = None
    key_lines: dict[str, int] = {}


def parse_yaml(text: str, field: str) -> YamlDocument:
    """Read one document without duplicate keys. Errors: `invalid_field` naming `field`, with the line."""
    try:
        document = read_yaml(text)
    except YamlError as error:
        raise InvalidField(field, f"line {error.line}: {error.message}") from None
    if document.duplicates:
        messages = [f"line {duplicate.line}: {duplicate.message}" for duplicate in document.duplicates]
        raise InvalidFields([FieldError(field=field, message=message) for message in messages])
    return document


def read_yaml(text: str) -> YamlDocument:
    """Read one document; of a duplicate key the first value is kept. Errors: `YamlError`."""
    builder = _YamlBuilder()
    try:
        return _build_document(text, builder)
    except YamlError as error:
        raise YamlError(error.line, error.message, builder.duplicates) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = ", ".join(filter(None, (error.context, error.problem)))[:300]
        # Broken syntax may only seem to repeat a key.
        raise YamlError(mark.line + 1 if mark is not None else 1, f"is not YAML: {problem}.") from None
    except yaml.YAMLError:
        raise YamlError(1, "is not YAML.") from None


def dump_yaml(value: Any) -> str:
    """Return a JSON value as YAML that `parse_yaml` reads: keys in their order, long texts as blocks."""
    # mypy: PyYAML's stubs return Any for a Dumper class.
    text: str = yaml.dump(
        value, Dumper=_YamlDumper, sort_keys=False, allow_unicode=True, default_flow_style=False, width=100_000
    )
    return text


def _build_document(text: str, builder: "_YamlBuilder") -> YamlDocument:
    text = text.removeprefix("\ufeff")
    unprintable = _UNPRINTABLE_CHARACTERS.search(text)
    if unprintable is not None:
        message = f"the character U+{ord(unprintable[0]):04X} cannot be part of a document."
        raise YamlError(_count_lines(text, unprintable.start()), message)
    if len(text.encode()) > MAX_YAML_BYTES:
        raise YamlError(_count_lines(text, len(text)), f"the document has more than {MAX_YAML_BYTES} bytes.")
    for event in yaml.parse(_convert_json(text), Loader=yaml.CSafeLoader):
        builder.handle_event(event)
    if not builder.is_complete:
        raise YamlError(1, "the document is empty.")
    return YamlDocument(
        value=builder.value, lines=builder.lines, duplicates=builder.duplicates, float_texts=builder.float_texts
    )


def _convert_json(text: str) -> str:
    """Convert what JSON allows and YAML does not: tabs between values, and characters written as two escapes."""
    if not text.lstrip().startswith(("{", "[")) or ("\t" not in text and "\\u" not in text):
        return text
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text

    def join_surrogates(match: re.Match[str]) -> str:
        if match[1] is None:
            return match[0]
        return chr(0x10000 + ((int(match[1], 16) - 0xD800) << 10) + int(match[2], 16) - 0xDC00)

    return _SURROGATE_PAIR.sub(join_surrogates, text.replace("\t", " "))


def _count_lines(text: str, end: int) -> int:
    return len(_LINE_BREAK.findall(text, 0, end)) + 1


class _YamlBuilder:
    """Build a value from the events of PyYAML's parser. Reading stops at the first error, but not at duplicate keys."""

    def __init__(self) -> None:
        self.value: Any = None
        self.lines: dict[str, int] = {}
        self.duplicates: list[DuplicateKey] = []
        self.float_texts: dict[str, str] = {}
        self.is_complete = False
        self._open: list[_OpenCollection] = []
        self._node_count = 0
        # Open collections within the value of a duplicate key; None outside of one.
        self._skipped_depth: int | None = None

    def handle_event(self, event: yaml.Event) -> None:
        """Take in the next event. Errors: `YamlError`."""
        line = event.start_mark.line + 1 if event.start_mark is not None else 1
        if self._skipped_depth is not None:
            self._skip_event(event, line)
        elif isinstance(event, yaml.DocumentStartEvent):
            if self.is_complete:
                raise YamlError(line, "there is more than one document.")
            if event.tags:
                raise YamlError(line, "tags are not allowed.")
        elif isinstance(event, yaml.AliasEvent):
            raise YamlError(line, f"aliases are not allowed: *{str(event.anchor)[:100]}.")
        elif isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
            self._open.pop()
        elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            self._add_node(event, line)

    def _skip_event(self, event: yaml.Event, line: int) -> None:
        depth = self._skipped_depth or 0
        if isinstance(event, yaml.NodeEvent):
            self._count_node(line)
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        self._skipped_depth = depth or None

    def _count_node(self, line: int) -> None:
        self._node_count += 1
        if self._node_count > MAX_YAML_NODES:
            raise YamlError(line, f"there are more than {MAX_YAML_NODES} values.")

    def _add_node(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent, line: int) -> None:
        if event.anchor is not None:
            raise YamlError(line, f"anchors are not allowed: &{event.anchor[:100]}.")
        if event.tag is not None:
            raise YamlError(line, f"tags are not allowed: {event.tag[:100]}.")
        self._count_node(line)
        parent = self._open[-1] if self._open else None
        if parent is not None and isinstance(parent.value, dict) and parent.key is None:
            self._add_key(event, line, parent)
            return
        path = self._register_path(parent, line)
        if isinstance(event, yaml.ScalarEvent):
            value = _read_scalar(event, line)
            if isinstance(value, float) and path is not None:
                self.float_texts[path] = event.value
            self._add_value(parent, value)
            return
        if len(self._open) >= MAX_YAML_DEPTH:
            raise YamlError(line, f"values are nested deeper than {MAX_YAML_DEPTH}.")
        collection: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
        self._add_value(parent, collection)
        self._open.append(_OpenCollection(value=collection, path=path, key_lines={}))

    def _add_key(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent, line: int, parent: _OpenCollection) -> None:
        if not isinstance(event, yaml.ScalarEvent):
            message = "a key must be text, not a list or an object. Put a value that begins with {{ in quotes."
            raise YamlError(line, message)
        if event.implicit[0] and event.value == "<<":
            raise YamlError(line, "merge keys (<<) are not allowed.")
        key = _read_scalar(event, line)
        if not isinstance(key, str):
            raise YamlError(line, f"a key must be text: put {event.value[:100] or 'it'} in quotes.")
        first_line = parent.key_lines.setdefault(key, line)
        if key in parent.value:
            self.duplicates.append(DuplicateKey(key=key, line=line, first_line=first_line))
            self._skipped_depth = 0
        else:
            parent.key = key

    def _register_path(self, parent: _OpenCollection | None, line: int) -> str | None:
        if parent is None:
            path: str | None = ""
        elif parent.path is None:
            path = None
        elif parent.key is None:
            path = f"{parent.path}[{len(parent.value)}]"
        else:
            line = parent.key_lines[parent.key]
            path = f"{parent.path}.{parent.key}" if parent.path else parent.key
        if path is None or len(path) > MAX_PATH_LENGTH:
            return None
        self.lines[path] = line
        return path

    def _add_value(self, parent: _OpenCollection | None, value: Any) -> None:
        if parent is None:
            self.value, self.is_complete = value, True
        elif isinstance(parent.value, list):
            parent.value.append(value)
        elif parent.key is not None:
            parent.value[parent.key] = value
            parent.key = None


def _read_scalar(event: yaml.ScalarEvent, line: int) -> Any:
    text: str = event.value
    if _UNSTORABLE_CHARACTERS.search(text):
        raise YamlError(line, "text cannot hold U+0000 or half of a surrogate pair.")
    if not event.implicit[0]:
        return text
    if _NOT_FINITE.fullmatch(text):
        raise YamlError(line, f"{text} is not a number that JSON has.")
    value = _convert_plain_text(text)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise YamlError(line, "whole numbers have at most 64 bits.")
    if isinstance(value, float) and not math.isfinite(value):
        raise YamlError(line, f"{text[:100]} is too large for a number.")
    return value


def _convert_plain_text(text: str) -> Any:
    """Return the value of a text without quotes."""
    if text in _NULL_TEXTS:
        return None
    if text in _BOOLEAN_WORDS:
        return _BOOLEAN_WORDS[text]
    if _INTEGER_PATTERN.fullmatch(text):
        return int(text) if len(text) < 32 else 2**64
    return float(text) if _FLOAT_PATTERN.fullmatch(text) else text


class _YamlDumper(yaml.CSafeDumper):
    """Quote texts that `parse_yaml` would read as other values, and repeat values that occur twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _YamlDumper, text: str) -> yaml.ScalarNode:
    style = None
    if "\n" in text:
        style = "|"
    elif not isinstance(_convert_plain_text(text), str) or _NOT_FINITE.fullmatch(text):
        style = "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_YamlDumper.add_representer(str, _represent_text)
