"""Find rows that need a worker, over all tenants, through views that show ids and times alone."""

from datetime import datetime, timedelta

from sqlalchemy import text

from domain.queues import ExpiredLease, QueuedBuild, QueueStats
from domain.shared import ids
from domain.shared.jobs import ALL_LANES, ROW_PREFIX_BY_LANE, Job, Lane
from infra.postgres.connection import TxConnection
from infra.postgres.db import struct_from_row

_STATS_SQL = text(
    """
    SELECT lane, count(*) FILTER (WHERE waiting) AS depth, count(*) FILTER (WHERE NOT waiting) AS running,
           CAST(extract(epoch FROM :now - min(since) FILTER (WHERE waiting)) AS double precision) AS oldest_seconds
    FROM open_work WHERE CAST(:tenant AS text) IS NULL OR tenant_id = :tenant GROUP BY lane
    """
)

_EXTEND_SQL = text(
    "SELECT row_id FROM extend_leases("
    ":lane, CAST(:ids AS uuid[]), CAST(:attempts AS integer[]), :until, :stale) AS row_id"
)


class PostgresWorkQueues:
    """Provide `domain.queues.WorkQueues` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def list_stats(self, now: datetime, tenant_id: str | None = None) -> list[QueueStats]:
        rows = (await self._connection.execute(_STATS_SQL, {"now": now, "tenant": tenant_id})).all()
        result = {row.lane: dict(row._mapping) for row in rows}
        failed = await self._connection.execute(
            text("SELECT * FROM failed_since(:since, CAST(:tenant AS text))"),
            {"since": now - timedelta(days=1), "tenant": tenant_id},
        )
        failures = {row.lane: row.failed for row in failed}
        empty = {"depth": 0, "running": 0, "oldest_seconds": None}
        return [
            struct_from_row(
                {**empty, **result.get(lane, {}), "lane": lane, "failed": failures.get(lane, 0)}, QueueStats
            )
            for lane in ALL_LANES
        ]

    async def count_runs_by_status(self, since: datetime) -> dict[str, int]:
        rows = await self._connection.execute(text("SELECT * FROM run_states(:since)"), {"since": since})
        return {row.status: row.runs for row in rows}

    async def list_waiting_jobs(self, lane: Lane, before: datetime, limit: int) -> list[Job]:
        rows = await self._connection.execute(
            text(
                "SELECT lane, row_id, tenant_id, attempt FROM open_work "
                "WHERE lane = :lane AND waiting AND since < :before ORDER BY since LIMIT :limit"
            ),
            {"lane": lane, "before": before, "limit": limit},
        )
        return [
            Job(
                lane=row.lane,
                row_id=ids.encode_id(ROW_PREFIX_BY_LANE[row.lane], row.row_id),
                tenant_id=row.tenant_id,
                attempt=row.attempt,
            )
            for row in rows
        ]

    async def find_next_build(self, newcomers: bool) -> QueuedBuild | None:
        query = text("SELECT * FROM next_build(:newcomers)")
        row = (await self._connection.execute(query, {"newcomers": newcomers})).first()
        return None if row is None else QueuedBuild(row_id=ids.encode_id("ver", row.row_id), tenant_id=row.tenant_id)

    async def list_expired_leases(self, now: datetime, limit: int) -> list[ExpiredLease]:
        rows = await self._connection.execute(
            text(
                "SELECT lane, row_id, tenant_id FROM open_work "
                "WHERE lease_expires_at < :now ORDER BY lease_expires_at LIMIT :limit"
            ),
            {"now": now, "limit": limit},
        )
        return [
            ExpiredLease(
                lane=row.lane, row_id=ids.encode_id(ROW_PREFIX_BY_LANE[row.lane], row.row_id), tenant_id=row.tenant_id
            )
            for row in rows
        ]

    async def extend_leases(self, lane: Lane, attempts: dict[str, int], until: datetime, stale: datetime) -> set[str]:
        prefix = ROW_PREFIX_BY_LANE[lane]
        rows = await self._connection.execute(
            _EXTEND_SQL,
            {
                "lane": lane,
                "ids": [ids.decode_id(prefix, row_id) for row_id in attempts],
                "attempts": list(attempts.values()),
                "until": until,
                "stale": stale,
            },
        )
        return {ids.encode_id(prefix, row.row_id) for row in rows}

    async def probe_writes(self) -> None:
        await self._connection.execute(text("UPDATE workers SET seen_at = seen_at WHERE lane = 'upkeep'"))
