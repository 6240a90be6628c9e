"""Connect the MCP library to our routes: it speaks the protocol, we authenticate, bound and answer.

Each request is served on its own, so that any process can serve it. The id of a session, which we give to clients that
begin with `initialize`, is no state of ours: it only tells the requests of one client from those of another.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from litestar import Response
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from mcp.server.lowlevel.server import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

from api.bodies import run_off_loop
from api.mcp.calls import ToolCalls
from api.mcp.context import STATE_KEY, McpExchange
from api.mcp.messages import (
    MAX_SESSION_CHARACTERS,
    SESSION_HEADER,
    InvalidMessage,
    RpcMessage,
    build_request_key,
    parse_message,
)
from api.mcp.resources import McpResources
from api.requests import HttpRequest
from domain import mcp
from domain.ports import Store
from domain.shared import ids
from domain.shared.access import Caller
from domain.shared.errors import DomainError, Forbidden, InvalidField
from infra.settings import Settings
from infra.version import PADDOCK_VERSION

_SERVER_INSTRUCTIONS: Final = (
    "Each tool runs an agent, a crew or a workflow of Paddock and answers with its result. Files that a run left are "
    "linked from the answer; runs, their logs and files, and artifacts are resources."
)
# The library reports each of its steps, and what clients send that it cannot read; the access log has both.
logging.getLogger("mcp").setLevel(logging.ERROR)
_LOOPBACK_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "::1"})


class McpServer:
    """Serve MCP over streamable HTTP, without state, behind our own authentication."""

    def __init__(self, *, store: Store, settings: Settings, calls: ToolCalls, resources: McpResources) -> None:
        self._store, self._settings = store, settings
        server: Server[Any] = Server(
            "paddock",
            version=PADDOCK_VERSION,
            title=settings.app_name,
            instructions=_SERVER_INSTRUCTIONS,
            # Our schemas name no headers; without this the library would list all tools before each call.
            get_tool_input_schema=lambda _name: None,
            on_list_tools=calls.list_tools,
            on_call_tool=calls.call_tool,
            on_list_resources=resources.list_resources,
            on_list_resource_templates=resources.list_templates,
            on_read_resource=resources.read_resource,
        )
        # The library's own spans would appear among the traces of agents.
        server.middleware.clear()
        # Bodies are bounded before the library sees them.
        self._manager = StreamableHTTPSessionManager(
            server, stateless=True, max_request_body_size=settings.body_max_bytes + 1
        )

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Serve requests within this context."""
        async with self._manager.run():
            yield

    async def answer_request(self, request: HttpRequest, caller: Caller) -> Response[Any]:
        """Return the answer to one POST. Errors: `forbidden` for the page of an unknown site, `invalid_field`."""
        self._check_origin(request)
        session = _read_session(request)
        body = await request.body()
        try:
            message = await run_off_loop(len(body), lambda: parse_message(body))
        except InvalidMessage as error:
            return error.to_response()
        if message.cancelled_id is not None:
            await self._cancel_call(caller, session, message.cancelled_id)
            return Response(None, status_code=202)
        exchange = McpExchange(request, caller, session)
        return _DelegatedResponse(self._manager, exchange, body, message)

    async def _cancel_call(self, caller: Caller, session: str, request_id: int | str) -> None:
        try:
            async with self._store.transaction(caller) as tx:
                await mcp.cancel_call(tx, caller, build_request_key(caller, session, request_id))
        except DomainError as error:
            # A run that ended meanwhile needs no cancellation.
            if error.code != "conflict":
                raise

    def _check_origin(self, request: HttpRequest) -> None:
        """Refuse pages of unknown sites, which a browser may have been led here by (DNS rebinding)."""
        origin = request.headers.get("origin")
        if origin is None or origin in self._settings.cors_origins or "*" in self._settings.cors_origins:
            return
        if urlsplit(origin).hostname not in _LOOPBACK_HOSTS:
            raise Forbidden(f"Pages of {origin[:200]!r} may not use the MCP server. Add the site to CORS_ORIGINS.")


class _DelegatedResponse(Response[bytes]):
    """Answer by the library, with the body as it was read."""

    def __init__(
        self, manager: StreamableHTTPSessionManager, exchange: McpExchange, body: bytes, message: RpcMessage
    ) -> None:
        super().__init__(b"")
        self._manager, self._exchange, self._body = manager, exchange, body
        self._gives_session = message.method == "initialize"

    def to_asgi_response(self, *_: Any, **__: Any) -> ASGIApp:  # type: ignore[override]
        """Return the application that answers."""
        return self._answer

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"][STATE_KEY] = self._exchange
        is_body_sent = False

        async def replay_body() -> Any:
            nonlocal is_body_sent
            if not is_body_sent:
                is_body_sent = True
                return {"type": "http.request", "body": self._body, "more_body": False}
            message = await receive()
            self._exchange.is_client_gone = self._exchange.is_client_gone or message["type"] == "http.disconnect"
            return message

        async def add_session(message: Message) -> None:
            if self._gives_session and message["type"] == "http.response.start":
                session = (SESSION_HEADER.encode(), ids.generate_id("mcps").encode())
                message["headers"] = [*message["headers"], session]
            await send(message)

        await self._manager.handle_request(scope, replay_body, add_session)  # type: ignore[arg-type]


def _read_session(request: HttpRequest) -> str:
    session = request.headers.get(SESSION_HEADER, "")
    if len(session) > MAX_SESSION_CHARACTERS or not session.isascii():
        raise InvalidField("Mcp-Session-Id", f"must be at most {MAX_SESSION_CHARACTERS} ASCII characters.")
    return session
