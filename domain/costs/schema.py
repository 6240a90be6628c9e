"""Define costs, one row for every call of a model, and budgets, which limit them."""

from datetime import datetime
from typing import Annotated, Literal, Protocol

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain.costs.money import nanos_from_usd
from domain.llms import ModelUsage
from domain.shared.pages import Listing, Page
from domain.stats import StatsQuery

ModelCallStatus = Literal["ok", "error", "cancelled"]
SummaryPeriod = Literal["day", "week", "month"]
BudgetScope = Literal["tenant", "key", "agent", "workflow"]
BudgetPeriod = Literal["day", "week", "month", "total"]
BudgetStatus = Literal["ok", "warned", "exhausted"]

LimitUsd = Annotated[float, Meta(gt=0, le=1_000_000_000, description="US dollars.", examples=[50.0])]
BudgetSubject = Annotated[
    str,
    Meta(min_length=1, max_length=200, description="The id or name of the key, agent or workflow; none for `tenant`."),
]


class Cost(msgspec.Struct, kw_only=True):
    """Describe one call of a model. `cost_usd` in US dollars, times in milliseconds; `timestamp` repeats `created_at`.

    `model` is the provider's name of the model, `model_name` the one in our registry. `estimated` tells that the
    provider did not report how many tokens it took. Names are those of the time of the call.
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
    """List a page of costs, newest first. `total_cost` is of all that match, in US dollars."""

    items: list[Cost]
    total: int
    limit: int
    offset: int
    has_more: bool
    total_cost: float


class CostSummary(msgspec.Struct, kw_only=True):
    """Sum up calls of models, in US dollars, the largest first; calls without an agent are in the totals only.

    Quantiles of the duration of calls, in milliseconds, are within 1 % of the true value.
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
    """Select costs of a list. Times are inclusive at `since`, exclusive at `until`."""

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
    """Name the run, agent, key, workflow and user that a call of a model is charged to.

    `cost_limit` is that of the run, in US dollars. Where the run belongs to a plan, `root_id`, it is the limit of the
    plan, and the cost counts for the plan too.
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
        """Return the ids that a budget may be for, besides the tenant."""
        return [subject for subject in (self.key_id, self.agent_id, self.workflow_id) if subject is not None]

    @property
    def run_limit(self) -> int | None:
        """Return the run's own limit, in nano-dollars."""
        return None if self.cost_limit is None else nanos_from_usd(self.cost_limit)


class BilledCall(msgspec.Struct, frozen=True, kw_only=True):
    """Describe a call that has ended. `cost_usd` is what it cost, also after an error; times in milliseconds."""

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


class Budget(msgspec.Struct, kw_only=True):
    """Describe a budget and the spending of its present period (UTC; weeks begin on Monday), in US dollars.

    `held_usd` is reserved for calls under way. `status` is `warned` from 80 % spent on, and `exhausted` at 100 %;
    `warned_at` is the time of the warning of this period. `period_start` is null for `total`.
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
    """Define a budget to create. It begins with what its period has spent already."""

    scope: Annotated[BudgetScope, Meta(examples=["tenant"])]
    subject: BudgetSubject | None = None
    limit_usd: LimitUsd
    period: Annotated[BudgetPeriod, Meta(examples=["month"])]
    enabled: bool = True


class PatchBudget(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Change a budget; fields left out stay."""

    limit_usd: LimitUsd | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET


class AppliedLimit(msgspec.Struct, frozen=True, kw_only=True):
    """Describe a limit as it applies to one call, in nano-dollars: a budget, or with scope `run` the run's own.

    `amount` is what is left for the call, or what is spent with the call included.
    """

    budget_id: str | None
    scope: Literal["run"] | BudgetScope
    period: BudgetPeriod
    limit: int
    amount: int


class BudgetReservation(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what a call may cost, in US dollars. Without an `id` nothing is reserved: no limit applies to the call."""

    id: str | None
    amount_usd: float


class BudgetWarning(msgspec.Struct, frozen=True, kw_only=True):
    """Warn of a budget, or with scope `run` a run's own limit, of which 80 % are spent. Amounts in US dollars."""

    budget_id: str | None
    scope: Literal["run"] | BudgetScope
    period: BudgetPeriod
    limit_usd: float
    spent_usd: float
    message: str


class CostSettlement(msgspec.Struct, frozen=True, kw_only=True):
    """Report a recorded call and its new warnings: each budget warns once in a period, a run once.

    `is_repeat` tells that the call had been recorded before, with all that it cost.
    """

    cost_id: str
    warnings: list[BudgetWarning]
    is_repeat: bool = False


class Costs(Protocol):
    """Store the costs of the bound tenant. Every change writes its statistics deltas in the same statement."""

    async def add(self, cost_id: str, attribution: CostAttribution, call: BilledCall, now: datetime) -> bool:
        """Add a cost. Returns whether it is new."""
        ...

    async def sum_usage(self, execution_id: str) -> ModelUsage:
        """Return the tokens of an execution and its steps."""
        ...

    async def list_page(self, query: StatsQuery, page: Page) -> CostListing: ...
    async def list_older(self, before: datetime, limit: int) -> list[str]:
        """List the ids of the oldest costs from before a time."""
        ...

    async def delete_many(self, cost_ids: list[str]) -> int: ...


class Budgets(Protocol):
    """Store the budgets of the bound tenant, and the reservations of calls. Amounts are nano-dollars."""

    async def add(self, budget: Budget, spent: int) -> None: ...
    async def get(self, budget_id: str, now: datetime, lock: bool = False) -> Budget | None: ...
    async def list_page(self, now: datetime, page: Page) -> Listing[Budget]: ...
    async def save(self, budget: Budget) -> None:
        """Write the limit, `enabled` and `warned_at`."""
        ...

    async def delete(self, budget_id: str) -> bool: ...
    async def find_keys_by_name(self, name: str) -> list[str]:
        """Return the ids of up to two of the tenant's API keys of this name."""
        ...

    async def lock_spending(self) -> None:
        """Block the settlement of the tenant's calls until the commit."""
        ...

    async def reserve_amount(
        self, attribution: CostAttribution, wanted_nanos: int, least: int, now: datetime, until: datetime
    ) -> tuple[str | None, int] | AppliedLimit:
        """Reserve from `least` to `wanted` of every budget that applies.

        Returns the reservation's id and amount, without an id if no limit applies; or the limit that has too little
        left.
        """
        ...

    async def record_spending(
        self, reservation_id: str | None, attribution: CostAttribution, cost: int, now: datetime
    ) -> list[AppliedLimit]:
        """Release a reservation and count a cost everywhere, also in the plan that the run belongs to.

        Returns the limits to warn of.
        """
        ...
