"""Remove what is too old, in functions of the owner: the application itself may not delete executions or events."""

from datetime import datetime
from typing import Final
from uuid import UUID

from domain.retention import (
    MAX_REMOVAL_BATCH,
    MAX_REMOVED_EVENTS,
    ExecutionMember,
    ExecutionRecords,
    ExpiringKind,
)
from domain.shared import ids
from infra.postgres.connection import TxConnection

# Steps in the order of ids, as leases are extended and runs are settled.
_MEMBERS_SQL: Final = """
    SELECT e.id, e.status, EXISTS (
        SELECT FROM cost_holds h WHERE h.execution_id = e.id AND h.until > now()) AS is_billed
    FROM executions e WHERE e.id = $1 OR e.root_id = $1 ORDER BY e.id FOR UPDATE OF e
"""
_ARTIFACTS_SQL: Final = "SELECT id, kurral_id FROM artifacts WHERE execution_id = ANY ($1)"
_EVALUATIONS_SQL: Final = """
    SELECT id FROM evaluations WHERE execution_id = ANY ($1)
    UNION SELECT id FROM evaluations WHERE artifact_id = ANY ($2)
"""


class PostgresRetention:
    """Provide `domain.retention.RetentionRepository` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def lock_members(self, execution_id: str) -> list[ExecutionMember]:
        records = await self._connection.fetch(_MEMBERS_SQL, ids.decode_id("exec", execution_id))
        return [
            ExecutionMember(
                id=ids.encode_id("exec", record["id"]), status=record["status"], is_billed=record["is_billed"]
            )
            for record in records
        ]

    async def list_records(self, execution_ids: list[str]) -> ExecutionRecords:
        row_ids = [ids.decode_id("exec", execution_id) for execution_id in execution_ids]
        artifacts = await self._connection.fetch(_ARTIFACTS_SQL, row_ids)
        evaluations = await self._connection.fetch(
            _EVALUATIONS_SQL, row_ids, [record["kurral_id"] for record in artifacts]
        )
        return ExecutionRecords(
            artifact_ids=[ids.encode_id("art", record["id"]) for record in artifacts],
            evaluation_ids=[ids.encode_id("eval", record["id"]) for record in evaluations],
        )

    async def erase_executions(self, execution_ids: list[str], now: datetime) -> None:
        row_ids = [ids.decode_id("exec", execution_id) for execution_id in execution_ids]
        await self._connection.execute_sql("SELECT erase_executions($1, $2)", row_ids, now)

    async def list_event_tenants(self, default_days: int) -> list[tuple[str, int]]:
        query = "SELECT tenant_id, days FROM event_retained_tenants($1)"
        return [(record["tenant_id"], record["days"]) for record in await self._connection.fetch(query, default_days)]

    async def delete_events(self, before: datetime) -> int:
        query = "SELECT forget_events($1, $2, $3)"
        return int(await self._connection.fetch_value(query, before, MAX_REMOVAL_BATCH, MAX_REMOVED_EVENTS))

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
