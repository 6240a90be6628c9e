"""Call models of Azure, Mistral, Groq and OpenRouter, which have chat completions like OpenAI's, on their own wires."""

import json
from typing import Any

import pytest
from msgspec.structs import replace

from domain.llms import (
    ChatMessage,
    EmbeddingCall,
    ModelOptions,
    ModelToolCall,
    ModelUsage,
    ReasoningDelta,
)
from infra.http import Outbound
from infra.llm import PydanticLlm
from tests.support.fake_provider import FakeProvider
from tests.support.model_calls import ADD_TOOL, CONVERSATION, FakeLocalModel, collect_error, collect_reply
from tests.support.provider_targets import (
    PROVIDER_KEYS,
    WireServer,
    build_call,
    format_events,
)

EACH_PROVIDER = pytest.mark.parametrize("provider", ["azure", "mistral", "groq", "openrouter"])
PATHS = {
    "azure": "/openai/v1/chat/completions",
    "mistral": "/v1/chat/completions",
    "groq": "/openai/v1/chat/completions",
    "openrouter": "/api/v1/chat/completions",
}
# Fields of chat completions that Mistral knows: others are refused with a 422.
MISTRAL_FIELDS = {
    *("model", "messages", "stream", "temperature", "top_p", "max_tokens", "stop", "random_seed", "response_format"),
    *("tools", "tool_choice", "presence_penalty", "frequency_penalty", "n", "prediction", "parallel_tool_calls"),
    *("prompt_mode", "reasoning_effort", "safe_prompt", "metadata", "guardrails", "prompt_cache_key"),
}


def build_chunk(finish: str | None = None, **delta: Any) -> dict[str, Any]:
    """Build a chunk of an answer."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1766420335, "model": "m", "choices": [choice]}


@EACH_PROVIDER
async def test_plain_answer_tools_and_key(fake_provider: FakeProvider, llm: PydanticLlm, provider: str):
    fake_provider.queue_text("I add.", calls=[], prompt=100, completion=40, cached=64, reasoning=30)
    call = build_call(provider, fake_provider.root, tools=(ADD_TOOL,), messages=CONVERSATION)
    _, reply = await collect_reply(llm, call)
    assert reply.message.content == "I add."
    if provider != "mistral":  # the provider of this test reports usage only if asked, and Mistral is not asked
        assert reply.usage == ModelUsage(prompt_tokens=100, completion_tokens=40, cached_tokens=64, reasoning_tokens=30)
    [request] = fake_provider.requests
    assert (request.path, request.body["model"], request.body["stream"]) == (PATHS[provider], call.target.model, True)
    key = PROVIDER_KEYS[provider]
    if provider == "azure":
        assert request.headers["api-key"] == key
        assert "authorization" not in request.headers
    else:
        assert request.headers["authorization"] == f"Bearer {key}"
    assert request.body["tools"][0]["function"]["parameters"] == ADD_TOOL.parameters
    fake_provider.queue_tool_call("add", {"a": 1}, id="c9")
    _, reply = await collect_reply(llm, call)
    assert [(tool_call.name, tool_call.arguments) for tool_call in reply.message.tool_calls] == [("add", '{"a": 1}')]


@EACH_PROVIDER
async def test_environment_does_not_reach_the_provider(
    fake_provider: FakeProvider, llm: PydanticLlm, provider: str, monkeypatch: pytest.MonkeyPatch
):
    names = """AZURE_OPENAI_API_KEY AZURE_OPENAI_AD_TOKEN AZURE_OPENAI_ENDPOINT OPENAI_API_VERSION OPENAI_API_KEY
    OPENAI_BASE_URL OPENAI_ORG_ID OPENAI_PROJECT_ID OPENAI_ADMIN_KEY MISTRAL_API_KEY GROQ_API_KEY GROQ_BASE_URL
    OPENROUTER_API_KEY OPENROUTER_APP_URL OPENROUTER_APP_TITLE HTTP_PROXY HTTPS_PROXY ALL_PROXY http_proxy"""
    for number, name in enumerate(names.split()):
        monkeypatch.setenv(name, f"http://leak-{number}.invalid")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Own: leak\napi-key: leak")
    call = build_call(provider, fake_provider.root)
    await collect_reply(llm, replace(call, target=replace(call.target, api_key=None)))
    await collect_reply(llm, call)
    for request in fake_provider.requests:
        assert "leak" not in json.dumps([request.path, request.headers, request.body])
        host_fields = ("lang", "package-version", "os", "arch", "runtime", "runtime-version")
        assert not {f"x-stainless-{word}" for word in host_fields} & request.headers.keys()
    assert not {"authorization", "api-key", "x-api-key"} & fake_provider.requests[0].headers.keys()


@EACH_PROVIDER
@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, "unauthorized"), (400, "refused"), (429, "rate_limited"), (500, "unavailable"), (503, "unavailable")],
)
async def test_failures_have_kinds_and_no_key(
    fake_provider: FakeProvider, llm: PydanticLlm, provider: str, status: int, kind: str
):
    key = PROVIDER_KEYS[provider]
    fake_provider.queue_failure(status, message=f"Wrong: {key}.", retry_after=7 if status == 429 else None)
    error = await collect_error(llm, build_call(provider, fake_provider.root))
    assert (error.kind, error.retry_after) == (kind, 7.0 if status == 429 else None)
    assert "Wrong: ***." in error.message
    assert key not in error.message


@EACH_PROVIDER
async def test_answers_with_the_key_are_masked_and_cut_streams_noticed(
    fake_provider: FakeProvider, llm: PydanticLlm, provider: str
):
    fake_provider.queue_text(f"your key is {PROVIDER_KEYS[provider]} indeed")
    _, reply = await collect_reply(llm, build_call(provider, fake_provider.root))
    assert reply.message.content == "your key is *** indeed"
    fake_provider.queue_cut(3)
    assert (await collect_error(llm, build_call(provider, fake_provider.root))).kind == "cut_off"
    fake_provider.queue_unfinished()
    assert (await collect_error(llm, build_call(provider, fake_provider.root))).kind == "cut_off"


@EACH_PROVIDER
async def test_private_address_is_refused(fake_provider: FakeProvider, provider: str):
    guarded = PydanticLlm(Outbound(), FakeLocalModel())
    try:
        error = await collect_error(guarded, build_call(provider, fake_provider.root))
    finally:
        await guarded.close()
    assert error.kind == "not_allowed"
    assert fake_provider.requests == []


# Azure.


@pytest.mark.parametrize(
    ("address", "parameters", "api", "path", "version"),
    [
        ("", {}, None, "/openai/v1/chat/completions", None),
        ("/", {}, "chat", "/openai/v1/chat/completions", None),
        ("/openai", {}, None, "/openai/v1/chat/completions", None),
        ("/openai/v1/", {}, None, "/openai/v1/chat/completions", None),
        ("/gateway", {"api_version": "preview"}, None, "/gateway/openai/v1/chat/completions", "preview"),
        ("", {}, "responses", "/openai/v1/responses", None),
        ("", {"api_version": "2024-10-21"}, None, "/openai/deployments/my%20gpt/chat/completions", "2024-10-21"),
        ("", {"api_version": "2025-04-01-preview"}, "responses", "/openai/responses", "2025-04-01-preview"),
    ],
)
async def test_azure_addresses(
    llm: PydanticLlm, wire: WireServer, address: str, parameters: Any, api: Any, path: str, version: str | None
):
    wire.queue_error(404, {"error": {"code": "DeploymentNotFound", "message": "The API deployment does not exist."}})
    target = {"model": "my gpt", "parameters": parameters, "api": api}
    error = await collect_error(llm, build_call("azure", wire.url + address, target=target))
    assert (error.kind, "The API deployment does not exist." in error.message) == ("refused", True)
    [request] = wire.requests
    assert (request.path, request.query.get("api-version")) == (path, version)
    assert request.headers["api-key"] == PROVIDER_KEYS["azure"]
    assert "api_version" not in request.body


async def test_azure_stream_with_filter_results(llm: PydanticLlm, wire: WireServer):
    safe = {"hate": {"filtered": False, "severity": "safe"}, "jailbreak": {"filtered": False, "detected": False}}
    usage = {
        "completion_tokens": 11,
        "completion_tokens_details": {"accepted_prediction_tokens": 0, "reasoning_tokens": 0},
        "prompt_tokens": 2006,
        "prompt_tokens_details": {"audio_tokens": 0, "cached_tokens": 1920},
        "total_tokens": 2017,
    }
    prompt_filter = [{"prompt_index": 0, "content_filter_results": safe}]
    wire.queue_events(
        format_events(
            {"choices": [], "created": 0, "id": "", "model": "", "object": "", "prompt_filter_results": prompt_filter},
            build_chunk(role="assistant", content="", refusal=None),
            build_chunk(content="Hello"),
            build_chunk("stop"),
            {"choices": [], "created": 1, "id": "c1", "model": "m", "usage": usage},
            "[DONE]",
        )
    )
    _, reply = await collect_reply(llm, build_call("azure", wire.url, options=ModelOptions(max_tokens=50)))
    assert (reply.message.content, reply.finish) == ("Hello", "stop")
    assert reply.usage == ModelUsage(prompt_tokens=2006, completion_tokens=11, cached_tokens=1920)
    assert wire.requests[0].body["max_completion_tokens"] == 50


async def test_azure_errors_on_its_wire(llm: PydanticLlm, wire: WireServer):
    wire.queue_error(401, {"error": {"code": "401", "message": "Access denied due to invalid subscription key."}})
    error = await collect_error(llm, build_call("azure", wire.url))
    assert (error.kind, "invalid subscription key" in error.message) == ("unauthorized", True)
    wire.answers.clear()
    message = "The response was filtered due to the prompt triggering Azure OpenAI's content management policy."
    inner = {"code": "ResponsibleAIPolicyViolation", "content_filter_result": {"hate": {"filtered": True}}}
    body = {"message": message, "type": None, "param": "prompt", "code": "content_filter", "status": 400}
    wire.queue_error(400, {"error": {**body, "innererror": inner}})
    error = await collect_error(llm, build_call("azure", wire.url))
    assert (error.kind, "filter" in error.message) == ("refused", True)
    wire.answers.clear()
    message = "This model's maximum context length is 128000 tokens. However, your messages resulted in 250000 tokens."
    body = {"message": message, "type": "invalid_request_error", "param": "messages", "code": "context_length_exceeded"}
    wire.queue_error(400, {"error": body})
    error = await collect_error(llm, build_call("azure", wire.url))
    assert (error.kind, "maximum context length" in error.message) == ("refused", True)
    wire.answers.clear()
    message = "Requests to the ChatCompletions_Create Operation have exceeded token rate limit. Please retry after 26 seconds."
    wire.queue_error(429, {"error": {"code": "429", "message": message}}, retry_after="26")
    error = await collect_error(llm, build_call("azure", wire.url))
    assert (error.kind, error.retry_after) == ("rate_limited", 26.0)


# Mistral.


async def test_mistral_gets_only_fields_that_it_knows(llm: PydanticLlm, wire: WireServer):
    wire.queue_events(format_events(build_chunk("stop", content="yes"), "[DONE]"))
    options = ModelOptions(
        temperature=0.5,
        max_tokens=9,
        seed=3,
        stop=("END",),
        tool_choice="required",
        parallel_tool_calls=False,
        presence_penalty=0.1,
        frequency_penalty=0.2,
    )
    messages = CONVERSATION
    await collect_reply(llm, build_call("mistral", wire.url, tools=(ADD_TOOL,), options=options, messages=messages))
    body = wire.requests[0].body
    assert body.keys() <= MISTRAL_FIELDS
    assert (body["random_seed"], body["max_tokens"], body["tool_choice"]) == (3, 9, "any")
    # Roles in an order that Mistral accepts, and ids of nine letters and digits.
    roles = [message["role"] for message in body["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "tool", "assistant", "user"]
    ids = [tool_call["id"] for tool_call in body["messages"][2]["tool_calls"]]
    assert all(len(id_) == 9 and id_.isalnum() for id_ in ids)
    assert [message["tool_call_id"] for message in body["messages"][3:5]] == ids
    allowed = {"role", "content", "tool_calls", "tool_call_id", "name", "prefix"}
    assert all(message.keys() <= allowed for message in body["messages"])
    # What Mistral does not know is left out, or refused where it would change the answer.
    options = ModelOptions(logit_bias={"1": 1}, verbosity="low", service_tier="auto")
    await collect_reply(llm, build_call("mistral", wire.url, options=options))
    assert wire.requests.pop().body.keys() <= MISTRAL_FIELDS
    error = await collect_error(llm, build_call("mistral", wire.url, options=replace(options, must_apply=True)))
    assert (error.kind, error.option) == ("refused", "logit_bias")
    # With `none`, no tools are sent.
    options = ModelOptions(tool_choice="none")
    await collect_reply(llm, build_call("mistral", wire.url, tools=(ADD_TOOL,), options=options))
    assert not {"tools", "tool_choice"} & wire.requests[1].body.keys()


async def test_mistral_thinking_is_shown_and_given_back(llm: PydanticLlm, wire: WireServer):
    thoughts = [{"type": "thinking", "thinking": [{"type": "text", "text": text}]} for text in ("Okay", ", add.")]
    tool_call = {"id": "D681PevKs", "function": {"name": "add", "arguments": '{"a": 1}'}, "index": 0}
    usage = {"prompt_tokens": 94, "total_tokens": 116, "completion_tokens": 22}
    usage["prompt_tokens_details"] = {"cached_tokens": 64}
    last = build_chunk("tool_calls", content="", tool_calls=[tool_call])
    wire.queue_events(
        format_events(
            build_chunk(role="assistant", content=""),
            *(build_chunk(content=[thought]) for thought in thoughts),
            build_chunk(content=[{"type": "text", "text": "Adding."}]),
            {**last, "usage": usage},
            "[DONE]",
        )
    )
    call = build_call("mistral", wire.url, tools=(ADD_TOOL,), target={"model": "magistral-medium-latest"})
    parts, reply = await collect_reply(llm, call)
    assert "".join(part.text for part in parts if isinstance(part, ReasoningDelta)) == "Okay, add."
    assert reply.message.content == "Adding."
    assert reply.message.tool_calls == (ModelToolCall(id="D681PevKs", name="add", arguments='{"a": 1}'),)
    assert reply.usage == ModelUsage(prompt_tokens=94, completion_tokens=22, cached_tokens=64)
    messages = (*call.messages, reply.message, ChatMessage(role="tool", tool_call_id="D681PevKs", content="1"))
    await collect_reply(llm, replace(call, messages=messages))
    assistant = wire.requests[1].body["messages"][1]
    assert assistant["content"] == [
        {"type": "thinking", "thinking": [{"type": "text", "text": "Okay, add."}]},
        {"type": "text", "text": "Adding."},
    ]
    assert assistant["tool_calls"][0]["id"] == "D681PevKs"
    assert assistant.keys() <= {"role", "content", "tool_calls"}


async def test_mistral_errors_on_its_wire(llm: PydanticLlm, wire: WireServer):
    wire.queue_error(401, {"detail": "Unauthorized"})
    assert (await collect_error(llm, build_call("mistral", wire.url))).kind == "unauthorized"
    wire.answers.clear()
    wire.queue_error(429, {"object": "error", "message": "Rate limit exceeded", "type": "rate_limited", "code": "1300"})
    error = await collect_error(llm, build_call("mistral", wire.url))
    assert (error.kind, "Rate limit exceeded" in error.message) == ("rate_limited", True)
    wire.answers.clear()
    message = "Prompt contains 150000 tokens, too large for model with 131072 maximum context length"
    wire.queue_error(400, {"object": "error", "message": message, "type": "invalid_request_prompt", "code": "3051"})
    error = await collect_error(llm, build_call("mistral", wire.url))
    assert (error.kind, "131072 maximum context length" in error.message) == ("refused", True)
    wire.answers.clear()
    detail = [{"type": "extra_forbidden", "loc": ["body", "colour"], "msg": "Extra inputs are not permitted"}]
    wire.queue_error(422, {"object": "error", "message": {"detail": detail}, "type": "invalid_request_error"})
    error = await collect_error(llm, build_call("mistral", wire.url))
    assert error.kind == "refused"
    assert "colour" in error.message


# Groq.


async def test_groq_stream_on_its_wire(llm: PydanticLlm, wire: WireServer):
    usage = {"queue_time": 0.04, "prompt_tokens": 1200, "completion_tokens": 80, "total_tokens": 1280}
    usage |= {"prompt_tokens_details": {"cached_tokens": 1024}, "completion_tokens_details": {"reasoning_tokens": 60}}
    last = {**build_chunk("stop"), "x_groq": {"id": "req_1", "usage": usage}}
    wire.queue_events(
        format_events(
            {**build_chunk(role="assistant", content=""), "x_groq": {"id": "req_1", "seed": 110123312}},
            build_chunk(reasoning="We add", channel="analysis"),
            build_chunk(reasoning=" it.", channel="analysis"),
            build_chunk(content="Four."),
            last,
            "[DONE]",
        )
    )
    call = build_call("groq", wire.url, target={"model": "openai/gpt-oss-120b"}, options=ModelOptions(max_tokens=90))
    parts, reply = await collect_reply(llm, call)
    assert "".join(part.text for part in parts if isinstance(part, ReasoningDelta)) == "We add it."
    assert reply.message.content == "Four."
    assert reply.usage == ModelUsage(prompt_tokens=1200, completion_tokens=80, cached_tokens=1024, reasoning_tokens=60)
    assert wire.requests[0].body["max_tokens"] == 90


async def test_groq_tool_call_that_cannot_be_read_is_tried_again(llm: PydanticLlm, wire: WireServer):
    message = "Failed to call a function. Please adjust your prompt. See 'failed_generation' for more details."
    error_body = {"message": message, "type": "invalid_request_error", "code": "tool_use_failed"}
    error_body |= {"failed_generation": '{"name": "ad'}
    wire.queue_error(400, {"error": error_body})
    error = await collect_error(llm, build_call("groq", wire.url, tools=(ADD_TOOL,)))
    assert (error.kind, error.is_transient) == ("malformed", True)
    assert "Failed to call a function" in error.message
    wire.answers.clear()
    event = b"event: error\n" + format_events({"error": {**error_body, "status_code": 400}})
    wire.queue_events(format_events(build_chunk(reasoning="We")) + event + format_events("[DONE]"))
    error = await collect_error(llm, build_call("groq", wire.url, tools=(ADD_TOOL,)))
    assert (error.kind, error.is_transient) == ("malformed", True)


async def test_groq_errors_on_its_wire(llm: PydanticLlm, wire: WireServer):
    wire.queue_error(
        401, {"error": {"message": "Invalid API Key", "type": "invalid_request_error", "code": "invalid_api_key"}}
    )
    assert (await collect_error(llm, build_call("groq", wire.url))).kind == "unauthorized"
    wire.answers.clear()
    message = "Rate limit reached for model `m` on tokens per minute (TPM). Please try again in 7.66s."
    body = {"error": {"message": message, "type": "tokens", "code": "rate_limit_exceeded"}}
    wire.queue_error(429, body, retry_after="8")
    error = await collect_error(llm, build_call("groq", wire.url))
    assert (error.kind, error.retry_after) == ("rate_limited", 8.0)
    wire.answers.clear()
    message = "Please reduce the length of the messages or completion."
    body = {"error": {"message": message, "type": "invalid_request_error", "code": "context_length_exceeded"}}
    wire.queue_error(400, body)
    error = await collect_error(llm, build_call("groq", wire.url))
    assert (error.kind, "reduce the length" in error.message) == ("refused", True)


# OpenRouter.


async def test_openrouter_stream_gives_reasoning_back(llm: PydanticLlm, wire: WireServer):
    detail = {"type": "reasoning.encrypted", "data": "c2VhbGVk", "id": "rs_1", "format": "openai-responses-v1"}
    tool_call = {"id": "call_1", "index": 0, "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    usage = {"prompt_tokens": 43, "completion_tokens": 30, "total_tokens": 73, "cost": 0.0001, "is_byok": False}
    usage |= {"prompt_tokens_details": {"cached_tokens": 12}, "completion_tokens_details": {"reasoning_tokens": 11}}
    text = {"type": "reasoning.text", "text": "We need 1.", "index": 0, "format": None}
    answer = format_events(
        build_chunk(role="assistant", content="", reasoning="We need 1.", reasoning_details=[text]),
        build_chunk(content="", reasoning_details=[detail]),
        build_chunk(tool_calls=[tool_call]),
        build_chunk("tool_calls"),
        {**build_chunk(content=""), "usage": usage},
        "[DONE]",
    )
    wire.queue_events(b": OPENROUTER PROCESSING\n\n" * 3 + answer)
    call = build_call("openrouter", wire.url, tools=(ADD_TOOL,))
    parts, reply = await collect_reply(llm, call)
    assert "".join(part.text for part in parts if isinstance(part, ReasoningDelta)) == "We need 1."
    assert reply.usage == ModelUsage(prompt_tokens=43, completion_tokens=30, cached_tokens=12, reasoning_tokens=11)
    messages = (*call.messages, reply.message, ChatMessage(role="tool", tool_call_id="call_1", content="1"))
    await collect_reply(llm, replace(call, messages=messages))
    assert wire.requests[1].body["messages"][1]["reasoning_details"] == [text, detail]


async def test_openrouter_errors_on_its_wire(llm: PydanticLlm, wire: WireServer):
    wire.queue_error(401, {"error": {"message": "No auth credentials found", "code": 401}})
    assert (await collect_error(llm, build_call("openrouter", wire.url))).kind == "unauthorized"
    wire.answers.clear()
    wire.queue_error(402, {"error": {"message": "Insufficient credits.", "code": 402}})
    assert (await collect_error(llm, build_call("openrouter", wire.url))).kind == "refused"
    wire.answers.clear()
    raw = "deepseek/deepseek-chat is temporarily rate-limited upstream."
    metadata = {"raw": raw, "provider_name": "Targon"}
    wire.queue_error(429, {"error": {"message": "Provider returned error", "code": 429, "metadata": metadata}})
    error = await collect_error(llm, build_call("openrouter", wire.url))
    assert (error.kind, raw in error.message) == ("rate_limited", True)
    wire.answers.clear()
    failed = {**build_chunk("error", content=""), "error": {"code": 502, "message": "Upstream error"}}
    wire.queue_events(format_events(build_chunk(content="so far"), failed))
    assert (await collect_error(llm, build_call("openrouter", wire.url))).kind == "unavailable"


async def test_openrouter_name_without_a_maker_is_refused(llm: PydanticLlm, wire: WireServer):
    error = await collect_error(llm, build_call("openrouter", wire.url, target={"model": "gpt-4o"}))
    assert (error.kind, "openai/gpt-4o" in error.message) == ("refused", True)


# Embeddings.


@pytest.mark.parametrize("provider", ["azure", "mistral", "openrouter"])
async def test_embeddings(llm: PydanticLlm, wire: WireServer, provider: str):
    wire.queue_error(200, {"data": [{"index": 0, "embedding": [1.0, 2.0]}], "usage": {"prompt_tokens": 3}})
    target = build_call(provider, wire.url).target
    reply = await llm.embed(EmbeddingCall(target=target, texts=("a",), dimensions=2))
    assert [list(vector) for vector in reply.vectors] == [[1.0, 2.0]]
    [request] = wire.requests
    assert request.path == PATHS[provider].replace("chat/completions", "embeddings")
    assert request.body["output_dimension" if provider == "mistral" else "dimensions"] == 2
