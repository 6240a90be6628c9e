"""Receive a gateway's listening socket from a guest, and serve on it in the worker.

The guest makes the socket in the sandbox's own network, where nothing else is, and passes it through a pair of Unix
sockets, of which it closes its end before it imports anything. The worker verifies the received socket all the same.
"""

import asyncio
import contextlib
import os
import socket
from array import array
from collections.abc import AsyncIterator, Callable
from typing import Final

import structlog

from domain.ports import GATEWAY_LISTENER, NetworkServer, SandboxLost

# A connection may hold this much in the worker's kernel, in bytes for each direction; accepted ones inherit it.
SOCKET_BUFFER_BYTES: Final = 128 * 1024

_log = structlog.get_logger("paddock.sandbox")


class GatewayListener:
    """Hold the socket that a guest hands over, until it is closed."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._worker_end, self.guest_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._worker_end.setblocking(False)
        self._handed_over: asyncio.Future[socket.socket | None] = self._loop.create_future()
        self._on_refused: Callable[[SandboxLost], None] | None = None
        self._is_serving = False

    def start_receiving(self, on_refused: Callable[[SandboxLost], None]) -> None:
        """Wait for the handover; call `on_refused` if something else than a listener arrives."""
        self._on_refused = on_refused
        self._loop.add_reader(self._worker_end, self._receive_socket)

    def end_handover(self) -> None:
        """Accept a socket that has arrived, and none after it."""
        if not self._handed_over.done():
            self._receive_socket(is_last=True)

    def close(self) -> None:
        """Close every socket: the sandbox's network ends with the last of them."""
        self.guest_end.close()
        self._finish_handover(None)
        self._close_socket()

    @contextlib.asynccontextmanager
    async def serve_connections(
        self, serve: NetworkServer | None, on_failure: Callable[[], None]
    ) -> AsyncIterator[None]:
        """Serve while this context is open, from when there is a listener. Without `serve`, connections are refused.

        If serving fails, `on_failure` is called at once, and the error is raised when the context closes.
        """
        self._is_serving = True
        task = self._loop.create_task(self._serve_socket(serve))
        task.add_done_callback(lambda done: None if done.cancelled() or done.exception() is None else on_failure())
        try:
            yield
        finally:
            cancelled = False
            task.cancel()
            while not task.done():
                try:
                    await asyncio.wait([task])
                except asyncio.CancelledError:
                    # A second cancellation waits as well: calls of models are settled before the run is.
                    cancelled = True
            self._is_serving = False
            if self._handed_over.done():
                self._close_socket()
            if not cancelled and not task.cancelled():
                task.result()
            if cancelled:
                raise asyncio.CancelledError

    async def _serve_socket(self, serve: NetworkServer | None) -> None:
        listener = await asyncio.shield(self._handed_over)
        if listener is None:
            return
        if serve is None:
            # Clients are refused at once, rather than left waiting.
            listener.close()
            return
        async with serve({GATEWAY_LISTENER: listener}):
            await self._loop.create_future()

    def _close_socket(self) -> None:
        """Close the socket, unless a server waits for connections on it: its number would be another's meanwhile."""
        listener = self._handed_over.result()
        if listener is not None and not self._is_serving and listener.fileno() >= 0:
            # The server may have been stopped while it started. A number that stays registered makes the loop deaf to
            # the next descriptor that gets it: a process whose end is never noticed.
            self._loop.remove_reader(listener)
            listener.close()

    def _receive_socket(self, is_last: bool = False) -> None:
        try:
            listener, problem = receive_listener(self._worker_end)
        except BlockingIOError:
            if is_last:
                self._finish_handover(None)
            return
        self._finish_handover(listener)
        if problem is not None:
            _log.error("a sandbox handed over something else than its gateway's listener", problem=problem)
            if self._on_refused is not None:
                self._on_refused(SandboxLost(f"The sandbox handed over no listener for its gateway: {problem}."))

    def _finish_handover(self, listener: socket.socket | None) -> None:
        if self._handed_over.done():
            return
        self._loop.remove_reader(self._worker_end)
        self._worker_end.close()
        self._handed_over.set_result(listener)


def receive_listener(pair: socket.socket) -> tuple[socket.socket | None, str | None]:
    """Receive the listener that lies in a socket pair, or return the problem with what does.

    Everything else that arrives is closed. Neither a socket nor a problem means that the other end is closed.
    Errors: `BlockingIOError`.
    """
    try:
        # Space for two: of more, the kernel closes the rest. Not by `socket.recv_fds`, which ignores its flags.
        data, ancillary, flags, _ = pair.recvmsg(16, socket.CMSG_SPACE(2 * 4), socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        raise
    except OSError as error:
        return None, str(error)
    fds = array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if not data and not fds:
        return None, None
    if len(fds) != 1 or flags & socket.MSG_CTRUNC:
        for fd in fds:
            os.close(fd)
        return None, "not exactly one descriptor"
    try:
        listener = socket.socket(fileno=fds[0])
    except OSError:
        os.close(fds[0])
        return None, "no socket"
    problem = _find_socket_problem(listener)
    if problem is not None:
        listener.close()
        return None, problem
    listener.setblocking(False)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        listener.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
    return listener, None


def _find_socket_problem(candidate: socket.socket) -> str | None:
    """Return why this is no TCP listener on 127.0.0.1, as the kernel knows it; None if it is."""
    expectations = (
        (socket.SO_DOMAIN, socket.AF_INET, "no IPv4 socket"),
        (socket.SO_TYPE, socket.SOCK_STREAM, "no stream"),
        (socket.SO_PROTOCOL, socket.IPPROTO_TCP, "not TCP"),
        (socket.SO_ACCEPTCONN, 1, "not listening"),
    )
    for option, expected, problem in expectations:
        if candidate.getsockopt(socket.SOL_SOCKET, option) != expected:
            return problem
    return None if candidate.getsockname()[0] == "127.0.0.1" else "not on 127.0.0.1"
