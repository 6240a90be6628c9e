"""Executions: start, list, get, cancel, retry. One resource on the paths of five systems."""

from typing import Annotated, Literal

from litestar import Response, Router, get, post
from litestar.params import Parameter

from api.front import Front, QueryTime, find_execution, needs, started, waited
from api.requests import HttpRequest
from domain import executions, launch
from domain.executions import Decision, Execution, Filter, Kind, Start, StartAny
from domain.plans import approvals
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page
from domain.shared.status import TERMINAL, Status
from domain.shared.times import read_time_or_none

_LISTS = ["/executions", "/runtime/executions", "/execution-history"]
_ONE = [
    "/executions/{execution_id:str}",
    "/runtime/executions/{execution_id:str}",
    "/execution-history/{execution_id:str}",
    "/agents/executions/{execution_id:str}",
    "/workflows/executions/{execution_id:str}",
]


@post("/executions", opt=needs("run:agents"))
async def start_execution(front: Front, request: HttpRequest, caller: Caller, data: StartAny) -> Response[Execution]:
    """Start an execution. 201 with its first state; `Prefer: wait=N` holds the answer until it has ended."""
    return await started(front, request, caller, lambda tx: launch.start(tx, caller, data))


@post(["/agents/{agent_id:str}/execute", "/runtime/{agent_id:str}/execute"], opt=needs("run:agents"))
async def execute_agent(
    front: Front, request: HttpRequest, caller: Caller, agent_id: str, data: Start
) -> Response[Execution]:
    """Start an execution of the agent in the path."""
    return await started(front, request, caller, lambda tx: executions.start(tx, caller, agent_id, data))


@get(_LISTS, opt={**needs("read:executions"), "home": "executions"})
async def list_executions(
    front: Front,
    caller: Caller,
    part: Page,
    status: Status | None = None,
    kind: Kind | None = None,
    agent_id: str | None = None,
    agent_version_id: str | None = None,
    crew_id: str | None = None,
    workflow_id: str | None = None,
    schedule_id: str | None = None,
    parent_id: str | None = None,
    since: QueryTime = None,
    until: QueryTime = None,
    group_id: str | None = None,
    tenant_id: str | None = None,
) -> Listing[Execution]:
    """Executions, newest first; the steps of one with `parent_id`. What is larger than 16 KiB is left out of lists."""
    first, last = read_time_or_none("since", since), read_time_or_none("until", until, end=True)
    wanted = Filter(status, kind, agent_id, agent_version_id, crew_id, workflow_id, schedule_id, parent_id, first, last)
    narrowed = executions.narrowed(caller, wanted, group_id, tenant_id)
    async with front.store.begin(caller) as tx:
        return await executions.list_executions(tx, narrowed, part)


@get(_ONE, opt={**needs("read:executions"), "home": "executions"})
async def get_execution(front: Front, request: HttpRequest, caller: Caller, execution_id: str) -> Response[Execution]:
    """One execution. `Prefer: wait=N` holds the answer until it has ended."""
    row, headers = await waited(
        front, request, execution_id, lambda: find_execution(front, caller, execution_id), TERMINAL
    )
    return Response(row, headers=headers)


@post(
    ["/executions/{execution_id:str}/cancel", "/runtime/executions/{execution_id:str}/cancel"],
    opt=needs("run:agents"),
    status_code=200,
)
async def cancel_execution(front: Front, caller: Caller, execution_id: str) -> Execution:
    """Cancel an execution. One that runs is killed within a second, with everything it started."""
    async with front.store.begin(caller) as tx:
        return await executions.cancel(tx, execution_id)


@post("/executions/{execution_id:str}/approve", opt=needs("run:agents"), status_code=200)
async def approve_execution(front: Front, caller: Caller, execution_id: str, data: Decision | None = None) -> Execution:
    """Let waiting tool calls be made and waiting steps start: all, or the one of `call_id`.

    An agent goes on when no call of it waits any more, a workflow or a crew with each step.
    """
    async with front.store.begin(caller) as tx:
        return await approvals.decide(tx, caller, execution_id, True, data or Decision())


@post("/executions/{execution_id:str}/reject", opt=needs("run:agents"), status_code=200)
async def reject_execution(front: Front, caller: Caller, execution_id: str, data: Decision | None = None) -> Execution:
    """Refuse waiting tool calls and steps: all, or the one of `call_id`, with a `reason`.

    The model is told so, and goes on without its calls; a step has failed.
    """
    async with front.store.begin(caller) as tx:
        return await approvals.decide(tx, caller, execution_id, False, data or Decision())


@post("/executions/{execution_id:str}/retry", opt=needs("run:agents"))
async def retry_execution(
    front: Front,
    request: HttpRequest,
    caller: Caller,
    execution_id: str,
    begin: Annotated[Literal["start", "failed"], Parameter(query="from")] = "start",
) -> Response[Execution]:
    """Run an ended execution again, as a new one with the same version and input.

    A crew or a workflow `from=failed` keeps what its completed steps came to, and runs the others.
    """
    return await started(front, request, caller, lambda tx: launch.retry(tx, caller, execution_id, begin == "failed"))


router = Router(
    "/",
    route_handlers=[
        start_execution,
        execute_agent,
        list_executions,
        get_execution,
        cancel_execution,
        approve_execution,
        reject_execution,
        retry_execution,
    ],
    tags=["executions"],
)
