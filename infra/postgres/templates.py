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
from infra.postgres.db import Base, Id, RowMapper, create_timestamp
from infra.postgres.pages import fetch_page


class TemplateRow(Base):
    """Map a row of `templates`: a prompt template. Agents and tasks name it by its id."""

    __tablename__ = "templates"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)
    id: Mapped[str] = mapped_column(Id("tpl"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    description: Mapped[str | None] = mapped_column(Text)
    template: Mapped[str] = mapped_column(Text)
    variables: Mapped[list[str]] = mapped_column(ARRAY(Text))
    created_at: Mapped[datetime] = mapped_column(create_timestamp())
    updated_at: Mapped[datetime] = mapped_column(create_timestamp())


_ROW_MAPPER = RowMapper(TemplateRow, Template)
_FIND_SQL = f"SELECT {_ROW_MAPPER.columns} FROM templates WHERE "
_LOCK_CLAUSES = {False: "", True: " FOR UPDATE", "share": " FOR SHARE"}
_ALL_FIELDS = Template.__struct_fields__
_MUTABLE_COLUMNS = [name for name in _ALL_FIELDS if name not in ("id", "tenant_id", "created_at")]
_USERS_SQL = """
    SELECT 'agent ' || name AS used_by FROM agents WHERE template_id = $1 AND deleted_at IS NULL
    UNION ALL SELECT 'task ' || name FROM tasks WHERE template_id = $1 ORDER BY 1
"""


class PostgresTemplates:
    """Provide `domain.templates.Templates` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def add(self, template: Template) -> bool:
        values = {name: getattr(template, name) for name in _ALL_FIELDS}
        inserted = await self._connection.execute(
            insert(TemplateRow).values(**values).on_conflict_do_nothing().returning(TemplateRow.id)
        )
        return inserted.first() is not None

    async def find(self, reference: str, lock: bool | Literal["share"] = False) -> Template | None:
        row_id = ids.decode_id("tpl", reference)
        if row_id is not None:
            record = await self._connection.fetch_row(f"{_FIND_SQL} id = $1{_LOCK_CLAUSES[lock]}", row_id)
        else:
            record = await self._connection.fetch_row(
                f"{_FIND_SQL} name = $1{_LOCK_CLAUSES[lock]}", reference.replace("\0", "\ufffd")
            )
        return None if record is None else _ROW_MAPPER.to_struct(record)

    async def list_page(self, page: Page) -> Listing[Template]:
        return await fetch_page(self._connection, select(TemplateRow), TemplateRow.id.desc(), page, Template)

    async def save(self, template: Template) -> bool:
        values: dict[str, Any] = {name: getattr(template, name) for name in _MUTABLE_COLUMNS}
        try:
            await self._connection.execute(update(TemplateRow).where(TemplateRow.id == template.id).values(**values))
        except IntegrityError:
            return False
        return True

    async def delete(self, template_id: str) -> None:
        await self._connection.execute(delete(TemplateRow).where(TemplateRow.id == template_id))

    async def list_users(self, template_id: str) -> list[str]:
        return [
            record["used_by"] for record in await self._connection.fetch(_USERS_SQL, ids.decode_id("tpl", template_id))
        ]
