"""Crews: create, list, change, delete, look for mistakes, run."""

from litestar import Response, Router, delete, get, post, route

from api.front import Front, created, needs, started
from api.requests import HttpRequest
from domain import crews, launch
from domain.crews import Crew, Findings, NewCrew, PatchCrew, Settings, Written
from domain.executions import Execution, Start
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page

_ONE = "/crews/{crew_id:str}"


@post("/crews", opt=needs("write:catalog"))
async def create_crew(front: Front, request: HttpRequest, caller: Caller, data: NewCrew) -> Response[Crew]:
    """Create a crew of CrewAI's YAML, of agents and tasks that are there already, or of both.

    Everything that is wrong with it is told at once, as `tasks_yaml.write.agent (line 7)`.
    """
    return await created(front, request, caller, lambda tx: crews.create(tx, caller, data))


@post("/crews/debug", opt=needs("read:catalog"), status_code=200)
async def debug_crew(front: Front, caller: Caller, data: Settings) -> Findings:
    """Everything that is wrong with a crew, with lines, and the steps that it comes to. Nothing is kept."""
    async with front.store.begin(caller) as tx:
        return await crews.debug(tx, caller, data)


@get("/crews", opt=needs("read:catalog"))
async def list_crews(front: Front, caller: Caller, part: Page) -> Listing[Crew]:
    """The tenant's crews, newest first. YAML of more than 16 KiB is left out of lists."""
    async with front.store.begin(caller) as tx:
        return await crews.list_crews(tx, part)


@get(_ONE, opt=needs("read:catalog"))
async def get_crew(front: Front, caller: Caller, crew_id: str) -> Crew:
    """A crew by id or name."""
    async with front.store.begin(caller) as tx:
        return await crews.get(tx, crew_id)


@get("/crews/{crew_id:str}/yaml", opt=needs("read:catalog"))
async def get_crew_yaml(front: Front, caller: Caller, crew_id: str) -> Written:
    """A crew in CrewAI's form, whatever it was made of. Posted again it makes the same crew."""
    async with front.store.begin(caller) as tx:
        return await crews.written(tx, caller, crew_id)


@route(_ONE, http_method=["PATCH", "PUT"], opt=needs("write:catalog"), status_code=200)
async def patch_crew(front: Front, caller: Caller, crew_id: str, data: PatchCrew) -> Crew:
    """Change what was sent; PUT does the same. What runs of it goes on as it was."""
    async with front.store.begin(caller) as tx:
        return await crews.patch(tx, caller, crew_id, data)


@delete(_ONE, opt=needs("write:catalog"))
async def delete_crew(front: Front, caller: Caller, crew_id: str) -> None:
    """Remove a crew that no schedule starts. What runs of it goes on, and stays on record."""
    async with front.store.begin(caller) as tx:
        await crews.delete(tx, crew_id)


@post("/crews/{crew_id:str}/execute", opt=needs("run:agents"))
async def execute_crew(
    front: Front, request: HttpRequest, caller: Caller, crew_id: str, data: Start
) -> Response[Execution]:
    """Run a crew. `inputs` holds a value for each name that stands in braces in its texts."""
    return await started(front, request, caller, lambda tx: launch.start_crew(tx, caller, crew_id, data))


router = Router(
    "/",
    route_handlers=[
        create_crew,
        debug_crew,
        list_crews,
        get_crew,
        get_crew_yaml,
        patch_crew,
        delete_crew,
        execute_crew,
    ],
    tags=["crews"],
)
