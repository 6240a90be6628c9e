"""Budgets: create, list, change, delete."""

from litestar import Response, Router, delete, get, patch, post

from api.front import Front, created, needs
from api.requests import HttpRequest
from domain.costs import budgets
from domain.costs.budgets import Budget, NewBudget, PatchBudget
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page

_READ, _WRITE = needs("read:costs"), needs("write:costs")


@post("/budgets", opt=_WRITE)
async def create_budget(front: Front, request: HttpRequest, caller: Caller, data: NewBudget) -> Response[Budget]:
    """Limit what is spent on models. The budget begins with what its period has spent already."""
    return await created(front, request, caller, lambda tx: budgets.create(tx, caller, data))


@get("/budgets", opt=_READ)
async def list_budgets(front: Front, caller: Caller, part: Page) -> Listing[Budget]:
    """The tenant's budgets, newest first."""
    async with front.store.begin(caller) as tx:
        return await budgets.list_budgets(tx, part)


@get("/budgets/{budget_id:str}", opt=_READ)
async def get_budget(front: Front, caller: Caller, budget_id: str) -> Budget:
    """One budget, with what it has spent."""
    async with front.store.begin(caller) as tx:
        return await budgets.get(tx, budget_id)


@patch("/budgets/{budget_id:str}", opt=_WRITE)
async def patch_budget(front: Front, caller: Caller, budget_id: str, data: PatchBudget) -> Budget:
    """Change the limit, or whether it holds. What is spent stays."""
    async with front.store.begin(caller) as tx:
        return await budgets.patch(tx, budget_id, data)


@delete("/budgets/{budget_id:str}", opt=_WRITE)
async def delete_budget(front: Front, caller: Caller, budget_id: str) -> None:
    """Remove a budget. Calls under way go on."""
    async with front.store.begin(caller) as tx:
        await budgets.delete(tx, budget_id)


router = Router(
    "/",
    route_handlers=[create_budget, list_budgets, get_budget, patch_budget, delete_budget],
    tags=["budgets"],
)
