"""Start, claim and end runs that wait for their time, their thread and their key, on a database of their own."""

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

from domain import executions
from domain.executions import AttemptOutcome, Execution, ExecutionStart
from domain.ports import SandboxOutcome
from domain.shared.access import Caller
from domain.shared.errors import Conflict, DomainError
from infra.postgres.db import create_engine
from infra.postgres.store import PostgresStore
from scripts.system import System
from tests.support.isolated_database import NOW, IsolatedDatabase, SilentBell, open_isolated_database
from workers.upkeep import GateKeeper

LEASE = timedelta(seconds=10)


class InterruptedStore(PostgresStore):
    """Begins transactions of a process that may be killed right after a commit, before it admits the next runs."""

    is_killed = False

    async def _admit_next(self, execution_ids: list[str]) -> None:
        if not self.is_killed:
            await super()._admit_next(execution_ids)


class GateEnvironment:
    """Start, claim and end runs of one agent at a time that the test sets."""

    def __init__(self, database: IsolatedDatabase, store: InterruptedStore, caller: Caller, agent_id: str) -> None:
        self.database, self.store, self.caller, self.agent_id = database, store, caller, agent_id
        self.now = NOW

    def read_clock(self) -> datetime:
        return self.now

    async def start(self, **fields: object) -> Execution:
        data = ExecutionStart(**fields)
        async with self.store.transaction(self.caller) as tx:
            await executions.reserve_thread(tx, data)
            return await executions.start_execution(tx, self.caller, self.agent_id, data)

    async def try_start(self, **fields: object) -> Execution | None:
        """Start a run, or return None if its thread is busy."""
        try:
            return await self.start(**fields)
        except DomainError as error:
            if error.code not in ("thread_busy", "conflict"):
                raise
            return None

    async def claim(self, slots: int = 100) -> list[Execution]:
        async with self.store.autocommit() as tx:
            return await executions.claim_executions(tx, "w", LEASE, slots)

    async def claim_ids(self, slots: int = 100) -> list[str]:
        return [execution.id for execution in await self.claim(slots)]

    async def settle(self, *ended: Execution) -> None:
        outcomes = [
            AttemptOutcome(execution=execution, outcome=SandboxOutcome(output=b"{}"), events=[]) for execution in ended
        ]
        async with self.store.autocommit() as tx:
            await executions.settle_executions(tx, outcomes)

    async def cancel(self, execution_id: str) -> None:
        async with self.store.transaction(self.caller) as tx:
            await executions.cancel_execution(tx, execution_id)

    async def try_cancel(self, execution_id: str) -> None:
        """Cancel a run that may have ended meanwhile."""
        with contextlib.suppress(Conflict):
            await self.cancel(execution_id)

    async def get(self, execution_id: str) -> Execution:
        async with self.store.transaction(self.caller) as tx:
            return await executions.get_execution(tx, execution_id)

    async def keep_gates(self) -> None:
        keeper = GateKeeper(self.store)
        while (await keeper.run_round()).did_work:
            pass


@asynccontextmanager
async def open_gate_environment(system: System) -> AsyncIterator[GateEnvironment]:
    async with open_isolated_database(system) as database:
        caller = await database.add_tenant()
        agent_id = await database.add_agent(caller)
        engine = create_engine(database.url, pool_size=8, application="tests")
        environment: GateEnvironment
        store = InterruptedStore(engine, SilentBell(), lambda: environment.now)
        environment = GateEnvironment(database, store, caller, agent_id)
        try:
            yield environment
        finally:
            await engine.dispose()
