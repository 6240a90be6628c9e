"""List tools and call them: start what a tool stands for, report its progress, and answer with what it left."""

import asyncio
from typing import Any, Final

import anyio
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INVALID_PARAMS,
    CallToolRequestParams,
    CallToolResult,
    ListToolsResult,
    PaginatedRequestParams,
    Tool,
    ToolAnnotations,
)

from api.auth import Authenticator, StreamAccess
from api.event_feed import EventFeed
from api.mcp.context import McpContext, McpExchange, answer_or_refuse
from api.mcp.progress import ProgressReader
from api.mcp.results import MAX_LINKED_FILES, render_refusal, render_result
from api.waiting import StatusWaiter
from domain import executions, mcp, workspaces
from domain.events import EventQuery
from domain.executions import Execution
from domain.mcp import McpTool, UnknownTool
from domain.ports import Store
from domain.shared import access
from domain.shared.errors import OUTAGE_CODES, Conflict, DomainError
from domain.shared.pages import Page
from domain.shared.status import TERMINAL_STATUSES

# A run that waits for a person is answered too: clients do not wait for days.
_ANSWERED_STATUSES: Final = TERMINAL_STATUSES | {"waiting"}
_WAIT_SECONDS: Final = 3600.0
# These are errors of the request; all others are the tool's, for the model to read.
_REFUSED_CODES: Final = OUTAGE_CODES | {"missing_scope", "forbidden", "unauthenticated", "internal_error"}


class ToolCalls:
    """Answer `tools/list` and `tools/call`."""

    def __init__(
        self, *, store: Store, waiter: StatusWaiter, event_feed: EventFeed, authenticator: Authenticator
    ) -> None:
        self._store, self._waiter, self._feed, self._authenticator = store, waiter, event_feed, authenticator

    async def list_tools(self, context: McpContext, params: PaginatedRequestParams | None) -> ListToolsResult:
        """Return a page of the caller's tools."""

        async def list_page(exchange: McpExchange) -> ListToolsResult:
            access.require_scope(exchange.caller, "read:agents")
            async with self._store.transaction(exchange.caller) as tx:
                page = await mcp.list_tools(tx, None if params is None else params.cursor)
            return ListToolsResult(tools=[_render_tool(tool) for tool in page.tools], next_cursor=page.next_cursor)

        return await answer_or_refuse(context, list_page)

    async def call_tool(self, context: McpContext, params: CallToolRequestParams) -> CallToolResult:
        """Run what a tool stands for, and return what it answered."""

        async def call_tool(exchange: McpExchange) -> CallToolResult:
            return await self._run_tool(context, exchange, params.name, params.arguments or {})

        return await answer_or_refuse(context, call_tool)

    async def _run_tool(
        self, context: McpContext, exchange: McpExchange, name: str, arguments: dict[str, Any]
    ) -> CallToolResult:
        access.require_scope(exchange.caller, "run:agents")
        try:
            # A start is not interrupted: a run whose id is not known could not be cancelled.
            with anyio.CancelScope(shield=True):
                execution = await self._start_tool(context, exchange, name, arguments)
        except UnknownTool as error:
            raise MCPError(INVALID_PARAMS, error.detail) from None
        except DomainError as error:
            if error.code in _REFUSED_CODES:
                raise
            return render_refusal(error)
        try:
            execution = await self._follow_run(context, exchange, execution)
        except asyncio.CancelledError:
            # A server that stops does not end runs, a client that leaves does: its answer would not be read.
            if exchange.is_client_gone:
                with anyio.CancelScope(shield=True):
                    await self._cancel_run(exchange, execution.id)
            raise
        async with self._store.transaction(exchange.caller) as tx:
            files = await workspaces.list_files(tx, execution.id, Page(limit=MAX_LINKED_FILES, offset=0))
        return render_result(execution, files.items)

    async def _start_tool(
        self, context: McpContext, exchange: McpExchange, name: str, arguments: dict[str, Any]
    ) -> Execution:
        async with self._store.transaction(exchange.caller) as tx:
            tool = await mcp.find_tool(tx, name)
            return await mcp.start_tool(tx, exchange.caller, tool, arguments, exchange.build_request_key(context))

    async def _follow_run(self, context: McpContext, exchange: McpExchange, execution: Execution) -> Execution:
        """Return the execution once it has ended or waits for a person; report its progress to who asked for it."""
        watch = exchange.open_access(self._authenticator, "run:agents")
        if context.meta is None or context.meta.get("progress_token") is None:
            return await self._wait_for_run(exchange, execution, watch)
        reader = ProgressReader(execution)
        position = EventQuery(tenant_id=exchange.caller.tenant_id, execution_id=execution.id, seq=0)
        async for event in self._feed.follow_events(position, watch):
            if (note := reader.read_event(event)) is not None:
                await context.session.report_progress(note.progress, note.total, note.message)
            if event.type == "approval":
                execution = await self._waiter.find_execution(exchange.caller, execution.id)
                if execution.status == "waiting":
                    return execution
        return await self._waiter.find_execution(exchange.caller, execution.id)

    async def _wait_for_run(self, exchange: McpExchange, execution: Execution, watch: StreamAccess) -> Execution:
        async def find_execution() -> Execution:
            await watch.check_access()
            return await self._waiter.find_execution(exchange.caller, execution.id)

        with self._waiter.bell.watch_row(execution.id, _ANSWERED_STATUSES) as ring:
            row = await find_execution()
            while row.status not in _ANSWERED_STATUSES:
                row = await self._waiter.poll_until_final(ring, find_execution, _ANSWERED_STATUSES, _WAIT_SECONDS, row)
        return row

    async def _cancel_run(self, exchange: McpExchange, execution_id: str) -> None:
        try:
            async with self._store.transaction(exchange.caller) as tx:
                await executions.cancel_execution(tx, execution_id, mcp.CANCEL_REASON)
        except Conflict:
            # It has ended meanwhile.
            return


def _render_tool(tool: McpTool) -> Tool:
    return Tool(
        name=tool.name,
        title=tool.target.name,
        description=tool.description,
        input_schema=tool.input_schema,
        output_schema=tool.output_schema,
        # What an agent does with its tools is not known here.
        annotations=ToolAnnotations(read_only_hint=False, idempotent_hint=False, open_world_hint=True),
        _meta={"paddock/id": tool.target.id, "paddock/kind": tool.target.kind},
    )
