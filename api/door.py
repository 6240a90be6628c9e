"""The door around the whole app: request ids, the caller, limits, the access log, metrics.

Plain ASGI, so that it also stands before paths that lead nowhere.
"""

import re
import time
from collections.abc import Callable
from typing import Any, Final, cast
from urllib.parse import parse_qs

import structlog
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from api import limits
from api.addresses import Network, caller_address, counted_address
from api.auth import KeyUse, identify
from api.connections import ConnectionBounds
from api.front import Front
from api.proxy_logins import select_headers, take_out_credential
from domain.shared import ids
from domain.shared.errors import DomainError

_log = structlog.get_logger("paddock.access")
API: Final = "/api/v1"
_DOUBLED: Final = f"{API}{API}/"
_EXECUTIONS: Final = f"{API}/executions/"
_UNCOUNTED: Final = ("/health", "/metrics")
# Whose output is a terminal: its prompt is to begin on a line of its own.
_TERMINALS: Final = ("curl/", "Wget/")
_JSON: Final = re.compile(rb"application/(?:[a-z]+\+)?json")
# Of every answer. Pages have a policy of their own.
_POLICY: Final = b"content-security-policy"
_SAFE: Final = (
    (b"x-content-type-options", b"nosniff"),
    (_POLICY, b"default-src 'none'; frame-ancestors 'none'"),
)


class Door:
    """Wraps the app. `front` is a function, because the parts are opened by the app's own lifespan."""

    def __init__(
        self,
        app: ASGIApp,
        front: Callable[[], Front],
        uses: KeyUse,
        trusted: tuple[Network, ...],
        bounds: ConnectionBounds,
    ) -> None:
        self._app, self._front, self._uses, self._trusted = app, front, uses, trusted
        self.bounds = bounds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one connection through."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        if scope["path"].startswith(_DOUBLED):
            # Kurral's client puts the prefix before its paths by itself, also where its `api_url` ends in it.
            scope["path"] = scope["path"].removeprefix(API)
            scope["raw_path"] = scope["path"].encode()
        if scope["path"] == "/metrics" and scope.get("method") == "POST":
            # AgentOps' client posts here if its `api_url` is the address of the server.
            scope["path"] = f"{API}/metrics"
            scope["raw_path"] = scope["path"].encode()
        take_out_credential(scope)
        front = self._front()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        request_id = _request_id(headers.get("x-request-id"))
        state: dict[str, Any] = {
            "request_id": request_id,
            "address": _address(scope, self._trusted),
            "forwarded": select_headers(scope, self._trusted, front.settings),
        }
        scope["state"] = state
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        added = [(b"x-request-id", request_id.encode()), *_SAFE]
        if scope["path"].startswith(_UNCOUNTED) or scope.get("method") == "OPTIONS":
            # Probes and preflights ask for no work; a browser must not use up its login on them.
            added += limits.unlimited(front.clock().timestamp()).headers()
        else:
            added += await self._identify(front, scope, headers, state)
        # A WebSocket whose other side has gone ends without a word of ours: well, unless something was raised.
        status, is_head = 1000 if "method" not in scope else 500, scope.get("method") == "HEAD"
        if is_head:
            scope = cast(Scope, {**scope, "method": "GET"})
        ends_line = headers.get("user-agent", "").startswith(_TERMINALS)

        async def send_with_headers(message: Message) -> None:
            nonlocal status, ends_line
            if message["type"] == "http.response.start":
                status = message["status"]
                sent = list(message["headers"])
                ends_line = ends_line and _end_line(sent)
                message["headers"] = [*sent, *(one for one in added if one[0] != _POLICY or not _has(sent, _POLICY))]
            elif message["type"] == "http.response.body":
                if ends_line and not message.get("more_body"):
                    message["body"] += b"\n"
                if is_head:
                    message["body"] = b""
            elif message["type"] == "websocket.close":
                status = message.get("code") or 1000
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        except BaseException:
            status = 500 if "method" not in scope else status
            raise
        finally:
            self._note(front, scope, status, time.perf_counter() - began, state)

    async def _identify(
        self, front: Front, scope: Scope, headers: dict[str, str], state: dict[str, Any]
    ) -> list[tuple[bytes, bytes]]:
        caller = None
        try:
            token = _query_token(scope) if "method" not in scope or _is_event_stream(scope) else None
            caller = await identify(front, headers, token, state["forwarded"])
        except DomainError as error:
            state["refusal"] = error
        state["caller"] = caller
        if caller is not None:
            structlog.contextvars.bind_contextvars(tenant_id=caller.tenant_id, user_id=caller.user_id)
            if caller.key_id is not None:
                self._uses.count(caller.key_id, front.clock())
        usage = await limits.count(front, caller, state["address"])
        state["limited"] = limits.refusal(usage, front.clock().timestamp())
        return usage.headers()

    def _note(self, front: Front, scope: Scope, status: int, seconds: float, state: dict[str, Any]) -> None:
        # The template, not the path: ids must not become labels.
        endpoint = scope.get("path_template") or "(none)"
        method = str(scope.get("method", "WS"))
        front.metrics.requests.labels(method, endpoint, status).inc()
        front.metrics.seconds.labels(method, endpoint).observe(seconds)
        level = "warning" if 500 <= status < 600 else "info"
        quiet = scope["path"].startswith(_UNCOUNTED)
        getattr(_log, "debug" if quiet else level)(
            "request", method=method, path=scope["path"], status=status, ms=round(seconds * 1000, 1)
        )


def _is_event_stream(scope: Scope) -> bool:
    """Whether a browser's EventSource may be asking, which cannot set headers any more than its WebSocket can."""
    path = scope["path"]
    return scope.get("method") == "GET" and path.startswith(_EXECUTIONS) and path.endswith("/events")


def _has(headers: list[tuple[bytes, bytes]], name: bytes) -> bool:
    return any(sent.lower() == name for sent, _ in headers)


def _end_line(headers: list[tuple[bytes, bytes]]) -> bool:
    """Make room for a line break after JSON of a known length; returns whether there is. Files stay as they are."""
    if _has(headers, b"content-disposition") or not any(
        name.lower() == b"content-type" and _JSON.match(value) for name, value in headers
    ):
        return False
    for number, (name, value) in enumerate(headers):
        if name.lower() == b"content-length" and value != b"0":
            headers[number] = name, str(int(value) + 1).encode()
            return True
    return False


def _request_id(sent: str | None) -> str:
    if sent and len(sent) <= 128 and sent.isascii() and sent.isprintable():
        return sent
    return ids.new("req")


def _query_token(scope: Scope) -> str | None:
    values = parse_qs(scope["query_string"].decode("latin-1")).get("access_token")
    return values[0] if values else None


def _address(scope: Scope, trusted: tuple[Network, ...]) -> str:
    client = scope.get("client")
    # Of several headers one list is made, as RFC 9110 section 5.3 has it.
    forwarded = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for")
    return counted_address(caller_address(client[0] if client else "unknown", forwarded.decode("latin-1"), trusted))
