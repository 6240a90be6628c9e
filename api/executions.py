"""Handle executions: start, list, get, cancel, approve, reject and retry. One resource on the paths of five systems."""

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from litestar import Response, Router, delete, get, patch, post
from litestar.di import Provide
from litestar.params import Parameter

from api.operations import IDEMPOTENCY_KEY, MAIN_PATH_KEY, PREFER_WAIT, require_scope
from api.queries import build_filter
from api.requests import HttpRequest, QueryTime, Store
from api.waiting import ExecutionStarter, StatusWaiter
from domain import executions, launch, plans
from domain.executions import (
    ApprovalDecision,
    Execution,
    ExecutionFilter,
    ExecutionKind,
    ExecutionStart,
    PatchExecution,
    TargetedExecutionStart,
)
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page
from domain.shared.status import ExecutionStatus

_LIST_PATHS = ["/executions", "/runtime/executions", "/execution-history"]
_ITEM_PATHS = [
    "/executions/{execution_id:str}",
    "/runtime/executions/{execution_id:str}",
    "/execution-history/{execution_id:str}",
    "/agents/executions/{execution_id:str}",
    "/workflows/executions/{execution_id:str}",
]


_START_ACCESS: Final = require_scope("run:agents", PREFER_WAIT, IDEMPOTENCY_KEY)
_MAIN_PATH: Final = {MAIN_PATH_KEY: "executions"}


@dataclass(frozen=True, kw_only=True)
class ExecutionQuery:
    """Hold the query parameters that select executions."""

    status: ExecutionStatus | None = None
    kind: ExecutionKind | None = None
    agent_id: str | None = None
    agent_version_id: str | None = None
    crew_id: str | None = None
    workflow_id: str | None = None
    schedule_id: str | None = None
    parent_id: str | None = None
    thread_id: str | None = None
    since: QueryTime = None
    until: QueryTime = None
    tag: list[str] | None = None
    metadata: list[str] | None = None
    search: str | None = None
    group_id: str | None = None
    tenant_id: str | None = None

    def to_filter(self, caller: Caller) -> ExecutionFilter:
        """Return the filter: equal in every given parameter, from `since` on and before `until`."""
        execution_filter = build_filter(ExecutionFilter, self)
        return executions.apply_tenant_filter(caller, execution_filter, self.group_id, self.tenant_id)


@post("/executions", opt=_START_ACCESS)
async def start_execution(
    starter: ExecutionStarter, request: HttpRequest, caller: Caller, data: TargetedExecutionStart
) -> Response[Execution]:
    """Start an execution. Answers with its first state; `Prefer: wait=N` holds the answer until it has ended."""
    return await starter.start_execution(request, caller, lambda tx: launch.start_target(tx, caller, data))


@post(["/agents/{agent_id:str}/execute", "/runtime/{agent_id:str}/execute"], opt=_START_ACCESS)
async def execute_agent(
    starter: ExecutionStarter, request: HttpRequest, caller: Caller, agent_id: str, data: ExecutionStart
) -> Response[Execution]:
    """Start an execution of the agent in the path."""
    return await starter.start_execution(request, caller, lambda tx: launch.start_agent(tx, caller, agent_id, data))


@get(_LIST_PATHS, opt={**require_scope("read:executions"), **_MAIN_PATH})
async def list_executions(
    store: Store, caller: Caller, pagination: Page, query_filter: ExecutionQuery
) -> Listing[Execution]:
    """List executions, newest first; with `parent_id` the steps of one. Lists leave out values above 16 KiB.

    `tag=nightly&tag=eu` selects those with both tags, `metadata=customer:7` those with this member, `search` those
    whose run name, input, output and error contain all words and no word behind a `-`.
    """
    execution_filter = query_filter.to_filter(caller)
    async with store.transaction(caller) as tx:
        return await executions.list_executions(tx, execution_filter, pagination)


@get(_ITEM_PATHS, opt={**require_scope("read:executions", PREFER_WAIT), **_MAIN_PATH})
async def get_execution(
    waiter: StatusWaiter, request: HttpRequest, caller: Caller, execution_id: str
) -> Response[Execution]:
    """Return an execution. `Prefer: wait=N` holds the answer until it has ended."""
    row, headers = await waiter.wait_for_execution(request, caller, execution_id)
    return Response(row, headers=headers)


@patch("/executions/{execution_id:str}", opt=require_scope("write:executions"))
async def update_execution(store: Store, caller: Caller, execution_id: str, data: PatchExecution) -> Execution:
    """Change the name, the tags and the metadata of an execution. Fields that are not sent stay."""
    async with store.transaction(caller) as tx:
        return await executions.patch_execution(tx, execution_id, data)


@post(
    ["/executions/{execution_id:str}/cancel", "/runtime/executions/{execution_id:str}/cancel"],
    opt=require_scope("run:agents"),
    status_code=200,
)
async def cancel_execution(store: Store, caller: Caller, execution_id: str) -> Execution:
    """Cancel an execution. A running one is killed within a second, with everything it started."""
    async with store.transaction(caller) as tx:
        return await executions.cancel_execution(tx, execution_id)


@post("/executions/{execution_id:str}/approve", opt=require_scope("run:agents"), status_code=200)
async def approve_execution(
    store: Store, caller: Caller, execution_id: str, data: ApprovalDecision | None = None
) -> Execution:
    """Approve waiting tool calls and steps: all, or the one of `call_id`.

    An agent continues once none of its calls waits, a workflow or a crew with each approved step.
    """
    async with store.transaction(caller) as tx:
        return await plans.decide_approval(tx, caller, execution_id, True, data or ApprovalDecision())


@post("/executions/{execution_id:str}/reject", opt=require_scope("run:agents"), status_code=200)
async def reject_execution(
    store: Store, caller: Caller, execution_id: str, data: ApprovalDecision | None = None
) -> Execution:
    """Reject waiting tool calls and steps: all, or the one of `call_id`, with a `reason`.

    The model receives the reason and continues without its calls; a rejected step fails.
    """
    async with store.transaction(caller) as tx:
        return await plans.decide_approval(tx, caller, execution_id, False, data or ApprovalDecision())


@post("/executions/{execution_id:str}/retry", opt=_START_ACCESS)
async def retry_execution(
    starter: ExecutionStarter,
    request: HttpRequest,
    caller: Caller,
    execution_id: str,
    begin: Annotated[Literal["start", "failed"], Parameter(query="from")] = "start",
) -> Response[Execution]:
    """Run an ended execution again, as a new one with the same version and input.

    A crew or a workflow with `from=failed` keeps the results of its completed steps, and runs the others.
    """
    return await starter.start_execution(
        request, caller, lambda tx: launch.retry_execution(tx, caller, execution_id, begin == "failed")
    )


@delete("/executions/{execution_id:str}", opt=require_scope("write:executions"))
async def delete_execution(store: Store, caller: Caller, execution_id: str) -> None:
    """Delete an ended execution with its steps: events, files, artifacts, evaluations and traces.

    Its costs stay in all sums, and no longer name it.
    """
    async with store.transaction(caller) as tx:
        await executions.delete_execution(tx, execution_id)


router = Router(
    "/",
    route_handlers=[
        start_execution,
        execute_agent,
        list_executions,
        get_execution,
        update_execution,
        delete_execution,
        cancel_execution,
        approve_execution,
        reject_execution,
        retry_execution,
    ],
    dependencies={"query_filter": Provide(ExecutionQuery, sync_to_thread=False)},
    tags=["executions"],
)
