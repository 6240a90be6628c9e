"""Rows that need a worker, over all tenants, through views that show ids and times alone."""

from datetime import datetime, timedelta

from sqlalchemy import Text, delete, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapped, mapped_column

from domain.queues import ExpiredLease, QueuedBuild, QueueStats, WorkerInfo
from domain.shared import ids
from domain.shared.jobs import ALL_LANES, ROW_PREFIX_BY_LANE, Job, Lane
from domain.stats import RECORD_KINDS, RecordKind
from infra.postgres.db import Base, struct_from_row, timestamp


class WorkerRow(Base):
    """A worker process by its last sign of life. Belongs to the host, not to a tenant."""

    __tablename__ = "workers"
    id: Mapped[str] = mapped_column(Text, primary_key=True)
    lane: Mapped[str] = mapped_column(Text)
    host: Mapped[str] = mapped_column(Text)
    pid: Mapped[int]
    slots: Mapped[int]
    busy: Mapped[int]
    warm: Mapped[int]
    blank: Mapped[int]
    problem: Mapped[str | None] = mapped_column(Text)
    metrics_port: Mapped[int | None]
    started_at: Mapped[datetime] = mapped_column(timestamp())
    seen_at: Mapped[datetime] = mapped_column(timestamp())


_STATS = text(
    """
    SELECT lane, count(*) FILTER (WHERE waiting) AS depth, count(*) FILTER (WHERE NOT waiting) AS running,
           CAST(extract(epoch FROM :now - min(since) FILTER (WHERE waiting)) AS double precision) AS oldest_seconds
    FROM open_work WHERE CAST(:tenant AS text) IS NULL OR tenant_id = :tenant GROUP BY lane
    """
)

_EXTEND = text(
    "SELECT row_id FROM extend_leases("
    ":lane, CAST(:ids AS uuid[]), CAST(:attempts AS integer[]), :until, :stale) AS row_id"
)


class PostgresWorkQueues:
    """Implements `domain.queues.WorkQueues`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def list_stats(self, now: datetime, tenant_id: str | None = None) -> list[QueueStats]:
        rows = (await self._connection.execute(_STATS, {"now": now, "tenant": tenant_id})).all()
        found = {row.lane: dict(row._mapping) for row in rows}
        failed = await self._connection.execute(
            text("SELECT * FROM failed_since(:since, CAST(:tenant AS text))"),
            {"since": now - timedelta(days=1), "tenant": tenant_id},
        )
        failures = {row.lane: row.failed for row in failed}
        empty = {"depth": 0, "running": 0, "oldest_seconds": None}
        return [
            struct_from_row({**empty, **found.get(lane, {}), "lane": lane, "failed": failures.get(lane, 0)}, QueueStats)
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

    async def extend_leases(self, lane: Lane, held: dict[str, int], until: datetime, stale: datetime) -> set[str]:
        prefix = ROW_PREFIX_BY_LANE[lane]
        rows = await self._connection.execute(
            _EXTEND,
            {
                "lane": lane,
                "ids": [ids.decode_id(prefix, row_id) for row_id in held],
                "attempts": list(held.values()),
                "until": until,
                "stale": stale,
            },
        )
        return {ids.encode_id(prefix, row.row_id) for row in rows}

    async def probe_writes(self) -> None:
        await self._connection.execute(text("UPDATE workers SET seen_at = seen_at WHERE lane = 'upkeep'"))

    async def list_workers(self, since: datetime) -> list[WorkerInfo]:
        rows = await self._connection.execute(
            select(WorkerRow).where(WorkerRow.seen_at >= since).order_by(WorkerRow.id)
        )
        return [struct_from_row(row, WorkerInfo) for row in rows]

    async def record_heartbeat(self, worker: WorkerInfo) -> None:
        values = {name: getattr(worker, name) for name in WorkerInfo.__struct_fields__}
        statement = insert(WorkerRow).values(**values)
        await self._connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=values))

    async def delete_worker(self, worker_id: str) -> None:
        await self._connection.execute(delete(WorkerRow).where(WorkerRow.id == worker_id))

    async def find_referenced_objects(self, paths: list[str]) -> set[str]:
        rows = await self._connection.execute(
            text("SELECT path FROM known_objects(CAST(:paths AS text[])) AS path"), {"paths": paths}
        )
        return {row.path for row in rows}

    async def find_live_versions(self, version_ids: list[str]) -> set[str]:
        known = {ids.decode_id("ver", version_id): version_id for version_id in version_ids}
        rows = await self._connection.execute(
            text("SELECT id FROM known_versions(CAST(:ids AS uuid[])) AS id"),
            {"ids": [row_id for row_id in known if row_id is not None]},
        )
        return {known[row.id] for row in rows}

    async def find_live_environments(self, names: list[str]) -> set[str]:
        rows = await self._connection.execute(
            text("SELECT name FROM known_environments(CAST(:names AS text[])) AS name"), {"names": names}
        )
        return {row.name for row in rows}

    async def create_partitions(self, now: datetime, ahead: int) -> int:
        made = [
            await self._connection.execute(
                text("SELECT make_partitions(:kind, :now, :ahead)"), {"kind": kind, "now": now, "ahead": ahead}
            )
            for kind in RECORD_KINDS
        ]
        return sum(one.scalar_one() for one in made)

    async def drop_empty_partition(self, kind: RecordKind, before: datetime) -> int:
        dropped = await self._connection.execute(
            text("SELECT drop_empty_partition(:kind, :before)"), {"kind": kind, "before": before}
        )
        return int(dropped.scalar_one())
