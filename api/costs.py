"""What calls of models cost: one by one, and summed up."""

from typing import Annotated

from litestar import Router, get
from litestar.params import Parameter

from api.front import Front, needs
from domain import costs
from domain.access import Caller
from domain.costs import CallStatus, CostListing, CostSummary, Filter, SummaryPeriod
from domain.pages import Page
from domain.times import moment

_READ = needs("read:costs")
Moment = Annotated[str | None, Parameter(description="A date or a time (RFC 3339), UTC unless it says otherwise.")]


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
    since: Moment = None,
    until: Moment = None,
) -> CostListing:
    """Calls of models, newest first, and what all that match cost. `agent_id` takes a name too."""
    wanted = Filter(
        agent_id=agent_id,
        execution_id=execution_id,
        provider=provider,
        model=model,
        model_name=model_name,
        status=status,
        since=moment("since", since),
        until=moment("until", until),
    )
    async with front.store.begin(caller) as tx:
        return await costs.list_costs(tx, wanted, part)


@get("/costs/summary", opt=_READ)
async def get_cost_summary(
    front: Front,
    caller: Caller,
    period: SummaryPeriod | None = None,
    since: Moment = None,
    until: Moment = None,
) -> CostSummary:
    """Sums over the last day, week (if nothing is said) or month of 30 days, or from `since` to before `until`.

    Exact at any moment.
    """
    async with front.store.begin(caller) as tx:
        return await costs.summary(tx, period, moment("since", since), moment("until", until))


router = Router("/", route_handlers=[list_costs, get_cost_summary], tags=["costs"])
