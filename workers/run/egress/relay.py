"""Copy bytes both ways between two connected sockets, as fast as the slower one takes them."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Final

COPY_BYTES: Final = 256 * 1024
# All relays of the process share it: a piece is sent, or copied out of it, before the next one is read.
_buffer: Final = memoryview(bytearray(COPY_BYTES))
_LINGER_NOT: Final = struct.pack("ii", 1, 0)

# Called with the bytes of a piece: it raises what ends the relay.
CountBytes = Callable[[int], None]


class ConnectionClosed(Exception):
    """Report that an end closed the connection in the middle, as clients do that have what they want."""


class _Flow:
    """Copy one direction. At the end of the source, the target's side is shut down."""

    def __init__(self, relay: "SocketRelay", source: socket.socket, target: socket.socket, count: CountBytes) -> None:
        self._relay, self._loop = relay, relay.loop
        self._source, self._target, self._count = source, target, count
        self._unsent = b""
        self.is_done = False

    def start(self, first: bytes = b"") -> None:
        """Start copying, with bytes that were read before."""
        if first:
            self._send_piece(memoryview(first))
        if not self._unsent and not self.is_done:
            self._loop.add_reader(self._source, self._read_piece)

    def stop(self) -> None:
        """Stop copying, for any reason."""
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._target)

    def _read_piece(self) -> None:
        try:
            size = self._source.recv_into(_buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._relay.end_by(self._source, error)
            return
        if size:
            self._send_piece(_buffer[:size])
            return
        self._loop.remove_reader(self._source)
        self._finish()

    def _send_piece(self, piece: memoryview) -> None:
        try:
            self._count(len(piece))
            sent = self._target.send(piece)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._relay.end_by(self._target, error)
            return
        except Exception as error:
            self._relay.end(error)
            return
        self._relay.last_used = self._loop.time()
        if sent < len(piece):
            self._unsent = bytes(piece[sent:])
            self._loop.remove_reader(self._source)
            self._loop.add_writer(self._target, self._send_unsent)

    def _send_unsent(self) -> None:
        try:
            sent = self._target.send(self._unsent)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._relay.end_by(self._target, error)
            return
        self._relay.last_used = self._loop.time()
        self._unsent = self._unsent[sent:]
        if self._unsent:
            return
        self._loop.remove_writer(self._target)
        self._loop.add_reader(self._source, self._read_piece)

    def _finish(self) -> None:
        self.is_done = True
        with contextlib.suppress(OSError):
            self._target.shutdown(socket.SHUT_WR)
        self._relay.on_flow_done()


class SocketRelay:
    """Copy between a client and a server until both have ended, or one fails. Closing the sockets is the caller's.

    `count_sent` and `count_received` are called before each piece is passed on.
    """

    def __init__(
        self, client: socket.socket, server: socket.socket, count_sent: CountBytes, count_received: CountBytes
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.last_used = self.loop.time()
        self._client = client
        self._done: asyncio.Future[None] = self.loop.create_future()
        self._flows = (_Flow(self, client, server, count_sent), _Flow(self, server, client, count_received))

    @property
    def is_client_done(self) -> bool:
        """Whether the client has closed its side, so that the rest is the server's."""
        return self._flows[0].is_done

    async def run(self, first: bytes = b"") -> None:
        """Copy to the end. `first` was read of the client before.

        Errors: `ConnectionClosed`, `OSError` of the server, and those of the counters.
        """
        up, down = self._flows
        try:
            up.start(first)
            if not self._done.done():
                down.start()
            await self._done
        finally:
            for flow in self._flows:
                flow.stop()

    def end_by(self, connection: socket.socket, error: OSError) -> None:
        """End the relay with the error of one of its sockets."""
        # Clients close before they have read the last of TLS, and servers at the same moment.
        is_closed = connection is self._client or self._flows[1].is_done
        self.end(ConnectionClosed() if is_closed else error)

    def end(self, error: Exception) -> None:
        """End the relay with an error."""
        if not self._done.done():
            for flow in self._flows:
                flow.stop()
            self._done.set_exception(error)

    def on_flow_done(self) -> None:
        """End the relay if both directions have ended."""
        if all(flow.is_done for flow in self._flows) and not self._done.done():
            self._done.set_result(None)


def reset_connection(connection: socket.socket) -> None:
    """Close a socket so that its peer sees an error, and not an ordinary end."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    connection.close()
