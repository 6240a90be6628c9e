"""Two attempts of one execution in one process: the newer one holds the lease, the older one settles nothing."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from domain import executions
from domain.events import build_log_event
from domain.executions import AttemptOutcome, ExecutionStart
from domain.ports import SandboxOutcome
from domain.shared.leases import LostLease
from infra.postgres.db import create_engine
from infra.postgres.store import PostgresStore
from infra.redis import Bell
from tests.support.clients import fetch_events
from tests.support.isolated_database import NOW, SilentBell, open_isolated_database
from workers.leases import LeaseKeeper

LEASE = timedelta(seconds=10)


class ExtendingStore:
    """A store in which the newest attempt holds every lease."""

    def system_transaction(self) -> "ExtendingStore":
        return self

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    @property
    def queues(self) -> "ExtendingStore":
        return self

    async def extend_leases(self, _: str, attempts: dict[str, int], *__: object) -> set[str]:
        return set(attempts)


async def test_older_attempt_stops_without_releasing_the_newer_one() -> None:
    store: Any = ExtendingStore()
    lease_keeper = LeaseKeeper(store, Bell("redis://127.0.0.1:1"), lambda: datetime.now(UTC), "run", LEASE)
    keeping = asyncio.create_task(lease_keeper.extend_leases())
    gate = asyncio.Event()
    try:
        older = asyncio.create_task(lease_keeper.hold_lease("exec_x", 1, gate.wait()))
        await asyncio.sleep(0)
        newer = asyncio.create_task(lease_keeper.hold_lease("exec_x", 2, gate.wait()))
        async with asyncio.timeout(5):
            with pytest.raises(LostLease):
                await older
        assert lease_keeper.lease_count == 1
        await asyncio.sleep(0.6)
        assert not newer.done()
        gate.set()
        assert await newer is True
        assert lease_keeper.lease_count == 0
    finally:
        keeping.cancel()


async def test_batch_with_two_attempts_settles_the_newer_one(system) -> None:
    async with open_isolated_database(system) as database:
        caller = await database.add_tenant()
        agent_id = await database.add_agent(caller)
        now = NOW
        engine = create_engine(database.url, pool_size=2, application="tests")
        store = PostgresStore(engine, SilentBell(), lambda: now)
        async with store.transaction(caller) as tx:
            execution = await executions.start_execution(tx, caller, agent_id, ExecutionStart())
        async with store.autocommit() as tx:
            (first,) = await executions.claim_executions(tx, "w", LEASE, 1)
        now += LEASE * 2
        async with store.transaction(caller) as tx:
            await executions.requeue_expired(tx, execution.id)
        async with store.autocommit() as tx:
            (second,) = await executions.claim_executions(tx, "w", LEASE, 1)
        outcomes = [
            AttemptOutcome(
                execution=attempt,
                outcome=SandboxOutcome(output=text),
                events=[build_log_event("INFO", str(attempt.attempt), now, "stdout")],
            )
            for attempt, text in ((first, b'"old"'), (second, b'"new"'))
        ]
        async with store.autocommit() as tx:
            settled = await executions.settle_executions(tx, outcomes)
        async with store.transaction(caller) as tx:
            execution_after = await executions.get_execution(tx, execution.id)
            events = await fetch_events(tx, execution)
        await engine.dispose()
    assert settled.settled_attempts == {(execution.id, 2)}
    assert (execution_after.status, execution_after.output_data, execution_after.attempt) == ("completed", "new", 2)
    assert [event.data["message"] for event in events if event.type == "log"] == ["2"]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
