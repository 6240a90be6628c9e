"""Choose between OpenAI's Responses and chat completions, and check the request for each."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from msgspec.structs import replace

from domain.llms import ModelApi, ModelCall, ModelOptions
from infra.llm import PydanticLlm, providers
from tests.support.fake_provider import FakeProvider
from tests.support.model_calls import (
    ADD_TOOL,
    ANSWER_SCHEMA,
    CONVERSATION,
    PROVIDER_KEY,
    build_model_call,
    collect_error,
    collect_reply,
)

RESPONSES_PATH, CHAT_PATH = "/v1/responses", "/v1/chat/completions"


@pytest.fixture(autouse=True)
def _forget_chat_only_urls() -> None:
    """Forget the servers without Responses, as their ports are reused by others."""
    providers._chat_only_urls.clear()


def build_call(
    fake_provider: FakeProvider, provider: str = "openai", api: ModelApi | None = None, **more: Any
) -> ModelCall:
    call = build_model_call(fake_provider, provider, **more)
    return replace(call, target=replace(call.target, api=api))


@pytest.mark.parametrize(
    ("provider", "api", "path"),
    [
        ("openai", None, RESPONSES_PATH),
        ("openai", "responses", RESPONSES_PATH),
        ("openai", "chat", CHAT_PATH),
        ("openai_compatible", None, CHAT_PATH),
        ("openai_compatible", "responses", RESPONSES_PATH),
        ("databricks", None, CHAT_PATH),
        ("deepseek", None, CHAT_PATH),
        ("ollama", "responses", RESPONSES_PATH),
    ],
)
async def test_api_setting_selects_the_path(
    fake_provider: FakeProvider, llm: PydanticLlm, provider: str, api: Any, path: str
):
    _, reply = await collect_reply(llm, build_call(fake_provider, provider=provider, api=api))
    assert reply.message.content == "hello there"
    assert [request.path for request in fake_provider.requests] == [path]
    assert fake_provider.requests[0].api_key == PROVIDER_KEY


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
async def test_options_of_chat_completions_alone_select_its_path(
    fake_provider: FakeProvider, llm: PydanticLlm, more: dict[str, Any]
):
    await collect_reply(llm, build_call(fake_provider, **more))
    assert [request.path for request in fake_provider.requests] == [CHAT_PATH]
    model_error = await collect_error(llm, build_call(fake_provider, api="responses", **more))
    assert model_error.kind == "refused"
    assert "set `api` of" in model_error.message
    assert model_error.message.endswith(" to chat.")
    assert len(fake_provider.requests) == 1


async def test_neutral_options_do_not_select_chat_completions(fake_provider: FakeProvider, llm: PydanticLlm):
    options = ModelOptions(presence_penalty=0.0, frequency_penalty=0, temperature=0.5, top_p=0.5, max_tokens=50)
    await collect_reply(llm, build_call(fake_provider, options=options, model="gpt-4o"))
    [request] = fake_provider.requests
    assert request.path == RESPONSES_PATH
    assert (request.body["temperature"], request.body["top_p"], request.body["max_output_tokens"]) == (0.5, 0.5, 50)
    assert not {"presence_penalty", "frequency_penalty", "max_tokens"} & request.body.keys()
    assert request.body["store"] is False


async def test_conversation_with_tools_in_responses_format(fake_provider: FakeProvider, llm: PydanticLlm):
    options = ModelOptions(tool_choice="required", parallel_tool_calls=False)
    await collect_reply(llm, build_call(fake_provider, messages=CONVERSATION, tools=(ADD_TOOL,), options=options))
    body = fake_provider.requests[-1].body
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
        ADD_TOOL.parameters,
        False,
    )
    assert (body["tool_choice"], body["parallel_tool_calls"], body["stream"]) == ("required", False, True)


async def test_schema_and_effort_in_responses_format(fake_provider: FakeProvider, llm: PydanticLlm):
    parameters = {
        "reasoning_effort": "low",
        "verbosity": "low",
        "metadata": {"a": "b"},
        "extra_body": {"top_logprobs": 0},
    }
    await collect_reply(
        llm, build_call(fake_provider, model="gpt-5", options=ModelOptions(schema=ANSWER_SCHEMA), parameters=parameters)
    )
    body = fake_provider.requests[-1].body
    assert body["text"]["format"]["type"] == "json_schema"
    assert set(body["text"]["format"]["schema"]["properties"]) == {"city", "degrees"}
    assert body["text"]["verbosity"] == "low"
    assert body["reasoning"]["effort"] == "low"
    assert body["metadata"] == {"a": "b"}
    assert body["include"] == ["reasoning.encrypted_content"]


@pytest.fixture
async def chat_only_server(fake_provider: FakeProvider) -> AsyncIterator[tuple[FakeProvider, list[str], list[Any]]]:
    """Run a server that has chat completions only; the first item of the second list is its answer to other paths."""
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
        return await fake_provider.serve_request(request)

    app = web.Application()
    app.router.add_post("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url_before, fake_provider.url = fake_provider.url, f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}/v1"  # type: ignore[union-attr]
    yield fake_provider, paths, answers
    fake_provider.url = url_before
    await runner.cleanup()


@pytest.mark.parametrize(
    "error_body",
    [
        {"detail": "Not Found"},
        "404 page not found",
        {"error": {"code": 404, "message": "File Not Found", "type": "not_found_error"}},
        {},
        "",
    ],
)
async def test_server_without_responses_is_remembered(chat_only_server, llm: PydanticLlm, error_body: Any):
    fake_provider, paths, answers = chat_only_server
    answers[0] = error_body
    for _ in range(2):
        _, reply = await collect_reply(llm, build_call(fake_provider))
        assert reply.message.content == "hello there"
    # The second call goes to chat completions at once.
    assert paths == [RESPONSES_PATH, CHAT_PATH, CHAT_PATH]
    error = await collect_error(llm, build_call(fake_provider, api="responses"))
    assert error.kind == "refused"


async def test_unknown_model_is_not_retried_on_chat_completions(chat_only_server, llm: PydanticLlm):
    fake_provider, paths, answers = chat_only_server
    answers[0] = {"error": {"message": "The model `m` does not exist", "code": "model_not_found"}}
    assert "does not exist" in (await collect_error(llm, build_call(fake_provider))).message
    answers[0] = {"error": {"message": "The model `m` does not exist"}}
    assert "does not exist" in (await collect_error(llm, build_call(fake_provider))).message
    assert paths == [RESPONSES_PATH, RESPONSES_PATH]
