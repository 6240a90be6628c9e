"""Receive the listening sockets of a sandbox, and serve on them in the worker.

Trusted code makes them in the sandbox's own network before anything of the agent runs, and passes them through a pair
of Unix sockets that the agent never sees. The worker verifies the received sockets all the same.
"""

import asyncio
import contextlib
import os
import socket
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

import structlog

from domain.ports import NetworkServer, SandboxLost
from infra.sandbox.network import ListenerPlace

# A connection may hold this much in the worker's kernel, in bytes for each direction; accepted ones inherit it.
SOCKET_BUFFER_BYTES: Final = 128 * 1024
# The most descriptors that the kernel passes in one message.
MAX_LISTENERS: Final = 253

_log = structlog.get_logger("paddock.sandbox")


class SandboxListeners:
    """Hold the sockets that are made in one sandbox, from when they arrive until they are closed.

    `places` are where they have to be. `maker_end` is for the code that makes them; the worker closes it once that code
    has it.
    """

    def __init__(self, places: Sequence[ListenerPlace] = ()) -> None:
        self._loop = asyncio.get_running_loop()
        self.places = tuple(places)
        self._worker_end, self.maker_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._worker_end.setblocking(False)
        self._received: asyncio.Future[dict[str, socket.socket]] = self._loop.create_future()
        self._is_serving = False

    def expect_places(self, places: Sequence[ListenerPlace]) -> None:
        """Choose the listeners of a sandbox that was started without knowing them."""
        self.places = tuple(places)

    def receive_sockets(self) -> None:
        """Receive the listeners, which have been sent by now, and none after them. Errors: `SandboxLost`."""
        if self._received.done():
            return
        listeners, problem = receive_listeners(self._worker_end, self.places)
        self._finish_receiving(listeners)
        if problem is not None:
            _log.error("a sandbox sent something else than its listeners", problem=problem)
            raise SandboxLost(f"The sandbox's network has no listeners: {problem}.")

    def close(self) -> None:
        """Close every socket: the sandbox's network ends with the last of them."""
        self.maker_end.close()
        self._finish_receiving({})
        self._close_sockets()

    @contextlib.asynccontextmanager
    async def serve_connections(
        self, serve: NetworkServer | None, on_failure: Callable[[], None]
    ) -> AsyncIterator[None]:
        """Serve while this context is open, from when there are listeners. Without `serve`, connections are refused.

        If serving fails, `on_failure` is called at once, and the error is raised when the context closes.
        """
        self._is_serving = True
        task = self._loop.create_task(self._serve_sockets(serve))
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
            if self._received.done():
                self._close_sockets()
            if not cancelled and not task.cancelled():
                task.result()
            if cancelled:
                raise asyncio.CancelledError

    async def _serve_sockets(self, serve: NetworkServer | None) -> None:
        listeners = await asyncio.shield(self._received)
        if not listeners:
            return
        if serve is None:
            # Clients are refused at once, rather than left waiting.
            for listener in listeners.values():
                listener.close()
            return
        async with serve(listeners):
            await self._loop.create_future()

    def _close_sockets(self) -> None:
        """Close the sockets, unless a server waits for connections on them: their numbers would become others'."""
        if self._is_serving:
            return
        for listener in self._received.result().values():
            if listener.fileno() >= 0:
                # The server may have been stopped while it started. A number that stays registered makes the loop deaf
                # to the next descriptor that gets it: a process whose end is never noticed.
                self._loop.remove_reader(listener)
                listener.close()

    def _finish_receiving(self, listeners: dict[str, socket.socket]) -> None:
        if self._received.done():
            return
        self._worker_end.close()
        self._received.set_result(listeners)


def receive_listeners(
    pair: socket.socket, places: Sequence[ListenerPlace]
) -> tuple[dict[str, socket.socket], str | None]:
    """Receive the listeners of these places that lie in a socket pair, or return the problem with what does.

    Everything else that arrives is closed.
    """
    try:
        # Space for one more than the kernel passes at most. Not by `socket.recv_fds`, which ignores its flags.
        space = socket.CMSG_SPACE((MAX_LISTENERS + 1) * 4)
        data, ancillary, flags, _ = pair.recvmsg(16, space, socket.MSG_CMSG_CLOEXEC)
    except BlockingIOError:
        data, ancillary, flags = b"", [], 0
    except OSError as error:
        return {}, str(error)
    fds = array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    if flags & socket.MSG_CTRUNC:
        # The kernel leaves out those that this process may not open any more.
        for fd in fds:
            os.close(fd)
        return {}, f"{len(fds)} of {len(places)} listeners could be opened: too many open files (`ulimit -n`)"
    if len(fds) != len(places) or (data and not places):
        for fd in fds:
            os.close(fd)
        return {}, f"{len(fds)} descriptors arrived, {len(places)} were expected"
    return _verify_listeners(fds, places)


def _verify_listeners(
    fds: Sequence[int], places: Sequence[ListenerPlace]
) -> tuple[dict[str, socket.socket], str | None]:
    listeners: dict[str, socket.socket] = {}
    problem: str | None = None
    for fd, (name, address, port) in zip(fds, places, strict=True):
        try:
            listener = socket.socket(fileno=fd)
        except OSError:
            os.close(fd)
            problem = problem or f"{name}: no socket"
            continue
        listeners[name] = listener
        fault = _find_socket_problem(listener, (address, port))
        if fault is not None:
            problem = problem or f"{name}: {fault}"
            continue
        listener.setblocking(False)
        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
            listener.setsockopt(socket.SOL_SOCKET, option, SOCKET_BUFFER_BYTES)
    if problem is None:
        return listeners, None
    for listener in listeners.values():
        listener.close()
    return {}, problem


def _find_socket_problem(candidate: socket.socket, place: tuple[str, int]) -> str | None:
    """Return why this is no TCP listener at its place, as the kernel knows it; None if it is."""
    expectations = (
        (socket.SO_DOMAIN, socket.AF_INET, "no IPv4 socket"),
        (socket.SO_TYPE, socket.SOCK_STREAM, "no stream"),
        (socket.SO_PROTOCOL, socket.IPPROTO_TCP, "not TCP"),
        (socket.SO_ACCEPTCONN, 1, "not listening"),
    )
    for option, expected, problem in expectations:
        if candidate.getsockopt(socket.SOL_SOCKET, option) != expected:
            return problem
    return None if candidate.getsockname() == place else f"not at {place[0]}:{place[1]}"
