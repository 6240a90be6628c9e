"""Adapt tool schemas for providers: flattened, renamed and renamed back, and named where a provider refuses one."""

import json
import re
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from domain.llms import (
    ChatMessage,
    ModelCall,
    ModelError,
    ModelReply,
    ModelTarget,
    ModelToolCall,
    ReplyPart,
    ToolCallDelta,
    ToolSpec,
)
from infra.llm.tool_schemas import AdaptedTools, convert_schema, stream_adapted

TARGET = ModelTarget(name="m", provider="openai", model="m")
TEXT_SCHEMA = {"type": "string"}
KEY_PATTERN = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
REFUSED_SCHEMAS: dict[str, dict[str, Any]] = {
    "anyOf of requirements": {
        "type": "object", "properties": {"a": TEXT_SCHEMA, "b": TEXT_SCHEMA}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
    },
    "oneOf of objects": {
        "oneOf": [
            {"type": "object", "properties": {"kind": {"const": "a"}, "x": TEXT_SCHEMA}, "required": ["kind", "x"]},
            {"type": "object", "properties": {"kind": {"const": "b"}, "y": TEXT_SCHEMA}, "required": ["kind", "y"]},
        ]
    },
    "allOf": {"allOf": [{"properties": {"a": TEXT_SCHEMA}, "required": ["a"]}, {"anyOf": [{"properties": {"b": TEXT_SCHEMA}}, {}]}]},
    "a reference at the top": {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "properties": {"a": TEXT_SCHEMA}}}},
    "references as alternatives": {
        "anyOf": [{"$ref": "#/definitions/a"}, {"$ref": "#/definitions/b"}],
        "definitions": {"a": {"properties": {"a": TEXT_SCHEMA}}, "b": {"properties": {"a": {"type": "integer"}}}},
    },
    "not and if": {"type": "object", "not": {"required": ["a"]}, "if": {}, "then": {"required": ["b"]}},
    "no properties": {"type": "object"},
    "nothing": {},
    "odd names": {"properties": {"$filter": TEXT_SCHEMA, "filter": TEXT_SCHEMA, "名称": TEXT_SCHEMA, "b" * 80: TEXT_SCHEMA, "": TEXT_SCHEMA, "a b": TEXT_SCHEMA}},
    "odd names within": {
        "properties": {"a": {"items": {"properties": {"@id": {"$ref": "#"}}, "required": ["@id"]}, "type": "array"}},
        "dependentRequired": {"a": ["$x"]}, "additionalProperties": {"properties": {"$x": TEXT_SCHEMA}},
    },
    "tuples and arrays": {"properties": {"a": {"type": "array"}, "b": {"type": "array", "items": [TEXT_SCHEMA]}}},
    "old words": {"properties": {"a": {"type": "date"}, "b": {"maximum": 1, "exclusiveMaximum": True}, "c": {"items": None}}},
    "a loop at the top": {"allOf": [{"$ref": "#"}], "properties": {"a": TEXT_SCHEMA}},
    "loops below": {"anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}},
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED_SCHEMAS)
def test_adapted_schemas_are_accepted_by_providers(name: str) -> None:
    wire = convert_schema(REFUSED_SCHEMAS[name]).wire
    Draft202012Validator.check_schema(wire)
    assert wire["type"] == "object"
    assert not wire.keys() & {"anyOf", "oneOf", "allOf", "not", "if", "enum", "const", "$ref"}
    schema_text = json.dumps(wire)

    def walk(schema: Any) -> None:
        if isinstance(schema, dict):
            for key, subschema in schema.items():
                if key == "properties":
                    assert all(KEY_PATTERN.fullmatch(name) for name in subschema), schema_text
                walk(subschema)
            if schema.get("type") == "array":
                assert "items" in schema
        elif isinstance(schema, list):
            for subschema in schema:
                walk(subschema)

    walk(wire)
    json.dumps(convert_schema(wire).wire)


def test_alternatives_are_merged() -> None:
    first = convert_schema(REFUSED_SCHEMAS["anyOf of requirements"])
    assert (first.wire["properties"], first.wire.get("required"), first.requirements) == (
        {"a": TEXT_SCHEMA, "b": TEXT_SCHEMA}, None, "Needs `a` or `b`.",
    )  # fmt: skip
    second = convert_schema(REFUSED_SCHEMAS["oneOf of objects"])
    assert second.wire["required"] == ["kind"]
    assert second.wire["properties"] == {
        "kind": {"anyOf": [{"const": "a"}, {"const": "b"}]},
        "x": TEXT_SCHEMA,
        "y": TEXT_SCHEMA,
    }
    assert convert_schema(REFUSED_SCHEMAS["allOf"]).wire["required"] == ["a"]
    assert set(convert_schema(REFUSED_SCHEMAS["allOf"]).wire["properties"]) == {"a", "b"}
    both = convert_schema(REFUSED_SCHEMAS["references as alternatives"]).wire["properties"]["a"]
    assert both == {"anyOf": [TEXT_SCHEMA, {"type": "integer"}]}


def test_constructs_that_grammar_compilers_refuse_are_replaced() -> None:
    """Replace references to the root, bounds of integers that are no integers, and contradictions, for the local model."""
    properties = {
        "self": {"$ref": "#"}, "whole": {"type": "integer", "minimum": 0.5, "exclusiveMaximum": 3.5},
        "large": {"type": "integer", "maximum": 1e300}, "none": {"type": "string", "minLength": 5, "maxLength": 1},
        "dated": {"format": "date"}, "fraction": {"type": "number", "minimum": 0.5},
    }  # fmt: skip
    wire = convert_schema({"properties": properties}).wire["properties"]
    assert wire == {
        "self": {"$ref": "#/$defs/root"}, "whole": {"type": "integer", "minimum": 1, "exclusiveMaximum": 4},
        "large": {"type": "integer"}, "none": TEXT_SCHEMA, "dated": {"type": "string", "format": "date"},
        "fraction": {"type": "number", "minimum": 0.5},
    }  # fmt: skip


def _build_call(tools: list[ToolSpec], *messages: ChatMessage) -> ModelCall:
    return ModelCall(target=TARGET, tools=tuple(tools), messages=messages)


def _build_tool(name: str, **properties: Any) -> ToolSpec:
    return ToolSpec(name=name, description="", parameters={"type": "object", "properties": properties})


async def _stream_parts(call: ModelCall, *parts: ReplyPart) -> list[ReplyPart]:
    async def stream(_: ModelCall) -> AsyncGenerator[ReplyPart, None]:
        for part in parts:
            yield part

    return [part async for part in stream_adapted(call, stream)]


async def test_arguments_are_renamed_and_renamed_back() -> None:
    free = {"type": "object", "additionalProperties": TEXT_SCHEMA}
    node = {
        "type": "object",
        "properties": {"$id": TEXT_SCHEMA, "kids": {"type": "array", "items": {"$ref": "#/$defs/n"}}},
    }
    schema = {
        "type": "object",
        "properties": {"$filter": node, "filter": free, "n": {"$ref": "#/$defs/n"}},
        "$defs": {"n": node},
    }
    tool = ToolSpec(name="t", description="", parameters=schema)
    arguments = {
        "$filter": {"$id": "1", "kids": [{"$id": "2"}]},
        "filter": {"$id": "free", "id": "x"},
        "n": {"$id": "3"},
    }
    adapted_call = AdaptedTools(
        _build_call(
            [tool],
            ChatMessage(
                role="assistant", tool_calls=(ModelToolCall(id="1", name="t", arguments=json.dumps(arguments)),)
            ),
            ChatMessage(role="tool", tool_call_id="1", name="t"),
        )
    ).ask
    sent = adapted_call.messages[0].tool_calls[0].arguments
    filter_ = next(name for name in json.loads(sent) if name.startswith("filter_"))
    assert json.loads(sent) == {
        filter_: {"id": "1", "kids": [{"id": "2"}]}, "filter": {"$id": "free", "id": "x"}, "n": {"id": "3"},
    }  # fmt: skip
    parts = await _stream_parts(
        _build_call([tool]),
        ToolCallDelta(index=0, id="2", name="t", arguments=sent[:9]),
        ToolCallDelta(index=0, arguments=sent[9:]),
        _reply(ModelToolCall(id="2", name="t", arguments=sent)),
    )
    assert json.loads("".join(part.arguments for part in parts if isinstance(part, ToolCallDelta))) == arguments
    assert isinstance(parts[-1], ModelReply)
    assert json.loads(parts[-1].message.tool_calls[0].arguments) == arguments


def _reply(*calls: ModelToolCall) -> ModelReply:
    return ModelReply(message=ChatMessage(role="assistant", tool_calls=calls), finish="tool_calls", usage=None)


async def test_invalid_tool_names_in_a_conversation_are_replaced() -> None:
    """Rename them, as providers refuse the whole conversation for one invalid name."""
    invented_names = ["functions.add", "add", "добавить", "a" * 200, "functions/add"]
    calls = tuple(ModelToolCall(id=str(n), name=name, arguments="{}") for n, name in enumerate(invented_names))
    results = [ChatMessage(role="tool", tool_call_id=call.id, name=call.name) for call in calls]
    call = _build_call([_build_tool("add")], ChatMessage(role="assistant", tool_calls=calls), *results)
    adapted_call = AdaptedTools(call).ask
    adapted_names = [call.name for call in adapted_call.messages[0].tool_calls]
    assert (adapted_names[1], len(set(adapted_names))) == ("add", 5)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in adapted_names)
    assert [message.name for message in adapted_call.messages[1:]] == adapted_names
    part, reply = await _stream_parts(
        call,
        ToolCallDelta(index=0, id="x", name=adapted_names[2]),
        _reply(ModelToolCall(id="x", name=adapted_names[2], arguments="{")),
    )
    assert isinstance(part, ToolCallDelta)
    assert isinstance(reply, ModelReply)
    assert (part.name, reply.message.tool_calls[0].name) == ("добавить", "добавить")


async def test_unpaired_surrogates_in_arguments_are_replaced() -> None:
    arguments = '{"a":"cut \\ud83d","b":"\\ud83d\\ude00"}'
    [reply] = await _stream_parts(
        _build_call([_build_tool("t", a=TEXT_SCHEMA)]), _reply(ModelToolCall(id="1", name="t", arguments=arguments))
    )
    assert isinstance(reply, ModelReply)
    assert json.loads(reply.message.tool_calls[0].arguments) == {"a": "cut \ufffd", "b": "😀"}


@pytest.mark.parametrize(
    ("message", "tool"),
    [
        ("tools.1.custom.input_schema: input_schema does not support oneOf", "second"),
        ("Invalid 'tools[1].function.parameters': bad", "second"),
        ("GenerateContentRequest.tools[0].function_declarations[1].parameters: bad", "second"),
        ("Invalid schema for function 'first': array schema missing items", "first"),
        ("tools.7.custom: bad", None),
        ("function 'other' is bad", None),
        ("messages.0: bad", None),
    ],
)
async def test_refusal_names_the_tool(message: str, tool: str | None) -> None:
    async def stream(_: ModelCall) -> AsyncGenerator[ReplyPart, None]:
        raise ModelError("refused", message)
        yield _reply()

    with pytest.raises(ModelError) as error:
        [part async for part in stream_adapted(_build_call([_build_tool("first"), _build_tool("second")]), stream)]
    assert error.value.tool == tool
    assert error.value.message.startswith(message)
    assert tool is None or repr(tool) in error.value.message
