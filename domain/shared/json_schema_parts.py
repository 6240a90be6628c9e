"""Inspect and change JSON Schemas: helpers of `domain.shared.json_schemas`, which reads them."""

import math
import re
from typing import Any, Final

MAX_PATTERN_CHARACTERS: Final = 500
DEFINITIONS_KEYWORD: Final = "$defs"
# Only backtracking engines can match patterns with lookarounds and backreferences.
_LOOKAROUND_PATTERN: Final = re.compile(r"\(\?<?[=!]|\(\?>|\\[1-9]|\\k<")


def is_matchable_pattern(pattern: Any) -> bool:
    """Return whether a regular expression can be matched: text, not too long, without lookarounds."""
    return (
        isinstance(pattern, str)
        and len(pattern) <= MAX_PATTERN_CHARACTERS
        and _LOOKAROUND_PATTERN.search(pattern) is None
    )


def list_subschemas(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the direct subschemas of a normalized schema, including its `$defs`."""
    subschemas: list[Any] = []
    for keyword in (DEFINITIONS_KEYWORD, "properties", "patternProperties", "dependentSchemas"):
        subschemas += schema.get(keyword, {}).values()
    for keyword in ("allOf", "anyOf", "oneOf", "prefixItems"):
        subschemas += schema.get(keyword, [])
    for keyword in ("not", "if", "then", "else", "contains", "propertyNames", "items", "additionalProperties"):
        subschemas.append(schema.get(keyword))
    return [subschema for subschema in subschemas if isinstance(subschema, dict)]


def loosen_schema(schema: dict[str, Any]) -> None:
    """Remove the keywords that refuse a value because a part of the schema accepts it."""
    if schema.get("not"):  # `{"not": {}}` refuses everything
        del schema["not"]
    for keyword in ("if", "then", "else", "maxContains"):
        schema.pop(keyword, None)
    if (alternatives := schema.pop("oneOf", None)) is not None:
        if "anyOf" in schema:
            schema["allOf"] = [*schema.get("allOf", []), {"anyOf": alternatives}]
        else:
            schema["anyOf"] = alternatives
    for subschema in list_subschemas(schema):
        loosen_schema(subschema)


def allow_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that also accepts null, like OpenAPI's `nullable`."""
    if "enum" in schema and None not in schema["enum"]:
        schema["enum"] = [*schema["enum"], None]
    types = schema.get("type")
    if isinstance(types, str | list):
        schema["type"] = list(dict.fromkeys([*(types if isinstance(types, list) else [types]), "null"]))
    if not schema.keys() & {"$ref", "const", "allOf", "anyOf", "oneOf", "not", "if"}:
        return schema
    annotations: dict[str, Any] = {
        name: schema.pop(name) for name in ("title", "description", "default", "examples") if name in schema
    }
    return {**annotations, "anyOf": [schema, {"type": "null"}]}


def resolve_pointer(root: Any, pointer: str) -> Any:
    """Return the value at a JSON pointer (RFC 6901). Errors: `LookupError`, `ValueError`."""
    value = root
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(value, dict | list):
            raise LookupError(pointer)
        value = value[key] if isinstance(value, dict) else value[int(key)]
    return value


def is_of_type(value: Any, types: list[str]) -> bool:
    """Return whether a JSON value has one of the types."""
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


def has_only_texts(values: list[Any]) -> bool:
    """Return whether all values are texts."""
    return all(isinstance(value, str) for value in values)


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
