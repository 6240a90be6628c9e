"""Workflows: create, list, change, delete, execute. They come and go as JSON or as YAML."""

import asyncio
import functools
from typing import TypeVar

from litestar import Response, Router, delete, get, post, route

from api.front import Front, created, needs, started
from api.requests import HttpRequest
from domain import launch, workflows
from domain.executions import Execution, Start
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page
from domain.workflows import MAX_BODY, YAML, NewWorkflow, PatchWorkflow, Sent, Workflow, WorkflowItem, WorkflowStatus

T = TypeVar("T")
_ONE = "/workflows/{workflow_id:str}"
# Reading a larger body takes longer than others should wait.
READ_AT_ONCE = 16 * 1024


async def _sent(request: HttpRequest, kind: type[T]) -> Sent[T]:
    body = await request.body()
    read = functools.partial(workflows.read, body, request.content_type[0], kind)
    return read() if len(body) <= READ_AT_ONCE else await asyncio.to_thread(read)


@post("/workflows", opt=needs("write:catalog"), request_max_body_size=MAX_BODY)
async def create_workflow(front: Front, request: HttpRequest, caller: Caller) -> Response[Workflow]:
    """Create a workflow of JSON or YAML. Whatever is wrong with it is told at once, each mistake with its place."""
    sent = await _sent(request, NewWorkflow)
    async with front.workflows.of(caller.tenant_id):
        return await created(front, request, caller, lambda tx: workflows.create(tx, caller, sent))


@get("/workflows", opt=needs("read:catalog"))
async def list_workflows(
    front: Front, caller: Caller, part: Page, status: WorkflowStatus | None = None
) -> Listing[WorkflowItem]:
    """The tenant's workflows, newest first. `steps` is how many each has."""
    async with front.store.begin(caller) as tx:
        return await workflows.list_workflows(tx, part, status)


@get(_ONE, opt=needs("read:catalog"))
async def get_workflow(front: Front, request: HttpRequest, caller: Caller, workflow_id: str) -> Response[Workflow]:
    """A workflow by id or name. With `Accept: application/yaml` as YAML that makes the same one again."""
    async with front.store.begin(caller) as tx:
        found = await workflows.get(tx, workflow_id)
    wanted = request.accept.best_match(["application/json", *YAML])
    if wanted in YAML:
        return Response(workflows.written(found).encode(), media_type=wanted)  # type: ignore[arg-type]
    return Response(found)


@route(_ONE, http_method=["PATCH", "PUT"], opt=needs("write:catalog"), status_code=200, request_max_body_size=MAX_BODY)
async def patch_workflow(front: Front, request: HttpRequest, caller: Caller, workflow_id: str) -> Workflow:
    """Change what was sent, as JSON or YAML; PUT does the same. What runs already keeps the plan that it has."""
    sent = await _sent(request, PatchWorkflow)
    async with front.workflows.of(caller.tenant_id), front.store.begin(caller) as tx:
        return await workflows.patch(tx, caller, workflow_id, sent)


@post("/workflows/{workflow_id:str}/execute", opt=needs("run:agents"))
async def execute_workflow(
    front: Front, request: HttpRequest, caller: Caller, workflow_id: str, data: Start
) -> Response[Execution]:
    """Start a workflow. 201 with its execution, of which each step is one of its own."""
    return await started(front, request, caller, lambda tx: launch.start_workflow(tx, caller, workflow_id, data))


@delete(_ONE, opt=needs("write:catalog"))
async def delete_workflow(front: Front, caller: Caller, workflow_id: str) -> None:
    """Remove a workflow that no schedule starts. Its executions go on, and the record of them stays."""
    async with front.workflows.of(caller.tenant_id), front.store.begin(caller) as tx:
        await workflows.delete(tx, workflow_id)


router = Router(
    "/",
    route_handlers=[
        create_workflow,
        list_workflows,
        get_workflow,
        patch_workflow,
        delete_workflow,
        execute_workflow,
    ],
    tags=["workflows"],
)
