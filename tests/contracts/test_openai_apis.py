"""Which of OpenAI's two interfaces a call goes over, and what each is asked."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from msgspec.structs import replace

from domain.llms import ModelApi, ModelCall, ModelOptions
from infra.llm import PydanticLlm, providers
from tests.contracts.test_llm import ADD, CONVERSATION, KEY, SCHEMA, all_of, asks, fails, llm, served
from tests.support.fake_provider import FakeProvider

__all__ = ["llm", "served"]
RESPONSES, CHAT = "/v1/responses", "/v1/chat/completions"


@pytest.fixture(autouse=True)
def forgotten() -> None:
    """Ports are used again: what was learned of a server that is gone must not count for another."""
    providers._chat_only_urls.clear()


def told(served: FakeProvider, provider: str = "openai", api: ModelApi | None = None, **more: Any) -> ModelCall:
    ask = asks(served, provider, **more)
    return replace(ask, target=replace(ask.target, api=api))


@pytest.mark.parametrize(
    ("provider", "api", "path"),
    [
        ("openai", None, RESPONSES),
        ("openai", "responses", RESPONSES),
        ("openai", "chat", CHAT),
        ("openai_compatible", None, CHAT),
        ("openai_compatible", "responses", RESPONSES),
        ("databricks", None, CHAT),
        ("deepseek", None, CHAT),
        ("ollama", "responses", RESPONSES),
    ],
)
async def test_the_switch(served: FakeProvider, llm: PydanticLlm, provider: str, api: Any, path: str):
    _, reply = await all_of(llm, told(served, provider=provider, api=api))
    assert reply.message.content == "hello there"
    assert [asked.path for asked in served.requests] == [path]
    assert served.requests[0].api_key == KEY


@pytest.mark.parametrize(
    "more",
    [
        {"options": ModelOptions(stop=("x",))},
        {"options": ModelOptions(seed=7)},
        {"options": ModelOptions(presence_penalty=0.5)},
        {"options": ModelOptions(max_tokens=5)},
        {"parameters": {"stop": "x"}},
        {"parameters": {"logit_bias": {"1": 1}}},
        {"parameters": {"frequency_penalty": 1}},
        {"parameters": {"max_completion_tokens": 5}},
    ],
)
async def test_what_only_chat_completions_have_goes_there(served: FakeProvider, llm: PydanticLlm, more: dict[str, Any]):
    await all_of(llm, told(served, **more))
    assert [asked.path for asked in served.requests] == [CHAT]
    refused = await fails(llm, told(served, api="responses", **more))
    assert refused.kind == "refused"
    assert "set `api` of" in refused.message
    assert refused.message.endswith(" to chat.")
    assert len(served.requests) == 1


async def test_options_that_say_nothing_decide_nothing(served: FakeProvider, llm: PydanticLlm):
    options = ModelOptions(presence_penalty=0.0, frequency_penalty=0, temperature=0.5, top_p=0.5, max_tokens=50)
    await all_of(llm, told(served, options=options, model="gpt-4o"))
    [asked] = served.requests
    assert asked.path == RESPONSES
    assert (asked.body["temperature"], asked.body["top_p"], asked.body["max_output_tokens"]) == (0.5, 0.5, 50)
    assert not {"presence_penalty", "frequency_penalty", "max_tokens"} & asked.body.keys()
    assert asked.body["store"] is False


async def test_a_conversation_with_tools_on_responses(served: FakeProvider, llm: PydanticLlm):
    options = ModelOptions(tool_choice="required", parallel_tool_calls=False)
    await all_of(llm, told(served, messages=CONVERSATION, tools=(ADD,), options=options))
    body = served.requests[-1].body
    kinds = [(item.get("type", "message"), item.get("role"), item.get("call_id")) for item in body["input"]]
    assert kinds == [
        ("message", "system", None),
        ("message", "user", None),
        ("message", "assistant", None),
        ("function_call", None, "c1"),
        ("function_call", None, "c2"),
        ("function_call_output", None, "c1"),
        ("function_call_output", None, "c2"),
        ("message", "user", None),
    ]
    [tool] = body["tools"]
    assert (tool["type"], tool["name"], tool["parameters"], tool["strict"]) == (
        "function",
        "add",
        ADD.parameters,
        False,
    )
    assert (body["tool_choice"], body["parallel_tool_calls"], body["stream"]) == ("required", False, True)


async def test_a_schema_and_effort_on_responses(served: FakeProvider, llm: PydanticLlm):
    parameters = {
        "reasoning_effort": "low",
        "verbosity": "low",
        "metadata": {"a": "b"},
        "extra_body": {"top_logprobs": 0},
    }
    await all_of(llm, told(served, model="gpt-5", options=ModelOptions(schema=SCHEMA), parameters=parameters))
    body = served.requests[-1].body
    assert body["text"]["format"]["type"] == "json_schema"
    assert set(body["text"]["format"]["schema"]["properties"]) == {"city", "degrees"}
    assert body["text"]["verbosity"] == "low"
    assert body["reasoning"]["effort"] == "low"
    assert body["metadata"] == {"a": "b"}
    assert body["include"] == ["reasoning.encrypted_content"]


@pytest.fixture
async def old(served: FakeProvider) -> AsyncIterator[tuple[FakeProvider, list[str], list[Any]]]:
    """A server that knows chat completions alone: it says so in the way of the second list's item."""
    paths: list[str] = []
    answers: list[Any] = [{"detail": "Not Found"}]

    async def answer(request: web.Request) -> web.StreamResponse:
        paths.append(request.path)
        if not request.path.endswith("/chat/completions"):
            body = answers[0]
            text = body if isinstance(body, str) else json.dumps(body)
            return web.Response(
                status=404, text=text, content_type="text/plain" if text is body else "application/json"
            )
        return await served.serve_request(request)

    app = web.Application()
    app.router.add_post("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    before, served.url = served.url, f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/v1"  # type: ignore[union-attr]
    yield served, paths, answers
    served.url = before
    await runner.cleanup()


@pytest.mark.parametrize(
    "words",
    [
        {"detail": "Not Found"},
        "404 page not found",
        {"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}},
        {},
        "",
    ],
)
async def test_a_server_that_has_never_heard_of_responses(old, llm: PydanticLlm, words: Any):
    served, paths, answers = old
    answers[0] = words
    for _ in range(2):
        _, reply = await all_of(llm, told(served))
        assert reply.message.content == "hello there"
    # It is remembered.
    assert paths == [RESPONSES, CHAT, CHAT]
    error = await fails(llm, told(served, api="responses"))
    assert error.kind == "refused"


async def test_a_model_that_is_not_known_is_asked_for_once(old, llm: PydanticLlm):
    served, paths, answers = old
    answers[0] = {"error": {"message": "The model `m` does not exist", "code": "model_not_found"}}
    assert "does not exist" in (await fails(llm, told(served))).message
    answers[0] = {"error": {"message": "The model `m` does not exist"}}
    assert "does not exist" in (await fails(llm, told(served))).message
    assert paths == [RESPONSES, RESPONSES]
