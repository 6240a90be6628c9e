"""Schedules that are due, with the clock in hand and several workers at it."""

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

from domain import schedules
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
from workers.upkeep.schedules import SCHEDULE_POLL_SECONDS, ScheduleStarter

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


class Killed(Exception):
    """Somebody pulled the plug."""


class Mortal(PostgresStore):
    """A store that dies now and then, after all the work of a transaction and before its commit."""

    dies: Any = staticmethod(lambda: False)

    @asynccontextmanager
    async def _begin(self, tenant_id: str | None) -> AsyncIterator[Any]:
        async with super()._begin(tenant_id) as tx:
            yield tx
            if tenant_id and self.dies():
                raise Killed


class World:
    """A database with a clock, and a store for each worker."""

    def __init__(self, database: IsolatedDatabase, stores: list[Mortal], clock: list[datetime]) -> None:
        self.database, self.stores, self.clock = database, stores, clock
        self.store = stores[0]
        self.workers: list[ScheduleStarter] = []

    async def drain(self) -> None:
        """All workers at once, until there is nothing to do."""

        async def work(worker: ScheduleStarter) -> None:
            while (await worker.start_due()).pause_seconds == 0:
                pass

        # Whoever finds everything taken by another goes to sleep; so once more when all have.
        for _ in range(2):
            await asyncio.gather(*map(work, self.workers))

    async def at(self, now: datetime) -> None:
        self.clock[0] = now
        await self.drain()

    async def made(self, caller: Caller, cron_expression: str, **more: Any) -> Schedule:
        """A schedule of an agent of its own."""
        more = {"agent_id": await self.database.add_agent(caller), "name": ids.generate_id("t"), **more}
        async with self.store.transaction(caller) as tx:
            return await schedules.create_schedule(tx, caller, NewSchedule(cron_expression=cron_expression, **more))

    async def patched(self, caller: Caller, schedule: Schedule, **changes: Any) -> Schedule:
        async with self.store.transaction(caller) as tx:
            return await schedules.update_schedule(tx, caller, schedule.id, PatchSchedule(**changes))

    async def found(self, schedule: Schedule) -> Schedule:
        async with self.store.tenant_transaction(schedule.tenant_id) as tx:
            return await schedules.get_schedule(tx, schedule.id)

    async def runs(self, schedule: Schedule) -> list[ScheduleRun]:
        """What became of its due times, the first one first."""
        async with self.store.tenant_transaction(schedule.tenant_id) as tx:
            page = await schedules.list_schedule_runs(tx, schedule.id, Page(limit=1000), None)
        assert page.total == len(page.items)
        return page.items[::-1]

    async def started(self, schedule: Schedule) -> list[str]:
        """Ids of its executions, in the order in which they were started."""
        query = "SELECT id FROM executions WHERE schedule_id = $1 ORDER BY id"
        rows = await self.database.owner.fetch(query, ids.decode_id("sched", schedule.id))
        return [ids.encode_id("exec", row["id"]) for row in rows]

    async def end_all(self, status: str = "completed") -> None:
        await self.database.owner.execute("UPDATE executions SET status = $1, completed_at = now()", status)


@pytest.fixture(scope="module")
async def world(system) -> AsyncIterator[World]:
    async with open_isolated_database(system) as database, AsyncExitStack() as stack:
        clock, stores = [NOON], []
        for number in range(3):
            engine = create_engine(database.url, pool_size=2, application=f"tests {number}")
            stack.push_async_callback(engine.dispose)
            stores.append(Mortal(engine, SilentBell(), lambda: clock[0]))
        yield World(database, stores, clock)


@pytest.fixture(autouse=True)
async def noon(world: World) -> AsyncIterator[None]:
    world.clock[0] = NOON
    world.workers = [ScheduleStarter(store) for store in world.stores]
    yield
    await world.database.owner.execute("DELETE FROM schedules")


CHANGES = [
    *(("Europe/Berlin", "2026-03-29T01:00Z", "30 2"), ("Europe/Berlin", "2026-10-25T01:00Z", "30 2")),
    *(("America/New_York", "2026-03-08T07:00Z", "30 2"), ("America/New_York", "2026-11-01T06:00Z", "30 1")),
    *(("Australia/Lord_Howe", "2026-10-03T15:30Z", "15 2"), ("Australia/Lord_Howe", "2026-04-04T15:00Z", "45 1")),
]


@pytest.mark.parametrize(("zone", "change", "of_day"), CHANGES)
async def test_three_workers_meet_each_due_time_once_while_clocks_change(
    world: World, monkeypatch, zone: str, change: str, of_day: str
) -> None:
    """Also when one of four transactions dies before its commit."""
    chance = random.Random(change)
    at, caller, there = datetime.fromisoformat(change), await world.database.add_tenant(), cron.find_timezone(zone)
    begin, end = at - 35 * MINUTE, at + 35 * MINUTE
    world.clock[0] = begin
    lines = [f"{of_day} * * *", "0,30 * * * *", "*/7 1-3 * * *", "* * * * *"]
    options = {"timezone": zone, "overlap": "allow", "catch_up": 100}
    made = [await world.made(caller, text, **options) for text in lines]
    monkeypatch.setattr(Mortal, "dies", staticmethod(lambda: chance.random() < 0.25))
    while world.clock[0] < end:
        await world.at(
            min(end, world.clock[0] + timedelta(minutes=chance.randint(1, 20), seconds=chance.randint(0, 59)))
        )
    monkeypatch.setattr(Mortal, "dies", staticmethod(lambda: False))
    await world.drain()

    for text, schedule in zip(lines, made, strict=True):
        due = list(cron.parse_cron(text).iterate_times(begin, end, there))
        runs, found = await world.runs(schedule), await world.found(schedule)
        assert [(run.due_at, run.outcome) for run in runs] == [(one, "fired") for one in due]
        assert sorted(run.execution_id or "" for run in runs) == await world.started(schedule)
        assert (found.run_count, found.missed_count, found.skipped_count) == (len(due), 0, 0)
        assert found.next_run_at == cron.parse_cron(text).find_next(end, there)
    assert len(await world.started(made[0])) == 1
    assert len(await world.started(made[3])) == 70


@pytest.mark.parametrize("catch_up", [0, 1, 5, 100])
async def test_after_an_hour_the_latest_are_made_up_for_and_no_more(world: World, catch_up: int) -> None:
    caller = await world.database.add_tenant()
    schedule = await world.made(caller, "* * * * *", overlap="allow", catch_up=catch_up)
    now = NOON + HOUR + timedelta(seconds=20)
    await world.at(now)
    # The one of twenty seconds ago is on time.
    fired = min(60, max(catch_up, 1))
    runs, found = await world.runs(schedule), await world.found(schedule)
    assert [run.due_at for run in runs] == [NOON + n * MINUTE for n in range(1, 61)]
    assert [run.outcome for run in runs] == ["missed"] * (60 - fired) + ["fired"] * fired
    assert len(await world.started(schedule)) == fired
    assert (found.run_count, found.missed_count, found.next_run_at) == (fired, 60 - fired, NOON + HOUR + MINUTE)
    # And from there on as if nothing had been.
    await world.at(now + MINUTE)
    assert len(await world.started(schedule)) == fired + 1


async def test_what_is_not_made_up_for_is_not_on_time_either(world: World) -> None:
    caller = await world.database.add_tenant()
    hourly = await world.made(caller, "0 * * * *", catch_up=0)
    late = await world.made(caller, "30 * * * *", catch_up=0)
    await world.at(NOON + HOUR + ON_TIME_WINDOW)
    assert [run.outcome for run in await world.runs(hourly)] == ["fired"]
    assert [run.outcome for run in await world.runs(late)] == ["missed"]
    assert (await world.found(late)).next_run_at == NOON + HOUR + 30 * MINUTE


async def test_after_years_there_is_no_more_to_do_than_after_hours(world: World) -> None:
    caller = await world.database.add_tenant()
    schedule = await world.made(caller, "* * * * *", overlap="allow", catch_up=3)
    later = NOON + 400 * DAY
    await world.at(later)
    runs, found = await world.runs(schedule), await world.found(schedule)
    assert [run.outcome for run in runs] == ["missed"] * MAX_MISSED_ROWS + ["fired"] * 3
    assert [run.due_at for run in runs] == [later - n * MINUTE for n in reversed(range(MAX_MISSED_ROWS + 3))]
    assert (found.missed_count, found.run_count) == (400 * 1440 - 3, 3)


LINES = st.sampled_from(["* * * * *", "*/5 * * * *", "0 * * * *", "30 2 * * *", "0 0 1 * *", "15 3 * 3,10 0"])


@settings(max_examples=60, deadline=None)
@given(text=LINES, minutes=st.integers(0, 600), lateness=st.integers(0, 59), catch_up=st.integers(0, 100))
def test_turns_follow_each_other(text: str, minutes: int, lateness: int, catch_up: int) -> None:
    """Turn by turn, each due time has one of its own; what fires is the latest, as many as may."""
    line, there = cron.parse_cron(text), cron.find_timezone("Europe/Berlin")
    first = line.find_next(datetime(2026, 10, 24, 20, tzinfo=UTC), there)
    assert first is not None
    now = first + minutes * MINUTE + timedelta(seconds=lateness)
    due = list(line.iterate_times(first - MINUTE, now, there))
    one = sort_due_times(line, there, first, now, catch_up)
    keep = min(len(due), max(catch_up, int(now - due[-1] <= ON_TIME_WINDOW)))
    assert one.missed == due[: len(due) - keep][-MAX_MISSED_ROWS:]
    assert one.missed_count == len(due) - keep
    fired = []
    while one.due is not None:
        fired.append(one.due)
        if one.next is None or one.next > now:
            break
        one = sort_due_times(line, there, one.next, now, catch_up)
        assert not one.missed
    assert fired == due[len(due) - keep :]
    assert one.next == line.find_next(now, there)


async def test_one_that_runs_lets_due_times_pass(world: World) -> None:
    caller = await world.database.add_tenant()
    schedule = await world.made(caller, "* * * * *", overlap="skip")
    for minute in (1, 2, 3):
        await world.at(NOON + minute * MINUTE)
    first = await world.started(schedule)
    assert [run.outcome for run in await world.runs(schedule)] == ["fired", "skipped", "skipped"]
    assert [run.reason for run in await world.runs(schedule)][1:] == ["An earlier execution has not ended."] * 2
    # Whatever it waits for, and however it ends.
    await world.end_all("waiting")
    await world.at(NOON + 4 * MINUTE)
    assert await world.started(schedule) == first
    await world.end_all("failed")
    await world.at(NOON + 5 * MINUTE)
    runs, found = await world.runs(schedule), await world.found(schedule)
    assert Counter(run.outcome for run in runs) == {"fired": 2, "skipped": 3}
    assert (found.skipped_count, found.run_count, len(await world.started(schedule))) == (3, 2, 2)
    assert (found.last_execution_id, found.last_status) == (runs[-1].execution_id, "pending")


async def test_one_waits_until_what_runs_has_ended(world: World) -> None:
    caller = await world.database.add_tenant()
    schedule = await world.made(caller, "* * * * *", overlap="queue")
    for minute in (1, 2, 3):
        await world.at(NOON + minute * MINUTE)
    assert [run.outcome for run in await world.runs(schedule)] == ["fired", "queued", "skipped"]
    assert (await world.runs(schedule))[2].reason == "Another due time is waiting."
    assert len(await world.started(schedule)) == 1
    # It is found by what is written down, not by anybody's word.
    await world.end_all()
    await world.at(NOON + 3 * MINUTE + timedelta(seconds=7))
    runs, started = await world.runs(schedule), await world.started(schedule)
    assert [run.outcome for run in runs] == ["fired", "fired", "skipped"]
    assert [run.execution_id for run in runs[:2]] == started
    assert (runs[1].settled_at, runs[1].reason) == (NOON + 3 * MINUTE + timedelta(seconds=7), None)
    await world.at(NOON + 4 * MINUTE)
    assert [run.outcome for run in await world.runs(schedule)][3:] == ["queued"]
    # Of one that is disabled, nothing waits.
    await world.patched(caller, schedule, enabled=False)
    await world.end_all()
    await world.at(NOON + 9 * MINUTE)
    runs = await world.runs(schedule)
    assert (runs[-1].outcome, runs[-1].reason) == ("skipped", "The schedule was disabled.")
    assert len(runs) == 4
    assert len(await world.started(schedule)) == 2


async def test_any_number_run_side_by_side(world: World) -> None:
    caller = await world.database.add_tenant()
    schedule = await world.made(caller, "* * * * *", overlap="allow")
    for minute in (1, 2, 3):
        await world.at(NOON + minute * MINUTE)
    assert len(await world.started(schedule)) == 3


async def test_what_is_due_while_a_schedule_is_disabled_is_nobody_s(world: World) -> None:
    caller = await world.database.add_tenant()
    schedule = await world.made(caller, "* * * * *", overlap="allow", catch_up=100)
    for off, on in ((1, 10), (20, 30)):
        world.clock[0] = NOON + off * MINUTE - timedelta(seconds=1)
        async with world.store.transaction(caller) as tx:
            assert (await schedules.toggle_schedule(tx, caller, schedule.id)).next_run_at is None
        await world.at(NOON + on * MINUTE)
        async with world.store.transaction(caller) as tx:
            toggled = await schedules.toggle_schedule(tx, caller, schedule.id)
        assert toggled.next_run_at == NOON + (on + 1) * MINUTE
        await world.at(NOON + (on + 1) * MINUTE)
    # Nobody had come to look at what was due before it was disabled the second time.
    runs = await world.runs(schedule)
    assert [run.due_at for run in runs] == [NOON + n * MINUTE for n in (11, *range(12, 20), 31)]
    assert [run.outcome for run in runs] == ["fired", *["missed"] * 8, "fired"]
    assert (runs[1].reason, (await world.found(schedule)).missed_count) == ("The schedule was changed.", 8)


async def test_another_line_or_zone_is_due_at_other_times(world: World) -> None:
    caller = await world.database.add_tenant()
    schedule = await world.made(caller, "0 * * * *", overlap="allow")
    changed = await world.patched(caller, schedule, cron_expression="30 14 * * *", timezone="Asia/Kolkata")
    assert changed.next_run_at == NOON + 21 * HOUR
    await world.at(NOON + HOUR)
    assert await world.runs(schedule) == []
    # What does not say when leaves what is due.
    world.clock[0] = NOON + 22 * HOUR
    assert (await world.patched(caller, schedule, name="Renamed")).next_run_at == NOON + 21 * HOUR
    await world.drain()
    assert [run.due_at for run in await world.runs(schedule)] == [NOON + 21 * HOUR]


async def test_a_due_time_is_met_once_whatever_the_clocks_of_others_show(world: World) -> None:
    caller = await world.database.add_tenant()
    schedule = await world.made(caller, "* * * * *", overlap="allow", catch_up=9)
    late = await world.made(caller, "* * * * *", overlap="allow", catch_up=0)
    await world.at(NOON + MINUTE)
    # Somebody's clock is behind: for them it is still to come.
    world.clock[0] = NOON + timedelta(seconds=59)
    changed = await world.patched(caller, schedule, cron_expression="*/1 * * * *")
    assert changed.next_run_at == NOON + MINUTE
    await world.patched(caller, late, cron_expression="*/1 * * * *")
    await world.at(NOON + 2 * MINUTE)
    for one in (schedule, late):
        assert len(await world.started(one)) == 2
        assert [run.outcome for run in await world.runs(one)] == ["fired", "fired"]
        assert (await world.found(one)).missed_count == 0


async def test_it_runs_on_behalf_of_an_active_user_alone(world: World) -> None:
    owner = world.database.owner
    for gone in ("is_active = false", "role = 'viewer'"):
        caller = await world.database.add_tenant()
        schedule = await world.made(caller, "* * * * *", overlap="allow")
        waits = await world.made(caller, "* * * * *", overlap="queue")
        await world.at(NOON + MINUTE)
        (execution,) = await world.started(schedule)
        by = await owner.fetchrow(
            "SELECT user_id, key_id FROM executions WHERE id = $1", ids.decode_id("exec", execution)
        )
        assert (ids.encode_id("user", by["user_id"]), by["key_id"]) == (caller.user_id, None)
        await world.at(NOON + 2 * MINUTE)
        assert [run.outcome for run in await world.runs(waits)] == ["fired", "queued"]
        await owner.execute(f"UPDATE users SET {gone} WHERE id = $1", ids.decode_id("user", caller.user_id))
        await world.end_all()
        await world.at(NOON + 3 * MINUTE)
        for one, outcomes in ((schedule, ["fired", "fired", "failed"]), (waits, ["fired", "failed"])):
            runs, found = await world.runs(one), await world.found(one)
            assert [run.outcome for run in runs] == outcomes
            assert runs[-1].reason == found.last_error
            assert ("active user" in runs[-1].reason) == ("is_active" in gone)
            assert (found.enabled, found.next_run_at, found.failed_count) == (False, None, 1)
            assert len(await world.started(one)) == outcomes.count("fired")
        await world.at(NOON + 9 * MINUTE)
        assert len(await world.runs(schedule)) == 3
        world.clock[0] = NOON


async def test_a_start_that_is_refused_is_on_record_and_the_next_is_tried(world: World) -> None:
    caller, owner = await world.database.add_tenant(), world.database.owner
    agent_id = await world.database.add_agent(caller, max_concurrency=1, policy="reject")
    schedule = await world.made(caller, "* * * * *", overlap="allow", agent_id=agent_id)
    await world.at(NOON + MINUTE)
    await world.at(NOON + 2 * MINUTE)
    found = await world.found(schedule)
    assert "are already running or waiting; the agent allows" in (found.last_error or "")
    assert (found.enabled, found.failed_count, found.run_count) == (True, 1, 1)
    await world.end_all()
    await owner.execute("UPDATE agents SET status = 'archived' WHERE id = $1", ids.decode_id("agent", agent_id))
    await world.at(NOON + 3 * MINUTE)
    await owner.execute("UPDATE agents SET status = 'ready' WHERE id = $1", ids.decode_id("agent", agent_id))
    await world.at(NOON + 4 * MINUTE)
    runs, found = await world.runs(schedule), await world.found(schedule)
    assert [run.outcome for run in runs] == ["fired", "failed", "failed", "fired"]
    assert "is archived" in (runs[2].reason or "")
    assert [run.execution_id is None for run in runs] == [False, True, True, False]
    assert (found.last_error, found.failed_count, found.run_count) == (None, 2, 2)


async def test_who_is_killed_before_the_commit_has_done_nothing(world: World, monkeypatch) -> None:
    caller = await world.database.add_tenant()
    schedule = await world.made(caller, "* * * * *", overlap="allow")
    world.clock[0] = NOON + MINUTE
    monkeypatch.setattr(Mortal, "dies", staticmethod(lambda: True))
    for worker in world.workers:
        assert (await worker.start_due()).pause_seconds > 0
    monkeypatch.setattr(Mortal, "dies", staticmethod(lambda: False))
    assert await world.runs(schedule) == []
    assert await world.started(schedule) == []
    assert await world.found(schedule) == schedule
    await world.drain()
    assert [run.outcome for run in await world.runs(schedule)] == ["fired"]
    assert len(await world.started(schedule)) == 1


async def test_whoever_has_it_lets_nobody_wait(world: World) -> None:
    caller = await world.database.add_tenant()
    one, other = [await world.made(caller, "* * * * *") for _ in range(2)]
    world.clock[0] = NOON + MINUTE
    async with world.store.transaction(caller) as tx:
        assert await schedules.fire_schedule(tx, one.id)
        assert (await asyncio.wait_for(world.workers[1].start_due(), 5)).pause_seconds == 0
        assert [run.outcome for run in await world.runs(other)] == ["fired"]
        assert (await asyncio.wait_for(world.workers[1].start_due(), 5)).pause_seconds > 0
    assert len(await world.started(one)) == 1


async def test_a_schedule_that_cannot_be_read_stops_no_other(world: World, monkeypatch) -> None:
    caller, owner = await world.database.add_tenant(), world.database.owner
    broken, gone, whole = [await world.made(caller, "* * * * *") for _ in range(3)]
    query = "UPDATE schedules SET {} WHERE id = $1"
    await owner.execute(query.format("mode = 'no mode'"), ids.decode_id("sched", broken.id))
    await owner.execute(query.format("timezone = 'Mars/Olympus'"), ids.decode_id("sched", gone.id))
    await world.at(NOON + MINUTE)
    assert [run.outcome for run in await world.runs(whole)] == ["fired"]
    assert await world.started(broken) == []
    (failed,) = await world.runs(gone)
    assert (failed.outcome, "Mars/Olympus" in (failed.reason or "")) == ("failed", True)
    assert (await world.found(gone)).enabled is False


async def test_it_looks_again_when_something_is_due_and_every_second(world: World) -> None:
    caller = await world.database.add_tenant()
    worker = world.workers[0]
    assert (await worker.start_due()).pause_seconds == SCHEDULE_POLL_SECONDS <= 1
    await world.made(caller, "* * * * *", enabled=False)
    assert (await worker.start_due()).pause_seconds == SCHEDULE_POLL_SECONDS
    await world.made(caller, "* * * * *")
    world.clock[0] = NOON + timedelta(seconds=59.75)
    assert (await worker.start_due()).pause_seconds == pytest.approx(0.25)
    world.clock[0] = NOON + MINUTE
    assert (await worker.start_due()).pause_seconds == 0
    assert (await worker.start_due()).pause_seconds == SCHEDULE_POLL_SECONDS


async def test_what_became_of_due_times_is_forgotten_in_the_end(world: World) -> None:
    caller = await world.database.add_tenant()
    schedule = await world.made(caller, "0 0 * * *", overlap="queue")
    for day in (1, 2):
        await world.at(NOON + day * DAY)
    assert [run.outcome for run in await world.runs(schedule)] == ["fired", "queued"]
    first, second = (NOON + (day - 0.5) * DAY for day in (1, 2))
    kept = RETENTION_PERIODS["schedule_runs"]

    async def forget(at: datetime) -> None:
        await world.at(at)
        async with world.stores[0].system_transaction() as tx:
            await tx.retention.delete_expired("schedule_runs", tx.now - kept)

    await forget(first + kept)
    assert (await world.runs(schedule))[0].due_at == first
    await forget(first + kept + HOUR)
    assert [(run.due_at, run.outcome) for run in await world.runs(schedule)][0] == (second, "queued")
    # What waits stays, however long.
    await forget(first + kept + 5 * DAY)
    runs = await world.runs(schedule)
    assert [run.outcome for run in runs][:2] == ["queued", "missed"]
    assert [run.due_at for run in runs][:2] == [second, first + 5 * DAY]


async def test_a_savepoint_undoes_what_raised(world: World) -> None:
    """Its rows, its rings; what was done before and after stays."""
    caller = await world.database.add_tenant()
    schedule = await world.made(caller, "* * * * *")
    async with world.store.transaction(caller) as tx:
        await schedules.run_schedule(tx, caller, schedule.id)
        with pytest.raises(DomainError):
            async with tx.savepoint():
                await schedules.run_schedule(tx, caller, schedule.id)
                await schedules.get_schedule(tx, "no such schedule")
        async with tx.savepoint():
            await schedules.run_schedule(tx, caller, schedule.id)
        assert len(tx.rings) == 2  # type: ignore[attr-defined]
    assert len(await world.started(schedule)) == 2
    assert (await world.found(schedule)).run_count == 2
