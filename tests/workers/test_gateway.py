"""Test the gateway's wire format, its limits and what it hides, with the real client library and with raw sockets."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessage
from pydantic import BaseModel

from domain.llms import (
    ChatMessage,
    ModelError,
    ModelOptions,
    ModelToolCall,
    ModelUsage,
    ReasoningDelta,
    ReplyPart,
    TextDelta,
    ToolCallDelta,
    ToolSpec,
)
from domain.shared.errors import DomainError
from infra.wires import openai_wire
from infra.wires.common import WireRefusal
from tests.support.gateway_client import (
    HELLO,
    USUAL_LIMITS,
    City,
    GatewayClient,
    ScriptedCalls,
    build_reply,
    serve_scripted,
    wait_until,
)
from workers.run.gateway import GatewayLimits

KEY = "sk-the-provider-s-own-key"
ADD = {
    "name": "add",
    "description": "Adds.",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": ["integer", "null"]}}},
}


@pytest.fixture
async def gateway_client() -> AsyncIterator[GatewayClient]:
    async with serve_scripted(ScriptedCalls()) as gateway_client:
        yield gateway_client


async def test_answer_arrives_whole_and_streamed(gateway_client: GatewayClient) -> None:
    usage = ModelUsage(prompt_tokens=7, completion_tokens=3, cached_tokens=2, reasoning_tokens=1)
    gateway_client.calls.script_text("Hel", "lo", usage=usage)
    whole = await gateway_client.ask_chat()
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason, whole.model) == ("Hello", "stop", "small")
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens) == (7, 3, 10)
    assert whole.usage.prompt_tokens_details.cached_tokens == 2
    assert whole.usage.completion_tokens_details.reasoning_tokens == 1

    gateway_client.calls.parts.insert(1, ReasoningDelta("hm"))
    chunks = [chunk async for chunk in await gateway_client.ask_chat(stream=True)]
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["", "Hel", None, "lo", None]
    assert [getattr(chunk.choices[0].delta, "reasoning_content", None) for chunk in chunks] == [
        None,
        None,
        "hm",
        None,
        None,
    ]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, None, None, None, "stop"]
    assert (await gateway_client.ask_chat()).choices[0].message.reasoning_content == "hm"
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)

    chunks = [
        chunk async for chunk in await gateway_client.ask_chat(stream=True, stream_options={"include_usage": True})
    ]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 10
    gateway_client.calls.script_text("a", usage=None)
    assert (await gateway_client.ask_chat()).usage is None


async def test_tool_calls_survive_the_round_trip(gateway_client: GatewayClient) -> None:
    call = ModelToolCall(id="c1", name="add", arguments='{"a":1}')
    gateway_client.calls.parts = [
        ToolCallDelta(index=0, id="c1", name="add"),
        ToolCallDelta(index=0, arguments='{"a"'),
        ToolCallDelta(index=0, arguments=":1}"),
        build_reply(calls=(call,), finish="tool_calls"),
    ]
    tools = [{"type": "function", "function": ADD}]
    whole = await gateway_client.ask_chat(tools=tools, tool_choice="required", parallel_tool_calls=False)
    name, _, specs, options = gateway_client.calls.asked[-1]
    assert name == "small"
    assert specs == (ToolSpec(**ADD),)
    assert (options.tool_choice, options.parallel_tool_calls) == ("required", False)
    message = whole.choices[0].message
    assert (message.content, whole.choices[0].finish_reason) == (None, "tool_calls")
    assert message.tool_calls[0].function.arguments == '{"a":1}'

    # As the library's own helper puts the pieces together, and as it is sent back.
    async with gateway_client.client.chat.completions.stream(model="small", messages=HELLO, tools=tools) as stream:
        final = await stream.get_final_completion()
    for assistant_message in (message, final.choices[0].message):
        assert isinstance(assistant_message, ChatCompletionMessage)
        gateway_client.calls.script_text("3")
        answer = {"role": "tool", "tool_call_id": "c1", "content": "3"}
        await gateway_client.ask_chat(messages=[*HELLO, assistant_message, answer], tools=tools)
        _, messages, _, _ = gateway_client.calls.asked[-1]
        assert messages[1:] == (
            ChatMessage(role="assistant", tool_calls=(call,)),
            ChatMessage(role="tool", content="3", tool_call_id="c1", name="add"),
        )
        gateway_client.calls.parts = []


async def test_every_option_reaches_the_call(gateway_client: GatewayClient) -> None:
    gateway_client.calls.script_text("ok")
    await gateway_client.ask_chat(
        model="large",
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "system", "content": [{"type": "text", "text": "Be"}, {"type": "text", "text": "kind."}]},
            *HELLO,
        ],
        temperature=0.5,
        top_p=0.9,
        max_tokens=10,
        stop=["a", "b"],
        seed=7,
        presence_penalty=0.1,
        frequency_penalty=-0.1,
        n=1,
    )
    name, messages, _, options = gateway_client.calls.asked[-1]
    assert name == "large"
    assert [(message.role, message.content) for message in messages] == [
        ("system", "Be brief."),
        ("system", "Be\nkind."),
        ("user", "hello"),
    ]
    assert options == ModelOptions(
        temperature=0.5,
        max_tokens=10,
        top_p=0.9,
        seed=7,
        stop=("a", "b"),
        presence_penalty=0.1,
        frequency_penalty=-0.1,
    )
    await gateway_client.ask_chat(max_completion_tokens=5, stop="end", response_format={"type": "json_object"})
    assert gateway_client.calls.asked[-1][3] == ModelOptions(max_tokens=5, stop=("end",), schema={"type": "object"})
    await gateway_client.ask_chat(response_format={"type": "text"}, temperature=None)
    assert gateway_client.calls.asked[-1][3] == ModelOptions()


@pytest.mark.filterwarnings("ignore:Pydantic serializer")  # the library's, of what it sends back
async def test_schema_of_the_answer_reaches_the_call(gateway_client: GatewayClient) -> None:
    gateway_client.calls.script_text('{"name":"Rome"}')
    completion = await gateway_client.client.chat.completions.parse(model="small", messages=HELLO, response_format=City)
    assert completion.choices[0].message.parsed == City(name="Rome")
    schema = gateway_client.calls.asked[-1][3].schema
    assert schema is not None
    assert schema["properties"]["name"]["type"] == "string"
    assert schema["title"] == "City"
    # The library notes fields beside the answer and sends them back; they are ignored.
    await gateway_client.ask_chat(messages=[*HELLO, completion.choices[0].message])
    assert gateway_client.calls.asked[-1][1][1] == ChatMessage(role="assistant", content='{"name":"Rome"}')


async def test_tools_of_the_client_library_are_accepted(gateway_client: GatewayClient) -> None:
    class Add(BaseModel):
        a: int

    call = ModelToolCall(id="c1", name="Add", arguments='{"a":1}')
    gateway_client.calls.parts = [
        ToolCallDelta(index=0, id="c1", name="Add", arguments='{"a":1}'),
        build_reply(calls=(call,), finish="tool_calls"),
    ]
    tools = [openai.pydantic_function_tool(Add)]
    completion = await gateway_client.client.chat.completions.parse(model="small", messages=HELLO, tools=tools)
    message = completion.choices[0].message
    assert message.tool_calls is not None
    assert message.tool_calls[0].function.parsed_arguments == Add(a=1)
    await gateway_client.ask_chat(
        messages=[*HELLO, message, {"role": "tool", "tool_call_id": "c1", "content": "3"}], tools=tools
    )
    assert gateway_client.calls.asked[-1][1][1] == ChatMessage(role="assistant", tool_calls=(call,))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("service_tier", "auto"),
        ("safety_identifier", "u-1"),
        ("prompt_cache_key", "k"),
        ("prompt_cache_retention", "24h"),
        ("user", "me"),
        ("metadata", {"a": "b"}),
        ("store", True),
        ("prediction", {"type": "content", "content": "x"}),
        ("modalities", ["text"]),
        ("logprobs", False),
        ("top_logprobs", 0),
        ("logit_bias", {}),
        ("functions", []),
        ("n", 1),
        ("stop", []),
        ("tools", []),
        ("tool_choice", "auto"),
        ("tool_choice", "none"),
        ("parallel_tool_calls", True),
        ("stream_options", {}),
        ("stream_options", {"include_usage": False}),
        ("response_format", {"type": "text"}),
        *[(field, None) for field in ("top_logprobs", "store", "functions", "audio", "reasoning_effort", "anything")],
    ],
)  # fmt: skip
def test_fields_without_effect_are_accepted(field: str, value: Any) -> None:
    plain = openai_wire.parse_request(json.dumps({"model": "m", "messages": HELLO}).encode())
    assert openai_wire.parse_request(json.dumps({"model": "m", "messages": HELLO, field: value}).encode()) == plain


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logprobs", True),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"1": 101}),
        ("reasoning_effort", "huge"),
        ("verbosity", "huge"),
        ("top_k", 0),
        ("top_logprobs", 2),
        ("n", 2),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "x"}),
        ("functions", [{"name": "a"}]),
        ("function_call", {"name": "a"}),
        ("web_search_options", {}),
        ("extra_body", {}),
        ("anything", 1),
    ],
)
def test_unsupported_fields_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(WireRefusal, match=field) as refusal:
        openai_wire.parse_request(json.dumps({"model": "m", "messages": HELLO, field: value}).encode())
    assert (refusal.value.status, refusal.value.body["error"]["param"].split("[")[0]) == (400, field)


OTHER = {"name": "other", "parameters": {"type": "object", "properties": {}}}
BOTH = [{"type": "function", "function": ADD}, {"type": "function", "function": OTHER}]
NAMED = {"type": "function", "name": "add"}


@pytest.mark.parametrize(
    ("choice", "allowed", "mode"),
    [
        (None, None, "auto"),
        ("auto", None, "auto"),
        ("any", None, "required"),
        ("required", None, "required"),
        ({"type": "auto"}, None, "auto"),
        ({"type": "none"}, None, "none"),
        ({"type": "required"}, None, "required"),
        ({"type": "function", "function": {"name": "add"}}, ("add",), "required"),
        ({"function": {"name": "other"}}, ("other",), "required"),
        (NAMED, ("add",), "required"),
        ({"type": "tool", "name": "add"}, ("add",), "required"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}}, ("add",), "auto"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED, {"name": "other"}]}}, None, "auto"),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "function": {"name": "other"}}]},
            ("other",), "required",
        ),
    ],
)  # fmt: skip
def test_tool_choice_names_the_allowed_tools_beside_all_others(
    choice: Any, allowed: tuple[str, ...] | None, mode: str
) -> None:
    body = {"model": "m", "messages": HELLO, "tools": BOTH, "tool_choice": choice}
    request = openai_wire.parse_request(json.dumps(body).encode())
    assert [tool.name for tool in request.tools] == ["add", "other"]
    assert (request.options.allowed_tools, request.options.tool_choice) == (allowed, mode)


@pytest.mark.parametrize(
    "choice",
    ["add", 5, [], {}, {"type": "function"}, {"type": "function", "function": {"name": "none"}}, {"type": "custom"},
     {"type": "allowed_tools"}, {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}},
     {"type": "allowed_tools", "allowed_tools": {"mode": "maybe", "tools": [NAMED]}}, {"type": ["auto"]}],
)  # fmt: skip
def test_invalid_tool_choices_are_refused(choice: Any) -> None:
    body = {"model": "m", "messages": HELLO, "tools": BOTH, "tool_choice": choice}
    with pytest.raises(WireRefusal, match="`tool_choice`") as refusal:
        openai_wire.parse_request(json.dumps(body).encode())
    assert refusal.value.body["error"]["param"] == "tool_choice"


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"properties": {}}, {"type": "object", "properties": {}}),
        ({}, {"type": "object", "properties": {}}),
        (None, {"type": "object", "properties": {}}),
        ({"type": ["object", "null"]}, {"type": "object"}),
        ({"$ref": "#/$defs/a", "$defs": {"a": {}}}, {"type": "object", "$ref": "#/$defs/a", "$defs": {"a": {}}}),
    ],
)
def test_parameters_without_a_type_become_an_object(parameters: Any, expected: dict[str, Any]) -> None:
    tool = {"type": "function", "function": {"name": "a", "parameters": parameters, "strict": True}}
    request = openai_wire.parse_request(json.dumps({"model": "m", "messages": HELLO, "tools": [tool]}).encode())
    assert request.tools[0].parameters == expected


CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
FRAMEWORKS: dict[str, list[dict[str, Any]]] = {
    # An answer as openai's library dumps it, and as instructor sends it back for correction.
    "a dumped answer": [
        *HELLO,
        {"role": "assistant", "content": None, "refusal": None, "annotations": [], "audio": None, "function_call": None,
         "tool_calls": [{**CALL, "index": 0, "extra_content": {"google": {"thought_signature": "x"}}}], "parsed": None},
        {"role": "tool", "tool_call_id": "c1", "name": "add", "content": "Validation Error found: 1 error"},
        {"role": "user", "content": "Recall the function correctly, fix the errors"},
    ],
    "names of speakers": [{"role": "system", "content": "x", "name": "chief"}, {"role": "user", "content": "x", "name": "eve"}],
    "thoughts": [*HELLO, {"role": "assistant", "content": "x", "reasoning_content": "hm", "thinking_blocks": [{}]}, *HELLO],
    "parts anywhere": [
        {"role": "system", "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, "b", {"text": "c"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "x", "annotations": []}], "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "x", "citations": None}]},
    ],
    "no content": [*HELLO, {"role": "assistant", "content": None, "tool_calls": []}, {"role": "user", "content": []}],
    "a refusal": [*HELLO, {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, *HELLO],
    "parsed arguments": [
        *HELLO,
        {"role": "assistant", "content": "", "tool_calls": [{"id": "c1", "function": {"name": "add", "arguments": {"a": 1}}}]},
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_messages_of_frameworks_are_accepted(name: str) -> None:
    body = json.dumps({"model": "m", "messages": FRAMEWORKS[name], "tools": BOTH}).encode()
    request = openai_wire.parse_request(b"\xef\xbb\xbf" + body)
    assert len(request.messages) == len(FRAMEWORKS[name])
    if name == "parts anywhere":
        assert [message.content for message in request.messages] == ["x", "a\nb\nc", "x", "x"]
    if name == "parsed arguments":
        assert request.messages[1].tool_calls[0].arguments == '{"a":1}'
    if name == "a refusal":
        assert request.messages[1].content == "No."


def test_half_an_emoji_is_replaced() -> None:
    body = b'{"model":"m","messages":[{"role":"user","content":"\\ud83d \\ud83d\\ude00"}]}'
    assert openai_wire.parse_request(body).messages[0].content == "\ufffd 😀"


LANGCHAIN = {
    "tools": [{"type": "function", "function": {"name": "Answer", "description": "An answer.", "parameters": {
        "properties": {"text": {"type": "string"}}, "required": ["text"], "type": "object"}}}],
    "tool_choice": {"type": "function", "function": {"name": "Answer"}},
    "parallel_tool_calls": False, "stream": False, "temperature": 0.7, "n": 1,
}  # fmt: skip
JSON_SCHEMA = {
    "response_format": {"type": "json_schema", "json_schema": {"name": "Answer", "strict": True, "schema": {
        "type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"], "additionalProperties": False}}},
}  # fmt: skip


@pytest.mark.parametrize("fields", [LANGCHAIN, JSON_SCHEMA])
async def test_structured_output_of_frameworks_is_accepted(
    gateway_client: GatewayClient, fields: dict[str, Any]
) -> None:
    """Send what instructor's default mode and both methods of LangChain's `with_structured_output` send."""
    call = ModelToolCall(id="c1", name="Answer", arguments='{"text":"hi"}')
    gateway_client.calls.parts = [build_reply('{"text":"hi"}', (call,) if "tools" in fields else (), "stop")]
    status, _, completion = await gateway_client.post({"model": "small", "messages": HELLO, **fields})
    assert status == 200, completion
    _, _, specs, options = gateway_client.calls.asked[-1]
    assert [tool.name for tool in specs] == (["Answer"] if "tools" in fields else [])
    assert (options.tool_choice, options.schema is None) == (("required", True) if specs else ("auto", False))


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"n": 2}, "n"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "content"),
        ({"messages": [{"role": "function", "content": "x"}]}, "role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "image_url",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "odd": 1}]}]}, "odd"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "must be text"),
        ({"messages": [{"role": "user", "content": [5]}]}, "content.0."),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "'input_audio'"),
        ({"messages": [{"role": "assistant", "content": "", "function_call": {"name": "a"}}]}, "function_call"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "c9"}]}, "tool_call_id"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "tool_call_id"),
        ({"messages": HELLO * 5000}, "messages"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "name"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}]}, "parameters"),
        ({"tools": [{"type": "function", "function": ADD}] * 2}, "two tools"),
        ({"tools": [{"type": "web_search"}]}, "type"),
        ({"tools": [{"type": "function", "function": ADD}], "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"tool_choice": "required"}, "no `tools`"),
        ({"tool_choice": {"type": "function", "function": {"name": "add"}}}, "'add'"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"other": True}}, "other"),
        ({"response_format": {"type": "json_schema"}}, "json_schema"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"model": 5}, "model"),
    ],
)
def test_invalid_requests_are_refused_with_a_reason(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(WireRefusal, match=word) as refusal:
        openai_wire.parse_request(json.dumps({"model": "m", "messages": HELLO, **fields}).encode())
    assert refusal.value.status == 400


@pytest.mark.parametrize(
    "body", [b"", b"[1]", b"{", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"messages":' + b"[" * 5000]
)
def test_body_that_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(WireRefusal) as refusal:
        openai_wire.parse_request(body)
    assert refusal.value.status == 400


async def test_models_of_the_manifest_are_the_only_ones(gateway_client: GatewayClient) -> None:
    gateway_client.calls.script_text("ok")
    assert [model.id async for model in gateway_client.client.models.list()] == ["small", "large"]
    assert (await gateway_client.client.models.retrieve("large")).id == "large"
    with pytest.raises(openai.NotFoundError) as error:
        await gateway_client.client.models.retrieve("other")
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError) as error:
        await gateway_client.ask_chat(model="other")
    assert (error.value.code, error.value.param) == ("model_not_found", "model")
    assert gateway_client.calls.asked == []
    await gateway_client.ask_chat(model="large")
    assert gateway_client.calls.asked


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/embeddings", 405),
        ("POST", "/v1/completions", 404),
        ("GET", "/v1/responses", 405),
        ("GET", "/", 404),
        ("GET", "/v1/../metrics", 404),
        ("GET", "http://169.254.169.254/latest/meta-data", 404),
        ("CONNECT", "db:5432", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models/small", 405),
    ],
)
async def test_other_paths_and_methods_are_refused(
    gateway_client: GatewayClient, method: str, path: str, status: int
) -> None:
    code, headers, body = await gateway_client.send(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert code == status
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert headers["server"] == "paddock"
    assert gateway_client.calls.asked == []


@pytest.mark.parametrize(
    ("error", "status", "code", "should_retry"),
    [
        (ModelError("rate_limited", KEY, 3.0), 429, "rate_limit_exceeded", None),
        (ModelError("unavailable", KEY), 503, "unavailable", None),
        (ModelError("timeout", KEY), 504, "timeout", None),
        (ModelError("cut_off", KEY), 502, "cut_off", None),
        (ModelError("malformed", KEY), 502, "malformed", None),
        (ModelError("unauthorized", f"Incorrect API key provided: {KEY}"), 502, "provider_key_refused", "false"),
        (ModelError("not_allowed", "10.0.0.5"), 502, "address_not_allowed", "false"),
        (ModelError("refused", "The prompt is too long."), 400, "refused_by_provider", "false"),
        (DomainError("budget_exceeded", "The budget 'all' of 5 USD is spent."), 402, "budget_exceeded", "false"),
        (DomainError("model_unavailable", KEY), 503, "model_unavailable", None),
        (DomainError("not_found", KEY), 404, "model_not_found", None),
        (DomainError("unavailable", KEY), 500, "internal_error", None),
        (RuntimeError(KEY), 500, "internal_error", None),
        (None, 502, "cut_off", None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_errors_have_the_openai_shape_and_hide_internals(
    gateway_client: GatewayClient,
    error: Exception | None,
    status: int,
    code: str,
    should_retry: str | None,
    stream: bool,
) -> None:
    gateway_client.calls.parts = [] if error is None else [error]
    answer_status, headers, body = await gateway_client.post({"model": "small", "messages": HELLO, "stream": stream})
    assert (answer_status, body["error"]["code"]) == (status, code)
    assert headers.get("x-should-retry") == should_retry
    assert headers.get("retry-after") == ("3" if status == 429 else None)
    everything = json.dumps([headers, body])
    assert KEY not in everything
    assert "10.0.0.5" not in everything
    assert "Traceback" not in everything
    if code in ("refused_by_provider", "budget_exceeded"):
        assert str(error) in body["error"]["message"]

    # The same, after a part of the answer was sent.
    gateway_client.calls.parts.insert(0, TextDelta("begun"))
    seen = []
    with pytest.raises(openai.APIError) as stream_error:
        async for chunk in await gateway_client.ask_chat(stream=True):
            seen.append(chunk.choices[0].delta.content)
    assert seen == ["", "begun"]
    assert isinstance(stream_error.value.body, dict)
    assert stream_error.value.body["code"] == code
    assert KEY not in str(stream_error.value) + str(stream_error.value.body)


async def test_client_library_retries_only_what_may_succeed(gateway_client: GatewayClient) -> None:
    gateway_client.calls.parts = [DomainError("budget_exceeded", "The budget is spent.")]
    for error, tries in ((DomainError("budget_exceeded", "Spent."), 1), (ModelError("unavailable", "x", 0.01), 3)):
        gateway_client.calls.parts, gateway_client.calls.asked = [error], []
        with pytest.raises(openai.APIStatusError):
            await gateway_client.client.with_options(max_retries=2).chat.completions.create(
                model="small", messages=HELLO
            )
        assert len(gateway_client.calls.asked) == tries


async def test_headers_of_a_request_are_not_forwarded(gateway_client: GatewayClient) -> None:
    """Keep headers out of the recorded calls, also if the signature of `Calls` is widened later."""
    gateway_client.calls.script_text("ok")
    status, _, _ = await gateway_client.post(
        {"model": "small", "messages": HELLO},
        Authorization="Bearer smuggled",
        X_API_Key="smuggled",
        OpenAI_Organization="smuggled",
        X_Forwarded_Host="smuggled",
        Cookie="smuggled",
    )
    assert status == 200
    assert "smuggled" not in repr(gateway_client.calls.asked)


async def test_client_that_hangs_up_ends_the_call_at_once(gateway_client: GatewayClient) -> None:
    gateway_client.calls.script_text(*["x"] * 1000)
    gateway_client.calls.delay = 0.05
    for stream in (True, False):
        reader, writer = await gateway_client.open_connection()
        body = json.dumps({"model": "small", "messages": HELLO, "stream": stream}).encode()
        writer.write(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        await wait_until(lambda: gateway_client.calls.running == 1)
        if stream:
            await reader.readline()
        writer.close()
        await wait_until(lambda: gateway_client.calls.running == 0, 1)


async def test_end_of_a_run_ends_its_calls_first() -> None:
    calls = ScriptedCalls()
    calls.script_text(*["x"] * 1000)
    calls.delay = 0.05
    tasks_before = asyncio.all_tasks()
    async with serve_scripted(calls) as gateway_client:
        requests = [asyncio.create_task(gateway_client.ask_chat(stream=number % 2 == 0)) for number in range(5)]
        await wait_until(lambda: calls.running == 5)
    assert (calls.running, calls.closed) == (0, 5)
    await asyncio.gather(*requests, return_exceptions=True)
    await wait_until(lambda: asyncio.all_tasks() <= tasks_before)


async def test_abandoned_call_is_cancelled_once() -> None:
    """Let a call settle its usage when the client hangs up and then the run ends."""
    settled = asyncio.Event()

    async def stream_answer(*_: Any) -> AsyncGenerator[ReplyPart, None]:
        try:
            yield TextDelta("a")
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.3)
            settled.set()

    calls = ScriptedCalls()
    calls.stream_answer = stream_answer  # type: ignore[method-assign]
    async with serve_scripted(calls) as gateway_client:
        stream = await gateway_client.ask_chat(stream=True)
        await anext(stream)
        await stream.close()
        await asyncio.sleep(0.1)
    assert settled.is_set()


async def test_client_that_does_not_read_stops_the_model() -> None:
    async with serve_scripted(ScriptedCalls(), GatewayLimits(write_timeout=0.5)) as gateway_client:
        gateway_client.calls.endless = True
        with socket.create_connection(("127.0.0.1", gateway_client.port)) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            body = json.dumps({"model": "small", "messages": HELLO, "stream": True}).encode()
            client.sendall(
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
            )
            await wait_until(lambda: gateway_client.calls.running == 1)
            await asyncio.sleep(0.2)
            # The gateway waits for room in the socket and does not buffer what the client does not read.
            assert gateway_client.calls.running == 1
            await wait_until(lambda: gateway_client.calls.running == 0, 3)


async def test_large_bodies_are_refused_before_they_are_read(gateway_client: GatewayClient) -> None:
    status, _, body = await gateway_client.send(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000000\r\nConnection: close\r\n\r\n"
    )
    assert (status, body["error"]["code"]) == (413, "too_large")
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    status, _, body = await gateway_client.send(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
        chunk * 70 + b"0\r\n\r\n",
    )
    assert (status, body["error"]["code"]) == (413, "too_large")
    status, _, body = await gateway_client.post(b"\x1f\x8b" + b"\0" * 100, Content_Encoding="gzip")
    assert status == 415
    gateway_client.calls.script_text("ok")
    largest_body = {"model": "small", "messages": [{"role": "user", "content": "x" * (4 << 20)}]}
    largest_body["messages"][0]["content"] = "x" * (USUAL_LIMITS.max_body_bytes - 100)
    assert (await gateway_client.post(largest_body))[0] == 200


async def test_total_size_of_concurrent_requests_is_limited(gateway_client: GatewayClient) -> None:
    gateway_client.calls.script_text("x", "y")
    gateway_client.calls.delay = 1.0
    large = {"model": "small", "messages": [{"role": "user", "content": "x" * (USUAL_LIMITS.max_body_bytes - 100)}]}
    answers = await asyncio.gather(*(gateway_client.post(large) for _ in range(8)))
    statuses = [status for status, _, _ in answers]
    assert 200 in statuses
    assert 429 in statuses
    assert gateway_client.calls.most <= USUAL_LIMITS.max_concurrent_bytes // (USUAL_LIMITS.max_body_bytes - 200)


async def test_concurrent_requests_and_connections_are_limited_and_all_answered(gateway_client: GatewayClient) -> None:
    gateway_client.calls.script_text("ok")
    gateway_client.calls.delay = 0.02
    answers = await asyncio.gather(*(gateway_client.ask_chat() for _ in range(150)))
    assert len(answers) == 150
    assert gateway_client.calls.most <= USUAL_LIMITS.max_concurrent_requests
    # A client that holds every connection open delays only itself, and not without limit.
    idle_connections = [await gateway_client.open_connection() for _ in range(USUAL_LIMITS.max_connections + 20)]
    for _, writer in idle_connections:
        writer.close()
    assert (await gateway_client.ask_chat()).choices[0].message.content == "ok"


async def test_slow_heads_and_bodies_are_disconnected() -> None:
    async with serve_scripted(ScriptedCalls(), GatewayLimits(head_timeout=0.3, body_timeout=0.3)) as gateway_client:
        for first_bytes in (b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"):
            reader, writer = await gateway_client.open_connection()
            writer.write(first_bytes)
            start = time.monotonic()
            # Sending a byte now and then does not help.
            for _ in range(10):
                with contextlib.suppress(ConnectionError):
                    writer.write(b"A" if first_bytes else b"")
                    await writer.drain()
                await asyncio.sleep(0.05)
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 3) == b""
            assert time.monotonic() - start < 3
            writer.close()
        reader, writer = await gateway_client.open_connection()
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408 " in await asyncio.wait_for(reader.readline(), 3)
        writer.close()


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\0\0\0\0\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"".join(b"H%d: x\r\n" % number for number in range(1000)) + b"\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"a" * 100_000 + b"\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    ],
)
async def test_malformed_requests_are_answered_or_disconnected(gateway_client: GatewayClient, nonsense: bytes) -> None:
    reader, writer = await gateway_client.open_connection()
    writer.write(nonsense)
    writer.write_eof()
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer == b"" or b" 400 " in answer.split(b"\r\n")[0]
    assert b"Traceback" not in answer
    writer.close()
    gateway_client.calls.script_text("ok")
    assert (await gateway_client.ask_chat()).choices[0].message.content == "ok"


@pytest.mark.parametrize(
    ("head", "words"),
    [(b"GET /v1/models HTTP/1.1\r\nA: " + b"a" * 200_000, "too large"), (b"nonsense", "not valid HTTP")],
)
async def test_heads_that_cannot_be_read_are_refused_in_json(
    gateway_client: GatewayClient, head: bytes, words: str
) -> None:
    reader, writer = await gateway_client.open_connection()
    writer.write(head + b"\r\n\r\n")
    status, *headers = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).split(b"\r\n")
    assert b" 400 " in status
    assert b"Content-Type: application/json" in headers
    length = next(int(line.split()[1]) for line in headers if line.startswith(b"Content-Length"))
    error = json.loads(await asyncio.wait_for(reader.readexactly(length), 5))["error"]
    assert error["type"] == "invalid_request_error"
    assert words in error["message"]
    writer.close()


async def test_pipelined_requests_are_not_buffered_without_limit(gateway_client: GatewayClient) -> None:
    gateway_client.calls.script_text(*["x"] * 50)
    gateway_client.calls.delay = 0.05
    _, writer = await gateway_client.open_connection()
    body = json.dumps({"model": "small", "messages": HELLO}).encode()
    writer.write(
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    )
    pipelined_requests = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n" * 1000
    sent_bytes = 0
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            while sent_bytes < 200 << 20:
                writer.write(pipelined_requests)
                await writer.drain()
                sent_bytes += len(pipelined_requests)
    assert sent_bytes < 50 << 20
    writer.transport.abort()
    await wait_until(lambda: gateway_client.calls.running == 0)
