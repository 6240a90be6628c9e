"""Limit connections: size and duration of a request's head, slowness of its body, connections per address.

uvicorn and its parser have none of these limits: they held 300 MiB of headers, and half a request without end.
Written against uvicorn's protocol classes, whose httptools callbacks are stable; the tests send real attacks.
"""

import asyncio
from collections import Counter
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from api.addresses import group_address, is_within, normalize_address
from infra.settings import Settings

# Slower bodies are refused, so that they do not occupy connections.
MIN_BODY_BYTES_PER_SECOND: Final = 1024


class ConnectionBounds:
    """Hold the limits of one process's connections, and count the connections of each address."""

    def __init__(self, settings: Settings, trusted: tuple[IPv4Network | IPv6Network, ...]) -> None:
        self.head_bytes = settings.request_head_bytes
        self.head_seconds, self.body_seconds = settings.request_head_seconds, settings.request_body_seconds
        self._per_address, self._trusted = settings.connections_per_address, trusted
        self._open: Counter[str] = Counter()

    def open_connection(self, peer: Any) -> str | None:
        """Count a connection; return the address to close it with, or None if the address has too many.

        Connections of trusted proxies serve many callers and have no limit.
        """
        address = normalize_address(peer[0]) if isinstance(peer, tuple) else "unknown"
        if not self._per_address or is_within(address, self._trusted):
            return ""
        address = group_address(address)
        if self._open[address] >= self._per_address:
            return None
        self._open[address] += 1
        return address

    def close_connection(self, address: str) -> None:
        """Stop counting a closed connection, by the address that `open_connection` returned."""
        if address:
            self._open[address] -= 1
            if self._open[address] <= 0:
                del self._open[address]


def find_bounds(app: Any) -> ConnectionBounds:
    """Return the bounds of an application. It carries them because uvicorn creates protocols by name alone."""
    bounds: ConnectionBounds = app.bounds
    return bounds


class BoundedHttp(HttpToolsProtocol):
    """Serve HTTP/1.1 as uvicorn does; a client that exceeds a limit gets an error and is disconnected."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._bounds = find_bounds(self.app)
        self._address: str | None = None
        self._refused = False
        # Whether the head or the body of the current request is incomplete, and whether a request ended among the bytes
        # that are being read.
        self._in_head = self._in_body = self._ended = False
        # Bytes of a head that the parser has reported, and that have arrived, some of which it may still buffer.
        self._head_size = self._head_raw = self._body_size = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, if its address may have one more."""
        super().connection_made(transport)
        self._address = self._bounds.open_connection(transport.get_extra_info("peername"))
        if self._address is None:
            self._refuse_request(429, "Too many open connections from this address.")
            return
        self._start_timer(self._bounds.head_seconds, self._on_slow_head)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop counting the connection, unless it became a WebSocket, which counts it then."""
        self._stop_timer()
        self._bounds.close_connection(self._address or "")
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse and count bytes."""
        if self._refused:
            return
        self._ended = False
        if self._in_body:
            self._body_size += len(data)
        super().data_received(data)
        if self._refused or self.transport.is_closing() or self.transport.get_protocol() is not self:
            return
        if self._in_body:
            if self._timer is None:
                self._body_size = 0
                self._start_timer(self._bounds.body_seconds, self._on_slow_body)
            return
        if self._in_head and not self._ended:
            self._head_raw += len(data)
            if self._head_raw > self._bounds.head_bytes:
                self._refuse_head()
                return
        # Empty lines before a head do not start it, but occupy the connection too.
        if self._timer is None and (self._in_head or self.cycle is None or self.cycle.response_complete):
            self._start_timer(self._bounds.head_seconds, self._on_slow_head)

    def on_message_begin(self) -> None:
        """Start counting a head."""
        self._in_head, self._in_body = True, False
        self._head_size = self._head_raw = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Count the bytes of the target."""
        super().on_url(url)
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count the bytes of a header with its colon and line break."""
        if not self._refused:
            self._count_head(len(name) + len(value) + 4)
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Pass the request on, unless its head was too large."""
        if self._refused:
            return
        self._stop_timer()
        self._in_head, self._in_body = False, True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Pass a part of the body on."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Wait for the next request."""
        if self._refused:
            return
        self._stop_timer()
        self._in_head, self._in_body, self._ended = False, False, True
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        """Pass the connection on to the WebSocket protocol, which counts it from now on."""
        self._stop_timer()
        address, self._address = self._address, ""
        super().handle_websocket_upgrade()
        protocol = self.transport.get_protocol()
        if isinstance(protocol, BoundedWebSockets):
            protocol.address = address or ""
        else:
            self._bounds.close_connection(address or "")

    def send_400_response(self, msg: str) -> None:
        """Answer invalid HTTP with 400, unless the request is already refused."""
        if not self._refused:
            self._refused = True
            self._stop_timer()
            super().send_400_response(msg)

    def _count_head(self, size: int) -> None:
        self._head_size += size
        if self._head_size > self._bounds.head_bytes and not self._refused:
            self._refuse_head()

    def _refuse_head(self) -> None:
        self._refuse_request(431, f"The head of a request must be at most {self._bounds.head_bytes} bytes.")

    def _on_slow_head(self) -> None:
        self._timer = None
        self._refuse_request(408, "The head of the request arrived too slowly.")

    def _on_slow_body(self) -> None:
        self._timer = None
        if not self._in_body or self.transport.is_closing():
            return
        # A paused read or an early answer is not the client's slowness.
        is_slow = self._body_size < MIN_BODY_BYTES_PER_SECOND * self._bounds.body_seconds
        if is_slow and not self.flow.read_paused and not self.cycle.response_started:
            self._refuse_request(408, "The body of the request arrives too slowly.")
            return
        self._body_size = 0
        self._start_timer(self._bounds.body_seconds, self._on_slow_body)

    def _refuse_request(self, status: int, detail: str) -> None:
        self._refused = True
        self._stop_timer()
        if not self.transport.is_closing():
            body = detail.encode()
            head = b"content-type: text/plain; charset=utf-8\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
            self.transport.write(STATUS_LINE[status] + head % len(body) + body)
            self.transport.close()

    def _start_timer(self, seconds: float, callback: Any) -> None:
        self._stop_timer()
        if seconds:
            self._timer = self.loop.call_later(seconds, callback)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class BoundedWebSockets(WebSocketsSansIOProtocol):
    """Serve WebSockets as uvicorn does, and count their connections with those of their address."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._bounds = find_bounds(self.app)
        self.address = ""

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop counting the connection."""
        address, self.address = self.address, ""
        self._bounds.close_connection(address)
        super().connection_lost(exc)
