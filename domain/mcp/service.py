"""List the tools of the MCP server, and start what they stand for."""

from typing import Any, Final

import msgspec

from domain import executions, launch
from domain.executions import Execution, TargetedExecutionStart
from domain.mcp.schema import REQUEST_METADATA_KEY, McpTool, ToolPage, UnknownTool
from domain.mcp.tool_names import assign_tool_names
from domain.mcp.tool_schemas import NEW_THREAD, build_tool
from domain.ports import Tx
from domain.shared import access, ids
from domain.shared.access import Caller
from domain.shared.errors import DomainError, FieldError, InvalidField, InvalidFields
from domain.shared.field_errors import list_field_errors

TOOLS_PER_PAGE: Final = 100
CANCEL_REASON: Final = "The MCP client cancelled its call."
_TARGET_FIELDS: Final = {"agent": "agent_id", "crew": "crew_id", "workflow": "workflow_id"}


async def list_tools(tx: Tx, cursor: str | None) -> ToolPage:
    """Return a page of tools, the oldest first. `cursor` is the id of the last one before. Errors: `invalid_field`."""
    last = "" if cursor is None else _read_position(cursor)
    named = assign_tool_names(await tx.mcp.list_targets()).items()
    # By the time in their ids: a tool that appears meanwhile moves no other to another page.
    left = [(name, target) for name, target in named if _read_position(target.id) > last]
    page = left[:TOOLS_PER_PAGE]
    definitions = await tx.mcp.list_definitions([target for _, target in page])
    # What was deleted between the two statements has no definition.
    tools = [build_tool(name, target, definitions[target.id]) for name, target in page if target.id in definitions]
    return ToolPage(tools=tools, next_cursor=page[-1][1].id if len(left) > TOOLS_PER_PAGE else None)


def _read_position(target_id: str) -> str:
    """Return the part of an id that sorts by creation. Errors: `invalid_field` for what is no id of a target."""
    if not any(ids.decode_id(prefix, target_id) for prefix in ("agent", "crew", "wf")):
        raise InvalidField("cursor", "is not a cursor of this list.")
    return target_id.rpartition("_")[2]


async def find_tool(tx: Tx, name: str) -> McpTool:
    """Return the tool of a name. Errors: `not_found`, also for what is not exposed."""
    target = assign_tool_names(await tx.mcp.list_targets()).get(name)
    definition = None if target is None else (await tx.mcp.list_definitions([target])).get(target.id)
    if target is None or definition is None:
        raise UnknownTool(name)
    return build_tool(name, target, definition)


async def start_tool(tx: Tx, caller: Caller, tool: McpTool, arguments: dict[str, Any], request_key: str) -> Execution:
    """Start what a tool stands for with these arguments. Errors: those of a start, with the argument at fault."""
    options = {name: value for name, value in arguments.items() if name in tool.options}
    own = {name: value for name, value in arguments.items() if name not in tool.options}
    if tool.takes_payload:
        fields: dict[str, Any] = {"payload": own}
    else:
        unknown = [name for name in own if name not in ("task", "inputs")]
        if unknown:
            raise InvalidFields(
                [FieldError(field=name, message="is not an argument of this tool.") for name in unknown]
            )
        fields = {name: value for name, value in own.items() if value is not None}
    if options.get("thread_id") == NEW_THREAD:
        options = {**options, "thread_id": None, "thread": True}
    fields |= {
        **options,
        _TARGET_FIELDS[tool.target.kind]: tool.target.id,
        "metadata": {REQUEST_METADATA_KEY: request_key},
    }
    try:
        start = msgspec.convert(fields, TargetedExecutionStart)
    except msgspec.ValidationError as error:
        raise InvalidFields(list_field_errors(fields, TargetedExecutionStart, error)) from None
    try:
        return await launch.start_target(tx, caller, start)
    except DomainError as error:
        if error.code != "invalid_field" or not tool.takes_payload:
            raise
        # Callers know the parts of the payload as arguments.
        raise InvalidFields([_name_argument(field_error) for field_error in error.errors]) from None


def _name_argument(error: FieldError) -> FieldError:
    name = error.field.removeprefix("payload.").removeprefix("inputs.")
    return FieldError(field=name, message=error.message)


async def cancel_call(tx: Tx, caller: Caller, request_key: str) -> None:
    """Cancel the run that a request of the caller's user started, unless it has ended. Errors: `missing_scope`."""
    access.require_scope(caller, "run:agents")
    execution_id = await tx.mcp.find_open_call(request_key, caller.user_id)
    if execution_id is not None:
        await executions.cancel_execution(tx, execution_id, CANCEL_REASON)
