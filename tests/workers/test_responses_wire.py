"""OpenAI's Responses at the gateway: asked by the real client, whose types check every response and event."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from domain.llms import (
    ChatMessage,
    ModelError,
    ModelOptions,
    ModelToolCall,
    ModelUsage,
    ProviderParts,
    ReasoningDelta,
    ReasoningItem,
    TextDelta,
    ToolCallDelta,
    ToolSpec,
)
from domain.shared.errors import DomainError
from infra.wires.common import WireRefusal
from infra.wires.responses_wire import ResponsesWire, response_log
from tests.support.gateway_client import City, GatewayClient, ScriptedCalls, build_reply, serve_scripted

USAGE = ModelUsage(prompt_tokens=7, completion_tokens=3, cached_tokens=2, reasoning_tokens=1)
ADD = {
    "type": "function",
    "name": "add",
    "description": "Adds.",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    "strict": True,
}
ADD_SPEC = ToolSpec(name="add", description="Adds.", parameters=ADD["parameters"])  # type: ignore[arg-type]
CALL = ModelToolCall(id="call_1", name="add", arguments='{"a":1}')
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


@pytest.fixture
async def served() -> AsyncIterator[GatewayClient]:
    async with serve_scripted(ScriptedCalls()) as client:
        yield client


def parse(**fields: Any) -> Any:
    body = json.dumps({"model": "m", "input": "hello", **fields}).encode()
    request, _ = ResponsesWire(ScriptedCalls()).parse_request(body)
    return request


async def stream_raw(served: GatewayClient, **fields: Any) -> list[dict[str, Any]]:
    """The events of a stream, each checked against the library's types, strictly."""
    async with served.client.responses.with_streaming_response.create(
        **{"model": "small", "input": "hello", "stream": True, **fields}
    ) as answer:
        lines = [line async for line in answer.iter_lines()]
    events = [json.loads(line[5:]) for line in lines if line.startswith("data:")]
    assert [line[7:] for line in lines if line.startswith("event:")] == [event["type"] for event in events]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        EVENTS.validate_python(event, strict=False)
    return events


async def test_a_text_whole_and_streamed(served: GatewayClient) -> None:
    served.calls.script_text("Hel", "lo", usage=USAGE)
    whole = await served.ask_response(instructions="Be brief.", temperature=0.5, metadata={"a": "b"})
    Response.model_validate(whole.model_dump(mode="json", by_alias=True), strict=True)
    assert (whole.output_text, whole.status, whole.model, whole.error) == ("Hello", "completed", "small", None)
    assert (whole.instructions, whole.temperature, whole.metadata) == ("Be brief.", 0.5, {"a": "b"})
    assert (whole.usage.input_tokens, whole.usage.output_tokens, whole.usage.total_tokens) == (7, 3, 10)
    assert whole.usage.input_tokens_details.cached_tokens == 2
    assert whole.usage.output_tokens_details.reasoning_tokens == 1
    name, messages, tools, options = served.calls.asked[-1]
    assert (name, tools, options) == ("small", (), ModelOptions(temperature=0.5))
    assert messages == (ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="hello"))

    events = await stream_raw(served)
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [event["delta"] for event in events if "delta" in event] == ["Hel", "lo"]
    assert events[-1]["response"]["output"] == [events[-2]["item"]]
    assert len({event["response"]["id"] for event in events if "response" in event}) == 1
    served.calls.script_text("a", usage=None)
    assert (await served.ask_response()).usage is None


async def test_the_library_s_own_helpers(served: GatewayClient) -> None:
    served.calls.script_text('{"name":', '"Rome"}', usage=USAGE)
    parsed = await served.client.responses.parse(model="small", input="hello", text_format=City)
    assert parsed.output_parsed == City(name="Rome")
    schema = served.calls.asked[-1][3].schema
    assert schema is not None
    assert (schema["title"], schema["properties"]["name"]["type"]) == ("City", "string")

    async with served.client.responses.stream(model="small", input="hello", text_format=City) as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert "response.output_text.delta" in kinds
    assert final.output_parsed == City(name="Rome")

    raw = await served.client.responses.with_raw_response.create(model="small", input="hello")
    assert raw.headers["content-type"] == "application/json"
    assert raw.parse().output_text == '{"name":"Rome"}'

    def ask_synchronously() -> str:
        client = openai.OpenAI(base_url=served.url, api_key="x", max_retries=0, timeout=10)
        words = [
            event.delta
            for event in client.responses.create(model="small", input="hello", stream=True)
            if event.type == "response.output_text.delta"
        ]
        return "".join(words) + client.responses.create(model="small", input="hello").output_text

    assert await asyncio.to_thread(ask_synchronously) == '{"name":"Rome"}' * 2


async def test_tools_there_and_back(served: GatewayClient) -> None:
    other = ModelToolCall(id="call_2", name="add", arguments='{"a":2}')
    served.calls.parts = [
        TextDelta("I add."),
        ToolCallDelta(index=0, id="call_1", name="add"),
        ToolCallDelta(index=0, arguments='{"a"'),
        ToolCallDelta(index=0, arguments=":1}"),
        ToolCallDelta(index=1, id="call_2", name="add", arguments='{"a":2}'),
        build_reply("I add.", calls=(CALL, other), finish="tool_calls"),
    ]
    whole = await served.ask_response(
        tools=[ADD], tool_choice={"type": "function", "name": "add"}, parallel_tool_calls=False
    )
    _, _, specs, options = served.calls.asked[-1]
    assert specs == (ADD_SPEC,)
    assert (options.tool_choice, options.parallel_tool_calls) == ("required", False)
    assert [item.type for item in whole.output] == ["message", "function_call", "function_call"]
    assert [(item.call_id, item.name, item.arguments) for item in whole.output[1:]] == [
        ("call_1", "add", '{"a":1}'),
        ("call_2", "add", '{"a":2}'),
    ]
    events = await stream_raw(served, tools=[ADD])
    arguments = [event for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert [(event["output_index"], event["delta"]) for event in arguments] == [
        (1, '{"a"'),
        (1, ":1}"),
        (2, '{"a":2}'),
    ]

    served.calls.script_text("3")
    outputs = [
        {"type": "function_call_output", "call_id": "call_1", "output": "1"},
        {"type": "function_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "2"}]},
    ]
    # As objects of the library, and as they came over the stream.
    for items in ([*whole.output], [event["item"] for event in events if event["type"] == "response.output_item.done"]):
        await served.ask_response(input=[{"role": "user", "content": "hello"}, *items, *outputs], tools=[ADD])
        assert served.calls.asked[-1][1] == (
            ChatMessage(role="user", content="hello"),
            ChatMessage(role="assistant", content="I add.", tool_calls=(CALL, other)),
            ChatMessage(role="tool", content="1", tool_call_id="call_1", name="add"),
            ChatMessage(role="tool", content="2", tool_call_id="call_2", name="add"),
        )


REASONING = {"type": "reasoning", "id": "rs_1", "encrypted_content": "sealed-by-openai"}


def prepare_reasoning(calls: ScriptedCalls) -> None:
    calls.parts = [
        ReasoningDelta("I have "),
        ReasoningDelta("to add."),
        ReasoningItem(writer="responses openai x", item=REASONING),
        ToolCallDelta(index=0, id="call_1", name="add", arguments='{"a":1}'),
        build_reply(calls=(CALL,), finish="tool_calls"),
    ]


@pytest.mark.parametrize("stream", [False, True])
async def test_reasoning_is_shown_and_given_back_as_it_was(served: GatewayClient, stream: bool) -> None:
    prepare_reasoning(served.calls)
    if stream:
        events = await stream_raw(served, tools=[ADD])
        items = [event["item"] for event in events if event["type"] == "response.output_item.done"]
        assert events[-1]["response"]["output"] == items
        assert [event["delta"] for event in events if "summary" in event["type"] and "delta" in event] == [
            "I have ",
            "to add.",
        ]
    else:
        whole = await served.ask_response(tools=[ADD], include=["reasoning.encrypted_content"], store=False)
        items = [item.model_dump(mode="json", exclude_none=True) for item in whole.output]
    assert [item["type"] for item in items] == ["reasoning", "function_call"]
    assert items[0]["summary"] == [{"type": "summary_text", "text": "I have to add."}]
    # The provider's name and address are no business of the agent.
    assert "openai" not in json.dumps(items)

    served.calls.script_text("2")
    output = {"type": "function_call_output", "call_id": "call_1", "output": "2"}
    await served.ask_response(input=[{"role": "user", "content": "hello"}, *items, output], tools=[ADD])
    assert served.calls.asked[-1][1][1] == ChatMessage(
        role="assistant",
        tool_calls=(CALL,),
        provider_parts=ProviderParts(writer="responses openai x", parts=({"item": REASONING}, {"call": 0})),
    )
    # What was made elsewhere, or changed, is left out rather than sent to a provider.
    for sealed in ("gAAAAABinvented", items[0]["encrypted_content"][:-8] + "AAAAAAA=", "ü", "", None):
        changed = [{**items[0], "encrypted_content": sealed}, *items[1:], output]
        await served.ask_response(input=changed, tools=[ADD])
        assert served.calls.asked[-1][1][0] == ChatMessage(role="assistant", tool_calls=(CALL,))


async def test_reasoning_without_words_and_words_without_a_seal(served: GatewayClient) -> None:
    served.calls.parts = [
        ReasoningItem(writer="w", item=REASONING),
        TextDelta("a"),
        ReasoningDelta("hm"),
        TextDelta("b"),
        build_reply("ab"),
    ]
    events = await stream_raw(served)
    items = events[-1]["response"]["output"]
    assert [item["type"] for item in items] == ["reasoning", "message", "reasoning", "message"]
    assert (items[0]["summary"], items[2]["encrypted_content"]) == ([], None)
    assert items[0]["encrypted_content"]
    await served.ask_response(input=[*items, {"role": "user", "content": "go on"}])
    assert served.calls.asked[-1][1][0].content == "ab"


async def test_a_response_continues_from_an_earlier_one_of_the_run(served: GatewayClient) -> None:
    prepare_reasoning(served.calls)
    first = await served.ask_response(tools=[ADD], instructions="Add.")
    served.calls.script_text("It is 2.")
    output = {"type": "function_call_output", "call_id": "call_1", "output": "2"}
    second = await served.ask_response(previous_response_id=first.id, input=[output], tools=[ADD])
    assert second.previous_response_id == first.id
    reply = served.calls.asked[-1][1]
    # Instructions are not carried over.
    assert [(message.role, message.content) for message in reply] == [
        ("user", "hello"),
        ("assistant", ""),
        ("tool", "2"),
    ]
    served.calls.script_text("Yes.")
    await served.ask_response(previous_response_id=second.id, input="Sure?", stream=True)
    await served.ask_response(previous_response_id=second.id, input="Sure?", instructions="Be sure.")
    assert [message.content for message in served.calls.asked[-1][1]] == [
        "Be sure.",
        "hello",
        "",
        "2",
        "It is 2.",
        "Sure?",
    ]


async def test_a_response_that_is_not_kept(served: GatewayClient, monkeypatch: pytest.MonkeyPatch) -> None:
    served.calls.script_text("a")
    forgotten = await served.ask_response(store=False)
    monkeypatch.setattr(response_log, "MAX_LOG_BYTES", 4000)
    dropped = await served.ask_response(input="x" * 1000)
    chained = await served.ask_response(previous_response_id=dropped.id, input="x" * 1000)
    stored = await served.ask_response(input="x" * 1000)
    for response_id in ("resp_1", forgotten.id, dropped.id, chained.id):
        with pytest.raises(openai.BadRequestError) as caught:
            await served.ask_response(previous_response_id=response_id)
        assert (caught.value.code, caught.value.param) == ("previous_response_not_found", "previous_response_id")
    assert (await served.ask_response(previous_response_id=stored.id)).status == "completed"


@pytest.mark.parametrize(("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
async def test_an_answer_that_is_cut(served: GatewayClient, finish: str, reason: str) -> None:
    served.calls.script_text("a", finish=finish)
    whole = await served.ask_response(max_output_tokens=20)
    assert (whole.status, whole.incomplete_details.reason, whole.output_text) == ("incomplete", reason, "a")
    assert whole.output[0].status == "incomplete"
    events = await stream_raw(served)
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["incomplete_details"] == {"reason": reason}


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ModelError("rate_limited", "x", 3.0), 429, "rate_limit_exceeded"),
        (ModelError("refused", "The prompt is too long."), 400, "refused_by_provider"),
        (DomainError("budget_exceeded", "The budget is spent."), 402, "budget_exceeded"),
        (RuntimeError("sk-secret"), 500, "internal_error"),
        (None, 502, "cut_off"),
    ],
)
async def test_errors_before_and_within_an_answer(
    served: GatewayClient, error: Exception | None, status: int, code: str
) -> None:
    served.calls.parts = [] if error is None else [error]
    for stream in (False, True):
        with pytest.raises(openai.APIStatusError) as caught:
            await served.ask_response(stream=stream)
        assert (caught.value.status_code, caught.value.code) == (status, code)
        assert "sk-secret" not in str(caught.value)
    served.calls.parts.insert(0, TextDelta("begun"))
    seen = []
    with pytest.raises(openai.APIError) as failed:
        async for event in await served.ask_response(stream=True):
            seen.append(event)
    assert isinstance(failed.value.body, dict)
    assert failed.value.body["code"] == code
    assert seen[-1].type == "response.failed"
    assert seen[-1].response.error.code == ("rate_limit_exceeded" if status == 429 else "server_error")
    assert seen[-1].response.output[0].content[0].text == "begun"
    assert "sk-secret" not in str([event.model_dump() for event in seen])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("background", False),
        ("truncation", "disabled"),
        ("top_logprobs", 0),
        ("include", ["reasoning.encrypted_content", "file_search_call.results"]),
        ("include", []),
        ("context_management", []),
        *[(field, "x") for field in ("user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")],
        ("prompt_cache_options", {"mode": "implicit"}),
        ("metadata", {"a": "b"}),
        ("store", False),
        ("max_tool_calls", 3),
        ("tools", []),
        ("tool_choice", "auto"),
        ("text", {"format": {"type": "text"}}),
        ("text", {"verbosity": "medium", "format": None}),
        ("parallel_tool_calls", True),
        *[(field, None) for field in ("conversation", "prompt", "reasoning", "text", "instructions", "anything")],
    ],
)
def test_what_changes_nothing_is_taken(field: str, value: Any) -> None:
    plain, labelled = parse(), parse(**{field: value})
    assert (labelled.messages, labelled.tools, labelled.options) == (plain.messages, plain.tools, plain.options)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"truncation": "auto"}, "truncation"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"include": ["message.output_text.logprobs"]}, "include"),
        ({"include": "all"}, "include"),
        ({"moderation": {}}, "moderation"),
        ({"n": 2}, "n"),
        ({"text": {"verbosity": "huge"}}, "text.verbosity"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "text", "schema": {}}}}, "text.format.schema"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options"),
        ({"anything": 1}, "anything"),
        ({"temperature": 3}, "temperature"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": [5]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [5]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": 5}]}]}, "input[0].content[0].text"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": "x", "odd": 1}]}, "input[0].odd"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
        ({"input": [{"type": "web_search_call", "id": "x", "status": "completed"}]}, "input[0]"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}, "input[0].call_id"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": [{"type": "file_search", "vector_store_ids": []}]}, "tools[0]"),
        ({"tools": [{"type": "computer_use_preview"}]}, "tools[0]"),
        ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools[0]"),
        ({"tools": [{"type": "custom", "name": "x"}]}, "tools[0]"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"tools": [{**ADD, "parameters": {"type": "array"}}]}, "tools[0].parameters"),
        ({"tools": [{**ADD, "defer_loading": True}]}, "tools[0].defer_loading"),
        ({"tools": [ADD, ADD]}, "tools[1].name"),
        ({"tools": [ADD], "tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"tools": [ADD], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, Any], param: str | None) -> None:
    with pytest.raises(WireRefusal) as caught:
        parse(**fields)
    assert (caught.value.status, caught.value.body["error"]["param"]) == (400, param)


def test_shapes_of_input_that_clients_send() -> None:
    items = [
        {"role": "developer", "content": "Be kind."},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"role": "assistant", "content": "c", "id": "msg_1", "status": "completed", "phase": "final_answer"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "d", "annotations": [], "logprobs": None}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": {"a": 1}, "id": None, "caller": {"type": "direct"}},
        {"type": "function_call_output", "call_id": "c", "output": "", "id": "x", "status": "completed"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "user", "content": "half \ud83d"},
    ]  # fmt: skip
    call = ModelToolCall(id="c", name="f", arguments='{"a":1}')
    assert parse(input=items).messages == (
        ChatMessage(role="system", content="Be kind."),
        ChatMessage(role="user", content="a\nb"),
        ChatMessage(role="assistant", content="cd", tool_calls=(call,)),
        ChatMessage(role="tool", content="", tool_call_id="c", name="f"),
        ChatMessage(role="assistant", content="No."),
        ChatMessage(role="user", content="half \ufffd"),
    )


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "resp_1"),
        ("DELETE", "resp_1"),
        ("POST", "resp_1/cancel"),
        ("GET", "resp_1/input_items"),
        ("POST", "compact"),
    ],
)
async def test_what_responses_have_elsewhere_is_refused_in_words(served: GatewayClient, method: str, path: str) -> None:
    status, _, answer = await served.send(
        f"{method} /v1/responses/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )
    assert status == 404
    assert "previous_response_id" in answer["error"]["message"]
