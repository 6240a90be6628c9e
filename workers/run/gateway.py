"""Serve OpenAI's chat API on the listener of a sandbox, with calls of the models that the run's version names.

Its client is untrusted code. A request names a model and its input, and nothing else of it goes further: no header and
no key. What a client may hold of this process is limited, and ends with its run.
"""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec
import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from domain.llms import ChatMessage, ModelError, ModelOptions, ModelReply, ReasoningDelta, ReplyPart, ToolSpec
from domain.ports import GATEWAY_LISTENER, NetworkServer
from domain.shared.json_limits import SMALL_JSON_BYTES
from workers.run.openai_wire import (
    CompletionRenderer,
    CompletionRequest,
    GatewayRefusal,
    parse_request,
    refuse_unknown_model,
    render_failure,
    render_model,
    render_refusal,
)

MAX_BODY_BYTES: Final = 4 << 20
# Bytes of all requests of a run that are being answered, as they were sent.
MAX_CONCURRENT_BYTES: Final = 16 << 20
# Limits of one run; more connections and requests wait, in the kernel or here.
MAX_CONNECTIONS: Final = 40
MAX_CONCURRENT_REQUESTS: Final = 32
MAX_CONCURRENT_READS: Final = 4
# Seconds after the connection, or after the previous answer, within which a request's head must arrive.
HEAD_TIMEOUT_SECONDS: Final = 20.0
BODY_TIMEOUT_SECONDS: Final = 30.0
# Seconds within which the agent must read a piece of an answer, once the buffer is full.
WRITE_TIMEOUT_SECONDS: Final = 30.0

_log = structlog.get_logger("paddock.gateway")
# aiohttp logs what an agent sent wrongly, as often as the agent likes.
_silent_log = logging.getLogger("paddock.gateway.http")
_silent_log.setLevel(logging.CRITICAL + 1)


class GatewayCalls(Protocol):
    """Call models for one execution, with its keys, budget, retries, costs and events."""

    def stream_answer(
        self, name: str, messages: tuple[ChatMessage, ...], tools: tuple[ToolSpec, ...], options: ModelOptions
    ) -> AsyncGenerator[ReplyPart, None]:
        """Yield the parts of an answer as they come, its `ModelReply` last. The caller reads to the end, or closes it.

        Closing it, or cancelling the task that reads it, ends the call at once and settles it.
        Errors: `domain.llms.messages.ModelError`; `budget_exceeded`, and others of `DomainError`.
        """
        ...


def serve_gateway(calls: GatewayCalls, models: Sequence[str]) -> NetworkServer:
    """Return what serves the named models on the listener of a run."""

    @contextlib.asynccontextmanager
    async def serve(listeners: Mapping[str, socket.socket]) -> AsyncIterator[None]:
        gateway = _ModelGateway(calls, tuple(models))
        accepting = asyncio.create_task(gateway.accept_connections(listeners[GATEWAY_LISTENER]))
        try:
            yield
        finally:
            accepting.cancel()
            await asyncio.wait([accepting])
            await gateway.close()

    return serve


class _GatewayServer(web.Server):
    """Limit the server of aiohttp."""

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
    """Answer the requests of one run."""

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
        """Accept connections while slots are free, until cancelled; others wait in the listener's queue."""
        loop = asyncio.get_running_loop()
        while True:
            await self._connection_slots.acquire()
            connection: socket.socket | None = None
            try:
                connection, _ = await loop.sock_accept(listener)
                await loop.connect_accepted_socket(self._server, connection)
            except OSError as error:
                # For example out of file descriptors: the connection waits until some are closed.
                _log.warning("cannot accept a connection", error=str(error))
                if connection is not None:
                    connection.close()
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
        """Answer in a task of its own, which a lost client and the end of the run cancel only once between them."""
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
            answer = _build_error_response(refused)
        except web.HTTPRequestEntityTooLarge:
            answer = _build_error_response(
                GatewayRefusal(413, f"The body is larger than {MAX_BODY_BYTES} bytes.", "too_large")
            )
            answer.force_close()
        except web.RequestPayloadError:
            answer = _build_error_response(GatewayRefusal(400, "The body breaks off."))
        except ConnectionError:
            raise
        except Exception:
            _log.exception("a request could not be answered")
            answer = _build_error_response(_INTERNAL_ERROR)
        self._close_if_full(answer)
        return answer

    def _close_if_full(self, answer: web.StreamResponse) -> None:
        """Close the connection after this answer if every slot is in use, as others wait for one."""
        if self._connection_slots.locked() and not answer.prepared:
            answer.force_close()

    async def _route_request(self, request: web.BaseRequest) -> web.StreamResponse:
        method, path = request.method, request.path
        if path == "/v1/chat/completions":
            _require_method("POST", method, path)
            async with self._request_slots:
                return await self._complete_chat(request)
        if path == "/v1/models":
            _require_method("GET", method, path)
            return _build_json_response({"object": "list", "data": [render_model(name) for name in self._models]})
        if path.startswith("/v1/models/"):
            _require_method("GET", method, path)
            return _build_json_response(render_model(self._check_model(path.removeprefix("/v1/models/"))))
        raise GatewayRefusal(
            404, f"There is no {method} {path[:200]} here: chat completions and models alone.", "unknown_url"
        )

    def _check_model(self, name: str) -> str:
        if name not in self._models:
            raise refuse_unknown_model(name)
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
            # A large body is parsed in a thread: all other runs share this event loop.
            is_small = size <= SMALL_JSON_BYTES
            completion = parse_request(body) if is_small else await asyncio.to_thread(parse_request, body)
            del body
            self._check_model(completion.model)
            parts = self._calls.stream_answer(
                completion.model, completion.messages, completion.tools, completion.options
            )
            async with contextlib.aclosing(parts):
                if completion.stream:
                    return await self._send_stream(request, completion, parts)
                return await self._send_whole(completion, parts)
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
        self, completion: CompletionRequest, parts: AsyncGenerator[ReplyPart, None]
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
            raise _refuse_call(error, completion) from error
        if reply is None:
            raise _refuse_call(_build_cut_off_error(), completion)
        return _build_json_response(CompletionRenderer(completion).render_whole(reply, "".join(thoughts)))

    async def _send_stream(
        self, request: web.BaseRequest, completion: CompletionRequest, parts: AsyncGenerator[ReplyPart, None]
    ) -> web.StreamResponse:
        try:
            # While nothing has come, an error still is one of HTTP, and a client may try again.
            first = await anext(parts)
        except StopAsyncIteration:
            raise _refuse_call(_build_cut_off_error(), completion) from None
        except Exception as error:
            raise _refuse_call(error, completion) from error
        response = web.StreamResponse(
            headers={**_OWN_HEADERS, "Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        self._close_if_full(response)
        await response.prepare(request)
        writer, reply = CompletionRenderer(completion), None
        await _write_chunk(request, response, writer.render_first())
        part: ReplyPart | None = first
        while part is not None:
            if isinstance(part, ModelReply):
                reply = part
            elif chunk := writer.render_part(part):
                await _write_chunk(request, response, chunk)
            try:
                part = await anext(parts, None)
            except Exception as error:
                await _write_chunk(request, response, render_failure(_refuse_call(error, completion)))
                return response
        ending = (
            writer.render_last(reply)
            if reply is not None
            else render_failure(_refuse_call(_build_cut_off_error(), completion))
        )
        await _write_chunk(request, response, ending)
        return response


_OWN_HEADERS: Final = {"Server": "paddock"}
_INTERNAL_ERROR: Final = GatewayRefusal(
    500, "An internal error occurred; the worker's log has the details.", "internal_error"
)


def _build_json_response(data: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(data),
        status=status,
        headers={**_OWN_HEADERS, **(headers or {}), "Content-Type": "application/json"},
    )


def _build_error_response(refused: GatewayRefusal) -> web.StreamResponse:
    return _build_json_response(refused.body, refused.status, refused.headers)


def _require_method(required: str, method: str, path: str) -> None:
    if method != required:
        raise GatewayRefusal(405, f"{path} takes {required} only.", "method_not_allowed")


def _cancel_once(task: asyncio.Task[Any]) -> None:
    """Cancel a task once: it settles what was used, and a second cancellation would interrupt that."""
    if not task.cancelling():
        task.cancel()


def _build_cut_off_error() -> ModelError:
    return ModelError("cut_off", "the answer ended without its end")


def _refuse_call(error: Exception, completion: CompletionRequest) -> GatewayRefusal:
    """Return the refusal for a failed call, and log what the agent does not learn."""
    refusal = render_refusal(error, completion.model)
    if refusal is None:
        _log.error("a call of a model failed", model=completion.model, exc_info=error)
        return _INTERNAL_ERROR
    if refusal.status >= 500:
        _log.warning("a call of a model failed", model=completion.model, status=refusal.status, error=str(error))
    return refusal


async def _write_chunk(request: web.BaseRequest, response: web.StreamResponse, chunk: bytes) -> None:
    try:
        async with asyncio.timeout(WRITE_TIMEOUT_SECONDS):
            await response.write(chunk)
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the client does not read the answer") from None
