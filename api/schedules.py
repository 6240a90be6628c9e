"""Handle schedules: start agents, crews and workflows at the times of a cron expression."""

from litestar import Response, Router, delete, get, patch, post, route

from api.idempotency import ResourceCreator
from api.operations import IDEMPOTENCY_KEY, PREFER_WAIT, require_scope
from api.requests import HttpRequest, Store
from api.waiting import ExecutionStarter
from domain import schedules
from domain.executions import Execution
from domain.ports import Tx
from domain.schedules import NewSchedule, PatchSchedule, Schedule, ScheduleDetail, ScheduleOutcome, ScheduleRun
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page

_LIST_PATH = "/scheduler/schedules"
_ITEM_PATH = "/scheduler/schedules/{schedule_id:str}"


@post(_LIST_PATH, opt=require_scope("write:schedules", IDEMPOTENCY_KEY))
async def create_schedule(
    creator: ResourceCreator, request: HttpRequest, caller: Caller, data: NewSchedule
) -> Response[ScheduleDetail]:
    """Start an agent, a crew or a workflow at the times of a cron expression. Also requires the scope `run:agents`."""

    async def create(tx: Tx) -> ScheduleDetail:
        return schedules.add_upcoming_times(tx, await schedules.create_schedule(tx, caller, data))

    return await creator.create_idempotently(request, caller, create)


@get(_LIST_PATH, opt=require_scope("read:schedules"))
async def list_schedules(
    store: Store, caller: Caller, pagination: Page, enabled: bool | None = None
) -> Listing[Schedule]:
    """List the tenant's schedules, newest first."""
    async with store.transaction(caller) as tx:
        return await schedules.list_schedules(tx, pagination, enabled)


@get(_ITEM_PATH, opt=require_scope("read:schedules"))
async def get_schedule(store: Store, caller: Caller, schedule_id: str) -> ScheduleDetail:
    """Return a schedule by id or name, with its next due times."""
    async with store.transaction(caller) as tx:
        return await schedules.get_schedule_detail(tx, schedule_id)


@route(_ITEM_PATH, http_method=["PATCH", "PUT"], opt=require_scope("write:schedules"), status_code=200)
async def update_schedule(store: Store, caller: Caller, schedule_id: str, data: PatchSchedule) -> ScheduleDetail:
    """Change the fields that are sent; PUT does the same. Also requires `run:agents`: it then runs on your behalf."""
    async with store.transaction(caller) as tx:
        return schedules.add_upcoming_times(tx, await schedules.update_schedule(tx, caller, schedule_id, data))


@patch("/scheduler/schedules/{schedule_id:str}/toggle", opt=require_scope("write:schedules"))
async def toggle_schedule(store: Store, caller: Caller, schedule_id: str) -> ScheduleDetail:
    """Disable an enabled schedule, or enable a disabled one. Due times that it missed are not made up for."""
    async with store.transaction(caller) as tx:
        return schedules.add_upcoming_times(tx, await schedules.toggle_schedule(tx, caller, schedule_id))


@delete(_ITEM_PATH, opt=require_scope("write:schedules"))
async def delete_schedule(store: Store, caller: Caller, schedule_id: str) -> None:
    """Delete a schedule and the history of its due times. Its executions continue and stay on record."""
    async with store.transaction(caller) as tx:
        await schedules.delete_schedule(tx, schedule_id)


@post("/scheduler/schedules/{schedule_id:str}/run", opt=require_scope("write:schedules", PREFER_WAIT, IDEMPOTENCY_KEY))
async def run_schedule(
    starter: ExecutionStarter, request: HttpRequest, caller: Caller, schedule_id: str
) -> Response[Execution]:
    """Start the schedule's execution now, whether it is due or not. Also requires the scope `run:agents`."""
    return await starter.start_execution(request, caller, lambda tx: schedules.run_schedule(tx, caller, schedule_id))


@get("/scheduler/schedules/{schedule_id:str}/runs", opt=require_scope("read:schedules"))
async def list_schedule_runs(
    store: Store, caller: Caller, pagination: Page, schedule_id: str, outcome: ScheduleOutcome | None = None
) -> Listing[ScheduleRun]:
    """List the outcomes of the due times of the last 90 days, newest first."""
    async with store.transaction(caller) as tx:
        return await schedules.list_schedule_runs(tx, schedule_id, pagination, outcome)


router = Router(
    "/",
    route_handlers=[
        create_schedule,
        list_schedules,
        get_schedule,
        update_schedule,
        toggle_schedule,
        delete_schedule,
        run_schedule,
        list_schedule_runs,
    ],
    tags=["schedules"],
)
