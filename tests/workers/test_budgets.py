"""Budgets hold: under any sequence of calls they are what a plain model says, and no crowd of callers passes one."""

import asyncio
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domain import costs
from domain.costs import (
    Budget,
    BudgetReservation,
    CostAttribution,
    NewBudget,
    PatchBudget,
    budgets,
    find_period_start,
    format_dollars,
    nanos_from_usd,
)
from domain.shared import ids
from domain.shared.errors import DomainError
from domain.shared.pages import Page
from infra.postgres.db import create_engine
from infra.postgres.store import PostgresStore
from tests.support.budget_model import (
    AGENTS,
    BUDGET,
    KEYS,
    NOW,
    STEP,
    WORKFLOWS,
    BudgetEnvironment,
    CheckedBudgets,
    add_execution,
    build_billed_call,
)
from tests.support.clients import TenantClient
from tests.support.isolated_database import IsolatedDatabase, open_isolated_database
from tests.workers.test_lifecycle import Silent
from tests.workers.test_stats import own


@pytest.fixture
async def bench(system):
    async with open_isolated_database(system) as database:
        clock = [NOW]
        store = PostgresStore(
            create_engine(database.url, pool_size=12, application="tests"), Silent(), lambda: clock[0]
        )
        yield BudgetEnvironment(database, store, await database.add_tenant(), clock)
        await store.close()


async def test_any_sequence_is_what_a_plain_model_says(system) -> None:
    def body(runner: asyncio.Runner, database: IsolatedDatabase, store: PostgresStore, clock: list[datetime]) -> None:
        async def run(steps: list[Any]) -> None:
            clock[0] = NOW
            caller = await database.add_tenant()
            checked = CheckedBudgets(
                BudgetEnvironment(database, store, caller, clock), [await add_execution(database, caller) for _ in "12"]
            )
            for name, *drawn in steps:
                await getattr(checked, name)(*drawn)
                await checked.check()

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(first=BUDGET, steps=st.lists(STEP, min_size=5, max_size=40))
        def check(first: Any, steps: list[Any]) -> None:
            runner.run(run([("create", first), *steps]))

        check()

    await own(system, body)


async def test_a_crowd_passes_no_limit_and_comes_close(bench: BudgetEnvironment) -> None:
    """50 callers at once, over budgets that overlap, while others lock executions and change nothing else."""
    dice, done = random.Random(7), asyncio.Event()
    limits = {
        (await bench.add_budget("tenant", None, 2.0)).id: 2.0,
        (await bench.add_budget("tenant", None, 5.0, "day")).id: 5.0,
        **{(await bench.add_budget("agent", agent, 0.9, "week")).id: 0.9 for agent in AGENTS},
        **{(await bench.add_budget("key", key, 1.3, "month")).id: 1.3 for key in KEYS},
    }
    runs = [await add_execution(bench.database, bench.caller) for _ in range(10)]
    granted, refused = [0], [0]

    async def call(number: int) -> None:
        own_dice = random.Random(number)
        spender = CostAttribution(
            execution_id=runs[number % len(runs)],
            agent_id=own_dice.choice([*AGENTS, None]),
            key_id=own_dice.choice([*KEYS, None]),
            cost_limit=0.3,
        )
        patience = 0
        while patience < 4:
            wanted = own_dice.choice([0.001, 0.003, 0.02, 0.05]) if patience < 2 else 0.001
            try:
                hold = await bench.reserve_budget(spender, wanted, wanted / own_dice.choice([1, 4]))
            except DomainError as error:
                assert error.code == "budget_exceeded"
                patience, refused[0] = patience + 1, refused[0] + 1
                continue
            granted[0] += 1
            await asyncio.sleep(own_dice.random() / 100)
            await bench.settle_call(hold.id, spender, hold.amount_usd * own_dice.choice([0.2, 0.9, 1, 1]))

    async def lock() -> None:
        """As batches of other writers do."""
        while not done.is_set():
            chosen = [ids.decode_id("exec", one) for one in dice.sample(runs, 6)]
            async with bench.database.owner.transaction():
                query = "SELECT FROM executions WHERE id = ANY ($1) ORDER BY id FOR UPDATE"
                await bench.database.owner.execute(query, chosen)
                await asyncio.sleep(0.002)
            await asyncio.sleep(0.002)

    async def watch() -> None:
        while not done.is_set():
            for one in await bench.list_budgets():
                assert nanos_from_usd(one.spent_usd) + nanos_from_usd(one.held_usd) <= nanos_from_usd(one.limit_usd), (
                    one
                )
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as around:
        around.create_task(lock())
        around.create_task(watch())
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(50):
                    group.create_task(call(number))
        finally:
            done.set()
    found = {one.id: one for one in await bench.list_budgets()}
    assert all(nanos_from_usd(found[one].spent_usd) <= nanos_from_usd(limit) for one, limit in limits.items())
    assert all(one.held_usd == 0 for one in found.values())
    spent_by_runs = [await bench.get_total_cost(run) for run in runs]
    assert all(nanos_from_usd(spent) <= nanos_from_usd(0.3) for spent in spent_by_runs)
    # Whoever gave up was refused a tenth of a cent. So there is no room for that left anywhere it was asked for.
    whole = [one for one in found.values() if one.scope == "tenant"]
    assert (
        sum(map(nanos_from_usd, spent_by_runs))
        == nanos_from_usd(whole[0].spent_usd)
        == nanos_from_usd(whole[1].spent_usd)
    )
    assert 2.0 - 0.001 < whole[0].spent_usd <= 2.0
    assert granted[0] > 50
    assert refused[0] > 50


async def test_a_crowd_of_one_run_passes_no_limit_of_its_own(bench: BudgetEnvironment) -> None:
    """There is no budget here that would make them come one by one."""
    spender = CostAttribution(execution_id=await add_execution(bench.database, bench.caller), cost_limit=1.0)

    async def call(number: int) -> None:
        amount = 0.04 + number / 1000
        try:
            hold = await bench.reserve_budget(spender, amount)
        except DomainError:
            return
        await asyncio.sleep(0.02)
        await bench.settle_call(hold.id, spender, amount)

    await asyncio.gather(*map(call, range(50)))
    assert 1.0 - 0.09 <= await bench.get_total_cost(spender.execution_id or "") <= 1.0


async def test_a_budget_made_in_the_middle_has_what_was_spent(bench: BudgetEnvironment) -> None:
    """Also while calls are being settled: each is counted once."""
    agent = await bench.database.add_agent(bench.caller)
    spenders = [CostAttribution(agent_id=agent), CostAttribution(agent_id=AGENTS[0]), CostAttribution()]
    for days, cost in ((40, 0.5), (20, 0.25), (2, 0.125), (0, 0.0625)):
        bench.clock[0] = NOW - timedelta(days=days)
        for spender in spenders:
            await bench.settle_call(None, spender, cost)
    bench.clock[0], done = NOW, asyncio.Event()
    made_meanwhile: list[Budget] = []

    async def spend(spender: CostAttribution) -> None:
        while not done.is_set():
            await bench.settle_call(None, spender, 0.001)

    async def create() -> None:
        try:
            for _ in range(4):
                for period in ("day", "week", "month", "total"):
                    for scope, subject in (("tenant", None), ("agent", agent)):
                        wanted = NewBudget(scope=scope, subject=subject, limit_usd=1000, period=period)
                        made_meanwhile.append(
                            await bench.run_transaction(lambda tx, w=wanted: budgets.create_budget(tx, bench.caller, w))
                        )
        finally:
            done.set()

    await asyncio.gather(*(spend(spender) for spender in spenders), create())
    query = (
        "SELECT coalesce(sum((cost_usd * 1e9)::bigint), 0)::bigint FROM costs WHERE tenant_id = $1 "
        "AND ($2::uuid IS NULL OR agent_id = $2) AND created_at >= $3"
    )
    for one in made_meanwhile:
        subject = None if one.subject is None else ids.decode_id("agent", one.subject)
        since = one.period_start or datetime(1, 1, 1, tzinfo=UTC)
        exact = await bench.database.owner.fetchval(query, bench.caller.tenant_id, subject, since)
        assert nanos_from_usd((await bench.get_budget(one.id)).spent_usd) == exact


async def test_without_a_limit_nothing_is_written_and_a_free_call_is_always_let_through(
    bench: BudgetEnvironment,
) -> None:
    spender = CostAttribution(execution_id=await add_execution(bench.database, bench.caller), agent_id=AGENTS[0])
    await bench.add_budget("agent", AGENTS[1], 0.01)
    assert await bench.reserve_budget(spender, 5.0) == BudgetReservation(id=None, amount_usd=5.0)
    assert await bench.database.owner.fetchval("SELECT count(*) FROM cost_holds") == 0
    spent = await bench.add_budget("tenant", None, 0.01)
    await bench.settle_call(None, spender, 0.02)
    assert (await bench.get_budget(spent.id)).status == "exhausted"
    assert await bench.reserve_budget(spender, 0.0) == BudgetReservation(id=None, amount_usd=0.0)
    assert (await bench.settle_call(None, spender, 0.0)).warnings == []
    with pytest.raises(DomainError, match="budget"):
        await bench.reserve_budget(spender, 0.000000001)


async def test_a_refusal_says_which_budget_and_how_much_is_left(bench: BudgetEnvironment) -> None:
    run = await add_execution(bench.database, bench.caller)
    spender = CostAttribution(execution_id=run, agent_id=AGENTS[0], key_id=KEYS[0], workflow_id=WORKFLOWS[0])
    whole = await bench.add_budget("tenant", None, 5.0, "month")
    await bench.settle_call(None, spender, 4.9988)

    async def refused(wanted: float, **fields: Any) -> str:
        with pytest.raises(DomainError) as caught:
            await bench.reserve_budget(
                CostAttribution(execution_id=run, key_id=KEYS[0], agent_id=AGENTS[0], **fields), wanted
            )
        assert caught.value.code == "budget_exceeded"
        return caught.value.detail

    said = "The tenant's budget of $5.00 per month has $0.0012 left; this call needs up to $0.0100."
    assert await refused(0.01) == said
    # What is needed less than the rest is granted in part.
    hold = await bench.reserve_budget(spender, 0.01, 0.001)
    assert hold.amount_usd == 0.0012
    assert (await bench.get_budget(whole.id)).remaining_usd == 0
    await bench.settle_call(hold.id, spender, 0.0)
    await bench.run_transaction(lambda tx: budgets.update_budget(tx, whole.id, PatchBudget(enabled=False)))
    await bench.add_budget("key", KEYS[0], 0.5, "day")
    assert (
        await refused(1.5) == "The API key's budget of $0.5000 per day has $0.5000 left; this call needs up to $1.50."
    )
    await bench.add_budget("agent", AGENTS[0], 0.000001234)
    said = "The agent's budget of $0.000001234 in total has $0.000001234 left; this call needs up to $0.000002000."
    assert await refused(0.000002) == said
    await bench.settle_call(None, spender, 0.1)
    assert "has $0.00 left" in await refused(0.000002)
    assert await refused(0.1, cost_limit=3.0) == (
        "The run's cost limit of $3.00 has $0.00 left; this call needs up to $0.1000."
    )


async def test_a_warning_comes_once_in_a_period_and_anew_after_the_limit_was_raised(bench: BudgetEnvironment) -> None:
    run = await add_execution(bench.database, bench.caller)
    spender = CostAttribution(execution_id=run, cost_limit=10.0)
    budget = await bench.add_budget("tenant", None, 1.0, "day")

    async def warned(cost: float) -> list[str]:
        return [one.message for one in (await bench.settle_call(None, spender, cost)).warnings]

    assert await warned(0.79) == []
    assert await warned(0.02) == ["The tenant's budget of $1.00 per day is spent to 81 %: $0.8100."]
    found = await bench.get_budget(budget.id)
    assert (found.status, found.warned_at) == ("warned", NOW)
    assert await warned(0.1) == []
    # Two hours on it is tomorrow.
    bench.clock[0] = NOW + timedelta(hours=2)
    found = await bench.get_budget(budget.id)
    assert (found.status, found.warned_at, found.spent_usd) == ("ok", None, 0)
    assert await warned(0.5) == []
    assert await warned(0.5) == ["The tenant's budget of $1.00 per day is spent to 100 %: $1.00."]
    assert (await bench.get_budget(budget.id)).status == "exhausted"
    patched = await bench.run_transaction(lambda tx: budgets.update_budget(tx, budget.id, PatchBudget(limit_usd=2.0)))
    assert (patched.status, patched.warned_at) == ("ok", None)
    assert len(await warned(0.7)) == 1
    # The run's own limit: 2.61 of 10 dollars so far.
    await bench.run_transaction(lambda tx: budgets.delete_budget(tx, budget.id))
    assert await warned(5.38) == []
    assert await warned(0.01) == ["The run's cost limit of $10.00 is spent to 80 %: $8.00."]
    assert await warned(1.0) == []


async def test_each_warning_comes_once_from_many_at_once(bench: BudgetEnvironment) -> None:
    run = await add_execution(bench.database, bench.caller)
    spender = CostAttribution(execution_id=run, cost_limit=0.5)
    await bench.add_budget("tenant", None, 0.5)
    settled = await asyncio.gather(*(bench.settle_call(None, spender, 0.01) for _ in range(50)))
    scopes = sorted(one.scope for each in settled for one in each.warnings)
    assert scopes == ["run", "tenant"]
    assert await bench.get_total_cost(run) == 0.5


async def test_a_killed_worker_s_hold_lapses_and_is_settled_all_the_same(bench: BudgetEnvironment) -> None:
    run = await add_execution(bench.database, bench.caller)
    spender = CostAttribution(execution_id=run, cost_limit=1.0)
    budget = await bench.add_budget("tenant", None, 1.0)
    lost = await bench.reserve_budget(spender, 0.9, seconds=30)
    with pytest.raises(DomainError, match=r"\$0\.1000 left"):
        await bench.reserve_budget(spender, 0.2)
    bench.clock[0] += timedelta(seconds=30)
    assert (await bench.get_budget(budget.id)).held_usd == 0
    other = await bench.reserve_budget(spender, 0.2)
    # Swept by the next one.
    assert await bench.database.owner.fetchval("SELECT count(*) FROM cost_holds") == 1
    # The run was cancelled meanwhile; the money is gone anyway.
    await bench.database.owner.execute("UPDATE executions SET status = 'cancelled'")
    await bench.settle_call(lost.id, spender, 0.9)
    await bench.settle_call(other.id, spender, 0.15)
    found = await bench.get_budget(budget.id)
    assert (found.spent_usd, found.held_usd, found.remaining_usd, found.status) == (1.05, 0, 0, "exhausted")
    assert await bench.get_total_cost(run) == 1.05


async def test_the_same_cost_counts_once(bench: BudgetEnvironment) -> None:
    """Whoever lost the answer to a commit tries again."""
    run = await add_execution(bench.database, bench.caller)
    spender, cost_id = CostAttribution(execution_id=run), ids.generate_id("cost")
    budget = await bench.add_budget("tenant", None, 1.0)
    found = [
        await bench.run_transaction(
            lambda tx: costs.settle_call(tx, None, spender, build_billed_call(0.9), cost_id=cost_id)
        )
        for _ in range(3)
    ]
    assert [(one.cost_id, one.is_repeat, len(one.warnings)) for one in found] == [
        (cost_id, False, 1),
        (cost_id, True, 0),
        (cost_id, True, 0),
    ]
    assert (await bench.get_budget(budget.id)).spent_usd == await bench.get_total_cost(run) == 0.9
    listed = await bench.run_transaction(lambda tx: costs.list_costs(tx, costs.CostFilter(), Page(limit=1)))
    assert (listed.total, listed.total_cost) == (1, 0.9)
    assert (await bench.run_transaction(lambda tx: costs.summarize_costs(tx, "day"))).total_cost == 0.9


async def test_a_clock_that_is_behind_counts_in_the_newer_period(bench: BudgetEnvironment) -> None:
    budget = await bench.add_budget("tenant", None, 1.0, "day")
    bench.clock[0] = NOW + timedelta(hours=2)
    await bench.settle_call(None, CostAttribution(), 0.5)
    bench.clock[0] = NOW
    await bench.settle_call(None, CostAttribution(), 0.25)
    bench.clock[0] = NOW + timedelta(hours=2)
    assert (await bench.get_budget(budget.id)).spent_usd == 0.75


@settings(max_examples=300, deadline=None)
@given(at=st.datetimes(datetime(2001, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)))
def test_periods_begin_where_calendars_say(at: datetime) -> None:
    day, week, month = (find_period_start(period, at) for period in ("day", "week", "month"))
    assert day <= at < day + timedelta(days=1)
    assert week <= at < week + timedelta(days=7)
    assert (week.weekday(), month.day, month.month) == (0, 1, at.month)


async def test_postgres_begins_periods_where_we_do(bench: BudgetEnvironment) -> None:
    dice = random.Random(3)
    times = [NOW + timedelta(seconds=dice.uniform(-2e9, 2e9)) for _ in range(300)]
    times += [datetime(2028, 1, 1, tzinfo=UTC), datetime(2028, 2, 29, 23, 59, 59, 999999, tzinfo=UTC)]
    for period in ("day", "week", "month", "total"):
        query = "SELECT budget_began($1, t) FROM unnest($2::timestamptz[]) WITH ORDINALITY AS u(t, n) ORDER BY n"
        found = await bench.database.owner.fetch(query, period, times)
        assert [record[0] for record in found] == [find_period_start(period, at) for at in times]


@given(amount=st.integers(0, 10**13))
def test_sentences_round_to_the_safe_side(amount: int) -> None:
    down, up = (float(format_dollars(amount, up).removeprefix("$")) for up in (False, True))
    assert nanos_from_usd(down) <= amount <= nanos_from_usd(up)


# The API.


async def test_budgets_over_http(acme: TenantClient) -> None:
    key_id = (await acme.http.post("/api-keys", json={"name": "the only"})).json()["id"]
    agent = await acme.create_agent("coder")
    wanted = {"scope": "agent", "subject": "coder", "limit_usd": 12.5, "period": "week"}
    answer = await acme.http.post("/budgets", json=wanted)
    assert answer.status_code == 201, answer.text
    budget = answer.json()
    today = datetime.now(UTC).date()
    monday = datetime.fromisoformat(budget["period_start"])
    assert (monday.date(), monday.weekday()) == (today - timedelta(days=today.weekday()), 0)
    assert budget | wanted | {"subject": agent["id"]} == budget
    shown = ("spent_usd", "held_usd", "remaining_usd", "status", "warned_at", "enabled")
    assert [budget[name] for name in shown] == [0, 0, 12.5, "ok", None, True]
    for subject in (key_id, "the only"):
        answer = await acme.http.post("/budgets", json=wanted | {"scope": "key", "subject": subject, "period": "total"})
        assert (answer.json()["subject"], answer.json()["period_start"]) == (key_id, None)
    listed = (await acme.http.get("/budgets?limit=2")).json()
    assert (listed["total"], listed["has_more"], len(listed["items"])) == (3, True, 2)
    path = f"/budgets/{budget['id']}"
    patched = (await acme.http.patch(path, json={"limit_usd": 3, "enabled": False})).json()
    assert (patched["limit_usd"], patched["remaining_usd"], patched["enabled"]) == (3, 3, False)
    assert (await acme.http.get(path)).json() == patched
    assert (await acme.http.delete(path)).status_code == 204
    for method in ("GET", "PATCH", "DELETE"):
        assert (await acme.http.request(method, path, json={} if method == "PATCH" else None)).status_code == 404


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"limit_usd": 0}, "limit_usd"),
        ({"limit_usd": -1}, "limit_usd"),
        ({"limit_usd": 1e-10}, "limit_usd"),
        ({"limit_usd": 1e10}, "limit_usd"),
        ({"period": "year"}, "period"),
        ({"scope": "run"}, "scope"),
        ({"subject": "x"}, "subject"),
        ({"scope": "agent"}, "subject"),
        ({"scope": "agent", "subject": "nobody"}, "subject"),
        ({"scope": "key", "subject": "nobody"}, "subject"),
        ({"scope": "workflow", "subject": "nobody"}, "subject"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_what_is_wrong_with_a_budget_is_named(acme: TenantClient, change: dict[str, Any], field: str) -> None:
    answer = await acme.http.post("/budgets", json={"scope": "tenant", "limit_usd": 1, "period": "day", **change})
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] == field


async def test_a_name_of_two_keys_is_not_enough(acme: TenantClient) -> None:
    for _ in range(2):
        await acme.create_key(name="twin")
    wanted = {"scope": "key", "subject": "twin", "limit_usd": 1, "period": "day"}
    answer = await acme.http.post("/budgets", json=wanted)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "subject")


async def test_budgets_of_others_and_scopes(acme: TenantClient, other_tenant: TenantClient) -> None:
    wanted = {"scope": "agent", "subject": (await acme.create_agent())["id"], "limit_usd": 1, "period": "day"}
    assert (await other_tenant.http.post("/budgets", json=wanted)).status_code == 422
    async with acme.open_client(await acme.create_key(scopes=["read:costs"])) as reader:
        assert (await reader.get("/budgets")).status_code == 200
        assert (await reader.post("/budgets", json=wanted)).status_code == 403
    async with acme.open_client(await acme.create_key(scopes=["write:costs"])) as writer:
        made_of_it = await writer.post("/budgets", json=wanted, headers={"Idempotency-Key": "once"})
        again = await writer.post("/budgets", json=wanted, headers={"Idempotency-Key": "once"})
        assert made_of_it.status_code == 201
        assert again.json() == made_of_it.json()
    assert (await other_tenant.http.get("/budgets")).json()["items"] == []
