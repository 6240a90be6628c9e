"""Tools as providers take them: folded, renamed there and back, and named where a provider refuses one."""

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
TEXT = {"type": "string"}
KEY = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
REFUSED: dict[str, dict[str, Any]] = {
    "anyOf of requirements": {
        "type": "object", "properties": {"a": TEXT, "b": TEXT}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
    },
    "oneOf of objects": {
        "oneOf": [
            {"type": "object", "properties": {"kind": {"const": "a"}, "x": TEXT}, "required": ["kind", "x"]},
            {"type": "object", "properties": {"kind": {"const": "b"}, "y": TEXT}, "required": ["kind", "y"]},
        ]
    },
    "allOf": {"allOf": [{"properties": {"a": TEXT}, "required": ["a"]}, {"anyOf": [{"properties": {"b": TEXT}}, {}]}]},
    "a reference at the top": {"$ref": "#/$defs/a", "$defs": {"a": {"type": "object", "properties": {"a": TEXT}}}},
    "references as alternatives": {
        "anyOf": [{"$ref": "#/definitions/a"}, {"$ref": "#/definitions/b"}],
        "definitions": {"a": {"properties": {"a": TEXT}}, "b": {"properties": {"a": {"type": "integer"}}}},
    },
    "not and if": {"type": "object", "not": {"required": ["a"]}, "if": {}, "then": {"required": ["b"]}},
    "no properties": {"type": "object"},
    "nothing": {},
    "odd names": {"properties": {"$filter": TEXT, "filter": TEXT, "名称": TEXT, "b" * 80: TEXT, "": TEXT, "a b": TEXT}},
    "odd names within": {
        "properties": {"a": {"items": {"properties": {"@id": {"$ref": "#"}}, "required": ["@id"]}, "type": "array"}},
        "dependentRequired": {"a": ["$x"]}, "additionalProperties": {"properties": {"$x": TEXT}},
    },
    "tuples and arrays": {"properties": {"a": {"type": "array"}, "b": {"type": "array", "items": [TEXT]}}},
    "old words": {"properties": {"a": {"type": "date"}, "b": {"maximum": 1, "exclusiveMaximum": True}, "c": {"items": None}}},
    "a loop at the top": {"allOf": [{"$ref": "#"}], "properties": {"a": TEXT}},
    "loops below": {"anyOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}},
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_schemas_that_providers_take(name: str) -> None:
    wire = convert_schema(REFUSED[name]).wire
    Draft202012Validator.check_schema(wire)
    assert wire["type"] == "object"
    assert not wire.keys() & {"anyOf", "oneOf", "allOf", "not", "if", "enum", "const", "$ref"}
    seen = json.dumps(wire)

    def walk(schema: Any) -> None:
        if isinstance(schema, dict):
            for key, one in schema.items():
                if key == "properties":
                    assert all(KEY.fullmatch(name) for name in one), seen
                walk(one)
            if schema.get("type") == "array":
                assert "items" in schema
        elif isinstance(schema, list):
            for one in schema:
                walk(one)

    walk(wire)
    json.dumps(convert_schema(wire).wire)


def test_alternatives_are_folded() -> None:
    first = convert_schema(REFUSED["anyOf of requirements"])
    assert (first.wire["properties"], first.wire.get("required"), first.requirements) == (
        {"a": TEXT, "b": TEXT}, None, "Needs `a` or `b`.",
    )  # fmt: skip
    second = convert_schema(REFUSED["oneOf of objects"])
    assert second.wire["required"] == ["kind"]
    assert second.wire["properties"] == {"kind": {"anyOf": [{"const": "a"}, {"const": "b"}]}, "x": TEXT, "y": TEXT}
    assert convert_schema(REFUSED["allOf"]).wire["required"] == ["a"]
    assert set(convert_schema(REFUSED["allOf"]).wire["properties"]) == {"a", "b"}
    both = convert_schema(REFUSED["references as alternatives"]).wire["properties"]["a"]
    assert both == {"anyOf": [TEXT, {"type": "integer"}]}


def test_what_makers_of_grammars_refuse() -> None:
    """As the local model's does: references to the root, bounds of whole numbers that are none, contradictions."""
    odd = {
        "self": {"$ref": "#"}, "whole": {"type": "integer", "minimum": 0.5, "exclusiveMaximum": 3.5},
        "large": {"type": "integer", "maximum": 1e300}, "none": {"type": "string", "minLength": 5, "maxLength": 1},
        "dated": {"format": "date"}, "fraction": {"type": "number", "minimum": 0.5},
    }  # fmt: skip
    wire = convert_schema({"properties": odd}).wire["properties"]
    assert wire == {
        "self": {"$ref": "#/$defs/root"}, "whole": {"type": "integer", "minimum": 1, "exclusiveMaximum": 4},
        "large": {"type": "integer"}, "none": TEXT, "dated": {"type": "string", "format": "date"},
        "fraction": {"type": "number", "minimum": 0.5},
    }  # fmt: skip


def _ask(tools: list[ToolSpec], *messages: ChatMessage) -> ModelCall:
    return ModelCall(target=TARGET, tools=tuple(tools), messages=messages)


def _spec(name: str, **properties: Any) -> ToolSpec:
    return ToolSpec(name=name, description="", parameters={"type": "object", "properties": properties})


async def _answer(ask: ModelCall, *parts: ReplyPart) -> list[ReplyPart]:
    async def stream(_: ModelCall) -> AsyncGenerator[ReplyPart, None]:
        for part in parts:
            yield part

    return [part async for part in stream_adapted(ask, stream)]


async def test_arguments_there_and_back() -> None:
    free = {"type": "object", "additionalProperties": TEXT}
    node = {"type": "object", "properties": {"$id": TEXT, "kids": {"type": "array", "items": {"$ref": "#/$defs/n"}}}}
    schema = {
        "type": "object",
        "properties": {"$filter": node, "filter": free, "n": {"$ref": "#/$defs/n"}},
        "$defs": {"n": node},
    }
    tool = ToolSpec(name="t", description="", parameters=schema)
    own = {"$filter": {"$id": "1", "kids": [{"$id": "2"}]}, "filter": {"$id": "free", "id": "x"}, "n": {"$id": "3"}}
    asked = AdaptedTools(
        _ask(
            [tool],
            ChatMessage(role="assistant", tool_calls=(ModelToolCall(id="1", name="t", arguments=json.dumps(own)),)),
            ChatMessage(role="tool", tool_call_id="1", name="t"),
        )
    ).ask
    sent = asked.messages[0].tool_calls[0].arguments
    filter_ = next(name for name in json.loads(sent) if name.startswith("filter_"))
    assert json.loads(sent) == {
        filter_: {"id": "1", "kids": [{"id": "2"}]}, "filter": {"$id": "free", "id": "x"}, "n": {"id": "3"},
    }  # fmt: skip
    back = await _answer(
        _ask([tool]),
        ToolCallDelta(index=0, id="2", name="t", arguments=sent[:9]),
        ToolCallDelta(index=0, arguments=sent[9:]),
        _reply(ModelToolCall(id="2", name="t", arguments=sent)),
    )
    assert json.loads("".join(part.arguments for part in back if isinstance(part, ToolCallDelta))) == own
    assert isinstance(back[-1], ModelReply)
    assert json.loads(back[-1].message.tool_calls[0].arguments) == own


def _reply(*calls: ModelToolCall) -> ModelReply:
    return ModelReply(message=ChatMessage(role="assistant", tool_calls=calls), finish="tool_calls", usage=None)


async def test_names_of_what_models_made_up() -> None:
    """In the conversation there may be calls of any name: providers refuse all of it for one that does not fit."""
    made_up = ["functions.add", "add", "добавить", "a" * 200, "functions/add"]
    calls = tuple(ModelToolCall(id=str(n), name=name, arguments="{}") for n, name in enumerate(made_up))
    results = [ChatMessage(role="tool", tool_call_id=call.id, name=call.name) for call in calls]
    ask = _ask([_spec("add")], ChatMessage(role="assistant", tool_calls=calls), *results)
    wire = AdaptedTools(ask).ask
    names = [call.name for call in wire.messages[0].tool_calls]
    assert (names[1], len(set(names))) == ("add", 5)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in names)
    assert [message.name for message in wire.messages[1:]] == names
    part, reply = await _answer(
        ask, ToolCallDelta(index=0, id="x", name=names[2]), _reply(ModelToolCall(id="x", name=names[2], arguments="{"))
    )
    assert isinstance(part, ToolCallDelta)
    assert isinstance(reply, ModelReply)
    assert (part.name, reply.message.tool_calls[0].name) == ("добавить", "добавить")


async def test_halves_of_characters_in_arguments() -> None:
    told = '{"a":"cut \\ud83d","b":"\\ud83d\\ude00"}'
    [reply] = await _answer(_ask([_spec("t", a=TEXT)]), _reply(ModelToolCall(id="1", name="t", arguments=told)))
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
async def test_a_refusal_names_the_tool(message: str, tool: str | None) -> None:
    async def stream(_: ModelCall) -> AsyncGenerator[ReplyPart, None]:
        raise ModelError("refused", message)
        yield _reply()

    with pytest.raises(ModelError) as failed:
        [part async for part in stream_adapted(_ask([_spec("first"), _spec("second")]), stream)]
    assert failed.value.tool == tool
    assert failed.value.message.startswith(message)
    assert tool is None or repr(tool) in failed.value.message
