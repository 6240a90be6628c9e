"""Prompt templates in Postgres."""

from datetime import datetime
from typing import Any, Literal

from sqlalchemy import ARRAY, Text, UniqueConstraint, delete, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from domain.shared import ids
from domain.shared.pages import Listing, Page
from domain.templates import Template
from infra.postgres.connection import TxConnection
from infra.postgres.db import Base, Id, RowMapper, timestamp
from infra.postgres.pages import fetch_page


class TemplateRow(Base):
    """A prompt template. Agents and tasks name it by its id."""

    __tablename__ = "templates"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)
    id: Mapped[str] = mapped_column(Id("tpl"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    description: Mapped[str | None] = mapped_column(Text)
    template: Mapped[str] = mapped_column(Text)
    variables: Mapped[list[str]] = mapped_column(ARRAY(Text))
    created_at: Mapped[datetime] = mapped_column(timestamp())
    updated_at: Mapped[datetime] = mapped_column(timestamp())


_SHAPE = RowMapper(TemplateRow, Template)
_FIND = f"SELECT {_SHAPE.columns} FROM templates WHERE "
_LOCKS = {False: "", True: " FOR UPDATE", "share": " FOR SHARE"}
_FIELDS = Template.__struct_fields__
_CHANGED = [name for name in _FIELDS if name not in ("id", "tenant_id", "created_at")]
_USERS = """
    SELECT 'agent ' || name AS used_by FROM agents WHERE template_id = $1 AND deleted_at IS NULL
    UNION ALL SELECT 'task ' || name FROM tasks WHERE template_id = $1 ORDER BY 1
"""


class PostgresTemplates:
    """Implements `domain.templates.Templates`."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def add(self, template: Template) -> bool:
        values = {name: getattr(template, name) for name in _FIELDS}
        made = await self._connection.execute(
            insert(TemplateRow).values(**values).on_conflict_do_nothing().returning(TemplateRow.id)
        )
        return made.first() is not None

    async def find(self, reference: str, lock: bool | Literal["share"] = False) -> Template | None:
        known = ids.decode_id("tpl", reference)
        if known is not None:
            record = await self._connection.fetch_row(f"{_FIND} id = $1{_LOCKS[lock]}", known)
        else:
            record = await self._connection.fetch_row(
                f"{_FIND} name = $1{_LOCKS[lock]}", reference.replace("\0", "\ufffd")
            )
        return None if record is None else _SHAPE.to_struct(record)

    async def list_page(self, page: Page) -> Listing[Template]:
        return await fetch_page(self._connection, select(TemplateRow), TemplateRow.id.desc(), page, Template)

    async def save(self, template: Template) -> bool:
        values: dict[str, Any] = {name: getattr(template, name) for name in _CHANGED}
        try:
            await self._connection.execute(update(TemplateRow).where(TemplateRow.id == template.id).values(**values))
        except IntegrityError:
            return False
        return True

    async def delete(self, template_id: str) -> None:
        await self._connection.execute(delete(TemplateRow).where(TemplateRow.id == template_id))

    async def list_users(self, template_id: str) -> list[str]:
        return [record["used_by"] for record in await self._connection.fetch(_USERS, ids.decode_id("tpl", template_id))]
