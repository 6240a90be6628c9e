"""Budgets: how much a tenant, an API key, an agent or a workflow may spend on models in a period.

Several may apply to one call of a model, and all of them must have room. Money is counted in whole nano-dollars,
so that sums are exact; see `domain.costs` for how calls are held and settled, and `docs/costs.md`.
"""

import math
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Literal, Protocol

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain.ports import Tx
from domain.shared import ids
from domain.shared.access import Caller
from domain.shared.errors import DomainError, InvalidField, NotFound
from domain.shared.pages import Listing, Page
from domain.stats import NANOS_PER_UNIT, StatsQuery

BudgetScope = Literal["tenant", "key", "agent", "workflow"]
BudgetPeriod = Literal["day", "week", "month", "total"]
BudgetStatus = Literal["ok", "warned", "exhausted"]

# Four fifths: 80 %.
WARNING_SHARE: Final = (4, 5)
# What `period_start` is for `total`, where it is kept; callers are told none.
TOTAL_PERIOD_START: Final = datetime(2000, 1, 1, tzinfo=UTC)

LimitUsd = Annotated[float, Meta(gt=0, le=1_000_000_000, description="US dollars.", examples=[50.0])]
BudgetSubject = Annotated[
    str,
    Meta(min_length=1, max_length=200, description="The id or name of the key, agent or workflow; none for `tenant`."),
]


class Budget(msgspec.Struct, kw_only=True):
    """A budget, with what its present period (UTC; weeks begin on Monday) has spent, in US dollars.

    `held_usd` is set aside for calls under way. `status` is `warned` from 80 % spent on, and `exhausted` when all is;
    `warned_at` tells which moment of this period was warned of. `period_start` is null for `total`.
    """

    id: str
    tenant_id: str
    scope: BudgetScope
    subject: str | None
    limit_usd: float
    period: BudgetPeriod
    enabled: bool
    period_start: datetime | None
    spent_usd: float
    held_usd: float
    remaining_usd: float
    status: BudgetStatus
    warned_at: datetime | None
    created_at: datetime
    updated_at: datetime


class NewBudget(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What to create. It begins with what its period has spent already."""

    scope: Annotated[BudgetScope, Meta(examples=["tenant"])]
    subject: BudgetSubject | None = None
    limit_usd: LimitUsd
    period: Annotated[BudgetPeriod, Meta(examples=["month"])]
    enabled: bool = True


class PatchBudget(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What may change of a budget."""

    limit_usd: LimitUsd | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET


class AppliedLimit(msgspec.Struct, frozen=True, kw_only=True):
    """A limit as it applies to one call, in nano-dollars: a budget, or with scope `run` the run's own.

    `amount` is the room that it has for the call, or what is spent of it with the call.
    """

    budget_id: str | None
    scope: Literal["run"] | BudgetScope
    period: BudgetPeriod
    limit: int
    amount: int


class Budgets(Protocol):
    """The budgets of the bound tenant, and what calls hold of them. Amounts are nano-dollars.

    `subjects` are the ids of the key, agent and workflow that a call is for.
    """

    async def add(self, budget: Budget, spent: int) -> None: ...
    async def get(self, budget_id: str, now: datetime, lock: bool = False) -> Budget | None: ...
    async def list_page(self, now: datetime, page: Page) -> Listing[Budget]: ...
    async def save(self, budget: Budget) -> None:
        """Write down limit, `enabled` and `warned_at`."""
        ...

    async def delete(self, budget_id: str) -> bool: ...
    async def find_keys_by_name(self, name: str) -> list[str]:
        """The ids of up to two of the tenant's API keys of this name."""
        ...

    async def lock_spending(self) -> None:
        """Let no call of the tenant be settled until the commit."""
        ...

    async def reserve_amount(
        self,
        execution_id: str | None,
        root_id: str | None,
        subjects: list[str],
        run_limit: int | None,
        wanted: int,
        least: int,
        now: datetime,
        until: datetime,
    ) -> tuple[str | None, int] | AppliedLimit:
        """Set aside from `least` to `wanted` of every budget: the hold's id and how much, or what has too little room.

        No id if there is no limit at all.
        """
        ...

    async def record_spending(
        self,
        hold_id: str | None,
        execution_id: str | None,
        subjects: list[str],
        run_limit: int | None,
        cost: int,
        now: datetime,
    ) -> list[AppliedLimit]:
        """Give up a hold and count a cost everywhere, in all that the run belongs to as well.

        Returns what has to be warned of.
        """
        ...


def nanos_from_usd(usd: float) -> int:
    """Dollars as whole nano-dollars, as statistics round them."""
    return round(usd * NANOS_PER_UNIT)


def ceil_nanos_from_usd(usd: float) -> int:
    """Dollars as whole nano-dollars that are enough; what floats are off by is no reason for one more."""
    return math.ceil(round(usd * NANOS_PER_UNIT, 3))


def format_dollars(amount: int, up: bool = False) -> str:
    """Nano-dollars for a sentence, with as many decimals as tell something, rounded to the safe side."""
    size = abs(amount)
    places = 2 if size >= NANOS_PER_UNIT or size == 0 else 4 if size >= NANOS_PER_UNIT // 10_000 else 9
    step = 10 ** (9 - places)
    shown = (-(-amount // step) if up else amount // step) * step
    return f"{'-' if shown < 0 else ''}${abs(shown) / NANOS_PER_UNIT:.{places}f}"


def describe_limit(limit: AppliedLimit) -> str:
    """Which limit it is, to begin a sentence with."""
    if limit.scope == "run":
        return f"The run's cost limit of {format_dollars(limit.limit)}"
    owner = {"tenant": "tenant", "key": "API key", "agent": "agent", "workflow": "workflow"}[limit.scope]
    period = "in total" if limit.period == "total" else f"per {limit.period}"
    return f"The {owner}'s budget of {format_dollars(limit.limit)} {period}"


def find_period_start(period: BudgetPeriod, now: datetime) -> datetime:
    """When the period of a time in UTC began."""
    if period == "total":
        return TOTAL_PERIOD_START
    day = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if period == "week":
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if period == "month" else day


def is_warning_due(spent: int, limit: int) -> bool:
    """Whether so much is spent that somebody should know."""
    return spent * WARNING_SHARE[1] >= limit * WARNING_SHARE[0]


def status_from_spending(spent: int, limit: int) -> BudgetStatus:
    """The status of a budget."""
    return "exhausted" if spent >= limit else "warned" if is_warning_due(spent, limit) else "ok"


async def create_budget(tx: Tx, caller: Caller, data: NewBudget) -> Budget:
    """Make a budget. It begins with what its period has spent already. Errors: `invalid_field`."""
    made = Budget(
        id=ids.generate_id("bud"),
        tenant_id=caller.tenant_id,
        scope=data.scope,
        subject=await _subject(tx, data.scope, data.subject),
        limit_usd=_checked(data.limit_usd),
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
    # Nothing may be settled between the sum and the commit: it would be counted neither here nor there.
    await tx.budgets.lock_spending()
    wanted = {} if made.subject is None else {f"{data.scope}_id": made.subject}
    since = None if data.period == "total" else made.period_start
    spent = (await tx.stats.sum_groups(StatsQuery(kind="costs", filters=wanted, since=since))).sum_measure("cost_usd")
    await tx.budgets.add(made, spent)
    return await get_budget(tx, made.id)


async def get_budget(tx: Tx, budget_id: str, lock: bool = False) -> Budget:
    """A budget. Errors: `not_found`."""
    found = await tx.budgets.get(budget_id, tx.now, lock)
    if found is None:
        raise NotFound("budget", budget_id)
    return found


async def list_budgets(tx: Tx, page: Page) -> Listing[Budget]:
    """The tenant's budgets, newest first."""
    return await tx.budgets.list_page(tx.now, page)


async def update_budget(tx: Tx, budget_id: str, data: PatchBudget) -> Budget:
    """Change what was sent. A limit of which less than 80 % is spent is warned of anew. Errors: `not_found`."""
    budget = await get_budget(tx, budget_id, lock=True)
    if data.enabled is not UNSET:
        budget.enabled = data.enabled
    if data.limit_usd is not UNSET:
        budget.limit_usd = _checked(data.limit_usd)
        if not is_warning_due(nanos_from_usd(budget.spent_usd), nanos_from_usd(budget.limit_usd)):
            budget.warned_at = None
    budget.updated_at = tx.now
    await tx.budgets.save(budget)
    return await get_budget(tx, budget_id)


async def delete_budget(tx: Tx, budget_id: str) -> None:
    """Remove a budget. Errors: `not_found`."""
    if not await tx.budgets.delete(budget_id):
        raise NotFound("budget", budget_id)


def _checked(limit_usd: float) -> float:
    if nanos_from_usd(limit_usd) < 1:
        raise InvalidField("limit_usd", "is less than a billionth of a dollar.")
    return limit_usd


async def _subject(tx: Tx, scope: BudgetScope, reference: str | None) -> str | None:
    """The id of what a budget is for. Errors: `invalid_field`."""
    if scope == "tenant":
        if reference is not None:
            raise InvalidField("subject", "is not for a budget of the whole tenant.")
        return None
    if reference is None:
        raise InvalidField("subject", f"is required: the id or name of the {scope}.")
    if scope == "agent" and (agent := await tx.agents.find(reference)) is not None:
        return agent.id
    if scope == "workflow" and (workflow := await tx.workflows.find(reference)) is not None:
        return workflow.id
    if scope == "key":
        return await _key(tx, reference)
    raise _unknown(scope, reference)


async def _key(tx: Tx, reference: str) -> str:
    key = await tx.api_keys.get(reference, None)
    if key is not None:
        return key.id
    found = await tx.budgets.find_keys_by_name(reference)
    if len(found) > 1:
        raise InvalidField("subject", f"there are several API keys named {reference!r}; send the id of one.")
    if not found:
        raise _unknown("API key", reference)
    return found[0]


def _unknown(kind: str, reference: str) -> DomainError:
    return InvalidField("subject", f"there is no {kind} {reference!r}.")
