"""Schedules in Postgres, and what became of their due times."""

from datetime import datetime
from typing import Any

from sqlalchemy import ARRAY, ForeignKey, Select, Text, UniqueConstraint, exists, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Mapped, mapped_column

from domain.schedules import DueSchedule, Schedule, ScheduleOutcome, ScheduleRun, ScheduleTarget
from domain.shared import ids
from domain.shared.pages import Listing, Page
from infra.postgres.catalog import CatalogRepository
from infra.postgres.db import Base, Id, create_json_column, create_timestamp, struct_from_row
from infra.postgres.execution_rows import ExecutionRow
from infra.postgres.pages import fetch_page


class ScheduleRow(Base):
    """Map a row of `schedules`: a schedule. `next_run_at` is null while nothing is due."""

    __tablename__ = "schedules"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)
    id: Mapped[str] = mapped_column(Id("sched"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    user_id: Mapped[str] = mapped_column(Id("user"), ForeignKey("users.id"))
    name: Mapped[str] = mapped_column(Text)
    cron_expression: Mapped[str] = mapped_column(Text)
    timezone: Mapped[str] = mapped_column(Text)
    agent_id: Mapped[str | None] = mapped_column(Id("agent"))
    crew_id: Mapped[str | None] = mapped_column(Id("crew"))
    workflow_id: Mapped[str | None] = mapped_column(Id("wf"))
    inputs: Mapped[Any] = mapped_column(create_json_column())
    model: Mapped[str | None] = mapped_column(Text)
    mode: Mapped[str | None] = mapped_column(Text)
    cost_limit: Mapped[float | None]
    files: Mapped[Any] = mapped_column(create_json_column())
    state: Mapped[str | None] = mapped_column(Text)
    tags: Mapped[list[str]] = mapped_column(ARRAY(Text))
    # The attribute `metadata` is SQLAlchemy's own.
    run_metadata: Mapped[Any | None] = mapped_column("metadata", create_json_column())
    expires_in: Mapped[float | None]
    priority: Mapped[int]
    concurrency_key: Mapped[str | None] = mapped_column(Text)
    concurrency_limit: Mapped[int | None]
    enabled: Mapped[bool]
    overlap: Mapped[str] = mapped_column(Text)
    catch_up: Mapped[int]
    next_run_at: Mapped[datetime | None] = mapped_column(create_timestamp())
    last_run_at: Mapped[datetime | None] = mapped_column(create_timestamp())
    last_execution_id: Mapped[str | None] = mapped_column(Id("exec"))
    last_error: Mapped[str | None] = mapped_column(Text)
    run_count: Mapped[int]
    missed_count: Mapped[int]
    skipped_count: Mapped[int]
    failed_count: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(create_timestamp())
    updated_at: Mapped[datetime] = mapped_column(create_timestamp())


class ScheduleRunRow(Base):
    """Map a row of `schedule_runs`: a due time of a schedule that has come.

    Its key is what keeps it from coming twice.
    """

    __tablename__ = "schedule_runs"
    schedule_id: Mapped[str] = mapped_column(Id("sched"), ForeignKey("schedules.id"), primary_key=True)
    due_at: Mapped[datetime] = mapped_column(create_timestamp(), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    outcome: Mapped[str] = mapped_column(Text)
    execution_id: Mapped[str | None] = mapped_column(Id("exec"))
    reason: Mapped[str | None] = mapped_column(Text)
    settled_at: Mapped[datetime] = mapped_column(create_timestamp())


_BOUND_TENANT = func.current_setting("paddock.tenant_id")
# In the words of the index, so that it serves.
_IS_OPEN_SQL = text("executions.status NOT IN ('completed', 'failed', 'cancelled')")


class PostgresSchedules(CatalogRepository[Schedule]):
    """Provide `domain.schedules.Schedules` on Postgres."""

    row_class = ScheduleRow
    resource_class = Schedule

    async def try_lock(self, schedule_id: str) -> Schedule | None:
        query = select(ScheduleRow).where(ScheduleRow.id == schedule_id).with_for_update(skip_locked=True)
        row = (await self._connection.execute(query)).first()
        return None if row is None else struct_from_row(row, Schedule)

    async def list_page(self, page: Page, enabled: bool | None) -> Listing[Schedule]:
        query = self._select() if enabled is None else self._select().where(ScheduleRow.enabled == enabled)
        return await fetch_page(self._connection, query, ScheduleRow.id.desc(), page, Schedule)

    async def count(self) -> int:
        await self._lock_table()
        return await super().count()

    async def list_names_by_target(self, kind: ScheduleTarget, row_id: str) -> list[str]:
        column = {"agent": ScheduleRow.agent_id, "crew": ScheduleRow.crew_id, "workflow": ScheduleRow.workflow_id}[kind]
        return list(
            (
                await self._connection.execute(
                    select(ScheduleRow.name).where(column == row_id).order_by(ScheduleRow.id)
                )
            ).scalars()
        )

    async def is_running(self, schedule_id: str) -> bool:
        query = select(exists().where(ExecutionRow.schedule_id == schedule_id, _IS_OPEN_SQL))
        return (await self._connection.execute(query)).scalar_one()

    async def record_runs(self, runs: list[ScheduleRun]) -> int:
        values = [
            {**{name: getattr(run, name) for name in ScheduleRun.__struct_fields__}, "tenant_id": _BOUND_TENANT}
            for run in runs
        ]
        inserted = await self._connection.execute(
            insert(ScheduleRunRow).values(values).on_conflict_do_nothing().returning(ScheduleRunRow.due_at)
        )
        return len(inserted.all())

    async def get_queued_time(self, schedule_id: str) -> datetime | None:
        query = select(ScheduleRunRow.due_at).where(
            ScheduleRunRow.schedule_id == schedule_id, ScheduleRunRow.outcome == "queued"
        )
        return (await self._connection.execute(query)).scalar()

    async def settle_run(self, run: ScheduleRun) -> None:
        values = {name: getattr(run, name) for name in ("outcome", "execution_id", "reason", "settled_at")}
        met = update(ScheduleRunRow).where(
            ScheduleRunRow.schedule_id == run.schedule_id, ScheduleRunRow.due_at == run.due_at
        )
        await self._connection.execute(met.values(**values))

    async def list_runs(self, schedule_id: str, page: Page, outcome: ScheduleOutcome | None) -> Listing[ScheduleRun]:
        query = select(ScheduleRunRow).where(ScheduleRunRow.schedule_id == schedule_id)
        query = query if outcome is None else query.where(ScheduleRunRow.outcome == outcome)
        return await fetch_page(self._connection, query, ScheduleRunRow.due_at.desc(), page, ScheduleRun)

    async def list_due(self, now: datetime, limit: int) -> tuple[list[DueSchedule], datetime | None]:
        rows = await self._connection.execute(
            text("SELECT * FROM due_schedules(:now, :most)"), {"now": now, "most": limit}
        )
        result, soon = list[DueSchedule](), None
        for row in rows:
            if row.schedule_id is None:
                soon = row.next_at
            else:
                result.append(DueSchedule(schedule_id=ids.encode_id("sched", row.schedule_id), tenant_id=row.tenant_id))
        return result, soon

    def _select(self) -> Select[Any]:
        last = select(ExecutionRow.status).where(ExecutionRow.id == ScheduleRow.last_execution_id)
        return select(ScheduleRow, last.scalar_subquery().label("last_status"))
