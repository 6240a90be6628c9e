"""Call models of Bedrock on its own wire: signed requests, frames of events, and failures."""

import asyncio
import json
import socket
import sys
from subprocess import run
from typing import Any

import msgspec
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from msgspec.structs import replace

from domain.llms import (
    ChatMessage,
    MessageImage,
    MessageText,
    ModelOptions,
    ModelUsage,
    ReasoningDelta,
    ReasoningItem,
    TextDelta,
    ThinkingOptions,
)
from infra.http import Outbound
from infra.llm import PydanticLlm
from tests.support.bedrock_frames import FRAMES_TYPE as FRAMES
from tests.support.bedrock_frames import build_delta, build_ending, build_event, build_frame
from tests.support.model_calls import (
    ADD_TOOL,
    CONVERSATION,
    FakeLocalModel,
    collect_error,
    collect_reply,
)
from tests.support.provider_targets import (
    AWS_SECRET,
    AWS_SESSION_TOKEN,
    PROVIDER_KEYS,
    WireRequest,
    WireServer,
    build_call,
)

KEY = PROVIDER_KEYS["bedrock"]
BEARER_KEY = "ABSKQmVkcm9ja0FQSUtleS1hYmNkZWZnaGlqa2xtbm9wcXJzdHV2d3h5eg=="
PATH = "/model/us.anthropic.claude-sonnet-4-20250514-v1%3A0/converse-stream"
SIGNATURE = "EvYCCkgICxABGAIqQH+vdAorxvHnWTPEdc8BK/BavcOAlYhx4WJGgsYDLAOnOlPr"


PLAIN_ANSWER = (
    build_event("messageStart", role="assistant")
    + build_delta(0, text="Hello! How")
    + build_delta(0, text=" are you?")
    + build_event("contentBlockStop", contentBlockIndex=0)
    + build_ending(inputTokens=37, outputTokens=74, totalTokens=111)
)


def check_signature(request: WireRequest, url: str, secret: str = AWS_SECRET, token: str | None = None) -> None:
    """Check a request's signature as AWS does: from its key, date, path and body."""
    sent = request.headers["authorization"]
    assert sent.startswith("AWS4-HMAC-SHA256 Credential=")
    names = sent.split("SignedHeaders=")[1].split(",")[0].split(";")
    assert {"host", "x-amz-date"} <= set(names)
    credentials = ReadOnlyCredentials(sent.split("Credential=")[1].split("/")[0], secret, token, None)
    signer = SigV4Auth(credentials, "bedrock", "eu-central-1")
    body = msgspec.json.encode(request.body)
    headers = {name: request.headers[name] for name in names}
    copy = AWSRequest(method="POST", url=url + request.path, data=body, headers=headers)
    copy.context["timestamp"] = request.headers["x-amz-date"]
    string_to_sign = signer.string_to_sign(copy, signer.canonical_request(copy))
    assert sent.endswith(f"Signature={signer.signature(string_to_sign, copy)}")


async def test_plain_answer_is_signed_and_streamed(llm: PydanticLlm, wire: WireServer):
    wire.queue_events(PLAIN_ANSWER, FRAMES)
    sent: list[bool] = []
    parts, reply = await collect_reply(llm, build_call("bedrock", wire.url, on_sent=lambda: sent.append(True)))
    assert len([part for part in parts if isinstance(part, TextDelta)]) == 2
    assert reply.message.content == "Hello! How are you?"
    assert (reply.finish, sent) == ("stop", [True])
    assert reply.usage == ModelUsage(prompt_tokens=37, completion_tokens=74)
    [request] = wire.requests
    assert request.path == PATH
    assert request.body["messages"] == [{"role": "user", "content": [{"text": "Hello"}]}]
    assert "modelId" not in request.body
    assert AWS_SECRET not in str(request)
    check_signature(request, wire.url)


async def test_temporary_and_bearer_keys(llm: PydanticLlm, wire: WireServer):
    wire.queue_events(PLAIN_ANSWER, FRAMES)
    temporary = f"ASIAIOSFODNN7EXAMPLE:{AWS_SECRET}:{AWS_SESSION_TOKEN}"
    await collect_reply(llm, build_call("bedrock", wire.url, target={"key": temporary}))
    assert wire.requests[0].headers["x-amz-security-token"] == AWS_SESSION_TOKEN
    check_signature(wire.requests[0], wire.url, token=AWS_SESSION_TOKEN)
    await collect_reply(llm, build_call("bedrock", wire.url, target={"key": BEARER_KEY}))
    assert wire.requests[1].headers["authorization"] == f"Bearer {BEARER_KEY}"
    assert not any(name.startswith("x-amz") for name in wire.requests[1].headers)
    error = await collect_error(llm, build_call("bedrock", wire.url, target={"key": "AKIAIOSFODNN7EXAMPLE"}))
    assert (error.kind, "without its secret" in error.message) == ("unauthorized", True)
    assert len(wire.requests) == 2


@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
async def test_frames_may_be_split_anywhere(llm: PydanticLlm, chunk_size: int):
    body = PLAIN_ANSWER

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-type: {FRAMES}\r\nconnection: close\r\n\r\n".encode())
        for start in range(0, len(body), chunk_size):
            writer.write(body[start : start + chunk_size])
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        _, reply = await collect_reply(llm, build_call("bedrock", url))
    assert reply.message.content == "Hello! How are you?"


async def test_reasoning_calls_and_cached_tokens_are_read_and_given_back(llm: PydanticLlm, wire: WireServer):
    wire.queue_events(
        build_event("messageStart", role="assistant")
        + build_delta(0, reasoningContent={"text": "The human"})
        + build_delta(0, reasoningContent={"text": " adds."})
        + build_delta(0, reasoningContent={"signature": SIGNATURE})
        + build_event("contentBlockStop", contentBlockIndex=0)
        + build_delta(1, reasoningContent={"redactedContent": "c2VhbGVk"})
        + build_event("contentBlockStop", contentBlockIndex=1)
        + build_delta(2, text="I add.")
        + build_event("contentBlockStop", contentBlockIndex=2)
        + build_event(
            "contentBlockStart",
            contentBlockIndex=3,
            start={"toolUse": {"toolUseId": "tooluse_1", "name": "add"}},
        )
        + build_delta(3, toolUse={"input": '{"a"'})
        + build_delta(3, toolUse={"input": ": 1}"})
        + build_event("contentBlockStop", contentBlockIndex=3)
        + build_ending(
            "tool_use",
            inputTokens=37,
            outputTokens=74,
            totalTokens=1159,
            cacheReadInputTokens=1024,
            cacheWriteInputTokens=24,
        ),
        FRAMES,
    )
    wire.queue_events(PLAIN_ANSWER, FRAMES)
    thinking = ThinkingOptions(mode="enabled", max_tokens=2000)
    call = build_call("bedrock", wire.url, tools=(ADD_TOOL,), options=ModelOptions(thinking=thinking, max_tokens=8000))
    parts, reply = await collect_reply(llm, call)
    assert "".join(part.text for part in parts if isinstance(part, ReasoningDelta)) == "The human adds."
    items = [part.item["type"] for part in parts if isinstance(part, ReasoningItem)]
    assert items == ["thinking", "redacted_thinking"]
    assert reply.usage == ModelUsage(prompt_tokens=37 + 1024 + 24, completion_tokens=74, cached_tokens=1024)
    [tool_call] = reply.message.tool_calls
    assert (tool_call.id, tool_call.name, tool_call.arguments) == ("tooluse_1", "add", '{"a": 1}')
    body = wire.requests[0].body
    assert body["additionalModelRequestFields"] == {"thinking": {"type": "enabled", "budget_tokens": 2000}}
    assert body["inferenceConfig"] == {"maxTokens": 8000}
    result = ChatMessage(role="tool", tool_call_id="tooluse_1", content="no", is_error=True)
    await collect_reply(llm, replace(call, messages=(*call.messages, reply.message, result)))
    _, assistant, user = wire.requests[1].body["messages"]
    assert assistant["content"] == [
        {"reasoningContent": {"reasoningText": {"text": "The human adds.", "signature": SIGNATURE}}},
        {"reasoningContent": {"redactedContent": "c2VhbGVk"}},
        {"text": "I add."},
        {"toolUse": {"toolUseId": "tooluse_1", "name": "add", "input": {"a": 1}}},
    ]
    assert user["content"] == [
        {"toolResult": {"toolUseId": "tooluse_1", "content": [{"text": "no"}], "status": "error"}}
    ]


async def test_conversation_with_tools_and_options(llm: PydanticLlm, wire: WireServer):
    wire.queue_events(PLAIN_ANSWER, FRAMES)
    options = ModelOptions(temperature=0.5, max_tokens=9, top_p=0.9, stop=("END",), tool_choice="required")
    guardrail = {"guardrailIdentifier": "g1", "guardrailVersion": "1"}
    parameters = {"bedrock_guardrail_config": guardrail, "anthropic_beta": ["context-1m-2025-08-07"], "top_k": 5}
    call = build_call(
        "bedrock",
        wire.url,
        messages=CONVERSATION,
        tools=(ADD_TOOL,),
        options=options,
        target={"parameters": parameters},
    )
    await collect_reply(llm, call)
    body = wire.requests[0].body
    assert body["system"] == [{"text": "Be brief."}]
    assert body["inferenceConfig"] == {"maxTokens": 9, "temperature": 0.5, "topP": 0.9, "stopSequences": ["END"]}
    assert body["guardrailConfig"] == guardrail
    assert body["additionalModelRequestFields"] == {"anthropic_beta": ["context-1m-2025-08-07"], "top_k": 5}
    [tool] = body["toolConfig"]["tools"]
    assert (tool["toolSpec"]["name"], tool["toolSpec"]["inputSchema"]["json"]["properties"]) == (
        "add",
        ADD_TOOL.parameters["properties"],
    )
    assert body["toolConfig"]["toolChoice"] == {"any": {}}
    assert [message["role"] for message in body["messages"]] == ["user", "assistant", "user"]
    assert "region" not in json.dumps(body)


async def test_images_are_data_and_marks_reach_the_cache(llm: PydanticLlm, wire: WireServer):
    wire.queue_events(PLAIN_ANSWER, FRAMES)
    parts = (MessageImage(data=b"png", media_type="image/png"), MessageText(text="See.", cache="5m"))
    message = ChatMessage(role="user", content="See.", parts=parts)
    await collect_reply(llm, build_call("bedrock", wire.url, messages=(message,)))
    [sent] = wire.requests[0].body["messages"]
    assert sent["content"] == [
        {"image": {"format": "png", "source": {"bytes": "cG5n"}}},
        {"text": "See."},
        {"cachePoint": {"type": "default", "ttl": "5m"}},
    ]
    message = ChatMessage(role="user", parts=(MessageImage(url=f"{wire.url}/cat.png"),))
    error = await collect_error(llm, build_call("bedrock", wire.url, messages=(message,)))
    assert (error.kind, error.option) == ("refused", "image")
    options = ModelOptions(seed=1, must_apply=True)
    error = await collect_error(llm, build_call("bedrock", wire.url, options=options))
    assert (error.kind, error.option) == ("refused", "seed")
    assert len(wire.requests) == 1


@pytest.mark.parametrize(
    ("model", "thinking", "fields"),
    [
        ("amazon.nova-lite-v1:0", ThinkingOptions(mode="enabled", max_tokens=2000), None),
        ("openai.gpt-oss-120b-1:0", ThinkingOptions(effort="high"), {"reasoning_effort": "high"}),
        ("openai.gpt-oss-120b-1:0", ThinkingOptions(mode="enabled", max_tokens=99), {"reasoning_effort": "low"}),
        (
            "us.anthropic.claude-sonnet-4-20250514-v1:0",
            ThinkingOptions(mode="disabled"),
            {"thinking": {"type": "disabled"}},
        ),
    ],
)
async def test_thinking_is_set_as_each_family_wants_it(
    llm: PydanticLlm, wire: WireServer, model: str, thinking: ThinkingOptions, fields: Any
):
    wire.queue_events(PLAIN_ANSWER, FRAMES)
    call = build_call("bedrock", wire.url, target={"model": model}, options=ModelOptions(thinking=thinking))
    await collect_reply(llm, call)
    assert wire.requests[0].body.get("additionalModelRequestFields") == fields


@pytest.mark.parametrize(
    ("status", "name", "message", "kind"),
    [
        (400, "ValidationException", "The provided model identifier is invalid.", "refused"),
        (400, "ValidationException", "Input is too long for requested model.", "refused"),
        (403, "UnrecognizedClientException", "The security token included in the request is invalid.", "unauthorized"),
        (403, "InvalidSignatureException", "The request signature we calculated does not match.", "unauthorized"),
        (403, "ExpiredTokenException", "The security token included in the request is expired", "unauthorized"),
        (403, "AccessDeniedException", "You don't have access to the model with the specified ID.", "unauthorized"),
        (404, "ResourceNotFoundException", "This model version has reached the end of its life.", "refused"),
        (408, "ModelTimeoutException", "The model took too long.", "timeout"),
        (424, "ModelErrorException", "The model failed.", "unavailable"),
        (429, "ThrottlingException", "Too many requests, please wait before trying again.", "rate_limited"),
        (500, "InternalServerException", "The system encountered an unexpected error.", "unavailable"),
        (503, "ServiceUnavailableException", "Bedrock is unable to process your request.", "unavailable"),
    ],
)
async def test_errors_have_kinds(llm: PydanticLlm, wire: WireServer, status: int, name: str, message: str, kind: str):
    wire.queue_error(
        status,
        {"message": f"{message} {AWS_SECRET}"},
        x_amzn_errortype=f"{name}:http://internal.amazon.com/",
        retry_after="3",
    )
    error = await collect_error(llm, build_call("bedrock", wire.url))
    assert (error.kind, error.retry_after) == (kind, 3.0)
    assert f"{message} ***" in error.message


async def test_expired_bearer_key_is_named(llm: PydanticLlm, wire: WireServer):
    wire.queue_error(403, {"Message": f"Bearer Token {BEARER_KEY} has expired"})
    error = await collect_error(llm, build_call("bedrock", wire.url, target={"key": BEARER_KEY}))
    assert (error.kind, "Bearer Token *** has expired" in error.message) == ("unauthorized", True)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("throttlingException", "rate_limited"),
        ("modelStreamErrorException", "unavailable"),
        ("internalServerException", "unavailable"),
        ("serviceUnavailableException", "unavailable"),
        ("validationException", "refused"),
    ],
)
async def test_exceptions_within_a_stream_have_kinds(llm: PydanticLlm, wire: WireServer, name: str, kind: str):
    headers = {":exception-type": name, ":content-type": "application/json", ":message-type": "exception"}
    failure = build_frame({"message": "It failed."}, **headers)
    wire.queue_events(build_delta(0, text="so far") + failure, FRAMES)
    error = await collect_error(llm, build_call("bedrock", wire.url))
    assert (error.kind, "It failed." in error.message) == (kind, True)
    wire.answers.clear()
    headers = {":message-type": "error", ":error-code": "InternalError", ":error-message": "Lost."}
    wire.queue_events(build_frame(b"", **headers), FRAMES)
    error = await collect_error(llm, build_call("bedrock", wire.url))
    assert (error.kind, "Lost." in error.message) == ("unavailable", True)


async def test_streams_that_break_off_or_are_damaged(llm: PydanticLlm, wire: WireServer):
    wire.queue_events(build_delta(0, text="so far"), FRAMES)
    assert (await collect_error(llm, build_call("bedrock", wire.url))).kind == "cut_off"
    wire.answers.clear()
    wire.queue_cut(build_delta(0, text="so far") + build_delta(0, text=" cut")[:40], FRAMES)
    assert (await collect_error(llm, build_call("bedrock", wire.url))).kind == "cut_off"
    wire.answers.clear()
    damaged = bytearray(PLAIN_ANSWER)
    damaged[len(damaged) // 2] ^= 1
    wire.queue_events(bytes(damaged), FRAMES)
    assert (await collect_error(llm, build_call("bedrock", wire.url))).kind == "malformed"
    wire.answers.clear()
    wire.queue_events(b"<html>Sign in</html>", "text/html")
    assert (await collect_error(llm, build_call("bedrock", wire.url))).kind == "malformed"
    wire.answers.clear()
    wire.queue_events(
        build_delta(0, text="so") + build_ending("guardrail_intervened", inputTokens=1, outputTokens=1), FRAMES
    )
    assert (await collect_reply(llm, build_call("bedrock", wire.url)))[1].finish == "content_filter"
    wire.answers.clear()
    wire.queue_events(build_delta(0, text="so") + build_ending("max_tokens", inputTokens=1, outputTokens=1), FRAMES)
    assert (await collect_reply(llm, build_call("bedrock", wire.url)))[1].finish == "length"


async def test_secret_parts_of_a_key_are_masked(llm: PydanticLlm, wire: WireServer):
    temporary = f"ASIAIOSFODNN7EXAMPLE:{AWS_SECRET}:{AWS_SESSION_TOKEN}"
    text = f"It is {AWS_SECRET} and {AWS_SESSION_TOKEN}; {temporary}."
    wire.queue_events(b"".join(build_delta(0, text=letter) for letter in text) + build_ending(inputTokens=1), FRAMES)
    _, reply = await collect_reply(llm, build_call("bedrock", wire.url, target={"key": temporary}))
    assert reply.message.content == "It is *** and ***; ASIAIOSFODNN7EXAMPLE:***:***."


async def test_environment_and_metadata_service_are_not_read(
    llm: PydanticLlm, wire: WireServer, monkeypatch: pytest.MonkeyPatch
):
    names = """AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_SESSION_TOKEN AWS_BEARER_TOKEN_BEDROCK AWS_PROFILE AWS_REGION
    AWS_DEFAULT_REGION AWS_ENDPOINT_URL AWS_ENDPOINT_URL_BEDROCK_RUNTIME AWS_CONTAINER_CREDENTIALS_FULL_URI
    AWS_WEB_IDENTITY_TOKEN_FILE AWS_ROLE_ARN AWS_EC2_METADATA_SERVICE_ENDPOINT AWS_CONFIG_FILE HTTP_PROXY HTTPS_PROXY
    ALL_PROXY http_proxy"""
    for number, name in enumerate(names.split()):
        monkeypatch.setenv(name, f"http://leak-{number}.invalid")
    addresses: list[Any] = []
    connect = socket.socket.connect

    def record_connection(self: socket.socket, address: Any) -> None:
        addresses.append(address)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", record_connection)
    wire.queue_events(PLAIN_ANSWER, FRAMES)
    await collect_reply(llm, build_call("bedrock", wire.url))
    await collect_reply(llm, build_call("bedrock", wire.url, target={"key": None}))
    for request in wire.requests:
        assert "leak" not in json.dumps([request.path, request.headers, request.body])
    assert "authorization" not in wire.requests[1].headers
    assert all(address[0] == "127.0.0.1" for address in addresses)
    check_signature(wire.requests[0], wire.url)


async def test_guard_holds_for_private_addresses(wire: WireServer):
    wire.queue_events(PLAIN_ANSWER, FRAMES)
    guarded = PydanticLlm(Outbound(), FakeLocalModel())
    try:
        assert (await collect_error(guarded, build_call("bedrock", wire.url))).kind == "not_allowed"
        metadata = build_call("bedrock", "http://169.254.169.254")
        assert (await collect_error(guarded, metadata)).kind == "not_allowed"
    finally:
        await guarded.close()
    assert wire.requests == []


async def test_address_is_that_of_the_region():
    asked: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"]

    guarded = PydanticLlm(Outbound((), resolve), FakeLocalModel())
    try:
        assert (await collect_error(guarded, build_call("bedrock", None))).kind == "not_allowed"
    finally:
        await guarded.close()
    assert asked == ["bedrock-runtime.eu-central-1.amazonaws.com"]


def test_boto3_is_loaded_for_bedrock_alone():
    code = "import sys, infra.llm.client; print('boto3' in sys.modules, 'pydantic_ai.models.bedrock' in sys.modules)"
    process = run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "False False"
