"""Manage the settings of a tenant."""

from datetime import datetime
from typing import Annotated, Literal, Protocol

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain import egress
from domain.agents import MaxConcurrency
from domain.ports import Tx
from domain.shared.access import Caller
from domain.shared.errors import InvalidField, require_found
from domain.shared.jobs import Job

RetentionDays = Annotated[int, Meta(ge=1, le=36_500, description="Days.", examples=[90])]

EgressWords = Annotated[
    list[str] | Literal["off", "declared"],
    Meta(description="`off`, `declared`, or hosts: `api.github.com`, `db.example.com:5432`, `*.openai.com`."),
]


class Tenant(msgspec.Struct, kw_only=True):
    """Show a tenant. At most `max_concurrency` of its executions run at the same time; the others wait.

    The installation may set a limit for all tenants (`PADDOCK_TENANT_MAX_CONCURRENCY`); the lower limit applies.
    Data older than `retention_days` is deleted: artifacts, evaluations and costs, with their statistics; executions
    that ended earlier, with their logs, steps and files; and unused versions. null keeps data for as long as the
    installation does (`PADDOCK_RETENTION_DAYS`). Events of executions that ended more than `event_retention_days` ago
    are deleted earlier, but the last of each; null keeps them for `PADDOCK_EVENT_RETENTION_DAYS`.

    `egress` are the hosts that uploaded code may reach: `declared` for all that its manifests declare, `off` for none,
    or a list, like a manifest's. `PADDOCK_EGRESS` of the installation narrows it further.
    """

    id: str
    plan: str
    max_concurrency: int | None
    retention_days: int | None
    event_retention_days: int | None
    egress: EgressWords
    created_at: datetime


class PatchTenant(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Change the caller's tenant. `null` removes a limit; as `egress` it means `declared`."""

    max_concurrency: MaxConcurrency | None | UnsetType = UNSET
    retention_days: RetentionDays | None | UnsetType = UNSET
    event_retention_days: RetentionDays | None | UnsetType = UNSET
    egress: EgressWords | None | UnsetType = UNSET


class Tenants(Protocol):
    """Store the bound tenant."""

    async def get(self, tenant_id: str) -> Tenant | None: ...
    async def save(self, tenant: Tenant) -> None: ...


async def get_tenant(tx: Tx, caller: Caller) -> Tenant:
    """Return the caller's tenant."""
    return require_found("tenant", caller.tenant_id, await tx.tenants.get(caller.tenant_id))


async def patch_tenant(tx: Tx, caller: Caller, data: PatchTenant) -> Tenant:
    """Change the fields that were sent of the caller's tenant."""
    tenant = await get_tenant(tx, caller)
    if data.max_concurrency is not UNSET:
        tenant.max_concurrency = data.max_concurrency
        tx.ring_job(Job(lane="run", row_id=tenant.id, tenant_id=tenant.id, attempt=0))
    if data.retention_days is not UNSET:
        tenant.retention_days = data.retention_days
    if data.event_retention_days is not UNSET:
        tenant.event_retention_days = data.event_retention_days
    if data.egress is not UNSET:
        tenant.egress = _normalize_egress(data.egress or "off" if data.egress is not None else "declared")
    await tx.tenants.save(tenant)
    return tenant


def _normalize_egress(words: EgressWords) -> EgressWords:
    """Return a policy as it is stored. Errors: `invalid_field`."""
    try:
        policy = egress.parse_policy(words)
    except egress.BadEgressEntry as error:
        raise InvalidField("egress", str(error)) from None
    return words if isinstance(words, str) else egress.format_entries(policy.entries or ())
