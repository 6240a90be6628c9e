"""Outages longer than a lease: healthy workers keep their runs, dead ones lose theirs a lease after the end of the outage."""

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

LEASE, POLL_INTERVAL = timedelta(seconds=15), timedelta(seconds=2)
SLEEPER = "import time\ndef handle(p):\n    time.sleep(p['for'])\n    return p\n"


class ControlledStore(PostgresStore):
    """A store whose clock and outages the test controls."""

    def __init__(self, engine: Any) -> None:
        self.now: datetime = NOW
        # The error code of the current outage, and how long the database takes to answer.
        self.outage_code: str | None = None
        self.answer_delay = timedelta()
        super().__init__(engine, SilentBell(), lambda: self.now)  # type: ignore[arg-type]

    def system_transaction(self) -> Any:
        return self._open_after_delay()

    @asynccontextmanager
    async def _open_after_delay(self) -> AsyncIterator[Tx]:
        if self.outage_code:
            raise DomainError(self.outage_code, "The database is unavailable.")
        async with super().system_transaction() as tx:
            self.now, self.answer_delay = self.now + self.answer_delay, timedelta()
            yield tx


class LeaseEnvironment:
    """Hold one claimed run, an upkeep worker, and what a healthy worker does while the database is available."""

    def __init__(self, store: ControlledStore, system: System, run: Execution) -> None:
        self.store, self.run = store, run
        settings = replace(
            system.settings, lease_seconds=LEASE.total_seconds(), upkeep_seconds=POLL_INTERVAL.total_seconds()
        )
        self.upkeep = Upkeep(settings, store, SilentBell(), None, lambda: store.now)  # type: ignore[arg-type]
        self._settings = settings

    def restart_upkeep(self) -> None:
        self.upkeep = Upkeep(self._settings, self.store, SilentBell(), None, lambda: self.store.now)  # type: ignore[arg-type]

    async def run_upkeep(self, count: int) -> int:
        """Return how many runs upkeep requeues in a number of rounds."""
        requeued = 0
        for _ in range(count):
            try:
                requeued += await self.upkeep.requeue_expired()
            except DomainError:
                assert self.store.outage_code is not None
            self.store.now += POLL_INTERVAL
        return requeued

    async def extend_lease(self) -> bool:
        now = self.store.now
        async with self.store.system_transaction() as tx:
            return bool(
                await tx.queues.extend_leases("run", {self.run.id: self.run.attempt}, now + LEASE, now + LEASE / 2)
            )

    async def settle_run(self) -> bool:
        attempt_outcome = AttemptOutcome(execution=self.run, outcome=SandboxOutcome(output=b"1"), events=[])
        async with self.store.autocommit() as tx:
            return (self.run.id, self.run.attempt) in (
                await executions.settle_executions(tx, [attempt_outcome])
            ).settled_attempts


@asynccontextmanager
async def open_lease_environment(system: System) -> AsyncIterator[LeaseEnvironment]:
    async with open_isolated_database(system) as database:
        yield await _create_environment(database, system)


async def _create_environment(database: IsolatedDatabase, system: System) -> LeaseEnvironment:
    caller = await database.add_tenant()
    agent_id = await database.add_agent(caller)
    store = ControlledStore(create_engine(database.url, pool_size=2, application="tests"))
    async with store.transaction(caller) as tx:
        await executions.start_execution(tx, caller, agent_id, ExecutionStart())
    async with store.autocommit() as tx:
        (run,) = await executions.claim_executions(tx, "w", LEASE, 1)
    return LeaseEnvironment(store, system, run)


OUTAGES = sorted(DATABASE_OUTAGE_CODES)


@pytest.mark.parametrize("kind", [*OUTAGES, "frozen", "asleep", "upkeep starts after it", "late"])
async def test_healthy_worker_keeps_its_run_through_a_long_outage(system, kind: str) -> None:
    async with open_lease_environment(system) as environment:
        store = environment.store
        assert await environment.run_upkeep(3) == 0
        if kind in DATABASE_OUTAGE_CODES:
            store.outage_code = kind
            assert await environment.run_upkeep(30) == 0
            store.outage_code = None
        elif kind == "late":
            # The database answers after longer than a lease.
            store.answer_delay = 3 * LEASE
        elif kind == "frozen":
            # Every process stood still.
            store.now += timedelta(minutes=5)
        else:
            store.now += timedelta(hours=8)
            if kind.startswith("upkeep"):
                environment.restart_upkeep()
        # Upkeep notices the end before the worker.
        assert await environment.run_upkeep(2) == 0
        assert await environment.extend_lease()
        assert await environment.run_upkeep(5) == 0
        assert await environment.settle_run()
        await store.close()


async def test_dead_worker_loses_its_run_a_lease_after_the_outage(system) -> None:
    async with open_lease_environment(system) as environment:
        store = environment.store
        await environment.run_upkeep(3)
        store.outage_code = "unavailable"
        await environment.run_upkeep(30)
        store.outage_code = None
        assert await environment.run_upkeep(7) == 0
        assert await environment.run_upkeep(2) == 1
        # The fencing token still holds: the first attempt settles nothing any more.
        async with store.autocommit() as tx:
            (reclaimed,) = await executions.claim_executions(tx, "other", LEASE, 1)
        assert reclaimed.attempt == 2
        assert not await environment.extend_lease()
        assert not await environment.settle_run()
        environment.run = reclaimed
        assert await environment.settle_run()
        await store.close()


async def test_read_only_database_is_noticed_before_a_lease_expires(system) -> None:
    """Make the database writable again at the moment in which the lease expires, with upkeep faster than the worker."""
    async with open_isolated_database(system) as database:
        environment = await _create_environment(database, system)
        store, owner = environment.store, database.owner
        await environment.run_upkeep(3)
        await owner.execute(
            "CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "RAISE EXCEPTION 'x' USING ERRCODE = '53100'; END $$; "
            "CREATE TRIGGER no_room BEFORE UPDATE ON workers FOR EACH STATEMENT EXECUTE FUNCTION no_room()"
        )
        store.outage_code = ""
        while store.now < NOW + LEASE:
            assert await environment.run_upkeep(1) == 0
        await owner.execute("DROP FUNCTION no_room() CASCADE")
        assert await environment.run_upkeep(2) == 0
        assert await environment.extend_lease()
        assert await environment.settle_run()
        await store.close()


async def test_lease_expires_on_time_without_an_outage(system) -> None:
    async with open_lease_environment(system) as environment:
        requeued, start = 0, environment.store.now
        while not requeued:
            requeued = await environment.run_upkeep(1)
        assert environment.store.now - start <= LEASE + 2 * POLL_INTERVAL
        await environment.store.close()


async def test_result_is_retried_until_the_database_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, slept = asyncio.get_running_loop(), 0.0
    monkeypatch.setattr(loop, "time", lambda: slept)

    async def sleep(seconds: float) -> None:
        nonlocal slept
        slept += seconds

    monkeypatch.setattr(polling.asyncio, "sleep", sleep)
    for code in (*OUTAGES, "storage_unavailable"):

        async def call(code: str = code, start: float = slept) -> str:
            if slept - start < 3600:
                raise DomainError(code, "away")
            return "settled"

        if code == "storage_unavailable":
            with pytest.raises(DomainError, match="away"):
                await retry_through_outage(call)
        else:
            assert await retry_through_outage(call) == "settled"
            with pytest.raises(DomainError, match="away"):
                await retry_through_outage(lambda code=code: _raise_outage(code), max_seconds=30)


async def _raise_outage(code: str) -> None:
    raise DomainError(code, "away")


async def test_runs_survive_a_postgres_outage_longer_than_a_lease(
    system: System, shared_tenant: TenantClient, monkeypatch
) -> None:
    sleeper = await shared_tenant.deploy_agent(SLEEPER)
    runs = [await shared_tenant.start_execution(sleeper, {"for": 8.0, "n": number}) for number in range(3)]
    for run in runs:
        while (await shared_tenant.http.get(f"/executions/{run['id']}")).json()["status"] != "running":
            await asyncio.sleep(0.05)
    postgres = system.services[0]
    assert postgres is not None
    assert postgres.child is not None
    start, old_pid = postgres.start, postgres.child.process.pid

    async def start_later() -> None:
        # More than two leases of this system.
        await asyncio.sleep(5)
        await start()

    monkeypatch.setattr(postgres, "start", start_later)
    os.kill(old_pid, signal.SIGINT)
    for run in runs:
        while True:
            ended = await shared_tenant.http.get(f"/executions/{run['id']}")
            if ended.status_code == 200 and ended.json()["status"] in ("completed", "failed"):
                break
            await asyncio.sleep(0.2)
        assert (ended.json()["status"], ended.json()["attempt"]) == ("completed", 1), ended.text
    assert postgres.child.process.pid != old_pid
