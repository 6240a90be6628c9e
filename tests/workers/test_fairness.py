"""The next claim is for the tenant with the fewest running executions, within the limits, first come first served."""

import asyncio
from collections import Counter
from datetime import timedelta

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domain import executions
from domain.executions import Execution, ExecutionStart, LaneShare
from domain.shared import ids
from domain.shared.access import Caller
from infra.postgres.db import create_engine
from infra.postgres.store import PostgresStore
from tests.support.clients import TenantClient, register_tenant
from tests.support.isolated_database import NOW, IsolatedDatabase, SilentBell, open_isolated_database

LEASE = timedelta(seconds=10)
WHOLE_LANE = LaneShare()
# Of each agent: its limit, how many of its runs are already claimed, and how many wait.
AGENT = st.tuples(st.one_of(st.none(), st.integers(1, 4)), st.integers(0, 3), st.integers(0, 6))
TENANT = st.tuples(st.one_of(st.none(), st.integers(1, 5)), st.lists(AGENT, min_size=1, max_size=3))


def choose_claims(
    waiting: list[Execution],
    claimed_by_agent: Counter[str],
    owners: dict[str, str],
    limits: dict[str, int | None],
    slots: int,
    spare: int,
) -> list[str]:
    """Choose claims by the rule in plain code: one after the other, each for the tenant with the fewest running by then.

    The last `spare` of the slots are for tenants that have none. `owners` are the tenants of agents; `claimed_by_agent`
    and `limits` are by id of either.
    `limits` are by id of either.
    """
    running, remaining, chosen = (
        Counter(claimed_by_agent),
        sorted(waiting, key=lambda execution: execution.id),
        list[str](),
    )

    def may_run(execution: Execution) -> bool:
        if len(chosen) >= slots - spare and running[execution.tenant_id]:
            return False
        return all(running[name] < (limits[name] or 999) for name in (execution.agent_id or "", execution.tenant_id))

    for agent_id, count in claimed_by_agent.items():
        running[owners[agent_id]] += count
    while len(chosen) < slots and any(map(may_run, remaining)):
        chosen_execution = min(
            filter(may_run, remaining), key=lambda execution: (running[execution.tenant_id], execution.id)
        )
        remaining.remove(chosen_execution)
        chosen.append(chosen_execution.id)
        running[chosen_execution.agent_id or ""] += 1
        running[chosen_execution.tenant_id] += 1
    return chosen


class FairnessEnvironment:
    """Hold tenants with agents, some runs of which are claimed and some wait."""

    def __init__(self, database: IsolatedDatabase, store: PostgresStore) -> None:
        self._database, self._store = database, store

    async def check(
        self, tenants: list[tuple[int | None, list[tuple[int | None, int, int]]]], slots: int, spare: int
    ) -> None:
        await self._database.owner.execute("TRUNCATE execution_events, executions, agent_versions, agents CASCADE")
        limits: dict[str, int | None] = {}
        owners: dict[str, str] = {}
        claimed_by_agent, waiting = Counter[str](), list[Execution]()
        for bound, agents in tenants:
            caller = await self._database.add_tenant()
            limits[caller.tenant_id] = bound
            for limit, running, pending in agents:
                agent_id = await self._database.add_agent(caller)
                limits[agent_id], owners[agent_id], claimed_by_agent[agent_id] = limit, caller.tenant_id, running
                await self._start(caller, agent_id, running)
                await self._claim(running)
                waiting += await self._start(caller, agent_id, pending)
                await self._hide()
        for row_id, limit in limits.items():
            table, key = ("agents", ids.decode_id("agent", row_id)) if row_id in owners else ("tenants", row_id)
            await self._database.owner.execute(f"UPDATE {table} SET max_concurrency = $2 WHERE id = $1", key, limit)
        await self._database.owner.execute("UPDATE executions SET status = 'pending' WHERE status = 'waiting'")
        claimed_ids = [execution.id for execution in await self._claim(slots, LaneShare(reserved_slots=spare))]
        assert sorted(claimed_ids) == sorted(choose_claims(waiting, claimed_by_agent, owners, limits, slots, spare))

    async def _start(self, caller: Caller, agent_id: str, count: int) -> list[Execution]:
        async with self._store.transaction(caller) as tx:
            return [await executions.start_execution(tx, caller, agent_id, ExecutionStart()) for _ in range(count)]

    async def _hide(self) -> None:
        # What waits must not be claimed as one of the running executions of the next agent.
        await self._database.owner.execute("UPDATE executions SET status = 'waiting' WHERE status = 'pending'")

    async def _claim(self, slots: int, share: LaneShare = WHOLE_LANE) -> list[Execution]:
        async with self._store.autocommit() as tx:
            return await executions.claim_executions(tx, "w", LEASE, slots, share=share)


async def test_claim_statement_follows_the_rule(system) -> None:
    """Claim for any tenants, agents, limits and queues what claiming one by one would."""

    def run_in_thread() -> None:
        with asyncio.Runner() as runner:

            async def open_database():
                database_context = open_isolated_database(system)
                database = await database_context.__aenter__()
                return database_context, database, create_engine(database.url, pool_size=2, application="tests")

            database_context, database, engine = runner.run(open_database())
            # While a tenant is alone, no slot is reserved from it.
            runner.run(database.add_tenant())
            environment = FairnessEnvironment(database, PostgresStore(engine, SilentBell(), lambda: NOW))

            @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
            @given(tenants=st.lists(TENANT, min_size=1, max_size=4), slots=st.integers(1, 8), spare=st.integers(0, 3))
            def check(tenants, slots, spare) -> None:
                runner.run(environment.check(tenants, slots, spare))

            try:
                check()
            finally:
                runner.run(engine.dispose())
                runner.run(database_context.__aexit__(None, None, None))

    await asyncio.to_thread(run_in_thread)


async def test_concurrent_claims_exceed_no_limit_and_share_no_row(system) -> None:
    async with open_isolated_database(system) as database:
        caller = await database.add_tenant()
        limited, free = await database.add_agent(caller, max_concurrency=3), await database.add_agent(caller)
        engine = create_engine(database.url, pool_size=8, application="tests")
        store = PostgresStore(engine, SilentBell(), lambda: NOW)
        async with store.transaction(caller) as tx:
            for agent_id in (limited, free):
                for _ in range(20):
                    await executions.start_execution(tx, caller, agent_id, ExecutionStart())

        async def claim(number: int) -> list[Execution]:
            async with store.autocommit() as tx:
                return await executions.claim_executions(tx, f"w{number}", LEASE, 4)

        claimed = [
            execution for batch in await asyncio.gather(*(claim(number) for number in range(6))) for execution in batch
        ]
        await engine.dispose()
    assert len({execution.id for execution in claimed}) == len(claimed) == 23
    assert Counter(execution.agent_id for execution in claimed) == {limited: 3, free: 20}


async def test_thousand_queued_runs_do_not_delay_another_tenant(system, acme: TenantClient) -> None:
    source = "import time\ndef handle(p):\n    time.sleep(0.2)\n    return {}\n"
    mine = await acme.deploy_agent(source)
    async with register_tenant(system.url) as other_client:
        theirs = await other_client.deploy_agent(source)
        await other_client.run_agent(theirs)
        async with asyncio.TaskGroup() as group:
            gate = asyncio.Semaphore(16)

            async def submit() -> None:
                async with gate:
                    await acme.start_execution(mine)

            for _ in range(1000):
                group.create_task(submit())
        submitted = await other_client.start_execution(theirs)
        ended = await other_client.wait_for_end(submitted["id"])
        assert ended["status"] == "completed"
        # How many of the thousand began while it waited: a slot or two each, not the queue.
        page = (await acme.http.get("/executions?limit=1000")).json()["items"]
        overtook = [
            execution
            for execution in page
            if execution["started_at"] and submitted["created_at"] < execution["started_at"] < ended["started_at"]
        ]
        waiting = [execution for execution in page if execution["status"] == "pending"]
        assert len(overtook) <= 3 * system.settings.run_slots, len(overtook)
        assert len(waiting) > 100, "the queue was empty before the other came: this showed nothing"
    await acme.http.delete(f"/agents/{mine}")
