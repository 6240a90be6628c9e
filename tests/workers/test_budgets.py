"""Budgets hold: after any sequence of calls they equal a plain model, and no number of concurrent callers exceeds one."""

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
from tests.support.isolated_database import IsolatedDatabase, SilentBell, open_isolated_database
from tests.support.stats_environment import run_property_test


@pytest.fixture
async def environment(system):
    async with open_isolated_database(system) as database:
        clock = [NOW]
        store = PostgresStore(
            create_engine(database.url, pool_size=12, application="tests"), SilentBell(), lambda: clock[0]
        )
        yield BudgetEnvironment(database, store, await database.add_tenant(), clock)
        await store.close()


async def test_any_sequence_of_calls_matches_the_model(system) -> None:
    def run_examples(
        runner: asyncio.Runner, database: IsolatedDatabase, store: PostgresStore, clock: list[datetime]
    ) -> None:
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

    await run_property_test(system, run_examples)


async def test_concurrent_calls_exceed_no_limit_and_come_close(environment: BudgetEnvironment) -> None:
    """Call 50 times at once under overlapping budgets, while other transactions lock the executions."""
    dice, done = random.Random(7), asyncio.Event()
    limits = {
        (await environment.add_budget("tenant", None, 2.0)).id: 2.0,
        (await environment.add_budget("tenant", None, 5.0, "day")).id: 5.0,
        **{(await environment.add_budget("agent", agent, 0.9, "week")).id: 0.9 for agent in AGENTS},
        **{(await environment.add_budget("key", key, 1.3, "month")).id: 1.3 for key in KEYS},
    }
    runs = [await add_execution(environment.database, environment.caller) for _ in range(10)]
    granted, refused = [0], [0]

    async def make_call(number: int) -> None:
        dice_of_call = random.Random(number)
        spender = CostAttribution(
            execution_id=runs[number % len(runs)],
            agent_id=dice_of_call.choice([*AGENTS, None]),
            key_id=dice_of_call.choice([*KEYS, None]),
            cost_limit=0.3,
        )
        patience = 0
        while patience < 4:
            amount = dice_of_call.choice([0.001, 0.003, 0.02, 0.05]) if patience < 2 else 0.001
            try:
                reservation = await environment.reserve_budget(spender, amount, amount / dice_of_call.choice([1, 4]))
            except DomainError as error:
                assert error.code == "budget_exceeded"
                patience, refused[0] = patience + 1, refused[0] + 1
                continue
            granted[0] += 1
            await asyncio.sleep(dice_of_call.random() / 100)
            await environment.settle_call(
                reservation.id, spender, reservation.amount_usd * dice_of_call.choice([0.2, 0.9, 1, 1])
            )

    async def lock_executions() -> None:
        """Lock in batches, as other writers do."""
        while not done.is_set():
            row_ids = [ids.decode_id("exec", execution_id) for execution_id in dice.sample(runs, 6)]
            async with environment.database.owner.transaction():
                query = "SELECT FROM executions WHERE id = ANY ($1) ORDER BY id FOR UPDATE"
                await environment.database.owner.execute(query, row_ids)
                await asyncio.sleep(0.002)
            await asyncio.sleep(0.002)

    async def check_budgets() -> None:
        while not done.is_set():
            for budget in await environment.list_budgets():
                assert nanos_from_usd(budget.spent_usd) + nanos_from_usd(budget.held_usd) <= nanos_from_usd(
                    budget.limit_usd
                ), budget
            await asyncio.sleep(0.01)

    async with asyncio.TaskGroup() as background:
        background.create_task(lock_executions())
        background.create_task(check_budgets())
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(50):
                    group.create_task(make_call(number))
        finally:
            done.set()
    budget_by_id = {budget.id: budget for budget in await environment.list_budgets()}
    assert all(
        nanos_from_usd(budget_by_id[budget_id].spent_usd) <= nanos_from_usd(limit)
        for budget_id, limit in limits.items()
    )
    assert all(budget.held_usd == 0 for budget in budget_by_id.values())
    spent_by_runs = [await environment.get_total_cost(run) for run in runs]
    assert all(nanos_from_usd(spent) <= nanos_from_usd(0.3) for spent in spent_by_runs)
    # Each caller gave up after it was refused a tenth of a cent, so no budget that applied has that much left.
    tenant_budgets = [budget for budget in budget_by_id.values() if budget.scope == "tenant"]
    assert (
        sum(map(nanos_from_usd, spent_by_runs))
        == nanos_from_usd(tenant_budgets[0].spent_usd)
        == nanos_from_usd(tenant_budgets[1].spent_usd)
    )
    assert 2.0 - 0.001 < tenant_budgets[0].spent_usd <= 2.0
    assert granted[0] > 50
    assert refused[0] > 50


async def test_concurrent_calls_of_one_run_stay_within_its_cost_limit(environment: BudgetEnvironment) -> None:
    """Run without a budget, whose lock would make the calls wait for each other."""
    spender = CostAttribution(
        execution_id=await add_execution(environment.database, environment.caller), cost_limit=1.0
    )

    async def make_call(number: int) -> None:
        amount = 0.04 + number / 1000
        try:
            reservation = await environment.reserve_budget(spender, amount)
        except DomainError:
            return
        await asyncio.sleep(0.02)
        await environment.settle_call(reservation.id, spender, amount)

    await asyncio.gather(*map(make_call, range(50)))
    assert 1.0 - 0.09 <= await environment.get_total_cost(spender.execution_id or "") <= 1.0


async def test_new_budget_counts_what_was_spent_before(environment: BudgetEnvironment) -> None:
    """Count each call once, also while calls are being settled."""
    agent = await environment.database.add_agent(environment.caller)
    spenders = [CostAttribution(agent_id=agent), CostAttribution(agent_id=AGENTS[0]), CostAttribution()]
    for days, cost in ((40, 0.5), (20, 0.25), (2, 0.125), (0, 0.0625)):
        environment.clock[0] = NOW - timedelta(days=days)
        for spender in spenders:
            await environment.settle_call(None, spender, cost)
    environment.clock[0], done = NOW, asyncio.Event()
    new_budgets: list[Budget] = []

    async def spend(spender: CostAttribution) -> None:
        while not done.is_set():
            await environment.settle_call(None, spender, 0.001)

    async def create() -> None:
        try:
            for _ in range(4):
                for period in ("day", "week", "month", "total"):
                    for scope, subject in (("tenant", None), ("agent", agent)):
                        new_budget = NewBudget(scope=scope, subject=subject, limit_usd=1000, period=period)
                        new_budgets.append(
                            await environment.run_transaction(
                                lambda tx, w=new_budget: budgets.create_budget(tx, environment.caller, w)
                            )
                        )
        finally:
            done.set()

    await asyncio.gather(*(spend(spender) for spender in spenders), create())
    query = (
        "SELECT coalesce(sum((cost_usd * 1e9)::bigint), 0)::bigint FROM costs WHERE tenant_id = $1 "
        "AND ($2::uuid IS NULL OR agent_id = $2) AND created_at >= $3"
    )
    for budget in new_budgets:
        subject = None if budget.subject is None else ids.decode_id("agent", budget.subject)
        since = budget.period_start or datetime(1, 1, 1, tzinfo=UTC)
        exact_cost = await environment.database.owner.fetchval(query, environment.caller.tenant_id, subject, since)
        assert nanos_from_usd((await environment.get_budget(budget.id)).spent_usd) == exact_cost


async def test_without_a_budget_nothing_is_reserved_and_free_calls_pass(
    environment: BudgetEnvironment,
) -> None:
    spender = CostAttribution(
        execution_id=await add_execution(environment.database, environment.caller), agent_id=AGENTS[0]
    )
    await environment.add_budget("agent", AGENTS[1], 0.01)
    assert await environment.reserve_budget(spender, 5.0) == BudgetReservation(id=None, amount_usd=5.0)
    assert await environment.database.owner.fetchval("SELECT count(*) FROM cost_holds") == 0
    exhausted_budget = await environment.add_budget("tenant", None, 0.01)
    await environment.settle_call(None, spender, 0.02)
    assert (await environment.get_budget(exhausted_budget.id)).status == "exhausted"
    assert await environment.reserve_budget(spender, 0.0) == BudgetReservation(id=None, amount_usd=0.0)
    assert (await environment.settle_call(None, spender, 0.0)).warnings == []
    with pytest.raises(DomainError, match="budget"):
        await environment.reserve_budget(spender, 0.000000001)


async def test_refusal_names_the_budget_and_what_is_left(environment: BudgetEnvironment) -> None:
    execution_id = await add_execution(environment.database, environment.caller)
    spender = CostAttribution(execution_id=execution_id, agent_id=AGENTS[0], key_id=KEYS[0], workflow_id=WORKFLOWS[0])
    tenant_budget = await environment.add_budget("tenant", None, 5.0, "month")
    await environment.settle_call(None, spender, 4.9988)

    async def get_refusal(amount: float, **fields: Any) -> str:
        with pytest.raises(DomainError) as caught:
            await environment.reserve_budget(
                CostAttribution(execution_id=execution_id, key_id=KEYS[0], agent_id=AGENTS[0], **fields), amount
            )
        assert caught.value.code == "budget_exceeded"
        return caught.value.detail

    expected = "The tenant's budget of $5.00 per month has $0.0012 left; this call needs up to $0.0100."
    assert await get_refusal(0.01) == expected
    # A call that needs at least less than what is left gets a part.
    reservation = await environment.reserve_budget(spender, 0.01, 0.001)
    assert reservation.amount_usd == 0.0012
    assert (await environment.get_budget(tenant_budget.id)).remaining_usd == 0
    await environment.settle_call(reservation.id, spender, 0.0)
    await environment.run_transaction(
        lambda tx: budgets.update_budget(tx, tenant_budget.id, PatchBudget(enabled=False))
    )
    await environment.add_budget("key", KEYS[0], 0.5, "day")
    assert (
        await get_refusal(1.5)
        == "The API key's budget of $0.5000 per day has $0.5000 left; this call needs up to $1.50."
    )
    await environment.add_budget("agent", AGENTS[0], 0.000001234)
    expected = "The agent's budget of $0.000001234 in total has $0.000001234 left; this call needs up to $0.000002000."
    assert await get_refusal(0.000002) == expected
    await environment.settle_call(None, spender, 0.1)
    assert "has $0.00 left" in await get_refusal(0.000002)
    assert await get_refusal(0.1, cost_limit=3.0) == (
        "The run's cost limit of $3.00 has $0.00 left; this call needs up to $0.1000."
    )


async def test_warning_is_sent_once_per_period_and_again_after_the_limit_is_raised(
    environment: BudgetEnvironment,
) -> None:
    execution_id = await add_execution(environment.database, environment.caller)
    spender = CostAttribution(execution_id=execution_id, cost_limit=10.0)
    budget = await environment.add_budget("tenant", None, 1.0, "day")

    async def settle_and_list_warnings(cost: float) -> list[str]:
        return [warning.message for warning in (await environment.settle_call(None, spender, cost)).warnings]

    assert await settle_and_list_warnings(0.79) == []
    assert await settle_and_list_warnings(0.02) == ["The tenant's budget of $1.00 per day is spent to 81 %: $0.8100."]
    budget_after = await environment.get_budget(budget.id)
    assert (budget_after.status, budget_after.warned_at) == ("warned", NOW)
    assert await settle_and_list_warnings(0.1) == []
    # Two hours later it is the next day.
    environment.clock[0] = NOW + timedelta(hours=2)
    budget_after = await environment.get_budget(budget.id)
    assert (budget_after.status, budget_after.warned_at, budget_after.spent_usd) == ("ok", None, 0)
    assert await settle_and_list_warnings(0.5) == []
    assert await settle_and_list_warnings(0.5) == ["The tenant's budget of $1.00 per day is spent to 100 %: $1.00."]
    assert (await environment.get_budget(budget.id)).status == "exhausted"
    patched_budget = await environment.run_transaction(
        lambda tx: budgets.update_budget(tx, budget.id, PatchBudget(limit_usd=2.0))
    )
    assert (patched_budget.status, patched_budget.warned_at) == ("ok", None)
    assert len(await settle_and_list_warnings(0.7)) == 1
    # The run's own limit: 2.61 of 10 dollars so far.
    await environment.run_transaction(lambda tx: budgets.delete_budget(tx, budget.id))
    assert await settle_and_list_warnings(5.38) == []
    assert await settle_and_list_warnings(0.01) == ["The run's cost limit of $10.00 is spent to 80 %: $8.00."]
    assert await settle_and_list_warnings(1.0) == []


async def test_concurrent_calls_send_each_warning_once(environment: BudgetEnvironment) -> None:
    execution_id = await add_execution(environment.database, environment.caller)
    spender = CostAttribution(execution_id=execution_id, cost_limit=0.5)
    await environment.add_budget("tenant", None, 0.5)
    settlements = await asyncio.gather(*(environment.settle_call(None, spender, 0.01) for _ in range(50)))
    scopes = sorted(warning.scope for settlement in settlements for warning in settlement.warnings)
    assert scopes == ["run", "tenant"]
    assert await environment.get_total_cost(execution_id) == 0.5


async def test_expired_reservation_is_released_and_can_still_be_settled(environment: BudgetEnvironment) -> None:
    execution_id = await add_execution(environment.database, environment.caller)
    spender = CostAttribution(execution_id=execution_id, cost_limit=1.0)
    budget = await environment.add_budget("tenant", None, 1.0)
    lost_reservation = await environment.reserve_budget(spender, 0.9, seconds=30)
    with pytest.raises(DomainError, match=r"\$0\.1000 left"):
        await environment.reserve_budget(spender, 0.2)
    environment.clock[0] += timedelta(seconds=30)
    assert (await environment.get_budget(budget.id)).held_usd == 0
    other_reservation = await environment.reserve_budget(spender, 0.2)
    # The next reservation removed the expired one.
    assert await environment.database.owner.fetchval("SELECT count(*) FROM cost_holds") == 1
    # The run was cancelled meanwhile; its cost counts anyway.
    await environment.database.owner.execute("UPDATE executions SET status = 'cancelled'")
    await environment.settle_call(lost_reservation.id, spender, 0.9)
    await environment.settle_call(other_reservation.id, spender, 0.15)
    budget_after = await environment.get_budget(budget.id)
    assert (budget_after.spent_usd, budget_after.held_usd, budget_after.remaining_usd, budget_after.status) == (
        1.05,
        0,
        0,
        "exhausted",
    )
    assert await environment.get_total_cost(execution_id) == 1.05


async def test_repeated_settlement_counts_once(environment: BudgetEnvironment) -> None:
    """Settle again with the same id, as a worker does that lost the answer to its commit."""
    execution_id = await add_execution(environment.database, environment.caller)
    spender, cost_id = CostAttribution(execution_id=execution_id), ids.generate_id("cost")
    budget = await environment.add_budget("tenant", None, 1.0)
    settlements = [
        await environment.run_transaction(
            lambda tx: costs.settle_call(tx, None, spender, build_billed_call(0.9), cost_id=cost_id)
        )
        for _ in range(3)
    ]
    assert [(settlement.cost_id, settlement.is_repeat, len(settlement.warnings)) for settlement in settlements] == [
        (cost_id, False, 1),
        (cost_id, True, 0),
        (cost_id, True, 0),
    ]
    assert (await environment.get_budget(budget.id)).spent_usd == await environment.get_total_cost(execution_id) == 0.9
    page = await environment.run_transaction(lambda tx: costs.list_costs(tx, costs.CostFilter(), Page(limit=1)))
    assert (page.total, page.total_cost) == (1, 0.9)
    assert (await environment.run_transaction(lambda tx: costs.summarize_costs(tx, "day"))).total_cost == 0.9


async def test_late_clock_counts_in_the_newer_period(environment: BudgetEnvironment) -> None:
    budget = await environment.add_budget("tenant", None, 1.0, "day")
    environment.clock[0] = NOW + timedelta(hours=2)
    await environment.settle_call(None, CostAttribution(), 0.5)
    environment.clock[0] = NOW
    await environment.settle_call(None, CostAttribution(), 0.25)
    environment.clock[0] = NOW + timedelta(hours=2)
    assert (await environment.get_budget(budget.id)).spent_usd == 0.75


@settings(max_examples=300, deadline=None)
@given(at=st.datetimes(datetime(2001, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC)))
def test_periods_begin_at_calendar_boundaries(at: datetime) -> None:
    day, week, month = (find_period_start(period, at) for period in ("day", "week", "month"))
    assert day <= at < day + timedelta(days=1)
    assert week <= at < week + timedelta(days=7)
    assert (week.weekday(), month.day, month.month) == (0, 1, at.month)


async def test_postgres_computes_the_same_period_starts(environment: BudgetEnvironment) -> None:
    dice = random.Random(3)
    times = [NOW + timedelta(seconds=dice.uniform(-2e9, 2e9)) for _ in range(300)]
    times += [datetime(2028, 1, 1, tzinfo=UTC), datetime(2028, 2, 29, 23, 59, 59, 999999, tzinfo=UTC)]
    for period in ("day", "week", "month", "total"):
        query = "SELECT budget_began($1, t) FROM unnest($2::timestamptz[]) WITH ORDINALITY AS u(t, n) ORDER BY n"
        records = await environment.database.owner.fetch(query, period, times)
        assert [record[0] for record in records] == [find_period_start(period, at) for at in times]


@given(amount=st.integers(0, 10**13))
def test_amounts_in_sentences_are_rounded_in_the_stated_direction(amount: int) -> None:
    rounded_down, rounds_up = (
        float(format_dollars(amount, rounds_up).removeprefix("$")) for rounds_up in (False, True)
    )
    assert nanos_from_usd(rounded_down) <= amount <= nanos_from_usd(rounds_up)


# The API.


async def test_budgets_over_http(acme: TenantClient) -> None:
    key_id = (await acme.http.post("/api-keys", json={"name": "the only"})).json()["id"]
    agent = await acme.create_agent("coder")
    body = {"scope": "agent", "subject": "coder", "limit_usd": 12.5, "period": "week"}
    answer = await acme.http.post("/budgets", json=body)
    assert answer.status_code == 201, answer.text
    budget = answer.json()
    today = datetime.now(UTC).date()
    monday = datetime.fromisoformat(budget["period_start"])
    assert (monday.date(), monday.weekday()) == (today - timedelta(days=today.weekday()), 0)
    assert budget | body | {"subject": agent["id"]} == budget
    names = ("spent_usd", "held_usd", "remaining_usd", "status", "warned_at", "enabled")
    assert [budget[name] for name in names] == [0, 0, 12.5, "ok", None, True]
    for subject in (key_id, "the only"):
        answer = await acme.http.post("/budgets", json=body | {"scope": "key", "subject": subject, "period": "total"})
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
        ({"scope": "agent", "subject": "missing"}, "subject"),
        ({"scope": "key", "subject": "missing"}, "subject"),
        ({"scope": "workflow", "subject": "missing"}, "subject"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_invalid_budgets_are_refused_by_field(acme: TenantClient, change: dict[str, Any], field: str) -> None:
    answer = await acme.http.post("/budgets", json={"scope": "tenant", "limit_usd": 1, "period": "day", **change})
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] == field


async def test_name_of_two_keys_is_refused_as_subject(acme: TenantClient) -> None:
    for _ in range(2):
        await acme.create_key(name="twin")
    body = {"scope": "key", "subject": "twin", "limit_usd": 1, "period": "day"}
    answer = await acme.http.post("/budgets", json=body)
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "subject")


async def test_budgets_belong_to_their_tenant_and_need_scopes(acme: TenantClient, other_tenant: TenantClient) -> None:
    body = {"scope": "agent", "subject": (await acme.create_agent())["id"], "limit_usd": 1, "period": "day"}
    assert (await other_tenant.http.post("/budgets", json=body)).status_code == 422
    async with acme.open_client(await acme.create_key(scopes=["read:costs"])) as reader:
        assert (await reader.get("/budgets")).status_code == 200
        assert (await reader.post("/budgets", json=body)).status_code == 403
    async with acme.open_client(await acme.create_key(scopes=["write:costs"])) as writer:
        first = await writer.post("/budgets", json=body, headers={"Idempotency-Key": "once"})
        repeated = await writer.post("/budgets", json=body, headers={"Idempotency-Key": "once"})
        assert first.status_code == 201
        assert repeated.json() == first.json()
    assert (await other_tenant.http.get("/budgets")).json()["items"] == []
