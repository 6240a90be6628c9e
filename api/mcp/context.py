"""Carry what the handlers of MCP methods know of the HTTP request that they serve."""

import json
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import msgspec
import structlog
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import INTERNAL_ERROR, INVALID_PARAMS
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS

from api.auth import Authenticator, StreamAccess
from api.mcp.messages import build_request_key
from api.requests import HttpRequest
from domain.shared.access import Caller
from domain.shared.errors import OUTAGE_CODES, DomainError
from infra.outage_log import log_outage

STATE_KEY: Final = "mcp_exchange"
# Codes of JSON-RPC that servers define themselves. The library gives -32000 and -32001 meanings of its own.
_RESOURCE_NOT_FOUND: Final = -32002
_NOT_ALLOWED: Final = -32003
_log = structlog.get_logger("paddock.mcp")

ResultT = TypeVar("ResultT")
McpContext = ServerRequestContext[Any, Any]


class McpExchange:
    """Hold the caller of one HTTP request, and whether its client has closed the connection."""

    def __init__(self, request: HttpRequest, caller: Caller, session: str) -> None:
        self.request, self.caller, self.session = request, caller, session
        self.is_client_gone = False

    def open_access(self, authenticator: Authenticator, scope: str) -> StreamAccess:
        """Return what checks while a call goes on that the caller may still make it."""
        return StreamAccess(authenticator, self.request, self.caller, scope)

    def build_request_key(self, context: McpContext) -> str:
        """Return what names the call that is being served."""
        return build_request_key(self.caller, self.session, context.request_id or "")


def get_exchange(context: McpContext) -> McpExchange:
    """Return the exchange of the request that is being served."""
    request: Any = context.request
    exchange: McpExchange = request.scope["state"][STATE_KEY]
    return exchange


async def answer_or_refuse(context: McpContext, answer: Callable[[McpExchange], Awaitable[ResultT]]) -> ResultT:
    """Return a handler's answer, or raise its domain error as an error of JSON-RPC."""
    try:
        return await answer(get_exchange(context))
    except DomainError as error:
        raise _to_rpc_error(error, context.protocol_version) from None


def _to_rpc_error(error: DomainError, protocol_version: str) -> MCPError:
    if error.code in OUTAGE_CODES:
        log_outage(_log, "refused in an outage", error)
    code = find_rpc_code(error.code)
    if error.code == "not_found" and protocol_version in HANDSHAKE_PROTOCOL_VERSIONS:
        code = _RESOURCE_NOT_FOUND
    return MCPError(code, error.detail, {"error": error.code, "errors": msgspec.to_builtins(error.errors)})


def find_rpc_code(error_code: str) -> int:
    """Return the code of JSON-RPC for the code of a domain error."""
    if error_code in ("missing_scope", "forbidden", "unauthenticated", "rate_limit_exceeded"):
        return _NOT_ALLOWED
    if error_code in ("not_found", "invalid_field", "malformed_request", "file_too_large", "body_too_large"):
        return INVALID_PARAMS
    return INTERNAL_ERROR


def encode_json(value: Any) -> str:
    """Return a JSON value as text."""
    return json.dumps(msgspec.to_builtins(value), ensure_ascii=False, indent=2)
