"""Start due schedules with a controlled clock and several workers."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain import executions, files, schedules
from domain.files import FileUpload
from domain.retention import RETENTION_PERIODS
from domain.schedules import (
    MAX_MISSED_ROWS,
    ON_TIME_WINDOW,
    NewSchedule,
    PatchSchedule,
    Schedule,
    ScheduleRun,
    cron,
    sort_due_times,
)
from domain.shared import ids
from domain.shared.access import Caller
from domain.shared.errors import DomainError
from domain.shared.pages import Page
from infra.postgres.db import create_engine
from infra.postgres.store import PostgresStore
from tests.support.isolated_database import IsolatedDatabase, SilentBell, open_isolated_database
from tests.support.plan_builders import SimulatedCrash
from workers.upkeep.schedules import SCHEDULE_POLL_SECONDS, ScheduleStarter

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


class CrashingStore(PostgresStore):
    """A store that crashes at times, after all the work of a transaction and before its commit."""

    is_crashing: Any = staticmethod(lambda: False)

    @asynccontextmanager
    async def _begin(self, tenant_id: str | None) -> AsyncIterator[Any]:
        async with super()._begin(tenant_id) as tx:
            yield tx
            if tenant_id and self.is_crashing():
                raise SimulatedCrash


class ScheduleEnvironment:
    """Hold a database with a clock, and a store for each worker."""

    def __init__(self, database: IsolatedDatabase, stores: list[CrashingStore], clock: list[datetime]) -> None:
        self.database, self.stores, self.clock = database, stores, clock
        self.store = stores[0]
        self.workers: list[ScheduleStarter] = []

    async def run_workers(self) -> None:
        """Run all workers at once until nothing is due."""

        async def work(worker: ScheduleStarter) -> None:
            while (await worker.start_due()).pause_seconds == 0:
                pass

        # A worker that finds everything claimed by another pauses; so run them again after all have ended.
        for _ in range(2):
            await asyncio.gather(*map(work, self.workers))

    async def set_time(self, now: datetime) -> None:
        self.clock[0] = now
        await self.run_workers()

    async def create_schedule(self, caller: Caller, cron_expression: str, **more: Any) -> Schedule:
        """Create a schedule of a new agent."""
        more = {"agent_id": await self.database.add_agent(caller), "name": ids.generate_id("t"), **more}
        async with self.store.transaction(caller) as tx:
            return await schedules.create_schedule(tx, caller, NewSchedule(cron_expression=cron_expression, **more))

    async def update_schedule(self, caller: Caller, schedule: Schedule, **changes: Any) -> Schedule:
        async with self.store.transaction(caller) as tx:
            return await schedules.update_schedule(tx, caller, schedule.id, PatchSchedule(**changes))

    async def get_schedule(self, schedule: Schedule) -> Schedule:
        async with self.store.tenant_transaction(schedule.tenant_id) as tx:
            return await schedules.get_schedule(tx, schedule.id)

    async def list_runs(self, schedule: Schedule) -> list[ScheduleRun]:
        """Return what happened at its due times, the first one first."""
        async with self.store.tenant_transaction(schedule.tenant_id) as tx:
            page = await schedules.list_schedule_runs(tx, schedule.id, Page(limit=1000), None)
        assert page.total == len(page.items)
        return page.items[::-1]

    async def list_executions(self, schedule: Schedule) -> list[str]:
        """Return the ids of its executions, in the order of their start."""
        query = "SELECT id FROM executions WHERE schedule_id = $1 ORDER BY id"
        rows = await self.database.owner.fetch(query, ids.decode_id("sched", schedule.id))
        return [ids.encode_id("exec", row["id"]) for row in rows]

    async def end_executions(self, status: str = "completed") -> None:
        await self.database.owner.execute("UPDATE executions SET status = $1, completed_at = now()", status)


@pytest.fixture(scope="module")
async def environment(system) -> AsyncIterator[ScheduleEnvironment]:
    async with open_isolated_database(system) as database, AsyncExitStack() as stack:
        clock, stores = [NOON], []
        for number in range(3):
            engine = create_engine(database.url, pool_size=2, application=f"tests {number}")
            stack.push_async_callback(engine.dispose)
            stores.append(CrashingStore(engine, SilentBell(), lambda: clock[0]))
        yield ScheduleEnvironment(database, stores, clock)


@pytest.fixture(autouse=True)
async def _reset_environment(environment: ScheduleEnvironment) -> AsyncIterator[None]:
    environment.clock[0] = NOON
    environment.workers = [ScheduleStarter(store) for store in environment.stores]
    yield
    await environment.database.owner.execute("DELETE FROM schedules")


CLOCK_CHANGES = [
    *(("Europe/Berlin", "2026-03-29T01:00Z", "30 2"), ("Europe/Berlin", "2026-10-25T01:00Z", "30 2")),
    *(("America/New_York", "2026-03-08T07:00Z", "30 2"), ("America/New_York", "2026-11-01T06:00Z", "30 1")),
    *(("Australia/Lord_Howe", "2026-10-03T15:30Z", "15 2"), ("Australia/Lord_Howe", "2026-04-04T15:00Z", "45 1")),
]


@pytest.mark.parametrize(("zone", "change", "of_day"), CLOCK_CHANGES)
async def test_each_due_time_starts_once_across_clock_changes(
    environment: ScheduleEnvironment, monkeypatch, zone: str, change: str, of_day: str
) -> None:
    """Run three workers, and crash a quarter of their transactions before the commit."""
    dice = random.Random(change)
    at, caller, timezone = (
        datetime.fromisoformat(change),
        await environment.database.add_tenant(),
        cron.find_timezone(zone),
    )
    begin, end = at - 35 * MINUTE, at + 35 * MINUTE
    environment.clock[0] = begin
    expressions = [f"{of_day} * * *", "0,30 * * * *", "*/7 1-3 * * *", "* * * * *"]
    options = {"timezone": zone, "overlap": "allow", "catch_up": 100}
    created_schedules = [await environment.create_schedule(caller, text, **options) for text in expressions]
    monkeypatch.setattr(CrashingStore, "is_crashing", staticmethod(lambda: dice.random() < 0.25))
    while environment.clock[0] < end:
        await environment.set_time(
            min(end, environment.clock[0] + timedelta(minutes=dice.randint(1, 20), seconds=dice.randint(0, 59)))
        )
    monkeypatch.setattr(CrashingStore, "is_crashing", staticmethod(lambda: False))
    await environment.run_workers()

    for text, schedule in zip(expressions, created_schedules, strict=True):
        due = list(cron.parse_cron(text).iterate_times(begin, end, timezone))
        runs, schedule_after = await environment.list_runs(schedule), await environment.get_schedule(schedule)
        assert [(run.due_at, run.outcome) for run in runs] == [(due_at, "fired") for due_at in due]
        assert sorted(run.execution_id or "" for run in runs) == await environment.list_executions(schedule)
        assert (schedule_after.run_count, schedule_after.missed_count, schedule_after.skipped_count) == (len(due), 0, 0)
        assert schedule_after.next_run_at == cron.parse_cron(text).find_next(end, timezone)
    assert len(await environment.list_executions(created_schedules[0])) == 1
    assert len(await environment.list_executions(created_schedules[3])) == 70


@pytest.mark.parametrize("catch_up", [0, 1, 5, 100])
async def test_catch_up_after_an_hour_starts_the_latest_only(environment: ScheduleEnvironment, catch_up: int) -> None:
    caller = await environment.database.add_tenant()
    schedule = await environment.create_schedule(caller, "* * * * *", overlap="allow", catch_up=catch_up)
    now = NOON + HOUR + timedelta(seconds=20)
    await environment.set_time(now)
    # The one of twenty seconds ago is on time.
    fired = min(60, max(catch_up, 1))
    runs, schedule_after = await environment.list_runs(schedule), await environment.get_schedule(schedule)
    assert [run.due_at for run in runs] == [NOON + n * MINUTE for n in range(1, 61)]
    assert [run.outcome for run in runs] == ["missed"] * (60 - fired) + ["fired"] * fired
    assert len(await environment.list_executions(schedule)) == fired
    assert (schedule_after.run_count, schedule_after.missed_count, schedule_after.next_run_at) == (
        fired,
        60 - fired,
        NOON + HOUR + MINUTE,
    )
    # From then on it starts as usual.
    await environment.set_time(now + MINUTE)
    assert len(await environment.list_executions(schedule)) == fired + 1


async def test_late_due_time_without_catch_up_is_missed(environment: ScheduleEnvironment) -> None:
    caller = await environment.database.add_tenant()
    hourly = await environment.create_schedule(caller, "0 * * * *", catch_up=0)
    late = await environment.create_schedule(caller, "30 * * * *", catch_up=0)
    await environment.set_time(NOON + HOUR + ON_TIME_WINDOW)
    assert [run.outcome for run in await environment.list_runs(hourly)] == ["fired"]
    assert [run.outcome for run in await environment.list_runs(late)] == ["missed"]
    assert (await environment.get_schedule(late)).next_run_at == NOON + HOUR + 30 * MINUTE


async def test_catch_up_after_a_year_records_a_limited_number(environment: ScheduleEnvironment) -> None:
    caller = await environment.database.add_tenant()
    schedule = await environment.create_schedule(caller, "* * * * *", overlap="allow", catch_up=3)
    later = NOON + 400 * DAY
    await environment.set_time(later)
    runs, schedule_after = await environment.list_runs(schedule), await environment.get_schedule(schedule)
    assert [run.outcome for run in runs] == ["missed"] * MAX_MISSED_ROWS + ["fired"] * 3
    assert [run.due_at for run in runs] == [later - n * MINUTE for n in reversed(range(MAX_MISSED_ROWS + 3))]
    assert (schedule_after.missed_count, schedule_after.run_count) == (400 * 1440 - 3, 3)


EXPRESSIONS = st.sampled_from(["* * * * *", "*/5 * * * *", "0 * * * *", "30 2 * * *", "0 0 1 * *", "15 3 * 3,10 0"])


@settings(max_examples=60, deadline=None)
@given(text=EXPRESSIONS, minutes=st.integers(0, 600), lateness=st.integers(0, 59), catch_up=st.integers(0, 100))
def test_due_times_are_sorted_into_missed_and_fired(text: str, minutes: int, lateness: int, catch_up: int) -> None:
    """Take each due time once; the latest ones fire, at most as many as `catch_up` allows."""
    line, timezone = cron.parse_cron(text), cron.find_timezone("Europe/Berlin")
    first = line.find_next(datetime(2026, 10, 24, 20, tzinfo=UTC), timezone)
    assert first is not None
    now = first + minutes * MINUTE + timedelta(seconds=lateness)
    due = list(line.iterate_times(first - MINUTE, now, timezone))
    due_times = sort_due_times(line, timezone, first, now, catch_up)
    keep = min(len(due), max(catch_up, int(now - due[-1] <= ON_TIME_WINDOW)))
    assert due_times.missed == due[: len(due) - keep][-MAX_MISSED_ROWS:]
    assert due_times.missed_count == len(due) - keep
    fired = []
    while due_times.due is not None:
        fired.append(due_times.due)
        if due_times.next is None or due_times.next > now:
            break
        due_times = sort_due_times(line, timezone, due_times.next, now, catch_up)
        assert not due_times.missed
    assert fired == due[len(due) - keep :]
    assert due_times.next == line.find_next(now, timezone)


async def test_skip_policy_skips_while_an_execution_runs(environment: ScheduleEnvironment) -> None:
    caller = await environment.database.add_tenant()
    schedule = await environment.create_schedule(caller, "* * * * *", overlap="skip")
    for minute in (1, 2, 3):
        await environment.set_time(NOON + minute * MINUTE)
    first = await environment.list_executions(schedule)
    assert [run.outcome for run in await environment.list_runs(schedule)] == ["fired", "skipped", "skipped"]
    assert [run.reason for run in await environment.list_runs(schedule)][1:] == [
        "An earlier execution has not ended."
    ] * 2
    # The execution counts until it has ended, whether it waits or runs.
    await environment.end_executions("waiting")
    await environment.set_time(NOON + 4 * MINUTE)
    assert await environment.list_executions(schedule) == first
    await environment.end_executions("failed")
    await environment.set_time(NOON + 5 * MINUTE)
    runs, schedule_after = await environment.list_runs(schedule), await environment.get_schedule(schedule)
    assert Counter(run.outcome for run in runs) == {"fired": 2, "skipped": 3}
    assert (
        schedule_after.skipped_count,
        schedule_after.run_count,
        len(await environment.list_executions(schedule)),
    ) == (3, 2, 2)
    assert (schedule_after.last_execution_id, schedule_after.last_status) == (runs[-1].execution_id, "pending")


async def test_queue_policy_starts_the_waiting_run_after_the_end(environment: ScheduleEnvironment) -> None:
    caller = await environment.database.add_tenant()
    schedule = await environment.create_schedule(caller, "* * * * *", overlap="queue")
    for minute in (1, 2, 3):
        await environment.set_time(NOON + minute * MINUTE)
    assert [run.outcome for run in await environment.list_runs(schedule)] == ["fired", "queued", "skipped"]
    assert (await environment.list_runs(schedule))[2].reason == "Another due time is waiting."
    assert len(await environment.list_executions(schedule)) == 1
    # The end is found by reading the row, without a ring.
    await environment.end_executions()
    await environment.set_time(NOON + 3 * MINUTE + timedelta(seconds=7))
    runs, execution_ids = await environment.list_runs(schedule), await environment.list_executions(schedule)
    assert [run.outcome for run in runs] == ["fired", "fired", "skipped"]
    assert [run.execution_id for run in runs[:2]] == execution_ids
    assert (runs[1].settled_at, runs[1].reason) == (NOON + 3 * MINUTE + timedelta(seconds=7), None)
    await environment.set_time(NOON + 4 * MINUTE)
    assert [run.outcome for run in await environment.list_runs(schedule)][3:] == ["queued"]
    # Disabling a schedule skips its waiting run.
    await environment.update_schedule(caller, schedule, enabled=False)
    await environment.end_executions()
    await environment.set_time(NOON + 9 * MINUTE)
    runs = await environment.list_runs(schedule)
    assert (runs[-1].outcome, runs[-1].reason) == ("skipped", "The schedule was disabled.")
    assert len(runs) == 4
    assert len(await environment.list_executions(schedule)) == 2


async def test_allow_policy_starts_runs_side_by_side(environment: ScheduleEnvironment) -> None:
    caller = await environment.database.add_tenant()
    schedule = await environment.create_schedule(caller, "* * * * *", overlap="allow")
    for minute in (1, 2, 3):
        await environment.set_time(NOON + minute * MINUTE)
    assert len(await environment.list_executions(schedule)) == 3


async def test_due_times_while_disabled_are_not_caught_up(environment: ScheduleEnvironment) -> None:
    caller = await environment.database.add_tenant()
    schedule = await environment.create_schedule(caller, "* * * * *", overlap="allow", catch_up=100)
    for off, on in ((1, 10), (20, 30)):
        environment.clock[0] = NOON + off * MINUTE - timedelta(seconds=1)
        async with environment.store.transaction(caller) as tx:
            assert (await schedules.toggle_schedule(tx, caller, schedule.id)).next_run_at is None
        await environment.set_time(NOON + on * MINUTE)
        async with environment.store.transaction(caller) as tx:
            toggled = await schedules.toggle_schedule(tx, caller, schedule.id)
        assert toggled.next_run_at == NOON + (on + 1) * MINUTE
        await environment.set_time(NOON + (on + 1) * MINUTE)
    # No worker had run between the due times and the second time it was disabled.
    runs = await environment.list_runs(schedule)
    assert [run.due_at for run in runs] == [NOON + n * MINUTE for n in (11, *range(12, 20), 31)]
    assert [run.outcome for run in runs] == ["fired", *["missed"] * 8, "fired"]
    assert (runs[1].reason, (await environment.get_schedule(schedule)).missed_count) == ("The schedule was changed.", 8)


async def test_changed_expression_or_timezone_moves_the_due_time(environment: ScheduleEnvironment) -> None:
    caller = await environment.database.add_tenant()
    schedule = await environment.create_schedule(caller, "0 * * * *", overlap="allow")
    changed = await environment.update_schedule(
        caller, schedule, cron_expression="30 14 * * *", timezone="Asia/Kolkata"
    )
    assert changed.next_run_at == NOON + 21 * HOUR
    await environment.set_time(NOON + HOUR)
    assert await environment.list_runs(schedule) == []
    # A change of other fields leaves the due time.
    environment.clock[0] = NOON + 22 * HOUR
    assert (await environment.update_schedule(caller, schedule, name="Renamed")).next_run_at == NOON + 21 * HOUR
    await environment.run_workers()
    assert [run.due_at for run in await environment.list_runs(schedule)] == [NOON + 21 * HOUR]


async def test_due_time_starts_once_with_clocks_that_differ(environment: ScheduleEnvironment) -> None:
    caller = await environment.database.add_tenant()
    schedule = await environment.create_schedule(caller, "* * * * *", overlap="allow", catch_up=9)
    late = await environment.create_schedule(caller, "* * * * *", overlap="allow", catch_up=0)
    await environment.set_time(NOON + MINUTE)
    # To a clock that is behind, this due time is still to come.
    environment.clock[0] = NOON + timedelta(seconds=59)
    changed = await environment.update_schedule(caller, schedule, cron_expression="*/1 * * * *")
    assert changed.next_run_at == NOON + MINUTE
    await environment.update_schedule(caller, late, cron_expression="*/1 * * * *")
    await environment.set_time(NOON + 2 * MINUTE)
    for changed_schedule in (schedule, late):
        assert len(await environment.list_executions(changed_schedule)) == 2
        assert [run.outcome for run in await environment.list_runs(changed_schedule)] == ["fired", "fired"]
        assert (await environment.get_schedule(changed_schedule)).missed_count == 0


async def test_schedule_runs_for_an_active_user_only(environment: ScheduleEnvironment) -> None:
    owner = environment.database.owner
    for change in ("is_active = false", "role = 'viewer'"):
        caller = await environment.database.add_tenant()
        schedule = await environment.create_schedule(caller, "* * * * *", overlap="allow")
        queued_schedule = await environment.create_schedule(caller, "* * * * *", overlap="queue")
        await environment.set_time(NOON + MINUTE)
        (execution,) = await environment.list_executions(schedule)
        row = await owner.fetchrow(
            "SELECT user_id, key_id FROM executions WHERE id = $1", ids.decode_id("exec", execution)
        )
        assert (ids.encode_id("user", row["user_id"]), row["key_id"]) == (caller.user_id, None)
        await environment.set_time(NOON + 2 * MINUTE)
        assert [run.outcome for run in await environment.list_runs(queued_schedule)] == ["fired", "queued"]
        await owner.execute(f"UPDATE users SET {change} WHERE id = $1", ids.decode_id("user", caller.user_id))
        await environment.end_executions()
        await environment.set_time(NOON + 3 * MINUTE)
        for checked_schedule, outcomes in (
            (schedule, ["fired", "fired", "failed"]),
            (queued_schedule, ["fired", "failed"]),
        ):
            runs, schedule_after = (
                await environment.list_runs(checked_schedule),
                await environment.get_schedule(checked_schedule),
            )
            assert [run.outcome for run in runs] == outcomes
            assert runs[-1].reason == schedule_after.last_error
            assert ("active user" in runs[-1].reason) == ("is_active" in change)
            assert (schedule_after.enabled, schedule_after.next_run_at, schedule_after.failed_count) == (False, None, 1)
            assert len(await environment.list_executions(checked_schedule)) == outcomes.count("fired")
        await environment.set_time(NOON + 9 * MINUTE)
        assert len(await environment.list_runs(schedule)) == 3
        environment.clock[0] = NOON


async def test_refused_start_is_recorded_and_the_next_is_tried(environment: ScheduleEnvironment) -> None:
    caller, owner = await environment.database.add_tenant(), environment.database.owner
    agent_id = await environment.database.add_agent(caller, max_concurrency=1, policy="reject")
    schedule = await environment.create_schedule(caller, "* * * * *", overlap="allow", agent_id=agent_id)
    await environment.set_time(NOON + MINUTE)
    await environment.set_time(NOON + 2 * MINUTE)
    schedule_after = await environment.get_schedule(schedule)
    assert "are already running or waiting; the agent allows" in (schedule_after.last_error or "")
    assert (schedule_after.enabled, schedule_after.failed_count, schedule_after.run_count) == (True, 1, 1)
    await environment.end_executions()
    await owner.execute("UPDATE agents SET status = 'archived' WHERE id = $1", ids.decode_id("agent", agent_id))
    await environment.set_time(NOON + 3 * MINUTE)
    await owner.execute("UPDATE agents SET status = 'ready' WHERE id = $1", ids.decode_id("agent", agent_id))
    await environment.set_time(NOON + 4 * MINUTE)
    runs, schedule_after = await environment.list_runs(schedule), await environment.get_schedule(schedule)
    assert [run.outcome for run in runs] == ["fired", "failed", "failed", "fired"]
    assert "is archived" in (runs[2].reason or "")
    assert [run.execution_id is None for run in runs] == [False, True, True, False]
    assert (schedule_after.last_error, schedule_after.failed_count, schedule_after.run_count) == (None, 2, 2)


async def test_file_that_is_gone_fails_the_due_time_by_name(environment: ScheduleEnvironment) -> None:
    caller = await environment.database.add_tenant()
    async with environment.store.transaction(caller) as tx:
        upload = FileUpload(
            file_id=files.generate_file_id(),
            name="data.csv",
            content_type="text/csv",
            size_bytes=3,
            sha256="00",
            lifetime=timedelta(seconds=90),
        )
        file = await files.add_file(tx, caller, upload, 0)
    more = {"files": {"in/data.csv": file.id}, "state": "daily", "overlap": "allow"}
    schedule = await environment.create_schedule(caller, "* * * * *", **more)
    await environment.set_time(NOON + MINUTE)
    async with environment.store.transaction(caller) as tx:
        (execution_id,) = await environment.list_executions(schedule)
        execution = await executions.get_execution(tx, execution_id)
        assert (execution.files, execution.state) == ({"in/data.csv": file.id}, "daily")
        assert [entry.path for entry in await tx.workspaces.list_files(execution_id)] == ["in/data.csv"]
    await environment.set_time(NOON + 2 * MINUTE)
    runs, schedule_after = await environment.list_runs(schedule), await environment.get_schedule(schedule)
    assert [run.outcome for run in runs] == ["fired", "failed"]
    assert runs[1].reason == f"files: 'in/data.csv': there is no file '{file.id}', or it has expired."
    assert (schedule_after.last_error, schedule_after.enabled) == (runs[1].reason, True)
    with pytest.raises(DomainError, match="or it has expired"):
        await environment.update_schedule(caller, schedule, name="renamed")
    await environment.update_schedule(caller, schedule, files=None)
    await environment.set_time(NOON + 3 * MINUTE)
    assert (await environment.list_runs(schedule))[2].outcome == "fired"


async def test_crash_before_the_commit_changes_nothing(environment: ScheduleEnvironment, monkeypatch) -> None:
    caller = await environment.database.add_tenant()
    schedule = await environment.create_schedule(caller, "* * * * *", overlap="allow")
    environment.clock[0] = NOON + MINUTE
    monkeypatch.setattr(CrashingStore, "is_crashing", staticmethod(lambda: True))
    for worker in environment.workers:
        assert (await worker.start_due()).pause_seconds > 0
    monkeypatch.setattr(CrashingStore, "is_crashing", staticmethod(lambda: False))
    assert await environment.list_runs(schedule) == []
    assert await environment.list_executions(schedule) == []
    assert await environment.get_schedule(schedule) == schedule
    await environment.run_workers()
    assert [run.outcome for run in await environment.list_runs(schedule)] == ["fired"]
    assert len(await environment.list_executions(schedule)) == 1


async def test_locked_schedule_does_not_block_other_workers(environment: ScheduleEnvironment) -> None:
    caller = await environment.database.add_tenant()
    locked, other = [await environment.create_schedule(caller, "* * * * *") for _ in range(2)]
    environment.clock[0] = NOON + MINUTE
    async with environment.store.transaction(caller) as tx:
        assert await schedules.fire_schedule(tx, locked.id)
        assert (await asyncio.wait_for(environment.workers[1].start_due(), 5)).pause_seconds == 0
        assert [run.outcome for run in await environment.list_runs(other)] == ["fired"]
        assert (await asyncio.wait_for(environment.workers[1].start_due(), 5)).pause_seconds > 0
    assert len(await environment.list_executions(locked)) == 1


async def test_unreadable_schedule_does_not_stop_others(environment: ScheduleEnvironment, monkeypatch) -> None:
    caller, owner = await environment.database.add_tenant(), environment.database.owner
    broken, bad_timezone, healthy = [await environment.create_schedule(caller, "* * * * *") for _ in range(3)]
    query = "UPDATE schedules SET {} WHERE id = $1"
    await owner.execute(query.format("mode = 'no mode'"), ids.decode_id("sched", broken.id))
    await owner.execute(query.format("timezone = 'Mars/Olympus'"), ids.decode_id("sched", bad_timezone.id))
    await environment.set_time(NOON + MINUTE)
    assert [run.outcome for run in await environment.list_runs(healthy)] == ["fired"]
    assert await environment.list_executions(broken) == []
    (failed,) = await environment.list_runs(bad_timezone)
    assert (failed.outcome, "Mars/Olympus" in (failed.reason or "")) == ("failed", True)
    assert (await environment.get_schedule(bad_timezone)).enabled is False


async def test_worker_polls_at_the_next_due_time_or_every_second(environment: ScheduleEnvironment) -> None:
    caller = await environment.database.add_tenant()
    worker = environment.workers[0]
    assert (await worker.start_due()).pause_seconds == SCHEDULE_POLL_SECONDS <= 1
    await environment.create_schedule(caller, "* * * * *", enabled=False)
    assert (await worker.start_due()).pause_seconds == SCHEDULE_POLL_SECONDS
    await environment.create_schedule(caller, "* * * * *")
    environment.clock[0] = NOON + timedelta(seconds=59.75)
    assert (await worker.start_due()).pause_seconds == pytest.approx(0.25)
    environment.clock[0] = NOON + MINUTE
    assert (await worker.start_due()).pause_seconds == 0
    assert (await worker.start_due()).pause_seconds == SCHEDULE_POLL_SECONDS


async def test_runs_of_schedules_expire_except_queued_ones(environment: ScheduleEnvironment) -> None:
    caller = await environment.database.add_tenant()
    schedule = await environment.create_schedule(caller, "0 0 * * *", overlap="queue")
    for day in (1, 2):
        await environment.set_time(NOON + day * DAY)
    assert [run.outcome for run in await environment.list_runs(schedule)] == ["fired", "queued"]
    first, second = (NOON + (day - 0.5) * DAY for day in (1, 2))
    retention = RETENTION_PERIODS["schedule_runs"]

    async def delete_expired(at: datetime) -> None:
        await environment.set_time(at)
        async with environment.stores[0].system_transaction() as tx:
            await tx.retention.delete_expired("schedule_runs", tx.now - retention)

    await delete_expired(first + retention)
    assert (await environment.list_runs(schedule))[0].due_at == first
    await delete_expired(first + retention + HOUR)
    assert [(run.due_at, run.outcome) for run in await environment.list_runs(schedule)][0] == (second, "queued")
    # A queued run stays, however old.
    await delete_expired(first + retention + 5 * DAY)
    runs = await environment.list_runs(schedule)
    assert [run.outcome for run in runs][:2] == ["queued", "missed"]
    assert [run.due_at for run in runs][:2] == [second, first + 5 * DAY]


async def test_savepoint_rolls_back_rows_and_rings(environment: ScheduleEnvironment) -> None:
    """Keep what was done before and after it."""
    caller = await environment.database.add_tenant()
    schedule = await environment.create_schedule(caller, "* * * * *")
    async with environment.store.transaction(caller) as tx:
        await schedules.run_schedule(tx, caller, schedule.id)
        with pytest.raises(DomainError):
            async with tx.savepoint():
                await schedules.run_schedule(tx, caller, schedule.id)
                await schedules.get_schedule(tx, "no such schedule")
        async with tx.savepoint():
            await schedules.run_schedule(tx, caller, schedule.id)
        assert len(tx.rings) == 2  # type: ignore[attr-defined]
    assert len(await environment.list_executions(schedule)) == 2
    assert (await environment.get_schedule(schedule)).run_count == 2
