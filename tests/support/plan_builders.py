"""Advance, run and settle plans by hand in an isolated database, with a controlled clock."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import msgspec

from domain import executions
from domain.agents import AgentSpec
from domain.executions import AttemptOutcome, Execution, ExecutionStart, LaneShare, RunLane, RunStep, steps
from domain.plans import coordinator, service
from domain.plans.coordinator import PlanCache
from domain.plans.schema import AgentWork, Plan, PlanStep
from domain.ports import SandboxOutcome
from domain.shared import ids
from domain.shared.access import Caller
from infra.postgres.db import create_engine
from infra.postgres.store import PostgresStore
from scripts.system import System
from tests.support.isolated_database import NOW, IsolatedDatabase, SilentBell, open_isolated_database


class SimulatedCrash(Exception):
    """Report that the process was killed here."""


class PlanEnvironment:
    def __init__(self, database: IsolatedDatabase, store: PostgresStore, caller: Caller, agent_id: str) -> None:
        self.database, self.store, self.caller, self.agent_id = database, store, caller, agent_id
        self.clock = [NOW]

    def build_work(self) -> AgentWork:
        return AgentWork(name="agent", agent_id=self.agent_id, version_id=self.version_id)

    async def load_version(self) -> None:
        version_id = await self.database.owner.fetchval(
            "SELECT current_version_id FROM agents ORDER BY id DESC LIMIT 1"
        )
        self.version_id = ids.encode_id("ver", version_id)

    async def start_plan(self, *steps: PlanStep, **more: Any) -> str:
        plan = Plan(kind="workflow", name="plan", steps=list(steps), **more)
        async with self.store.transaction(self.caller) as tx:
            return (await service.start_plan(tx, self.caller, plan, ExecutionStart(inputs={"n": 1}))).id

    async def get_execution(self, execution_id: str) -> Execution:
        async with self.store.transaction(self.caller) as tx:
            return await executions.get_execution(tx, execution_id)

    async def advance_plan(
        self, execution_id: str, cache: PlanCache | None = None, die: bool = False
    ) -> PlanCache | None:
        async with self.store.transaction(self.caller) as tx:
            new_cache = await coordinator.advance_plan(tx, execution_id, cache)
            if die:
                raise SimulatedCrash
            return new_cache

    async def list_due(self) -> list[str]:
        async with self.store.autocommit() as tx:
            return [due.execution_id for due in (await tx.plans.list_due(tx.now, 100))[0]]

    async def settle_claimed(self, limit: int = 100, error: str | None = None, lane: RunLane = "run") -> list[str]:
        """Claim what waits in a lane, settle it, and return the steps."""
        async with self.store.autocommit() as tx:
            claimed = await executions.claim_executions(
                tx, "worker", timedelta(seconds=60), limit, share=LaneShare(lane=lane)
            )
        for execution in claimed:
            async with self.store.transaction(self.caller) as tx:
                outcome = SandboxOutcome(output=msgspec.json.encode({"step": execution.step}))
                failure = SandboxOutcome(error_type=error, error_message="no")
                await executions.settle_executions(
                    tx, [AttemptOutcome(execution=execution, outcome=failure if error else outcome, events=[])]
                )
        return [execution.step or "" for execution in claimed]

    async def run_to_end(self, execution_id: str) -> Execution:
        for _ in range(100):
            for due_id in await self.list_due():
                await self.advance_plan(due_id)
            await self.settle_claimed()
            execution = await self.get_execution(execution_id)
            if execution.status in ("completed", "failed", "cancelled"):
                return execution
            self.clock[0] += timedelta(seconds=1)
        raise AssertionError(execution)

    async def list_children(self, execution_id: str) -> dict[str, list[str]]:
        rows = await self.database.owner.fetch("SELECT step, status FROM executions WHERE parent_id IS NOT NULL")
        statuses_by_step = dict[str, list[str]]()
        for row in rows:
            statuses_by_step.setdefault(row["step"], []).append(row["status"])
        return statuses_by_step

    def build_model_agent(self, **more: Any) -> AgentWork:
        """Build a model agent that is not stored."""
        fields: dict[str, Any] = {
            "id": "",
            "name": "asker",
            "description": None,
            "kind": "llm",
            "status": "ready",
            "model": "m",
            "user_id": self.caller.user_id,
            "tenant_id": self.caller.tenant_id,
            "current_version_id": None,
            "created_at": NOW,
            "updated_at": NOW,
        }
        return AgentWork(name="asker", spec=AgentSpec(**(fields | more)))

    async def park_on_calls(self, *call_ids: str) -> Execution:
        """Claim the next run of a model agent and park it on these tool calls."""
        async with self.store.autocommit() as tx:
            (execution,) = await executions.claim_executions(
                tx, "worker", timedelta(seconds=60), 1, share=LaneShare(lane="llm")
            )
        async with self.store.transaction(self.caller) as tx:
            waiting = [
                RunStep(
                    execution_id=execution.id,
                    path=f"1.{place}",
                    kind="tool",
                    name="mail",
                    status="waiting",
                    attempt=execution.attempt,
                    call_id=call_id,
                    input={},
                    started_at=tx.now,
                )
                for place, call_id in enumerate(call_ids)
            ]
            for step in waiting:
                await steps.write_step(tx, step, [])
            await steps.park_for_approval(tx, execution, waiting)
        return execution

    async def settle_model_runs(self) -> list[str]:
        """Claim the waiting runs of model agents, settle them, and return the steps."""
        return await self.settle_claimed(lane="llm")

    async def advance_until_idle(self) -> None:
        """Advance until nothing is due."""
        for _ in range(50):
            due = await self.list_due()
            if not due:
                return
            for due_id in due:
                await self.advance_plan(due_id)
        raise AssertionError(f"plans never become idle: {due}")


@asynccontextmanager
async def open_plan_environment(system: System) -> AsyncIterator[PlanEnvironment]:
    """Open an environment for plans."""
    async with open_isolated_database(system) as database:
        caller = await database.add_tenant()
        agent_id = await database.add_agent(caller)
        engine = create_engine(database.url, pool_size=8, application="tests")
        world: PlanEnvironment
        store = PostgresStore(engine, SilentBell(), lambda: world.clock[0])
        world = PlanEnvironment(database, store, caller, agent_id)
        await world.load_version()
        try:
            yield world
        finally:
            await store.close()
