"""Handle workflows, as JSON or YAML: create, list, get, update, delete and execute."""

import asyncio
import functools
from typing import TypeVar

from litestar import Response, Router, delete, get, post, route

from api.idempotency import ResourceCreator
from api.keyed_locks import KeyedLocks
from api.operations import (
    IDEMPOTENCY_KEY,
    PREFER_WAIT,
    RequestBody,
    ResponseContent,
    read_body_as,
    require_scope,
)
from api.requests import HttpRequest, Store
from api.waiting import ExecutionStarter
from domain import launch, workflows
from domain.executions import Execution, ExecutionStart
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page
from domain.workflows import (
    MAX_WORKFLOW_BODY_BYTES,
    YAML_MEDIA_TYPES,
    NewWorkflow,
    ParsedBody,
    PatchWorkflow,
    Workflow,
    WorkflowStatus,
    WorkflowSummary,
    WorkflowYaml,
)

BodyT = TypeVar("BodyT")
_ITEM_PATH = "/workflows/{workflow_id:str}"
# Reading a larger body would block the event loop for too long.
MAX_INLINE_READ_BYTES = 16 * 1024


# In responses alone: generators of clients drop a route whose body may also have a type that they do not know.
_YAML_RESPONSE = ResponseContent(
    content={"text/yaml": {"schema": {"type": "string", "description": "A YAML document."}}}, adds=True
)


def _describe_body(kind: type) -> RequestBody:
    description = f"JSON of this schema, or the same as YAML with `Content-Type: {YAML_MEDIA_TYPES[0]}`."
    return read_body_as(kind, WorkflowYaml, description=description)


async def _read_body(request: HttpRequest, kind: type[BodyT]) -> ParsedBody[BodyT]:
    body = await request.body()
    read = functools.partial(workflows.parse_body, body, request.content_type[0], kind)
    return read() if len(body) <= MAX_INLINE_READ_BYTES else await asyncio.to_thread(read)


@post(
    "/workflows",
    opt=require_scope("write:catalog", IDEMPOTENCY_KEY, _describe_body(NewWorkflow)),
    request_max_body_size=MAX_WORKFLOW_BODY_BYTES,
)
async def create_workflow(
    creator: ResourceCreator, workflow_locks: KeyedLocks, request: HttpRequest, caller: Caller
) -> Response[Workflow]:
    """Create a workflow from JSON or YAML. The answer lists all errors at once, each with its place."""
    body = await _read_body(request, NewWorkflow)
    async with workflow_locks.get_lock(caller.tenant_id):
        return await creator.create_idempotently(
            request, caller, lambda tx: workflows.create_workflow(tx, caller, body)
        )


@get("/workflows", opt=require_scope("read:catalog"))
async def list_workflows(
    store: Store, caller: Caller, pagination: Page, status: WorkflowStatus | None = None
) -> Listing[WorkflowSummary]:
    """List the tenant's workflows, newest first. `steps` is the number of its steps."""
    async with store.transaction(caller) as tx:
        return await workflows.list_workflows(tx, pagination, status)


@get(_ITEM_PATH, opt=require_scope("read:catalog", _YAML_RESPONSE))
async def get_workflow(store: Store, request: HttpRequest, caller: Caller, workflow_id: str) -> Response[Workflow]:
    """Return a workflow by id or name. `Accept: application/yaml` returns YAML that creates the same workflow."""
    async with store.transaction(caller) as tx:
        workflow = await workflows.get_workflow(tx, workflow_id)
    media_type = request.accept.best_match(["application/json", *YAML_MEDIA_TYPES])
    if media_type in YAML_MEDIA_TYPES:
        return Response(workflows.render_workflow(workflow).encode(), media_type=media_type)  # type: ignore[arg-type]
    return Response(workflow)


@route(
    _ITEM_PATH,
    http_method=["PATCH", "PUT"],
    opt=require_scope("write:catalog", _describe_body(PatchWorkflow)),
    status_code=200,
    request_max_body_size=MAX_WORKFLOW_BODY_BYTES,
)
async def update_workflow(
    store: Store, workflow_locks: KeyedLocks, request: HttpRequest, caller: Caller, workflow_id: str
) -> Workflow:
    """Change the fields that are sent, as JSON or YAML; PUT does the same. Running executions keep the old plan."""
    body = await _read_body(request, PatchWorkflow)
    async with workflow_locks.get_lock(caller.tenant_id), store.transaction(caller) as tx:
        return await workflows.update_workflow(tx, caller, workflow_id, body)


@post("/workflows/{workflow_id:str}/execute", opt=require_scope("run:agents", PREFER_WAIT, IDEMPOTENCY_KEY))
async def execute_workflow(
    starter: ExecutionStarter, request: HttpRequest, caller: Caller, workflow_id: str, data: ExecutionStart
) -> Response[Execution]:
    """Execute a workflow. Answers with its execution; each step is an execution of its own."""
    return await starter.start_execution(
        request, caller, lambda tx: launch.start_workflow(tx, caller, workflow_id, data)
    )


@delete(_ITEM_PATH, opt=require_scope("write:catalog"))
async def delete_workflow(store: Store, workflow_locks: KeyedLocks, caller: Caller, workflow_id: str) -> None:
    """Delete a workflow that no schedule uses. Its executions continue and stay on record."""
    async with workflow_locks.get_lock(caller.tenant_id), store.transaction(caller) as tx:
        await workflows.delete_workflow(tx, workflow_id)


router = Router(
    "/",
    route_handlers=[
        create_workflow,
        list_workflows,
        get_workflow,
        update_workflow,
        delete_workflow,
        execute_workflow,
    ],
    tags=["workflows"],
)
