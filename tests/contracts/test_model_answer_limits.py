"""Limit what servers chosen by tenants may send, before it costs others memory or time."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from aiohttp import web

from domain.llms import ChatMessage, ModelCall, ModelTarget
from infra.llm import MAX_ERROR_BYTES, event_stream
from infra.llm.event_stream import EventStream
from tests.support.scripted_model import call_model, call_model_with_body, serve_posts

EACH_API = pytest.mark.parametrize("provider", ["openai", "openai_compatible", "anthropic"])
PIECE_BYTES = b"x" * (1 << 20)
PIECE_COUNT = 64


@asynccontextmanager
async def refuse_at_length(head: bytes, hung_up: asyncio.Event) -> AsyncIterator[str]:
    """Serve refusals with endless bodies. `hung_up` is set when the client hangs up before the end."""

    async def answer(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(status=400, headers={"content-type": "application/json"})
        await response.prepare(request)
        try:
            await response.write(head)
            for _ in range(PIECE_COUNT):
                await response.write(PIECE_BYTES)
            await response.write_eof(b'"}}')
        except ConnectionError:
            hung_up.set()
        return response

    async with serve_posts(answer) as url:
        yield url


@EACH_API
async def test_only_the_beginning_of_a_refusal_is_read(provider: str) -> None:
    hung_up = asyncio.Event()
    async with refuse_at_length(b'{"error": {"message": "Not like this.", "more": "', hung_up) as url:
        result = await call_model(url, provider=provider)
        assert result.error is not None
        assert result.error.kind == "refused"
        assert "Not like this." in result.error.message
        async with asyncio.timeout(60):
            await hung_up.wait()


@EACH_API
async def test_refusal_below_the_limit_is_read_whole(provider: str) -> None:
    error = {"message": "Not like this.", "more": "x" * (MAX_ERROR_BYTES - 200)}
    result = await call_model_with_body(json.dumps({"error": error}), "application/json", 400, provider)
    assert result.error is not None
    assert result.error.message.endswith("(400): Not like this.")


def build_chunk(text: str, **more: Any) -> bytes:
    data = {"choices": [{"index": 0, "delta": {"content": text}, **more}]}
    return b"data: " + json.dumps(data).encode() + b"\n\n"


async def test_event_of_too_many_values_is_skipped() -> None:
    oversized_chunk = build_chunk("no").replace(b'"choices"', b'"more": [' + b"[]," * 300_000 + b'[]], "choices"')
    result = await call_model_with_body(
        build_chunk("a") + oversized_chunk + build_chunk("b", finish_reason="stop") + b"data: [DONE]\n\n"
    )
    assert result.text == "ab"


async def test_answer_of_too_many_values_is_malformed() -> None:
    message = {"role": "assistant", "content": "no"}
    whole = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()
    assert (await call_model_with_body(whole, "application/json")).text == "no"
    oversized_answer = whole[:-1] + b', "more": [' + b"[]," * 300_000 + b"[]]}"
    result = await call_model_with_body(oversized_answer, "application/json")
    assert result.error is not None
    assert result.error.kind == "malformed"


def build_event(**data: Any) -> bytes:
    return f"event: {data.get('type', '')}\ndata: {json.dumps(data)}\n\n".encode()


LARGE_TEXT = "n" * (1 << 20)


@pytest.mark.parametrize(
    ("provider", "build_part"),
    [
        (
            "openai_compatible",
            lambda number: build_event(
                choices=[{"delta": {"tool_calls": [{"index": number, "function": {"name": f"{number}{LARGE_TEXT}"}}]}}]
            ),
        ),
        (
            "openai_compatible",
            lambda _: build_event(choices=[{"delta": {"reasoning_details": [{"data": LARGE_TEXT}]}}]),
        ),
        (
            "anthropic",
            lambda number: build_event(
                type="content_block_start",
                index=number,
                content_block={"type": "redacted_thinking", "data": LARGE_TEXT},
            ),
        ),
        (
            "openai",
            lambda number: build_event(
                type="response.output_item.done",
                output_index=number,
                item={"type": "reasoning", "id": f"r{number}", "encrypted_content": LARGE_TEXT},
            ),
        ),
    ],
)
async def test_hidden_parts_of_an_answer_are_limited(
    monkeypatch: pytest.MonkeyPatch, provider: str, build_part: Callable[[int], bytes]
) -> None:
    monkeypatch.setattr(event_stream, "MAX_RESPONSE_BYTES", 8 << 20)
    result = await call_model_with_body(b"".join(map(build_part, range(9))), provider=provider)
    assert result.error is not None
    assert (result.error.kind, "it is too long" in result.error.message) == ("malformed", True), result.error.message


async def test_large_compressed_piece_does_not_block_the_event_loop() -> None:
    class Response:
        async def aiter_bytes(self) -> AsyncIterator[bytes]:
            yield build_chunk("x" * 1000) * 1000

    target = ModelTarget(name="m", provider="openai_compatible", model="m")
    call = ModelCall(target=target, messages=(ChatMessage(role="user", content="x"),))
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    background = asyncio.create_task(count_turns())
    events = [event async for batch in EventStream(cast(Any, Response()), call).read_batches() for event in batch]
    background.cancel()
    assert len(events) == 1000
    assert turns >= 10
