"""Manage budgets: how much a tenant, an API key, an agent or a workflow may spend on models in a period.

Several may apply to one call of a model, and all of them must have enough left. `domain.costs.service` reserves budgets
before a call and settles it afterwards; see also `docs/costs.md`.
"""

from datetime import UTC, datetime, timedelta
from typing import Final

from msgspec import UNSET

from domain.costs.money import format_dollars, nanos_from_usd
from domain.costs.schema import AppliedLimit, Budget, BudgetPeriod, BudgetScope, BudgetStatus, NewBudget, PatchBudget
from domain.ports import Tx
from domain.shared import ids
from domain.shared.access import Caller
from domain.shared.errors import InvalidField, NotFound, require_found
from domain.shared.pages import Listing, Page
from domain.stats import StatsQuery

# Four fifths: 80 %.
WARNING_SHARE: Final = (4, 5)
# The stored `period_start` of `total`; the API shows null.
TOTAL_PERIOD_START: Final = datetime(2000, 1, 1, tzinfo=UTC)


def describe_limit(limit: AppliedLimit) -> str:
    """Name a limit, as the beginning of a sentence."""
    if limit.scope == "run":
        return f"The run's cost limit of {format_dollars(limit.limit)}"
    owner = {"tenant": "tenant", "key": "API key", "agent": "agent", "workflow": "workflow"}[limit.scope]
    period = "in total" if limit.period == "total" else f"per {limit.period}"
    return f"The {owner}'s budget of {format_dollars(limit.limit)} {period}"


def find_period_start(period: BudgetPeriod, now: datetime) -> datetime:
    """Return when the period of a time began, in UTC."""
    if period == "total":
        return TOTAL_PERIOD_START
    day = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if period == "month" else day


def is_warning_due(spent: int, limit: int) -> bool:
    """Tell whether spending has reached the share of the limit that is warned of."""
    return spent * WARNING_SHARE[1] >= limit * WARNING_SHARE[0]


def status_from_spending(spent: int, limit: int) -> BudgetStatus:
    """Return the status of a budget."""
    return "exhausted" if spent >= limit else "warned" if is_warning_due(spent, limit) else "ok"


async def create_budget(tx: Tx, caller: Caller, data: NewBudget) -> Budget:
    """Create a budget. It begins with what its period has spent already. Errors: `invalid_field`."""
    budget = Budget(
        id=ids.generate_id("bud"),
        tenant_id=caller.tenant_id,
        scope=data.scope,
        subject=await _resolve_subject(tx, data.scope, data.subject),
        limit_usd=_check_limit(data.limit_usd),
        period=data.period,
        enabled=data.enabled,
        period_start=find_period_start(data.period, tx.now),
        spent_usd=0.0,
        held_usd=0.0,
        remaining_usd=data.limit_usd,
        status="ok",
        warned_at=None,
        created_at=tx.now,
        updated_at=tx.now,
    )
    # A call that is settled between the sum and the commit would be counted in neither.
    await tx.budgets.lock_spending()
    filters = {} if budget.subject is None else {f"{data.scope}_id": budget.subject}
    since = None if data.period == "total" else budget.period_start
    sums = await tx.stats.sum_groups(StatsQuery(kind="costs", filters=filters, since=since))
    await tx.budgets.add(budget, sums.sum_measure("cost_usd"))
    return await get_budget(tx, budget.id)


async def get_budget(tx: Tx, budget_id: str, lock: bool = False) -> Budget:
    """Return a budget. Errors: `not_found`."""
    return require_found("budget", budget_id, await tx.budgets.get(budget_id, tx.now, lock))


async def list_budgets(tx: Tx, page: Page) -> Listing[Budget]:
    """List the tenant's budgets, newest first."""
    return await tx.budgets.list_page(tx.now, page)


async def update_budget(tx: Tx, budget_id: str, data: PatchBudget) -> Budget:
    """Change the fields that were sent. A limit of which less than 80 % is spent warns again. Errors: `not_found`."""
    budget = await get_budget(tx, budget_id, lock=True)
    if data.enabled is not UNSET:
        budget.enabled = data.enabled
    if data.limit_usd is not UNSET:
        budget.limit_usd = _check_limit(data.limit_usd)
        if not is_warning_due(nanos_from_usd(budget.spent_usd), nanos_from_usd(budget.limit_usd)):
            budget.warned_at = None
    budget.updated_at = tx.now
    await tx.budgets.save(budget)
    return await get_budget(tx, budget_id)


async def delete_budget(tx: Tx, budget_id: str) -> None:
    """Delete a budget. Errors: `not_found`."""
    if not await tx.budgets.delete(budget_id):
        raise NotFound("budget", budget_id)


def _check_limit(limit_usd: float) -> float:
    if nanos_from_usd(limit_usd) < 1:
        raise InvalidField("limit_usd", "must be at least a billionth of a dollar.")
    return limit_usd


async def _resolve_subject(tx: Tx, scope: BudgetScope, reference: str | None) -> str | None:
    """Return the id of the key, agent or workflow that a budget is for. Errors: `invalid_field`."""
    if scope == "tenant":
        if reference is not None:
            raise InvalidField("subject", "must be left out of a budget of the whole tenant.")
        return None
    if reference is None:
        raise InvalidField("subject", f"is required: the id or name of the {scope}.")
    if scope == "agent" and (agent := await tx.agents.find(reference)) is not None:
        return agent.id
    if scope == "workflow" and (workflow := await tx.workflows.find(reference)) is not None:
        return workflow.id
    if scope == "key":
        return await _resolve_key(tx, reference)
    raise InvalidField("subject", f"there is no {scope} {reference!r}.")


async def _resolve_key(tx: Tx, reference: str) -> str:
    key = await tx.api_keys.get(reference, None)
    if key is not None:
        return key.id
    key_ids = await tx.budgets.find_keys_by_name(reference)
    if len(key_ids) > 1:
        raise InvalidField("subject", f"there are several API keys named {reference!r}; send the id of one.")
    if not key_ids:
        raise InvalidField("subject", f"there is no API key {reference!r}.")
    return key_ids[0]
