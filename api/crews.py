"""Handle crews: create, list, get, update, delete, debug and execute."""

from litestar import Response, Router, delete, get, post, route

from api.idempotency import ResourceCreator
from api.operations import IDEMPOTENCY_KEY, PREFER_WAIT, require_scope
from api.requests import HttpRequest, Store
from api.waiting import ExecutionStarter
from domain import crews, launch
from domain.crews import Crew, CrewMemory, CrewSource, CrewValidation, CrewYaml, NewCrew, PatchCrew
from domain.executions import Execution, ExecutionStart
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page

_ITEM_PATH = "/crews/{crew_id:str}"


@post("/crews", opt=require_scope("write:catalog", IDEMPOTENCY_KEY))
async def create_crew(creator: ResourceCreator, request: HttpRequest, caller: Caller, data: NewCrew) -> Response[Crew]:
    """Create a crew from CrewAI's YAML, from existing agents and tasks, or from both.

    The answer lists all errors at once, each with its place, for example `tasks_yaml.write.agent (line 7)`.
    """
    return await creator.create_idempotently(request, caller, lambda tx: crews.create_crew(tx, caller, data))


@post("/crews/debug", opt=require_scope("read:catalog"), status_code=200)
async def check_crew(store: Store, caller: Caller, data: CrewSource) -> CrewValidation:
    """Check a crew without creating it: return all its errors, with their lines, and the steps of its plan."""
    async with store.transaction(caller) as tx:
        return await crews.debug_crew(tx, caller, data)


@get("/crews", opt=require_scope("read:catalog"))
async def list_crews(store: Store, caller: Caller, pagination: Page) -> Listing[Crew]:
    """List the tenant's crews, newest first. Lists leave out YAML above 16 KiB."""
    async with store.transaction(caller) as tx:
        return await crews.list_crews(tx, pagination)


@get(_ITEM_PATH, opt=require_scope("read:catalog"))
async def get_crew(store: Store, caller: Caller, crew_id: str) -> Crew:
    """Return a crew by id or name."""
    async with store.transaction(caller) as tx:
        return await crews.get_crew(tx, crew_id)


@get("/crews/{crew_id:str}/yaml", opt=require_scope("read:catalog"))
async def get_crew_yaml(store: Store, caller: Caller, crew_id: str) -> CrewYaml:
    """Return a crew as CrewAI's YAML, however it was created. Creating a crew from it makes the same crew."""
    async with store.transaction(caller) as tx:
        return await crews.export_crew(tx, caller, crew_id)


@route(_ITEM_PATH, http_method=["PATCH", "PUT"], opt=require_scope("write:catalog"), status_code=200)
async def update_crew(store: Store, caller: Caller, crew_id: str, data: PatchCrew) -> Crew:
    """Change the fields that are sent; PUT does the same. Running executions keep the old plan."""
    async with store.transaction(caller) as tx:
        return await crews.update_crew(tx, caller, crew_id, data)


@delete(_ITEM_PATH, opt=require_scope("write:catalog"))
async def delete_crew(store: Store, caller: Caller, crew_id: str) -> None:
    """Delete a crew that no schedule uses. Its executions continue and stay on record."""
    async with store.transaction(caller) as tx:
        await crews.delete_crew(tx, crew_id)


@get("/crews/{crew_id:str}/memories", opt=require_scope("read:catalog"))
async def list_crew_memories(
    store: Store, caller: Caller, crew_id: str, pagination: Page, memory_scope: str | None = None
) -> Listing[CrewMemory]:
    """List what a crew remembers of earlier runs, newest first; with `memory_scope` of that scope alone."""
    async with store.transaction(caller) as tx:
        crew = await crews.get_crew(tx, crew_id)
        return await crews.list_memories(tx, crew.id, memory_scope, pagination)


@delete("/crews/{crew_id:str}/memories", opt=require_scope("write:catalog"))
async def clear_crew_memories(store: Store, caller: Caller, crew_id: str, memory_scope: str | None = None) -> None:
    """Delete what a crew remembers; with `memory_scope` of that scope alone."""
    async with store.transaction(caller) as tx:
        crew = await crews.get_crew(tx, crew_id)
        await crews.clear_memories(tx, crew.id, memory_scope)


@delete("/crews/{crew_id:str}/memories/{memory_id:str}", opt=require_scope("write:catalog"))
async def delete_crew_memory(store: Store, caller: Caller, crew_id: str, memory_id: str) -> None:
    """Delete one memory of a crew."""
    async with store.transaction(caller) as tx:
        crew = await crews.get_crew(tx, crew_id)
        await crews.delete_memory(tx, crew.id, memory_id)


@post("/crews/{crew_id:str}/execute", opt=require_scope("run:agents", PREFER_WAIT, IDEMPOTENCY_KEY))
async def execute_crew(
    starter: ExecutionStarter, request: HttpRequest, caller: Caller, crew_id: str, data: ExecutionStart
) -> Response[Execution]:
    """Execute a crew. `inputs` holds a value for each `{name}` in its texts."""
    return await starter.start_execution(request, caller, lambda tx: launch.start_crew(tx, caller, crew_id, data))


router = Router(
    "/",
    route_handlers=[
        create_crew,
        check_crew,
        list_crews,
        get_crew,
        get_crew_yaml,
        update_crew,
        delete_crew,
        list_crew_memories,
        clear_crew_memories,
        delete_crew_memory,
        execute_crew,
    ],
    tags=["crews"],
)
