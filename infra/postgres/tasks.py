"""Store the catalogue of tasks in Postgres."""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    ForeignKey,
    Select,
    Text,
    UniqueConstraint,
    any_,
    literal,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from domain.shared.pages import Listing, Page
from domain.tasks import Task
from infra.postgres.catalog import SluggedRepository
from infra.postgres.db import Base, Id, create_json_column, create_timestamp, struct_from_row
from infra.postgres.pages import fetch_page


class TaskRow(Base):
    """Map a row of `tasks`: a task. `context` holds ids of others."""

    __tablename__ = "tasks"
    __table_args__ = (UniqueConstraint("tenant_id", "slug"),)
    id: Mapped[str] = mapped_column(Id("task"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    slug: Mapped[str] = mapped_column(Text)
    description: Mapped[str] = mapped_column(Text)
    template_id: Mapped[str | None] = mapped_column(Id("tpl"), ForeignKey("templates.id"))
    variables: Mapped[dict[str, Any] | None] = mapped_column(create_json_column())
    expected_output: Mapped[str | None] = mapped_column(Text)
    agent: Mapped[str | None] = mapped_column(Text)
    tools: Mapped[list[str]] = mapped_column(ARRAY(Text))
    context: Mapped[list[str] | None] = mapped_column(ARRAY(Text))
    async_execution: Mapped[bool]
    markdown: Mapped[bool]
    output_file: Mapped[str | None] = mapped_column(Text)
    output_json: Mapped[Any | None] = mapped_column(create_json_column())
    created_at: Mapped[datetime] = mapped_column(create_timestamp())
    updated_at: Mapped[datetime] = mapped_column(create_timestamp())


# The template's name is read beside the row, never written.
_TEMPLATE_NAME_SQL = "(SELECT t.name FROM templates t WHERE t.id = tasks.template_id)"
_SELECT_SQL: Select[Any] = select(*TaskRow.__table__.columns, literal_column(_TEMPLATE_NAME_SQL).label("template"))


class PostgresTasks(SluggedRepository[Task]):
    """Provide `domain.tasks.Tasks` on Postgres."""

    row_class = TaskRow
    resource_class = Task

    async def list_page(self, page: Page) -> Listing[Task]:
        return await fetch_page(self._connection, _SELECT_SQL, TaskRow.id.desc(), page, Task)

    async def list_by_template(self, template_id: str) -> list[Task]:
        query = _SELECT_SQL.where(TaskRow.template_id == template_id).order_by(TaskRow.id).with_for_update()
        return [struct_from_row(row, Task) for row in await self._connection.execute(query)]

    async def list_names_by_context(self, task_id: str) -> list[str]:
        query = select(TaskRow.name).where(literal(task_id) == any_(TaskRow.context)).order_by(TaskRow.id)
        return list((await self._connection.execute(query)).scalars())

    async def lock_contexts(self) -> None:
        await self._lock_table()

    def _select(self) -> Select[Any]:
        return _SELECT_SQL
