"""Reserve budgets before calls of models, record the calls, and sum up their costs.

    reserve_budget ──► call the model ──► settle_call

A call is made only when every budget that applies to it, and the run's own `cost_limit`, covers what the call may cost
at most. That much stays reserved during the call. The reservation of a killed worker counts until it expires.
"""

from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from domain.costs.budgets import describe_limit
from domain.costs.money import ceil_nanos_from_usd, format_dollars, nanos_from_usd
from domain.costs.schema import (
    AppliedLimit,
    BilledCall,
    BudgetReservation,
    BudgetWarning,
    CostAttribution,
    CostFilter,
    CostListing,
    CostSettlement,
    CostSummary,
    SummaryPeriod,
)
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

_DAYS_BY_PERIOD: Final[dict[SummaryPeriod, int]] = {"day": 1, "week": 7, "month": 30}


async def reserve_budget(
    tx: Tx, attribution: CostAttribution, wanted_usd: float, least_usd: float, seconds: float
) -> BudgetReservation:
    """Reserve up to `wanted_usd`, and no less than `least_usd`, for a call that takes `seconds` at most.

    Call it first in its transaction, and only one of `reserve_budget` and `settle_call`: it locks budgets, then the
    execution. A free call (`wanted_usd` 0) is always allowed. Errors: `budget_exceeded`.
    """
    if wanted_usd <= 0:
        return BudgetReservation(id=None, amount_usd=0.0)
    wanted_nanos, until = ceil_nanos_from_usd(wanted_usd), tx.now + timedelta(seconds=seconds)
    least = max(1, min(ceil_nanos_from_usd(least_usd), wanted_nanos))
    reserved = await tx.budgets.reserve_amount(attribution, wanted_nanos, least, tx.now, until)
    if isinstance(reserved, AppliedLimit):
        left, needed = format_dollars(max(reserved.amount, 0)), format_dollars(wanted_nanos, up=True)
        raise DomainError(
            "budget_exceeded", f"{describe_limit(reserved)} has {left} left; this call needs up to {needed}."
        )
    reservation_id, amount = reserved
    return BudgetReservation(
        id=reservation_id, amount_usd=wanted_usd if amount == wanted_nanos else amount / NANOS_PER_UNIT
    )


async def settle_call(
    tx: Tx, reservation_id: str | None, attribution: CostAttribution, call: BilledCall, cost_id: str | None = None
) -> CostSettlement:
    """Record a call and its cost, in every budget and in its execution, and release its reservation.

    The cost counts even if the reservation has expired or the execution has ended. A caller that may have to retry
    after a lost commit passes the `cost_id`: the same one counts once. Call it first in its transaction, and only one
    of `reserve_budget` and `settle_call`: it locks budgets, then the execution.
    """
    cost_id = cost_id or ids.generate_id("cost")
    if not await tx.costs.add(cost_id, attribution, call, tx.now):
        return CostSettlement(cost_id=cost_id, warnings=[], is_repeat=True)
    limits = await tx.budgets.record_spending(reservation_id, attribution, nanos_from_usd(call.cost_usd), tx.now)
    return CostSettlement(cost_id=cost_id, warnings=[_build_warning(limit) for limit in limits])


def _build_warning(limit: AppliedLimit) -> BudgetWarning:
    return BudgetWarning(
        budget_id=limit.budget_id,
        scope=limit.scope,
        period=limit.period,
        limit_usd=limit.limit / NANOS_PER_UNIT,
        spent_usd=limit.amount / NANOS_PER_UNIT,
        message=f"{describe_limit(limit)} is spent to {100 * limit.amount // limit.limit} %: "
        f"{format_dollars(limit.amount)}.",
    )


def query_from_filter(filters: CostFilter) -> StatsQuery:
    """Return a filter as a query of statistics."""
    names = [name for name in CostFilter.__struct_fields__ if name not in ("since", "until")]
    by_name = {name: getattr(filters, name) for name in names}
    return StatsQuery(kind="costs", filters=by_name, since=filters.since, until=filters.until)


async def list_costs(tx: Tx, filters: CostFilter, page: Page) -> CostListing:
    """List costs, newest first. `agent_id` takes a name too. Errors: `invalid_field`."""
    refuse_nul_characters(filters)
    since, until = parse_time_range(filters.since, filters.until, ("since", "until"))
    agent: dict[str, Any] = {}
    if filters.agent_id is not None and ids.decode_id("agent", filters.agent_id) is None:
        # An agent that has this name now, or else costs of agents that had it.
        named_agent = await tx.agents.find(filters.agent_id)
        if named_agent is None:
            agent = {"agent_id": None, "agent_name": filters.agent_id}
        else:
            agent = {"agent_id": named_agent.id}
    filters = msgspec.structs.replace(filters, since=since, until=until, **agent)
    return await tx.costs.list_page(query_from_filter(filters), page)


async def summarize_costs(
    tx: Tx, period: SummaryPeriod | None, since: datetime | None = None, until: datetime | None = None
) -> CostSummary:
    """Sum up the last 1, 7 or 30 times 24 hours (from the whole hour on), or `[since, until)`.

    Without any of them, the last week. Errors: `invalid_field`.
    """
    if since is not None or until is not None:
        if period is not None:
            raise InvalidField("period", "cannot be used together with since or until.")
        since, until = parse_time_range(since, until, ("since", "until"))
    else:
        period = period or "week"
        since = find_window_start(tx.now, _DAYS_BY_PERIOD[period])
    sums = await tx.stats.sum_groups(StatsQuery(kind="costs", filters={}, since=since, until=until))
    p50, p95, p99 = sums.quantiles

    def sum_cost_by(dimension: str) -> dict[str, float]:
        by_value = sort_counts(sums.sum_by(dimension, "cost_usd"))
        return {value: cost / NANOS_PER_UNIT for value, cost in by_value.items()}

    return CostSummary(
        period=period,
        since=since,
        until=until,
        total_cost=sums.sum_measure("cost_usd") / NANOS_PER_UNIT,
        total_tokens=sums.sum_measure("total_tokens"),
        prompt_tokens=sums.sum_measure("prompt_tokens"),
        completion_tokens=sums.sum_measure("completion_tokens"),
        calls=sums.sum_measure("count"),
        errors=sums.sum_measure("errors"),
        estimated=sums.sum_measure("estimated"),
        by_agent=sum_cost_by("agent_name"),
        by_provider=sum_cost_by("provider"),
        by_model=sum_cost_by("model"),
        by_status=sort_counts(sums.sum_by("status")),
        p50_duration_ms=p50,
        p95_duration_ms=p95,
        p99_duration_ms=p99,
    )
