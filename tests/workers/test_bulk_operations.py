"""Process bulk operations where workers are killed, keys revoked and filters too wide."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

import pytest

from domain import bulk_operations
from domain.bulk_operations import MAX_BULK_EXECUTIONS, BulkFilter, BulkOperation, NewBulkOperation
from domain.shared import ids
from domain.shared.access import Caller
from domain.shared.errors import DomainError
from infra.postgres.db import create_engine
from infra.postgres.store import PostgresStore
from scripts.system import System
from tests.support.isolated_database import NOW, IsolatedDatabase, SilentBell, open_isolated_database
from workers.record.bulk_operations import BulkProcessor

_ADD_EXECUTIONS_SQL = """
    INSERT INTO executions (
        id, tenant_id, user_id, run_name, kind, lane, agent_id, agent_version_id, status, input_data, attempt,
        max_attempts, timeout, steps_total, steps_completed, total_cost, last_seq, recorded, created_at, completed_at,
        updated_at
    )
    SELECT gen_random_uuid(), $1, $2, 'run-' || n, 'agent', 'run', a.id, a.current_version_id, 'failed', '{}', 1, 3, 30, 1,
           0, 0, 1, true, $4, $4, $4
    FROM generate_series(1, $5::int) AS n, agents a WHERE a.id = $3
"""


class KilledStore:
    """A store whose process is killed after some commits: what is open then is rolled back."""

    def __init__(self, store: PostgresStore, commits: int) -> None:
        self._store, self._commits = store, commits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def run(self, tenant_id: str, work: Any, **_: Any) -> None:
        async with self._store.tenant_transaction(tenant_id) as tx:
            await work(tx)
            if self._commits == 0:
                raise asyncio.CancelledError
            self._commits -= 1


@pytest.fixture
async def database(system: System) -> AsyncIterator[IsolatedDatabase]:
    async with open_isolated_database(system) as database:
        yield database


@asynccontextmanager
async def open_store(database: IsolatedDatabase, now: datetime = NOW) -> AsyncIterator[PostgresStore]:
    store = PostgresStore(create_engine(database.url, pool_size=4, application="bulk"), SilentBell(), lambda: now)
    try:
        yield store
    finally:
        await store.close()


async def _add_executions(database: IsolatedDatabase, caller: Caller, count: int) -> None:
    agent_id = await database.add_agent(caller)
    row_ids = ids.decode_id("user", caller.user_id), ids.decode_id("agent", agent_id)
    await database.owner.execute(_ADD_EXECUTIONS_SQL, caller.tenant_id, *row_ids, NOW, count)


async def _start(store: PostgresStore, caller: Caller, action: str, **more: Any) -> BulkOperation:
    async with store.transaction(caller) as tx:
        data = NewBulkOperation(action=action, filter=BulkFilter(status="failed"), **more)  # type: ignore[arg-type]
        return await bulk_operations.start_operation(tx, caller, data)


async def _get(store: PostgresStore, caller: Caller, operation: BulkOperation) -> BulkOperation:
    async with store.transaction(caller) as tx:
        return await bulk_operations.get_operation(tx, operation.id or "")


async def test_killed_workers_leave_no_execution_retried_twice(database: IsolatedDatabase) -> None:
    caller, count = await database.add_tenant(), 60
    await _add_executions(database, caller, count)
    async with open_store(database) as store:
        operation = await _start(store, caller, "retry")
        assert (operation.total, operation.left) == (count, count)
        for commits in (7, 0, 1, 20):
            with pytest.raises(asyncio.CancelledError):
                await BulkProcessor(KilledStore(store, commits)).process_operations()  # type: ignore[arg-type]
        halfway = await _get(store, caller, operation)
        assert (halfway.status, halfway.done, halfway.left) == ("running", 28, count - 28)
        # Two workers finish it together.
        processors = [BulkProcessor(store) for _ in range(2)]
        while (await _get(store, caller, operation)).status == "running":
            await asyncio.gather(*(processor.process_operations() for processor in processors))
        ended = await _get(store, caller, operation)
        assert (ended.status, ended.done, ended.failed, ended.left) == ("completed", count, 0, 0), ended.errors
    retried = await database.owner.fetch("SELECT retry_of FROM executions WHERE retry_of IS NOT NULL")
    assert len(retried) == len({record["retry_of"] for record in retried}) == count
    assert await database.owner.fetchval("SELECT count(*) FROM bulk_items") == 0


async def test_cancelled_operation_leaves_the_rest(database: IsolatedDatabase) -> None:
    caller = await database.add_tenant()
    await _add_executions(database, caller, 40)
    async with open_store(database) as store:
        operation = await _start(store, caller, "delete")
        await BulkProcessor(store).process_operations()
        async with store.transaction(caller) as tx:
            await bulk_operations.cancel_operation(tx, caller, operation.id or "")
        assert not await BulkProcessor(store).process_operations()
        ended = await _get(store, caller, operation)
        assert (ended.status, ended.done, ended.left) == ("cancelled", 25, 15)
    assert await database.owner.fetchval("SELECT count(*) FROM executions") == 15


async def test_too_wide_filter_is_refused_with_the_count(database: IsolatedDatabase) -> None:
    caller = await database.add_tenant()
    await _add_executions(database, caller, MAX_BULK_EXECUTIONS + 3)
    async with open_store(database) as store:
        with pytest.raises(DomainError, match=f"matches {MAX_BULK_EXECUTIONS + 3} executions"):
            await _start(store, caller, "delete")
        dry_run = await _start(store, caller, "delete", dry_run=True)
        assert (dry_run.id, dry_run.total) == (None, MAX_BULK_EXECUTIONS + 3)
    assert await database.owner.fetchval("SELECT count(*) FROM bulk_operations") == 0


async def test_operation_of_a_disabled_user_does_nothing(database: IsolatedDatabase) -> None:
    caller = await database.add_tenant()
    await _add_executions(database, caller, 3)
    async with open_store(database) as store:
        operation = await _start(store, caller, "delete")
        await database.owner.execute("UPDATE users SET is_active = false")
        await BulkProcessor(store).process_operations()
        ended = await _get(store, caller, operation)
        assert (ended.status, ended.failed, {error.code for error in ended.errors}) == ("completed", 3, {"forbidden"})
    assert await database.owner.fetchval("SELECT count(*) FROM executions") == 3


async def test_executions_deleted_meanwhile_count_as_failed(database: IsolatedDatabase) -> None:
    caller = await database.add_tenant()
    await _add_executions(database, caller, 4)
    async with open_store(database) as store:
        operation = await _start(store, caller, "retry")
        deletion = await _start(store, caller, "delete")
        async with store.transaction(caller) as tx:
            for execution_id in await tx.bulk_operations.list_pending(deletion.id or "", 2):
                await bulk_operations.process_execution(tx, deletion.id or "", execution_id)
        halfway = await _get(store, caller, operation)
        assert (halfway.failed, halfway.left) == (2, 2)
        assert (await _get(store, caller, deletion)).done == 2


async def test_operation_ends_when_others_deleted_its_last_executions(database: IsolatedDatabase) -> None:
    caller = await database.add_tenant()
    await _add_executions(database, caller, 4)
    async with open_store(database) as store:
        deletion = await _start(store, caller, "delete")
        operation = await _start(store, caller, "retry")
        await BulkProcessor(store).process_operations()
        assert (await _get(store, caller, deletion)).status == "completed"
        await BulkProcessor(store).process_operations()
        ended = await _get(store, caller, operation)
        assert (ended.status, ended.failed, ended.left) == ("completed", 4, 0)
        assert ended.completed_at is not None
        assert not await BulkProcessor(store).process_operations()


async def test_many_operations_of_one_tenant_keep_no_other_waiting(database: IsolatedDatabase) -> None:
    busy_caller, caller = await database.add_tenant(), await database.add_tenant()
    for tenant_caller in (busy_caller, caller):
        await _add_executions(database, tenant_caller, 1)
    async with open_store(database) as store:
        for _ in range(3):
            await _start(store, busy_caller, "retry")
        operation = await _start(store, caller, "retry")
        async with store.system_transaction() as tx:
            running = await tx.bulk_operations.list_running(2)
        assert {tenant_id for tenant_id, _ in running} == {busy_caller.tenant_id, caller.tenant_id}
        assert (caller.tenant_id, operation.id) in running


async def test_filter_of_empty_lists_is_refused(database: IsolatedDatabase) -> None:
    caller = await database.add_tenant()
    await _add_executions(database, caller, 1)
    async with open_store(database) as store, store.transaction(caller) as tx:
        for filters in (BulkFilter(tag=[]), BulkFilter(metadata=[]), BulkFilter(tag=[], metadata=[])):
            with pytest.raises(DomainError, match="must have a field"):
                await bulk_operations.start_operation(tx, caller, NewBulkOperation(action="delete", filter=filters))
