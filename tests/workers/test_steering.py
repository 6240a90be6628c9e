"""Priorities order a tenant's own runs, and neither many delayed runs nor many blocked ones delay anybody else."""

import json
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from domain import executions
from domain.executions import ExecutionStart
from domain.shared import ids
from domain.shared.access import Caller
from tests.support.gate_environment import GateEnvironment, open_gate_environment
from workers.upkeep import GateKeeper
from workers.upkeep.gates import MAX_FREED_RUNS

DELAYED_RUNS = 10_000
BLOCKED_RUNS = 100_000
_COPIED = "tenant_id, user_id, run_name, kind, agent_id, agent_version_id, status, input_data, attempt, max_attempts"
_COPIED_AT_ONCE = (
    f"{_COPIED}, timeout, steps_total, steps_completed, total_cost, last_seq, lane, created_at, updated_at"
)


@pytest.fixture
async def environment(system) -> AsyncIterator[GateEnvironment]:
    async with open_gate_environment(system) as opened:
        yield opened


async def copy_run(environment: GateEnvironment, execution_id: str, count: int, columns: str, values: str) -> None:
    """Write copies of a run straight to the database, `n` is the number of each."""
    await environment.database.owner.execute(
        f"INSERT INTO executions (id, {_COPIED_AT_ONCE}, {columns}) "
        f"SELECT gen_random_uuid(), {_COPIED_AT_ONCE}, {values} FROM executions, generate_series(1, $2) AS n "
        "WHERE id = $1",
        ids.decode_id("exec", execution_id),
        count,
    )


async def start_for(environment: GateEnvironment, caller: Caller, agent_id: str, **fields: object) -> str:
    async with environment.store.transaction(caller) as tx:
        return (await executions.start_execution(tx, caller, agent_id, ExecutionStart(**fields))).id


async def add_tenant_with_agent(environment: GateEnvironment) -> tuple[Caller, str]:
    caller = await environment.database.add_tenant()
    return caller, await environment.database.add_agent(caller)


async def test_a_higher_priority_goes_first_within_a_tenant(environment: GateEnvironment) -> None:
    other_agent = await environment.database.add_agent(environment.caller)
    low = await environment.start(priority=-10)
    usual = await start_for(environment, environment.caller, other_agent)
    high = await environment.start(priority=10)
    assert [(await environment.claim_ids(1))[0] for _ in range(3)] == [high.id, usual, low.id]


async def test_a_priority_is_nothing_to_another_tenant(environment: GateEnvironment) -> None:
    other, other_agent = await add_tenant_with_agent(environment)
    urgent = [await environment.start(priority=10) for _ in range(5)]
    modest = await start_for(environment, other, other_agent, priority=-10)
    assert sorted(await environment.claim_ids(2)) == sorted([urgent[0].id, modest])


async def test_the_lowest_priority_does_not_starve(environment: GateEnvironment) -> None:
    """A run of priority -10 is claimed after twenty minutes in which one of priority 10 came every minute."""
    low = await environment.start(priority=-10)
    claimed = list[str]()
    for _ in range(25):
        await environment.start(priority=10)
        claimed += await environment.claim_ids(1)
        environment.now += timedelta(minutes=1)
    assert claimed.index(low.id) == 20


async def test_a_key_admits_by_priority_and_a_retry_keeps_it(environment: GateEnvironment) -> None:
    holding = await environment.start(concurrency_key="k")
    low, high = [await environment.start(concurrency_key="k", priority=priority) for priority in (-1, 1)]
    (claimed,) = await environment.claim()
    assert claimed.id == holding.id
    await environment.settle(claimed)
    (claimed,) = await environment.claim()
    assert claimed.id == high.id
    async with environment.store.transaction(environment.caller) as tx:
        retried = await executions.retry_execution(tx, environment.caller, holding.id)
    assert (retried.concurrency_key, retried.concurrency_limit, retried.blocked) == ("k", 1, "busy")
    await environment.settle(claimed)
    assert await environment.claim_ids() == [retried.id]
    assert (await environment.get(low.id)).blocked == "busy"


async def test_a_policy_neither_counts_nor_replaces_delayed_runs(environment: GateEnvironment) -> None:
    agent = await environment.database.add_agent(environment.caller, max_concurrency=1, policy="replace")
    delayed = await start_for(environment, environment.caller, agent, delay_seconds=60)
    first = await start_for(environment, environment.caller, agent)
    assert (await environment.get(first)).status == "pending"
    second = await start_for(environment, environment.caller, agent)
    states = [(await environment.get(execution_id)).status for execution_id in (delayed, first, second)]
    assert states == ["pending", "cancelled", "pending"]


async def test_ten_thousand_runs_due_at_once_delay_no_other_tenant(environment: GateEnvironment) -> None:
    """They are freed in small batches, and each run that another tenant starts meanwhile is in the next claim."""
    first = await environment.start(delay_seconds=60)
    due_at = "timestamptz '2030-01-01 00:01:00Z'"
    values = f"{due_at}, {due_at}, 'delayed'"
    await copy_run(environment, first.id, DELAYED_RUNS - 1, "run_at, turn_at, blocked", values)
    other, other_agent = await add_tenant_with_agent(environment)
    environment.now += timedelta(seconds=60)
    keeper, freed, claimed_ids = GateKeeper(environment.store), 0, set[str]()
    waiting = "SELECT count(*) FROM executions WHERE blocked = 'delayed'"
    while (await keeper.run_round()).did_work:
        remaining = await environment.database.owner.fetchval(waiting)
        assert DELAYED_RUNS - remaining - freed <= MAX_FREED_RUNS
        freed = DELAYED_RUNS - remaining
        theirs = await start_for(environment, other, other_agent)
        claimed = await environment.claim(8)
        assert theirs in [execution.id for execution in claimed], "it waited for more than one claim"
        claimed_ids |= {execution.id for execution in claimed}
        await environment.settle(*claimed)
    assert freed == DELAYED_RUNS
    while claimed := await environment.claim(2000):
        assert not claimed_ids & {execution.id for execution in claimed}
        claimed_ids |= {execution.id for execution in claimed}
    count = await environment.database.owner.fetchval("SELECT count(*) FROM executions WHERE attempt = 1")
    assert count == len(claimed_ids) == await environment.database.owner.fetchval("SELECT count(*) FROM executions")


async def count_claim_buffers(environment: GateEnvironment) -> int:
    """Return how many pages a claim of eight runs reads and writes; it is undone."""
    owner = environment.database.owner
    claim = "claim_runs('w', 8, now(), now() + interval '10 s', '{}', NULL, 'run')"
    transaction = owner.transaction()
    await transaction.start()
    text = await owner.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT * FROM {claim}")
    await transaction.rollback()
    plan = json.loads(text)[0]["Plan"]
    assert plan["Actual Rows"] == 8
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


async def test_blocked_runs_do_not_slow_claims_down(environment: GateEnvironment) -> None:
    """A claim reads about as many pages beside 100,000 blocked runs as without them."""
    runs = [await environment.start() for _ in range(100)]
    owner = environment.database.owner
    await owner.execute("VACUUM ANALYZE executions")
    before = await count_claim_buffers(environment)
    half = BLOCKED_RUNS // 2
    await copy_run(environment, runs[0].id, half, "run_at, blocked", "now() + n * interval '1 s', 'delayed'")
    columns = "concurrency_key, concurrency_limit, blocked, gate"
    await copy_run(environment, runs[0].id, half, columns, "'k', 1, 'busy', 'key'")
    await owner.execute("VACUUM ANALYZE executions")
    after = await count_claim_buffers(environment)
    assert after <= before * 1.5, (before, after)
