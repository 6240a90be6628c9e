"""Store workflows in Postgres."""

from datetime import datetime
from typing import Any

from sqlalchemy import Text, UniqueConstraint, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from domain.shared.pages import Listing, Page
from domain.workflows import Workflow, WorkflowStatus, WorkflowSummary
from infra.postgres.catalog import CatalogRepository
from infra.postgres.db import Base, Id, create_json_column, create_timestamp
from infra.postgres.pages import fetch_page


class WorkflowRow(Base):
    """Map a row of `workflows`: a workflow, as somebody wrote it.

    What its steps name is looked up when it is started.
    """

    __tablename__ = "workflows"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)
    id: Mapped[str] = mapped_column(Id("wf"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    user_id: Mapped[str] = mapped_column(Id("user"))
    name: Mapped[str] = mapped_column(Text)
    description: Mapped[str | None] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text)
    inputs: Mapped[Any | None] = mapped_column(create_json_column())
    steps: Mapped[Any] = mapped_column(create_json_column())
    outputs: Mapped[Any | None] = mapped_column(create_json_column())
    output_schema: Mapped[Any | None] = mapped_column(create_json_column())
    steps_total: Mapped[int]
    expose: Mapped[list[str]] = mapped_column(ARRAY(Text))
    created_at: Mapped[datetime] = mapped_column(create_timestamp())
    updated_at: Mapped[datetime] = mapped_column(create_timestamp())


_ITEM_COLUMNS = [
    WorkflowRow.steps_total.label("steps") if name == "steps" else getattr(WorkflowRow, name)
    for name in WorkflowSummary.__struct_fields__
]


class PostgresWorkflows(CatalogRepository[Workflow]):
    """Provide `domain.workflows.Workflows` on Postgres."""

    row_class = WorkflowRow
    resource_class = Workflow
    fixed_columns = frozenset({"id", "tenant_id", "user_id", "created_at"})

    async def list_page(self, page: Page, status: WorkflowStatus | None) -> Listing[WorkflowSummary]:
        query = select(*_ITEM_COLUMNS)
        if status is not None:
            query = query.where(WorkflowRow.status == status)
        return await fetch_page(self._connection, query, WorkflowRow.id.desc(), page, WorkflowSummary)

    async def lock_writes(self) -> None:
        await self._lock_table()
