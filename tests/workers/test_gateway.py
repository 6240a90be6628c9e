"""The gateway's wire, its limits and what it keeps to itself: asked by the real client library, and by sockets by hand."""

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
from tests.support.gateway_client import (
    HELLO,
    USUAL_LIMITS,
    GatewayClient,
    ScriptedCalls,
    build_reply,
    serve_scripted,
    wait_until,
)
from workers.run import openai_wire
from workers.run.gateway import GatewayLimits
from workers.run.wire import GatewayRefusal

KEY = "sk-the-provider-s-own-key"
ADD = {
    "name": "add",
    "description": "Adds.",
    "parameters": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": ["integer", "null"]}}},
}


@pytest.fixture
async def served() -> AsyncIterator[GatewayClient]:
    async with serve_scripted(ScriptedCalls()) as one:
        yield one


async def test_an_answer_whole_and_in_pieces(served: GatewayClient) -> None:
    usage = ModelUsage(prompt_tokens=7, completion_tokens=3, cached_tokens=2, reasoning_tokens=1)
    served.calls.script_text("Hel", "lo", usage=usage)
    whole = await served.ask_chat()
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason, whole.model) == ("Hello", "stop", "small")
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens) == (7, 3, 10)
    assert whole.usage.prompt_tokens_details.cached_tokens == 2
    assert whole.usage.completion_tokens_details.reasoning_tokens == 1

    served.calls.parts.insert(1, ReasoningDelta("hm"))
    chunks = [one async for one in await served.ask_chat(stream=True)]
    assert [one.choices[0].delta.content for one in chunks] == ["", "Hel", None, "lo", None]
    assert [getattr(one.choices[0].delta, "reasoning_content", None) for one in chunks] == [
        None,
        None,
        "hm",
        None,
        None,
    ]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [one.choices[0].finish_reason for one in chunks] == [None, None, None, None, "stop"]
    assert (await served.ask_chat()).choices[0].message.reasoning_content == "hm"
    assert len({one.id for one in chunks}) == 1
    assert all(one.usage is None for one in chunks)

    chunks = [one async for one in await served.ask_chat(stream=True, stream_options={"include_usage": True})]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 10
    served.calls.script_text("a", usage=None)
    assert (await served.ask_chat()).usage is None


async def test_tools_there_and_back(served: GatewayClient) -> None:
    call = ModelToolCall(id="c1", name="add", arguments='{"a":1}')
    served.calls.parts = [
        ToolCallDelta(index=0, id="c1", name="add"),
        ToolCallDelta(index=0, arguments='{"a"'),
        ToolCallDelta(index=0, arguments=":1}"),
        build_reply(calls=(call,), finish="tool_calls"),
    ]
    tools = [{"type": "function", "function": ADD}]
    whole = await served.ask_chat(tools=tools, tool_choice="required", parallel_tool_calls=False)
    name, _, specs, options = served.calls.asked[-1]
    assert name == "small"
    assert specs == (ToolSpec(**ADD),)
    assert (options.tool_choice, options.parallel_tool_calls) == ("required", False)
    message = whole.choices[0].message
    assert (message.content, whole.choices[0].finish_reason) == (None, "tool_calls")
    assert message.tool_calls[0].function.arguments == '{"a":1}'

    # As the library's own helper puts the pieces together, and as it is sent back.
    async with served.client.chat.completions.stream(model="small", messages=HELLO, tools=tools) as stream:
        final = await stream.get_final_completion()
    for back in (message, final.choices[0].message):
        assert isinstance(back, ChatCompletionMessage)
        served.calls.script_text("3")
        answer = {"role": "tool", "tool_call_id": "c1", "content": "3"}
        await served.ask_chat(messages=[*HELLO, back, answer], tools=tools)
        _, messages, _, _ = served.calls.asked[-1]
        assert messages[1:] == (
            ChatMessage(role="assistant", tool_calls=(call,)),
            ChatMessage(role="tool", content="3", tool_call_id="c1", name="add"),
        )
        served.calls.parts = []


async def test_every_option_reaches_the_call(served: GatewayClient) -> None:
    served.calls.script_text("ok")
    await served.ask_chat(
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
    name, messages, _, options = served.calls.asked[-1]
    assert name == "large"
    assert [(one.role, one.content) for one in messages] == [
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
    await served.ask_chat(max_completion_tokens=5, stop="end", response_format={"type": "json_object"})
    assert served.calls.asked[-1][3] == ModelOptions(max_tokens=5, stop=("end",), schema={"type": "object"})
    await served.ask_chat(response_format={"type": "text"}, temperature=None)
    assert served.calls.asked[-1][3] == ModelOptions()


@pytest.mark.filterwarnings("ignore:Pydantic serializer")  # the library's, of what it sends back
async def test_answers_of_a_schema(served: GatewayClient) -> None:
    class City(BaseModel):
        """A place."""

        name: str

    served.calls.script_text('{"name":"Rome"}')
    told = await served.client.chat.completions.parse(model="small", messages=HELLO, response_format=City)
    assert told.choices[0].message.parsed == City(name="Rome")
    schema = served.calls.asked[-1][3].schema
    assert schema is not None
    assert schema["properties"]["name"]["type"] == "string"
    assert schema["title"] == "City"
    # What the library noted beside the answer comes back with it, and is no part of it.
    await served.ask_chat(messages=[*HELLO, told.choices[0].message])
    assert served.calls.asked[-1][1][1] == ChatMessage(role="assistant", content='{"name":"Rome"}')


async def test_tools_as_the_library_makes_them(served: GatewayClient) -> None:
    class Add(BaseModel):
        a: int

    call = ModelToolCall(id="c1", name="Add", arguments='{"a":1}')
    served.calls.parts = [
        ToolCallDelta(index=0, id="c1", name="Add", arguments='{"a":1}'),
        build_reply(calls=(call,), finish="tool_calls"),
    ]
    tools = [openai.pydantic_function_tool(Add)]
    told = await served.client.chat.completions.parse(model="small", messages=HELLO, tools=tools)
    message = told.choices[0].message
    assert message.tool_calls is not None
    assert message.tool_calls[0].function.parsed_arguments == Add(a=1)
    await served.ask_chat(
        messages=[*HELLO, message, {"role": "tool", "tool_call_id": "c1", "content": "3"}], tools=tools
    )
    assert served.calls.asked[-1][1][1] == ChatMessage(role="assistant", tool_calls=(call,))


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
def test_what_changes_nothing_is_taken(field: str, value: Any) -> None:
    plain = openai_wire.parse_request(json.dumps({"model": "m", "messages": HELLO}).encode())
    assert openai_wire.parse_request(json.dumps({"model": "m", "messages": HELLO, field: value}).encode()) == plain


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logprobs", True),
        ("top_logprobs", 2),
        ("logit_bias", {"1": 1}),
        ("n", 2),
        ("reasoning_effort", "low"),
        ("verbosity", "low"),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "x"}),
        ("functions", [{"name": "a"}]),
        ("function_call", {"name": "a"}),
        ("web_search_options", {}),
        ("top_k", 5),
        ("extra_body", {}),
        ("anything", 1),
    ],
)
def test_what_would_change_something_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(GatewayRefusal, match=field) as caught:
        openai_wire.parse_request(json.dumps({"model": "m", "messages": HELLO, field: value}).encode())
    assert (caught.value.status, caught.value.body["error"]["param"]) == (400, field)


OTHER = {"name": "other", "parameters": {"type": "object", "properties": {}}}
BOTH = [{"type": "function", "function": ADD}, {"type": "function", "function": OTHER}]
NAMED = {"type": "function", "name": "add"}


@pytest.mark.parametrize(
    ("choice", "shown", "mode"),
    [
        (None, ["add", "other"], "auto"),
        ("auto", ["add", "other"], "auto"),
        ("any", ["add", "other"], "required"),
        ("required", ["add", "other"], "required"),
        ({"type": "auto"}, ["add", "other"], "auto"),
        ({"type": "none"}, ["add", "other"], "none"),
        ({"type": "required"}, ["add", "other"], "required"),
        ({"type": "function", "function": {"name": "add"}}, ["add"], "required"),
        ({"function": {"name": "other"}}, ["other"], "required"),
        (NAMED, ["add"], "required"),
        ({"type": "tool", "name": "add"}, ["add"], "required"),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}}, ["add"], "auto"),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "function": {"name": "other"}}]},
            ["other"], "required",
        ),
    ],
)  # fmt: skip
def test_which_tools_may_be_called(choice: Any, shown: list[str], mode: str) -> None:
    body = {"model": "m", "messages": HELLO, "tools": BOTH, "tool_choice": choice}
    found = openai_wire.parse_request(json.dumps(body).encode())
    assert ([tool.name for tool in found.tools], found.options.tool_choice) == (shown, mode)


@pytest.mark.parametrize(
    "choice",
    ["add", 5, [], {}, {"type": "function"}, {"type": "function", "function": {"name": "none"}}, {"type": "custom"},
     {"type": "allowed_tools"}, {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}},
     {"type": "allowed_tools", "allowed_tools": {"mode": "maybe", "tools": [NAMED]}}, {"type": ["auto"]}],
)  # fmt: skip
def test_choices_that_are_none(choice: Any) -> None:
    body = {"model": "m", "messages": HELLO, "tools": BOTH, "tool_choice": choice}
    with pytest.raises(GatewayRefusal, match="`tool_choice`") as caught:
        openai_wire.parse_request(json.dumps(body).encode())
    assert caught.value.body["error"]["param"] == "tool_choice"


@pytest.mark.parametrize(
    ("parameters", "read"),
    [
        ({"properties": {}}, {"type": "object", "properties": {}}),
        ({}, {"type": "object", "properties": {}}),
        (None, {"type": "object", "properties": {}}),
        ({"type": ["object", "null"]}, {"type": "object"}),
        ({"$ref": "#/$defs/a", "$defs": {"a": {}}}, {"type": "object", "$ref": "#/$defs/a", "$defs": {"a": {}}}),
    ],
)
def test_parameters_without_a_type(parameters: Any, read: dict[str, Any]) -> None:
    tool = {"type": "function", "function": {"name": "a", "parameters": parameters, "strict": True}}
    found = openai_wire.parse_request(json.dumps({"model": "m", "messages": HELLO, "tools": [tool]}).encode())
    assert found.tools[0].parameters == read


CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
FRAMEWORKS: dict[str, list[dict[str, Any]]] = {
    # The dump of an answer, as openai's library prints it, and as instructor sends it back to have it mended.
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
def test_messages_of_frameworks(name: str) -> None:
    body = json.dumps({"model": "m", "messages": FRAMEWORKS[name], "tools": BOTH}).encode()
    found = openai_wire.parse_request(b"\xef\xbb\xbf" + body)
    assert len(found.messages) == len(FRAMEWORKS[name])
    if name == "parts anywhere":
        assert [one.content for one in found.messages] == ["x", "a\nb\nc", "x", "x"]
    if name == "parsed arguments":
        assert found.messages[1].tool_calls[0].arguments == '{"a":1}'
    if name == "a refusal":
        assert found.messages[1].content == "No."


def test_half_an_emoji_in_a_request() -> None:
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
async def test_structured_output_of_frameworks(served: GatewayClient, fields: dict[str, Any]) -> None:
    """What instructor's default mode, and LangChain's `with_structured_output` in both of its methods, send."""
    call = ModelToolCall(id="c1", name="Answer", arguments='{"text":"hi"}')
    served.calls.parts = [build_reply('{"text":"hi"}', (call,) if "tools" in fields else (), "stop")]
    status, _, told = await served.post({"model": "small", "messages": HELLO, **fields})
    assert status == 200, told
    _, _, specs, options = served.calls.asked[-1]
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
            "'image_url'",
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
def test_what_cannot_be_done_is_refused_with_a_reason(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(GatewayRefusal, match=word) as caught:
        openai_wire.parse_request(json.dumps({"model": "m", "messages": HELLO, **fields}).encode())
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "body", [b"", b"[1]", b"{", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"messages":' + b"[" * 5000]
)
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(GatewayRefusal) as caught:
        openai_wire.parse_request(body)
    assert caught.value.status == 400


async def test_the_models_of_the_manifest_and_no_others(served: GatewayClient) -> None:
    served.calls.script_text("ok")
    assert [one.id async for one in served.client.models.list()] == ["small", "large"]
    assert (await served.client.models.retrieve("large")).id == "large"
    with pytest.raises(openai.NotFoundError) as caught:
        await served.client.models.retrieve("other")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError) as caught:
        await served.ask_chat(model="other")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert served.calls.asked == []
    await served.ask_chat(model="large")
    assert served.calls.asked


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
async def test_everything_else_is_not_there(served: GatewayClient, method: str, path: str, status: int) -> None:
    code, headers, told = await served.send(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert code == status
    assert told["error"].keys() == {"message", "type", "param", "code"}
    assert headers["server"] == "paddock"
    assert served.calls.asked == []


@pytest.mark.parametrize(
    ("error", "status", "code", "again"),
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
async def test_errors_are_told_in_openai_s_shape_and_no_more_than_concerns_the_agent(
    served: GatewayClient, error: Exception | None, status: int, code: str, again: str | None, stream: bool
) -> None:
    served.calls.parts = [] if error is None else [error]
    got, headers, told = await served.post({"model": "small", "messages": HELLO, "stream": stream})
    assert (got, told["error"]["code"]) == (status, code)
    assert headers.get("x-should-retry") == again
    assert headers.get("retry-after") == ("3" if status == 429 else None)
    everything = json.dumps([headers, told])
    assert KEY not in everything
    assert "10.0.0.5" not in everything
    assert "Traceback" not in everything
    if code in ("refused_by_provider", "budget_exceeded"):
        assert str(error) in told["error"]["message"]

    # The same, after a part of the answer was sent.
    served.calls.parts.insert(0, TextDelta("begun"))
    seen = []
    with pytest.raises(openai.APIError) as caught:
        async for chunk in await served.ask_chat(stream=True):
            seen.append(chunk.choices[0].delta.content)
    assert seen == ["", "begun"]
    assert isinstance(caught.value.body, dict)
    assert caught.value.body["code"] == code
    assert KEY not in str(caught.value) + str(caught.value.body)


async def test_the_library_does_not_try_again_what_costs_too_much(served: GatewayClient) -> None:
    served.calls.parts = [DomainError("budget_exceeded", "The budget is spent.")]
    for error, tries in ((DomainError("budget_exceeded", "Spent."), 1), (ModelError("unavailable", "x", 0.01), 3)):
        served.calls.parts, served.calls.asked = [error], []
        with pytest.raises(openai.APIStatusError):
            await served.client.with_options(max_retries=2).chat.completions.create(model="small", messages=HELLO)
        assert len(served.calls.asked) == tries


async def test_nothing_of_a_request_s_head_goes_any_further(served: GatewayClient) -> None:
    """The signature of `Calls` says so; here for whoever widens it."""
    served.calls.script_text("ok")
    told, _, _ = await served.post(
        {"model": "small", "messages": HELLO},
        Authorization="Bearer smuggled",
        X_API_Key="smuggled",
        OpenAI_Organization="smuggled",
        X_Forwarded_Host="smuggled",
        Cookie="smuggled",
    )
    assert told == 200
    assert "smuggled" not in repr(served.calls.asked)


async def test_whoever_hangs_up_ends_the_call_at_once(served: GatewayClient) -> None:
    served.calls.script_text(*["x"] * 1000)
    served.calls.delay = 0.05
    for stream in (True, False):
        reader, writer = await served.open_connection()
        body = json.dumps({"model": "small", "messages": HELLO, "stream": stream}).encode()
        writer.write(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        await wait_until(lambda: served.calls.running == 1)
        if stream:
            await reader.readline()
        writer.close()
        await wait_until(lambda: served.calls.running == 0, 1)


async def test_the_end_of_a_run_ends_its_calls_before_anything_else() -> None:
    calls = ScriptedCalls()
    calls.script_text(*["x"] * 1000)
    calls.delay = 0.05
    before = asyncio.all_tasks()
    async with serve_scripted(calls) as served:
        asking = [asyncio.create_task(served.ask_chat(stream=number % 2 == 0)) for number in range(5)]
        await wait_until(lambda: calls.running == 5)
    assert (calls.running, calls.closed) == (0, 5)
    await asyncio.gather(*asking, return_exceptions=True)
    await wait_until(lambda: asyncio.all_tasks() <= before)


async def test_a_call_is_cancelled_once_however_often_it_is_given_up() -> None:
    """It settles what was used while the client is gone, and then the run as well."""
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
    async with serve_scripted(calls) as served:
        asked = await served.ask_chat(stream=True)
        await anext(asked)
        await asked.close()
        await asyncio.sleep(0.1)
    assert settled.is_set()


async def test_a_client_that_does_not_read_stops_the_model() -> None:
    async with serve_scripted(ScriptedCalls(), GatewayLimits(write_timeout=0.5)) as served:
        served.calls.endless = True
        with socket.create_connection(("127.0.0.1", served.port)) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            body = json.dumps({"model": "small", "messages": HELLO, "stream": True}).encode()
            client.sendall(
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
            )
            await wait_until(lambda: served.calls.running == 1)
            await asyncio.sleep(0.2)
            # It waits for room meanwhile rather than holding what nobody takes.
            assert served.calls.running == 1
            await wait_until(lambda: served.calls.running == 0, 3)


async def test_large_bodies_are_refused_before_they_are_held(served: GatewayClient) -> None:
    status, _, told = await served.send(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000000\r\nConnection: close\r\n\r\n"
    )
    assert (status, told["error"]["code"]) == (413, "too_large")
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    status, _, told = await served.send(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
        chunk * 70 + b"0\r\n\r\n",
    )
    assert (status, told["error"]["code"]) == (413, "too_large")
    status, _, told = await served.post(b"\x1f\x8b" + b"\0" * 100, Content_Encoding="gzip")
    assert status == 415
    served.calls.script_text("ok")
    most = {"model": "small", "messages": [{"role": "user", "content": "x" * (4 << 20)}]}
    most["messages"][0]["content"] = "x" * (USUAL_LIMITS.max_body_bytes - 100)
    assert (await served.post(most))[0] == 200


async def test_all_requests_of_a_run_together_are_bounded(served: GatewayClient) -> None:
    served.calls.script_text("x", "y")
    served.calls.delay = 1.0
    large = {"model": "small", "messages": [{"role": "user", "content": "x" * (USUAL_LIMITS.max_body_bytes - 100)}]}
    told = await asyncio.gather(*(served.post(large) for _ in range(8)))
    statuses = [status for status, _, _ in told]
    assert 200 in statuses
    assert 429 in statuses
    assert served.calls.most <= USUAL_LIMITS.max_concurrent_bytes // (USUAL_LIMITS.max_body_bytes - 200)


async def test_requests_and_connections_are_bounded_and_none_is_lost(served: GatewayClient) -> None:
    served.calls.script_text("ok")
    served.calls.delay = 0.02
    answers = await asyncio.gather(*(served.ask_chat() for _ in range(150)))
    assert len(answers) == 150
    assert served.calls.most <= USUAL_LIMITS.max_concurrent_requests
    # Whoever holds every connection open, saying nothing, keeps only itself waiting, and not for ever.
    held = [await served.open_connection() for _ in range(USUAL_LIMITS.max_connections + 20)]
    for _, writer in held:
        writer.close()
    assert (await served.ask_chat()).choices[0].message.content == "ok"


async def test_slow_heads_and_bodies_are_hung_up_on() -> None:
    async with serve_scripted(ScriptedCalls(), GatewayLimits(head_timeout=0.3, body_timeout=0.3)) as served:
        for begun in (b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"):
            reader, writer = await served.open_connection()
            writer.write(begun)
            began = time.monotonic()
            # A byte now and then does not help.
            for _ in range(10):
                with contextlib.suppress(ConnectionError):
                    writer.write(b"A" if begun else b"")
                    await writer.drain()
                await asyncio.sleep(0.05)
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 3) == b""
            assert time.monotonic() - began < 3
            writer.close()
        reader, writer = await served.open_connection()
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
async def test_nonsense_is_answered_or_hung_up_on_and_harms_nobody(served: GatewayClient, nonsense: bytes) -> None:
    reader, writer = await served.open_connection()
    writer.write(nonsense)
    writer.write_eof()
    told = await asyncio.wait_for(reader.read(), 5)
    assert told == b"" or b" 400 " in told.split(b"\r\n")[0]
    assert b"Traceback" not in told
    writer.close()
    served.calls.script_text("ok")
    assert (await served.ask_chat()).choices[0].message.content == "ok"


async def test_requests_sent_without_waiting_for_answers_are_not_gathered_without_end(served: GatewayClient) -> None:
    served.calls.script_text(*["x"] * 50)
    served.calls.delay = 0.05
    _, writer = await served.open_connection()
    body = json.dumps({"model": "small", "messages": HELLO}).encode()
    writer.write(
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    )
    more = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n" * 1000
    sent = 0
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            while sent < 200 << 20:
                writer.write(more)
                await writer.drain()
                sent += len(more)
    assert sent < 50 << 20
    writer.transport.abort()
    await wait_until(lambda: served.calls.running == 0)
