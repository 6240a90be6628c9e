"""Make HTTP requests that tenants control, without reaching addresses of this host or its network.

A URL is checked when the connection is made, not when it is stored: the guard below replaces httpcore's network
backend. It resolves the host, checks every address, and connects to a checked address. So no second resolution can
give another address, every redirect and retry is checked again, and TLS and the Host header still use the name. Models,
tools and MCP servers are called with clients from here.
"""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from contextvars import ContextVar
from functools import cache, partial
from ipaddress import IPv6Address, ip_address
from typing import Any, Final, NoReturn

import certifi
import httpcore
import httpcore2
import httpx
import httpx2
import structlog

from domain.shared.addresses import NUMERIC_HOST_PATTERN, Address, find_address_problem
from infra.settings import parse_destination

_log = structlog.get_logger("paddock.outbound")
# These loggers print every URL, with queries that may contain tokens.
for _noisy in ("httpx", "httpcore", "httpx2", "httpcore2"):
    logging.getLogger(_noisy).setLevel(logging.WARNING)

# Resolves a host and a port to addresses, as text. Errors: `OSError`, `ValueError`.
HostResolver = Callable[[str, int], Awaitable[list[str]]]

CONNECT_SECONDS: Final = 10.0

NO_PUBLIC_HOST: Final = "it is not a known public host"


class OutboundRefused(Exception):
    """Report a refused connection: the requested host, its address if it has one, and the reason.

    The message does not contain the address, which may be confidential.
    """

    def __init__(self, host: str, address: str | None, reason: str) -> None:
        # A caller must not learn which private hosts exist: unknown and private hosts are refused alike.
        public_reason = NO_PUBLIC_HOST if reason.startswith("it leads to") else reason
        super().__init__(f"Connections to {host[:253]} are refused: {public_reason}.")
        self.host, self.address, self.reason = host, address, reason


async def resolve_host(host: str, port: int) -> list[str]:
    """Resolve a host with the system's resolver. Errors: `OSError`, `ValueError` for an invalid name."""
    return list_addresses(await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM))


def list_addresses(entries: Iterable[Any]) -> list[str]:
    """Return the addresses in the entries of `getaddrinfo`, as text."""
    return [
        f"{to[0]}%{to[3]}" if len(to) == 4 and to[3] and "%" not in str(to[0]) else str(to[0]) for *_, to in entries
    ]


class _GuardedBackend(httpcore.AsyncNetworkBackend, httpcore2.AsyncNetworkBackend):
    """Connect only to addresses that `admit` allows. `core` is httpcore or httpcore2, whose errors callers know."""

    def __init__(self, core: Any, admit: Callable[[str, int], Awaitable[list[str]]]) -> None:
        self._core, self._admit, self._inner = core, admit, core.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> Any:
        """Connect to one of the host's addresses. Errors: `OutboundRefused`, and httpcore's errors."""
        clock = asyncio.get_running_loop().time
        ends = None if timeout is None else clock() + timeout
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._admit(host, port)
        except TimeoutError:
            raise self._core.ConnectTimeout(f"{host} was not resolved in time") from None
        except socket.gaierror as error:
            if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
                _refuse_connection(host, port, None, NO_PUBLIC_HOST)
            # The resolver does not answer now, and may answer later.
            raise self._core.ConnectError(f"{host} cannot be looked up now") from None
        except (OSError, ValueError):
            _refuse_connection(host, port, None, NO_PUBLIC_HOST)
        last_error: Exception = self._core.ConnectError(f"{host} has no address")
        for tried, address in enumerate(addresses):
            # An address that drops packets must not use up the time of the others.
            share = None if ends is None else max((ends - clock()) / (len(addresses) - tried), 0.001)
            try:
                return await self._inner.connect_tcp(address, port, share, local_address, socket_options)
            except (self._core.ConnectError, self._core.ConnectTimeout) as error:
                last_error = error
        raise last_error

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> NoReturn:
        """Refuse: UNIX sockets lead to services of this host."""
        _refuse_connection(path, None, None, "UNIX sockets are not for outbound connections")

    async def sleep(self, seconds: float) -> None:
        """Sleep between the pool's attempts."""
        await asyncio.sleep(seconds)


# Sets up the pool as httpx does, with our guard. `_pool` is httpx's private name: the tests of refused addresses make
# real connections, so they fail if it changes.
class _GuardedTransport(httpx.AsyncHTTPTransport):
    def __init__(self, guard: _GuardedBackend) -> None:
        super().__init__(verify=load_tls_context(), trust_env=False)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=load_tls_context(), max_connections=1000, max_keepalive_connections=100, network_backend=guard
        )


# Called once the current request is sent.
on_request_sent: ContextVar[Callable[[], None] | None] = ContextVar("request_sent", default=None)


class SendNotifyingTransport(httpx2.AsyncHTTPTransport):
    """Call `on_request_sent` when the last byte of a request is written."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request."""
        if (sent := on_request_sent.get()) is not None:

            async def trace(event: str, info: object) -> None:
                if event.endswith("send_request_body.complete"):
                    sent()

            request.extensions = {**request.extensions, "trace": trace}
        return await super().handle_async_request(request)


class _GuardedTransport2(SendNotifyingTransport):
    def __init__(self, guard: _GuardedBackend, max_error_bytes: int | None) -> None:
        super().__init__(verify=load_tls_context(), trust_env=False)
        self._max_error_bytes = max_error_bytes
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=load_tls_context(), max_connections=1000, max_keepalive_connections=100, network_backend=guard
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send the request."""
        response = await super().handle_async_request(request)
        if self._max_error_bytes is None or response.status_code < 400:
            return response
        return await _cut_body(response, self._max_error_bytes)


async def _cut_body(response: httpx2.Response, max_bytes: int) -> httpx2.Response:
    """Read the beginning of a body and close the connection. A body that fails is cut at that point."""
    body = bytearray()
    try:
        with contextlib.suppress(httpx2.TransportError, httpx2.DecodingError):
            async with contextlib.aclosing(response.aiter_bytes()) as pieces:
                async for piece in pieces:
                    body += piece[: max_bytes - len(body)]
                    if len(body) >= max_bytes:
                        break
    finally:
        await response.aclose()
    described = (b"content-encoding", b"content-length", b"transfer-encoding")
    headers = [(name, value) for name, value in response.headers.raw if name.lower() not in described]
    return httpx2.Response(
        response.status_code, headers=headers, content=bytes(body), extensions=dict(response.extensions)
    )


class Outbound:
    """Create HTTP clients that reach only public addresses, and `allowed` ones unless the caller is strict.

    `allowed` are hosts, addresses and networks, with or without a `:port`, from PADDOCK_PRIVATE_HOSTS. An allowed host
    may have any address. Clients neither follow redirects nor read proxies and passwords from the environment. The
    caller closes them: `async with`, or `aclose`. Errors: `BadSettings` names an invalid entry.
    """

    def __init__(self, allowed: tuple[str, ...] = (), resolve: HostResolver = resolve_host) -> None:
        self._allowed = tuple(map(parse_destination, allowed))
        self._resolve = resolve

    def create_client(self, strict: bool = False, timeout: float = 30.0) -> httpx.AsyncClient:
        """Return a client of httpx. `strict` refuses all private addresses; `timeout` is in seconds, between two bytes.

        Errors of its requests: `OutboundRefused`, and httpx's.
        """
        limits = httpx.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS))
        transport = _GuardedTransport(_GuardedBackend(httpcore, partial(self.resolve_allowed, strict=strict)))
        return httpx.AsyncClient(transport=transport, timeout=limits, trust_env=False, follow_redirects=False)

    def create_httpx2_client(
        self, strict: bool = False, timeout: float = 60.0, max_error_bytes: int | None = None
    ) -> httpx2.AsyncClient:
        """Return a client of httpx2, for the libraries of openai, anthropic and mcp.

        With `max_error_bytes`, bodies of responses from status 400 on are cut: those libraries read them whole.
        """
        limits = httpx2.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS))
        transport = _GuardedTransport2(
            _GuardedBackend(httpcore2, partial(self.resolve_allowed, strict=strict)), max_error_bytes
        )
        return httpx2.AsyncClient(transport=transport, timeout=limits, trust_env=False, follow_redirects=False)

    async def resolve_allowed(self, host: str, port: int, strict: bool = False) -> list[str]:
        """Return the checked addresses of a host.

        Errors: `OutboundRefused`, `OSError` and `ValueError` for an unknown host.
        """
        name, is_allowed = host.lower(), False
        refuse = partial(_refuse_connection, host, port)
        if "%" in name:
            refuse(None, "it is an address of one interface, or escaped")
        if (literal := _parse_literal(name)) is not None:
            texts = [name]
        elif name.endswith("."):
            refuse(None, "a host must not end in a dot")
        elif NUMERIC_HOST_PATTERN.search(name):
            refuse(None, "it is an address in an unusual notation")
        else:
            is_allowed = not strict and any(
                entry.name == name and entry.port in (None, port) for entry in self._allowed
            )
            if not is_allowed and (name == "localhost" or name.endswith(".localhost")):
                refuse(None, "it is this host")
            texts = await self._resolve(host, port)
        addresses: dict[str, None] = {}
        for text in texts:
            address = ip_address(text)
            mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
            address = address if mapped is None else mapped
            problem = (
                None
                if is_allowed or (not strict and self._is_allowed_address(address, port))
                else find_address_problem(address)
            )
            if problem is not None:
                refuse(text, f"it {'is' if literal else 'leads to'} {problem}")
            addresses[str(address)] = None
        return list(addresses)

    def _is_allowed_address(self, address: Address, port: int) -> bool:
        return any(entry.network and address in entry.network and entry.port in (None, port) for entry in self._allowed)


@cache
def load_tls_context() -> ssl.SSLContext:
    """Return the TLS context of all clients: certifi's certificates and the host's. Loading them is slow."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


def _parse_literal(name: str) -> Address | None:
    try:
        return ip_address(name)
    except ValueError:
        return None


def _refuse_connection(host: str, port: int | None, address: str | None, reason: str) -> NoReturn:
    _log.warning("outbound refused", host=host[:253], port=port, address=address, reason=reason)
    raise OutboundRefused(host, address, reason)
