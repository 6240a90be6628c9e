"""Store crews in Postgres."""

from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ForeignKey, Text, UniqueConstraint, any_, case, delete, func, literal, select, update
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from domain.crews import Crew
from domain.shared import ids
from domain.shared.pages import Listing, Page
from infra.postgres.connection import TxConnection
from infra.postgres.db import Base, Id, create_timestamp, struct_from_row
from infra.postgres.pages import fetch_page

# A list leaves out texts larger than this many bytes; the crew itself shows them.
MAX_LISTED_YAML_BYTES = 16 * 1024


class CrewRow(Base):
    """Map a row of `crews`: a crew. `agents` and `tasks` hold ids."""

    __tablename__ = "crews"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)
    id: Mapped[str] = mapped_column(Id("crew"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    user_id: Mapped[str] = mapped_column(Id("user"), ForeignKey("users.id"))
    name: Mapped[str] = mapped_column(Text)
    description: Mapped[str | None] = mapped_column(Text)
    process: Mapped[str] = mapped_column(Text)
    model: Mapped[str | None] = mapped_column(Text)
    manager_model: Mapped[str | None] = mapped_column(Text)
    manager_agent: Mapped[str | None] = mapped_column(Text)
    planning: Mapped[bool]
    planning_model: Mapped[str | None] = mapped_column(Text)
    max_rpm: Mapped[int | None]
    verbose: Mapped[bool]
    agents_yaml: Mapped[str | None] = mapped_column(Text)
    tasks_yaml: Mapped[str | None] = mapped_column(Text)
    agents: Mapped[list[str]] = mapped_column(ARRAY(Text))
    tasks: Mapped[list[str]] = mapped_column(ARRAY(Text))
    created_at: Mapped[datetime] = mapped_column(create_timestamp())
    updated_at: Mapped[datetime] = mapped_column(create_timestamp())


_STORED_COLUMNS = [column.name for column in CrewRow.__table__.columns]
_MUTABLE_COLUMNS = [name for name in _STORED_COLUMNS if name not in ("id", "tenant_id", "user_id", "created_at")]


def _trim_column(column: Any) -> Any:
    return case((func.octet_length(column) <= MAX_LISTED_YAML_BYTES, column), else_=None).label(column.name)


_LISTED_COLUMNS = [
    _trim_column(column) if column.name in ("agents_yaml", "tasks_yaml") else column
    for column in CrewRow.__table__.columns
]


class PostgresCrews:
    """Provide `domain.crews.Crews` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def add(self, crew: Crew) -> bool:
        values = {name: getattr(crew, name) for name in _STORED_COLUMNS}
        inserted = await self._connection.execute(
            insert(CrewRow).values(**values).on_conflict_do_nothing().returning(CrewRow.id)
        )
        return inserted.first() is not None

    async def find(self, reference: str, lock: bool | Literal["share"] = False) -> Crew | None:
        is_id = ids.decode_id("crew", reference) is not None
        query = select(CrewRow).where(
            CrewRow.id == reference if is_id else CrewRow.name == reference.replace("\0", "\ufffd")
        )
        if lock:
            query = query.with_for_update(read=lock == "share")
        row = (await self._connection.execute(query)).first()
        return None if row is None else struct_from_row(row, Crew)

    async def list_page(self, page: Page) -> Listing[Crew]:
        return await fetch_page(self._connection, select(*_LISTED_COLUMNS), CrewRow.id.desc(), page, Crew)

    async def save(self, crew: Crew) -> bool:
        values = {name: getattr(crew, name) for name in _MUTABLE_COLUMNS}
        try:
            await self._connection.execute(update(CrewRow).where(CrewRow.id == crew.id).values(**values))
        except IntegrityError:
            return False
        return True

    async def delete(self, crew_id: str) -> None:
        await self._connection.execute(delete(CrewRow).where(CrewRow.id == crew_id))

    async def list_names_by_task(self, task_id: str) -> list[str]:
        query = select(CrewRow.name).where(literal(task_id) == any_(CrewRow.tasks)).order_by(CrewRow.id)
        return list((await self._connection.execute(query)).scalars())
