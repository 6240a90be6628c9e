"""Accept the connections of one run on its listeners, and connect each with its host until the run ends."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Final

import structlog

from domain.egress import EgressEntry
from domain.ports import GATEWAY_LISTENER, PROXY_LISTENER, NetworkServer
from workers.run.egress.connector import connect_host
from workers.run.egress.parser import build_refusal, parse_connect, split_head
from workers.run.egress.record import EgressRecord
from workers.run.egress.relay import ConnectionClosed, SocketRelay, reset_connection
from workers.run.egress.schema import EgressAccess, EgressConnection, EgressEnd

# So long are connections left waiting when this process has no more descriptors.
_ACCEPT_PAUSE_SECONDS: Final = 0.1
_SWEEP_SECONDS: Final = 5.0
_CONNECTED_ANSWER: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"

_log = structlog.get_logger("paddock.egress")


def serve_egress(
    access: EgressAccess, tenant_id: str, entries: Sequence[EgressEntry], record: EgressRecord
) -> NetworkServer:
    """Return what connects a run with the hosts of its entries."""

    @contextlib.asynccontextmanager
    async def serve(listeners: Mapping[str, socket.socket]) -> AsyncIterator[None]:
        server = _EgressServer(access, tenant_id, tuple(entries), record)
        server.start({name: listener for name, listener in listeners.items() if name != GATEWAY_LISTENER})
        try:
            yield
        finally:
            await server.close()
            record.finish()

    return serve


class _OpenConnection:
    """Hold a connection while it is open. `end` is set when something else than its ends ends it."""

    def __init__(self, description: EgressConnection, client: socket.socket, started_at: float) -> None:
        self.description, self.client, self.started_at = description, client, started_at
        self.relay: SocketRelay | None = None
        self.end: EgressEnd | None = None


class _EgressServer:
    """Serve the connections of one run, within its limits."""

    def __init__(
        self, access: EgressAccess, tenant_id: str, entries: tuple[EgressEntry, ...], record: EgressRecord
    ) -> None:
        self._access, self._limits = access, access.limits
        self._tenant_id, self._entries, self._record = tenant_id, entries, record
        self._loop = asyncio.get_running_loop()
        self._listeners: dict[str, socket.socket] = {}
        self._is_accepting = False
        self._open: dict[asyncio.Task[None], _OpenConnection] = {}
        self._count = self._sent_bytes = self._received_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def start(self, listeners: dict[str, socket.socket]) -> None:
        """Start accepting."""
        self._listeners = listeners
        self._resume_accepting()
        self._timer = self._loop.call_later(_SWEEP_SECONDS, self._sweep)

    async def close(self) -> None:
        """End every connection, and record it."""
        self._pause_accepting()
        self._listeners = {}
        # What agents closed just before their end is noticed first.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        if self._timer is not None:
            self._timer.cancel()
        for task, connection in self._open.items():
            _end_connection(task, connection, EgressEnd("run_ended", "The run ended while it was open.", 502))
        if self._open:
            await asyncio.wait(list(self._open))

    # accepting

    def _resume_accepting(self) -> None:
        if self._is_accepting or len(self._open) >= self._limits.max_open:
            return
        self._is_accepting = True
        for name, listener in self._listeners.items():
            self._loop.add_reader(listener, partial(self._accept_connection, name, listener))

    def _pause_accepting(self) -> None:
        """Leave further connections waiting in the kernel."""
        self._is_accepting = False
        for listener in self._listeners.values():
            self._loop.remove_reader(listener)

    def _accept_connection(self, name: str, listener: socket.socket) -> None:
        if not self._is_accepting:
            return
        try:
            client, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as error:
            _log.warning("cannot accept a connection", error=str(error))
            self._pause_accepting()
            self._loop.call_later(_ACCEPT_PAUSE_SECONDS, self._resume_accepting)
            return
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._count += 1
        if name == PROXY_LISTENER:
            description = EgressConnection(host="", port=0, is_proxied=True)
        else:
            host, _, port = name.rpartition(":")
            description = EgressConnection(host=host, port=int(port))
        connection = _OpenConnection(description, client, self._loop.time())
        task = self._loop.create_task(self._serve_connection(connection))
        self._open[task] = connection
        task.add_done_callback(self._on_served)
        if len(self._open) >= self._limits.max_open:
            self._pause_accepting()

    def _on_served(self, task: "asyncio.Task[None]") -> None:
        connection = self._open.pop(task)
        description = connection.description
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a connection could not be served", exc_info=error)
            description.outcome, description.reason = "broken", "An internal error occurred."
        description.duration_ms = round((self._loop.time() - connection.started_at) * 1000)
        self._record.add(description)
        self._access.on_closed(description)
        self._resume_accepting()

    # one connection

    async def _serve_connection(self, connection: _OpenConnection) -> None:
        """Connect a client with its host until either is done. How it ends is in the description."""
        client, description = connection.client, connection.description
        with contextlib.ExitStack() as stack:
            stack.callback(reset_connection, client)
            try:
                self._check_limits()
                first = await self._read_target(connection) if description.is_proxied else b""
                seconds = self._limits.connect_seconds
                host, port = description.host, description.port
                server = await connect_host(self._access.lookups, self._tenant_id, host, port, seconds)
                stack.callback(reset_connection, server)
                if description.is_proxied:
                    await self._loop.sock_sendall(client, _CONNECTED_ANSWER)
                await self._relay_bytes(connection, server, first)
                # Both ends have closed it: an ordinary end, and no reset.
                client.close()
                server.close()
            except ConnectionClosed:
                pass
            except EgressEnd as end:
                await self._finish_connection(connection, end)
            except OSError as error:
                reason = f"It broke off: {error.strerror or type(error).__name__}."
                await self._finish_connection(connection, EgressEnd("broken", reason, 502))
            except asyncio.CancelledError:
                await self._finish_connection(connection, EgressEnd("run_ended", "The run ended.", 502))

    async def _finish_connection(self, connection: _OpenConnection, end: EgressEnd) -> None:
        end = connection.end or end
        description = connection.description
        if end.outcome == "run_ended" and connection.relay is not None and connection.relay.is_client_done:
            return
        description.outcome, description.reason = end.outcome, end.reason
        if not description.is_proxied or connection.relay is not None:
            return
        with contextlib.suppress(OSError):
            # An empty kernel buffer takes it at once, or the client has to do without.
            connection.client.send(build_refusal(end))
            connection.client.shutdown(socket.SHUT_WR)
            # Closed in the ordinary way: a reset could overtake the answer.
            connection.client.close()

    def _check_limits(self) -> None:
        limits = self._limits
        if self._count > limits.max_connections:
            raise EgressEnd("limit", f"A run may make {limits.max_connections} connections.", 429)
        if max(self._sent_bytes, self._received_bytes) > limits.max_bytes:
            raise EgressEnd("limit", f"A run may send and receive {limits.max_bytes} bytes.", 429)

    async def _read_target(self, connection: _OpenConnection) -> bytes:
        """Read which host a client of the proxy asks for; return what it has sent behind that. Errors: `EgressEnd`."""
        data, description = b"", connection.description
        try:
            async with asyncio.timeout(self._limits.head_seconds):
                while (parts := split_head(data)) is None:
                    part = await self._loop.sock_recv(connection.client, 4096)
                    if not part:
                        raise EgressEnd("broken", "The request to the proxy breaks off.", 400)
                    data += part
        except TimeoutError:
            raise EgressEnd("refused", "The request to the proxy did not come in time.", 408) from None
        head, first = parts
        host, port = parse_connect(head)
        description.host, description.port = host, port
        if not any(entry.is_matching(host, port) for entry in self._entries):
            raise EgressEnd("refused", f"The version does not declare {host}:{port}.", 403)
        return first

    async def _relay_bytes(self, connection: _OpenConnection, server: socket.socket, first: bytes) -> None:
        description, max_bytes = connection.description, self._limits.max_bytes

        def count_sent(size: int) -> None:
            description.sent_bytes += size
            self._sent_bytes += size
            if self._sent_bytes > max_bytes:
                raise EgressEnd("limit", f"The run has sent more than {max_bytes} bytes.", 429)

        def count_received(size: int) -> None:
            description.received_bytes += size
            self._received_bytes += size
            if self._received_bytes > max_bytes:
                raise EgressEnd("limit", f"The run has received more than {max_bytes} bytes.", 429)

        connection.relay = SocketRelay(connection.client, server, count_sent, count_received)
        await connection.relay.run(first)

    def _sweep(self) -> None:
        """End connections that are idle, or open, for too long."""
        now, limits = self._loop.time(), self._limits
        for task, connection in self._open.items():
            if now - connection.started_at > limits.total_seconds:
                reason = f"It was open for more than {limits.total_seconds:g} s."
                _end_connection(task, connection, EgressEnd("limit", reason, 429))
            elif connection.relay is not None and now - connection.relay.last_used > limits.idle_seconds:
                reason = f"It was idle for more than {limits.idle_seconds:g} s."
                _end_connection(task, connection, EgressEnd("limit", reason, 429))
        self._timer = self._loop.call_later(_SWEEP_SECONDS, self._sweep)


def _end_connection(task: "asyncio.Task[None]", connection: _OpenConnection, end: EgressEnd) -> None:
    if connection.end is None:
        connection.end = end
        task.cancel()
