"""Schedules: making, changing and asking for them, and running one now."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Final

import msgspec
from msgspec import UNSET

from domain import agents, crews, launch, workflows
from domain.executions import Execution
from domain.ports import Tx
from domain.schedules import cron, trigger
from domain.schedules.schema import (
    MAX_INPUT_BYTES,
    MAX_SCHEDULES,
    TARGET_FIELDS,
    UPCOMING_COUNT,
    NewSchedule,
    PatchSchedule,
    Schedule,
    ScheduleDetail,
    ScheduleOutcome,
    ScheduleRun,
)
from domain.shared import ids, names
from domain.shared.access import Caller, require_scope
from domain.shared.errors import (
    DATABASE_OUTAGE_CODES,
    Conflict,
    DomainError,
    FieldError,
    InvalidField,
    InvalidFields,
    NotFound,
)
from domain.shared.pages import Listing, Page

# Whoever has something started must be allowed to start it.
_NEEDED: Final = "run:agents"


class _Tried(Exception):
    """A start that is not meant."""


async def create_schedule(tx: Tx, caller: Caller, data: NewSchedule) -> Schedule:
    """Add a schedule. Errors: `missing_scope`, `conflict` for a taken name, `invalid_field`."""
    require_scope(caller, _NEEDED)
    if await tx.schedules.count() >= MAX_SCHEDULES:
        raise Conflict(f"A tenant has at most {MAX_SCHEDULES} schedules.")
    schedule = Schedule(
        id=ids.generate_id("sched"),
        **{field: getattr(data, field) for field in NewSchedule.__struct_fields__},
        user_id=caller.user_id,
        tenant_id=caller.tenant_id,
        created_at=tx.now,
        updated_at=tx.now,
    )
    schedule.next_run_at = await _check(tx, caller, schedule)
    if not await tx.schedules.add(schedule):
        raise names.NameTaken("schedule", schedule.name)
    return schedule


async def _check(tx: Tx, caller: Caller, schedule: Schedule) -> datetime | None:
    """Refuse a schedule that could never do anything; what it names becomes its id. Returns when it is due next.

    All mistakes are told at once. Errors: `invalid_field`.
    """
    wrong: list[FieldError] = []
    line = there = due = None
    with _noting(wrong):
        names.check_name(schedule.name, "sched")
    with _noting(wrong):
        line = cron.parse_cron(schedule.cron_expression)
        cron.refuse_long_steps(schedule.cron_expression)
    with _noting(wrong):
        there = cron.find_timezone(schedule.timezone)
    if line is not None and there is not None:
        due = line.find_next(tx.now, there)
        if due is None:
            wrong.append(FieldError(field="cron_expression", message="is not due within fifty years."))
    size = len(msgspec.json.encode(schedule.inputs))
    if size > MAX_INPUT_BYTES:
        wrong.append(FieldError(field="inputs", message=f"are {size} bytes as JSON; {MAX_INPUT_BYTES} are allowed."))
    with _noting(wrong):
        await _check_start(tx, caller, schedule)
    if wrong:
        raise InvalidFields(wrong)
    return due if schedule.enabled else None


@contextmanager
def _noting(wrong: list[FieldError]) -> Iterator[None]:
    try:
        yield
    except DomainError as error:
        if error.code != "invalid_field":
            raise
        wrong += error.errors


async def _check_start(tx: Tx, caller: Caller, schedule: Schedule) -> None:
    """Start it for a try. What is wrong with the request is refused; what may be ready in time is not."""
    named = [field for field in TARGET_FIELDS if getattr(schedule, field) is not None]
    if len(named) != 1:
        raise InvalidField(named[1] if named else "crew_id", "send one of agent_id, crew_id and workflow_id.")
    await _identify(tx, schedule, named[0])
    try:
        async with tx.savepoint():
            await launch.start_target(tx, caller, schedule.start_request)
            raise _Tried
    except _Tried:
        pass
    except DomainError as error:
        if error.code == "invalid_field":
            # The inputs of a schedule are all that it sends.
            raise InvalidFields([_of_inputs(one) for one in error.errors]) from error
        if error.code in DATABASE_OUTAGE_CODES:
            raise


def _of_inputs(one: FieldError) -> FieldError:
    return msgspec.structs.replace(one, field="inputs") if one.field in ("task", "payload") else one


async def _identify(tx: Tx, schedule: Schedule, field: str) -> None:
    reference = getattr(schedule, field)
    try:
        if field == "agent_id":
            schedule.agent_id = (await agents.get_agent(tx, reference, lock="share")).id
        elif field == "crew_id":
            schedule.crew_id = (await crews.get_crew(tx, reference, lock="share")).id
        else:
            schedule.workflow_id = (await workflows.get_workflow(tx, reference, lock="share")).id
    except DomainError as error:
        if error.code != "not_found":
            raise
        raise InvalidField(field, f"there is no {field.removesuffix('_id')} {reference!r}.") from None


async def get_schedule(tx: Tx, reference: str, lock: bool = False) -> Schedule:
    """A schedule by id or name. Errors: `not_found`."""
    schedule = await tx.schedules.find(reference, lock)
    if schedule is None:
        raise NotFound("schedule", reference)
    return schedule


async def get_schedule_detail(tx: Tx, reference: str) -> ScheduleDetail:
    """A schedule with its next due times. Errors: `not_found`."""
    return add_upcoming_times(tx, await get_schedule(tx, reference))


def add_upcoming_times(tx: Tx, schedule: Schedule) -> ScheduleDetail:
    """Return a schedule with its next due times; of a disabled one, those that it would have."""
    line, there = cron.parse_cron(schedule.cron_expression), cron.find_timezone(schedule.timezone)
    upcoming, due = list[datetime](), schedule.next_run_at or line.find_next(tx.now, there)
    while due is not None and len(upcoming) < UPCOMING_COUNT:
        upcoming.append(due)
        due = line.find_next(due, there)
    fields = {field: getattr(schedule, field) for field in Schedule.__struct_fields__}
    return ScheduleDetail(**fields, upcoming=upcoming)


async def list_schedules(tx: Tx, page: Page, enabled: bool | None) -> Listing[Schedule]:
    """The tenant's schedules, newest first."""
    return await tx.schedules.list_page(page, enabled)


async def list_schedule_runs(
    tx: Tx, reference: str, page: Page, outcome: ScheduleOutcome | None
) -> Listing[ScheduleRun]:
    """What became of due times, the latest first. Errors: `not_found`."""
    return await tx.schedules.list_runs((await get_schedule(tx, reference)).id, page, outcome)


async def update_schedule(tx: Tx, caller: Caller, reference: str, data: PatchSchedule) -> Schedule:
    """Change what was sent, and check the whole anew; from now on it runs on the caller's behalf.

    Errors: `missing_scope`, `not_found`, `conflict`, `invalid_field`.
    """
    require_scope(caller, _NEEDED)
    schedule = await get_schedule(tx, reference, lock=True)
    sent = {field: value for field in PatchSchedule.__struct_fields__ if (value := getattr(data, field)) is not UNSET}
    before = msgspec.structs.replace(schedule)
    if set(TARGET_FIELDS) & sent.keys():
        sent = dict.fromkeys(TARGET_FIELDS) | sent
    for field, value in sent.items():
        setattr(schedule, field, value)
    due = await _check(tx, caller, schedule)
    if any(getattr(schedule, field) != getattr(before, field) for field in ("enabled", "cron_expression", "timezone")):
        await _reset(tx, before, schedule, due)
    return await _changed(tx, caller, schedule)


async def toggle_schedule(tx: Tx, caller: Caller, reference: str) -> Schedule:
    """Enable a disabled schedule, disable an enabled one.

    Errors: `not_found`; `missing_scope` and `invalid_field` for one that is to be enabled.
    """
    before = await get_schedule(tx, reference, lock=True)
    schedule = msgspec.structs.replace(before, enabled=not before.enabled)
    if not schedule.enabled:
        await _reset(tx, before, schedule, None)
        schedule.updated_at = tx.now
        await tx.schedules.save(schedule)
        return schedule
    require_scope(caller, _NEEDED)
    await _reset(tx, before, schedule, await _check(tx, caller, schedule))
    return await _changed(tx, caller, schedule)


async def _reset(tx: Tx, before: Schedule, schedule: Schedule, due: datetime | None) -> None:
    """It is due then and not before; of a schedule that is disabled nothing waits any more."""
    schedule.missed_count += await trigger.record_missed(tx, before)
    schedule.next_run_at = due
    waits = None if schedule.enabled else await tx.schedules.get_queued_time(schedule.id)
    if waits is not None:
        schedule.skipped_count += 1
        reason = "The schedule was disabled."
        await tx.schedules.settle_run(
            ScheduleRun(schedule_id=schedule.id, due_at=waits, outcome="skipped", reason=reason, settled_at=tx.now)
        )


async def _changed(tx: Tx, caller: Caller, schedule: Schedule) -> Schedule:
    schedule.user_id, schedule.updated_at = caller.user_id, tx.now
    if not await tx.schedules.save(schedule):
        raise names.NameTaken("schedule", schedule.name)
    return schedule


async def delete_schedule(tx: Tx, reference: str) -> None:
    """Remove a schedule and its history; what it has started stays and goes on. Errors: `not_found`."""
    await tx.schedules.delete((await get_schedule(tx, reference, lock=True)).id)


async def run_schedule(tx: Tx, caller: Caller, reference: str) -> Execution:
    """Start what a schedule starts, now, on the caller's behalf and whatever runs; no due time is met by that.

    Errors: `missing_scope`, `not_found`, and those of starting it.
    """
    require_scope(caller, _NEEDED)
    schedule = await get_schedule(tx, reference, lock=True)
    execution = await launch.start_target(tx, caller, schedule.start_request, schedule.id)
    schedule.record_start(execution.id, tx.now)
    await tx.schedules.save(schedule)
    return execution
