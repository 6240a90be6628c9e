"""The catalogue of tools: built in, custom HTTP calls, MCP servers."""

from typing import Any

from litestar import Response, Router, delete, get, patch, post, route

from api.front import Front, created, needs, started
from api.requests import HttpRequest
from domain import tools
from domain.executions import Execution
from domain.executions.service import start_call
from domain.shared.access import Caller
from domain.shared.errors import DomainError
from domain.shared.pages import Listing, Page
from domain.tools import ExecuteTool, Filter, NewTool, PatchTool, Tool, ToolAnswer, ToolType

_ONE = "/tools/{tool_id:str}"
# Seconds for which a call is waited for.
PATIENCE = 60


@post("/tools", opt=needs("write:catalog"))
async def create_tool(front: Front, request: HttpRequest, caller: Caller, data: NewTool) -> Response[Tool]:
    """Add a custom HTTP tool or an MCP server."""
    return await created(front, request, caller, lambda tx: tools.create(tx, caller, data))


@get("/tools", opt=needs("read:catalog"))
async def list_tools(
    front: Front,
    caller: Caller,
    part: Page,
    category: str | None = None,
    enabled: bool | None = None,
    tool_type: ToolType | None = None,
) -> Listing[Tool]:
    """The tenant's own tools, newest first, then the built-in ones."""
    async with front.store.begin(caller) as tx:
        return await tools.list_tools(tx, caller, part, Filter(category, enabled, tool_type))


@get("/tools/enabled", opt=needs("read:catalog"))
async def list_enabled_tools(
    front: Front, caller: Caller, part: Page, category: str | None = None, tool_type: ToolType | None = None
) -> Listing[Tool]:
    """The same without disabled ones: what agents can be given."""
    async with front.store.begin(caller) as tx:
        return await tools.list_tools(tx, caller, part, Filter(category, True, tool_type))


@get("/tools/configurations/{tool_name:str}/schema", opt=needs("read:catalog"))
async def get_tool_schema(front: Front, caller: Caller, tool_name: str) -> dict[str, Any]:
    """A JSON Schema: of what a tool's calls take, or for `custom` and `mcp` of their `configuration`."""
    async with front.store.begin(caller) as tx:
        return await tools.schema(tx, caller, tool_name)


@get(_ONE, opt=needs("read:catalog"))
async def get_tool(front: Front, caller: Caller, tool_id: str) -> Tool:
    """A tool by id, name or slug."""
    async with front.store.begin(caller) as tx:
        return await tools.get(tx, caller, tool_id)


@route(_ONE, http_method=["PATCH", "PUT"], opt=needs("write:catalog"), status_code=200)
async def patch_tool(front: Front, caller: Caller, tool_id: str, data: PatchTool) -> Tool:
    """Change what was sent; PUT does the same. A built-in tool takes `enabled` alone."""
    async with front.store.begin(caller) as tx:
        return await tools.patch(tx, caller, tool_id, data)


@patch("/tools/{tool_id:str}/toggle-enabled", opt=needs("write:catalog"))
async def toggle_tool(front: Front, caller: Caller, tool_id: str) -> Tool:
    """Disable an enabled tool, enable a disabled one; built-in ones for this tenant alone."""
    async with front.store.begin(caller) as tx:
        return await tools.toggle(tx, caller, tool_id)


@delete(_ONE, opt=needs("write:catalog"))
async def delete_tool(front: Front, caller: Caller, tool_id: str) -> None:
    """Remove a tool. Built-in ones can be disabled only."""
    async with front.store.begin(caller) as tx:
        await tools.delete(tx, caller, tool_id)


@post("/tools/{tool_id:str}/execute", opt=needs("run:agents"), status_code=200)
async def execute_tool(
    front: Front, request: HttpRequest, caller: Caller, tool_id: str, data: ExecuteTool
) -> Response[ToolAnswer]:
    """Call a tool and answer with its result: within a minute, or with the execution to ask for it later.

    Errors of the tool are 422 `tool_failed`. The call is an execution; its files are at `/executions/{id}/files`.
    """
    ended = await started(front, request, caller, lambda tx: start_call(tx, caller, tool_id, data), PATIENCE)
    return Response(_answer(ended.content), headers=ended.headers)


def _answer(call: Execution) -> ToolAnswer:
    if call.error_type is not None:
        raise DomainError("tool_failed", call.error_message or "The tool failed.")
    return ToolAnswer(result=call.output_data, execution_id=call.id, status=call.status)


router = Router(
    "/",
    route_handlers=[
        create_tool,
        list_tools,
        list_enabled_tools,
        get_tool_schema,
        get_tool,
        patch_tool,
        toggle_tool,
        delete_tool,
        execute_tool,
    ],
    tags=["tools"],
)
