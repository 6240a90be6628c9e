"""How a guest with a gateway hands its listening socket to the worker, and who serves on it.

The guest makes the socket in the sandbox's own network, where nothing else is, and passes it through a pair of Unix
sockets, of which it closes its end before it imports anything. What the worker is handed is looked at all the same.
"""

import asyncio
import contextlib
import os
import socket
from array import array
from collections.abc import AsyncIterator, Callable
from typing import Final

import structlog

from domain.ports import GatewayServer, SandboxLost

# What a connection may hold in the worker's kernel, in bytes for each direction; accepted ones inherit it.
SOCKET_BUFFER_BYTES: Final = 128 * 1024

_log = structlog.get_logger("paddock.sandbox")


class GatewayListener:
    """The worker's side of one handover. It owns the socket, once there is one, until it is closed."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._worker_end, self.guest_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._worker_end.setblocking(False)
        self._handed_over: asyncio.Future[socket.socket | None] = self._loop.create_future()
        self._on_refused: Callable[[SandboxLost], None] | None = None
        self._is_serving = False

    def start_receiving(self, refused: Callable[[SandboxLost], None]) -> None:
        """Listen for the handover; `refused` is told if it is not what it should be."""
        self._on_refused = refused
        self._loop.add_reader(self._worker_end, self._receive_socket)

    def end_handover(self) -> None:
        """What has not been handed over by now never is."""
        if not self._handed_over.done():
            self._receive_socket(last=True)

    def close(self) -> None:
        """Free everything: the sandbox's network ends with the last of its sockets."""
        self.guest_end.close()
        self._finish_handover(None)
        self._close_socket()

    @contextlib.asynccontextmanager
    async def serve_connections(self, serve: GatewayServer | None, end: Callable[[], None]) -> AsyncIterator[None]:
        """Serve while this is entered, from when there is a listener. Without `serve`, connections are refused.

        Should serving fail, `end` is called and the error raised in the end.
        """
        self._is_serving = True
        serving = self._loop.create_task(self._serve_socket(serve))
        serving.add_done_callback(lambda task: None if task.cancelled() or task.exception() is None else end())
        try:
            yield
        finally:
            cancelled = False
            serving.cancel()
            while not serving.done():
                try:
                    await asyncio.wait([serving])
                except asyncio.CancelledError:
                    # Whoever is impatient waits as well: calls of models are settled before the run is.
                    cancelled = True
            self._is_serving = False
            if self._handed_over.done():
                self._close_socket()
            if not cancelled and not serving.cancelled():
                serving.result()
            if cancelled:
                raise asyncio.CancelledError

    async def _serve_socket(self, serve: GatewayServer | None) -> None:
        given = await asyncio.shield(self._handed_over)
        if given is None:
            return
        if serve is None:
            # Whoever connects is refused at once, rather than left waiting.
            given.close()
            return
        async with serve(given):
            await self._loop.create_future()

    def _close_socket(self) -> None:
        """Close the socket, unless somebody waits for connections on it: its number would be another's meanwhile."""
        given = self._handed_over.result()
        if given is not None and not self._is_serving and given.fileno() >= 0:
            # Whoever served may have been stopped in the middle of beginning to. A number that stays listened to
            # makes the loop deaf to the next descriptor that gets it: a process whose end nobody hears of.
            self._loop.remove_reader(given)
            given.close()

    def _receive_socket(self, last: bool = False) -> None:
        try:
            given, problem = receive_listener(self._worker_end)
        except BlockingIOError:
            if last:
                self._finish_handover(None)
            return
        self._finish_handover(given)
        if problem is not None:
            _log.error("a sandbox handed over what is no gateway's listener", problem=problem)
            if self._on_refused is not None:
                self._on_refused(SandboxLost(f"The sandbox handed over no listener for its gateway: {problem}."))

    def _finish_handover(self, given: socket.socket | None) -> None:
        if self._handed_over.done():
            return
        self._loop.remove_reader(self._worker_end)
        self._worker_end.close()
        self._handed_over.set_result(given)


def receive_listener(pair: socket.socket) -> tuple[socket.socket | None, str | None]:
    """The one listener that lies in a socket pair, or what is wrong with what does. Errors: `BlockingIOError`.

    Everything else that comes along is closed. Neither a socket nor a problem means that nobody will send anything.
    """
    try:
        # Room for two: of more, the kernel closes the rest. Not by `socket.recv_fds`, which forgets its flags.
        data, more, flags, _ = pair.recvmsg(16, socket.CMSG_SPACE(2 * 4), socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        raise
    except OSError as error:
        return None, str(error)
    fds = array("i")
    for level, kind, held in more:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(held[: len(held) - len(held) % fds.itemsize])
    if not data and not fds:
        return None, None
    if len(fds) != 1 or flags & socket.MSG_CTRUNC:
        for fd in fds:
            os.close(fd)
        return None, "not exactly one descriptor"
    try:
        given = socket.socket(fileno=fds[0])
    except OSError:
        os.close(fds[0])
        return None, "no socket"
    problem = _find_socket_problem(given)
    if problem is not None:
        given.close()
        return None, problem
    given.setblocking(False)
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        given.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
    return given, None


def _find_socket_problem(given: socket.socket) -> str | None:
    """Why this is no TCP listener on 127.0.0.1, as the kernel knows it."""
    expected = (
        (socket.SO_DOMAIN, socket.AF_INET, "no IPv4 socket"),
        (socket.SO_TYPE, socket.SOCK_STREAM, "no stream"),
        (socket.SO_PROTOCOL, socket.IPPROTO_TCP, "not TCP"),
        (socket.SO_ACCEPTCONN, 1, "not listening"),
    )
    for option, wanted, problem in expected:
        if given.getsockopt(socket.SOL_SOCKET, option) != wanted:
            return problem
    return None if given.getsockname()[0] == "127.0.0.1" else "not on 127.0.0.1"
