"""Reads JSON Schemas of others: older drafts, home-made dialects and plain mistakes become JSON Schema 2020-12.

What is not understood is dropped, never a reason to refuse: whoever gets the values checks them again. A schema that
lost a part accepts more, and `oneOf`, `not`, `if` and `maxContains` turn "accepts more" into "refuses": where any part
was dropped, they are loosened as well.
"""

import math
import re
from typing import Any, Final
from urllib.parse import unquote

MAX_SCHEMA_NODES: Final = 10_000
MAX_SCHEMA_DEPTH: Final = 32
MAX_PATTERN_CHARACTERS: Final = 500
DEFINITIONS_KEYWORD: Final = "$defs"

_TYPES: Final = frozenset({"null", "boolean", "object", "array", "number", "integer", "string"})
# Names of the same types in other systems. `any` is every type.
_TYPE_ALIASES: Final[dict[str, str]] = {
    **dict.fromkeys(("int", "int32", "int64", "long"), "integer"),
    **dict.fromkeys(("float", "double", "decimal"), "number"),
    **dict.fromkeys(("str", "text"), "string"),
    **dict.fromkeys(("dict", "map", "struct"), "object"),
    **dict.fromkeys(("none", "nil"), "null"),
    "bool": "boolean",
    "list": "array",
}
# Home-made types that are formats of text. They are passed on as such, and nothing is checked by them.
_FORMATS: Final[dict[str, str]] = {
    **{name: name for name in ("date", "time", "email", "uri", "uuid", "date-time")},
    **dict.fromkeys(("datetime", "timestamp"), "date-time"),
    "url": "uri",
}
_WORDS: Final = ("title", "description", "default", "examples")
_IGNORED: Final = frozenset(
    {"$schema", "$id", "id", "$comment", "$anchor", "$vocabulary", "$defs", "definitions", "title", "description"}
    | {"default", "examples", "example", "deprecated", "readOnly", "writeOnly", "nullable", "x-nullable", "required"}
    | {"additionalItems", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
)
# What no engine that does not backtrack can match.
_LOOKS_AROUND: Final = re.compile(r"\(\?<?[=!]|\(\?>|\\[1-9]|\\k<")


def normalize_schema(schema: Any) -> dict[str, Any]:
    """Return a schema as JSON Schema 2020-12 that says the same or less; `schema` itself stays as it is.

    References lead to `$defs` of the result alone; what they meant elsewhere is dropped. The result holds at most
    `MAX_SCHEMA_NODES` schemas, `MAX_SCHEMA_DEPTH` deep; what lies beyond accepts anything.
    """
    return _SchemaReader(schema).read_document()


def is_matchable_pattern(pattern: Any) -> bool:
    """Return whether a regular expression is one to match with: text, not too long, without looking around."""
    return isinstance(pattern, str) and len(pattern) <= MAX_PATTERN_CHARACTERS and _LOOKS_AROUND.search(pattern) is None


class _SchemaReader:
    """Reads one document."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._base = root.get("$id", root.get("id")) if isinstance(root, dict) else None
        self._names: dict[str, str] = {}  # from a reference's pointer to the definition's name
        self._pending: list[tuple[str, Any]] = []
        self._nodes = 0
        self._exact = True

    def read_document(self) -> dict[str, Any]:
        document = self._read(self._root, 0)
        definitions: dict[str, Any] = {}
        while self._pending:
            name, target = self._pending.pop()
            definitions[name] = self._read(target, 0)
        if not self._exact:
            _loosen(document)
            for definition in definitions.values():
                _loosen(definition)
        if definitions:
            document[DEFINITIONS_KEYWORD] = definitions
        return document

    def _drop(self) -> None:
        self._exact = False

    def _read(self, schema: Any, depth: int) -> dict[str, Any]:
        if schema is True:
            return {}
        if schema is False:
            return {"not": {}}
        self._nodes += 1
        if not isinstance(schema, dict) or self._nodes > MAX_SCHEMA_NODES or depth > MAX_SCHEMA_DEPTH:
            self._drop()
            return {}
        found: dict[str, Any] = {}
        for name in ("title", "description"):
            if isinstance(schema.get(name), str):
                found[name] = schema[name]
        for name in ("default", "examples"):
            if name in schema:
                found[name] = schema[name]
        self._read_type(schema, found)
        self._read_bounds(schema, found)
        for keyword, value in schema.items():
            if keyword in _IGNORED or keyword.startswith("x-") or keyword == "type":
                continue
            reader = _READERS.get(keyword)
            if reader is None or not reader(self, keyword, value, found, depth):
                self._drop()
        if "items" in schema:
            self._read_items(schema, found, depth)
        names = schema.get("required")
        if isinstance(names, list) and (known := [name for name in names if isinstance(name, str)]):
            found["required"] = list(dict.fromkeys(known))
        if "enum" in found and "type" in found:
            self._reconcile_enum(found)
        return _with_null(found) if schema.get("nullable") is True or schema.get("x-nullable") is True else found

    # keywords that depend on each other

    def _read_type(self, schema: dict[str, Any], found: dict[str, Any]) -> None:
        named = schema.get("type")
        if named is None:
            return
        types: list[str] = []
        for one in named if isinstance(named, list) else [named]:
            word = one.lower() if isinstance(one, str) else ""
            word = _TYPE_ALIASES.get(word, word)
            if word not in _TYPES:
                if word in _FORMATS:
                    found["format"] = _FORMATS[word]
                if word != "any":
                    self._drop()
                return
            types.append(word)
        if types:
            types = list(dict.fromkeys(types))
            found["type"] = types if len(types) > 1 else types[0]

    def _read_bounds(self, schema: dict[str, Any], found: dict[str, Any]) -> None:
        """Draft 4 had `exclusiveMaximum: true` beside `maximum`."""
        for plain, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
            bound, beyond = schema.get(plain), schema.get(exclusive)
            if beyond is True and _is_number(bound):
                found[exclusive] = bound
                continue
            for keyword, value in ((plain, bound), (exclusive, beyond)):
                if _is_number(value):
                    found[keyword] = value
                elif keyword in schema and not isinstance(value, bool):
                    self._drop()

    def _read_items(self, schema: dict[str, Any], found: dict[str, Any], depth: int) -> None:
        """Tuples were lists under `items` before 2020, and what follows them was `additionalItems`."""
        items = schema["items"]
        if isinstance(items, list):
            if items:
                found["prefixItems"] = [self._read(one, depth + 1) for one in items[:MAX_SCHEMA_NODES]]
            items = schema.get("additionalItems", True)
        if isinstance(items, dict | bool):
            if items is not True:
                found["items"] = self._read(items, depth + 1)
        else:
            self._drop()

    def _reconcile_enum(self, found: dict[str, Any]) -> None:
        types = found["type"] if isinstance(found["type"], list) else [found["type"]]
        if "null" in types and None not in found["enum"]:
            found["enum"] = [*found["enum"], None]
        elif not any(_has_type(value, types) for value in found["enum"]):
            del found["type"]
            self._drop()

    # keywords by themselves: each returns whether it was understood

    def _read_reference(self, _: str, value: Any, found: dict[str, Any], depth: int) -> bool:
        pointer = self._local_pointer(value)
        if pointer is None:
            return False
        if pointer == "" and depth == 0:
            return False  # itself
        seen = {pointer}
        try:
            target = _resolve(self._root, pointer)
            while isinstance(target, dict) and target.keys() - _IGNORED == {"$ref"}:
                pointer = self._local_pointer(target["$ref"])
                if pointer is None or pointer in seen:
                    return False
                seen.add(pointer)
                target = _resolve(self._root, pointer)
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
        found["$ref"] = f"#/{DEFINITIONS_KEYWORD}/{self._names[pointer]}"
        return True

    def _local_pointer(self, reference: Any) -> str | None:
        if not isinstance(reference, str):
            return None
        if isinstance(self._base, str) and self._base and reference.startswith(self._base.rstrip("#")):
            reference = reference[len(self._base.rstrip("#")) :] or "#"
        if reference == "#":
            return ""
        return unquote(reference[1:]) if reference.startswith("#/") else None

    def _read_enum(self, keyword: str, value: Any, found: dict[str, Any], _: int) -> bool:
        if isinstance(value, list) and value:
            found[keyword] = value
        return keyword in found

    def _read_const(self, keyword: str, value: Any, found: dict[str, Any], _: int) -> bool:
        found[keyword] = value
        return True

    def _read_count(self, keyword: str, value: Any, found: dict[str, Any], _: int) -> bool:
        if not _is_number(value) or value < 0 or value != int(value):
            return False
        found[keyword] = int(value)
        return True

    def _read_multiple(self, _: str, value: Any, found: dict[str, Any], __: int) -> bool:
        if not _is_number(value) or value <= 0:
            return False
        found["multipleOf"] = value
        return True

    def _read_format(self, keyword: str, value: Any, found: dict[str, Any], _: int) -> bool:
        """Passed on; nothing is checked by it, so that it counts as not understood."""
        if isinstance(value, str):
            found[keyword] = value
        return False

    def _read_unique(self, keyword: str, value: Any, found: dict[str, Any], _: int) -> bool:
        """As with formats."""
        if value is True:
            found[keyword] = True
        return value is False

    def _read_pattern(self, keyword: str, value: Any, found: dict[str, Any], _: int) -> bool:
        if is_matchable_pattern(value):
            found[keyword] = value
        return keyword in found

    def _read_one(self, keyword: str, value: Any, found: dict[str, Any], depth: int) -> bool:
        if not isinstance(value, dict | bool):
            return False
        one = self._read(value, depth + 1)
        if keyword == "not" and not one and value and value is not True:
            return False  # nothing of it was understood, and the opposite of everything is nothing
        found[keyword] = one
        return True

    def _read_several(self, keyword: str, value: Any, found: dict[str, Any], depth: int) -> bool:
        """Of alternatives each must be understood, or none is left that may be the right one."""
        if not isinstance(value, list) or not value:
            return False
        schemas = [one for one in value[:MAX_SCHEMA_NODES] if isinstance(one, dict | bool)]
        whole = len(schemas) == len(value)
        if schemas and (whole or keyword == "allOf"):
            found[keyword] = [self._read(one, depth + 1) for one in schemas]
        return whole

    def _read_prefix(self, keyword: str, value: Any, found: dict[str, Any], depth: int) -> bool:
        if isinstance(value, list) and value:
            found[keyword] = [self._read(one, depth + 1) for one in value[:MAX_SCHEMA_NODES]]
        return keyword in found

    def _read_named(self, keyword: str, value: Any, found: dict[str, Any], depth: int) -> bool:
        if not isinstance(value, dict):
            return False
        found[keyword] = {name: self._read(one, depth + 1) for name, one in list(value.items())[:MAX_SCHEMA_NODES]}
        return len(value) <= MAX_SCHEMA_NODES

    def _read_patterned(self, keyword: str, value: Any, found: dict[str, Any], depth: int) -> bool:
        known = value if isinstance(value, dict) else {}
        matchable = {pattern: one for pattern, one in known.items() if is_matchable_pattern(pattern)}
        if matchable:
            self._read_named(keyword, matchable, found, depth)
        if whole := isinstance(value, dict) and len(matchable) == len(value):
            return whole
        # Which other names there may be cannot be told any more.
        found["additionalProperties"] = True
        return False

    def _read_additional(self, keyword: str, value: Any, found: dict[str, Any], depth: int) -> bool:
        if not isinstance(value, dict | bool):
            return False
        if keyword not in found:  # set where patterns cannot be matched
            found[keyword] = value if isinstance(value, bool) else self._read(value, depth + 1)
        return True

    def _read_dependent_names(self, keyword: str, value: Any, found: dict[str, Any], _: int) -> bool:
        known = value if isinstance(value, dict) else {}
        lists = {name: one for name, one in known.items() if isinstance(one, list) and _are_texts(one)}
        if lists:
            found[keyword] = lists
        return isinstance(value, dict) and len(lists) == len(value)

    def _read_elsewhere(self, *_: Any) -> bool:
        return True


_READERS: Final[dict[str, Any]] = {
    "$ref": _SchemaReader._read_reference,
    "$recursiveRef": _SchemaReader._read_reference,
    "enum": _SchemaReader._read_enum,
    "const": _SchemaReader._read_const,
    "multipleOf": _SchemaReader._read_multiple,
    "divisibleBy": _SchemaReader._read_multiple,
    "format": _SchemaReader._read_format,
    "uniqueItems": _SchemaReader._read_unique,
    "pattern": _SchemaReader._read_pattern,
    "items": _SchemaReader._read_elsewhere,
    "prefixItems": _SchemaReader._read_prefix,
    "properties": _SchemaReader._read_named,
    "dependentSchemas": _SchemaReader._read_named,
    "patternProperties": _SchemaReader._read_patterned,
    "additionalProperties": _SchemaReader._read_additional,
    "dependentRequired": _SchemaReader._read_dependent_names,
    **dict.fromkeys(("allOf", "anyOf", "oneOf"), _SchemaReader._read_several),
    **dict.fromkeys(("not", "if", "then", "else", "contains", "propertyNames"), _SchemaReader._read_one),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), _SchemaReader._read_count),
    **dict.fromkeys(("minProperties", "maxProperties"), _SchemaReader._read_count),
    **dict.fromkeys(("minContains", "maxContains"), _SchemaReader._read_count),
}


def list_subschemas(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the schemas directly within one that `normalize_schema` returned, its `$defs` among them."""
    found: list[Any] = []
    for keyword in (DEFINITIONS_KEYWORD, "properties", "patternProperties", "dependentSchemas"):
        found += schema.get(keyword, {}).values()
    for keyword in ("allOf", "anyOf", "oneOf", "prefixItems"):
        found += schema.get(keyword, [])
    for keyword in ("not", "if", "then", "else", "contains", "propertyNames", "items", "additionalProperties"):
        found.append(schema.get(keyword))
    return [one for one in found if isinstance(one, dict)]


def _loosen(schema: dict[str, Any]) -> None:
    """Take away what refuses a value because a part of the schema accepts it."""
    if schema.get("not"):  # `{"not": {}}` is nothing at all
        del schema["not"]
    for keyword in ("if", "then", "else", "maxContains"):
        schema.pop(keyword, None)
    if (alternatives := schema.pop("oneOf", None)) is not None:
        if "anyOf" in schema:
            schema["allOf"] = [*schema.get("allOf", []), {"anyOf": alternatives}]
        else:
            schema["anyOf"] = alternatives
    for one in list_subschemas(schema):
        _loosen(one)


def _with_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The same, or null: OpenAPI's `nullable`."""
    if "enum" in schema and None not in schema["enum"]:
        schema["enum"] = [*schema["enum"], None]
    types = schema.get("type")
    if isinstance(types, str | list):
        schema["type"] = list(dict.fromkeys([*(types if isinstance(types, list) else [types]), "null"]))
    if not schema.keys() & {"$ref", "const", "allOf", "anyOf", "oneOf", "not", "if"}:
        return schema
    words: dict[str, Any] = {
        name: schema.pop(name) for name in ("title", "description", "default", "examples") if name in schema
    }
    return {**words, "anyOf": [schema, {"type": "null"}]}


def _resolve(root: Any, pointer: str) -> Any:
    """The value at a JSON pointer (RFC 6901). Errors: `LookupError`, `ValueError`."""
    found = root
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(found, dict | list):
            raise LookupError(pointer)
        found = found[key] if isinstance(found, dict) else found[int(key)]
    return found


def _has_type(value: Any, types: list[str]) -> bool:
    match value:
        case None:
            return "null" in types
        case bool():
            return "boolean" in types
        case int():
            return "integer" in types or "number" in types
        case float():
            return "number" in types or ("integer" in types and value.is_integer())
        case str():
            return "string" in types
        case list():
            return "array" in types
        case _:
            return "object" in types


def _are_texts(values: list[Any]) -> bool:
    return all(isinstance(one, str) for one in values)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
