"""What servers that tenants chose send, bounded before it costs everybody else memory or time."""

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
from tests.support.scripted_model import call_model, call_model_with_body

EACH = pytest.mark.parametrize("provider", ["openai", "openai_compatible", "anthropic"])
PIECE = b"x" * (1 << 20)
PIECES = 64


@asynccontextmanager
async def refusing(head: bytes, gone: asyncio.Event) -> AsyncIterator[str]:
    """A server that refuses everything, at length. `gone` is set when its caller does not listen to the end."""

    async def answer(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(status=400, headers={"content-type": "application/json"})
        await response.prepare(request)
        try:
            await response.write(head)
            for _ in range(PIECES):
                await response.write(PIECE)
            await response.write_eof(b'"}}')
        except ConnectionError:
            gone.set()
        return response

    app = web.Application()
    app.router.add_post("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[union-attr]
    finally:
        await runner.cleanup()


@EACH
async def test_of_a_refusal_the_beginning_is_read(provider: str) -> None:
    gone = asyncio.Event()
    async with refusing(b'{"error": {"message": "Not like this.", "more": "', gone) as url:
        played = await call_model(url, provider=provider)
        assert played.error is not None
        assert played.error.kind == "refused"
        assert "Not like this." in played.error.message
        async with asyncio.timeout(60):
            await gone.wait()


@EACH
async def test_a_refusal_within_the_bound_is_read_as_it_was(provider: str) -> None:
    words = {"message": "Not like this.", "more": "x" * (MAX_ERROR_BYTES - 200)}
    played = await call_model_with_body(json.dumps({"error": words}), "application/json", 400, provider)
    assert played.error is not None
    assert played.error.message.endswith("(400): Not like this.")


def chunk(text: str, **more: Any) -> bytes:
    data = {"choices": [{"index": 0, "delta": {"content": text}, **more}]}
    return b"data: " + json.dumps(data).encode() + b"\n\n"


async def test_an_event_of_too_many_values_is_passed_over() -> None:
    many = chunk("no").replace(b'"choices"', b'"more": [' + b"[]," * 300_000 + b'[]], "choices"')
    played = await call_model_with_body(chunk("a") + many + chunk("b", finish_reason="stop") + b"data: [DONE]\n\n")
    assert played.text == "ab"


async def test_an_answer_of_too_many_values_is_none() -> None:
    message = {"role": "assistant", "content": "no"}
    whole = json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()
    assert (await call_model_with_body(whole, "application/json")).text == "no"
    many = whole[:-1] + b', "more": [' + b"[]," * 300_000 + b"[]]}"
    played = await call_model_with_body(many, "application/json")
    assert played.error is not None
    assert played.error.kind == "malformed"


def event(**data: Any) -> bytes:
    return f"event: {data.get('type', '')}\ndata: {json.dumps(data)}\n\n".encode()


LARGE = "n" * (1 << 20)


@pytest.mark.parametrize(
    ("provider", "one"),
    [
        (
            "openai_compatible",
            lambda number: event(
                choices=[{"delta": {"tool_calls": [{"index": number, "function": {"name": f"{number}{LARGE}"}}]}}]
            ),
        ),
        ("openai_compatible", lambda _: event(choices=[{"delta": {"reasoning_details": [{"data": LARGE}]}}])),
        (
            "anthropic",
            lambda number: event(
                type="content_block_start", index=number, content_block={"type": "redacted_thinking", "data": LARGE}
            ),
        ),
        (
            "openai",
            lambda number: event(
                type="response.output_item.done",
                output_index=number,
                item={"type": "reasoning", "id": f"r{number}", "encrypted_content": LARGE},
            ),
        ),
    ],
)
async def test_an_answer_is_bounded_in_what_is_kept_of_it_unseen(
    monkeypatch: pytest.MonkeyPatch, provider: str, one: Callable[[int], bytes]
) -> None:
    monkeypatch.setattr(event_stream, "MAX_RESPONSE_BYTES", 8 << 20)
    played = await call_model_with_body(b"".join(map(one, range(9))), provider=provider)
    assert played.error is not None
    assert (played.error.kind, "it is too long" in played.error.message) == ("malformed", True), played.error.message


async def test_others_have_their_turn_within_a_piece_that_was_packed() -> None:
    class Response:
        async def aiter_bytes(self) -> AsyncIterator[bytes]:
            yield chunk("x" * 1000) * 1000

    target = ModelTarget(name="m", provider="openai_compatible", model="m")
    ask = ModelCall(target=target, messages=(ChatMessage(role="user", content="x"),))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    beside = asyncio.create_task(others())
    events = [event async for batch in EventStream(cast(Any, Response()), ask).read_batches() for event in batch]
    beside.cancel()
    assert len(events) == 1000
    assert turns >= 10
