"""What is done for a schedule that is due: one due time at a time, each in a transaction with what it starts.

Whoever does it holds the row of the schedule, so that each due time is met once, however many try.
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

# A due time of so long ago is no missed one.
ON_TIME_WINDOW: Final = timedelta(minutes=1)
# So many of the missed due times of one outage get a row each; the others are counted.
MAX_MISSED_ROWS: Final = 100
_SECOND: Final = timedelta(seconds=1)
_RUNS: Final = frozenset({"run:agents"})


class DueTimes(msgspec.Struct, kw_only=True, frozen=True):
    """What is to be done of the due times that have come.

    `due` fires, if any does; then it is the turn of `next`. The `missed` do not fire, `missed_count` in all.
    """

    due: datetime | None
    missed: list[datetime]
    missed_count: int
    next: datetime | None


def sort_due_times(line: cron.CronLine, zone: ZoneInfo, first: datetime, now: datetime, catch_up: int) -> DueTimes:
    """Whose turn it is when nobody has looked since `first` was due.

    The latest `catch_up` fire; the very latest does in any case if it is on time. How much there is to do does not
    grow with how long nobody has looked.
    """
    before = first - _SECOND
    found = line.list_latest(before, now, zone, max(catch_up, 1) + MAX_MISSED_ROWS)
    on_time = bool(found) and now - found[-1] <= ON_TIME_WINDOW
    keep = min(len(found), max(catch_up, int(on_time)))
    missed, kept = found[: len(found) - keep], found[len(found) - keep :]
    return DueTimes(
        due=kept[0] if kept else None,
        missed=missed[-MAX_MISSED_ROWS:],
        missed_count=line.count_times(before, now, zone) - keep if missed else 0,
        next=kept[1] if len(kept) > 1 else line.find_next(now, zone),
    )


async def record_missed(tx: Tx, schedule: Schedule) -> int:
    """Write down as missed what is due and was not met, of a schedule that is about to be another. Returns how many."""
    first = schedule.next_run_at
    if first is None or first > tx.now:
        return 0
    line, there, before = (
        cron.parse_cron(schedule.cron_expression),
        cron.find_timezone(schedule.timezone),
        first - _SECOND,
    )
    missed = line.list_latest(before, tx.now, there, MAX_MISSED_ROWS)
    return await _miss(tx, schedule, missed, line.count_times(before, tx.now, there), "The schedule was changed.")


async def _miss(tx: Tx, schedule: Schedule, latest: list[datetime], count: int, reason: str | None = None) -> int:
    """Write down the latest of so many due times as missed. Returns how many were; others are known to be met."""
    runs = [_run(tx, schedule, due, "missed") for due in latest]
    for run in runs:
        run.reason = reason
    return count - len(runs) + await tx.schedules.record_runs(runs) if runs else 0


async def fire_schedule(tx: Tx, schedule_id: str) -> bool:
    """Do one thing of what a schedule is due for: start what waits, or meet the next due time.

    Returns whether there was anything, and nobody else is at it.
    """
    schedule = await tx.schedules.try_lock(schedule_id)
    if schedule is None or not schedule.enabled:
        return False
    waits = await tx.schedules.get_queued_time(schedule.id)
    runs = (waits is not None or schedule.overlap != "allow") and await tx.schedules.is_running(schedule.id)
    if waits is not None and not runs:
        await _start(tx, schedule, waits)
    elif schedule.next_run_at is not None and schedule.next_run_at <= tx.now:
        await _meet(tx, schedule, schedule.next_run_at, runs, waits is not None)
    else:
        return False
    await tx.schedules.save(schedule)
    return True


async def _meet(tx: Tx, schedule: Schedule, first: datetime, runs: bool, waits: bool) -> None:
    try:
        line, there = cron.parse_cron(schedule.cron_expression), cron.find_timezone(schedule.timezone)
    except DomainError as error:
        # It was good once: the zone has gone from the database of this machine.
        failed = _run(tx, schedule, first, "failed")
        _give_up(schedule, failed, error)
        await tx.schedules.record_runs([failed])
        return
    found = sort_due_times(line, there, first, tx.now, schedule.catch_up)
    schedule.next_run_at = found.next
    schedule.missed_count += await _miss(tx, schedule, found.missed, found.missed_count)
    if found.due is None:
        return
    run = _run(tx, schedule, found.due, "fired")
    if runs and schedule.overlap != "allow":
        queue = schedule.overlap == "queue" and not waits
        run.outcome = "queued" if queue else "skipped"
        run.reason = "Another due time waits." if waits else "An execution of before has not ended."
    # One that is known was met before the clock of whoever changed the schedule had come to it.
    if not await tx.schedules.record_runs([run]):
        return
    if run.outcome == "fired":
        await _start(tx, schedule, found.due)
    elif run.outcome == "skipped":
        schedule.skipped_count += 1


async def _start(tx: Tx, schedule: Schedule, due: datetime) -> None:
    """Start it for a due time, and write down what came of that."""
    run = _run(tx, schedule, due, "fired")
    try:
        owner = await _owner(tx, schedule)
    except DomainError as error:
        _give_up(schedule, run, error)
    else:
        try:
            async with tx.savepoint():
                run.execution_id = (await launch.start_target(tx, owner, schedule.start_request, schedule.id)).id
            schedule.record_start(run.execution_id, tx.now)
        except DomainError as error:
            # Not the fault of what is started: the due time waits until it is over.
            if error.code in DATABASE_OUTAGE_CODES:
                raise
            _fail(schedule, run, error)
    await tx.schedules.settle_run(run)


async def _owner(tx: Tx, schedule: Schedule) -> Caller:
    """On whose behalf it runs, in the role of now, with no more than it needs. Errors: `forbidden`, `missing_scope`."""
    user = await tx.accounts.get_user(schedule.user_id)
    if user is None or not user.is_active:
        raise Forbidden("Whoever it runs on behalf of is no active user of this tenant any more.")
    scopes = limit_scopes(user.role, _RUNS)
    owner = Caller(tenant_id=schedule.tenant_id, user_id=user.id, role=user.role, scopes=scopes)
    require_scope(owner, "run:agents")
    return owner


def _run(tx: Tx, schedule: Schedule, due: datetime, outcome: str) -> ScheduleRun:
    made = {"schedule_id": schedule.id, "due_at": due, "outcome": outcome, "settled_at": tx.now}
    return msgspec.convert(made, ScheduleRun)


def _give_up(schedule: Schedule, run: ScheduleRun, error: DomainError) -> None:
    """It would do no better the next time."""
    schedule.enabled, schedule.next_run_at = False, None
    _fail(schedule, run, error)


def _fail(schedule: Schedule, run: ScheduleRun, error: DomainError) -> None:
    run.outcome, run.reason = "failed", error.detail
    schedule.last_error = error.detail
    schedule.failed_count += 1
