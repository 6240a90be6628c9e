"""Remove what is too old, in functions of the owner: the application itself may not delete executions or events."""

from datetime import datetime
from uuid import UUID

from domain.retention import MAX_REMOVAL_BATCH, MAX_REMOVED_EVENTS, ExpiringKind
from domain.shared import ids
from infra.postgres.connection import TxConnection


class PostgresRetention:
    """Provide `domain.retention.RetentionRepository` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def list_tenants(self, default_days: int) -> list[tuple[str, int]]:
        records = await self._connection.fetch("SELECT tenant_id, days FROM retained_tenants($1)", default_days)
        return [(record["tenant_id"], record["days"]) for record in records]

    async def delete_expired(self, kind: ExpiringKind, before: datetime) -> int:
        return int(
            await self._connection.fetch_value("SELECT forget_expired($1, $2, $3)", kind, before, MAX_REMOVAL_BATCH)
        )

    async def delete_executions(self, before: datetime) -> int:
        query = "SELECT forget_executions($1, $2, $3)"
        return int(await self._connection.fetch_value(query, before, MAX_REMOVAL_BATCH, MAX_REMOVED_EVENTS))

    async def delete_versions(self, before: datetime) -> int:
        query = "SELECT forget_versions($1, $2, $3)"
        return int(
            await self._connection.fetch_value(query, before, await self._list_ids_in_plans("ver"), MAX_REMOVAL_BATCH)
        )

    async def delete_agents(self, before: datetime) -> int:
        query = "SELECT forget_agents($1, $2, $3)"
        return int(
            await self._connection.fetch_value(query, before, await self._list_ids_in_plans("agent"), MAX_REMOVAL_BATCH)
        )

    async def _list_ids_in_plans(self, prefix: str) -> list[UUID]:
        records = await self._connection.fetch("SELECT id FROM named_in_plans() AS id")
        row_ids = (ids.decode_id(prefix, record["id"]) for record in records)
        return [entry for entry in row_ids if entry is not None]
