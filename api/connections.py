"""Connections, bounded: how large and slow a request's head may be, how slow its body, how many one address may have.

uvicorn and its parser have no such bounds: 300 MiB of headers were held, and half a request for as long as it took.
Written against uvicorn's protocol classes, whose callbacks of httptools are stable; the tests send attacks for real.
"""

import asyncio
from collections import Counter
from ipaddress import IPv4Network, IPv6Network
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from api.addresses import counted_address, is_within, normalize_address
from infra.settings import Settings

# Of a body, a second: what comes more slowly holds a connection for nothing.
MIN_BODY_RATE: Final = 1024


class ConnectionBounds:
    """What one process lets its connections do, and how many each address has now."""

    def __init__(self, settings: Settings, trusted: tuple[IPv4Network | IPv6Network, ...]) -> None:
        self.head_bytes = settings.request_head_bytes
        self.head_seconds, self.body_seconds = settings.request_head_seconds, settings.request_body_seconds
        self._per_address, self._trusted = settings.connections_per_address, trusted
        self._open: Counter[str] = Counter()

    def open(self, peer: Any) -> str | None:
        """Count a connection; returns what to close it with, or None where the address has all that it may have.

        Those of trusted proxies are of many callers: they have no bound.
        """
        address = normalize_address(peer[0]) if isinstance(peer, tuple) else "unknown"
        if not self._per_address or is_within(address, self._trusted):
            return ""
        address = counted_address(address)
        if self._open[address] >= self._per_address:
            return None
        self._open[address] += 1
        return address

    def close(self, address: str) -> None:
        """The connection that `open` returned this for is gone."""
        if address:
            self._open[address] -= 1
            if self._open[address] <= 0:
                del self._open[address]


def bounds_of(app: Any) -> ConnectionBounds:
    """Return the bounds of an application: it carries them, as uvicorn makes protocols by their name alone."""
    bounds: ConnectionBounds = app.bounds
    return bounds


class BoundedHttp(HttpToolsProtocol):
    """HTTP/1.1 as uvicorn speaks it; whoever goes past a bound is told so and hung up on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._bounds = bounds_of(self.app)
        self._address: str | None = None
        self._refused = False
        # Of the request that is on its way: whether its head, or its body, has begun to come and is not there yet; and
        # whether one ended among the bytes that are read just now.
        self._in_head = self._in_body = self._ended = False
        # What the parser has given of a head; and what has come of one, that it may still keep to itself.
        self._head_size = self._head_raw = self._body_size = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, if its address may have one more."""
        super().connection_made(transport)
        self._address = self._bounds.open(transport.get_extra_info("peername"))
        if self._address is None:
            self._refuse(429, "This address has too many connections open.")
            return
        self._start(self._bounds.head_seconds, self._on_slow_head)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection. One that became a WebSocket is lost there."""
        self._stop()
        self._bounds.close(self._address or "")
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read on, and count."""
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
                self._start(self._bounds.body_seconds, self._on_slow_body)
            return
        if self._in_head and not self._ended:
            self._head_raw += len(data)
            if self._head_raw > self._bounds.head_bytes:
                self._refuse_head()
                return
        # Empty lines before a head are no head yet, and hold a connection just as well.
        if self._timer is None and (self._in_head or self.cycle is None or self.cycle.response_complete):
            self._start(self._bounds.head_seconds, self._on_slow_head)

    def on_message_begin(self) -> None:
        """Begin to count a head."""
        self._in_head, self._in_body = True, False
        self._head_size = self._head_raw = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Count the target."""
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header with its colon and line break."""
        if not self._refused:
            self._count(len(name) + len(value) + 4)
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Hand the request over, unless its head was too large."""
        if self._refused:
            return
        self._stop()
        self._in_head, self._in_body = False, True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Hand a part of the body over."""
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Wait for the next request, for which there are no bytes yet."""
        if self._refused:
            return
        self._stop()
        self._in_head, self._in_body, self._ended = False, False, True
        super().on_message_complete()

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over, together with its place among those of its address."""
        self._stop()
        address, self._address = self._address, ""
        super().handle_websocket_upgrade()
        protocol = self.transport.get_protocol()
        if isinstance(protocol, BoundedWebSockets):
            protocol.address = address or ""
        else:
            self._bounds.close(address or "")

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, unless there is an answer."""
        if not self._refused:
            self._refused = True
            self._stop()
            super().send_400_response(msg)

    def _count(self, size: int) -> None:
        self._head_size += size
        if self._head_size > self._bounds.head_bytes and not self._refused:
            self._refuse_head()

    def _refuse_head(self) -> None:
        self._refuse(431, f"The head of a request may have {self._bounds.head_bytes} bytes.")

    def _on_slow_head(self) -> None:
        self._timer = None
        self._refuse(408, "The head of the request took too long to come.")

    def _on_slow_body(self) -> None:
        self._timer = None
        if not self._in_body or self.transport.is_closing():
            return
        # What we do not take does not come either; and whoever has an answer already is no more waited for.
        slow = self._body_size < MIN_BODY_RATE * self._bounds.body_seconds
        if slow and not self.flow.read_paused and not self.cycle.response_started:
            self._refuse(408, "The body of the request comes too slowly.")
            return
        self._body_size = 0
        self._start(self._bounds.body_seconds, self._on_slow_body)

    def _refuse(self, status: int, detail: str) -> None:
        self._refused = True
        self._stop()
        if not self.transport.is_closing():
            body = detail.encode()
            head = b"content-type: text/plain; charset=utf-8\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
            self.transport.write(STATUS_LINE[status] + head % len(body) + body)
            self.transport.close()

    def _start(self, seconds: float, then: Any) -> None:
        self._stop()
        if seconds:
            self._timer = self.loop.call_later(seconds, then)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class BoundedWebSockets(WebSocketsSansIOProtocol):
    """WebSockets as uvicorn speaks them, whose connections count among those of their address."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._bounds = bounds_of(self.app)
        self.address = ""

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        address, self.address = self.address, ""
        self._bounds.close(address)
        super().connection_lost(exc)
