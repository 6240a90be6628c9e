"""Call models of Gemini on Google's own wire: requests, answers and failures."""

import json
from typing import Any

import pytest
from msgspec.structs import replace

from domain.llms import (
    ChatMessage,
    EmbeddingCall,
    MessageImage,
    MessageText,
    ModelOptions,
    ModelToolCall,
    ModelUsage,
    ReasoningDelta,
    TextDelta,
    ThinkingOptions,
)
from infra.http import Outbound
from infra.llm import PydanticLlm
from tests.support.model_calls import (
    ADD_TOOL,
    ANSWER_SCHEMA,
    CONVERSATION,
    FakeLocalModel,
    collect_error,
    collect_reply,
)
from tests.support.provider_targets import PROVIDER_KEYS, WireServer, build_call, format_events

KEY = PROVIDER_KEYS["gemini"]
PATH = "/v1beta/models/gemini-3-pro-preview:streamGenerateContent"
SIGNATURE = "Et8ECtwEAXLI2nyCB1jKZUE4ZxdH07XhZlpU7X7tlcbNO8oQurN910Rmh6fTq1az=="


def build_chunk(*parts: dict[str, Any], finish: str | None = None, **usage: int) -> dict[str, Any]:
    """Build a chunk; `usage` are its counts."""
    candidate: dict[str, Any] = {"content": {"parts": list(parts), "role": "model"}, "index": 0}
    if finish is not None:
        candidate["finishReason"] = finish
    details = [{"modality": "TEXT", "tokenCount": usage.get("promptTokenCount", 1)}]
    metadata = {**usage, "promptTokensDetails": details}
    return {
        "candidates": [candidate],
        "usageMetadata": metadata,
        "modelVersion": "gemini-3-pro-preview",
        "responseId": "SVV8aY6uBqe6qtsPmJbEuAM",
    }


def format_chunks(*chunks: dict[str, Any]) -> bytes:
    return format_events(*chunks, newline="\r\n")


PLAIN_ANSWER = format_chunks(
    build_chunk({"text": "The capital of Mexico"}, promptTokenCount=55, candidatesTokenCount=4, totalTokenCount=59),
    build_chunk({"text": " is Mexico City."}, promptTokenCount=55, candidatesTokenCount=8, totalTokenCount=63),
    build_chunk({"text": ""}, finish="STOP", promptTokenCount=165, candidatesTokenCount=8, totalTokenCount=173),
)


async def test_plain_answer_is_streamed(llm: PydanticLlm, wire: WireServer):
    wire.queue_events(PLAIN_ANSWER)
    sent: list[bool] = []
    parts, reply = await collect_reply(llm, build_call("gemini", wire.url, on_sent=lambda: sent.append(True)))
    assert parts == [TextDelta("The capital of Mexico"), TextDelta(" is Mexico City.")]
    assert (reply.finish, sent) == ("stop", [True])
    assert reply.usage == ModelUsage(prompt_tokens=165, completion_tokens=8)
    [request] = wire.requests
    assert (request.path, request.query) == (PATH, {"alt": "sse"})
    assert request.headers["x-goog-api-key"] == KEY
    assert "authorization" not in request.headers
    assert request.body == {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]}


async def test_thoughts_and_cached_tokens_are_counted(llm: PydanticLlm, wire: WireServer):
    counts = {"promptTokenCount": 100, "cachedContentTokenCount": 64, "thoughtsTokenCount": 110}
    wire.queue_events(
        format_chunks(
            build_chunk({"text": "**Think**", "thought": True}, promptTokenCount=100, totalTokenCount=100),
            build_chunk({"text": "Yes."}, finish="STOP", candidatesTokenCount=10, totalTokenCount=220, **counts),
        )
    )
    options = ModelOptions(thinking=ThinkingOptions(mode="enabled", max_tokens=3000))
    parts, reply = await collect_reply(llm, build_call("gemini", wire.url, options=options))
    assert ReasoningDelta("**Think**") in parts
    assert reply.message.content == "Yes."
    assert reply.usage == ModelUsage(prompt_tokens=100, completion_tokens=120, cached_tokens=64, reasoning_tokens=110)
    config = wire.requests[0].body["generationConfig"]
    assert config == {"thinkingConfig": {"includeThoughts": True, "thinkingLevel": "LOW"}}


@pytest.mark.parametrize(
    ("model", "options", "parameters", "thinking"),
    [
        ("gemini-2.5-flash", ThinkingOptions(mode="disabled"), {}, {"thinkingBudget": 0}),
        ("gemini-2.5-pro", ThinkingOptions(mode="disabled"), {}, {"thinkingBudget": 128}),
        ("gemini-2.5-flash", None, {"reasoning_effort": "low"}, {"includeThoughts": True, "thinkingBudget": 2048}),
        (
            "gemini-3-pro-preview",
            None,
            {"reasoning_effort": "high"},
            {"includeThoughts": True, "thinkingLevel": "HIGH"},
        ),
        ("gemini-3-pro-preview", None, {"thinkingConfig": {"thinkingLevel": "LOW"}}, {"thinkingLevel": "LOW"}),
    ],
)
async def test_thinking_is_set_as_the_model_wants_it(
    llm: PydanticLlm, wire: WireServer, model: str, options: Any, parameters: Any, thinking: Any
):
    wire.queue_events(PLAIN_ANSWER)
    target = {"model": model, "parameters": parameters}
    await collect_reply(llm, build_call("gemini", wire.url, target=target, options=ModelOptions(thinking=options)))
    assert wire.requests[0].body["generationConfig"]["thinkingConfig"] == thinking


async def test_call_is_given_back_with_its_signature(llm: PydanticLlm, wire: WireServer):
    first = {"functionCall": {"name": "add", "args": {"a": 1, "b": 2}}, "thoughtSignature": SIGNATURE}
    second = {"functionCall": {"name": "add", "args": {}, "id": "own-id"}}
    signed = {"text": "I add.", "thoughtSignature": "dGV4dA=="}
    wire.queue_events(
        format_chunks(
            build_chunk(signed, first, second, promptTokenCount=29, candidatesTokenCount=10, totalTokenCount=149),
            build_chunk({"text": ""}, finish="STOP", promptTokenCount=29, candidatesTokenCount=10, totalTokenCount=149),
        )
    )
    wire.queue_events(PLAIN_ANSWER)
    call = build_call("gemini", wire.url, tools=(ADD_TOOL,))
    _, reply = await collect_reply(llm, call)
    assert reply.finish == "tool_calls"
    assert [(item.name, item.arguments) for item in reply.message.tool_calls] == [
        ("add", '{"a":1,"b":2}'),
        ("add", "{}"),
    ]
    ids = [item.id for item in reply.message.tool_calls]
    assert ids[1] == "own-id"
    # Total less prompt: what Google bills, also where it does not say what for.
    assert reply.usage == ModelUsage(prompt_tokens=29, completion_tokens=120)
    results = (
        ChatMessage(role="tool", tool_call_id=ids[0], content="3"),
        ChatMessage(role="tool", tool_call_id=ids[1], content="no", is_error=True),
        ChatMessage(role="user", content="and now"),
    )
    await collect_reply(llm, replace(call, messages=(*call.messages, reply.message, *results)))
    _, model, responses, user = wire.requests[1].body["contents"]
    assert model["role"] == "model"
    assert model["parts"] == [
        signed,
        {"functionCall": {"name": "add", "args": {"a": 1, "b": 2}, "id": ids[0]}, "thoughtSignature": SIGNATURE},
        {"functionCall": {"name": "add", "args": {}, "id": "own-id"}},
    ]
    assert responses == {
        "role": "user",
        "parts": [
            {"functionResponse": {"name": "add", "id": ids[0], "response": {"output": "3"}}},
            {"functionResponse": {"name": "add", "id": "own-id", "response": {"error": "no"}}},
        ],
    }
    assert user == {"role": "user", "parts": [{"text": "and now"}]}


async def test_conversation_of_another_model_gets_googles_own_signature(llm: PydanticLlm, wire: WireServer):
    wire.queue_events(PLAIN_ANSWER)
    options = ModelOptions(tool_choice="required")
    await collect_reply(llm, build_call("gemini", wire.url, messages=CONVERSATION, tools=(ADD_TOOL,), options=options))
    body = wire.requests[0].body
    assert body["systemInstruction"] == {"parts": [{"text": "Be brief."}]}
    text, first, second = body["contents"][1]["parts"]
    assert text == {"text": "Adding."}
    assert first["thoughtSignature"] == "c2tpcF90aG91Z2h0X3NpZ25hdHVyZV92YWxpZGF0b3I="
    assert "thoughtSignature" not in second
    assert second["functionCall"]["args"] == {"INVALID_JSON": '{"a": '}
    [tool] = body["tools"]
    [declaration] = tool["functionDeclarations"]
    assert (declaration["name"], declaration["description"]) == ("add", "Adds two numbers.")
    assert declaration["parametersJsonSchema"]["properties"] == ADD_TOOL.parameters["properties"]
    assert body["toolConfig"] == {"functionCallingConfig": {"mode": "ANY"}}


async def test_options_and_parameters_have_googles_names(llm: PydanticLlm, wire: WireServer):
    wire.queue_events(PLAIN_ANSWER)
    options = ModelOptions(
        temperature=0.5, max_tokens=9, top_p=0.9, seed=3, stop=("END",), presence_penalty=0.1, frequency_penalty=0.2
    )
    safety = [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]
    parameters = {"top_k": 7, "safetySettings": safety, "mediaResolution": "MEDIA_RESOLUTION_LOW"}
    target = {"parameters": parameters, "model": "gemini-2.5-flash"}
    await collect_reply(llm, build_call("gemini", wire.url, options=options, target=target))
    body = wire.requests[0].body
    assert body["safetySettings"] == safety
    assert body["generationConfig"] == {
        "temperature": 0.5,
        "topP": 0.9,
        "topK": 7,
        "maxOutputTokens": 9,
        "stopSequences": ["END"],
        "seed": 3,
        "presencePenalty": 0.1,
        "frequencyPenalty": 0.2,
        "mediaResolution": "MEDIA_RESOLUTION_LOW",
    }
    options = ModelOptions(logit_bias={"1": 1}, must_apply=True)
    error = await collect_error(llm, build_call("gemini", wire.url, options=options))
    assert (error.kind, error.option) == ("refused", "logit_bias")
    options = ModelOptions(thinking=ThinkingOptions(effort="none"), allowed_tools=("add",), tool_choice="required")
    tools = (ADD_TOOL, replace(ADD_TOOL, name="subtract"))
    call = build_call("gemini", wire.url, options=options, tools=tools, target={"model": "gemini-2.5-flash"})
    await collect_reply(llm, call)
    body = wire.requests[-1].body
    assert body["generationConfig"] == {"thinkingConfig": {"thinkingBudget": 0}}
    assert body["toolConfig"]["functionCallingConfig"] == {"mode": "ANY", "allowedFunctionNames": ["add"]}


async def test_images_are_sent_as_data_or_by_address(llm: PydanticLlm, wire: WireServer):
    wire.queue_events(PLAIN_ANSWER)
    images = (
        MessageText(text="See:"),
        MessageImage(data=b"png", media_type="image/png"),
        MessageImage(url="https://example.com/cat.png"),
        MessageImage(url="https://example.com/cat"),
    )
    await collect_reply(
        llm, build_call("gemini", wire.url, messages=(ChatMessage(role="user", content="See:", parts=images),))
    )
    assert wire.requests[0].body["contents"][0]["parts"] == [
        {"text": "See:"},
        {"inlineData": {"mimeType": "image/png", "data": "cG5n"}},
        {"fileData": {"fileUri": "https://example.com/cat.png", "mimeType": "image/png"}},
        {"fileData": {"fileUri": "https://example.com/cat"}},
    ]


async def test_schema_of_the_answer_is_sent(llm: PydanticLlm, wire: WireServer):
    wire.queue_events(PLAIN_ANSWER)
    await collect_reply(llm, build_call("gemini", wire.url, options=ModelOptions(schema=ANSWER_SCHEMA)))
    config = wire.requests[0].body["generationConfig"]
    assert config["responseMimeType"] == "application/json"
    assert config["responseJsonSchema"]["required"] == ["city", "degrees"]


@pytest.mark.parametrize(
    ("status", "body", "kind", "retry_after"),
    [
        (
            400,
            {
                "code": 400,
                "message": "API key not valid. Please pass a valid API key.",
                "status": "INVALID_ARGUMENT",
                "details": [
                    {
                        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                        "reason": "API_KEY_INVALID",
                        "domain": "googleapis.com",
                    }
                ],
            },
            "unauthorized",
            None,
        ),
        (
            403,
            {"code": 403, "message": "Method doesn't allow it.", "status": "PERMISSION_DENIED"},
            "unauthorized",
            None,
        ),
        (
            429,
            {
                "code": 429,
                "message": "You exceeded your current quota. Please retry in 32.6s.",
                "status": "RESOURCE_EXHAUSTED",
                "details": [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "32s"}],
            },
            "rate_limited",
            32.0,
        ),
        (
            400,
            {
                "code": 400,
                "message": "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
                "status": "INVALID_ARGUMENT",
            },
            "refused",
            None,
        ),
        (503, {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}, "unavailable", None),
        (504, {"code": 504, "message": "Deadline expired.", "status": "DEADLINE_EXCEEDED"}, "unavailable", None),
        (404, {"code": 404, "message": "models/x is not found", "status": "NOT_FOUND"}, "refused", None),
    ],
)
@pytest.mark.parametrize("is_list", [False, True])
async def test_errors_have_kinds(
    llm: PydanticLlm, wire: WireServer, status: int, body: Any, kind: str, retry_after: float | None, is_list: bool
):
    body = {"error": {**body, "message": f"{body['message']} {KEY}"}}
    wire.queue_error(status, [body] if is_list else body)
    error = await collect_error(llm, build_call("gemini", wire.url))
    assert (error.kind, error.retry_after) == (kind, retry_after)
    assert body["error"]["message"].replace(KEY, "***") in error.message


async def test_retry_after_of_the_header_counts(llm: PydanticLlm, wire: WireServer):
    wire.queue_error(429, {"error": {"code": 429, "message": "Slow.", "status": "RESOURCE_EXHAUSTED"}}, retry_after="5")
    assert (await collect_error(llm, build_call("gemini", wire.url))).retry_after == 5.0


async def test_streams_that_break_off(llm: PydanticLlm, wire: WireServer):
    begun = format_chunks(build_chunk({"text": "so far"}, promptTokenCount=5, totalTokenCount=5))
    wire.queue_events(begun)
    assert (await collect_error(llm, build_call("gemini", wire.url))).kind == "cut_off"
    wire.answers.clear()
    wire.queue_cut(begun)
    error = await collect_error(llm, build_call("gemini", wire.url))
    assert (error.kind, "ended in the middle" in error.message) == ("cut_off", True)
    wire.answers.clear()
    failed = {"error": {"code": 503, "message": "The service is currently unavailable.", "status": "UNAVAILABLE"}}
    wire.queue_events(begun + format_chunks(failed))
    assert (await collect_error(llm, build_call("gemini", wire.url))).kind == "unavailable"
    wire.answers.clear()
    chunk = build_chunk(finish="MALFORMED_FUNCTION_CALL", promptTokenCount=5, totalTokenCount=5)
    chunk["candidates"][0]["finishMessage"] = "Malformed function call: print(add(1))"
    wire.queue_events(format_chunks(chunk))
    error = await collect_error(llm, build_call("gemini", wire.url))
    assert (error.kind, "print(add(1))" in error.message) == ("malformed", True)


async def test_filtered_prompts_and_answers_are_reported(llm: PydanticLlm, wire: WireServer):
    wire.queue_events(
        format_chunks(
            {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 9}}
        )
    )
    _, reply = await collect_reply(llm, build_call("gemini", wire.url))
    assert (reply.message.content, reply.finish) == ("", "content_filter")
    wire.answers.clear()
    wire.queue_events(format_chunks(build_chunk({"text": "so"}, finish="SAFETY", promptTokenCount=5)))
    _, reply = await collect_reply(llm, build_call("gemini", wire.url))
    assert (reply.message.content, reply.finish) == ("so", "content_filter")
    wire.answers.clear()
    wire.queue_events(format_chunks(build_chunk({"text": "so"}, finish="MAX_TOKENS", promptTokenCount=5)))
    _, reply = await collect_reply(llm, build_call("gemini", wire.url))
    assert reply.finish == "length"


async def test_key_in_an_answer_is_masked(llm: PydanticLlm, wire: WireServer):
    call = {"functionCall": {"name": "add", "args": {"a": KEY}}}
    wire.queue_events(format_chunks(build_chunk({"text": f"It is {KEY}."}, call, finish="STOP", promptTokenCount=5)))
    _, reply = await collect_reply(llm, build_call("gemini", wire.url, tools=(ADD_TOOL,)))
    assert reply.message.content == "It is ***."
    assert reply.message.tool_calls[0].arguments == '{"a":"***"}'


async def test_environment_and_private_addresses(llm: PydanticLlm, wire: WireServer, monkeypatch: pytest.MonkeyPatch):
    names = """GOOGLE_API_KEY GEMINI_API_KEY GOOGLE_GEMINI_BASE_URL GOOGLE_GENAI_USE_VERTEXAI GOOGLE_CLOUD_PROJECT
    GOOGLE_CLOUD_LOCATION GOOGLE_APPLICATION_CREDENTIALS HTTP_PROXY HTTPS_PROXY ALL_PROXY http_proxy"""
    for number, name in enumerate(names.split()):
        monkeypatch.setenv(name, f"http://leak-{number}.invalid")
    wire.queue_events(PLAIN_ANSWER)
    await collect_reply(llm, build_call("gemini", wire.url))
    await collect_reply(llm, build_call("gemini", wire.url, target={"key": None}))
    for request in wire.requests:
        assert "leak" not in json.dumps([request.path, request.headers, request.body])
    assert "x-goog-api-key" not in wire.requests[1].headers
    guarded = PydanticLlm(Outbound(), FakeLocalModel())
    try:
        assert (await collect_error(guarded, build_call("gemini", wire.url))).kind == "not_allowed"
    finally:
        await guarded.close()
    assert len(wire.requests) == 2


async def test_tool_calls_keep_odd_arguments(llm: PydanticLlm, wire: WireServer):
    wire.queue_events(format_chunks(build_chunk({"functionCall": {"name": "add"}}, finish="STOP", promptTokenCount=5)))
    _, reply = await collect_reply(llm, build_call("gemini", wire.url, tools=(ADD_TOOL,)))
    [tool_call] = reply.message.tool_calls
    assert tool_call == ModelToolCall(id=tool_call.id, name="add", arguments="{}")


async def test_embeddings_use_the_address_beside(llm: PydanticLlm, wire: WireServer):
    wire.queue_error(200, {"data": [{"index": 0, "embedding": [1.0]}], "usage": {"prompt_tokens": 3}})
    target = build_call("gemini", wire.url, target={"model": "gemini-embedding-001"}).target
    reply = await llm.embed(EmbeddingCall(target=target, texts=("a",)))
    assert [list(vector) for vector in reply.vectors] == [[1.0]]
    assert wire.requests[0].path == "/v1beta/openai/embeddings"
    assert wire.requests[0].headers["authorization"] == f"Bearer {KEY}"
