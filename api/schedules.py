"""Schedules: what is started by itself, when a cron line says so."""

from litestar import Response, Router, delete, get, patch, post, route

from api.front import Front, created, needs, started
from api.requests import HttpRequest
from domain import schedules
from domain.executions import Execution
from domain.ports import Tx
from domain.schedules import NewSchedule, Outcome, PatchSchedule, Schedule, ScheduleRun, ShownSchedule
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page

_ALL = "/scheduler/schedules"
_ONE = "/scheduler/schedules/{schedule_id:str}"


@post(_ALL, opt=needs("write:schedules"))
async def create_schedule(
    front: Front, request: HttpRequest, caller: Caller, data: NewSchedule
) -> Response[ShownSchedule]:
    """Start an agent, a crew or a workflow whenever a cron line says so. Needs the scope `run:agents` besides."""

    async def make(tx: Tx) -> ShownSchedule:
        return schedules.with_upcoming(tx, await schedules.create(tx, caller, data))

    return await created(front, request, caller, make)


@get(_ALL, opt=needs("read:schedules"))
async def list_schedules(front: Front, caller: Caller, part: Page, enabled: bool | None = None) -> Listing[Schedule]:
    """The tenant's schedules, newest first."""
    async with front.store.begin(caller) as tx:
        return await schedules.list_schedules(tx, part, enabled)


@get(_ONE, opt=needs("read:schedules"))
async def get_schedule(front: Front, caller: Caller, schedule_id: str) -> ShownSchedule:
    """A schedule by id or name, with its next due times."""
    async with front.store.begin(caller) as tx:
        return await schedules.shown(tx, schedule_id)


@route(_ONE, http_method=["PATCH", "PUT"], opt=needs("write:schedules"), status_code=200)
async def patch_schedule(front: Front, caller: Caller, schedule_id: str, data: PatchSchedule) -> ShownSchedule:
    """Change what was sent; PUT does the same. Needs the scope `run:agents` besides: it runs on your behalf then."""
    async with front.store.begin(caller) as tx:
        return schedules.with_upcoming(tx, await schedules.patch(tx, caller, schedule_id, data))


@patch("/scheduler/schedules/{schedule_id:str}/toggle", opt=needs("write:schedules"))
async def toggle_schedule(front: Front, caller: Caller, schedule_id: str) -> ShownSchedule:
    """Disable an enabled schedule, enable a disabled one. What was due meanwhile is not made up for."""
    async with front.store.begin(caller) as tx:
        return schedules.with_upcoming(tx, await schedules.toggle(tx, caller, schedule_id))


@delete(_ONE, opt=needs("write:schedules"))
async def delete_schedule(front: Front, caller: Caller, schedule_id: str) -> None:
    """Remove a schedule and the history of its due times. Executions stay, and go on."""
    async with front.store.begin(caller) as tx:
        await schedules.delete(tx, schedule_id)


@post("/scheduler/schedules/{schedule_id:str}/run", opt=needs("write:schedules"))
async def run_schedule(front: Front, request: HttpRequest, caller: Caller, schedule_id: str) -> Response[Execution]:
    """Start now what the schedule starts, whatever is due. Needs the scope `run:agents` besides."""
    return await started(front, request, caller, lambda tx: schedules.run_now(tx, caller, schedule_id))


@get("/scheduler/schedules/{schedule_id:str}/runs", opt=needs("read:schedules"))
async def list_schedule_runs(
    front: Front, caller: Caller, part: Page, schedule_id: str, outcome: Outcome | None = None
) -> Listing[ScheduleRun]:
    """What became of the due times of the last 90 days, the latest first."""
    async with front.store.begin(caller) as tx:
        return await schedules.history(tx, schedule_id, part, outcome)


router = Router(
    "/",
    route_handlers=[
        create_schedule,
        list_schedules,
        get_schedule,
        patch_schedule,
        toggle_schedule,
        delete_schedule,
        run_schedule,
        list_schedule_runs,
    ],
    tags=["schedules"],
)
