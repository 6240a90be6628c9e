"""Store worker processes in Postgres, by their last heartbeat."""

from datetime import datetime

from sqlalchemy import Text, delete, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Mapped, mapped_column

from domain.queues import WorkerInfo
from infra.postgres.connection import TxConnection
from infra.postgres.db import Base, create_timestamp, struct_from_row


class WorkerRow(Base):
    """Map a row of `workers`: a worker process by its last sign of life. Belongs to the host, not to a tenant."""

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
    started_at: Mapped[datetime] = mapped_column(create_timestamp())
    seen_at: Mapped[datetime] = mapped_column(create_timestamp())


class PostgresWorkers:
    """Provide `domain.queues.Workers` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def list_alive(self, since: datetime) -> list[WorkerInfo]:
        rows = await self._connection.execute(
            select(WorkerRow).where(WorkerRow.seen_at >= since).order_by(WorkerRow.id)
        )
        return [struct_from_row(row, WorkerInfo) for row in rows]

    async def save(self, worker: WorkerInfo) -> None:
        values = {name: getattr(worker, name) for name in WorkerInfo.__struct_fields__}
        statement = insert(WorkerRow).values(**values)
        await self._connection.execute(statement.on_conflict_do_update(index_elements=["id"], set_=values))

    async def delete(self, worker_id: str) -> None:
        await self._connection.execute(delete(WorkerRow).where(WorkerRow.id == worker_id))
