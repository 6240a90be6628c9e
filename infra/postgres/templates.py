"""Prompt templates in Postgres."""

from datetime import datetime
from typing import Literal

from sqlalchemy import ARRAY, Text, UniqueConstraint, select
from sqlalchemy.orm import Mapped, mapped_column

from domain.shared import ids
from domain.shared.pages import Listing, Page
from domain.templates import Template
from infra.postgres.catalog import CatalogRepository, fetch_by_reference
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
_USERS_SQL = """
    SELECT 'agent ' || name AS used_by FROM agents WHERE template_id = $1 AND deleted_at IS NULL
    UNION ALL SELECT 'task ' || name FROM tasks WHERE template_id = $1 ORDER BY 1
"""


class PostgresTemplates(CatalogRepository[Template]):
    """Provide `domain.templates.Templates` on Postgres."""

    row_class = TemplateRow
    resource_class = Template

    async def find(self, reference: str, lock: bool | Literal["share"] = False) -> Template | None:
        record = await fetch_by_reference(self._connection, _FIND_SQL, "tpl", reference, lock)
        return None if record is None else _ROW_MAPPER.to_struct(record)

    async def list_page(self, page: Page) -> Listing[Template]:
        return await fetch_page(self._connection, select(TemplateRow), TemplateRow.id.desc(), page, Template)

    async def list_users(self, template_id: str) -> list[str]:
        return [
            record["used_by"] for record in await self._connection.fetch(_USERS_SQL, ids.decode_id("tpl", template_id))
        ]
