"""Store what crews remember in Postgres."""

from datetime import datetime

from sqlalchemy import ForeignKey, Index, Text, UniqueConstraint, delete, desc, select
from sqlalchemy.orm import Mapped, mapped_column

from domain.crews import CrewMemory
from domain.shared import ids
from domain.shared.pages import Listing, Page
from infra.postgres.catalog import replace_nul
from infra.postgres.connection import TxConnection
from infra.postgres.db import Base, Id, create_timestamp, struct_from_row
from infra.postgres.pages import fetch_page

_ADD_SQL = """
WITH crew AS (SELECT id FROM crews WHERE id = $2 FOR KEY SHARE)
INSERT INTO crew_memories (id, crew_id, tenant_id, scope, content, run_id, execution_id, created_at)
SELECT $1, crew.id, current_setting('paddock.tenant_id'), $3, $4, $5, $6, $7 FROM crew
ON CONFLICT (crew_id, execution_id) DO NOTHING
"""
_TRIM_SQL = """
DELETE FROM crew_memories WHERE id IN (
    SELECT id FROM crew_memories WHERE crew_id = $1 AND scope = $2 ORDER BY id DESC OFFSET $3)
"""


class CrewMemoryRow(Base):
    """Map a row of `crew_memories`: what a crew remembers of a task."""

    __tablename__ = "crew_memories"
    __table_args__ = (
        UniqueConstraint("crew_id", "execution_id"),
        Index("crew_memories_scope", "crew_id", "scope", desc("id")),
    )
    id: Mapped[str] = mapped_column(Id("mem"), primary_key=True)
    crew_id: Mapped[str] = mapped_column(Id("crew"), ForeignKey("crews.id", ondelete="CASCADE"))
    tenant_id: Mapped[str] = mapped_column(Text)
    scope: Mapped[str] = mapped_column(Text)
    content: Mapped[str] = mapped_column(Text)
    run_id: Mapped[str] = mapped_column(Id("exec"))
    execution_id: Mapped[str] = mapped_column(Id("exec"))
    created_at: Mapped[datetime] = mapped_column(create_timestamp())


class PostgresCrewMemories:
    """Provide `domain.crews.CrewMemories` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def add(self, memory: CrewMemory, limit: int) -> None:
        crew_id = ids.decode_id("crew", memory.crew_id)
        await self._connection.execute_sql(
            _ADD_SQL,
            ids.decode_id("mem", memory.id),
            crew_id,
            memory.scope,
            memory.content,
            ids.decode_id("exec", memory.run_id),
            ids.decode_id("exec", memory.execution_id),
            memory.created_at,
        )
        await self._connection.execute_sql(_TRIM_SQL, crew_id, memory.scope, limit)

    async def list_by_scopes(self, crew_id: str, scopes: list[str], without_run: str) -> list[CrewMemory]:
        query = (
            select(*CrewMemoryRow.__table__.columns)
            .where(
                CrewMemoryRow.crew_id == crew_id,
                CrewMemoryRow.scope.in_(scopes),
                CrewMemoryRow.run_id != without_run,
            )
            .order_by(CrewMemoryRow.id.desc())
        )
        return [struct_from_row(row, CrewMemory) for row in (await self._connection.execute(query)).all()]

    async def list_page(self, crew_id: str, scope: str | None, page: Page) -> Listing[CrewMemory]:
        query = select(*CrewMemoryRow.__table__.columns).where(CrewMemoryRow.crew_id == crew_id)
        if scope is not None:
            query = query.where(CrewMemoryRow.scope == replace_nul(scope))
        return await fetch_page(self._connection, query, CrewMemoryRow.id.desc(), page, CrewMemory)

    async def delete(self, crew_id: str, memory_id: str) -> bool:
        row_id = ids.decode_id("mem", memory_id)
        if row_id is None:
            return False
        statement = delete(CrewMemoryRow).where(CrewMemoryRow.crew_id == crew_id, CrewMemoryRow.id == memory_id)
        return (await self._connection.execute(statement.returning(CrewMemoryRow.id))).first() is not None

    async def clear_scope(self, crew_id: str, scope: str | None) -> None:
        statement = delete(CrewMemoryRow).where(CrewMemoryRow.crew_id == crew_id)
        if scope is not None:
            statement = statement.where(CrewMemoryRow.scope == replace_nul(scope))
        await self._connection.execute(statement)
