"""Anthropic's messages at the gateway: asked by the real client, whose types check every message and event."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from msgspec.structs import replace
from pydantic import TypeAdapter

from domain.llms import (
    ChatMessage,
    MessageText,
    ModelError,
    ModelOptions,
    ModelToolCall,
    ModelUsage,
    ProviderParts,
    ReasoningDelta,
    ReasoningItem,
    TextDelta,
    ThinkingOptions,
    ToolCallDelta,
    ToolSpec,
)
from domain.shared.errors import DomainError
from infra.wires.anthropic_wire import MessagesWire
from infra.wires.common import WireRefusal
from tests.support.gateway_client import HELLO, City, GatewayClient, ScriptedCalls, build_reply, serve_scripted

USAGE = ModelUsage(prompt_tokens=7, completion_tokens=3, cached_tokens=2, reasoning_tokens=1)
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
ADD = {"name": "add", "description": "Adds.", "input_schema": SCHEMA}
CALL = ModelToolCall(id="toolu_1", name="add", arguments='{"a":1}')
EVENTS: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
THINKING = {"type": "enabled", "budget_tokens": 1024}


@pytest.fixture
async def served() -> AsyncIterator[GatewayClient]:
    async with serve_scripted(ScriptedCalls()) as client:
        yield client


def parse(**fields: Any) -> Any:
    body = {"model": "m", "messages": HELLO, "max_tokens": 2000, **fields}
    request, _ = MessagesWire(ScriptedCalls()).parse_request(json.dumps(body).encode())
    return request


async def stream_raw(served: GatewayClient, **fields: Any) -> list[dict[str, Any]]:
    """The events of a stream but its pings, each checked against the library's types."""
    async with served.anthropic.messages.with_streaming_response.create(
        **{"model": "small", "messages": HELLO, "max_tokens": 2000, "stream": True, **fields}
    ) as answer:
        lines = [line async for line in answer.iter_lines()]
    events = [json.loads(line[5:]) for line in lines if line.startswith("data:")]
    assert [line[7:] for line in lines if line.startswith("event:")] == [event["type"] for event in events]
    events = [event for event in events if event["type"] != "ping"]
    for event in events:
        EVENTS.validate_python(event)
    return events


async def test_a_text_whole_and_streamed(served: GatewayClient) -> None:
    served.calls.script_text("Hel", "lo", usage=USAGE)
    whole = await served.ask_message(
        system="Be brief.", stop_sequences=["END"], extra_body={"temperature": 0.5, "top_p": 0.9}
    )
    Message.model_validate(whole.model_dump(mode="json"), strict=True)
    assert (whole.content[0].text, whole.role, whole.model, whole.stop_reason) == (
        "Hello",
        "assistant",
        "small",
        "end_turn",
    )
    assert (whole.usage.input_tokens, whole.usage.cache_read_input_tokens, whole.usage.output_tokens) == (5, 2, 3)
    name, messages, tools, options = served.calls.asked[-1]
    assert (name, tools) == ("small", ())
    assert messages == (ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="hello"))
    assert options == ModelOptions(temperature=0.5, top_p=0.9, max_tokens=100, stop=("END",))

    events = await stream_raw(served)
    assert [event["type"] for event in events] == [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert [event["delta"]["text"] for event in events[2:4]] == ["Hel", "lo"]
    assert events[-2]["delta"]["stop_reason"] == "end_turn"
    assert events[-2]["usage"]["output_tokens"] == 3


async def test_the_library_s_own_helpers(served: GatewayClient) -> None:
    served.calls.script_text("Hel", "lo", usage=USAGE)
    async with served.anthropic.messages.stream(model="small", messages=HELLO, max_tokens=9) as stream:
        words = [word async for word in stream.text_stream]
        final = await stream.get_final_message()
    assert (words, final.content[0].text, final.stop_reason) == (["Hel", "lo"], "Hello", "end_turn")
    assert (final.usage.input_tokens, final.usage.cache_read_input_tokens, final.usage.output_tokens) == (5, 2, 3)
    raw = await served.anthropic.messages.with_raw_response.create(model="small", messages=HELLO, max_tokens=9)
    assert (await raw.parse()).content[0].text == "Hello"
    beta = await served.anthropic.beta.messages.create(model="small", messages=HELLO, max_tokens=9, betas=["x-2026"])
    assert beta.content[0].text == "Hello"

    served.calls.script_text('{"name":"Rome"}', usage=USAGE)
    parsed = await served.anthropic.messages.parse(model="small", messages=HELLO, max_tokens=9, output_format=City)
    assert parsed.parsed_output == City(name="Rome")
    schema = served.calls.asked[-1][3].schema
    assert schema is not None
    assert schema["properties"]["name"]["type"] == "string"
    # What the library noted beside the answer comes back with it, and is no part of it.
    await served.ask_message(messages=[*HELLO, {"role": "assistant", "content": parsed.content}, *HELLO])
    assert served.calls.asked[-1][1][1] == ChatMessage(role="assistant", content='{"name":"Rome"}')

    def ask_synchronously() -> str:
        client = anthropic.Anthropic(base_url=served.root, api_key="x", max_retries=0, timeout=10)
        with client.messages.stream(model="small", messages=HELLO, max_tokens=9) as stream:
            streamed = stream.get_final_text()
        return streamed + client.messages.create(model="small", messages=HELLO, max_tokens=9).content[0].text  # type: ignore[union-attr]

    assert await asyncio.to_thread(ask_synchronously) == '{"name":"Rome"}' * 2


async def test_tools_there_and_back(served: GatewayClient) -> None:
    other = ModelToolCall(id="toolu_2", name="add", arguments='{"a":2}')
    served.calls.parts = [
        TextDelta("I add."),
        ToolCallDelta(index=0, id="toolu_1", name="add"),
        ToolCallDelta(index=0, arguments='{"a"'),
        ToolCallDelta(index=0, arguments=":1}"),
        ToolCallDelta(index=1, id="toolu_2", name="add", arguments='{"a":2}'),
        build_reply("I add.", calls=(CALL, other), finish="tool_calls"),
    ]
    whole = await served.ask_message(
        tools=[{**ADD, "cache_control": {"type": "ephemeral"}}],
        tool_choice={"type": "tool", "name": "add", "disable_parallel_tool_use": True},
    )
    _, _, specs, options = served.calls.asked[-1]
    assert specs == (ToolSpec(name="add", description="Adds.", parameters=SCHEMA, cache="5m"),)
    assert (options.tool_choice, options.parallel_tool_calls) == ("required", False)
    assert whole.stop_reason == "tool_use"
    assert [block.type for block in whole.content] == ["text", "tool_use", "tool_use"]
    assert [(block.id, block.input) for block in whole.content[1:]] == [("toolu_1", {"a": 1}), ("toolu_2", {"a": 2})]
    async with served.anthropic.messages.stream(model="small", messages=HELLO, max_tokens=9, tools=[ADD]) as stream:
        final = await stream.get_final_message()
    assert [block.model_dump(mode="json") for block in final.content[1:]] == [
        block.model_dump(mode="json") for block in whole.content[1:]
    ]

    served.calls.script_text("3")
    results = [
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": "1"},
        {
            "type": "tool_result",
            "tool_use_id": "toolu_2",
            "is_error": True,
            "content": [{"type": "text", "text": "no"}],
        },
        {"type": "text", "text": "Go on."},
    ]
    for content in (whole.content, final.content, [block.model_dump() for block in final.content]):
        await served.ask_message(
            messages=[*HELLO, {"role": "assistant", "content": content}, {"role": "user", "content": results}],
            tools=[ADD],
        )
        assert served.calls.asked[-1][1] == (
            ChatMessage(role="user", content="hello"),
            ChatMessage(role="assistant", content="I add.", tool_calls=(CALL, other)),
            ChatMessage(role="tool", content="1", tool_call_id="toolu_1", name="add"),
            ChatMessage(role="tool", content="no", tool_call_id="toolu_2", name="add", is_error=True),
            ChatMessage(role="user", content="Go on."),
        )


async def test_calls_whose_pieces_come_mixed_are_blocks_one_after_the_other(served: GatewayClient) -> None:
    calls = (
        CALL,
        ModelToolCall(id="b", name="add", arguments='{"a":2}'),
        ModelToolCall(id="c", name="now", arguments="{}"),
    )
    served.calls.parts = [
        ToolCallDelta(index=0, id="toolu_1", name="add"),
        ToolCallDelta(index=1, id="b", name="add", arguments='{"a":'),
        ToolCallDelta(index=0, arguments='{"a":'),
        ToolCallDelta(index=2, id="c", name="now"),
        ToolCallDelta(index=1, arguments="2}"),
        TextDelta("So."),
        ToolCallDelta(index=0, arguments="1}"),
        ToolCallDelta(index=2, arguments="{}"),
        build_reply("So.", calls=calls, finish="tool_calls"),
    ]
    events = await stream_raw(served, tools=[ADD])
    numbers = [event["index"] for event in events if "index" in event]
    assert numbers == sorted(numbers)
    async with served.anthropic.messages.stream(model="small", messages=HELLO, max_tokens=9, tools=[ADD]) as stream:
        final = await stream.get_final_message()
    assert [getattr(block, "input", None) for block in final.content] == [{"a": 1}, {"a": 2}, {}, None]


async def test_arguments_that_are_no_object(served: GatewayClient) -> None:
    for text, expected_input in (('{"a":', {"INVALID_JSON": '{"a":'}), ("[1]", {"INVALID_JSON": "[1]"}), ("", {})):
        call = ModelToolCall(id="toolu_1", name="add", arguments=text)
        served.calls.parts = [
            ToolCallDelta(index=0, id="toolu_1", name="add", arguments=text),
            build_reply(calls=(call,), finish="tool_calls"),
        ]
        assert (await served.ask_message(tools=[ADD])).content[0].input == expected_input


SIGNED = {"type": "thinking", "thinking": "I have to add.", "signature": "c2lnbmVk"}
REDACTED = {"type": "redacted_thinking", "data": "x"}


def prepare_thinking(calls: ScriptedCalls) -> None:
    calls.parts = [
        ReasoningDelta("I have "),
        ReasoningDelta("to add."),
        ReasoningItem(writer="anthropic https://provider.internal", item=SIGNED),
        ReasoningItem(writer="anthropic https://provider.internal", item=REDACTED),
        TextDelta("So."),
        ToolCallDelta(index=0, id="toolu_1", name="add", arguments='{"a":1}'),
        build_reply("So.", calls=(CALL,), finish="tool_calls"),
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_thinking_is_shown_and_given_back_as_it_was(served: GatewayClient, stream: bool) -> None:
    prepare_thinking(served.calls)
    if stream:
        asked = {"model": "small", "messages": HELLO, "max_tokens": 2000, "tools": [ADD], "thinking": THINKING}
        async with served.anthropic.messages.stream(**asked) as events:  # type: ignore[arg-type]
            message = await events.get_final_message()
    else:
        message = await served.ask_message(max_tokens=2000, tools=[ADD], thinking=THINKING)
    assert served.calls.asked[-1][3].thinking == ThinkingOptions(mode="enabled", max_tokens=1024)
    assert [block.type for block in message.content] == ["thinking", "redacted_thinking", "text", "tool_use"]
    assert message.content[0].thinking == "I have to add."
    # The provider's name and address are no business of the agent.
    assert "provider.internal" not in message.model_dump_json()

    served.calls.script_text("2")
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "2"}]}
    conversation = [*HELLO, {"role": "assistant", "content": message.content}, result]
    await served.ask_message(max_tokens=2000, messages=conversation, tools=[ADD], thinking=THINKING)
    assert served.calls.asked[-1][1][1] == ChatMessage(
        role="assistant",
        content="So.",
        tool_calls=(CALL,),
        provider_parts=ProviderParts(
            writer="anthropic https://provider.internal",
            parts=({"item": SIGNED}, {"item": REDACTED}, {"text": "So."}, {"call": 0}),
        ),
    )
    # What was made elsewhere, or changed, is left out rather than sent to a provider.
    elsewhere = [{"type": "thinking", "thinking": "x", "signature": "c2ln"}, {"type": "redacted_thinking", "data": "x"}]
    await served.ask_message(
        messages=[*HELLO, {"role": "assistant", "content": [*elsewhere, *message.content[2:]]}, result]
    )
    assert served.calls.asked[-1][1][1] == ChatMessage(role="assistant", content="So.", tool_calls=(CALL,))


async def test_clients_that_did_not_ask_for_thinking_see_none(served: GatewayClient) -> None:
    """They expect the text in the first block."""
    prepare_thinking(served.calls)
    for fields in ({}, {"thinking": {"type": "disabled"}}):
        assert [block.type for block in (await served.ask_message(**fields)).content] == ["text", "tool_use"]
    events = await stream_raw(served)
    assert [event["content_block"]["type"] for event in events if "content_block" in event] == ["text", "tool_use"]
    assert [event["index"] for event in events if "content_block" in event] == [0, 1]


@pytest.mark.parametrize(
    ("finish", "stop_sequence", "reason"),
    [
        ("stop", None, "end_turn"),
        ("stop", "END", "stop_sequence"),
        ("length", None, "max_tokens"),
        ("content_filter", None, "refusal"),
    ],
)
async def test_why_an_answer_stopped(
    served: GatewayClient, finish: Any, stop_sequence: str | None, reason: str
) -> None:
    reply = build_reply("a", finish=finish)
    served.calls.parts = [TextDelta("a"), replace(reply, stop_sequence=stop_sequence)]
    whole = await served.ask_message(stop_sequences=["END"])
    assert (whole.stop_reason, whole.stop_sequence) == (reason, stop_sequence)
    events = await stream_raw(served)
    assert events[-2]["delta"] == {"stop_reason": reason, "stop_sequence": stop_sequence}


async def test_answer_without_text_and_usage_is_empty(served: GatewayClient) -> None:
    served.calls.parts = [build_reply("")]
    whole = await served.ask_message()
    assert (whole.content, whole.usage.input_tokens, whole.usage.output_tokens) == ([], 0, 0)
    assert [event["type"] for event in await stream_raw(served)] == ["message_start", "message_delta", "message_stop"]


@pytest.mark.parametrize(
    ("error", "status", "kind", "again"),
    [
        (ModelError("rate_limited", "x", 3.0), 429, "rate_limit_error", None),
        (ModelError("unavailable", "x"), 503, "overloaded_error", None),
        (ModelError("timeout", "x"), 504, "timeout_error", None),
        (ModelError("cut_off", "x"), 502, "api_error", None),
        (ModelError("refused", "The prompt is too long."), 400, "invalid_request_error", "false"),
        (ModelError("unauthorized", "sk-secret"), 502, "api_error", "false"),
        (DomainError("budget_exceeded", "The budget is spent."), 402, "billing_error", "false"),
        (DomainError("not_found", "x"), 404, "not_found_error", None),
        (RuntimeError("sk-secret"), 500, "api_error", None),
    ],
)
async def test_errors_have_anthropic_s_shape(
    served: GatewayClient, error: Exception, status: int, kind: str, again: str | None
) -> None:
    served.calls.parts = [error]
    for stream in (False, True):
        with pytest.raises(anthropic.APIStatusError) as caught:
            await served.ask_message(stream=stream)
        body: Any = caught.value.body
        assert (caught.value.status_code, body["type"], body["error"]["type"]) == (status, "error", kind)
        assert caught.value.response.headers.get("x-should-retry") == again
        assert caught.value.response.headers.get("retry-after") == ("3" if status == 429 else None)
        assert "sk-secret" not in str(caught.value)
    served.calls.parts.insert(0, TextDelta("begun"))
    seen = []
    with pytest.raises(anthropic.APIStatusError) as failed:
        async for event in await served.ask_message(stream=True):
            seen.append(event.type)
    assert seen == ["message_start", "content_block_start", "content_block_delta"]
    assert failed.value.body["error"]["type"] == kind  # type: ignore[index]
    assert "sk-secret" not in str(failed.value)


async def test_refusals_of_requests_have_it_too(served: GatewayClient) -> None:
    with pytest.raises(anthropic.NotFoundError, match="manifest"):
        await served.ask_message(model="other")
    with pytest.raises(anthropic.BadRequestError, match="web_search_20250305"):
        await served.ask_message(tools=[{"type": "web_search_20250305", "name": "web_search"}])
    with pytest.raises(anthropic.NotFoundError, match="`usage` of an answer"):
        await served.anthropic.messages.count_tokens(model="small", messages=HELLO)
    with pytest.raises(anthropic.NotFoundError, match="one by one"):
        await served.anthropic.messages.batches.create(requests=[])
    status, _, body = await served.post(b"{", path="/v1/messages")
    assert (status, body["error"]["type"]) == (400, "invalid_request_error")
    status, _, body = await served.send("GET /v1/messages HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert (status, body["type"]) == (405, "error")
    assert served.calls.asked == []


async def test_the_list_of_models_is_one_for_both_libraries(served: GatewayClient) -> None:
    assert [model.id async for model in served.anthropic.models.list()] == ["small", "large"]
    assert (await served.anthropic.models.retrieve("large")).display_name == "large"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("metadata", {"user_id": "u"}),
        ("service_tier", "auto"),
        ("container", None),
        ("mcp_servers", []),
        ("context_management", {}),
        ("speed", "standard"),
        ("stop_sequences", []),
        ("system", ""),
        ("system", []),
        ("tools", []),
        ("tool_choice", {"type": "auto"}),
        ("tool_choice", {"type": "none"}),
        ("output_config", {"format": None}),
        ("stream", False),
        *[(field, None) for field in ("thinking", "top_k", "output_format", "anything")],
    ],
)
def test_what_changes_nothing_is_taken(field: str, value: Any) -> None:
    assert parse(**{field: value}) == parse()


def build_messages(*blocks: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": list(blocks)}]}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers"),
        ({"context_management": {"edits": []}}, "context_management"),
        ({"inference_geo": "eu"}, "inference_geo"),
        ({"speed": "fast"}, "speed"),
        ({"anything": 1}, "anything"),
        ({"temperature": 3}, "temperature"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "disabled", "budget_tokens": 1024}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "maybe"}}, "thinking.type"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0]"),
        ({"tools": [{"type": "computer_20250124", "name": "computer"}]}, "tools[0]"),
        ({"tools": [5]}, "tools[0]"),
        ({"tools": [{**ADD, "name": "a b"}]}, "tools[0].name"),
        ({"tools": [{"name": "a"}]}, "tools[0].input_schema"),
        ({"tools": [{**ADD, "input_schema": {"type": "array"}}]}, "tools[0].input_schema"),
        ({"tools": [{**ADD, "defer_loading": True}]}, "tools[0].defer_loading"),
        ({"tools": [ADD, ADD]}, "tools[1].name"),
        ({"tools": [ADD], "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "some"}}, "tool_choice"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "auto", "disable_parallel_tool_use": 1}},
         "tool_choice.disable_parallel_tool_use"),
        (build_messages({"type": "document", "source": {}}), "messages[0].content[0]"),
        (build_messages({"type": "search_result"}), "messages[0].content[0]"),
        (build_messages({"type": "text", "text": "a"}, {"type": "tool_use", "id": "a", "name": "b", "input": {}}), "messages[0].content[1]"),
        (build_messages({"type": "server_tool_use", "id": "a", "name": "b", "input": {}}, role="assistant"), "messages[0].content[0]"),
        (build_messages({"type": "tool_result", "tool_use_id": "a"}, role="assistant"), "messages[0].content[0]"),
        (build_messages({"type": "tool_result", "tool_use_id": "a"}), "messages[0].content[0].tool_use_id"),
        (build_messages({"type": "text", "text": 5}), "messages[0].content[0].text"),
        (build_messages({"type": "text", "text": "a", "odd": 1}), "messages[0].content[0].odd"),
        (build_messages({"text": "a"}), "messages[0].content[0]"),
        (build_messages(5), "messages[0].content[0]"),
        ({"system": [{"type": "image"}]}, "system[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, Any], param: str | None) -> None:
    with pytest.raises(WireRefusal) as caught:
        parse(**fields)
    assert (caught.value.status, caught.value.body["error"]["param"]) == (400, param)


def test_shapes_of_messages_that_clients_send() -> None:
    cached = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    use = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": "ü"}, "caller": {"type": "direct"}, **cached}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a", **cached}, {"type": "text", "text": "b", "citations": None}]},
        {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "tool_use", "stop_sequence": None,
         "usage": {}, "content": [{"type": "text", "text": "c"}, {"type": "text", "text": ""}, use]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", **cached}]},
        {"role": "assistant", "content": []},
        {"role": "assistant", "content": "The answer is ("},
    ]  # fmt: skip
    request = parse(system=[{"type": "text", "text": "x", **cached}, {"type": "text", "text": "y"}], messages=messages)
    call = ModelToolCall(id="t", name="f", arguments='{"a":"ü"}')
    assert request.messages == (
        ChatMessage(role="system", content="x", cache="1h"),
        ChatMessage(role="system", content="y"),
        ChatMessage(role="user", content="a\nb", parts=(MessageText(text="a", cache="1h"), MessageText(text="b"))),
        ChatMessage(role="assistant", content="c", tool_calls=(call,), cache="1h"),
        ChatMessage(role="tool", content="", tool_call_id="t", name="f", cache="1h"),
        ChatMessage(role="assistant", content="The answer is ("),
    )
