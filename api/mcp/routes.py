"""Handle the one route of the MCP server."""

from typing import Any, Final

from litestar import Response, Router, post

from api.mcp.server import McpServer
from api.operations import ANY_SCOPE, RequestBody, describe_json, require_scope
from api.requests import HttpRequest
from domain.shared.access import Caller

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


router = Router("/", route_handlers=[serve_mcp], tags=["mcp"])
