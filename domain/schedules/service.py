"""Create, change, list and delete schedules, and run one now."""

from datetime import datetime
from typing import Final

import msgspec

from domain import agents, crews, files, launch, workflows
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
    collect_invalid_fields,
    require_found,
)
from domain.shared.pages import Listing, Page
from domain.shared.patches import collect_sent_fields, set_fields

# The owner of a schedule must be allowed to start its target.
_REQUIRED_SCOPE: Final = "run:agents"


class _TrialStarted(Exception):
    """Roll back a trial start."""


async def create_schedule(tx: Tx, caller: Caller, data: NewSchedule) -> Schedule:
    """Add a schedule. Errors: `missing_scope`, `conflict` for a taken name, `invalid_field`."""
    require_scope(caller, _REQUIRED_SCOPE)
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
    schedule.next_run_at = await _validate_schedule(tx, caller, schedule)
    if not await tx.schedules.add(schedule):
        raise names.NameTaken("schedule", schedule.name)
    return schedule


async def _validate_schedule(tx: Tx, caller: Caller, schedule: Schedule) -> datetime | None:
    """Validate a schedule, and replace its target's name by an id. Return its next due time.

    Reports all errors at once. Errors: `invalid_field`; `missing_scope` for `files` that the caller may not read.
    """
    files.require_file_access(caller, schedule.files)
    errors: list[FieldError] = []
    line = zone = due = None
    with collect_invalid_fields(errors):
        names.check_name(schedule.name, "sched")
    with collect_invalid_fields(errors):
        line = cron.parse_cron(schedule.cron_expression)
        cron.refuse_long_steps(schedule.cron_expression)
    with collect_invalid_fields(errors):
        zone = cron.find_timezone(schedule.timezone)
    if line is not None and zone is not None:
        due = line.find_next(tx.now, zone)
        if due is None:
            errors.append(FieldError(field="cron_expression", message="is not due within fifty years."))
    for field in ("inputs", "files"):
        size = len(msgspec.json.encode(getattr(schedule, field)))
        if size > MAX_INPUT_BYTES:
            message = f"have {size} bytes as JSON; at most {MAX_INPUT_BYTES} are allowed."
            errors.append(FieldError(field=field, message=message))
    with collect_invalid_fields(errors):
        await _try_start(tx, caller, schedule)
    if errors:
        raise InvalidFields(errors)
    return due if schedule.enabled else None


async def _try_start(tx: Tx, caller: Caller, schedule: Schedule) -> None:
    """Start the target as a trial. Refuse an invalid request; a target that is not ready yet may be so in time."""
    targets = [field for field in TARGET_FIELDS if getattr(schedule, field) is not None]
    if len(targets) != 1:
        raise InvalidField(targets[1] if targets else "crew_id", "send one of agent_id, crew_id and workflow_id.")
    await _resolve_target(tx, schedule, targets[0])
    try:
        async with tx.savepoint():
            await launch.start_target(tx, caller, schedule.start_request)
            raise _TrialStarted
    except _TrialStarted:
        pass
    except DomainError as error:
        if error.code == "invalid_field":
            # A schedule sends inputs only.
            raise InvalidFields([_rename_field(field_error) for field_error in error.errors]) from error
        if error.code in DATABASE_OUTAGE_CODES:
            raise


def _rename_field(error: FieldError) -> FieldError:
    return msgspec.structs.replace(error, field="inputs") if error.field in ("task", "payload") else error


async def _resolve_target(tx: Tx, schedule: Schedule, field: str) -> None:
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
    """Return a schedule by id or name. Errors: `not_found`."""
    return require_found("schedule", reference, await tx.schedules.find(reference, lock))


async def get_schedule_detail(tx: Tx, reference: str) -> ScheduleDetail:
    """Return a schedule with its next due times. Errors: `not_found`."""
    return add_upcoming_times(tx, await get_schedule(tx, reference))


def add_upcoming_times(tx: Tx, schedule: Schedule) -> ScheduleDetail:
    """Return a schedule with its next due times; for a disabled one, those it would have."""
    line, zone = cron.parse_cron(schedule.cron_expression), cron.find_timezone(schedule.timezone)
    upcoming, due = list[datetime](), schedule.next_run_at or line.find_next(tx.now, zone)
    while due is not None and len(upcoming) < UPCOMING_COUNT:
        upcoming.append(due)
        due = line.find_next(due, zone)
    fields = {field: getattr(schedule, field) for field in Schedule.__struct_fields__}
    return ScheduleDetail(**fields, upcoming=upcoming)


async def list_schedules(tx: Tx, page: Page, enabled: bool | None) -> Listing[Schedule]:
    """Return the tenant's schedules, newest first."""
    return await tx.schedules.list_page(page, enabled)


async def list_schedule_runs(
    tx: Tx, reference: str, page: Page, outcome: ScheduleOutcome | None
) -> Listing[ScheduleRun]:
    """Return the outcomes of due times, latest first. Errors: `not_found`."""
    return await tx.schedules.list_runs((await get_schedule(tx, reference)).id, page, outcome)


async def update_schedule(tx: Tx, caller: Caller, reference: str, data: PatchSchedule) -> Schedule:
    """Change the fields that were sent, and validate the result; it then runs on the caller's behalf.

    Errors: `missing_scope`, `not_found`, `conflict`, `invalid_field`.
    """
    require_scope(caller, _REQUIRED_SCOPE)
    schedule = await get_schedule(tx, reference, lock=True)
    sent = collect_sent_fields(data)
    before = msgspec.structs.replace(schedule)
    if set(TARGET_FIELDS) & sent.keys():
        sent = dict.fromkeys(TARGET_FIELDS) | sent
    set_fields(schedule, sent)
    due = await _validate_schedule(tx, caller, schedule)
    if any(getattr(schedule, field) != getattr(before, field) for field in ("enabled", "cron_expression", "timezone")):
        await _reschedule(tx, before, schedule, due)
    return await _save_for_caller(tx, caller, schedule)


async def toggle_schedule(tx: Tx, caller: Caller, reference: str) -> Schedule:
    """Enable a disabled schedule, disable an enabled one.

    Errors: `not_found`; `missing_scope` and `invalid_field` for one that would be enabled.
    """
    before = await get_schedule(tx, reference, lock=True)
    schedule = msgspec.structs.replace(before, enabled=not before.enabled)
    if not schedule.enabled:
        await _reschedule(tx, before, schedule, None)
        schedule.updated_at = tx.now
        await tx.schedules.save(schedule)
        return schedule
    require_scope(caller, _REQUIRED_SCOPE)
    await _reschedule(tx, before, schedule, await _validate_schedule(tx, caller, schedule))
    return await _save_for_caller(tx, caller, schedule)


async def _reschedule(tx: Tx, before: Schedule, schedule: Schedule, due: datetime | None) -> None:
    """Set the next due time. Record missed due times; skip the waiting one of a disabled schedule."""
    schedule.missed_count += await trigger.record_missed(tx, before)
    schedule.next_run_at = due
    queued_at = None if schedule.enabled else await tx.schedules.get_queued_time(schedule.id)
    if queued_at is not None:
        schedule.skipped_count += 1
        reason = "The schedule was disabled."
        await tx.schedules.settle_run(
            ScheduleRun(schedule_id=schedule.id, due_at=queued_at, outcome="skipped", reason=reason, settled_at=tx.now)
        )


async def _save_for_caller(tx: Tx, caller: Caller, schedule: Schedule) -> Schedule:
    schedule.user_id, schedule.updated_at = caller.user_id, tx.now
    if not await tx.schedules.save(schedule):
        raise names.NameTaken("schedule", schedule.name)
    return schedule


async def delete_schedule(tx: Tx, reference: str) -> None:
    """Delete a schedule and its history; its executions continue. Errors: `not_found`."""
    await tx.schedules.delete((await get_schedule(tx, reference, lock=True)).id)


async def run_schedule(tx: Tx, caller: Caller, reference: str) -> Execution:
    """Start the target of a schedule now, on the caller's behalf, even if another execution runs.

    Its due times stay as they are.

    Errors: `missing_scope`, `not_found`, and those of starting it.
    """
    require_scope(caller, _REQUIRED_SCOPE)
    schedule = await get_schedule(tx, reference, lock=True)
    execution = await launch.start_target(tx, caller, schedule.start_request, schedule.id)
    schedule.record_start(execution.id, tx.now)
    await tx.schedules.save(schedule)
    return execution
