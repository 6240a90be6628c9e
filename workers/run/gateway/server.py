"""Accept the connections of one run within its limits, and answer their requests until the run ends."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

import structlog
from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestHandler

from domain.egress import EgressEntry
from domain.ports import GATEWAY_LISTENER, NetworkServer
from infra.wires.common import WireRefusal
from workers.run.gateway.responder import INTERNAL_ERROR, build_json_response
from workers.run.gateway.router import RequestRouter
from workers.run.gateway.schema import GatewayCalls, GatewayLimits

_log = structlog.get_logger("paddock.gateway")
# aiohttp logs what an agent sent wrongly, as often as the agent likes.
_silent_log: Final = logging.getLogger("paddock.gateway.http")
_silent_log.setLevel(logging.CRITICAL + 1)
_USUAL_LIMITS: Final = GatewayLimits()


def serve_gateway(
    calls: GatewayCalls,
    models: Sequence[str],
    limits: GatewayLimits = _USUAL_LIMITS,
    egress: Sequence[EgressEntry] = (),
) -> NetworkServer:
    """Return what serves the named models on the listener of a run. Images may have URLs of the hosts in `egress`."""

    @contextlib.asynccontextmanager
    async def serve(listeners: Mapping[str, socket.socket]) -> AsyncIterator[None]:
        gateway = _ModelGateway(RequestRouter(calls, tuple(models), limits, tuple(egress)), limits)
        accepting = asyncio.create_task(gateway.accept_connections(listeners[GATEWAY_LISTENER]))
        try:
            yield
        finally:
            accepting.cancel()
            await asyncio.wait([accepting])
            await gateway.close()

    return serve


class _GatewayConnection(RequestHandler):
    """Answer what is not HTTP with an error that clients can parse."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        super().handle_error(request, status, exc, message)
        refusal = INTERNAL_ERROR
        if status < 500:
            is_large = isinstance(exc, LineTooLong) or "too many" in str(exc).lower()
            problem = "its head is too large" if is_large else "it is not valid HTTP"
            refusal = WireRefusal(status, f"The request cannot be read: {problem}.")
        response = build_json_response(refusal.body, refusal.status, refusal.headers)
        response.force_close()
        return response


class _GatewayServer(web.Server):
    """Limit the server of aiohttp."""

    def __init__(
        self,
        handler: Any,
        limits: GatewayLimits,
        connection_slots: asyncio.Semaphore,
        transports: dict[RequestHandler, asyncio.Transport],
    ) -> None:
        super().__init__(
            handler,
            request_factory=self._build_request,
            handler_cancellation=True,
            access_log=None,
            logger=_silent_log,
            keepalive_timeout=limits.head_timeout,
            lingering_time=1.0,
            auto_decompress=False,
            max_headers=64,
        )
        self._max_body_bytes = limits.max_body_bytes
        self._connection_slots, self._transports = connection_slots, transports

    def __call__(self) -> RequestHandler:
        return _GatewayConnection(self, loop=self._loop, **self._kwargs)

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        self._transports[handler] = transport

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        if self._transports.pop(handler, None) is not None:
            self._connection_slots.release()

    def _build_request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        return web.BaseRequest(
            message, payload, protocol, writer, task, self._loop, client_max_size=self._max_body_bytes
        )


class _ModelGateway:
    """Answer the requests of one run."""

    def __init__(self, router: RequestRouter, limits: GatewayLimits) -> None:
        self._router = router
        self._connection_slots = asyncio.Semaphore(limits.max_connections)
        self._transports: dict[RequestHandler, asyncio.Transport] = {}
        self._answering: set[asyncio.Task[web.StreamResponse]] = set()
        self._server = _GatewayServer(self._handle_request, limits, self._connection_slots, self._transports)

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
        task = asyncio.create_task(self._router.answer_request(request, self._prepare_response))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            _cancel_once(task)
            raise

    def _prepare_response(self, response: web.StreamResponse) -> None:
        """Have the connection close after this answer if every slot is in use, as others wait for one."""
        if self._connection_slots.locked() and not response.prepared:
            response.force_close()


def _cancel_once(task: asyncio.Task[Any]) -> None:
    """Cancel a task once: it settles what was used, and a second cancellation would interrupt that."""
    if not task.cancelling():
        task.cancel()
