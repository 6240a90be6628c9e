"""The gateway of one run: OpenAI's wire on the listener of a sandbox, answered by calls of its version's models.

Whoever asks there is a stranger's code. It can say what it is asked for, and nothing of who asks or how: no header goes
any further, and no key comes from it. What it may hold of this process is bounded, and ends with its run.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, Final, Protocol

import msgspec
import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from domain.llms import ChatMessage, ModelError, ModelOptions, ModelReply, ReasoningDelta, ReplyPart, ToolSpec
from domain.ports import GatewayServer
from domain.shared.json_limits import SMALL_JSON_BYTES
from workers.run.openai_wire import (
    CompletionRenderer,
    CompletionRequest,
    GatewayRefusal,
    parse_request,
    refusal_from_error,
    render_failure,
    render_model,
    unknown_model,
)

MAX_BODY_BYTES: Final = 4 << 20
# All requests of a run that are being answered together may hold so much, in bytes as they were sent.
MAX_CONCURRENT_BYTES: Final = 16 << 20
# Of one run; whoever wants more waits, in the kernel or here.
MAX_CONNECTIONS: Final = 40
MAX_CONCURRENT_REQUESTS: Final = 32
MAX_CONCURRENT_READS: Final = 4
# A request's head must be there so long after its connection, or the answer before it; seconds.
HEAD_TIMEOUT_SECONDS: Final = 20.0
BODY_TIMEOUT_SECONDS: Final = 30.0
# And the agent must take a piece of an answer, once there is no room for more.
WRITE_TIMEOUT_SECONDS: Final = 30.0

_log = structlog.get_logger("paddock.gateway")
# What aiohttp has to say is what an agent sent wrongly, as often as it likes.
_silent_log = logging.getLogger("paddock.gateway.http")
_silent_log.setLevel(logging.CRITICAL + 1)


class GatewayCalls(Protocol):
    """Calls of models for one execution, with all that belongs to one: key, budget, retries, cost and events."""

    def stream_answer(
        self, name: str, messages: tuple[ChatMessage, ...], tools: tuple[ToolSpec, ...], options: ModelOptions
    ) -> AsyncGenerator[ReplyPart, None]:
        """The parts of an answer as they come, the last one its `Reply`. It is closed, or read to its end.

        Closing it, or cancelling whoever waits for it, ends the call at once and settles it.
        Errors: `domain.llms.messages.ModelError`; `budget_exceeded`, and others of `DomainError`.
        """
        ...


def serve_gateway(calls: GatewayCalls, models: Sequence[str]) -> GatewayServer:
    """Serves the named models on the listener of a run."""

    @contextlib.asynccontextmanager
    async def serve(listener: socket.socket) -> AsyncIterator[None]:
        gateway = _ModelGateway(calls, tuple(models))
        accepting = asyncio.create_task(gateway.accept_connections(listener))
        try:
            yield
        finally:
            accepting.cancel()
            await asyncio.wait([accepting])
            await gateway.close()

    return serve


class _GatewayServer(web.Server):
    """aiohttp's, bounded."""

    def __init__(
        self, handler: Any, connection_slots: asyncio.Semaphore, transports: dict[RequestHandler, asyncio.Transport]
    ) -> None:
        super().__init__(
            handler,
            request_factory=self._build_request,
            handler_cancellation=True,
            access_log=None,
            logger=_silent_log,
            keepalive_timeout=HEAD_TIMEOUT_SECONDS,
            lingering_time=1.0,
            auto_decompress=False,
            max_headers=64,
        )
        self._connection_slots, self._transports = connection_slots, transports

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self._transports[handler] = transport

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        if self._transports.pop(handler, None) is not None:
            self._connection_slots.release()

    def _build_request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        return web.BaseRequest(message, payload, protocol, writer, task, self._loop, client_max_size=MAX_BODY_BYTES)


class _ModelGateway:
    """What one entering of `serving` needs."""

    def __init__(self, calls: GatewayCalls, models: tuple[str, ...]) -> None:
        self._calls, self._models = calls, models
        self._connection_slots = asyncio.Semaphore(MAX_CONNECTIONS)
        self._request_slots, self._read_slots = (
            asyncio.Semaphore(MAX_CONCURRENT_REQUESTS),
            asyncio.Semaphore(MAX_CONCURRENT_READS),
        )
        self._bytes_in_progress = 0
        self._transports: dict[RequestHandler, asyncio.Transport] = {}
        self._answering: set[asyncio.Task[web.StreamResponse]] = set()
        self._server = _GatewayServer(self._handle_request, self._connection_slots, self._transports)

    async def accept_connections(self, listener: socket.socket) -> None:
        """Take connections as there is room for them, until cancelled; others wait in the listener's queue."""
        loop = asyncio.get_running_loop()
        while True:
            await self._connection_slots.acquire()
            taken: socket.socket | None = None
            try:
                taken, _ = await loop.sock_accept(listener)
                await loop.connect_accepted_socket(self._server, taken)
            except OSError as error:
                # Out of descriptors, say: theirs wait, and ours may come free.
                _log.warning("cannot take a connection", error=str(error))
                if taken is not None:
                    taken.close()
                self._connection_slots.release()
                await asyncio.sleep(0.1)

    async def close(self) -> None:
        """Break off everything, and wait until the calls of models are settled."""
        answering = set(self._answering)
        for task in answering:
            _cancel_once(task)
        for transport in list(self._transports.values()):
            transport.abort()
        if answering:
            await asyncio.wait(answering)

    async def _handle_request(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer in a task of its own: whoever hangs up, and the end of the run, cancel a call once between them."""
        task = asyncio.create_task(self._answer_request(request))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            _cancel_once(task)
            raise

    async def _answer_request(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            answer = await self._route_request(request)
        except GatewayRefusal as refused:
            answer = _error_response(refused)
        except web.HTTPRequestEntityTooLarge:
            answer = _error_response(
                GatewayRefusal(413, f"The body is larger than {MAX_BODY_BYTES} bytes.", "too_large")
            )
            answer.force_close()
        except web.RequestPayloadError:
            answer = _error_response(GatewayRefusal(400, "The body breaks off."))
        except ConnectionError:
            raise
        except Exception:
            _log.exception("a request could not be answered")
            answer = _error_response(_INTERNAL_ERROR)
        self._close_if_full(answer)
        return answer

    def _close_if_full(self, answer: web.StreamResponse) -> None:
        """Where every connection is taken, none is kept for later: others wait."""
        if self._connection_slots.locked() and not answer.prepared:
            answer.force_close()

    async def _route_request(self, request: web.BaseRequest) -> web.StreamResponse:
        wanted, path = request.method, request.path
        if path == "/v1/chat/completions":
            _require_method("POST", wanted, path)
            async with self._request_slots:
                return await self._complete_chat(request)
        if path == "/v1/models":
            _require_method("GET", wanted, path)
            return _json_response({"object": "list", "data": [render_model(name) for name in self._models]})
        if path.startswith("/v1/models/"):
            _require_method("GET", wanted, path)
            return _json_response(render_model(self._check_model(path.removeprefix("/v1/models/"))))
        raise GatewayRefusal(
            404, f"There is no {wanted} {path[:200]} here: chat completions and models alone.", "unknown_url"
        )

    def _check_model(self, name: str) -> str:
        if name not in self._models:
            raise unknown_model(name)
        return name

    async def _complete_chat(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await self._read_body(request)
        size = len(body)
        if self._bytes_in_progress + size > MAX_CONCURRENT_BYTES:
            raise GatewayRefusal(
                429,
                f"All requests at work together are larger than {MAX_CONCURRENT_BYTES} bytes.",
                "too_large_together",
            )
        self._bytes_in_progress += size
        try:
            # A large one is read beside the loop, which is that of all other runs too.
            wanted = parse_request(body) if size <= SMALL_JSON_BYTES else await asyncio.to_thread(parse_request, body)
            del body
            self._check_model(wanted.model)
            parts = self._calls.stream_answer(wanted.model, wanted.messages, wanted.tools, wanted.options)
            async with contextlib.aclosing(parts):
                if wanted.stream:
                    return await self._send_stream(request, wanted, parts)
                return await self._send_whole(wanted, parts)
        finally:
            self._bytes_in_progress -= size

    async def _read_body(self, request: web.BaseRequest) -> bytes:
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise GatewayRefusal(415, "The body must not be compressed.")
        if (request.content_length or 0) > MAX_BODY_BYTES:
            raise web.HTTPRequestEntityTooLarge(MAX_BODY_BYTES, request.content_length or 0)
        try:
            async with self._read_slots, asyncio.timeout(BODY_TIMEOUT_SECONDS):
                return await request.read()
        except TimeoutError:
            raise GatewayRefusal(408, "The body took too long to come.") from None

    async def _send_whole(
        self, wanted: CompletionRequest, parts: AsyncGenerator[ReplyPart, None]
    ) -> web.StreamResponse:
        reply: ModelReply | None = None
        thoughts: list[str] = []
        try:
            async for part in parts:
                if isinstance(part, ModelReply):
                    reply = part
                elif isinstance(part, ReasoningDelta):
                    thoughts.append(part.text)
        except Exception as error:
            raise _refuse_call(error, wanted) from error
        if reply is None:
            raise _refuse_call(_unfinished_error(), wanted)
        return _json_response(CompletionRenderer(wanted).render_whole(reply, "".join(thoughts)))

    async def _send_stream(
        self, request: web.BaseRequest, wanted: CompletionRequest, parts: AsyncGenerator[ReplyPart, None]
    ) -> web.StreamResponse:
        try:
            # While nothing has come, an error still is one of HTTP, and a client may try again.
            first = await anext(parts)
        except StopAsyncIteration:
            raise _refuse_call(_unfinished_error(), wanted) from None
        except Exception as error:
            raise _refuse_call(error, wanted) from error
        response = web.StreamResponse(
            headers={**_OWN_HEADERS, "Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        self._close_if_full(response)
        await response.prepare(request)
        writer, reply = CompletionRenderer(wanted), None
        await _write_chunk(request, response, writer.render_first())
        part: ReplyPart | None = first
        while part is not None:
            if isinstance(part, ModelReply):
                reply = part
            elif told := writer.render_part(part):
                await _write_chunk(request, response, told)
            try:
                part = await anext(parts, None)
            except Exception as error:
                await _write_chunk(request, response, render_failure(_refuse_call(error, wanted)))
                return response
        ending = (
            writer.render_last(reply)
            if reply is not None
            else render_failure(_refuse_call(_unfinished_error(), wanted))
        )
        await _write_chunk(request, response, ending)
        return response


_OWN_HEADERS: Final = {"Server": "paddock"}
_INTERNAL_ERROR: Final = GatewayRefusal(500, "Something went wrong here; it is in the worker's log.", "internal_error")


def _json_response(told: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(told),
        status=status,
        headers={**_OWN_HEADERS, **(headers or {}), "Content-Type": "application/json"},
    )


def _error_response(refused: GatewayRefusal) -> web.StreamResponse:
    return _json_response(refused.body, refused.status, refused.headers)


def _require_method(method: str, wanted: str, path: str) -> None:
    if wanted != method:
        raise GatewayRefusal(405, f"{path} takes {method} alone.", "method_not_allowed")


def _cancel_once(task: asyncio.Task[Any]) -> None:
    """Once: it is settling what was used, and a second time would interrupt that."""
    if not task.cancelling():
        task.cancel()


def _unfinished_error() -> ModelError:
    return ModelError("cut_off", "the answer ended without its end")


def _refuse_call(error: Exception, wanted: CompletionRequest) -> GatewayRefusal:
    """The words for a call that failed, and a line in our log where the agent is told less than we know."""
    told = refusal_from_error(error, wanted.model)
    if told is None:
        _log.error("a call of a model failed", model=wanted.model, exc_info=error)
        return _INTERNAL_ERROR
    if told.status >= 500:
        _log.warning("a call of a model failed", model=wanted.model, status=told.status, error=str(error))
    return told


async def _write_chunk(request: web.BaseRequest, response: web.StreamResponse, told: bytes) -> None:
    try:
        async with asyncio.timeout(WRITE_TIMEOUT_SECONDS):
            await response.write(told)
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("nobody reads the answer") from None
