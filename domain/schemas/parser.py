"""Check that a JSON Schema (2020-12) can be applied: every keyword known, every reference resolved, all of it bounded.

A schema that describes what a run takes or leaves is refused as a whole where a part of it would have no effect, as
any other field is. Each problem is named with its place: `input_schema.properties.x.$ref`.
"""

import difflib
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final
from urllib.parse import unquote

import msgspec
from msgspec import Meta

from domain.schemas.limits import MAX_PATTERNS, compile_pattern, forget_compiled_patterns
from domain.schemas.places import join_place
from domain.shared.errors import MAX_FIELD_ERRORS, FieldError, InvalidField, InvalidFields
from domain.shared.json_limits import JsonTooLarge, check_json
from domain.shared.json_schema_parts import MAX_PATTERN_CHARACTERS, has_only_texts, is_matchable_pattern, is_number
from domain.shared.json_schemas import MAX_SCHEMA_DEPTH

MAX_SCHEMA_BYTES: Final = 256 * 1024
MAX_SCHEMA_NODES: Final = 5_000
MAX_ENUM_VALUES: Final = 5_000
# Schemas that one value may have to be checked against, with all references followed.
MAX_APPLIED_SCHEMAS: Final = 20_000

JsonSchema = Annotated[
    dict[str, Any],
    Meta(
        description="JSON Schema 2020-12, at most 256 KiB, without references to other documents.",
        examples=[{"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}],
    ),
]

_TYPE_NAMES: Final = ("null", "boolean", "object", "array", "number", "integer", "string")
# Drafts whose keywords mean the same here, or are refused where they stand.
_KNOWN_LANGUAGES: Final = frozenset(
    f"{scheme}://json-schema.org/{draft}/schema"
    for scheme in ("http", "https")
    for draft in ("draft/2020-12", "draft/2019-09", "draft-07", "draft-06")
)
_ANNOTATION_KEYWORDS: Final = frozenset(
    {"title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$comment"}
    | {"contentEncoding", "contentMediaType", "contentSchema", "discriminator", "externalDocs", "xml", "enumNames"}
    | {"markdownDescription", "enumDescriptions", "markdownEnumDescriptions", "errorMessage", "defaultSnippets"}
)
_REFUSED_KEYWORDS: Final = {
    "nullable": 'is of OpenAPI 3.0. Write `"type": ["string", "null"]`, or `anyOf` with `{"type": "null"}`.',
    "additionalItems": "is of older drafts. Write a list as `prefixItems`, and `items` for the items after it.",
    "dependencies": "is of older drafts. Write `dependentRequired` or `dependentSchemas`.",
    "id": "is of an old draft. Leave it out, or write `$id` at the top.",
    "extends": "is of an old draft. Write `allOf`.",
    "divisibleBy": "is of an old draft. Write `multipleOf`.",
    **dict.fromkeys(("$anchor", "$dynamicAnchor", "$recursiveAnchor"), "is not supported. Refer to `#/$defs/name`."),
    **dict.fromkeys(("$dynamicRef", "$recursiveRef"), "is not supported. Write `$ref` and `#/$defs/name`."),
    "$vocabulary": "is not supported.",
}
# Where a schema stands within another: those that apply to the same value, and those that apply to a part of it.
_SAME_VALUE_KEYWORDS: Final = ("not", "if", "then", "else")
_PART_KEYWORDS: Final = (
    *("items", "contains", "additionalProperties", "propertyNames", "unevaluatedProperties", "unevaluatedItems"),
)
_LIST_KEYWORDS: Final = ("allOf", "anyOf", "oneOf")
_MAP_KEYWORDS: Final = ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")


class _Node(msgspec.Struct, kw_only=True):
    """Hold a schema within the document: its place, what it refers to, and what applies to the same value."""

    place: str
    reference: str | None = None
    same_value: list["_Node"] = []


def parse_schema(schema: Any, field: str) -> dict[str, Any]:
    """Return a schema that can be applied. Errors: `invalid_field`, naming the place of each problem in `field`."""
    written = _encode_schema(schema, field)
    # Read again, so that all names are text, also in what a YAML document held.
    checked: dict[str, Any] = msgspec.json.decode(written)
    errors = _SchemaParser(field).list_errors(checked)
    if errors:
        raise InvalidFields(errors)
    return checked


def _encode_schema(schema: Any, field: str) -> bytes:
    """Return the JSON of a schema, within the limits. Errors: `invalid_field`."""
    if not isinstance(schema, dict):
        raise InvalidField(field, "must be a JSON Schema, which is an object.")
    try:
        written = msgspec.json.encode(schema)
        check_json(written)
    except JsonTooLarge as error:
        raise InvalidField(field, error.reason) from None
    except (msgspec.MsgspecError, RecursionError, TypeError, ValueError, OverflowError):
        raise InvalidField(field, "must be JSON.") from None
    if len(written) > MAX_SCHEMA_BYTES:
        raise InvalidField(field, f"has {len(written)} bytes; at most {MAX_SCHEMA_BYTES} are allowed.")
    return written


class _TooManyErrors(Exception):
    pass


class _SchemaParser:
    """Walk through one schema document."""

    def __init__(self, field: str) -> None:
        self._field = field
        self._errors: list[FieldError] = []
        self._nodes: dict[str, _Node] = {}  # by JSON pointer
        self._patterns: set[str] = set()

    def list_errors(self, schema: dict[str, Any]) -> list[FieldError]:
        try:
            self._read_schema(schema, self._field, "", 0)
            self._link_references()
            if not self._errors:
                self._check_progress()
        except _TooManyErrors:
            pass
        finally:
            if self._patterns:
                forget_compiled_patterns()
        return self._errors

    def _refuse(self, place: str, message: str) -> None:
        self._errors.append(FieldError(field=place, message=message))
        if len(self._errors) >= MAX_FIELD_ERRORS:
            raise _TooManyErrors

    def _read_schema(self, schema: Any, place: str, pointer: str, depth: int) -> _Node | None:
        if isinstance(schema, bool):
            node = self._nodes[pointer] = _Node(place=place)
            return node
        if not isinstance(schema, dict):
            self._refuse(place, "must be a schema: an object, true or false.")
            return None
        if depth > MAX_SCHEMA_DEPTH:
            self._refuse(place, f"nests deeper than {MAX_SCHEMA_DEPTH} schemas. Use `$defs`.")
            return None
        node = self._nodes[pointer] = _Node(place=place)
        if len(self._nodes) > MAX_SCHEMA_NODES:
            self._refuse(self._field, f"has more than {MAX_SCHEMA_NODES} schemas in it.")
            raise _TooManyErrors
        for keyword, value in schema.items():
            self._read_keyword(node, keyword, value, pointer, depth)
        return node

    def _read_keyword(self, node: _Node, keyword: str, value: Any, pointer: str, depth: int) -> None:
        place, inner_pointer = join_place(node.place, keyword), f"{pointer}/{_escape_pointer(keyword)}"
        if keyword in _LIST_KEYWORDS or keyword == "prefixItems":
            self._read_list(node, keyword, value, inner_pointer, depth)
        elif keyword in _MAP_KEYWORDS:
            self._read_map(node, keyword, value, inner_pointer, depth)
        elif keyword in _SAME_VALUE_KEYWORDS or keyword in _PART_KEYWORDS:
            if keyword == "items" and isinstance(value, list):
                self._refuse(place, "must be one schema. A list of schemas is `prefixItems`.")
                return
            inner = self._read_schema(value, place, inner_pointer, depth + 1)
            if inner is not None and keyword in _SAME_VALUE_KEYWORDS:
                node.same_value.append(inner)
        elif keyword == "$ref":
            node.reference = self._read_reference(value, place)
        elif keyword in ("$schema", "$id"):
            self._check_document_keyword(keyword, value, place, pointer)
        elif keyword == "pattern":
            self._check_pattern(value, place)
        elif keyword in _VALUE_CHECKS:
            problem = _VALUE_CHECKS[keyword](value)
            if problem is not None:
                self._refuse(place, problem)
        elif keyword not in _ANNOTATION_KEYWORDS and not keyword.startswith("x-"):
            self._refuse(place, _REFUSED_KEYWORDS.get(keyword) or _explain_unknown_keyword(keyword))

    def _read_list(self, node: _Node, keyword: str, value: Any, pointer: str, depth: int) -> None:
        place = join_place(node.place, keyword)
        if not isinstance(value, list) or not value:
            self._refuse(place, "must be a list of schemas with at least one in it.")
            return
        for number, item in enumerate(value):
            inner = self._read_schema(item, join_place(place, number), f"{pointer}/{number}", depth + 1)
            if inner is not None and keyword != "prefixItems":
                node.same_value.append(inner)

    def _read_map(self, node: _Node, keyword: str, value: Any, pointer: str, depth: int) -> None:
        place = join_place(node.place, keyword)
        if not isinstance(value, dict):
            self._refuse(place, "must be an object of schemas by name.")
            return
        for name, item in value.items():
            inner_place = join_place(place, name)
            if keyword == "patternProperties":
                self._check_pattern(name, inner_place)
            inner = self._read_schema(item, inner_place, f"{pointer}/{_escape_pointer(name)}", depth + 1)
            if inner is not None and keyword == "dependentSchemas":
                node.same_value.append(inner)

    def _check_document_keyword(self, keyword: str, value: Any, place: str, pointer: str) -> None:
        if pointer:
            self._refuse(place, "is allowed only at the top of a schema.")
        elif not isinstance(value, str):
            self._refuse(place, "must be text.")
        elif keyword == "$schema" and value.rstrip("#") not in _KNOWN_LANGUAGES:
            self._refuse(place, "must be https://json-schema.org/draft/2020-12/schema, or left out.")

    def _check_pattern(self, pattern: Any, place: str) -> None:
        if not isinstance(pattern, str):
            self._refuse(place, "must be a regular expression, which is text.")
        elif len(pattern) > MAX_PATTERN_CHARACTERS:
            self._refuse(place, f"must have at most {MAX_PATTERN_CHARACTERS} characters.")
        elif not is_matchable_pattern(pattern):
            self._refuse(place, "must not look ahead or behind, or refer back: such expressions can take forever.")
        elif pattern not in self._patterns:
            self._patterns.add(pattern)
            if len(self._patterns) > MAX_PATTERNS:
                self._refuse(place, f"is one of more than {MAX_PATTERNS} different expressions in this schema.")
                raise _TooManyErrors
            if compile_pattern(pattern) is None:
                self._refuse(place, "is no regular expression that RE2 accepts, or too large a one.")

    def _read_reference(self, value: Any, place: str) -> str | None:
        if not isinstance(value, str):
            self._refuse(place, "must be text.")
        elif value == "#":
            return ""
        elif value.startswith("#/"):
            return unquote(value[1:])
        elif value.startswith("#"):
            self._refuse(
                place, "must be a path in this schema, like `#/$defs/name`; names of anchors are not supported."
            )
        else:
            self._refuse(place, "must be a path in this schema, like `#/$defs/name`: other documents are not read.")
        return None

    def _link_references(self) -> None:
        for node in list(self._nodes.values()):
            if node.reference is None:
                continue
            target = self._nodes.get(node.reference)
            if target is None:
                self._refuse(join_place(node.place, "$ref"), f"leads to no schema in this one: #{node.reference[:200]}")
            else:
                node.same_value.append(target)

    def _check_progress(self) -> None:
        """Refuse references that lead back to their schema for the same value, and those that multiply without end."""
        sizes: dict[int, int] = {}
        for start in self._nodes.values():
            for node in _iterate_leaves_first(start, sizes, self._refuse_loop):
                sizes[id(node)] = 1 + sum(sizes.get(id(inner), 0) for inner in node.same_value)
                if sizes[id(node)] > MAX_APPLIED_SCHEMAS:
                    message = f"leads to more than {MAX_APPLIED_SCHEMAS} schemas that apply to the same value."
                    self._refuse(node.place, message)
                    raise _TooManyErrors

    def _refuse_loop(self, node: _Node) -> None:
        place = node.place if node.reference is None else join_place(node.place, "$ref")
        self._refuse(place, "leads back to itself without going into a part of the value.")
        raise _TooManyErrors


def _iterate_leaves_first(start: _Node, done: dict[int, int], on_loop: Callable[[_Node], None]) -> Iterator[_Node]:
    """Yield a node after all that it leads to for the same value, without those that are done."""
    if id(start) in done:
        return
    open_nodes = {id(start)}
    path = [(start, iter(start.same_value))]
    while path:
        node, rest = path[-1]
        inner = next(rest, None)
        if inner is None:
            path.pop()
            open_nodes.discard(id(node))
            yield node
        elif id(inner) in open_nodes:
            on_loop(node)
        elif id(inner) not in done:
            open_nodes.add(id(inner))
            path.append((inner, iter(inner.same_value)))


def _explain_unknown_keyword(keyword: str) -> str:
    near = difflib.get_close_matches(keyword, _list_keywords(), 1)
    hint = f"Did you mean {near[0]!r}?" if near else "Notes of your own begin with `x-`."
    return f"is not a keyword of JSON Schema 2020-12. {hint}"


def _escape_pointer(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")


def _check_type(value: Any) -> str | None:
    types = value if isinstance(value, list) else [value]
    if types and all(isinstance(name, str) and name in _TYPE_NAMES for name in types) and len(set(types)) == len(types):
        return None
    return f"must be one of {', '.join(_TYPE_NAMES)}, or a list of them."


def _check_enum(value: Any) -> str | None:
    if not isinstance(value, list) or not value:
        return "must be a list with at least one value."
    return f"has {len(value)} values; at most {MAX_ENUM_VALUES} are allowed." if len(value) > MAX_ENUM_VALUES else None


def _check_number(value: Any) -> str | None:
    return None if is_number(value) else "must be a number."


def _check_count(value: Any) -> str | None:
    return None if is_number(value) and value >= 0 and value == int(value) else "must be a whole number from 0."


def _check_factor(value: Any) -> str | None:
    return None if is_number(value) and value > 0 else "must be a number greater than 0."


def _check_flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else "must be true or false."


def _check_text(value: Any) -> str | None:
    return None if isinstance(value, str) else "must be text."


def _check_names(value: Any) -> str | None:
    if value is True or value is False:
        return "must be a list of names; `required: true` is of an old draft."
    return None if isinstance(value, list) and has_only_texts(value) else "must be a list of names."


def _check_dependent_names(value: Any) -> str | None:
    if isinstance(value, dict) and all(isinstance(item, list) and has_only_texts(item) for item in value.values()):
        return None
    return "must be an object of lists of names."


_VALUE_CHECKS: Final[dict[str, Callable[[Any], str | None]]] = {
    "type": _check_type,
    "enum": _check_enum,
    "const": lambda _: None,
    "format": _check_text,
    "required": _check_names,
    "dependentRequired": _check_dependent_names,
    "uniqueItems": _check_flag,
    "multipleOf": _check_factor,
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _check_number),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), _check_count),
    **dict.fromkeys(("minProperties", "maxProperties", "minContains", "maxContains"), _check_count),
}


def _list_keywords() -> list[str]:
    return [
        *_VALUE_CHECKS,
        *_LIST_KEYWORDS,
        *_MAP_KEYWORDS,
        *_SAME_VALUE_KEYWORDS,
        *_PART_KEYWORDS,
        "prefixItems",
        "$ref",
    ]
