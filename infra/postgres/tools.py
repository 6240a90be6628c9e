"""Store tools in Postgres: the tenant's own, and which of the built-in ones it does without."""

from datetime import datetime
from typing import Any

from sqlalchemy import Text, UniqueConstraint, any_, delete, func, literal, select
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.orm import Mapped, mapped_column

from domain.shared.pages import Listing, Page
from domain.tools import BuiltInToolState, Tool, ToolFilter
from infra.postgres.accounts import TenantRow
from infra.postgres.catalog import SluggedRepository, replace_nul
from infra.postgres.db import Base, Id, create_json_column, create_timestamp, struct_from_row
from infra.postgres.pages import fetch_page


class ToolRow(Base):
    """Map a row of `tools`: a tenant's own tool.

    `key_names` are the slugs of the provider keys that its configuration names.
    """

    __tablename__ = "tools"
    __table_args__ = (UniqueConstraint("tenant_id", "slug"),)
    id: Mapped[str] = mapped_column(Id("tool"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    slug: Mapped[str] = mapped_column(Text)
    description: Mapped[str] = mapped_column(Text)
    category: Mapped[str] = mapped_column(Text)
    tool_type: Mapped[str] = mapped_column(Text)
    configuration: Mapped[dict[str, Any]] = mapped_column(create_json_column())
    parameters: Mapped[dict[str, Any]] = mapped_column(create_json_column())
    key_names: Mapped[list[str]] = mapped_column(ARRAY(Text))
    enabled: Mapped[bool]
    effects: Mapped[bool]
    created_at: Mapped[datetime] = mapped_column(create_timestamp())
    updated_at: Mapped[datetime] = mapped_column(create_timestamp())


class DisabledToolRow(Base):
    """Map a row of `disabled_tools`: a built-in tool that a tenant has switched off."""

    __tablename__ = "disabled_tools"
    tenant_id: Mapped[str] = mapped_column(Text, primary_key=True)
    tool_id: Mapped[str] = mapped_column(Id("tool"), primary_key=True)
    since: Mapped[datetime] = mapped_column(create_timestamp())


_BOUND_TENANT = func.current_setting("paddock.tenant_id")


class PostgresTools(SluggedRepository[Tool]):
    """Provide `domain.tools.Tools` on Postgres."""

    row_class = ToolRow
    resource_class = Tool

    async def list_page(self, page: Page, narrowed: ToolFilter) -> Listing[Tool]:
        query = select(ToolRow)
        for column, criterion in (
            (ToolRow.category, narrowed.category),
            (ToolRow.enabled, narrowed.enabled),
            (ToolRow.tool_type, narrowed.tool_type),
        ):
            if criterion is not None:
                query = query.where(column == (replace_nul(criterion) if isinstance(criterion, str) else criterion))
        return await fetch_page(self._connection, query, ToolRow.id.desc(), page, Tool)

    async def count(self) -> int:
        await self._lock_table()
        return await super().count()

    async def list_by_provider_key(self, key_slug: str) -> list[Tool]:
        query = (
            select(ToolRow).where(literal(key_slug) == any_(ToolRow.key_names)).order_by(ToolRow.id).with_for_update()
        )
        return [struct_from_row(row, Tool) for row in await self._connection.execute(query)]

    async def get_built_in_state(self) -> BuiltInToolState:
        query = select(TenantRow.created_at, DisabledToolRow.tool_id, DisabledToolRow.since).outerjoin(
            DisabledToolRow, DisabledToolRow.tenant_id == TenantRow.id
        )
        rows = (await self._connection.execute(query.where(TenantRow.id == _BOUND_TENANT))).all()
        return BuiltInToolState(since=rows[0].created_at, off={row.tool_id: row.since for row in rows if row.tool_id})

    async def switch_built_in(self, tool_id: str, enabled: bool | None, now: datetime) -> bool:
        if enabled is not False:
            gone = delete(DisabledToolRow).where(DisabledToolRow.tool_id == tool_id).returning(DisabledToolRow.since)
            was_off = (await self._connection.execute(gone)).first() is not None
            if enabled or was_off:
                return True
        off = insert(DisabledToolRow).values(tenant_id=_BOUND_TENANT, tool_id=tool_id, since=now)
        await self._connection.execute(off.on_conflict_do_nothing())
        return False

    def _collect_values(self, resource: Tool) -> dict[str, Any]:
        return {**super()._collect_values(resource), "key_names": sorted(set(resource.secrets.values()))}
