"""Store crews in Postgres."""

from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Text, UniqueConstraint, any_, case, func, literal, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from domain.crews import Crew
from domain.shared.pages import Listing, Page
from infra.postgres.catalog import CatalogRepository
from infra.postgres.db import Base, Id, create_json_column, create_timestamp
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
    inputs: Mapped[dict[str, Any]] = mapped_column(create_json_column())
    memory: Mapped[Any] = mapped_column(create_json_column())
    knowledge_sources: Mapped[list[Any]] = mapped_column(create_json_column())
    knowledge_config: Mapped[dict[str, Any] | None] = mapped_column(create_json_column())
    agents_yaml: Mapped[str | None] = mapped_column(Text)
    tasks_yaml: Mapped[str | None] = mapped_column(Text)
    agents: Mapped[list[str]] = mapped_column(ARRAY(Text))
    tasks: Mapped[list[str]] = mapped_column(ARRAY(Text))
    expose: Mapped[list[str]] = mapped_column(ARRAY(Text))
    created_at: Mapped[datetime] = mapped_column(create_timestamp())
    updated_at: Mapped[datetime] = mapped_column(create_timestamp())


def _trim_column(column: Any) -> Any:
    return case((func.octet_length(column) <= MAX_LISTED_YAML_BYTES, column), else_=None).label(column.name)


_LISTED_COLUMNS = [
    _trim_column(column) if column.name in ("agents_yaml", "tasks_yaml") else column
    for column in CrewRow.__table__.columns
]


class PostgresCrews(CatalogRepository[Crew]):
    """Provide `domain.crews.Crews` on Postgres."""

    row_class = CrewRow
    resource_class = Crew
    fixed_columns = frozenset({"id", "tenant_id", "user_id", "created_at"})

    async def list_page(self, page: Page) -> Listing[Crew]:
        return await fetch_page(self._connection, select(*_LISTED_COLUMNS), CrewRow.id.desc(), page, Crew)

    async def list_names_by_task(self, task_id: str) -> list[str]:
        query = select(CrewRow.name).where(literal(task_id) == any_(CrewRow.tasks)).order_by(CrewRow.id)
        return list((await self._connection.execute(query)).scalars())
