"""Store the catalogue of tasks in Postgres."""

from datetime import datetime
from typing import Any, Literal

from sqlalchemy import (
    ForeignKey,
    Text,
    UniqueConstraint,
    any_,
    delete,
    literal,
    literal_column,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from domain.shared import ids
from domain.shared.pages import Listing, Page
from domain.tasks import Task
from infra.postgres.connection import TxConnection
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
    created_at: Mapped[datetime] = mapped_column(create_timestamp())
    updated_at: Mapped[datetime] = mapped_column(create_timestamp())


# The template's name is read beside the row, never written.
_TEMPLATE_NAME_SQL = "(SELECT t.name FROM templates t WHERE t.id = tasks.template_id)"
_SELECT_SQL: Any = select(*TaskRow.__table__.columns, literal_column(_TEMPLATE_NAME_SQL).label("template"))
_STORED_COLUMNS = [column.name for column in TaskRow.__table__.columns]
_MUTABLE_COLUMNS = [name for name in _STORED_COLUMNS if name not in ("id", "tenant_id", "created_at")]
_LOCK_SQL = text(
    "SELECT pg_advisory_xact_lock(hashtextextended('tasks of ' || current_setting('paddock.tenant_id'), 0))"
)


class PostgresTasks:
    """Provide `domain.tasks.Tasks` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def add(self, task: Task) -> bool:
        values = {name: getattr(task, name) for name in _STORED_COLUMNS}
        inserted = await self._connection.execute(
            insert(TaskRow).values(**values).on_conflict_do_nothing().returning(TaskRow.id)
        )
        return inserted.first() is not None

    async def find(self, reference: str, lock: bool = False) -> Task | None:
        name = reference.replace("\0", "\ufffd")
        is_id = ids.decode_id("task", reference) is not None
        criterion = TaskRow.id == reference if is_id else or_(TaskRow.slug == name, TaskRow.name == name)
        query = _SELECT_SQL.where(criterion).order_by((TaskRow.name == name).desc())
        row = (await self._connection.execute(query.with_for_update() if lock else query)).first()
        return None if row is None else struct_from_row(row, Task)

    async def list_by_references(self, references: list[str], lock: Literal["share"] | None = None) -> list[Task]:
        row_ids = [reference for reference in references if ids.decode_id("task", reference) is not None]
        named = [reference.replace("\0", "\ufffd") for reference in references]
        criterion = or_(TaskRow.id.in_(row_ids), TaskRow.slug.in_(named), TaskRow.name.in_(named))
        query = _SELECT_SQL.where(criterion).order_by(TaskRow.id)
        if lock is not None:
            query = query.with_for_update(read=True)
        return [struct_from_row(row, Task) for row in await self._connection.execute(query)]

    async def list_page(self, page: Page) -> Listing[Task]:
        return await fetch_page(self._connection, _SELECT_SQL, TaskRow.id.desc(), page, Task)

    async def save(self, task: Task) -> bool:
        values = {name: getattr(task, name) for name in _MUTABLE_COLUMNS}
        try:
            await self._connection.execute(update(TaskRow).where(TaskRow.id == task.id).values(**values))
        except IntegrityError:
            return False
        return True

    async def delete(self, task_id: str) -> None:
        await self._connection.execute(delete(TaskRow).where(TaskRow.id == task_id))

    async def list_by_template(self, template_id: str) -> list[Task]:
        query = _SELECT_SQL.where(TaskRow.template_id == template_id).order_by(TaskRow.id).with_for_update()
        return [struct_from_row(row, Task) for row in await self._connection.execute(query)]

    async def list_names_by_context(self, task_id: str) -> list[str]:
        query = select(TaskRow.name).where(literal(task_id) == any_(TaskRow.context)).order_by(TaskRow.id)
        return list((await self._connection.execute(query)).scalars())

    async def lock_contexts(self) -> None:
        await self._connection.execute(_LOCK_SQL)
