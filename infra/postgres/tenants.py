"""Read and save the bound tenant in Postgres."""

from typing import Final

from sqlalchemy import select, update

from domain.accounts import Tenant
from infra.postgres.accounts import TenantRow
from infra.postgres.connection import TxConnection
from infra.postgres.db import struct_from_row

_COLUMN_VALUES: Final[dict[str, list[str] | None]] = {"declared": None, "off": []}


class PostgresTenants:
    """Provide `domain.accounts.tenants.Tenants` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def get(self, tenant_id: str) -> Tenant | None:
        row = (await self._connection.execute(select(TenantRow).where(TenantRow.id == tenant_id))).first()
        if row is None:
            return None
        # A column that is null stands for all that is declared, an empty list for nothing.
        words = "declared" if row.egress is None else row.egress or "off"
        return struct_from_row({**row._mapping, "egress": words}, Tenant)

    async def save(self, tenant: Tenant) -> None:
        changed = update(TenantRow).where(TenantRow.id == tenant.id)
        values = {name: getattr(tenant, name) for name in ("max_concurrency", "retention_days", "event_retention_days")}
        values["egress"] = tenant.egress if isinstance(tenant.egress, list) else _COLUMN_VALUES[tenant.egress]
        await self._connection.execute(changed.values(**values))
