"""Handle the one route of the MCP server."""

from typing import Any, Final

import msgspec
from litestar import Response, Router, post
from litestar.exceptions import HTTPException

from api import errors
from api.mcp.context import find_rpc_code
from api.mcp.server import McpServer
from api.operations import ANY_SCOPE, RequestBody, describe_json, require_scope
from api.requests import HttpRequest
from domain.shared.access import Caller
from domain.shared.errors import DomainError

_MESSAGE_SCHEMA: Final = {
    "type": "object",
    "properties": {
        "jsonrpc": {"const": "2.0"},
        "id": {"type": ["string", "integer"]},
        "method": {"type": "string", "examples": ["tools/list"]},
        "params": {"type": "object"},
    },
    "required": ["jsonrpc"],
}
_MESSAGE_BODY: Final = RequestBody(content=describe_json(_MESSAGE_SCHEMA), description="One message of JSON-RPC 2.0.")


@post("/mcp", opt=require_scope(ANY_SCOPE, _MESSAGE_BODY), status_code=200)
async def serve_mcp(mcp_server: McpServer, request: HttpRequest, caller: Caller) -> Response[Any]:
    """Serve one message of the Model Context Protocol over streamable HTTP, as JSON or as an event stream.

    Listing tools takes the scope `read:agents`, calling them `run:agents`, and reading resources `read:executions` and
    `read:artifacts`.
    """
    return await mcp_server.answer_request(request, caller)


def answer_domain_error(request: HttpRequest, error: DomainError) -> Response[Any]:
    """Answer an error that comes before the message is read: with our status, as an error of JSON-RPC."""
    return _wrap_problem(errors.on_domain_error(request, error))


def answer_http_error(request: HttpRequest, error: HTTPException) -> Response[Any]:
    """Answer an error that Litestar raises in the same way."""
    return _wrap_problem(errors.on_http_error(request, error))


def _wrap_problem(problem: Response[bytes]) -> Response[Any]:
    """Return a problem as an error of JSON-RPC, which clients of MCP show; of any other body they show the status."""
    data = msgspec.json.decode(problem.content)
    error = {"code": find_rpc_code(data["error"]), "message": data["detail"], "data": data}
    return Response(
        {"jsonrpc": "2.0", "id": None, "error": error}, status_code=problem.status_code, headers=problem.headers
    )


router = Router(
    "/",
    route_handlers=[serve_mcp],
    exception_handlers={DomainError: answer_domain_error, HTTPException: answer_http_error},
    tags=["mcp"],
)
