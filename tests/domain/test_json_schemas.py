"""Schemas of older drafts, home-made dialects and mistakes, as JSON Schema 2020-12 that refuses no more than they do."""

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from domain.shared.json_schema_parts import list_subschemas
from domain.shared.json_schemas import MAX_SCHEMA_DEPTH, MAX_SCHEMA_NODES, normalize_schema

TEXT = {"type": "string"}
NUMBER = {"type": "number"}


@pytest.mark.parametrize(
    ("given", "read"),
    [
        # tuples of drafts 3 to 7
        ({"items": [TEXT], "additionalItems": NUMBER}, {"prefixItems": [TEXT], "items": NUMBER}),
        ({"items": [TEXT], "additionalItems": False}, {"prefixItems": [TEXT], "items": {"not": {}}}),
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
        ({"allOf": [TEXT], "nullable": True, "title": "x"}, {"title": "x", "anyOf": [{"allOf": [TEXT]}, {"type": "null"}]}),
        # home-made types
        ({"type": "STRING"}, TEXT),
        ({"type": "int"}, {"type": "integer"}),
        ({"type": "any"}, {}),
        ({"type": "date"}, {"format": "date"}),
        ({"type": "file"}, {}),
        ({"type": ["string", "file"]}, {}),
        ({"type": [TEXT, NUMBER]}, {}),
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
        ({"anyOf": [TEXT, "number"]}, {}),
        ({"allOf": [TEXT, "number"]}, {"allOf": [TEXT]}),
        ({"properties": None}, {}),
        ({"properties": {"a": None, "b": "string", "c": True}}, {"properties": {"a": {}, "b": {}, "c": {}}}),
        ({"required": True}, {}),
        ({"required": ["a", 5, "a"]}, {"required": ["a"]}),
        ({"additionalProperties": "no"}, {}),
        ({"description": 5, "title": None}, {}),
        # expressions that no bounded engine matches
        ({"pattern": "(?!a)"}, {}),
        ({"pattern": "(a)\\1"}, {}),
        ({"pattern": "a" * 501}, {}),
        ({"pattern": "^a$"}, {"pattern": "^a$"}),
        ({"patternProperties": {"(?=a)": TEXT}, "additionalProperties": False}, {"additionalProperties": True}),
        # references
        ({"$ref": "http://example.test/a"}, {}),
        ({"$ref": "#/nowhere"}, {}),
        ({"$ref": "#anchor"}, {}),
        ({"$ref": 5}, {}),
        ({"$ref": "#"}, {}),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, {}),
        ({"$ref": "#/definitions/a%2Fb", "definitions": {"a/b": TEXT}}, {}),
        (None, {}),
        ("string", {}),
        ([], {}),
        (True, {}),
        (False, {"not": {}}),
    ],
)  # fmt: skip
def test_dialects(given: Any, read: dict[str, Any]) -> None:
    told = json.dumps(given)
    found = normalize_schema(given)
    assert found == read
    assert json.dumps(given) == told  # as it was


@pytest.mark.parametrize("place", ["$defs", "definitions", "x-types"])
def test_references_lead_to_definitions(place: str) -> None:
    node = {"type": "object", "properties": {"next": {"$ref": f"#/{place}/a~1b"}}}
    found = normalize_schema(
        {"properties": {"a": {"$ref": f"#/{place}/a~1b"}, "self": {"$ref": "#"}}, place: {"a/b": node}}
    )
    reference = found["properties"]["a"]["$ref"]
    assert reference.startswith("#/$defs/")
    assert found["$defs"][reference.removeprefix("#/$defs/")] == {
        "type": "object",
        "properties": {"next": {"$ref": reference}},
    }
    assert found["properties"]["self"] == {"$ref": "#/$defs/root"}
    assert found["$defs"]["root"]["properties"] == found["properties"]
    based = normalize_schema(
        {"$id": "https://a.test/s.json", "$ref": "https://a.test/s.json#/$defs/a", "$defs": {"a": TEXT}}
    )
    assert based == {"$ref": "#/$defs/a", "$defs": {"a": TEXT}}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        # Each of two alternatives may be the right one, where what tells them apart is not understood.
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
def test_what_is_not_understood_refuses_nothing(schema: dict[str, Any], value: Any) -> None:
    assert Draft202012Validator(normalize_schema(schema)).is_valid(value)


def test_what_is_understood_is_kept() -> None:
    exact = {
        "oneOf": [{"type": "string", "minLength": 1}, {"type": "integer", "not": {"const": 5}}],
        "if": {"type": "string"}, "then": {"maxLength": 3},
    }  # fmt: skip
    assert normalize_schema(exact) == exact
    assert normalize_schema(normalize_schema(exact)) == exact


def test_sizes_are_bounded() -> None:
    deep: Any = True
    for _ in range(500):
        deep = {"properties": {"a": deep}}
    wide = {"properties": {f"p{number}": {"items": {}} for number in range(50_000)}}
    for schema in (deep, wide):
        depth, level, nodes = 0, [normalize_schema(schema)], 0
        while level:
            depth, nodes = depth + 1, nodes + len(level)
            level = [one for schema in level for one in list_subschemas(schema)]
        assert depth <= MAX_SCHEMA_DEPTH + 2
        assert nodes <= 2 * MAX_SCHEMA_NODES


_words = st.sampled_from(
    ["type", "items", "properties", "$ref", "enum", "anyOf", "oneOf", "not", "required", "minimum", "exclusiveMinimum",
     "pattern", "additionalProperties", "nullable", "$defs", "prefixItems", "format", "minLength", "patternProperties"]
)  # fmt: skip
_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from(["string", "date", "#", "#/$defs/a", "a", "^a", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words | st.just("a"), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(_values)
def test_whatever_comes_is_a_schema_afterwards(schema: Any) -> None:
    found = normalize_schema(schema)
    Draft202012Validator.check_schema(found)
    assert normalize_schema(found).keys() <= found.keys() | {"anyOf", "allOf"}
    for value in (1, "a", None, [], {"a": 1}):
        try:
            list(jsonschema.Draft202012Validator(found).iter_errors(value))
        except RecursionError:
            return
