"""The catalogue of tasks: create, list, change, delete."""

from litestar import Response, Router, delete, get, post, put, route

from api.front import Front, created, needs
from api.requests import HttpRequest
from domain import tasks
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page
from domain.tasks import NewTask, PatchTask, Task

_ONE = "/tasks/{task_id:str}"


@post("/tasks", opt=needs("write:catalog"))
async def create_task(front: Front, request: HttpRequest, caller: Caller, data: NewTask) -> Response[Task]:
    """Add a task, which crews can be made of."""
    return await created(front, request, caller, lambda tx: tasks.create(tx, caller, data))


@get("/tasks", opt=needs("read:catalog"))
async def list_tasks(front: Front, caller: Caller, part: Page) -> Listing[Task]:
    """The tenant's tasks, newest first."""
    async with front.store.begin(caller) as tx:
        return await tasks.list_tasks(tx, part)


@get(_ONE, opt=needs("read:catalog"))
async def get_task(front: Front, caller: Caller, task_id: str) -> Task:
    """A task by id, name or slug."""
    async with front.store.begin(caller) as tx:
        return await tasks.get(tx, task_id)


@route(_ONE, http_method=["PATCH", "PUT"], opt=needs("write:catalog"), status_code=200)
async def patch_task(front: Front, caller: Caller, task_id: str, data: PatchTask) -> Task:
    """Change what was sent; PUT does the same."""
    async with front.store.begin(caller) as tx:
        return await tasks.patch(tx, task_id, data)


@put("/tasks/{task_id:str}/full", opt=needs("write:catalog"))
async def replace_task(front: Front, caller: Caller, task_id: str, data: NewTask) -> Task:
    """Put another task in its place: what is not sent is gone. The id stays."""
    async with front.store.begin(caller) as tx:
        return await tasks.replace(tx, task_id, data)


@delete(_ONE, opt=needs("write:catalog"))
async def delete_task(front: Front, caller: Caller, task_id: str) -> None:
    """Remove a task that no crew and no other task names."""
    async with front.store.begin(caller) as tx:
        await tasks.delete(tx, task_id)


router = Router(
    "/",
    route_handlers=[create_task, list_tasks, get_task, patch_task, replace_task, delete_task],
    tags=["tasks"],
)
