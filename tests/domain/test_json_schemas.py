"""Test that schemas of older drafts and dialects become JSON Schema 2020-12 that refuses no more than they do."""

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from domain.shared.json_schema_parts import list_subschemas
from domain.shared.json_schemas import MAX_SCHEMA_DEPTH, MAX_SCHEMA_NODES, normalize_schema

TEXT_SCHEMA = {"type": "string"}
NUMBER_SCHEMA = {"type": "number"}


@pytest.mark.parametrize(
    ("schema", "normalized"),
    [
        # tuples of drafts 3 to 7
        ({"items": [TEXT_SCHEMA], "additionalItems": NUMBER_SCHEMA}, {"prefixItems": [TEXT_SCHEMA], "items": NUMBER_SCHEMA}),
        ({"items": [TEXT_SCHEMA], "additionalItems": False}, {"prefixItems": [TEXT_SCHEMA], "items": {"not": {}}}),
        ({"items": []}, {}),
        ({"items": None}, {}),
        # bounds of draft 4
        ({"maximum": 10, "exclusiveMaximum": False}, {"maximum": 10}),
        ({"minimum": 1, "exclusiveMinimum": True}, {"exclusiveMinimum": 1}),
        ({"maximum": "10"}, {}),
        ({"divisibleBy": 2}, {"multipleOf": 2}),
        ({"multipleOf": 0}, {}),
        # OpenAPI
        (
            {"type": "string", "enum": ["a"], "nullable": True},
            {"type": ["string", "null"], "enum": ["a", None]},
        ),
        ({"type": ["string", "null"], "enum": ["a"]}, {"type": ["string", "null"], "enum": ["a", None]}),
        ({"allOf": [TEXT_SCHEMA], "nullable": True, "title": "x"}, {"title": "x", "anyOf": [{"allOf": [TEXT_SCHEMA]}, {"type": "null"}]}),
        # home-made types
        ({"type": "STRING"}, TEXT_SCHEMA),
        ({"type": "int"}, {"type": "integer"}),
        ({"type": "any"}, {}),
        ({"type": "date"}, {"format": "date"}),
        ({"type": "file"}, {}),
        ({"type": ["string", "file"]}, {}),
        ({"type": [TEXT_SCHEMA, NUMBER_SCHEMA]}, {}),
        ({"type": None}, {}),
        ({"type": []}, {}),
        # values of the wrong kind
        ({"minLength": "1"}, {}),
        ({"minLength": 1.0}, {"minLength": 1}),
        ({"maxItems": -1}, {}),
        ({"minItems": True}, {}),
        ({"enum": "abc"}, {}),
        ({"enum": []}, {}),
        ({"type": "integer", "enum": ["1", "2"]}, {"enum": ["1", "2"]}),
        ({"allOf": None}, {}),
        ({"anyOf": []}, {}),
        ({"anyOf": [TEXT_SCHEMA, "number"]}, {}),
        ({"allOf": [TEXT_SCHEMA, "number"]}, {"allOf": [TEXT_SCHEMA]}),
        ({"properties": None}, {}),
        ({"properties": {"a": None, "b": "string", "c": True}}, {"properties": {"a": {}, "b": {}, "c": {}}}),
        ({"required": True}, {}),
        ({"required": ["a", 5, "a"]}, {"required": ["a"]}),
        ({"additionalProperties": "no"}, {}),
        ({"description": 5, "title": None}, {}),
        # expressions that the linear-time engine does not support
        ({"pattern": "(?!a)"}, {}),
        ({"pattern": "(a)\\1"}, {}),
        ({"pattern": "a" * 501}, {}),
        ({"pattern": "^a$"}, {"pattern": "^a$"}),
        ({"patternProperties": {"(?=a)": TEXT_SCHEMA}, "additionalProperties": False}, {"additionalProperties": True}),
        # references
        ({"$ref": "http://example.test/a"}, {}),
        ({"$ref": "#/nowhere"}, {}),
        ({"$ref": "#anchor"}, {}),
        ({"$ref": 5}, {}),
        ({"$ref": "#"}, {}),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, {}),
        ({"$ref": "#/definitions/a%2Fb", "definitions": {"a/b": TEXT_SCHEMA}}, {}),
        (None, {}),
        ("string", {}),
        ([], {}),
        (True, {}),
        (False, {"not": {}}),
    ],
)  # fmt: skip
def test_dialects_are_normalized(schema: Any, normalized: dict[str, Any]) -> None:
    schema_before = json.dumps(schema)
    result = normalize_schema(schema)
    assert result == normalized
    assert json.dumps(schema) == schema_before  # The input is not changed.


@pytest.mark.parametrize("place", ["$defs", "definitions", "x-types"])
def test_references_become_definitions(place: str) -> None:
    node = {"type": "object", "properties": {"next": {"$ref": f"#/{place}/a~1b"}}}
    normalized = normalize_schema(
        {"properties": {"a": {"$ref": f"#/{place}/a~1b"}, "self": {"$ref": "#"}}, place: {"a/b": node}}
    )
    reference = normalized["properties"]["a"]["$ref"]
    assert reference.startswith("#/$defs/")
    assert normalized["$defs"][reference.removeprefix("#/$defs/")] == {
        "type": "object",
        "properties": {"next": {"$ref": reference}},
    }
    assert normalized["properties"]["self"] == {"$ref": "#/$defs/root"}
    assert normalized["$defs"]["root"]["properties"] == normalized["properties"]
    based = normalize_schema(
        {"$id": "https://a.test/s.json", "$ref": "https://a.test/s.json#/$defs/a", "$defs": {"a": TEXT_SCHEMA}}
    )
    assert based == {"$ref": "#/$defs/a", "$defs": {"a": TEXT_SCHEMA}}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        # Each of two alternatives may match if the constraint that separates them is unknown.
        ({"oneOf": [{"type": "string", "format": "date"}, {"type": "string", "format": "email"}]}, "x"),
        ({"oneOf": [{"type": "date"}, {"type": "time"}]}, "x"),
        ({"oneOf": [{"uniqueItems": True}, {"maxItems": 3}]}, [1, 1]),
        ({"oneOf": [{"pattern": "(?=a)"}, {"pattern": "(?!a)"}]}, "a"),
        ({"not": {"type": "date"}}, "x"),
        ({"not": {"$ref": "http://example.test/"}}, "x"),
        ({"if": {"type": "file"}, "then": False}, "x"),
        ({"contains": {"type": "file"}, "maxContains": 1}, [1, 2]),
        ({"oneOf": [{"unknownWord": 1}, {}]}, 1),
        ({"oneOf": [{"type": "date"}, {"type": "integer"}], "anyOf": [{"type": "integer"}, {}]}, 1),
    ],
)  # fmt: skip
def test_unknown_constraints_refuse_nothing(schema: dict[str, Any], value: Any) -> None:
    assert Draft202012Validator(normalize_schema(schema)).is_valid(value)


def test_valid_schema_is_unchanged() -> None:
    exact = {
        "oneOf": [{"type": "string", "minLength": 1}, {"type": "integer", "not": {"const": 5}}],
        "if": {"type": "string"}, "then": {"maxLength": 3},
    }  # fmt: skip
    assert normalize_schema(exact) == exact
    assert normalize_schema(normalize_schema(exact)) == exact


@pytest.mark.slow
def test_depth_and_size_of_schemas_are_bounded() -> None:
    deep: Any = True
    for _ in range(500):
        deep = {"properties": {"a": deep}}
    wide = {"properties": {f"p{number}": {"items": {}} for number in range(50_000)}}
    for schema in (deep, wide):
        depth, level, nodes = 0, [normalize_schema(schema)], 0
        while level:
            depth, nodes = depth + 1, nodes + len(level)
            level = [subschema for schema in level for subschema in list_subschemas(schema)]
        assert depth <= MAX_SCHEMA_DEPTH + 2
        assert nodes <= 2 * MAX_SCHEMA_NODES


_keywords = st.sampled_from(
    ["type", "items", "properties", "$ref", "enum", "anyOf", "oneOf", "not", "required", "minimum", "exclusiveMinimum",
     "pattern", "additionalProperties", "nullable", "$defs", "prefixItems", "format", "minLength", "patternProperties"]
)  # fmt: skip
_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from(["string", "date", "#", "#/$defs/a", "a", "^a", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keywords | st.just("a"), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(_values)
def test_any_input_becomes_a_valid_schema(schema: Any) -> None:
    normalized = normalize_schema(schema)
    Draft202012Validator.check_schema(normalized)
    assert normalize_schema(normalized).keys() <= normalized.keys() | {"anyOf", "allOf"}
    for value in (1, "a", None, [], {"a": 1}):
        try:
            list(jsonschema.Draft202012Validator(normalized).iter_errors(value))
        except RecursionError:
            return
