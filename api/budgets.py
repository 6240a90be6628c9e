"""Handle budgets: create, list, get, update and delete."""

from litestar import Response, Router, delete, get, patch, post

from api.idempotency import ResourceCreator
from api.operations import IDEMPOTENCY_KEY, require_scope
from api.requests import HttpRequest, Store
from domain.costs import Budget, NewBudget, PatchBudget, budgets
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page

_READ_ACCESS, _WRITE_ACCESS = require_scope("read:costs"), require_scope("write:costs")


@post("/budgets", opt=require_scope("write:costs", IDEMPOTENCY_KEY))
async def create_budget(
    creator: ResourceCreator, request: HttpRequest, caller: Caller, data: NewBudget
) -> Response[Budget]:
    """Limit the cost of models. The budget starts with the cost of its current period so far."""
    return await creator.create_idempotently(request, caller, lambda tx: budgets.create_budget(tx, caller, data))


@get("/budgets", opt=_READ_ACCESS)
async def list_budgets(store: Store, caller: Caller, pagination: Page) -> Listing[Budget]:
    """List the tenant's budgets, newest first."""
    async with store.transaction(caller) as tx:
        return await budgets.list_budgets(tx, pagination)


@get("/budgets/{budget_id:str}", opt=_READ_ACCESS)
async def get_budget(store: Store, caller: Caller, budget_id: str) -> Budget:
    """Return a budget, with the cost of its current period."""
    async with store.transaction(caller) as tx:
        return await budgets.get_budget(tx, budget_id)


@patch("/budgets/{budget_id:str}", opt=_WRITE_ACCESS)
async def update_budget(store: Store, caller: Caller, budget_id: str, data: PatchBudget) -> Budget:
    """Change a budget's limit, or activate or deactivate it. Its cost so far stays."""
    async with store.transaction(caller) as tx:
        return await budgets.update_budget(tx, budget_id, data)


@delete("/budgets/{budget_id:str}", opt=_WRITE_ACCESS)
async def delete_budget(store: Store, caller: Caller, budget_id: str) -> None:
    """Delete a budget. Model calls in progress continue."""
    async with store.transaction(caller) as tx:
        await budgets.delete_budget(tx, budget_id)


router = Router(
    "/",
    route_handlers=[create_budget, list_budgets, get_budget, update_budget, delete_budget],
    tags=["budgets"],
)
