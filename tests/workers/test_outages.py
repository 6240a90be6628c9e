"""Outages longer than a lease: healthy workers keep their runs, dead ones lose theirs a lease after it is over."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from domain import executions
from domain.executions import AttemptOutcome, Execution, ExecutionStart
from domain.ports import SandboxOutcome, Tx
from domain.shared.errors import DATABASE_OUTAGE_CODES, DomainError
from infra import polling
from infra.polling import retry_through_outage
from infra.postgres.db import create_engine
from infra.postgres.store import PostgresStore
from scripts.system import System
from tests.support.clients import TenantClient
from tests.support.isolated_database import NOW, IsolatedDatabase, SilentBell, open_isolated_database
from workers.upkeep import Upkeep

LEASE, ROUND = timedelta(seconds=15), timedelta(seconds=2)
SLEEPER = "import time\ndef handle(p):\n    time.sleep(p['for'])\n    return p\n"


class Clocked(PostgresStore):
    """A store whose clock and whose outages are ours."""

    def __init__(self, engine: Any) -> None:
        self.now: datetime = NOW
        # An outage of its own code; and for how long the database lets one wait before it answers.
        self.away: str | None = None
        self.late = timedelta()
        super().__init__(engine, SilentBell(), lambda: self.now)  # type: ignore[arg-type]

    def system_transaction(self) -> Any:
        return self._slowly()

    @asynccontextmanager
    async def _slowly(self) -> AsyncIterator[Tx]:
        if self.away:
            raise DomainError(self.away, "away")
        async with super().system_transaction() as tx:
            self.now, self.late = self.now + self.late, timedelta()
            yield tx


class World:
    """One run that is held, an upkeep beside it, and what a healthy worker does when the database is there."""

    def __init__(self, store: Clocked, system: System, run: Execution) -> None:
        self.store, self.run = store, run
        settings = replace(system.settings, lease_seconds=LEASE.total_seconds(), upkeep_seconds=ROUND.total_seconds())
        self.upkeep = Upkeep(settings, store, SilentBell(), None, lambda: store.now)  # type: ignore[arg-type]
        self._settings = settings

    def another_upkeep(self) -> None:
        self.upkeep = Upkeep(self._settings, self.store, SilentBell(), None, lambda: self.store.now)  # type: ignore[arg-type]

    async def rounds(self, count: int) -> int:
        """What upkeep takes back in so many rounds."""
        taken = 0
        for _ in range(count):
            try:
                taken += await self.upkeep.requeue_expired()
            except DomainError:
                assert self.store.away is not None
            self.store.now += ROUND
        return taken

    async def extends(self) -> bool:
        now = self.store.now
        async with self.store.system_transaction() as tx:
            return bool(
                await tx.queues.extend_leases("run", {self.run.id: self.run.attempt}, now + LEASE, now + LEASE / 2)
            )

    async def settles(self) -> bool:
        ended = AttemptOutcome(execution=self.run, outcome=SandboxOutcome(output=b"1"), events=[])
        async with self.store.autocommit() as tx:
            return (self.run.id, self.run.attempt) in (await executions.settle_executions(tx, [ended])).settled_attempts


@asynccontextmanager
async def held_run(system: System) -> AsyncIterator[World]:
    async with open_isolated_database(system) as database:
        yield await _held(database, system)


async def _held(database: IsolatedDatabase, system: System) -> World:
    caller = await database.add_tenant()
    agent_id = await database.add_agent(caller)
    store = Clocked(create_engine(database.url, pool_size=2, application="tests"))
    async with store.transaction(caller) as tx:
        await executions.start_execution(tx, caller, agent_id, ExecutionStart())
    async with store.autocommit() as tx:
        (run,) = await executions.claim_executions(tx, "w", LEASE, 1)
    return World(store, system, run)


OUTAGES = sorted(DATABASE_OUTAGE_CODES)


@pytest.mark.parametrize("kind", [*OUTAGES, "frozen", "asleep", "upkeep starts after it", "late"])
async def test_a_healthy_worker_keeps_its_run_through_an_outage_longer_than_a_lease(system, kind: str) -> None:
    async with held_run(system) as world:
        store = world.store
        assert await world.rounds(3) == 0
        if kind in DATABASE_OUTAGE_CODES:
            store.away = kind
            assert await world.rounds(30) == 0
            store.away = None
        elif kind == "late":
            # It answers, after longer than a lease.
            store.late = 3 * LEASE
        elif kind == "frozen":
            # Nobody was served and nobody was refused.
            store.now += timedelta(minutes=5)
        else:
            store.now += timedelta(hours=8)
            if kind.startswith("upkeep"):
                world.another_upkeep()
        # Upkeep is quicker than the worker to notice.
        assert await world.rounds(2) == 0
        assert await world.extends()
        assert await world.rounds(5) == 0
        assert await world.settles()
        await store.close()


async def test_a_worker_that_died_in_the_outage_loses_its_run_a_lease_after_it(system) -> None:
    async with held_run(system) as world:
        store = world.store
        await world.rounds(3)
        store.away = "unavailable"
        await world.rounds(30)
        store.away = None
        assert await world.rounds(7) == 0
        assert await world.rounds(2) == 1
        # The fencing token stands as before: the first attempt settles nothing any more.
        async with store.autocommit() as tx:
            (again,) = await executions.claim_executions(tx, "other", LEASE, 1)
        assert again.attempt == 2
        assert not await world.extends()
        assert not await world.settles()
        world.run = again
        assert await world.settles()
        await store.close()


async def test_a_database_that_only_reads_is_noticed_before_any_lease_has_run_out(system) -> None:
    """It is writable again in the moment in which the lease runs out, and upkeep is quicker than the worker."""
    async with open_isolated_database(system) as database:
        world = await _held(database, system)
        store, owner = world.store, database.owner
        await world.rounds(3)
        await owner.execute(
            "CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "RAISE EXCEPTION 'x' USING ERRCODE = '53100'; END $$; "
            "CREATE TRIGGER no_room BEFORE UPDATE ON workers FOR EACH STATEMENT EXECUTE FUNCTION no_room()"
        )
        store.away = ""
        while store.now < NOW + LEASE:
            assert await world.rounds(1) == 0
        await owner.execute("DROP FUNCTION no_room() CASCADE")
        assert await world.rounds(2) == 0
        assert await world.extends()
        assert await world.settles()
        await store.close()


async def test_without_an_outage_a_lease_counts_as_it_stands(system) -> None:
    async with held_run(system) as world:
        taken, began = 0, world.store.now
        while not taken:
            taken = await world.rounds(1)
        assert world.store.now - began <= LEASE + 2 * ROUND
        await world.store.close()


async def test_a_result_in_hand_waits_for_the_database_for_as_long_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, slept = asyncio.get_running_loop(), 0.0
    monkeypatch.setattr(loop, "time", lambda: slept)

    async def sleep(seconds: float) -> None:
        nonlocal slept
        slept += seconds

    monkeypatch.setattr(polling.asyncio, "sleep", sleep)
    for code in (*OUTAGES, "storage_unavailable"):

        async def call(code: str = code, began: float = slept) -> str:
            if slept - began < 3600:
                raise DomainError(code, "away")
            return "settled"

        if code == "storage_unavailable":
            with pytest.raises(DomainError, match="away"):
                await retry_through_outage(call)
        else:
            assert await retry_through_outage(call) == "settled"
            with pytest.raises(DomainError, match="away"):
                await retry_through_outage(lambda code=code: _raise(code), max_seconds=30)


async def _raise(code: str) -> None:
    raise DomainError(code, "away")


async def test_postgres_away_for_longer_than_a_lease(system: System, shared_tenant: TenantClient, monkeypatch) -> None:
    sleeper = await shared_tenant.deploy_agent(SLEEPER)
    runs = [await shared_tenant.start_execution(sleeper, {"for": 8.0, "n": number}) for number in range(3)]
    for run in runs:
        while (await shared_tenant.http.get(f"/executions/{run['id']}")).json()["status"] != "running":
            await asyncio.sleep(0.05)
    postgres = system.services[0]
    assert postgres is not None
    assert postgres.child is not None
    start, old = postgres.start, postgres.child.process.pid

    async def later() -> None:
        # More than two leases of this system.
        await asyncio.sleep(5)
        await start()

    monkeypatch.setattr(postgres, "start", later)
    os.kill(old, signal.SIGINT)
    for run in runs:
        while True:
            ended = await shared_tenant.http.get(f"/executions/{run['id']}")
            if ended.status_code == 200 and ended.json()["status"] in ("completed", "failed"):
                break
            await asyncio.sleep(0.2)
        assert (ended.json()["status"], ended.json()["attempt"]) == ("completed", 1), ended.text
    assert postgres.child.process.pid != old
