"""Convert JSON Schemas from outside (older drafts, dialects, mistakes) to JSON Schema 2020-12.

Unknown parts are dropped and never refused, because the receiver of the values checks them again. A schema without a
part accepts more, and `oneOf`, `not`, `if` and `maxContains` turn "accepts more" into "refuses": where any part was
dropped, they are loosened as well.
"""

import re
from typing import Any, Final
from urllib.parse import unquote

from domain.shared.json_schema_parts import (
    DEFINITIONS_KEYWORD,
    allow_null,
    has_only_texts,
    is_matchable_pattern,
    is_number,
    is_of_type,
    loosen_schema,
    resolve_pointer,
)

MAX_SCHEMA_NODES: Final = 10_000
MAX_SCHEMA_DEPTH: Final = 32

_JSON_TYPES: Final = frozenset({"null", "boolean", "object", "array", "number", "integer", "string"})
# Names of the same types in other systems. `any` means every type.
_TYPE_ALIASES: Final[dict[str, str]] = {
    **dict.fromkeys(("int", "int32", "int64", "long"), "integer"),
    **dict.fromkeys(("float", "double", "decimal"), "number"),
    **dict.fromkeys(("str", "text"), "string"),
    **dict.fromkeys(("dict", "map", "struct"), "object"),
    **dict.fromkeys(("none", "nil"), "null"),
    "bool": "boolean",
    "list": "array",
}
# Non-standard types that are formats of text. They are passed on as formats, which nothing checks.
_FORMAT_TYPES: Final[dict[str, str]] = {
    **{name: name for name in ("date", "time", "email", "uri", "uuid", "date-time")},
    **dict.fromkeys(("datetime", "timestamp"), "date-time"),
    "url": "uri",
}
_IGNORED_KEYWORDS: Final = frozenset(
    {"$schema", "$id", "id", "$comment", "$anchor", "$vocabulary", "$defs", "definitions", "title", "description"}
    | {"default", "examples", "example", "deprecated", "readOnly", "writeOnly", "nullable", "x-nullable", "required"}
    | {"additionalItems", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
)


def normalize_schema(schema: Any) -> dict[str, Any]:
    """Return a schema as JSON Schema 2020-12 with the same or weaker rules; `schema` itself is not changed.

    References lead only to `$defs` of the result; external ones are dropped. The result contains at most
    `MAX_SCHEMA_NODES` schemas, `MAX_SCHEMA_DEPTH` deep; deeper parts accept anything.
    """
    return _SchemaReader(schema).read_document()


def _read_annotations(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords that describe a value and check nothing."""
    texts = {name: schema[name] for name in ("title", "description") if isinstance(schema.get(name), str)}
    return texts | {name: schema[name] for name in ("default", "examples") if name in schema}


def _read_required_names(schema: dict[str, Any]) -> list[str]:
    """Return the names of required properties; in draft 3 `required` was true or false."""
    names = schema.get("required")
    return list(dict.fromkeys(name for name in names if isinstance(name, str))) if isinstance(names, list) else []


class _SchemaReader:
    """Read one schema document."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._base = root.get("$id", root.get("id")) if isinstance(root, dict) else None
        self._names: dict[str, str] = {}  # from the pointer of a reference to the name of its definition
        self._pending: list[tuple[str, Any]] = []
        self._nodes = 0
        self._exact = True

    def read_document(self) -> dict[str, Any]:
        document = self._read_schema(self._root, 0)
        definitions: dict[str, Any] = {}
        while self._pending:
            name, target = self._pending.pop()
            definitions[name] = self._read_schema(target, 0)
        if not self._exact:
            loosen_schema(document)
            for definition in definitions.values():
                loosen_schema(definition)
        if definitions:
            document[DEFINITIONS_KEYWORD] = definitions
        return document

    def _mark_inexact(self) -> None:
        self._exact = False

    def _read_schema(self, schema: Any, depth: int) -> dict[str, Any]:
        if schema is True:
            return {}
        if schema is False:
            return {"not": {}}
        self._nodes += 1
        if not isinstance(schema, dict) or self._nodes > MAX_SCHEMA_NODES or depth > MAX_SCHEMA_DEPTH:
            self._mark_inexact()
            return {}
        result = _read_annotations(schema)
        self._read_type(schema, result)
        self._read_bounds(schema, result)
        for keyword, value in schema.items():
            if keyword in _IGNORED_KEYWORDS or keyword.startswith("x-") or keyword == "type":
                continue
            reader = _KEYWORD_READERS.get(keyword)
            if reader is None or not reader(self, keyword, value, result, depth):
                self._mark_inexact()
        if "items" in schema:
            self._read_items(schema, result, depth)
        if names := _read_required_names(schema):
            result["required"] = names
        if "enum" in result and "type" in result:
            self._reconcile_enum(result)
        return allow_null(result) if schema.get("nullable") is True or schema.get("x-nullable") is True else result

    # keywords that depend on each other

    def _read_type(self, schema: dict[str, Any], result: dict[str, Any]) -> None:
        declared = schema.get("type")
        if declared is None:
            return
        types: list[str] = []
        for entry in declared if isinstance(declared, list) else [declared]:
            word = entry.lower() if isinstance(entry, str) else ""
            word = _TYPE_ALIASES.get(word, word)
            if word not in _JSON_TYPES:
                if word in _FORMAT_TYPES:
                    result["format"] = _FORMAT_TYPES[word]
                if word != "any":
                    self._mark_inexact()
                return
            types.append(word)
        if types:
            types = list(dict.fromkeys(types))
            result["type"] = types if len(types) > 1 else types[0]

    def _read_bounds(self, schema: dict[str, Any], result: dict[str, Any]) -> None:
        """Read bounds; draft 4 had `exclusiveMaximum: true` beside `maximum`."""
        for plain, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
            bound, beyond = schema.get(plain), schema.get(exclusive)
            if beyond is True and is_number(bound):
                result[exclusive] = bound
                continue
            for keyword, value in ((plain, bound), (exclusive, beyond)):
                if is_number(value):
                    result[keyword] = value
                elif keyword in schema and not isinstance(value, bool):
                    self._mark_inexact()

    def _read_items(self, schema: dict[str, Any], result: dict[str, Any], depth: int) -> None:
        """Read items; before 2020, tuples were lists under `items`, followed by `additionalItems`."""
        items = schema["items"]
        if isinstance(items, list):
            if items:
                result["prefixItems"] = [self._read_schema(item, depth + 1) for item in items[:MAX_SCHEMA_NODES]]
            items = schema.get("additionalItems", True)
        if isinstance(items, dict | bool):
            if items is not True:
                result["items"] = self._read_schema(items, depth + 1)
        else:
            self._mark_inexact()

    def _reconcile_enum(self, result: dict[str, Any]) -> None:
        types = result["type"] if isinstance(result["type"], list) else [result["type"]]
        if "null" in types and None not in result["enum"]:
            result["enum"] = [*result["enum"], None]
        elif not any(is_of_type(value, types) for value in result["enum"]):
            del result["type"]
            self._mark_inexact()

    # keywords on their own: each method returns whether it understood the keyword

    def _read_reference(self, _: str, value: Any, result: dict[str, Any], depth: int) -> bool:
        pointer = self._make_local_pointer(value)
        if pointer is None:
            return False
        if pointer == "" and depth == 0:
            return False  # a reference to itself
        seen = {pointer}
        try:
            target = resolve_pointer(self._root, pointer)
            while isinstance(target, dict) and target.keys() - _IGNORED_KEYWORDS == {"$ref"}:
                pointer = self._make_local_pointer(target["$ref"])
                if pointer is None or pointer in seen:
                    return False
                seen.add(pointer)
                target = resolve_pointer(self._root, pointer)
        except (LookupError, ValueError):
            return False
        if not isinstance(target, dict | bool):
            return False
        if pointer not in self._names:
            name = re.sub(r"[^A-Za-z0-9_]+", "_", pointer.rpartition("/")[2])[:48] or "root"
            if name in self._names.values():
                name = f"{name}_{len(self._names)}"
            self._names[pointer] = name
            self._pending.append((name, target))
        result["$ref"] = f"#/{DEFINITIONS_KEYWORD}/{self._names[pointer]}"
        return True

    def _make_local_pointer(self, reference: Any) -> str | None:
        if not isinstance(reference, str):
            return None
        if isinstance(self._base, str) and self._base and reference.startswith(self._base.rstrip("#")):
            reference = reference[len(self._base.rstrip("#")) :] or "#"
        if reference == "#":
            return ""
        return unquote(reference[1:]) if reference.startswith("#/") else None

    def _read_enum(self, keyword: str, value: Any, result: dict[str, Any], _: int) -> bool:
        if isinstance(value, list) and value:
            result[keyword] = value
        return keyword in result

    def _read_const(self, keyword: str, value: Any, result: dict[str, Any], _: int) -> bool:
        result[keyword] = value
        return True

    def _read_count(self, keyword: str, value: Any, result: dict[str, Any], _: int) -> bool:
        if not is_number(value) or value < 0 or value != int(value):
            return False
        result[keyword] = int(value)
        return True

    def _read_multiple(self, _: str, value: Any, result: dict[str, Any], __: int) -> bool:
        if not is_number(value) or value <= 0:
            return False
        result["multipleOf"] = value
        return True

    def _read_format(self, keyword: str, value: Any, result: dict[str, Any], _: int) -> bool:
        """Pass the format on. Nothing checks it, so it counts as not understood."""
        if isinstance(value, str):
            result[keyword] = value
        return False

    def _read_unique(self, keyword: str, value: Any, result: dict[str, Any], _: int) -> bool:
        """Pass the keyword on, as with formats."""
        if value is True:
            result[keyword] = True
        return value is False

    def _read_pattern(self, keyword: str, value: Any, result: dict[str, Any], _: int) -> bool:
        if is_matchable_pattern(value):
            result[keyword] = value
        return keyword in result

    def _read_single(self, keyword: str, value: Any, result: dict[str, Any], depth: int) -> bool:
        if not isinstance(value, dict | bool):
            return False
        subschema = self._read_schema(value, depth + 1)
        if keyword == "not" and not subschema and value and value is not True:
            return False  # it accepts everything once its parts are dropped, and `not` would then refuse everything
        result[keyword] = subschema
        return True

    def _read_alternatives(self, keyword: str, value: Any, result: dict[str, Any], depth: int) -> bool:
        """Read alternatives: each must be understood, because any of them may be the right one."""
        if not isinstance(value, list) or not value:
            return False
        schemas = [item for item in value[:MAX_SCHEMA_NODES] if isinstance(item, dict | bool)]
        is_complete = len(schemas) == len(value)
        if schemas and (is_complete or keyword == "allOf"):
            result[keyword] = [self._read_schema(item, depth + 1) for item in schemas]
        return is_complete

    def _read_prefix(self, keyword: str, value: Any, result: dict[str, Any], depth: int) -> bool:
        if isinstance(value, list) and value:
            result[keyword] = [self._read_schema(item, depth + 1) for item in value[:MAX_SCHEMA_NODES]]
        return keyword in result

    def _read_properties(self, keyword: str, value: Any, result: dict[str, Any], depth: int) -> bool:
        if not isinstance(value, dict):
            return False
        properties = list(value.items())[:MAX_SCHEMA_NODES]
        result[keyword] = {name: self._read_schema(subschema, depth + 1) for name, subschema in properties}
        return len(value) <= MAX_SCHEMA_NODES

    def _read_pattern_properties(self, keyword: str, value: Any, result: dict[str, Any], depth: int) -> bool:
        patterns = value if isinstance(value, dict) else {}
        matchable = {pattern: item for pattern, item in patterns.items() if is_matchable_pattern(pattern)}
        if matchable:
            self._read_properties(keyword, matchable, result, depth)
        if isinstance(value, dict) and len(matchable) == len(value):
            return True
        # The names of the other properties are unknown now.
        result["additionalProperties"] = True
        return False

    def _read_additional_properties(self, keyword: str, value: Any, result: dict[str, Any], depth: int) -> bool:
        if not isinstance(value, dict | bool):
            return False
        if keyword not in result:  # already set where patterns cannot be matched
            result[keyword] = value if isinstance(value, bool) else self._read_schema(value, depth + 1)
        return True

    def _read_dependent_names(self, keyword: str, value: Any, result: dict[str, Any], _: int) -> bool:
        entries = value if isinstance(value, dict) else {}
        lists = {name: item for name, item in entries.items() if isinstance(item, list) and has_only_texts(item)}
        if lists:
            result[keyword] = lists
        return isinstance(value, dict) and len(lists) == len(value)

    def _skip_keyword(self, *_: Any) -> bool:
        return True


_KEYWORD_READERS: Final[dict[str, Any]] = {
    "$ref": _SchemaReader._read_reference,
    "$recursiveRef": _SchemaReader._read_reference,
    "enum": _SchemaReader._read_enum,
    "const": _SchemaReader._read_const,
    "multipleOf": _SchemaReader._read_multiple,
    "divisibleBy": _SchemaReader._read_multiple,
    "format": _SchemaReader._read_format,
    "uniqueItems": _SchemaReader._read_unique,
    "pattern": _SchemaReader._read_pattern,
    "items": _SchemaReader._skip_keyword,
    "prefixItems": _SchemaReader._read_prefix,
    "properties": _SchemaReader._read_properties,
    "dependentSchemas": _SchemaReader._read_properties,
    "patternProperties": _SchemaReader._read_pattern_properties,
    "additionalProperties": _SchemaReader._read_additional_properties,
    "dependentRequired": _SchemaReader._read_dependent_names,
    **dict.fromkeys(("allOf", "anyOf", "oneOf"), _SchemaReader._read_alternatives),
    **dict.fromkeys(("not", "if", "then", "else", "contains", "propertyNames"), _SchemaReader._read_single),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), _SchemaReader._read_count),
    **dict.fromkeys(("minProperties", "maxProperties"), _SchemaReader._read_count),
    **dict.fromkeys(("minContains", "maxContains"), _SchemaReader._read_count),
}
