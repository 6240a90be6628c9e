"""Take or refuse schemas of public APIs, apply them, and refuse what would keep a process busy."""

import asyncio
from pathlib import Path
from typing import Any

import anthropic.types
import mcp.types
import openai.types
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from jsonschema_specifications import REGISTRY

from domain import schemas
from domain.schemas import limits
from domain.shared.errors import DomainError, FieldError
from domain.shared.yaml_reader import read_yaml

PUBLIC_SCHEMAS: list[dict[str, Any]] = read_yaml(
    (Path(__file__).parents[1] / "support" / "public_schemas.yaml").read_text()
).value
# Types whose schemas their packages publish, with their answers as examples.
PACKAGED_TYPES = [
    (openai.types, "Model FileObject CreateEmbeddingResponse ImagesResponse Moderation Batch VectorStore"),
    (openai.types.chat, "ChatCompletion ChatCompletionChunk ChatCompletionMessage"),
    (anthropic.types, "Message Usage TextBlock ToolUseBlock ToolParam MessageParam"),
    (mcp.types, "Tool CallToolResult Resource InitializeResult PromptMessage JSONRPCRequest ListToolsResult"),
]


async def list_errors(schema: dict[str, Any], value: Any) -> list[FieldError]:
    return await schemas.list_value_errors(schema, value, "value", "t")


def list_refused_places(schema: Any) -> list[str]:
    try:
        schemas.parse_schema(schema, "schema")
    except DomainError as error:
        return [field_error.field for field_error in error.errors]
    return []


@pytest.mark.parametrize("case", PUBLIC_SCHEMAS, ids=lambda case: case["name"])
async def test_public_schemas_are_applied_or_refused_with_the_place(case: dict[str, Any]) -> None:
    if "refused" in case:
        assert case["refused"] in list_refused_places(case["schema"])
        return
    schema = schemas.parse_schema(case["schema"], "schema")
    assert await list_errors(schema, case["valid"]) == []
    for place, value in case["invalid"].items():
        errors = await list_errors(schema, value)
        assert place in [error.field for error in errors], (place, errors)


@pytest.mark.parametrize(("module", "names"), PACKAGED_TYPES, ids=lambda item: getattr(item, "__name__", ""))
def test_schemas_that_packages_publish_are_taken(module: Any, names: str) -> None:
    for name in names.split():
        schema = pydantic.TypeAdapter(getattr(module, name)).json_schema()
        assert list_refused_places(schema) == [], name


async def test_a_published_schema_tells_right_from_wrong() -> None:
    schema = schemas.parse_schema(pydantic.TypeAdapter(mcp.types.CallToolResult).json_schema(), "schema")
    assert await list_errors(schema, {"content": [{"type": "text", "text": "hi"}], "isError": False}) == []
    errors = await list_errors(schema, {"content": [{"type": "text"}]})
    assert [error.field for error in errors] == ["value.content[0].text"]
    draft7 = schemas.parse_schema(dict(REGISTRY.contents("http://json-schema.org/draft-07/schema#")), "schema")
    assert await list_errors(draft7, {"type": "object", "properties": {"a": {"minLength": 1}}}) == []
    errors = await list_errors(draft7, {"properties": {"a": {"minLength": -1}}})
    assert [error.field for error in errors] == ["value.properties.a.minLength"]


def test_there_are_fifty_of_them() -> None:
    assert len(PUBLIC_SCHEMAS) + sum(len(names.split()) for _, names in PACKAGED_TYPES) >= 60
    assert all(case["source"] for case in PUBLIC_SCHEMAS)


@pytest.mark.parametrize(
    ("schema", "place", "words"),
    [
        ([], "schema", "an object"),
        ({"properties": {f"p{n}": {} for n in range(10_000)}}, "schema", "5000 schemas"),
        ({"enum": [str(n) for n in range(10_000)]}, "schema.enum", "at most 5000"),
        ({"description": "x" * 300_000}, "schema", "bytes"),
        ({"items": {"$ref": "#/$defs/a"}, "$defs": {"a": {"$ref": "#/$defs/a"}}}, "schema.$defs.a.$ref", "itself"),
        ({"not": {"$ref": "#"}}, "schema.not.$ref", "itself"),
        ({"if": {"then": {"$ref": "#"}}}, "schema.if.then.$ref", "itself"),
        ({"dependentSchemas": {"a": {"$ref": "#"}}}, "schema.dependentSchemas.a.$ref", "itself"),
        ({"pattern": "(a+)+$", "items": {"pattern": "(a"}}, "schema.items.pattern", "regular expression"),
        ({"pattern": "^(?=a)"}, "schema.pattern", "look ahead"),
        ({"pattern": r"(a)\1"}, "schema.pattern", "refer back"),
        ({"pattern": r"^\p{L}{900}$"}, "schema.pattern", "too large"),
        ({"pattern": "a" * 501}, "schema.pattern", "500"),
        ({"allOf": [{"pattern": f"a{n}"} for n in range(65)]}, "schema.allOf[64].pattern", "64"),
        ({"$ref": "http://example.com/a"}, "schema.$ref", "other documents"),
        ({"$ref": "file:///etc/passwd"}, "schema.$ref", "other documents"),
        ({"$ref": "other.json#/a"}, "schema.$ref", "other documents"),
        ({"$ref": "#name"}, "schema.$ref", "anchors"),
        ({"$ref": "#/$defs/a%25b", "$defs": {"a b": {}}}, "schema.$ref", "leads to no schema"),
        ({"$ref": "#/enum/0", "enum": [{}]}, "schema.$ref", "leads to no schema"),
        ({"items": {"$id": "http://example.com/"}}, "schema.items.$id", "only at the top"),
        ({"type": "str"}, "schema.type", "must be one of"),
        ({"type": []}, "schema.type", "must be one of"),
        ({"required": True}, "schema.required", "old draft"),
        ({"minLength": 1.5}, "schema.minLength", "whole number"),
        ({"minimum": "1"}, "schema.minimum", "number"),
        ({"multipleOf": 0}, "schema.multipleOf", "greater than 0"),
        ({"anyOf": []}, "schema.anyOf", "at least one"),
        ({"anyOf": {}}, "schema.anyOf", "list"),
        ({"properties": []}, "schema.properties", "object"),
        ({"properties": {"a b": 5}}, 'schema.properties["a b"]', "must be a schema"),
        ({"nullable": True}, "schema.nullable", "OpenAPI 3.0"),
        ({"propertys": {}}, "schema.propertys", "Did you mean 'properties'"),
        ({"title": float("nan")}, None, ""),
    ],
)
def test_schemas_that_cannot_be_applied_are_refused(schema: Any, place: str | None, words: str) -> None:
    if place is None:
        assert schemas.parse_schema(schema, "schema")["title"] is None
        return
    with pytest.raises(DomainError) as refusal:
        schemas.parse_schema(schema, "schema")
    messages = {error.field: error.message for error in refusal.value.errors}
    assert words in messages[place], messages


def test_deep_and_doubling_schemas_are_refused() -> None:
    deep: dict[str, Any] = {}
    for _ in range(40):
        deep = {"items": deep}
    assert list_refused_places(deep)[0].startswith("schema.items.items")
    steps = {f"d{n}": {"anyOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 4} for n in range(12)}
    assert list_refused_places({"$ref": "#/$defs/d0", "$defs": {**steps, "d12": {}}})
    # One that grows with the value is taken.
    assert (
        list_refused_places({"$ref": "#/$defs/n", "$defs": {"n": {"properties": {"c": {"$ref": "#/$defs/n"}}}}}) == []
    )


@pytest.mark.parametrize(
    ("schema", "value", "place"),
    [
        ({"pattern": "^(a+)+$"}, "a" * 50_000 + "b", "value"),
        ({"type": "array", "items": {"anyOf": [{"type": "object", "required": [str(n)]} for n in range(50)]}}, [{}] * 30_000, "value[0]"),
        ({"uniqueItems": True}, [[n] for n in range(20_000)], None),
        ({"enum": [str(n) for n in range(5000)]}, "5000", "value"),
        ({"items": {"multipleOf": 0.01}}, [1e300, 0.07, 19.99, 1], "value[0]"),
        ({"properties": {"c": {"$ref": "#"}}, "type": "object"}, None, "value"),
    ],
)  # fmt: skip
async def test_slow_values_end_in_an_answer(schema: dict[str, Any], value: Any, place: str | None) -> None:
    async with asyncio.timeout(60):
        errors = await list_errors(schemas.parse_schema(schema, "schema"), value)
    assert [error.field for error in errors[:1]] == ([] if place is None else [place])


async def test_what_takes_too_long_is_refused_and_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_CHECK_SECONDS", 0.0)
    (error,) = await list_errors({"type": "object"}, {})
    assert "could not be checked" in error.message
    monkeypatch.undo()
    monkeypatch.setattr(limits, "MAX_MATCH_STEPS", 10)
    (error,) = await list_errors({"pattern": "^abc$"}, "abc" * 10)
    assert "too long for a pattern" in error.message


@pytest.mark.parametrize(
    ("schema", "value", "messages"),
    [
        ({"required": ["a", "b"]}, {}, {"value.a": "is required.", "value.b": "is required."}),
        ({"type": "string"}, 5, {"value": "must be text, not 5."}),
        ({"type": ["integer", "null"]}, "x", {"value": 'must be a whole number or null, not "x".'}),
        ({"additionalProperties": False}, {"a b": 1}, {'value["a b"]': "is not a known field."}),
        ({"minItems": 1}, [], {"value": "must have at least 1 item; it has 0."}),
        ({"maxProperties": 0}, {"a": 1}, {"value": "must have at most 0 properties; it has 1."}),
        ({"exclusiveMinimum": 1}, 1, {"value": "must be more than 1, not 1."}),
        ({"const": {"a": 1}}, 2, {"value": 'must be {"a":1}, not 2.'}),
        ({"format": "date"}, "today", {"value": 'must be a valid date, unlike "today".'}),
        ({"format": "int64"}, 5, {}),
        ({"items": False}, [1], {"value": "is not allowed."}),
        ({"properties": {"a": False}}, {"a": 1}, {"value.a": "is not allowed."}),
        ({"oneOf": [{}, {}]}, 1, {"value": "fits more than one of the schema's alternatives; it must fit exactly one."}),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, 1, {"value": "fits none of the schema's 2 alternatives: 1."}),
        ({"unevaluatedItems": False, "prefixItems": [{}]}, [1, 2], {"value[1]": "is not allowed."}),
        ({"allOf": [{"properties": {"a": {}}}], "unevaluatedProperties": False}, {"a": 1, "b": 2}, {"value.b": "is not a known field."}),
        ({"dependentRequired": {"a": ["b"]}}, {"a": 1}, {"value.b": "is required with a."}),
        ({"not": {"type": "null"}}, None, {"value": "is what the schema excludes."}),
        ({"multipleOf": 0.1}, 0.3, {}),
        ({"uniqueItems": True}, [1, 1.0], {"value[1]": "is the same as an item before it."}),
        ({"uniqueItems": True}, [1, True], {}),
        ({"type": "string"}, "x" * 10 + "é", {}),
    ],
)  # fmt: skip
async def test_errors_name_the_place_in_plain_words(
    schema: dict[str, Any], value: Any, messages: dict[str, str]
) -> None:
    errors = await list_errors(schemas.parse_schema(schema, "schema"), value)
    assert {error.field: error.message for error in errors} == messages


SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "a", "b"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c"]), inner, max_size=3),
    max_leaves=8,
)
LEAVES = st.sampled_from(
    [
        *({"type": name} for name in ("null", "boolean", "object", "array", "number", "integer", "string")),
        *(
            {"enum": [1, "a"]},
            {"const": None},
            {"minimum": 0},
            {"maxLength": 0},
            {"minItems": 1},
            {"uniqueItems": True},
        ),
        *({"required": ["a"]}, {"maxProperties": 1}, {"pattern": "^a"}, {}, {"$ref": "#/$defs/shared"}),
    ]
)


def build_nested_schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Put schemas into every place in which a schema may stand."""
    several = st.lists(inner, min_size=1, max_size=2)
    return st.one_of(
        st.builds(
            lambda keyword, items: {keyword: items},
            st.sampled_from(["allOf", "anyOf", "oneOf", "prefixItems"]),
            several,
        ),
        st.builds(
            lambda keyword, item: {keyword: item},
            st.sampled_from(["not", "items", "contains", "additionalProperties", "propertyNames"]),
            inner,
        ),
        st.builds(
            lambda a, rest: {"properties": {"a": a}, "unevaluatedProperties": rest}, inner, inner | st.just(False)
        ),
        st.builds(lambda a, rest: {"anyOf": a, "unevaluatedProperties": rest}, several, st.just(False)),
        st.builds(lambda a, rest: {"prefixItems": a, "unevaluatedItems": rest}, several, st.just(False)),
        st.builds(lambda a, b, c: {"if": a, "then": b, "else": c}, inner, inner, inner),
        st.builds(lambda a: {"dependentSchemas": {"b": a}}, inner),
        st.builds(lambda a, b: {**a, **b}, inner, inner),
    )


@given(
    st.recursive(LEAVES, build_nested_schemas, max_leaves=5),
    st.sampled_from([{}, {"type": "string"}, {"type": "array"}]),
    VALUES,
)
def test_a_value_is_valid_as_the_reference_library_says(schema: dict[str, Any], shared: Any, value: Any) -> None:
    document = schemas.parse_schema({**schema, "$defs": {"shared": shared}}, "schema")
    errors = asyncio.run(list_errors(document, value))
    assert bool(errors) is not Draft202012Validator(document).is_valid(value), errors
