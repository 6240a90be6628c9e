"""Wrap the whole app: request ids, the caller, limits, the access log and metrics.

Plain ASGI, so that it also wraps requests for which there is no route.
"""

import re
import time
from collections.abc import Callable
from typing import Any, Final, cast
from urllib.parse import parse_qs

import structlog
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from api.addresses import Network, find_caller_address, group_address
from api.auth import KeyUsageWriter
from api.connections import ConnectionBounds
from api.limits import describe_no_limit
from api.proxy_logins import remove_credential, select_headers
from api.state import ApiServices
from domain.shared import ids
from domain.shared.errors import DomainError

_log = structlog.get_logger("paddock.access")
API_PREFIX: Final = "/api/v1"
_DOUBLED_PREFIX: Final = f"{API_PREFIX}{API_PREFIX}/"
_EXECUTIONS_PREFIX: Final = f"{API_PREFIX}/executions/"
_UNCOUNTED_PREFIXES: Final = ("/health", "/metrics")
# Clients that print to a terminal, whose prompt should begin on a line of its own.
_TERMINAL_AGENTS: Final = ("curl/", "Wget/")
_JSON_TYPE: Final = re.compile(rb"application/(?:[a-z]+\+)?json")
_POLICY_HEADER: Final = b"content-security-policy"
# Sent with every answer. Documentation pages have a policy of their own.
_SAFETY_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (_POLICY_HEADER, b"default-src 'none'; frame-ancestors 'none'"),
)


class RequestMiddleware:
    """Wrap the app. `get_services` is a function because the app's own lifespan opens the services."""

    def __init__(
        self,
        app: ASGIApp,
        get_services: Callable[[], ApiServices],
        key_usage: KeyUsageWriter,
        trusted: tuple[Network, ...],
        bounds: ConnectionBounds,
    ) -> None:
        self._app, self._get_services, self._key_usage, self._trusted = app, get_services, key_usage, trusted
        self.bounds = bounds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        services = self._get_services()
        _correct_path(scope)
        remove_credential(scope)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        request_id = _choose_request_id(headers.get("x-request-id"))
        state: dict[str, Any] = {
            "request_id": request_id,
            "address": _find_address(scope, self._trusted),
            "proxy_headers": select_headers(scope, self._trusted, services.settings),
        }
        scope["state"] = state
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        added = [(b"x-request-id", request_id.encode()), *_SAFETY_HEADERS]
        if scope["path"].startswith(_UNCOUNTED_PREFIXES) or scope.get("method") == "OPTIONS":
            # Probes and preflights ask for no work; a browser must not use up its limit on them.
            added += describe_no_limit(services.clock().timestamp()).to_headers()
        else:
            added += await self._identify_caller(services, scope, headers, state)
        response = _ResponseWriter(send, added, headers.get("user-agent", ""), scope)
        if response.is_head:
            scope = cast(Scope, {**scope, "method": "GET"})
        try:
            await self._app(scope, receive, response.send_message)
        except BaseException:
            response.status = 500 if "method" not in scope else response.status
            raise
        finally:
            _record_request(services, scope, response.status, time.perf_counter() - began)

    async def _identify_caller(
        self, services: ApiServices, scope: Scope, headers: dict[str, str], state: dict[str, Any]
    ) -> list[tuple[bytes, bytes]]:
        """Put the caller, or the errors that its route shall raise, into the state; return the limit's headers."""
        caller = None
        try:
            token = _read_query_token(scope) if "method" not in scope or _is_event_stream(scope) else None
            caller = await services.authenticator.identify_caller(headers, token, state["proxy_headers"])
        except DomainError as error:
            state["auth_error"] = error
        state["caller"] = caller
        if caller is not None:
            structlog.contextvars.bind_contextvars(tenant_id=caller.tenant_id, user_id=caller.user_id)
            if caller.key_id is not None:
                self._key_usage.count_use(caller.key_id, services.clock())
        usage = await services.rate_limiter.count_request(caller, state["address"])
        state["limit_error"] = usage.to_error(services.clock().timestamp())
        return usage.to_headers()


class _ResponseWriter:
    """Send an answer with the middleware's headers, and keep its status for the log and metrics."""

    def __init__(self, send: Send, added: list[tuple[bytes, bytes]], user_agent: str, scope: Scope) -> None:
        self._send, self._added = send, added
        self._ends_line = user_agent.startswith(_TERMINAL_AGENTS)
        self.is_head = scope.get("method") == "HEAD"
        # A WebSocket whose client has gone ends without a close message of ours; that is no error.
        self.status = 1000 if "method" not in scope else 500

    async def send_message(self, message: Message) -> None:
        """Send one ASGI message of the app."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            sent = list(message["headers"])
            self._ends_line = self._ends_line and _reserve_line_end(sent)
            has_policy = _has_header(sent, _POLICY_HEADER)
            message["headers"] = [
                *sent,
                *(header for header in self._added if header[0] != _POLICY_HEADER or not has_policy),
            ]
        elif message["type"] == "http.response.body":
            if self._ends_line and not message.get("more_body"):
                message["body"] += b"\n"
            if self.is_head:
                message["body"] = b""
        elif message["type"] == "websocket.close":
            self.status = message.get("code") or 1000
        await self._send(message)


def _correct_path(scope: Scope) -> None:
    """Correct the paths that two known clients send."""
    if scope["path"].startswith(_DOUBLED_PREFIX):
        # Kurral's client adds the prefix to its paths even where its `api_url` ends in it.
        scope["path"] = scope["path"].removeprefix(API_PREFIX)
        scope["raw_path"] = scope["path"].encode()
    if scope["path"] == "/metrics" and scope.get("method") == "POST":
        # AgentOps' client posts here if its `api_url` is the address of the server.
        scope["path"] = f"{API_PREFIX}/metrics"
        scope["raw_path"] = scope["path"].encode()


def _record_request(services: ApiServices, scope: Scope, status: int, seconds: float) -> None:
    # The template, not the path: ids must not become labels.
    endpoint = scope.get("path_template") or "(none)"
    method = str(scope.get("method", "WS"))
    services.metrics.requests.labels(method, endpoint, status).inc()
    services.metrics.seconds.labels(method, endpoint).observe(seconds)
    level = "warning" if 500 <= status < 600 else "info"
    is_probe = scope["path"].startswith(_UNCOUNTED_PREFIXES)
    getattr(_log, "debug" if is_probe else level)(
        "request", method=method, path=scope["path"], status=status, ms=round(seconds * 1000, 1)
    )


def _is_event_stream(scope: Scope) -> bool:
    """Return whether this may be a browser's EventSource, which cannot set headers, like its WebSocket."""
    path = scope["path"]
    return scope.get("method") == "GET" and path.startswith(_EXECUTIONS_PREFIX) and path.endswith("/events")


def _has_header(headers: list[tuple[bytes, bytes]], name: bytes) -> bool:
    return any(sent.lower() == name for sent, _ in headers)


def _reserve_line_end(headers: list[tuple[bytes, bytes]]) -> bool:
    """Count a line break into the length of a JSON answer; return whether one may be sent. Files stay as they are."""
    if _has_header(headers, b"content-disposition") or not any(
        name.lower() == b"content-type" and _JSON_TYPE.match(value) for name, value in headers
    ):
        return False
    for number, (name, value) in enumerate(headers):
        if name.lower() == b"content-length" and value != b"0":
            headers[number] = name, str(int(value) + 1).encode()
            return True
    return False


def _choose_request_id(sent: str | None) -> str:
    if sent and len(sent) <= 128 and sent.isascii() and sent.isprintable():
        return sent
    return ids.generate_id("req")


def _read_query_token(scope: Scope) -> str | None:
    values = parse_qs(scope["query_string"].decode("latin-1")).get("access_token")
    return values[0] if values else None


def _find_address(scope: Scope, trusted: tuple[Network, ...]) -> str:
    client = scope.get("client")
    # Several headers are one list, as in RFC 9110 section 5.3.
    forwarded = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for")
    return group_address(find_caller_address(client[0] if client else "unknown", forwarded.decode("latin-1"), trusted))
