"""Answer requests over HTTP: whole, as a stream of events, or with an error."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any, Final

import msgspec
import structlog
from aiohttp import web

from domain.llms import ModelError, ModelReply, ReplyPart
from infra.wires.common import AnswerRenderer, WireRefusal
from workers.run.gateway.refusals import render_refusal

_log = structlog.get_logger("paddock.gateway")

# Called with every response before it is sent.
PrepareResponse = Callable[[web.StreamResponse], None]

INTERNAL_ERROR: Final = WireRefusal(
    500, "An internal error occurred; the worker's log has the details.", "internal_error"
)
_OWN_HEADERS: Final = {"Server": "paddock"}
_STREAM_HEADERS: Final = {**_OWN_HEADERS, "Content-Type": "text/event-stream", "Cache-Control": "no-cache"}


def build_json_response(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Build a response whose body is JSON."""
    return web.Response(
        body=msgspec.json.encode(data),
        status=status,
        headers={**_OWN_HEADERS, **(headers or {}), "Content-Type": "application/json"},
    )


async def send_whole(
    model: str, renderer: AnswerRenderer, parts: AsyncGenerator[ReplyPart, None]
) -> web.StreamResponse:
    """Read an answer to its end and return it as one body. Errors: `WireRefusal`."""
    reply: ModelReply | None = None
    try:
        async for part in parts:
            if isinstance(part, ModelReply):
                reply = part
            else:
                renderer.add_part(part)
    except Exception as error:
        raise refuse_call(error, model) from error
    if reply is None:
        raise refuse_call(_build_cut_off_error(), model)
    return build_json_response(renderer.render_whole(reply))


class StreamSender:
    """Send one answer as a stream of events, or in pieces. `write_timeout` is in seconds, for one piece of it."""

    def __init__(self, request: web.BaseRequest, prepare: PrepareResponse, write_timeout: float) -> None:
        self._request, self._prepare, self._write_timeout = request, prepare, write_timeout
        self._response = web.StreamResponse(headers=_STREAM_HEADERS)

    async def send_stream(
        self, model: str, renderer: AnswerRenderer, parts: AsyncGenerator[ReplyPart, None]
    ) -> web.StreamResponse:
        """Send an answer while it comes. Errors: `WireRefusal` if it fails before its first part."""
        try:
            # While nothing has come, an error still is one of HTTP, and a client may try again.
            first = await anext(parts)
        except StopAsyncIteration:
            raise refuse_call(_build_cut_off_error(), model) from None
        except Exception as error:
            raise refuse_call(error, model) from error
        self._prepare(self._response)
        await self._response.prepare(self._request)
        await self._write(renderer.render_first())
        part: ReplyPart | None = first
        reply: ModelReply | None = None
        while part is not None:
            if isinstance(part, ModelReply):
                reply = part
            else:
                await self._write(renderer.render_part(part))
            try:
                part = await anext(parts, None)
            except Exception as error:
                await self._write(renderer.render_failure(refuse_call(error, model)))
                return self._response
        if reply is None:
            await self._write(renderer.render_failure(refuse_call(_build_cut_off_error(), model)))
        else:
            await self._write(renderer.render_last(reply))
        return self._response

    async def send_pieces(self, pieces: Iterable[bytes]) -> web.StreamResponse:
        """Send a body of JSON in pieces."""
        self._response.headers["Content-Type"] = "application/json"
        self._prepare(self._response)
        await self._response.prepare(self._request)
        for piece in pieces:
            await self._write(piece)
        return self._response

    async def _write(self, piece: bytes) -> None:
        if not piece:
            return
        try:
            async with asyncio.timeout(self._write_timeout):
                await self._response.write(piece)
        except TimeoutError:
            if self._request.transport is not None:
                self._request.transport.abort()
            raise ConnectionResetError("the client does not read the answer") from None


def refuse_call(error: Exception, model: str) -> WireRefusal:
    """Return the refusal for a failed call, and log what the agent does not learn."""
    refusal = render_refusal(error, model)
    if refusal is None:
        _log.error("a call of a model failed", model=model, exc_info=error)
        return INTERNAL_ERROR
    if refusal.status >= 500:
        _log.warning("a call of a model failed", model=model, status=refusal.status, error=str(error))
    return refusal


def _build_cut_off_error() -> ModelError:
    return ModelError("cut_off", "the answer ended without its end")
