"""Call models through pydantic-ai against a server that speaks the providers' APIs: requests, replies and failures."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from aiohttp import web

from domain.llms import (
    ChatMessage,
    ModelCall,
    ModelError,
    ModelOptions,
    ModelTarget,
    ModelToolCall,
    ModelUsage,
    ReasoningDelta,
    ReplyPart,
    TextDelta,
)
from infra.http import Outbound
from infra.llm import PydanticLlm
from tests.support.fake_provider import FakeProvider, ScriptedAnswer, build_call
from tests.support.model_calls import (
    ADD_TOOL,
    ANSWER_SCHEMA,
    CONVERSATION,
    PROVIDER_KEY,
    FakeLocalModel,
    build_model_call,
    collect_error,
    collect_reply,
)
from tests.support.scripted_model import serve_posts

# `openai` uses Responses, the others chat completions.
EACH_API = pytest.mark.parametrize("provider", ["openai", "openai_compatible", "anthropic"])


# Replies.


@EACH_API
async def test_text_is_streamed_with_its_usage(fake_provider: FakeProvider, llm: PydanticLlm, provider: str):
    parts, reply = await collect_reply(llm, build_model_call(fake_provider, provider, text="one two three"))
    assert parts == [TextDelta("one"), TextDelta(" two"), TextDelta(" three")]
    assert reply.message == ChatMessage(role="assistant", content="one two three")
    assert reply.finish == "stop"
    assert reply.usage == ModelUsage(prompt_tokens=3, completion_tokens=3)


@EACH_API
async def test_cached_and_reasoning_tokens_are_included_in_the_totals(
    fake_provider: FakeProvider, llm: PydanticLlm, provider: str
):
    fake_provider.queue_text("yes", thinking="let me see", prompt=100, completion=40, cached=64, reasoning=30)
    parts, reply = await collect_reply(llm, build_model_call(fake_provider, provider))
    assert "".join(part.text for part in parts if isinstance(part, ReasoningDelta)) == "let me see"
    assert reply.message.content == "yes"
    assert reply.usage == ModelUsage(prompt_tokens=100, completion_tokens=40, cached_tokens=64, reasoning_tokens=30)


async def test_missing_usage_is_none(fake_provider: FakeProvider, llm: PydanticLlm):
    fake_provider.queue_text("yes", reports_usage=False)
    _, reply = await collect_reply(llm, build_model_call(fake_provider))
    assert reply.usage is None


@EACH_API
async def test_text_and_parallel_tool_calls_are_read(fake_provider: FakeProvider, llm: PydanticLlm, provider: str):
    fake_provider.queue_text(
        "I add.",
        calls=[
            build_call("add", {"a": 1, "b": 2}, "c1"),
            build_call("add", {"a": 3}, "c2"),
            build_call("add", "", "c3"),
        ],
    )
    _, reply = await collect_reply(llm, build_model_call(fake_provider, provider, tools=(ADD_TOOL,)))
    assert reply.message.content == "I add."
    assert reply.message.tool_calls == (
        ModelToolCall(id="c1", name="add", arguments='{"a": 1, "b": 2}'),
        ModelToolCall(id="c2", name="add", arguments='{"a": 3}'),
        ModelToolCall(id="c3", name="add", arguments="{}"),
    )
    assert reply.finish == "tool_calls"


@EACH_API
async def test_invalid_json_arguments_are_kept_as_written(fake_provider: FakeProvider, llm: PydanticLlm, provider: str):
    fake_provider.queue_tool_call("add", '{"a": 1, "b"', id="c1")
    _, reply = await collect_reply(llm, build_model_call(fake_provider, provider, tools=(ADD_TOOL,)))
    assert reply.message.tool_calls == (ModelToolCall(id="c1", name="add", arguments='{"a": 1, "b"'),)


@EACH_API
@pytest.mark.parametrize("finish", ["length", "content_filter"])
async def test_finish_reason_is_reported(fake_provider: FakeProvider, llm: PydanticLlm, provider: str, finish: str):
    fake_provider.queue_text("so far", finish=finish)
    _, reply = await collect_reply(llm, build_model_call(fake_provider, provider))
    assert reply.finish == finish


async def test_reasoning_between_tags_is_not_text(fake_provider: FakeProvider, llm: PydanticLlm):
    fake_provider.queue_answer(ScriptedAnswer(tokens=["<think>", "hm", "</think>", "Four."]))
    parts, reply = await collect_reply(llm, build_model_call(fake_provider))
    assert ReasoningDelta("hm") in parts
    assert reply.message.content == "Four."


# Requests.


async def test_conversation_with_tools_in_openai_chat_format(fake_provider: FakeProvider, llm: PydanticLlm):
    _, reply = await collect_reply(llm, build_model_call(fake_provider, messages=CONVERSATION, tools=(ADD_TOOL,)))
    assert reply.message.content == "and now"
    body = fake_provider.requests[-1].body
    assert [(item["role"], item.get("content")) for item in body["messages"]] == [
        ("system", "Be brief."),
        ("user", "add"),
        ("assistant", "Adding."),
        ("tool", "3"),
        ("tool", "no"),
        ("user", "and now"),
    ]
    tool_calls = body["messages"][2]["tool_calls"]
    assert [(item["id"], item["function"]["name"]) for item in tool_calls] == [("c1", "add"), ("c2", "add")]
    assert json.loads(tool_calls[0]["function"]["arguments"]) == {"a": 1, "b": 2}
    assert json.loads(tool_calls[1]["function"]["arguments"]) == {"INVALID_JSON": '{"a": '}
    assert [item.get("tool_call_id") for item in body["messages"][3:5]] == ["c1", "c2"]
    [tool] = body["tools"]
    assert tool["function"] == {"name": "add", "description": "Adds two numbers.", "parameters": ADD_TOOL.parameters}
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert fake_provider.requests[-1].path == "/v1/chat/completions"
    assert fake_provider.requests[-1].api_key == PROVIDER_KEY


async def test_conversation_with_tools_in_anthropic_format(fake_provider: FakeProvider, llm: PydanticLlm):
    await collect_reply(llm, build_model_call(fake_provider, "anthropic", messages=CONVERSATION, tools=(ADD_TOOL,)))
    request = fake_provider.requests[-1]
    assert request.path == "/v1/messages"
    assert request.headers["x-api-key"] == PROVIDER_KEY
    assert "authorization" not in request.headers
    assert json.dumps(request.body["system"]).count("Be brief.") == 1
    user, assistant, results = request.body["messages"]
    assert user["role"] == "user"
    assert [block["type"] for block in assistant["content"]] == ["text", "tool_use", "tool_use"]
    assert assistant["content"][1]["input"] == {"a": 1, "b": 2}
    assert assistant["content"][2]["input"] == {"INVALID_JSON": '{"a": '}
    assert [(item["type"], item.get("tool_use_id")) for item in results["content"]] == [
        ("tool_result", "c1"),
        ("tool_result", "c2"),
        ("text", None),
    ]
    [tool] = request.body["tools"]
    assert (tool["name"], tool["input_schema"]) == ("add", ADD_TOOL.parameters)


async def test_options_override_parameters_and_unknown_parameters_are_sent(
    fake_provider: FakeProvider, llm: PydanticLlm
):
    parameters = {"temperature": 0.1, "top_p": 0.2, "stop": "END", "num_ctx": 8192, "extra_body": {"mirostat": 1}}
    options = ModelOptions(
        temperature=0.7, max_tokens=5, seed=3, presence_penalty=0.5, frequency_penalty=0.25, tool_choice="required"
    )
    call = build_model_call(
        fake_provider, "openai_compatible", parameters=parameters, options=options, tools=(ADD_TOOL,)
    )
    await collect_reply(llm, call)
    body = fake_provider.requests[-1].body
    assert body["temperature"] == 0.7
    assert body["top_p"] == 0.2
    assert body["stop"] == ["END"]
    assert body["max_tokens"] == 5
    assert (body["seed"], body["presence_penalty"], body["frequency_penalty"]) == (3, 0.5, 0.25)
    assert body["tool_choice"] == "required"
    assert (body["num_ctx"], body["mirostat"]) == (8192, 1)


async def test_options_in_anthropic_format(fake_provider: FakeProvider, llm: PydanticLlm):
    options = ModelOptions(temperature=0.7, max_tokens=5, stop=("END",), tool_choice="none", parallel_tool_calls=False)
    _, reply = await collect_reply(
        llm, build_model_call(fake_provider, "anthropic", model="claude-older", options=options, text="a b c d e f g")
    )
    body = fake_provider.requests[-1].body
    assert (body["temperature"], body["max_tokens"], body["stop_sequences"]) == (0.7, 5, ["END"])
    assert reply.finish == "length"


@pytest.mark.parametrize("parameters", [{"model": "dearer"}, {"extra_body": {"messages": []}}, {"n": 5}])
async def test_parameters_cannot_change_the_call(
    fake_provider: FakeProvider, llm: PydanticLlm, parameters: dict[str, Any]
):
    error = await collect_error(llm, build_model_call(fake_provider, parameters=parameters))
    assert error.kind == "refused"
    assert fake_provider.requests == []


async def test_schema_in_openai_chat_format(fake_provider: FakeProvider, llm: PydanticLlm):
    await collect_reply(
        llm, build_model_call(fake_provider, "openai_compatible", options=ModelOptions(schema=ANSWER_SCHEMA))
    )
    response_format = fake_provider.requests[-1].body["response_format"]
    assert response_format["type"] == "json_schema"
    assert response_format["json_schema"]["name"] == "Weather"
    assert response_format["json_schema"]["schema"]["required"] == ["city", "degrees"]
    assert set(response_format["json_schema"]["schema"]["properties"]) == {"city", "degrees"}
    # A schema that cannot be strict is sent unchanged: an open object stays open.
    open_schema = {"type": "object", "properties": {"any": {"type": "object"}, "word": {"type": "string"}}}
    await collect_reply(
        llm, build_model_call(fake_provider, "openai_compatible", options=ModelOptions(schema=open_schema))
    )
    response_format = fake_provider.requests[-1].body["response_format"]["json_schema"]
    assert "additionalProperties" not in json.dumps(response_format["schema"])
    assert response_format["strict"] is False


async def test_schema_is_described_in_words_where_the_api_has_none(fake_provider: FakeProvider, llm: PydanticLlm):
    await collect_reply(
        llm,
        build_model_call(fake_provider, "anthropic", model="claude-older", options=ModelOptions(schema=ANSWER_SCHEMA)),
    )
    assert "degrees" in json.dumps(fake_provider.requests[-1].body["system"])
    await collect_reply(
        llm,
        build_model_call(fake_provider, "deepseek", model="deepseek-chat", options=ModelOptions(schema=ANSWER_SCHEMA)),
    )
    assert fake_provider.requests[-1].body["response_format"] == {"type": "json_object"}
    assert "degrees" in json.dumps(fake_provider.requests[-1].body["messages"])
    await collect_reply(
        llm,
        build_model_call(
            fake_provider, "anthropic", model="claude-opus-4-8", options=ModelOptions(schema=ANSWER_SCHEMA)
        ),
    )
    assert "degrees" in json.dumps(
        fake_provider.requests[-1].body.get("output_config") or fake_provider.requests[-1].body["output_format"]
    )


@pytest.mark.parametrize("provider", ["openai", "openai_compatible", "deepseek", "ollama", "databricks", "local"])
async def test_providers_with_openai_api_are_called(fake_provider: FakeProvider, provider: str):
    local_model = FakeLocalModel(fake_provider.url)
    llm = PydanticLlm(Outbound(() if provider == "local" else ("127.0.0.1",)), local_model)
    try:
        connection_counts = []
        async for _ in llm.stream(build_model_call(fake_provider, provider, text="hello")):
            connection_counts.append(local_model.connection_count)
        assert set(connection_counts) == {1 if provider == "local" else 0}
        assert local_model.connection_count == 0
        await collect_reply(llm, build_model_call(fake_provider, provider, text="again"))
    finally:
        await llm.close()


@pytest.mark.parametrize("provider", ["databricks", "openai_compatible", "wishful"])
async def test_unknown_providers_and_those_without_a_url_are_refused(llm: PydanticLlm, provider: str):
    call = ModelCall(target=ModelTarget(name="r", provider=provider, model="m"), messages=())
    error = await collect_error(llm, call)
    assert error.kind == "refused"
    assert provider in error.message


@EACH_API
async def test_environment_variables_do_not_reach_a_provider(
    fake_provider: FakeProvider, llm: PydanticLlm, provider: str, monkeypatch: pytest.MonkeyPatch
):
    leaks = {
        "OPENAI_API_KEY": "leak-1",
        "OPENAI_ADMIN_KEY": "leak-2",
        "OPENAI_ORG_ID": "leak-3",
        "OPENAI_PROJECT_ID": "leak-4",
        "OPENAI_BASE_URL": "http://leak-5.invalid",
        "OPENAI_CUSTOM_HEADERS": "X-Own: leak-6\nAuthorization: Bearer leak-6b",
        "ANTHROPIC_API_KEY": "leak-7",
        "ANTHROPIC_AUTH_TOKEN": "leak-8",
        "ANTHROPIC_BASE_URL": "http://leak-9.invalid",
        "ANTHROPIC_CUSTOM_HEADERS": "X-Own: leak-10",
        "HTTP_PROXY": "http://leak-11.invalid",
        "ALL_PROXY": "http://leak-12.invalid",
        "OLLAMA_BASE_URL": "http://leak-13.invalid",
        "DEEPSEEK_API_KEY": "leak-14",
    }
    for name, value in leaks.items():
        monkeypatch.setenv(name, value)
    call = build_model_call(fake_provider, provider)
    call_without_key = ModelCall(
        target=ModelTarget(name="r", provider=provider, model="m", base_url=fake_provider.url), messages=call.messages
    )
    await collect_reply(llm, call_without_key)
    await collect_reply(llm, call)
    for request in fake_provider.requests:
        assert "leak" not in json.dumps([request.headers, request.body])
        host_fields = ("lang", "package-version", "os", "arch", "runtime", "runtime-version")
        assert not {f"x-stainless-{word}" for word in host_fields} & request.headers.keys()
    assert [request.api_key for request in fake_provider.requests] == [None, PROVIDER_KEY]
    assert not {"authorization", "x-api-key"} & fake_provider.requests[0].headers.keys()


# Failures.


@EACH_API
@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "refused"),
        (401, "unauthorized"),
        (402, "refused"),
        (403, "unauthorized"),
        (404, "refused"),
        (408, "timeout"),
        (422, "refused"),
        (429, "rate_limited"),
        (500, "unavailable"),
        (502, "unavailable"),
        (503, "unavailable"),
        (529, "unavailable"),
    ],
)
async def test_statuses_become_error_kinds(
    fake_provider: FakeProvider, llm: PydanticLlm, provider: str, status: int, kind: str
):
    fake_provider.queue_failure(status, message=f"You sent {PROVIDER_KEY}, which is wrong")
    error = await collect_error(llm, build_model_call(fake_provider, provider))
    assert error.kind == kind
    assert "You sent ***" in error.message
    assert error.retry_after is None
    assert len(fake_provider.requests) == 1  # no retry


@EACH_API
@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after_is_read(fake_provider: FakeProvider, llm: PydanticLlm, provider: str, status: int):
    fake_provider.queue_failure(status, retry_after=7)
    assert (await collect_error(llm, build_model_call(fake_provider, provider))).retry_after == 7.0
    fake_provider.queue_failure(
        status, retry_after=format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    )
    assert 80 < ((await collect_error(llm, build_model_call(fake_provider, provider))).retry_after or 0) <= 90
    fake_provider.queue_failure(status, retry_after="soon")
    assert (await collect_error(llm, build_model_call(fake_provider, provider))).retry_after is None


@EACH_API
async def test_key_in_an_error_is_masked(fake_provider: FakeProvider, llm: PydanticLlm, provider: str):
    fake_provider.accepted_keys = {"another"}
    error = await collect_error(llm, build_model_call(fake_provider, provider))
    assert error.kind == "unauthorized"


@EACH_API
async def test_unreachable_server_is_unavailable(fake_provider: FakeProvider, llm: PydanticLlm, provider: str):
    target = ModelTarget(name="r", provider=provider, model="m", base_url="http://user:pass@127.0.0.1:1/v1")
    error = await collect_error(llm, ModelCall(target=target, messages=(ChatMessage(role="user", content="x"),)))
    assert error.kind == "unavailable"
    assert "127.0.0.1:1" in error.message
    assert "pass" not in error.message


@EACH_API
async def test_disallowed_address_is_not_called(fake_provider: FakeProvider, provider: str):
    llm = PydanticLlm(Outbound(), FakeLocalModel())
    error = await collect_error(llm, build_model_call(fake_provider, provider))
    assert error.kind == "not_allowed"
    assert not error.is_transient
    assert fake_provider.requests == []
    await llm.close()


@EACH_API
async def test_answer_cut_in_the_middle_is_reported(fake_provider: FakeProvider, llm: PydanticLlm, provider: str):
    fake_provider.queue_cut(after_tokens=3)
    texts: list[ReplyPart] = []
    with pytest.raises(ModelError) as raised:
        async for part in llm.stream(build_model_call(fake_provider, provider)):
            if isinstance(part, TextDelta):
                texts.append(part)
    assert raised.value.kind == "cut_off"
    assert texts == [TextDelta("w0"), TextDelta(" w1"), TextDelta(" w2")]


@EACH_API
async def test_connection_closed_before_the_answer_is_unavailable(
    fake_provider: FakeProvider, llm: PydanticLlm, provider: str
):
    fake_provider.queue_cut(after_tokens=0)
    assert (await collect_error(llm, build_model_call(fake_provider, provider))).kind == "unavailable"


@EACH_API
async def test_stream_without_a_finish_reason_is_cut_off(fake_provider: FakeProvider, llm: PydanticLlm, provider: str):
    fake_provider.queue_unfinished("so far")
    assert (await collect_error(llm, build_model_call(fake_provider, provider))).kind == "cut_off"


@EACH_API
async def test_malformed_stream_is_reported(fake_provider: FakeProvider, llm: PydanticLlm, provider: str):
    fake_provider.queue_malformed()
    assert (await collect_error(llm, build_model_call(fake_provider, provider))).kind == "malformed"


@EACH_API
async def test_empty_stream_is_malformed(fake_provider: FakeProvider, llm: PydanticLlm, provider: str):
    fake_provider.queue_empty()
    assert (await collect_error(llm, build_model_call(fake_provider, provider))).kind == "malformed"


@EACH_API
@pytest.mark.parametrize("after", [0, 2])
async def test_silence_times_out(fake_provider: FakeProvider, llm: PydanticLlm, provider: str, after: int):
    fake_provider.queue_hang(after_tokens=after)
    error = await collect_error(llm, build_model_call(fake_provider, provider, timeout=0.3))
    assert error.kind == "timeout"
    assert "0.3 seconds" in error.message
    await fake_provider.wait_for_hang_up()


@EACH_API
async def test_slow_stream_does_not_time_out(fake_provider: FakeProvider, llm: PydanticLlm, provider: str):
    fake_provider.queue_slow(6, 0.1)
    _, reply = await collect_reply(llm, build_model_call(fake_provider, provider, timeout=0.4))
    assert reply.usage == ModelUsage(prompt_tokens=2, completion_tokens=6)


@EACH_API
async def test_client_that_stops_reading_hangs_up(fake_provider: FakeProvider, llm: PydanticLlm, provider: str):
    parts = llm.stream(build_model_call(fake_provider, provider, model="tokens-100000"))
    async for _ in parts:
        break
    await parts.aclose()
    assert (await fake_provider.wait_for_hang_up(timeout=1)).sent_tokens < 100000

    async def read_stream() -> None:
        async for _ in llm.stream(build_model_call(fake_provider, provider, model="hang")):
            pass

    task = asyncio.create_task(read_stream())
    await fake_provider.wait_for_request(2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await fake_provider.wait_for_hang_up(2, timeout=1)


async def test_connections_are_reused(fake_provider: FakeProvider, llm: PydanticLlm):
    ports: set[int] = set()
    fake_provider.add_rule(lambda request: ports.add(request.client_port) or None)
    for _ in range(5):
        await collect_reply(llm, build_model_call(fake_provider))
    assert len(ports) == 1


async def test_two_hundred_concurrent_calls_complete(fake_provider: FakeProvider):
    llm = PydanticLlm(Outbound(), FakeLocalModel(fake_provider.url))
    try:
        replies = await asyncio.gather(
            *(
                collect_reply(llm, build_model_call(fake_provider, "local", model="tokens-20-delay-5"))
                for _ in range(200)
            )
        )
        assert all(reply.usage == ModelUsage(prompt_tokens=2, completion_tokens=20) for _, reply in replies)
    finally:
        await llm.close()


# Servers with unusual behaviour.


@asynccontextmanager
async def serve_events(*events: Any, kind: str = "text/event-stream") -> AsyncIterator[str]:
    """Serve exactly these events (text unchanged); yields the base URL."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": kind})
        await response.prepare(request)
        for event in events:
            if isinstance(event, float):
                await asyncio.sleep(event)
            else:
                await response.write(
                    (event if isinstance(event, str) else f"data: {json.dumps(event)}\r\n\r\n").encode()
                )
        return response

    async with serve_posts(answer, handler_cancellation=True) as url:
        yield url


def build_delta(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def build_function_call(index: int | None, id_: str | None, name: str | None, arguments: Any) -> dict[str, Any]:
    return {"index": index, "id": id_, "function": {"name": name, "arguments": arguments}}


def build_call_to(url: str, **more: Any) -> ModelCall:
    target = ModelTarget(name="r", provider="openai_compatible", model="m", base_url=url)
    return ModelCall(target=target, messages=(ChatMessage(role="user", content="x"),), **more)


async def test_cumulative_usage_is_not_added_up(llm: PydanticLlm):
    usages = [{"prompt_tokens": 10, "completion_tokens": n, "total_tokens": 10 + n} for n in (1, 2, 3)]
    events = [{**build_delta(content="a"), "usage": usage} for usage in usages]
    async with serve_events(*events, build_delta("stop"), "data: [DONE]\n\n") as url:
        _, reply = await collect_reply(llm, build_call_to(url))
    assert reply.usage == ModelUsage(prompt_tokens=10, completion_tokens=3)


async def test_tool_calls_without_indexes_or_ids_are_separated(llm: PydanticLlm):
    for events in (
        [build_function_call(None, "c1", "a", '{"x": 1}'), build_function_call(None, "c2", "b", {"y": 2})],
        [build_function_call(0, "c1", "a", '{"x": 1}'), build_function_call(0, "c2", "b", '{"y": 2}')],
        [
            build_function_call(0, None, "a", '{"x"'),
            build_function_call(0, None, None, ": 1}"),
            build_function_call(1, None, "b", '{"y": 2}'),
        ],
    ):
        async with serve_events(
            *(build_delta(tool_calls=[function_call]) for function_call in events), build_delta("stop")
        ) as url:
            _, reply = await collect_reply(llm, build_call_to(url))
        assert [(tool_call.name, json.loads(tool_call.arguments)) for tool_call in reply.message.tool_calls] == [
            ("a", {"x": 1}),
            ("b", {"y": 2}),
        ]
        assert all(tool_call.id for tool_call in reply.message.tool_calls)
        assert reply.finish == "tool_calls"


async def test_refusal_is_text_with_finish_content_filter(llm: PydanticLlm):
    async with serve_events(build_delta(refusal="I will not."), build_delta("stop")) as url:
        _, reply = await collect_reply(llm, build_call_to(url))
    assert (reply.message.content, reply.finish) == ("I will not.", "content_filter")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, "rate_limited"),
        ({"error": {"message": "overloaded", "code": 503}}, "unavailable"),
        ({"error": "out of memory"}, "unavailable"),
        ({"error": {"message": "too long", "type": "invalid_request_error"}}, "refused"),
    ],
)
async def test_errors_in_the_middle_of_a_stream_have_kinds(llm: PydanticLlm, error: Any, kind: str):
    async with serve_events(build_delta(content="so far"), error) as url:
        model_error = await collect_error(llm, build_call_to(url))
    assert model_error.kind == kind


async def test_keep_alive_comments_do_not_reset_the_timeout(llm: PydanticLlm):
    async with serve_events(*[": keep-alive\n\n", 0.1] * 10, build_delta("stop", content="late")) as url:
        assert (await collect_error(llm, build_call_to(url, timeout=0.5))).kind == "timeout"
        _, reply = await collect_reply(llm, build_call_to(url, timeout=5.0))
    assert reply.message.content == "late"


async def test_server_that_keeps_the_connection_open_after_the_end(llm: PydanticLlm):
    async with serve_events(build_delta("stop", content="done"), "data: [DONE]\n\n", 30.0) as url:
        async with asyncio.timeout(5):
            _, reply = await collect_reply(llm, build_call_to(url))
    assert reply.message.content == "done"


@pytest.mark.parametrize("body", ["<html>Bad gateway</html>", '{"choices": []}', "data: 7\n\n", "data: {}\n\n"])
async def test_page_instead_of_an_answer_is_malformed(llm: PydanticLlm, body: str):
    async with serve_events(body, kind="text/html") as url:
        model_error = await collect_error(llm, build_call_to(url))
    assert model_error.kind in ("malformed", "cut_off")


async def test_answer_without_end_is_stopped(llm: PydanticLlm):
    async with serve_events(*["x" * (1 << 20)] * 12) as url:
        assert (await collect_error(llm, build_call_to(url))).kind == "malformed"


def test_import_loads_no_heavy_module():
    heavy = "pydantic_ai pydantic openai anthropic httpx httpx2 genai_prices"
    code = f"import sys, infra.llm; print(*(m for m in {heavy.split()!r} if m in sys.modules))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == ""
