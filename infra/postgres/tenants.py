"""Read and save the bound tenant in Postgres."""

from sqlalchemy import select, update

from domain.accounts import Tenant
from infra.postgres.accounts import TenantRow
from infra.postgres.connection import TxConnection
from infra.postgres.db import struct_from_row


class PostgresTenants:
    """Provide `domain.accounts.tenants.Tenants` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def get(self, tenant_id: str) -> Tenant | None:
        row = (await self._connection.execute(select(TenantRow).where(TenantRow.id == tenant_id))).first()
        return None if row is None else struct_from_row(row, Tenant)

    async def save(self, tenant: Tenant) -> None:
        changed = update(TenantRow).where(TenantRow.id == tenant.id)
        values = {name: getattr(tenant, name) for name in ("max_concurrency", "retention_days")}
        await self._connection.execute(changed.values(**values))
