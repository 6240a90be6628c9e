"""Who is next: whoever has the least running, within the limits of agents and tenants, first come first served."""

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
from tests.support.isolated_database import NOW, IsolatedDatabase, open_isolated_database
from tests.workers.test_lifecycle import Silent

LEASE = timedelta(seconds=10)
WHOLE = LaneShare()
# Of each agent: its limit, how many of its runs are held already, and how many wait.
AGENT = st.tuples(st.one_of(st.none(), st.integers(1, 4)), st.integers(0, 3), st.integers(0, 6))
TENANT = st.tuples(st.one_of(st.none(), st.integers(1, 5)), st.lists(AGENT, min_size=1, max_size=3))


def expected(
    waiting: list[Execution],
    held: Counter[str],
    owners: dict[str, str],
    limits: dict[str, int | None],
    slots: int,
    spare: int,
) -> list[str]:
    """The rule, said slowly: one claim after the other, each for whoever has the least running by then.

    The last `spare` of the slots are for tenants that have none. `owners` are the tenants of agents; `held` and
    `limits` are by id of either.
    """
    running, left, chosen = Counter(held), sorted(waiting, key=lambda one: one.id), list[str]()

    def free(one: Execution) -> bool:
        if len(chosen) >= slots - spare and running[one.tenant_id]:
            return False
        return all(running[name] < (limits[name] or 999) for name in (one.agent_id or "", one.tenant_id))

    for agent_id, count in held.items():
        running[owners[agent_id]] += count
    while len(chosen) < slots and any(map(free, left)):
        taken = min(filter(free, left), key=lambda one: (running[one.tenant_id], one.id))
        left.remove(taken)
        chosen.append(taken.id)
        running[taken.agent_id or ""] += 1
        running[taken.tenant_id] += 1
    return chosen


class World:
    """Tenants with agents, some runs of which are held and some wait."""

    def __init__(self, database: IsolatedDatabase, store: PostgresStore) -> None:
        self._database, self._store = database, store

    async def check(
        self, tenants: list[tuple[int | None, list[tuple[int | None, int, int]]]], slots: int, spare: int
    ) -> None:
        await self._database.owner.execute("TRUNCATE execution_events, executions, agent_versions, agents CASCADE")
        limits: dict[str, int | None] = {}
        owners: dict[str, str] = {}
        held, waiting = Counter[str](), list[Execution]()
        for bound, of_tenant in tenants:
            caller = await self._database.add_tenant()
            limits[caller.tenant_id] = bound
            for limit, running, pending in of_tenant:
                agent_id = await self._database.add_agent(caller)
                limits[agent_id], owners[agent_id], held[agent_id] = limit, caller.tenant_id, running
                await self._start(caller, agent_id, running)
                await self._claim(running)
                waiting += await self._start(caller, agent_id, pending)
                await self._hide()
        for row_id, limit in limits.items():
            table, key = ("agents", ids.decode_id("agent", row_id)) if row_id in owners else ("tenants", row_id)
            await self._database.owner.execute(f"UPDATE {table} SET max_concurrency = $2 WHERE id = $1", key, limit)
        await self._database.owner.execute("UPDATE executions SET status = 'pending' WHERE status = 'waiting'")
        claimed = [one.id for one in await self._claim(slots, LaneShare(reserved_slots=spare))]
        assert sorted(claimed) == sorted(expected(waiting, held, owners, limits, slots, spare))

    async def _start(self, caller: Caller, agent_id: str, count: int) -> list[Execution]:
        async with self._store.transaction(caller) as tx:
            return [await executions.start_execution(tx, caller, agent_id, ExecutionStart()) for _ in range(count)]

    async def _hide(self) -> None:
        # What shall wait must not be claimed as one of the held of the next agent.
        await self._database.owner.execute("UPDATE executions SET status = 'waiting' WHERE status = 'pending'")

    async def _claim(self, slots: int, share: LaneShare = WHOLE) -> list[Execution]:
        async with self._store.autocommit() as tx:
            return await executions.claim_executions(tx, "w", LEASE, slots, share=share)


async def test_the_claim_is_what_the_rule_says(system) -> None:
    """Any tenants, agents, limits and queues: the one statement claims what claiming one by one would."""

    def in_a_thread_of_its_own() -> None:
        with asyncio.Runner() as runner:

            async def opened():
                holding = open_isolated_database(system)
                database = await holding.__aenter__()
                return holding, database, create_engine(database.url, pool_size=2, application="tests")

            holding, database, engine = runner.run(opened())
            # Of a tenant that is alone, no slot is kept from it.
            runner.run(database.add_tenant())
            world = World(database, PostgresStore(engine, Silent(), lambda: NOW))

            @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
            @given(tenants=st.lists(TENANT, min_size=1, max_size=4), slots=st.integers(1, 8), spare=st.integers(0, 3))
            def check(tenants, slots, spare) -> None:
                runner.run(world.check(tenants, slots, spare))

            try:
                check()
            finally:
                runner.run(engine.dispose())
                runner.run(holding.__aexit__(None, None, None))

    await asyncio.to_thread(in_a_thread_of_its_own)


async def test_two_workers_that_claim_at_once_pass_no_limit_and_share_no_row(system) -> None:
    async with open_isolated_database(system) as database:
        caller = await database.add_tenant()
        limited, free = await database.add_agent(caller, max_concurrency=3), await database.add_agent(caller)
        engine = create_engine(database.url, pool_size=8, application="tests")
        store = PostgresStore(engine, Silent(), lambda: NOW)
        async with store.transaction(caller) as tx:
            for agent_id in (limited, free):
                for _ in range(20):
                    await executions.start_execution(tx, caller, agent_id, ExecutionStart())

        async def claim(number: int) -> list[Execution]:
            async with store.autocommit() as tx:
                return await executions.claim_executions(tx, f"w{number}", LEASE, 4)

        claimed = [one for batch in await asyncio.gather(*(claim(number) for number in range(6))) for one in batch]
        await engine.dispose()
    assert len({one.id for one in claimed}) == len(claimed) == 23
    assert Counter(one.agent_id for one in claimed) == {limited: 3, free: 20}


async def test_a_thousand_queued_runs_of_one_do_not_delay_the_one_of_another(system, acme: TenantClient) -> None:
    source = "import time\ndef handle(p):\n    time.sleep(0.2)\n    return {}\n"
    mine = await acme.deploy_agent(source)
    async with register_tenant(system.url) as other:
        theirs = await other.deploy_agent(source)
        await other.run_agent(theirs)
        async with asyncio.TaskGroup() as group:
            gate = asyncio.Semaphore(16)

            async def submit() -> None:
                async with gate:
                    await acme.start_execution(mine)

            for _ in range(1000):
                group.create_task(submit())
        submitted = await other.start_execution(theirs)
        ended = await other.wait_for_end(submitted["id"])
        assert ended["status"] == "completed"
        # How many of the thousand began while it waited: a slot or two each, not the queue.
        page = (await acme.http.get("/executions?limit=1000")).json()["items"]
        overtook = [
            one
            for one in page
            if one["started_at"] and submitted["created_at"] < one["started_at"] < ended["started_at"]
        ]
        waiting = [one for one in page if one["status"] == "pending"]
        assert len(overtook) <= 3 * system.settings.run_slots, len(overtook)
        assert len(waiting) > 100, "the queue was empty before the other came: this showed nothing"
    await acme.http.delete(f"/agents/{mine}")
