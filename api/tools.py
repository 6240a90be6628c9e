"""Handle the catalogue of tools: built-in tools, custom HTTP calls and MCP servers."""

from typing import Any

from litestar import Response, Router, delete, get, patch, post, route

from api.idempotency import ResourceCreator
from api.operations import IDEMPOTENCY_KEY, require_scope
from api.requests import HttpRequest, Store
from api.waiting import ExecutionStarter
from domain import tools
from domain.executions import Execution, start_tool_call
from domain.shared.access import Caller
from domain.shared.errors import DomainError
from domain.shared.pages import Listing, Page
from domain.tools import NewTool, PatchTool, Tool, ToolFilter, ToolInvocation, ToolInvocationResult, ToolType

_ITEM_PATH = "/tools/{tool_id:str}"
# How long callers wait for a call if they send no `Prefer`.
TOOL_CALL_WAIT_SECONDS = 60


@post("/tools", opt=require_scope("write:catalog", IDEMPOTENCY_KEY))
async def create_tool(creator: ResourceCreator, request: HttpRequest, caller: Caller, data: NewTool) -> Response[Tool]:
    """Create a custom HTTP tool, or add an MCP server."""
    return await creator.create_idempotently(request, caller, lambda tx: tools.create_tool(tx, caller, data))


@get("/tools", opt=require_scope("read:catalog"))
async def list_tools(
    store: Store,
    caller: Caller,
    pagination: Page,
    category: str | None = None,
    enabled: bool | None = None,
    tool_type: ToolType | None = None,
) -> Listing[Tool]:
    """List the tenant's own tools, newest first, then the built-in ones."""
    async with store.transaction(caller) as tx:
        return await tools.list_tools(tx, caller, pagination, ToolFilter(category, enabled, tool_type))


@get("/tools/enabled", opt=require_scope("read:catalog"))
async def list_enabled_tools(
    store: Store, caller: Caller, pagination: Page, category: str | None = None, tool_type: ToolType | None = None
) -> Listing[Tool]:
    """List the enabled tools, which agents can use."""
    async with store.transaction(caller) as tx:
        return await tools.list_tools(tx, caller, pagination, ToolFilter(category, True, tool_type))


@get("/tools/configurations/{tool_name:str}/schema", opt=require_scope("read:catalog"))
async def get_tool_schema(store: Store, caller: Caller, tool_name: str) -> dict[str, Any]:
    """Return a JSON Schema: of a tool's arguments, or for `custom` and `mcp` of their `configuration`."""
    async with store.transaction(caller) as tx:
        return await tools.get_tool_schema(tx, caller, tool_name)


@get(_ITEM_PATH, opt=require_scope("read:catalog"))
async def get_tool(store: Store, caller: Caller, tool_id: str) -> Tool:
    """Return a tool by id, name or slug."""
    async with store.transaction(caller) as tx:
        return await tools.get_tool(tx, caller, tool_id)


@route(_ITEM_PATH, http_method=["PATCH", "PUT"], opt=require_scope("write:catalog"), status_code=200)
async def update_tool(store: Store, caller: Caller, tool_id: str, data: PatchTool) -> Tool:
    """Change the fields that are sent; PUT does the same. A built-in tool only takes `enabled`."""
    async with store.transaction(caller) as tx:
        return await tools.patch_tool(tx, caller, tool_id, data)


@patch("/tools/{tool_id:str}/toggle-enabled", opt=require_scope("write:catalog"))
async def toggle_tool(store: Store, caller: Caller, tool_id: str) -> Tool:
    """Disable an enabled tool, or enable a disabled one. A built-in tool changes for this tenant only."""
    async with store.transaction(caller) as tx:
        return await tools.toggle_tool(tx, caller, tool_id)


@delete(_ITEM_PATH, opt=require_scope("write:catalog"))
async def delete_tool(store: Store, caller: Caller, tool_id: str) -> None:
    """Delete a tool. Built-in tools can only be disabled."""
    async with store.transaction(caller) as tx:
        await tools.delete_tool(tx, caller, tool_id)


@post("/tools/{tool_id:str}/execute", opt=require_scope("run:agents"), status_code=200)
async def execute_tool(
    starter: ExecutionStarter, request: HttpRequest, caller: Caller, tool_id: str, data: ToolInvocation
) -> Response[ToolInvocationResult]:
    """Call a tool and return its result. After a minute without one, poll the execution that the answer names.

    Errors of the tool are 422 `tool_failed`. The call is an execution; its files are at `/executions/{id}/files`.
    """
    ended = await starter.start_execution(
        request, caller, lambda tx: start_tool_call(tx, caller, tool_id, data), TOOL_CALL_WAIT_SECONDS
    )
    return Response(_answer_from_execution(ended.content), headers=ended.headers)


def _answer_from_execution(call: Execution) -> ToolInvocationResult:
    if call.error_type is not None:
        raise DomainError("tool_failed", call.error_message or "The tool failed.")
    return ToolInvocationResult(result=call.output_data, execution_id=call.id, status=call.status)


router = Router(
    "/",
    route_handlers=[
        create_tool,
        list_tools,
        list_enabled_tools,
        get_tool_schema,
        get_tool,
        update_tool,
        toggle_tool,
        delete_tool,
        execute_tool,
    ],
    tags=["tools"],
)
