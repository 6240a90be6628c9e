"""Test budgets of one tenant with a controlled clock against a plain model."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from hypothesis import strategies as st

from domain import costs
from domain.costs import (
    BilledCall,
    Budget,
    BudgetReservation,
    CostAttribution,
    CostSettlement,
    PatchBudget,
    budgets,
    find_period_start,
    format_dollars,
    nanos_from_usd,
)
from domain.llms import ModelUsage
from domain.shared import ids
from domain.shared.access import Caller
from domain.shared.errors import DomainError
from domain.shared.pages import Page
from infra.postgres.store import PostgresStore
from tests.support.isolated_database import IsolatedDatabase

# A Wednesday, in a week that has two months.
NOW = datetime(2028, 5, 31, 22, tzinfo=UTC)
KEYS, AGENTS, WORKFLOWS = (
    [ids.encode_id(prefix, UUID(int=number)) for number in (first, first + 1)]
    for prefix, first in (("key", 10), ("agent", 20), ("wf", 30))
)
SUBJECTS = {"tenant": [None], "key": KEYS, "agent": AGENTS, "workflow": WORKFLOWS}


def build_billed_call(cost: float, **fields: Any) -> BilledCall:
    fields_of_call = {
        "status": "ok",
        "estimated": False,
        "duration_ms": 12.5,
        "usage": ModelUsage(prompt_tokens=3),
        **fields,
    }
    return BilledCall(provider="openai", model="gpt", model_name="gpt", cost_usd=cost, **fields_of_call)


async def add_execution(
    database: IsolatedDatabase, caller: Caller, total_cost: float = 0.0, status: str = "running"
) -> str:
    """Add an execution and return its id."""
    execution_id = ids.generate_uuid7()
    await database.owner.execute(
        "INSERT INTO executions (id, tenant_id, user_id, run_name, kind, status, attempt, max_attempts, timeout, "
        "steps_total, steps_completed, total_cost, last_seq, created_at, updated_at) "
        "VALUES ($1, $2, $3, 'run', 'agent', $4, 1, 3, 30, 1, 0, $5, 1, $6, $6)",
        *(execution_id, caller.tenant_id, ids.decode_id("user", caller.user_id), status, total_cost, NOW),
    )
    return ids.encode_id("exec", execution_id)


async def add_budget(
    tx: Any, caller: Caller, scope: str, subject: str | None, limit: float, period: str = "total"
) -> Budget:
    """Add a budget without the checks of `create_budget`, also for a subject that does not exist."""
    budget = Budget(
        id=ids.generate_id("bud"),
        tenant_id=caller.tenant_id,
        scope=scope,
        subject=subject,
        limit_usd=limit,
        period=period,
        enabled=True,
        period_start=find_period_start(period, tx.now),
        spent_usd=0.0,
        held_usd=0.0,
        remaining_usd=limit,
        status="ok",
        warned_at=None,
        created_at=tx.now,
        updated_at=tx.now,
    )
    await tx.budgets.add(budget, 0)
    return budget


class BudgetEnvironment:
    """Hold one tenant in an isolated database, and a controlled clock."""

    def __init__(self, database: IsolatedDatabase, store: PostgresStore, caller: Caller, clock: list[datetime]) -> None:
        self.database, self.store, self.caller, self.clock = database, store, caller, clock

    async def run_transaction(self, work: Callable[[Any], Awaitable[Any]]) -> Any:
        async with self.store.transaction(self.caller) as tx:
            return await work(tx)

    async def add_budget(self, scope: str, subject: str | None, limit: float, period: str = "total") -> Budget:
        return await self.run_transaction(lambda tx: add_budget(tx, self.caller, scope, subject, limit, period))

    async def reserve_budget(
        self, spender: CostAttribution, amount: float, least: float | None = None, seconds: float = 60
    ) -> BudgetReservation:
        enough = amount if least is None else least
        return await self.run_transaction(lambda tx: costs.reserve_budget(tx, spender, amount, enough, seconds))

    async def settle_call(self, hold_id: str | None, spender: CostAttribution, cost: float) -> CostSettlement:
        return await self.run_transaction(lambda tx: costs.settle_call(tx, hold_id, spender, build_billed_call(cost)))

    async def list_budgets(self) -> list[Budget]:
        return list((await self.run_transaction(lambda tx: budgets.list_budgets(tx, Page(limit=1000)))).items)

    async def get_budget(self, budget_id: str) -> Budget:
        return await self.run_transaction(lambda tx: budgets.get_budget(tx, budget_id))

    async def get_total_cost(self, execution_id: str) -> float:
        query = "SELECT total_cost FROM executions WHERE id = $1"
        return await self.database.owner.fetchval(query, ids.decode_id("exec", execution_id))


# The plain model.


class BudgetModel:
    """Compute what budgets must be."""

    def __init__(self) -> None:
        self.budgets: list[dict[str, Any]] = []
        self.holds: list[dict[str, Any]] = []
        self.runs: dict[str, int] = {}

    def start_period(self, budget: dict[str, Any], now: datetime) -> None:
        if budget["began"] < (start := find_period_start(budget["period"], now)):
            budget |= {"began": start, "spent": 0, "warned": None}

    def list_applying(self, spender: CostAttribution, now: datetime) -> list[dict[str, Any]]:
        budgets = [
            budget for budget in self.budgets if budget["subject"] is None or budget["subject"] in spender.subjects
        ]
        for budget in budgets:
            self.start_period(budget, now)
        return budgets

    def sum_reserved(self, budget: dict[str, Any] | None, run: str | None, now: datetime) -> int:
        return sum(
            hold["amount"]
            for hold in self.holds
            if not hold["settled"]
            and hold["until"] > now
            and (
                hold["spender"].execution_id == run
                if budget is None
                else budget["subject"] is None or budget["subject"] in hold["spender"].subjects
            )
        )

    def find_tightest_limit(
        self, spender: CostAttribution, amount: int, least: int, now: datetime
    ) -> tuple[int, dict[str, Any]] | None:
        """Return what is left of the tightest limit, and that limit; None without a limit."""
        limits = [
            (budget["limit"] - budget["spent"] - self.sum_reserved(budget, None, now), budget["id"], budget)
            for budget in self.list_applying(spender, now)
            if budget["enabled"]
        ]
        if spender.run_limit is not None:
            room = (
                spender.run_limit - self.runs[spender.execution_id] - self.sum_reserved(None, spender.execution_id, now)
            )
            limits.append((room, "~", {"scope": "run", "limit": spender.run_limit, "period": "total"}))
        if not limits:
            return None
        room, _, whose = min(limits, key=lambda budget: budget[:2])
        return room, whose

    def settle(
        self, hold: dict[str, Any] | None, spender: CostAttribution, cost: int, now: datetime
    ) -> list[str | None]:
        """Settle a call and return the ids of the budgets that warn; None stands for the run."""
        warned: list[str | None] = []
        if hold is not None:
            hold["settled"] = True
        if cost == 0:
            return warned
        for budget in self.list_applying(spender, now):
            budget["spent"] += cost
            if budget["enabled"] and budget["warned"] is None and budget["spent"] * 10 >= budget["limit"] * 8:
                budget["warned"] = now
                warned.append(budget["id"])
        before = self.runs[spender.execution_id]
        self.runs[spender.execution_id] += cost
        limit = spender.run_limit
        if limit is not None and before * 10 < limit * 8 <= (before + cost) * 10:
            warned.append(None)
        return sorted(warned, key=lambda budget_id: budget_id or "~")


AMOUNT = st.sampled_from([1, 10**7, 10**8, 2 * 10**8, 10**9]) | st.integers(1, 10**9)
LIMIT = st.sampled_from([1, 10**8, 5 * 10**8, 10**9, 10**10])
BUDGET = st.tuples(
    st.sampled_from(sorted(SUBJECTS)), st.integers(0, 1), LIMIT, st.sampled_from(["day", "week", "month", "total"])
)
SPENDER = st.tuples(*[st.integers(0, 2)] * 3, st.integers(0, 1), st.sampled_from([None, None, 10**8, 10**9]))
PASSING = st.sampled_from(
    [timedelta(seconds=30), timedelta(seconds=61), timedelta(hours=2), timedelta(days=1), timedelta(days=4)]
)
PLACE = st.integers(0, 100)
STEP = st.one_of(
    st.tuples(st.just("create"), BUDGET),
    st.tuples(st.just("hold"), SPENDER, AMOUNT, st.integers(0, 10**9)),
    st.tuples(st.just("hold"), SPENDER, AMOUNT, st.just(1)),
    st.tuples(st.just("settle"), PLACE, st.sampled_from([0.0, 0.5, 1.0, 1.0, 1.5])),
    st.tuples(st.just("settle"), PLACE, st.just(1.0)),
    st.tuples(st.just("settle_without_hold"), SPENDER, AMOUNT),
    st.tuples(st.just("limit"), PLACE, LIMIT),
    st.tuples(st.just("enable"), PLACE, st.booleans()),
    st.tuples(st.just("delete"), PLACE),
    st.tuples(st.just("wait"), PASSING),
)


class CheckedBudgets:
    """Compare budgets with their model."""

    def __init__(self, bench: BudgetEnvironment, runs: list[str]) -> None:
        self.bench, self.runs, self.model = bench, runs, BudgetModel()
        self.model.runs = dict.fromkeys(runs, 0)

    def build_spender(self, drawn: tuple[Any, ...]) -> CostAttribution:
        *places, run, limit = drawn
        chosen = [(*of, None)[place] for of, place in zip((KEYS, AGENTS, WORKFLOWS), places, strict=True)]
        return CostAttribution(
            execution_id=self.runs[run],
            key_id=chosen[0],
            agent_id=chosen[1],
            workflow_id=chosen[2],
            cost_limit=None if limit is None else limit / 10**9,
        )

    def choose_budget(self, place: int) -> dict[str, Any] | None:
        of = self.model.budgets
        return of[place % len(of)] if of else None

    async def create(self, drawn: tuple[Any, ...]) -> None:
        scope, place, limit, period = drawn
        if len(self.model.budgets) >= 6:
            return
        subject = SUBJECTS[scope][place % len(SUBJECTS[scope])]
        budget = await self.bench.add_budget(scope, subject, limit / 10**9, period)
        start = find_period_start(period, self.bench.clock[0])
        self.model.budgets.append(
            {"id": budget.id, "scope": scope, "subject": subject, "limit": limit, "period": period, "began": start}
            | {"enabled": True, "spent": 0, "warned": None}
        )

    async def hold(self, drawn: tuple[Any, ...], amount: int, least: int) -> None:
        spender, now = self.build_spender(drawn), self.bench.clock[0]
        expected = self.model.find_tightest_limit(spender, amount, least, now)
        enough = max(1, min(least, amount))
        try:
            reservation = await self.bench.reserve_budget(spender, amount / 10**9, least / 10**9)
        except DomainError as error:
            assert expected is not None
            room, whose = expected
            assert room < enough
            assert error.code == "budget_exceeded"
            assert f"{format_dollars(whose['limit'])}" in error.detail
            assert f"has {format_dollars(max(room, 0))} left" in error.detail
            assert (whose["scope"] == "run") == ("cost limit" in error.detail)
            return
        if expected is None:
            assert reservation == BudgetReservation(id=None, amount_usd=amount / 10**9)
            return
        granted = min(amount, expected[0])
        assert granted >= enough
        assert (reservation.id is not None, nanos_from_usd(reservation.amount_usd)) == (True, granted)
        self.model.holds.append(
            {"id": reservation.id, "spender": spender, "amount": granted, "until": now + timedelta(seconds=60)}
            | {"settled": False}
        )

    async def settle(self, place: int, share: float) -> None:
        waiting = [budget for budget in self.model.holds if not budget["settled"]]
        if not waiting:
            return
        hold = waiting[place % len(waiting)]
        await self._settle(hold, hold["spender"], int(hold["amount"] * share))

    async def settle_without_hold(self, drawn: tuple[Any, ...], cost: int) -> None:
        await self._settle(None, self.build_spender(drawn), cost)

    async def _settle(self, hold: dict[str, Any] | None, spender: CostAttribution, cost: int) -> None:
        expected = self.model.settle(hold, spender, cost, self.bench.clock[0])
        settlement = await self.bench.settle_call(None if hold is None else hold["id"], spender, cost / 10**9)
        assert [hold.budget_id for hold in settlement.warnings] == expected

    async def limit(self, place: int, limit: int) -> None:
        if (budget := self.choose_budget(place)) is not None:
            self.model.start_period(budget, self.bench.clock[0])
            budget["limit"] = limit
            if budget["spent"] * 10 < limit * 8:
                budget["warned"] = None
            await self.bench.run_transaction(
                lambda tx: budgets.update_budget(tx, budget["id"], PatchBudget(limit_usd=limit / 10**9))
            )

    async def enable(self, place: int, enabled: bool) -> None:
        if (budget := self.choose_budget(place)) is not None:
            budget["enabled"] = enabled
            await self.bench.run_transaction(
                lambda tx: budgets.update_budget(tx, budget["id"], PatchBudget(enabled=enabled))
            )

    async def delete(self, place: int) -> None:
        if (budget := self.choose_budget(place)) is not None:
            self.model.budgets.remove(budget)
            await self.bench.run_transaction(lambda tx: budgets.delete_budget(tx, budget["id"]))

    async def wait(self, passing: timedelta) -> None:
        self.bench.clock[0] += passing

    async def check(self) -> None:
        now, budget_by_id = self.bench.clock[0], {budget.id: budget for budget in await self.bench.list_budgets()}
        assert len(budget_by_id) == len(self.model.budgets)
        for expected in self.model.budgets:
            self.model.start_period(expected, now)
            budget, reserved = budget_by_id[expected["id"]], self.model.sum_reserved(expected, None, now)
            left = max(0, expected["limit"] - expected["spent"] - reserved)
            amounts = (budget.limit_usd, budget.spent_usd, budget.held_usd, budget.remaining_usd)
            assert tuple(map(nanos_from_usd, amounts)) == (expected["limit"], expected["spent"], reserved, left)
            share = expected["spent"] / expected["limit"]
            assert budget.status == ("exhausted" if share >= 1 else "warned" if share >= 0.8 else "ok")
            assert (budget.warned_at, budget.enabled) == (expected["warned"], expected["enabled"])
            assert budget.period_start == (None if expected["period"] == "total" else expected["began"])
        for run, spent in self.model.runs.items():
            assert await self.bench.get_total_cost(run) == spent / 10**9
