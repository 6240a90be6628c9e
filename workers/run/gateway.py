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

from domain.llms.messages import Message, ModelError, Options, Part, Reply, Thought, ToolSpec
from domain.ports import Serve
from domain.shared.json_limits import SMALL_JSON_BYTES
from workers.run.openai_wire import Asked, Refused, Writer, asked, failed, listed, no_model, refusal

MAX_BODY: Final = 4 << 20
# All requests of a run that are being answered together may hold so much, in bytes as they were sent.
MAX_HELD: Final = 16 << 20
# Of one run; whoever wants more waits, in the kernel or here.
CONNECTIONS: Final = 40
REQUESTS: Final = 32
READING: Final = 4
# A request's head must be there so long after its connection, or the answer before it; seconds.
HEAD_SECONDS: Final = 20.0
BODY_SECONDS: Final = 30.0
# And the agent must take a piece of an answer, once there is no room for more.
WRITE_SECONDS: Final = 30.0

_log = structlog.get_logger("paddock.gateway")
# What aiohttp has to say is what an agent sent wrongly, as often as it likes.
_unheard = logging.getLogger("paddock.gateway.http")
_unheard.setLevel(logging.CRITICAL + 1)


class Calls(Protocol):
    """Calls of models for one execution, with all that belongs to one: key, budget, retries, cost and events."""

    def stream(
        self, name: str, messages: tuple[Message, ...], tools: tuple[ToolSpec, ...], options: Options
    ) -> AsyncGenerator[Part, None]:
        """The parts of an answer as they come, the last one its `Reply`. It is closed, or read to its end.

        Closing it, or cancelling whoever waits for it, ends the call at once and settles it.
        Errors: `domain.llms.messages.ModelError`; `budget_exceeded`, and others of `DomainError`.
        """
        ...


def serving(calls: Calls, models: Sequence[str]) -> Serve:
    """Serves the named models on the listener of a run."""

    @contextlib.asynccontextmanager
    async def serve(listener: socket.socket) -> AsyncIterator[None]:
        gateway = _Gateway(calls, tuple(models))
        accepting = asyncio.create_task(gateway.accept(listener))
        try:
            yield
        finally:
            accepting.cancel()
            await asyncio.wait([accepting])
            await gateway.end()

    return serve


class _Server(web.Server):
    """aiohttp's, bounded."""

    def __init__(
        self, handler: Any, room: asyncio.Semaphore, transports: dict[RequestHandler, asyncio.Transport]
    ) -> None:
        super().__init__(
            handler,
            request_factory=self._request,
            handler_cancellation=True,
            access_log=None,
            logger=_unheard,
            keepalive_timeout=HEAD_SECONDS,
            lingering_time=1.0,
            auto_decompress=False,
            max_headers=64,
        )
        self._room, self._transports = room, transports

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self._transports[handler] = transport

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        if self._transports.pop(handler, None) is not None:
            self._room.release()

    def _request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        return web.BaseRequest(message, payload, protocol, writer, task, self._loop, client_max_size=MAX_BODY)


class _Gateway:
    """What one entering of `serving` needs."""

    def __init__(self, calls: Calls, models: tuple[str, ...]) -> None:
        self._calls, self._models = calls, models
        self._room = asyncio.Semaphore(CONNECTIONS)
        self._requests, self._reading = asyncio.Semaphore(REQUESTS), asyncio.Semaphore(READING)
        self._held = 0
        self._transports: dict[RequestHandler, asyncio.Transport] = {}
        self._answering: set[asyncio.Task[web.StreamResponse]] = set()
        self._server = _Server(self._handle, self._room, self._transports)

    async def accept(self, listener: socket.socket) -> None:
        """Take connections as there is room for them, until cancelled; others wait in the listener's queue."""
        loop = asyncio.get_running_loop()
        while True:
            await self._room.acquire()
            taken: socket.socket | None = None
            try:
                taken, _ = await loop.sock_accept(listener)
                await loop.connect_accepted_socket(self._server, taken)
            except OSError as error:
                # Out of descriptors, say: theirs wait, and ours may come free.
                _log.warning("cannot take a connection", error=str(error))
                if taken is not None:
                    taken.close()
                self._room.release()
                await asyncio.sleep(0.1)

    async def end(self) -> None:
        """Break off everything, and wait until the calls of models are settled."""
        answering = set(self._answering)
        for task in answering:
            _cancel(task)
        for transport in list(self._transports.values()):
            transport.abort()
        if answering:
            await asyncio.wait(answering)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer in a task of its own: whoever hangs up, and the end of the run, cancel a call once between them."""
        task = asyncio.create_task(self._answer(request))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            _cancel(task)
            raise

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            answer = await self._answered(request)
        except Refused as refused:
            answer = _error(refused)
        except web.HTTPRequestEntityTooLarge:
            answer = _error(Refused(413, f"The body is larger than {MAX_BODY} bytes.", "too_large"))
            answer.force_close()
        except web.RequestPayloadError:
            answer = _error(Refused(400, "The body breaks off."))
        except ConnectionError:
            raise
        except Exception:
            _log.exception("a request could not be answered")
            answer = _error(_OURS)
        self._make_room(answer)
        return answer

    def _make_room(self, answer: web.StreamResponse) -> None:
        """Where every connection is taken, none is kept for later: others wait."""
        if self._room.locked() and not answer.prepared:
            answer.force_close()

    async def _answered(self, request: web.BaseRequest) -> web.StreamResponse:
        wanted, path = request.method, request.path
        if path == "/v1/chat/completions":
            _only("POST", wanted, path)
            async with self._requests:
                return await self._complete(request)
        if path == "/v1/models":
            _only("GET", wanted, path)
            return _json({"object": "list", "data": [listed(name) for name in self._models]})
        if path.startswith("/v1/models/"):
            _only("GET", wanted, path)
            return _json(listed(self._known(path.removeprefix("/v1/models/"))))
        raise Refused(404, f"There is no {wanted} {path[:200]} here: chat completions and models alone.", "unknown_url")

    def _known(self, name: str) -> str:
        if name not in self._models:
            raise no_model(name)
        return name

    async def _complete(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await self._body(request)
        size = len(body)
        if self._held + size > MAX_HELD:
            raise Refused(429, f"All requests at work together are larger than {MAX_HELD} bytes.", "too_large_together")
        self._held += size
        try:
            # A large one is read beside the loop, which is that of all other runs too.
            wanted = asked(body) if size <= SMALL_JSON_BYTES else await asyncio.to_thread(asked, body)
            del body
            self._known(wanted.model)
            parts = self._calls.stream(wanted.model, wanted.messages, wanted.tools, wanted.options)
            async with contextlib.aclosing(parts):
                if wanted.stream:
                    return await self._streamed(request, wanted, parts)
                return await self._whole(wanted, parts)
        finally:
            self._held -= size

    async def _body(self, request: web.BaseRequest) -> bytes:
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise Refused(415, "The body must not be compressed.")
        if (request.content_length or 0) > MAX_BODY:
            raise web.HTTPRequestEntityTooLarge(MAX_BODY, request.content_length or 0)
        try:
            async with self._reading, asyncio.timeout(BODY_SECONDS):
                return await request.read()
        except TimeoutError:
            raise Refused(408, "The body took too long to come.") from None

    async def _whole(self, wanted: Asked, parts: AsyncGenerator[Part, None]) -> web.StreamResponse:
        reply: Reply | None = None
        thoughts: list[str] = []
        try:
            async for part in parts:
                if isinstance(part, Reply):
                    reply = part
                elif isinstance(part, Thought):
                    thoughts.append(part.text)
        except Exception as error:
            raise _refused(error, wanted) from error
        if reply is None:
            raise _refused(_unfinished(), wanted)
        return _json(Writer(wanted).whole(reply, "".join(thoughts)))

    async def _streamed(
        self, request: web.BaseRequest, wanted: Asked, parts: AsyncGenerator[Part, None]
    ) -> web.StreamResponse:
        try:
            # While nothing has come, an error still is one of HTTP, and a client may try again.
            first = await anext(parts)
        except StopAsyncIteration:
            raise _refused(_unfinished(), wanted) from None
        except Exception as error:
            raise _refused(error, wanted) from error
        response = web.StreamResponse(
            headers={**_OWN, "Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
        )
        self._make_room(response)
        await response.prepare(request)
        writer, reply = Writer(wanted), None
        await _write(request, response, writer.first())
        part: Part | None = first
        while part is not None:
            if isinstance(part, Reply):
                reply = part
            elif told := writer.part(part):
                await _write(request, response, told)
            try:
                part = await anext(parts, None)
            except Exception as error:
                await _write(request, response, failed(_refused(error, wanted)))
                return response
        ending = writer.last(reply) if reply is not None else failed(_refused(_unfinished(), wanted))
        await _write(request, response, ending)
        return response


_OWN: Final = {"Server": "paddock"}
_OURS: Final = Refused(500, "Something went wrong here; it is in the worker's log.", "internal_error")


def _json(told: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(told),
        status=status,
        headers={**_OWN, **(headers or {}), "Content-Type": "application/json"},
    )


def _error(refused: Refused) -> web.StreamResponse:
    return _json(refused.body, refused.status, refused.headers)


def _only(method: str, wanted: str, path: str) -> None:
    if wanted != method:
        raise Refused(405, f"{path} takes {method} alone.", "method_not_allowed")


def _cancel(task: asyncio.Task[Any]) -> None:
    """Once: it is settling what was used, and a second time would interrupt that."""
    if not task.cancelling():
        task.cancel()


def _unfinished() -> ModelError:
    return ModelError("cut_off", "the answer ended without its end")


def _refused(error: Exception, wanted: Asked) -> Refused:
    """The words for a call that failed, and a line in our log where the agent is told less than we know."""
    told = refusal(error, wanted.model)
    if told is None:
        _log.error("a call of a model failed", model=wanted.model, exc_info=error)
        return _OURS
    if told.status >= 500:
        _log.warning("a call of a model failed", model=wanted.model, status=told.status, error=str(error))
    return told


async def _write(request: web.BaseRequest, response: web.StreamResponse, told: bytes) -> None:
    try:
        async with asyncio.timeout(WRITE_SECONDS):
            await response.write(told)
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("nobody reads the answer") from None
