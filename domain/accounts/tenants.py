"""Tenants: what holds for everybody in one of them."""

from datetime import datetime
from typing import Annotated, Protocol

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain.agents.schema import MaxConcurrency
from domain.ports import Tx
from domain.shared.access import Caller
from domain.shared.errors import NotFound
from domain.shared.jobs import Job

RetentionDays = Annotated[int, Meta(ge=1, le=36_500, description="Days.", examples=[90])]


class Tenant(msgspec.Struct, kw_only=True):
    """A tenant. At most `max_concurrency` of its executions run at the same time; the others wait.

    The installation may set a lower bound for all (`PADDOCK_TENANT_MAX_CONCURRENCY`); the lower one holds.
    Artifacts, evaluations and costs from more than `retention_days` ago are deleted, with all they count, and so are
    executions that ended before, with their logs, steps and files, and versions that serve nothing any more. null keeps
    them for as long as the installation does (`PADDOCK_RETENTION_DAYS`).
    """

    id: str
    plan: str
    max_concurrency: int | None
    retention_days: int | None
    created_at: datetime


class PatchTenant(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What an admin may change of the own tenant. `null` takes a limit away."""

    max_concurrency: MaxConcurrency | None | UnsetType = UNSET
    retention_days: RetentionDays | None | UnsetType = UNSET


class Tenants(Protocol):
    """The bound tenant."""

    async def get(self, tenant_id: str) -> Tenant | None: ...
    async def save(self, tenant: Tenant) -> None: ...


async def get_tenant(tx: Tx, caller: Caller) -> Tenant:
    """The caller's tenant."""
    tenant = await tx.tenants.get(caller.tenant_id)
    if tenant is None:
        raise NotFound("tenant", caller.tenant_id)
    return tenant


async def patch_tenant(tx: Tx, caller: Caller, data: PatchTenant) -> Tenant:
    """Change what was sent of the caller's tenant."""
    tenant = await get_tenant(tx, caller)
    if data.max_concurrency is not UNSET:
        tenant.max_concurrency = data.max_concurrency
        tx.ring_job(Job(lane="run", row_id=tenant.id, tenant_id=tenant.id, attempt=0))
    if data.retention_days is not UNSET:
        tenant.retention_days = data.retention_days
    await tx.tenants.save(tenant)
    return tenant
