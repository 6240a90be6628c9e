"""Handle the catalogue of tasks: create, list, get, update, replace and delete."""

from litestar import Response, Router, delete, get, post, put, route

from api.idempotency import ResourceCreator
from api.operations import IDEMPOTENCY_KEY, require_scope
from api.requests import HttpRequest, Store
from domain import tasks
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page
from domain.tasks import NewTask, PatchTask, Task

_ITEM_PATH = "/tasks/{task_id:str}"


@post("/tasks", opt=require_scope("write:catalog", IDEMPOTENCY_KEY))
async def create_task(creator: ResourceCreator, request: HttpRequest, caller: Caller, data: NewTask) -> Response[Task]:
    """Create a task that crews can use."""
    return await creator.create_idempotently(request, caller, lambda tx: tasks.create_task(tx, caller, data))


@get("/tasks", opt=require_scope("read:catalog"))
async def list_tasks(store: Store, caller: Caller, pagination: Page) -> Listing[Task]:
    """List the tenant's tasks, newest first."""
    async with store.transaction(caller) as tx:
        return await tasks.list_tasks(tx, pagination)


@get(_ITEM_PATH, opt=require_scope("read:catalog"))
async def get_task(store: Store, caller: Caller, task_id: str) -> Task:
    """Return a task by id, name or slug."""
    async with store.transaction(caller) as tx:
        return await tasks.get_task(tx, task_id)


@route(_ITEM_PATH, http_method=["PATCH", "PUT"], opt=require_scope("write:catalog"), status_code=200)
async def update_task(store: Store, caller: Caller, task_id: str, data: PatchTask) -> Task:
    """Change the fields that are sent; PUT does the same."""
    async with store.transaction(caller) as tx:
        return await tasks.update_task(tx, task_id, data)


@put("/tasks/{task_id:str}/full", opt=require_scope("write:catalog"))
async def replace_task(store: Store, caller: Caller, task_id: str, data: NewTask) -> Task:
    """Replace a task: fields that are not sent get their defaults. The id stays."""
    async with store.transaction(caller) as tx:
        return await tasks.replace_task(tx, task_id, data)


@delete(_ITEM_PATH, opt=require_scope("write:catalog"))
async def delete_task(store: Store, caller: Caller, task_id: str) -> None:
    """Delete a task that no crew and no other task uses."""
    async with store.transaction(caller) as tx:
        await tasks.delete_task(tx, task_id)


router = Router(
    "/",
    route_handlers=[create_task, list_tasks, get_task, update_task, replace_task, delete_task],
    tags=["tasks"],
)
