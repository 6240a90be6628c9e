"""What calls of models cost: one by one, and summed up."""

from litestar import Router, get

from api.front import Front, QueryTime, needs
from domain import costs
from domain.costs import CallStatus, CostListing, CostSummary, Filter, SummaryPeriod
from domain.shared.access import Caller
from domain.shared.pages import Page
from domain.shared.times import read_time_or_none

_READ = needs("read:costs")


@get("/costs", opt=_READ)
async def list_costs(
    front: Front,
    caller: Caller,
    part: Page,
    agent_id: str | None = None,
    execution_id: str | None = None,
    provider: str | None = None,
    model: str | None = None,
    model_name: str | None = None,
    status: CallStatus | None = None,
    since: QueryTime = None,
    until: QueryTime = None,
) -> CostListing:
    """Calls of models, newest first, and what all that match cost. `agent_id` takes a name too."""
    wanted = Filter(
        agent_id=agent_id,
        execution_id=execution_id,
        provider=provider,
        model=model,
        model_name=model_name,
        status=status,
        since=read_time_or_none("since", since),
        until=read_time_or_none("until", until, end=True),
    )
    async with front.store.begin(caller) as tx:
        return await costs.list_costs(tx, wanted, part)


@get("/costs/summary", opt=_READ)
async def get_cost_summary(
    front: Front,
    caller: Caller,
    period: SummaryPeriod | None = None,
    since: QueryTime = None,
    until: QueryTime = None,
) -> CostSummary:
    """Sums over the last day, week (if nothing is said) or month of 30 days, or from `since` to before `until`.

    Exact at any moment.
    """
    async with front.store.begin(caller) as tx:
        ends = read_time_or_none("since", since), read_time_or_none("until", until, end=True)
        return await costs.summary(tx, period, *ends)


router = Router("/", route_handlers=[list_costs, get_cost_summary], tags=["costs"])
