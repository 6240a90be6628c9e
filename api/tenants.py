"""The caller's tenant: see it, and limit how much of it runs at the same time."""

from litestar import Router, get, patch

from api.front import Front, needs
from domain.accounts import tenants
from domain.accounts.tenants import PatchTenant, Tenant
from domain.shared.access import Caller


@get("/tenant", opt=needs("read:agents"))
async def get_tenant(front: Front, caller: Caller) -> Tenant:
    """The caller's tenant."""
    async with front.store.begin(caller) as tx:
        return await tenants.get(tx, caller)


@patch("/tenant", opt=needs("admin"))
async def patch_tenant(front: Front, caller: Caller, data: PatchTenant) -> Tenant:
    """Change what was sent. Executions beyond `max_concurrency` wait for those that run.

    Artifacts, evaluations, costs, ended executions and unused versions from more than `retention_days` ago are deleted
    within the hour.
    """
    async with front.store.begin(caller) as tx:
        return await tenants.patch(tx, caller, data)


router = Router("/", route_handlers=[get_tenant, patch_tenant], tags=["accounts"])
