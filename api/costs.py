"""Handle costs of model calls: list them and return their sums."""

from dataclasses import dataclass

from litestar import Router, get
from litestar.di import Provide

from api.operations import require_scope
from api.queries import build_filter
from api.requests import QueryTime, Store
from domain import costs
from domain.costs import CostFilter, CostListing, CostSummary, ModelCallStatus, SummaryPeriod
from domain.shared.access import Caller
from domain.shared.pages import Page
from domain.shared.times import read_time_or_none

_READ_ACCESS = require_scope("read:costs")


@dataclass(frozen=True, kw_only=True)
class CostQuery:
    """Hold the query parameters that select model calls."""

    agent_id: str | None = None
    execution_id: str | None = None
    provider: str | None = None
    model: str | None = None
    model_name: str | None = None
    status: ModelCallStatus | None = None
    since: QueryTime = None
    until: QueryTime = None

    def to_filter(self) -> CostFilter:
        """Return the filter: equal in every given parameter, from `since` on and before `until`."""
        return build_filter(CostFilter, self)


@get("/costs", opt=_READ_ACCESS, dependencies={"query_filter": Provide(CostQuery, sync_to_thread=False)})
async def list_costs(store: Store, caller: Caller, pagination: Page, query_filter: CostQuery) -> CostListing:
    """List model calls, newest first, with the total cost of all that match. `agent_id` takes a name too."""
    cost_filter = query_filter.to_filter()
    async with store.transaction(caller) as tx:
        return await costs.list_costs(tx, cost_filter, pagination)


@get("/costs/summary", opt=_READ_ACCESS)
async def get_cost_summary(
    store: Store,
    caller: Caller,
    period: SummaryPeriod | None = None,
    since: QueryTime = None,
    until: QueryTime = None,
) -> CostSummary:
    """Return the costs of the last day, week (the default) or month of 30 days, or from `since` to before `until`.

    They are exact at any moment.
    """
    first, last = read_time_or_none("since", since), read_time_or_none("until", until, is_end=True)
    async with store.transaction(caller) as tx:
        return await costs.summarize_costs(tx, period, first, last)


router = Router("/", route_handlers=[list_costs, get_cost_summary], tags=["costs"])
