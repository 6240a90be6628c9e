"""Models through pydantic-ai, against a server that speaks the providers' wires: what is asked, what comes, what fails."""

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
    ModelReply,
    ModelTarget,
    ModelToolCall,
    ModelUsage,
    ReasoningDelta,
    ReplyPart,
    ReportedUsage,
    TextDelta,
    ToolCallDelta,
    ToolSpec,
)
from domain.shared.secrets import Secret
from infra.http import Outbound
from infra.llm import PydanticLlm
from infra.llm.local_model import LocalServer
from tests.support.fake_provider import FakeProvider, ScriptedAnswer, build_call, run_fake_provider

KEY = "sk-very-secret-0123456789"
# `openai` is asked over Responses, others over chat completions.
EACH = pytest.mark.parametrize("provider", ["openai", "openai_compatible", "anthropic"])
ADD = ToolSpec(
    name="add",
    description="Adds two numbers.",
    parameters={"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
)


class Here:
    """The local model, as far as a caller sees it."""

    def __init__(self, url: str = "") -> None:
        self.url, self.held, self.most = url, 0, 0

    @asynccontextmanager
    async def acquire_server(self) -> AsyncIterator[LocalServer]:
        self.held += 1
        try:
            yield LocalServer(base_url=self.url, api_key=None)
        finally:
            self.held -= 1


@pytest.fixture
async def served() -> AsyncIterator[FakeProvider]:
    async with run_fake_provider() as one:
        yield one


@pytest.fixture
async def llm(served: FakeProvider) -> AsyncIterator[PydanticLlm]:
    one = PydanticLlm(Outbound(("127.0.0.1",)), Here(served.url))
    yield one
    await one.close()


def asks(
    served: FakeProvider, provider: str = "openai_compatible", model: str = "m", said: str = "hello there", **more: Any
) -> ModelCall:
    target = ModelTarget(
        name="registered",
        provider=provider,
        model=model,
        base_url=None if provider == "local" else served.url,
        api_key=Secret(KEY),
        parameters=more.pop("parameters", {}),
    )
    return ModelCall(target=target, messages=more.pop("messages", (ChatMessage(role="user", content=said),)), **more)


async def all_of(llm: PydanticLlm, ask: ModelCall) -> tuple[list[ReplyPart], ModelReply]:
    parts = [part async for part in llm.stream(ask)]
    *rest, reply = [part for part in parts if not isinstance(part, ReportedUsage)]
    assert isinstance(reply, ModelReply)
    assert not any(isinstance(part, ModelReply) for part in rest)
    # What was shown piece by piece is what the whole says.
    assert "".join(part.text for part in rest if isinstance(part, TextDelta)) == reply.message.content
    for index, made in enumerate(reply.message.tool_calls):
        pieces = [part for part in rest if isinstance(part, ToolCallDelta) and part.index == index]
        assert (pieces[0].id, pieces[0].name) == (made.id, made.name)
        assert all(piece.id is None and piece.name is None for piece in pieces[1:])
        assert "".join(piece.arguments for piece in pieces) == made.arguments
    return rest, reply


async def fails(llm: PydanticLlm, ask: ModelCall) -> ModelError:
    with pytest.raises(ModelError) as caught:
        async for _ in llm.stream(ask):
            pass
    error = caught.value
    assert KEY not in error.message
    assert KEY not in repr(error)
    assert error.message[-1] in ".…" or len(error.message) > 20
    return error


# What comes


@EACH
async def test_text_comes_piece_by_piece_and_whole_with_what_was_used(
    served: FakeProvider, llm: PydanticLlm, provider: str
):
    parts, reply = await all_of(llm, asks(served, provider, said="one two three"))
    assert parts == [TextDelta("one"), TextDelta(" two"), TextDelta(" three")]
    assert reply.message == ChatMessage(role="assistant", content="one two three")
    assert reply.finish == "stop"
    assert reply.usage == ModelUsage(prompt_tokens=3, completion_tokens=3)


@EACH
async def test_cached_and_reasoning_tokens_are_parts_of_the_others(
    served: FakeProvider, llm: PydanticLlm, provider: str
):
    served.queue_text("yes", thinking="let me see", prompt=100, completion=40, cached=64, reasoning=30)
    parts, reply = await all_of(llm, asks(served, provider))
    assert "".join(part.text for part in parts if isinstance(part, ReasoningDelta)) == "let me see"
    assert reply.message.content == "yes"
    assert reply.usage == ModelUsage(prompt_tokens=100, completion_tokens=40, cached_tokens=64, reasoning_tokens=30)


async def test_no_usage_is_none(served: FakeProvider, llm: PydanticLlm):
    served.queue_text("yes", reports_usage=False)
    _, reply = await all_of(llm, asks(served))
    assert reply.usage is None


@EACH
async def test_text_and_parallel_calls(served: FakeProvider, llm: PydanticLlm, provider: str):
    served.queue_text(
        "I add.",
        calls=[
            build_call("add", {"a": 1, "b": 2}, "c1"),
            build_call("add", {"a": 3}, "c2"),
            build_call("add", "", "c3"),
        ],
    )
    _, reply = await all_of(llm, asks(served, provider, tools=(ADD,)))
    assert reply.message.content == "I add."
    assert reply.message.tool_calls == (
        ModelToolCall(id="c1", name="add", arguments='{"a": 1, "b": 2}'),
        ModelToolCall(id="c2", name="add", arguments='{"a": 3}'),
        ModelToolCall(id="c3", name="add", arguments="{}"),
    )
    assert reply.finish == "tool_calls"


@EACH
async def test_arguments_that_are_no_json_come_as_the_model_wrote_them(
    served: FakeProvider, llm: PydanticLlm, provider: str
):
    served.queue_tool_call("add", '{"a": 1, "b"', id="c1")
    _, reply = await all_of(llm, asks(served, provider, tools=(ADD,)))
    assert reply.message.tool_calls == (ModelToolCall(id="c1", name="add", arguments='{"a": 1, "b"'),)


@EACH
@pytest.mark.parametrize("finish", ["length", "content_filter"])
async def test_why_it_ended(served: FakeProvider, llm: PydanticLlm, provider: str, finish: str):
    served.queue_text("so far", finish=finish)
    _, reply = await all_of(llm, asks(served, provider))
    assert reply.finish == finish


async def test_thoughts_between_tags_are_no_text(served: FakeProvider, llm: PydanticLlm):
    served.queue_answer(ScriptedAnswer(tokens=["<think>", "hm", "</think>", "Four."]))
    parts, reply = await all_of(llm, asks(served))
    assert ReasoningDelta("hm") in parts
    assert reply.message.content == "Four."


# What is asked


async def test_a_conversation_with_tools_on_openais_wire(served: FakeProvider, llm: PydanticLlm):
    _, reply = await all_of(llm, asks(served, messages=CONVERSATION, tools=(ADD,)))
    assert reply.message.content == "and now"
    body = served.requests[-1].body
    assert [(one["role"], one.get("content")) for one in body["messages"]] == [
        ("system", "Be brief."),
        ("user", "add"),
        ("assistant", "Adding."),
        ("tool", "3"),
        ("tool", "no"),
        ("user", "and now"),
    ]
    made = body["messages"][2]["tool_calls"]
    assert [(one["id"], one["function"]["name"]) for one in made] == [("c1", "add"), ("c2", "add")]
    assert json.loads(made[0]["function"]["arguments"]) == {"a": 1, "b": 2}
    assert json.loads(made[1]["function"]["arguments"]) == {"INVALID_JSON": '{"a": '}
    assert [one.get("tool_call_id") for one in body["messages"][3:5]] == ["c1", "c2"]
    [tool] = body["tools"]
    assert tool["function"] == {"name": "add", "description": "Adds two numbers.", "parameters": ADD.parameters}
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert served.requests[-1].path == "/v1/chat/completions"
    assert served.requests[-1].api_key == KEY


async def test_a_conversation_with_tools_on_anthropics_wire(served: FakeProvider, llm: PydanticLlm):
    await all_of(llm, asks(served, "anthropic", messages=CONVERSATION, tools=(ADD,)))
    asked = served.requests[-1]
    assert asked.path == "/v1/messages"
    assert asked.headers["x-api-key"] == KEY
    assert "authorization" not in asked.headers
    assert json.dumps(asked.body["system"]).count("Be brief.") == 1
    user, assistant, results = asked.body["messages"]
    assert user["role"] == "user"
    assert [block["type"] for block in assistant["content"]] == ["text", "tool_use", "tool_use"]
    assert assistant["content"][1]["input"] == {"a": 1, "b": 2}
    assert assistant["content"][2]["input"] == {"INVALID_JSON": '{"a": '}
    assert [(one["type"], one.get("tool_use_id")) for one in results["content"]] == [
        ("tool_result", "c1"),
        ("tool_result", "c2"),
        ("text", None),
    ]
    [tool] = asked.body["tools"]
    assert (tool["name"], tool["input_schema"]) == ("add", ADD.parameters)


CONVERSATION = (
    ChatMessage(role="system", content="Be brief."),
    ChatMessage(role="user", content="add"),
    ChatMessage(
        role="assistant",
        content="Adding.",
        tool_calls=(
            ModelToolCall(id="c1", name="add", arguments='{"a": 1, "b": 2}'),
            ModelToolCall(id="c2", name="add", arguments='{"a": '),
        ),
    ),
    ChatMessage(role="tool", tool_call_id="c1", content="3"),
    ChatMessage(role="tool", tool_call_id="c2", content="no"),
    ChatMessage(role="user", content="and now"),
)


async def test_options_stand_above_parameters_and_what_nobody_knows_goes_out_as_it_is(
    served: FakeProvider, llm: PydanticLlm
):
    parameters = {"temperature": 0.1, "top_p": 0.2, "stop": "END", "num_ctx": 8192, "extra_body": {"mirostat": 1}}
    options = ModelOptions(
        temperature=0.7, max_tokens=5, seed=3, presence_penalty=0.5, frequency_penalty=0.25, tool_choice="required"
    )
    ask = asks(served, "openai_compatible", parameters=parameters, options=options, tools=(ADD,))
    await all_of(llm, ask)
    body = served.requests[-1].body
    assert body["temperature"] == 0.7
    assert body["top_p"] == 0.2
    assert body["stop"] == ["END"]
    assert body["max_tokens"] == 5
    assert (body["seed"], body["presence_penalty"], body["frequency_penalty"]) == (3, 0.5, 0.25)
    assert body["tool_choice"] == "required"
    assert (body["num_ctx"], body["mirostat"]) == (8192, 1)


async def test_options_on_anthropics_wire(served: FakeProvider, llm: PydanticLlm):
    options = ModelOptions(temperature=0.7, max_tokens=5, stop=("END",), tool_choice="none", parallel_tool_calls=False)
    _, reply = await all_of(llm, asks(served, "anthropic", model="claude-older", options=options, said="a b c d e f g"))
    body = served.requests[-1].body
    assert (body["temperature"], body["max_tokens"], body["stop_sequences"]) == (0.7, 5, ["END"])
    assert reply.finish == "length"


@pytest.mark.parametrize("parameters", [{"model": "dearer"}, {"extra_body": {"messages": []}}, {"n": 5}])
async def test_parameters_cannot_make_it_another_call(
    served: FakeProvider, llm: PydanticLlm, parameters: dict[str, Any]
):
    error = await fails(llm, asks(served, parameters=parameters))
    assert error.kind == "refused"
    assert served.requests == []


SCHEMA = {
    "title": "Weather",
    "type": "object",
    "properties": {"city": {"type": "string"}, "degrees": {"type": "number"}},
    "required": ["city", "degrees"],
}


async def test_a_schema_on_openais_wire(served: FakeProvider, llm: PydanticLlm):
    await all_of(llm, asks(served, "openai_compatible", options=ModelOptions(schema=SCHEMA)))
    form = served.requests[-1].body["response_format"]
    assert form["type"] == "json_schema"
    assert form["json_schema"]["name"] == "Weather"
    assert form["json_schema"]["schema"]["required"] == ["city", "degrees"]
    assert set(form["json_schema"]["schema"]["properties"]) == {"city", "degrees"}
    # One that cannot be strict goes out as it is: an open object stays open.
    loose = {"type": "object", "properties": {"any": {"type": "object"}, "word": {"type": "string"}}}
    await all_of(llm, asks(served, "openai_compatible", options=ModelOptions(schema=loose)))
    form = served.requests[-1].body["response_format"]["json_schema"]
    assert "additionalProperties" not in json.dumps(form["schema"])
    assert form["strict"] is False


async def test_a_schema_where_it_can_only_be_asked_for_in_words(served: FakeProvider, llm: PydanticLlm):
    await all_of(llm, asks(served, "anthropic", model="claude-older", options=ModelOptions(schema=SCHEMA)))
    assert "degrees" in json.dumps(served.requests[-1].body["system"])
    await all_of(llm, asks(served, "deepseek", model="deepseek-chat", options=ModelOptions(schema=SCHEMA)))
    assert served.requests[-1].body["response_format"] == {"type": "json_object"}
    assert "degrees" in json.dumps(served.requests[-1].body["messages"])
    await all_of(llm, asks(served, "anthropic", model="claude-opus-4-8", options=ModelOptions(schema=SCHEMA)))
    assert "degrees" in json.dumps(
        served.requests[-1].body.get("output_config") or served.requests[-1].body["output_format"]
    )


@pytest.mark.parametrize("provider", ["openai", "openai_compatible", "deepseek", "ollama", "databricks", "local"])
async def test_every_provider_of_openais_wire(served: FakeProvider, provider: str):
    here = Here(served.url)
    llm = PydanticLlm(Outbound(() if provider == "local" else ("127.0.0.1",)), here)
    try:
        held = []
        async for _ in llm.stream(asks(served, provider, said="hello")):
            held.append(here.held)
        assert set(held) == {1 if provider == "local" else 0}
        assert here.held == 0
        await all_of(llm, asks(served, provider, said="again"))
    finally:
        await llm.close()


@pytest.mark.parametrize("provider", ["databricks", "openai_compatible", "wishful"])
async def test_providers_without_an_address_and_unknown_ones_are_refused(llm: PydanticLlm, provider: str):
    ask = ModelCall(target=ModelTarget(name="r", provider=provider, model="m"), messages=())
    error = await fails(llm, ask)
    assert error.kind == "refused"
    assert provider in error.message


@EACH
async def test_nothing_of_the_environment_reaches_a_provider(
    served: FakeProvider, llm: PydanticLlm, provider: str, monkeypatch: pytest.MonkeyPatch
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
    ask = asks(served, provider)
    keyless = ModelCall(
        target=ModelTarget(name="r", provider=provider, model="m", base_url=served.url), messages=ask.messages
    )
    await all_of(llm, keyless)
    await all_of(llm, ask)
    for asked in served.requests:
        assert "leak" not in json.dumps([asked.headers, asked.body])
        of_host = ("lang", "package-version", "os", "arch", "runtime", "runtime-version")
        assert not {f"x-stainless-{word}" for word in of_host} & asked.headers.keys()
    assert [asked.api_key for asked in served.requests] == [None, KEY]
    assert not {"authorization", "x-api-key"} & served.requests[0].headers.keys()


# What fails


@EACH
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
async def test_statuses(served: FakeProvider, llm: PydanticLlm, provider: str, status: int, kind: str):
    served.queue_failure(status, message=f"You sent {KEY}, which is wrong")
    error = await fails(llm, asks(served, provider))
    assert error.kind == kind
    assert "You sent ***" in error.message
    assert error.retry_after is None
    assert len(served.requests) == 1  # nothing is tried twice


@EACH
@pytest.mark.parametrize("status", [429, 503])
async def test_when_to_come_back(served: FakeProvider, llm: PydanticLlm, provider: str, status: int):
    served.queue_failure(status, retry_after=7)
    assert (await fails(llm, asks(served, provider))).retry_after == 7.0
    served.queue_failure(status, retry_after=format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True))
    assert 80 < ((await fails(llm, asks(served, provider))).retry_after or 0) <= 90
    served.queue_failure(status, retry_after="soon")
    assert (await fails(llm, asks(served, provider))).retry_after is None


@EACH
async def test_a_key_that_is_echoed(served: FakeProvider, llm: PydanticLlm, provider: str):
    served.accepted_keys = {"another"}
    error = await fails(llm, asks(served, provider))
    assert error.kind == "unauthorized"


@EACH
async def test_nobody_listens(served: FakeProvider, llm: PydanticLlm, provider: str):
    target = ModelTarget(name="r", provider=provider, model="m", base_url="http://user:pass@127.0.0.1:1/v1")
    error = await fails(llm, ModelCall(target=target, messages=(ChatMessage(role="user", content="x"),)))
    assert error.kind == "unavailable"
    assert "127.0.0.1:1" in error.message
    assert "pass" not in error.message


@EACH
async def test_an_address_that_must_not_be_reached(served: FakeProvider, provider: str):
    llm = PydanticLlm(Outbound(), Here())
    error = await fails(llm, asks(served, provider))
    assert error.kind == "not_allowed"
    assert not error.is_transient
    assert served.requests == []
    await llm.close()


@EACH
async def test_cut_in_the_middle(served: FakeProvider, llm: PydanticLlm, provider: str):
    served.queue_cut(after_tokens=3)
    texts: list[ReplyPart] = []
    with pytest.raises(ModelError) as caught:
        async for part in llm.stream(asks(served, provider)):
            if isinstance(part, TextDelta):
                texts.append(part)
    assert caught.value.kind == "cut_off"
    assert texts == [TextDelta("w0"), TextDelta(" w1"), TextDelta(" w2")]


@EACH
async def test_cut_before_it_began(served: FakeProvider, llm: PydanticLlm, provider: str):
    served.queue_cut(after_tokens=0)
    assert (await fails(llm, asks(served, provider))).kind == "unavailable"


@EACH
async def test_an_end_without_a_reason(served: FakeProvider, llm: PydanticLlm, provider: str):
    served.queue_unfinished("so far")
    assert (await fails(llm, asks(served, provider))).kind == "cut_off"


@EACH
async def test_garbage(served: FakeProvider, llm: PydanticLlm, provider: str):
    served.queue_malformed()
    assert (await fails(llm, asks(served, provider))).kind == "malformed"


@EACH
async def test_a_stream_of_nothing(served: FakeProvider, llm: PydanticLlm, provider: str):
    served.queue_empty()
    assert (await fails(llm, asks(served, provider))).kind == "malformed"


@EACH
@pytest.mark.parametrize("after", [0, 2])
async def test_silence(served: FakeProvider, llm: PydanticLlm, provider: str, after: int):
    served.queue_hang(after_tokens=after)
    error = await fails(llm, asks(served, provider, timeout=0.3))
    assert error.kind == "timeout"
    assert "0.3 seconds" in error.message
    await served.wait_for_hang_up()


@EACH
async def test_slow_is_not_silent(served: FakeProvider, llm: PydanticLlm, provider: str):
    served.queue_slow(6, 0.1)
    _, reply = await all_of(llm, asks(served, provider, timeout=0.4))
    assert reply.usage == ModelUsage(prompt_tokens=2, completion_tokens=6)


@EACH
async def test_whoever_stops_listening_hangs_up(served: FakeProvider, llm: PydanticLlm, provider: str):
    parts = llm.stream(asks(served, provider, model="tokens-100000"))
    async for _ in parts:
        break
    await parts.aclose()
    assert (await served.wait_for_hang_up(timeout=1)).sent_tokens < 100000

    async def listen() -> None:
        async for _ in llm.stream(asks(served, provider, model="hang")):
            pass

    task = asyncio.create_task(listen())
    await served.wait_for_request(2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await served.wait_for_hang_up(2, timeout=1)


async def test_connections_are_used_again(served: FakeProvider, llm: PydanticLlm):
    ports: set[int] = set()
    served.add_rule(lambda asked: ports.add(asked.client_port) or None)
    for _ in range(5):
        await all_of(llm, asks(served))
    assert len(ports) == 1


async def test_many_at_once(served: FakeProvider):
    llm = PydanticLlm(Outbound(), Here(served.url))
    try:
        replies = await asyncio.gather(
            *(all_of(llm, asks(served, "local", model="tokens-20-delay-5")) for _ in range(200))
        )
        assert all(reply.usage == ModelUsage(prompt_tokens=2, completion_tokens=20) for _, reply in replies)
    finally:
        await llm.close()


# Servers that have habits of their own


@asynccontextmanager
async def saying(*events: Any, kind: str = "text/event-stream") -> AsyncIterator[str]:
    """A server that answers with just these events (text as it stands); its base URL."""

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

    app = web.Application()
    app.router.add_post("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[union-attr]
    finally:
        await runner.cleanup()


def delta(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def function(index: int | None, id_: str | None, name: str | None, arguments: Any) -> dict[str, Any]:
    return {"index": index, "id": id_, "function": {"name": name, "arguments": arguments}}


def at(url: str, **more: Any) -> ModelCall:
    target = ModelTarget(name="r", provider="openai_compatible", model="m", base_url=url)
    return ModelCall(target=target, messages=(ChatMessage(role="user", content="x"),), **more)


async def test_usage_with_every_chunk_is_the_sum_so_far_and_not_added_up(llm: PydanticLlm):
    sums = [{"prompt_tokens": 10, "completion_tokens": n, "total_tokens": 10 + n} for n in (1, 2, 3)]
    events = [{**delta(content="a"), "usage": one} for one in sums]
    async with saying(*events, delta("stop"), "data: [DONE]\n\n") as url:
        _, reply = await all_of(llm, at(url))
    assert reply.usage == ModelUsage(prompt_tokens=10, completion_tokens=3)


async def test_calls_without_numbers_all_with_the_same_number_or_without_ids(llm: PydanticLlm):
    for events in (
        [function(None, "c1", "a", '{"x": 1}'), function(None, "c2", "b", {"y": 2})],
        [function(0, "c1", "a", '{"x": 1}'), function(0, "c2", "b", '{"y": 2}')],
        [function(0, None, "a", '{"x"'), function(0, None, None, ": 1}"), function(1, None, "b", '{"y": 2}')],
    ):
        async with saying(*(delta(tool_calls=[one]) for one in events), delta("stop")) as url:
            _, reply = await all_of(llm, at(url))
        assert [(one.name, json.loads(one.arguments)) for one in reply.message.tool_calls] == [
            ("a", {"x": 1}),
            ("b", {"y": 2}),
        ]
        assert all(one.id for one in reply.message.tool_calls)
        assert reply.finish == "tool_calls"


async def test_a_refusal_is_shown_and_is_filtered(llm: PydanticLlm):
    async with saying(delta(refusal="I will not."), delta("stop")) as url:
        _, reply = await all_of(llm, at(url))
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
async def test_errors_in_the_middle(llm: PydanticLlm, error: Any, kind: str):
    async with saying(delta(content="so far"), error) as url:
        failed = await fails(llm, at(url))
    assert failed.kind == kind


async def test_signs_of_life_are_no_parts(llm: PydanticLlm):
    async with saying(*[": keep-alive\n\n", 0.1] * 10, delta("stop", content="late")) as url:
        assert (await fails(llm, at(url, timeout=0.5))).kind == "timeout"
        _, reply = await all_of(llm, at(url, timeout=5.0))
    assert reply.message.content == "late"


async def test_a_server_that_does_not_hang_up_after_the_end(llm: PydanticLlm):
    async with saying(delta("stop", content="done"), "data: [DONE]\n\n", 30.0) as url:
        async with asyncio.timeout(5):
            _, reply = await all_of(llm, at(url))
    assert reply.message.content == "done"


@pytest.mark.parametrize("body", ["<html>Bad gateway</html>", '{"choices": []}', "data: 7\n\n", "data: {}\n\n"])
async def test_a_page_instead_of_an_answer(llm: PydanticLlm, body: str):
    async with saying(body, kind="text/html") as url:
        failed = await fails(llm, at(url))
    assert failed.kind in ("malformed", "cut_off")


async def test_an_answer_without_end(llm: PydanticLlm):
    async with saying(*["x" * (1 << 20)] * 12) as url:
        assert (await fails(llm, at(url))).kind == "malformed"


def test_importing_is_light():
    heavy = "pydantic_ai pydantic openai anthropic httpx httpx2 genai_prices"
    code = f"import sys, infra.llm; print(*(m for m in {heavy.split()!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
