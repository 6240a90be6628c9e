"""Handle the caller's tenant: get it and update its limits."""

from litestar import Router, get, patch

from api.operations import require_scope
from api.requests import Store
from domain import accounts
from domain.accounts import PatchTenant, Tenant
from domain.shared.access import Caller


@get("/tenant", opt=require_scope("read:agents"))
async def get_tenant(store: Store, caller: Caller) -> Tenant:
    """Return the caller's tenant."""
    async with store.transaction(caller) as tx:
        return await accounts.get_tenant(tx, caller)


@patch("/tenant", opt=require_scope("admin"))
async def update_tenant(store: Store, caller: Caller, data: PatchTenant) -> Tenant:
    """Change the fields that are sent. Executions beyond `max_concurrency` wait for running ones to end.

    Artifacts, evaluations, costs, ended executions and unused versions older than `retention_days` are deleted within
    an hour.
    """
    async with store.transaction(caller) as tx:
        return await accounts.patch_tenant(tx, caller, data)


router = Router("/", route_handlers=[get_tenant, update_tenant], tags=["accounts"])
