"""Costs: one row for every call of a model, and what of its budgets is held before the call and spent after it.

    hold ──► call the model ──► settle

A call is made only when every budget that applies to it, and the run's own `cost_limit`, has room for what the call may
cost at most. That much is held meanwhile. A killed worker's hold counts until its time is over.
"""

from datetime import datetime, timedelta
from typing import Any, Literal, Protocol

import msgspec

from domain.costs.budgets import (
    AppliedLimit,
    BudgetPeriod,
    BudgetScope,
    ceil_nanos_from_usd,
    describe_limit,
    format_dollars,
    nanos_from_usd,
)
from domain.llms import ModelUsage
from domain.ports import Tx
from domain.shared import ids
from domain.shared.errors import DomainError, InvalidField
from domain.shared.pages import Page
from domain.stats import (
    NANOS_PER_UNIT,
    StatsQuery,
    find_window_start,
    parse_time_range,
    refuse_nul_characters,
    sort_counts,
)

ModelCallStatus = Literal["ok", "error", "cancelled"]
SummaryPeriod = Literal["day", "week", "month"]

_DAYS: dict[SummaryPeriod, int] = {"day": 1, "week": 7, "month": 30}


class Cost(msgspec.Struct, kw_only=True):
    """One call of a model. `cost_usd` in US dollars, times in milliseconds; `timestamp` repeats `created_at`.

    `model` is the provider's name of the model, `model_name` the one in our registry. `estimated` tells that the
    provider did not say how many tokens it took. Names are those of the time of the call.
    """

    id: str
    tenant_id: str
    user_id: str | None
    agent_id: str | None
    agent_name: str | None
    execution_id: str | None
    key_id: str | None
    workflow_id: str | None
    provider: str
    model: str
    model_name: str
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    cost_usd: float
    estimated: bool
    status: ModelCallStatus
    error_type: str | None
    duration_ms: float
    first_token_ms: float | None
    created_at: datetime
    timestamp: datetime | None = None

    def __post_init__(self) -> None:
        self.timestamp = self.created_at


class CostListing(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the costs, newest first, as every list. `total_cost` is of all that match, in US dollars."""

    items: list[Cost]
    total: int
    limit: int
    offset: int
    has_more: bool
    total_cost: float


class CostSummary(msgspec.Struct, kw_only=True):
    """Sums over calls of models, in US dollars, the largest first; calls for no agent are in the totals alone.

    Quantiles of how long calls took, in milliseconds, are within 1 % of the true value.
    """

    period: SummaryPeriod | None
    since: datetime | None
    until: datetime | None
    total_cost: float
    total_tokens: int
    prompt_tokens: int
    completion_tokens: int
    calls: int
    errors: int
    estimated: int
    by_agent: dict[str, float]
    by_provider: dict[str, float]
    by_model: dict[str, float]
    by_status: dict[str, int]
    p50_duration_ms: float | None
    p95_duration_ms: float | None
    p99_duration_ms: float | None


class CostFilter(msgspec.Struct, frozen=True, kw_only=True):
    """What costs are narrowed to. Times are inclusive at `since`, exclusive at `until`."""

    agent_id: str | None = None
    agent_name: str | None = None
    execution_id: str | None = None
    provider: str | None = None
    model: str | None = None
    model_name: str | None = None
    status: ModelCallStatus | None = None
    since: datetime | None = None
    until: datetime | None = None


class CostAttribution(msgspec.Struct, frozen=True, kw_only=True):
    """On whose behalf a model is called. `cost_limit` is that of the run, in US dollars.

    Where the run belongs to a plan, `root_id`, the limit is that of the plan, and what is spent counts for it.
    """

    execution_id: str | None = None
    root_id: str | None = None
    agent_id: str | None = None
    agent_name: str | None = None
    key_id: str | None = None
    workflow_id: str | None = None
    user_id: str | None = None
    cost_limit: float | None = None

    @property
    def subjects(self) -> list[str]:
        """What a budget may be for, besides the tenant."""
        return [one for one in (self.key_id, self.agent_id, self.workflow_id) if one is not None]

    @property
    def run_limit(self) -> int | None:
        """The run's own limit, in nano-dollars."""
        return None if self.cost_limit is None else nanos_from_usd(self.cost_limit)


class BilledCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that has ended. `cost_usd` is what it cost, however it ended; times in milliseconds."""

    provider: str
    model: str
    model_name: str
    usage: ModelUsage
    cost_usd: float
    estimated: bool
    status: ModelCallStatus
    error_type: str | None = None
    duration_ms: float
    first_token_ms: float | None = None


class BudgetReservation(msgspec.Struct, frozen=True, kw_only=True):
    """What a call may cost, in US dollars. Without an `id` nothing is held, because nothing limits the call."""

    id: str | None
    amount_usd: float


class BudgetWarning(msgspec.Struct, frozen=True, kw_only=True):
    """A budget, or with scope `run` a run's own limit, of which 80 % are spent. Amounts in US dollars."""

    budget_id: str | None
    scope: Literal["run"] | BudgetScope
    period: BudgetPeriod
    limit_usd: float
    spent_usd: float
    message: str


class CostSettlement(msgspec.Struct, frozen=True, kw_only=True):
    """A call on record, and what has to be warned of since: each budget once in a period, a run once.

    `repeated` tells that it was on record before, with all that it cost.
    """

    cost_id: str
    warnings: list[BudgetWarning]
    is_repeat: bool = False


class Costs(Protocol):
    """The costs of the bound tenant. Whatever changes them writes their deltas in the same statement."""

    async def add(self, cost_id: str, attribution: CostAttribution, call: BilledCall, now: datetime) -> bool:
        """Returns whether it is new."""
        ...

    async def list_page(self, question: StatsQuery, page: Page) -> CostListing: ...
    async def list_older(self, before: datetime, limit: int) -> list[str]:
        """The oldest costs from before a time."""
        ...

    async def delete_many(self, cost_ids: list[str]) -> int: ...


async def reserve_budget(
    tx: Tx, attribution: CostAttribution, wanted_usd: float, least_usd: float, seconds: float
) -> BudgetReservation:
    """Set aside up to `wanted` dollars, and no less than `least`, for a call that takes `seconds` at most.

    Call it first in its transaction, and only one of `hold` and `settle`: it locks budgets, then the execution.
    A free call (`wanted` 0) is always allowed. Errors: `budget_exceeded`.
    """
    if wanted_usd <= 0:
        return BudgetReservation(id=None, amount_usd=0.0)
    asked, until = ceil_nanos_from_usd(wanted_usd), tx.now + timedelta(seconds=seconds)
    found = await tx.budgets.reserve_amount(
        attribution.execution_id,
        attribution.root_id,
        attribution.subjects,
        attribution.run_limit,
        asked,
        max(1, min(ceil_nanos_from_usd(least_usd), asked)),
        tx.now,
        until,
    )
    if isinstance(found, AppliedLimit):
        left, needed = format_dollars(max(found.amount, 0)), format_dollars(asked, up=True)
        raise DomainError(
            "budget_exceeded", f"{describe_limit(found)} has {left} left; this call needs up to {needed}."
        )
    hold_id, granted = found
    return BudgetReservation(id=hold_id, amount_usd=wanted_usd if granted == asked else granted / NANOS_PER_UNIT)


async def settle_call(
    tx: Tx, reservation_id: str | None, attribution: CostAttribution, call: BilledCall, cost_id: str | None = None
) -> CostSettlement:
    """Write down a call and what it cost, in every budget and in its execution, and give up its hold.

    The cost counts whatever has become of the hold or the execution meanwhile. Whoever may have to try again after a
    lost commit names the `cost_id`: the same one counts once. Call it first in its transaction, and only one of `hold`
    and `settle`: it locks budgets, then the execution.
    """
    cost_id = cost_id or ids.generate_id("cost")
    if not await tx.costs.add(cost_id, attribution, call, tx.now):
        return CostSettlement(cost_id=cost_id, warnings=[], is_repeat=True)
    warned = await tx.budgets.record_spending(
        reservation_id,
        attribution.execution_id,
        attribution.subjects,
        attribution.run_limit,
        nanos_from_usd(call.cost_usd),
        tx.now,
    )
    return CostSettlement(cost_id=cost_id, warnings=[_warning(one) for one in warned])


def _warning(limit: AppliedLimit) -> BudgetWarning:
    return BudgetWarning(
        budget_id=limit.budget_id,
        scope=limit.scope,
        period=limit.period,
        limit_usd=limit.limit / NANOS_PER_UNIT,
        spent_usd=limit.amount / NANOS_PER_UNIT,
        message=f"{describe_limit(limit)} is spent to {100 * limit.amount // limit.limit} %: "
        f"{format_dollars(limit.amount)}.",
    )


def query_from_filter(wanted: CostFilter) -> StatsQuery:
    """The filter as what statistics are asked."""
    by_name = {name: getattr(wanted, name) for name in CostFilter.__struct_fields__ if name not in ("since", "until")}
    return StatsQuery(kind="costs", filters=by_name, since=wanted.since, until=wanted.until)


async def list_costs(tx: Tx, filters: CostFilter, page: Page) -> CostListing:
    """Costs, newest first. `agent_id` takes a name too. Errors: `invalid_field`."""
    refuse_nul_characters(filters)
    since, until = parse_time_range(filters.since, filters.until, ("since", "until"))
    agent: dict[str, Any] = {}
    if filters.agent_id is not None and ids.decode_id("agent", filters.agent_id) is None:
        # An agent that is called so now, or else what was called so.
        found = await tx.agents.find(filters.agent_id)
        agent = {"agent_id": None, "agent_name": filters.agent_id} if found is None else {"agent_id": found.id}
    return await tx.costs.list_page(
        query_from_filter(msgspec.structs.replace(filters, since=since, until=until, **agent)), page
    )


async def summarize_costs(
    tx: Tx, period: SummaryPeriod | None, since: datetime | None = None, until: datetime | None = None
) -> CostSummary:
    """Sums over the last 1, 7 or 30 times 24 hours (from the whole hour on), or over `[since, until)`.

    Without any of them, over the last week. Errors: `invalid_field`.
    """
    if since is not None or until is not None:
        if period is not None:
            raise InvalidField("period", "cannot be used together with since or until.")
        since, until = parse_time_range(since, until, ("since", "until"))
    else:
        period = period or "week"
        since = find_window_start(tx.now, _DAYS[period])
    found = await tx.stats.sum_groups(StatsQuery(kind="costs", filters={}, since=since, until=until))
    p50, p95, p99 = found.quantiles

    def spent(dim: str) -> dict[str, float]:
        return {name: cost / NANOS_PER_UNIT for name, cost in sort_counts(found.sum_by(dim, "cost_usd")).items()}

    return CostSummary(
        period=period,
        since=since,
        until=until,
        total_cost=found.sum_measure("cost_usd") / NANOS_PER_UNIT,
        total_tokens=found.sum_measure("total_tokens"),
        prompt_tokens=found.sum_measure("prompt_tokens"),
        completion_tokens=found.sum_measure("completion_tokens"),
        calls=found.sum_measure("count"),
        errors=found.sum_measure("errors"),
        estimated=found.sum_measure("estimated"),
        by_agent=spent("agent_name"),
        by_provider=spent("provider"),
        by_model=spent("model"),
        by_status=sort_counts(found.sum_by("status")),
        p50_duration_ms=p50,
        p95_duration_ms=p95,
        p99_duration_ms=p99,
    )
