"""Start what a schedule is due for: one due time per transaction, together with the execution that it starts.

The transaction locks the schedule's row, so each due time fires once, however many workers try.
"""

from datetime import datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

import msgspec

from domain import launch
from domain.ports import Tx
from domain.schedules import cron
from domain.schedules.schema import Schedule, ScheduleRun
from domain.shared.access import Caller, limit_scopes, require_scope
from domain.shared.errors import DATABASE_OUTAGE_CODES, DomainError, Forbidden

# A due time this recent is not missed.
ON_TIME_WINDOW: Final = timedelta(minutes=1)
# Missed due times of one outage that get a row each; the others are only counted.
MAX_MISSED_ROWS: Final = 100
_ONE_SECOND: Final = timedelta(seconds=1)
_REQUIRED_SCOPES: Final = frozenset({"run:agents", "read:files"})


class DueTimes(msgspec.Struct, kw_only=True, frozen=True):
    """Sort the due times that have passed: `due` fires now, `next` comes after it, the `missed` do not fire.

    `missed` holds the latest of `missed_count` due times.
    """

    due: datetime | None
    missed: list[datetime]
    missed_count: int
    next: datetime | None


def sort_due_times(line: cron.CronLine, zone: ZoneInfo, first: datetime, now: datetime, catch_up: int) -> DueTimes:
    """Sort the due times from `first` until now.

    The latest `catch_up` fire; the very latest always fires if it is on time. The work does not grow with the time
    since `first`.
    """
    before = first - _ONE_SECOND
    due_times = line.list_latest(before, now, zone, max(catch_up, 1) + MAX_MISSED_ROWS)
    on_time = bool(due_times) and now - due_times[-1] <= ON_TIME_WINDOW
    fired_count = min(len(due_times), max(catch_up, int(on_time)))
    missed_end = len(due_times) - fired_count
    missed, fired = due_times[:missed_end], due_times[missed_end:]
    return DueTimes(
        due=fired[0] if fired else None,
        missed=missed[-MAX_MISSED_ROWS:],
        missed_count=line.count_times(before, now, zone) - fired_count if missed else 0,
        next=fired[1] if len(fired) > 1 else line.find_next(now, zone),
    )


async def record_missed(tx: Tx, schedule: Schedule) -> int:
    """Record passed due times as missed before a schedule changes. Return their number."""
    first = schedule.next_run_at
    if first is None or first > tx.now:
        return 0
    line, zone, before = (
        cron.parse_cron(schedule.cron_expression),
        cron.find_timezone(schedule.timezone),
        first - _ONE_SECOND,
    )
    missed = line.list_latest(before, tx.now, zone, MAX_MISSED_ROWS)
    return await _record_missed(
        tx, schedule, missed, line.count_times(before, tx.now, zone), "The schedule was changed."
    )


async def _record_missed(
    tx: Tx, schedule: Schedule, latest: list[datetime], count: int, reason: str | None = None
) -> int:
    """Record the latest of `count` due times as missed. Return how many are new; others were recorded before."""
    runs = [_build_run(tx, schedule, due, "missed") for due in latest]
    for run in runs:
        run.reason = reason
    return count - len(runs) + await tx.schedules.record_runs(runs) if runs else 0


async def fire_schedule(tx: Tx, schedule_id: str) -> bool:
    """Start the waiting due time of a schedule, or handle its next one.

    Return False if nothing is due or another transaction holds the schedule.
    """
    schedule = await tx.schedules.try_lock(schedule_id)
    if schedule is None or not schedule.enabled:
        return False
    queued_at = await tx.schedules.get_queued_time(schedule.id)
    is_running = (queued_at is not None or schedule.overlap != "allow") and await tx.schedules.is_running(schedule.id)
    if queued_at is not None and not is_running:
        await _start_due(tx, schedule, queued_at)
    elif schedule.next_run_at is not None and schedule.next_run_at <= tx.now:
        await _handle_due_times(tx, schedule, schedule.next_run_at, is_running, queued_at is not None)
    else:
        return False
    await tx.schedules.save(schedule)
    return True


async def _handle_due_times(tx: Tx, schedule: Schedule, first: datetime, is_running: bool, has_queued: bool) -> None:
    try:
        line, zone = cron.parse_cron(schedule.cron_expression), cron.find_timezone(schedule.timezone)
    except DomainError as error:
        # The line was valid when it was saved; the zone is missing from the database of this machine.
        failed = _build_run(tx, schedule, first, "failed")
        _disable_schedule(schedule, failed, error)
        await tx.schedules.record_runs([failed])
        return
    due_times = sort_due_times(line, zone, first, tx.now, schedule.catch_up)
    schedule.next_run_at = due_times.next
    schedule.missed_count += await _record_missed(tx, schedule, due_times.missed, due_times.missed_count)
    if due_times.due is None:
        return
    run = _build_run(tx, schedule, due_times.due, "fired")
    if is_running and schedule.overlap != "allow":
        can_queue = schedule.overlap == "queue" and not has_queued
        run.outcome = "queued" if can_queue else "skipped"
        run.reason = "Another due time is waiting." if has_queued else "An earlier execution has not ended."
    # A recorded one fired before, on a worker whose clock is ahead of the one that changed the schedule.
    if not await tx.schedules.record_runs([run]):
        return
    if run.outcome == "fired":
        await _start_due(tx, schedule, due_times.due)
    elif run.outcome == "skipped":
        schedule.skipped_count += 1


async def _start_due(tx: Tx, schedule: Schedule, due: datetime) -> None:
    """Start the target for a due time, and record the outcome."""
    run = _build_run(tx, schedule, due, "fired")
    try:
        owner = await _build_owner(tx, schedule)
    except DomainError as error:
        _disable_schedule(schedule, run, error)
    else:
        try:
            async with tx.savepoint():
                run.execution_id = (await launch.start_target(tx, owner, schedule.start_request, schedule.id)).id
            schedule.record_start(run.execution_id, tx.now)
        except DomainError as error:
            # An outage is no failure of the target: the due time waits until it is over.
            if error.code in DATABASE_OUTAGE_CODES:
                raise
            _record_failure(schedule, run, error)
    await tx.schedules.settle_run(run)


async def _build_owner(tx: Tx, schedule: Schedule) -> Caller:
    """Return the owner with its present role and the required scopes only. Errors: `forbidden`, `missing_scope`."""
    user = await tx.accounts.get_user(schedule.user_id)
    if user is None or not user.is_active:
        raise Forbidden("The owner of the schedule is not an active user of this tenant any more.")
    scopes = limit_scopes(user.role, _REQUIRED_SCOPES)
    owner = Caller(tenant_id=schedule.tenant_id, user_id=user.id, role=user.role, scopes=scopes)
    require_scope(owner, "run:agents")
    return owner


def _build_run(tx: Tx, schedule: Schedule, due: datetime, outcome: str) -> ScheduleRun:
    fields = {"schedule_id": schedule.id, "due_at": due, "outcome": outcome, "settled_at": tx.now}
    return msgspec.convert(fields, ScheduleRun)


def _disable_schedule(schedule: Schedule, run: ScheduleRun, error: DomainError) -> None:
    """Record a failure, and disable the schedule: the next start would fail as well."""
    schedule.enabled, schedule.next_run_at = False, None
    _record_failure(schedule, run, error)


def _record_failure(schedule: Schedule, run: ScheduleRun, error: DomainError) -> None:
    run.outcome, run.reason = "failed", error.detail
    schedule.last_error = error.detail
    schedule.failed_count += 1
