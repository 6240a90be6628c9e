"""Store workflows in Postgres."""

from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Text, UniqueConstraint, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from domain.shared import ids
from domain.shared.pages import Listing, Page
from domain.workflows import Workflow, WorkflowStatus, WorkflowSummary
from infra.postgres.connection import TxConnection
from infra.postgres.db import Base, Id, create_json_column, create_timestamp, struct_from_row
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
    steps_total: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(create_timestamp())
    updated_at: Mapped[datetime] = mapped_column(create_timestamp())


_LOCK_SQL = text(
    "SELECT pg_advisory_xact_lock(hashtextextended('workflows of ' || current_setting('paddock.tenant_id'), 0))"
)
_ITEM_COLUMNS = [
    WorkflowRow.steps_total.label("steps") if name == "steps" else getattr(WorkflowRow, name)
    for name in WorkflowSummary.__struct_fields__
]


def _build_values(workflow: Workflow) -> dict[str, Any]:
    return {name: getattr(workflow, name) for name in Workflow.__struct_fields__}


class PostgresWorkflows:
    """Provide `domain.workflows.Workflows` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def add(self, workflow: Workflow) -> bool:
        inserted = await self._connection.execute(
            insert(WorkflowRow).values(**_build_values(workflow)).on_conflict_do_nothing().returning(WorkflowRow.id)
        )
        return inserted.first() is not None

    async def find(self, reference: str, lock: bool | Literal["share"] = False) -> Workflow | None:
        is_id = ids.decode_id("wf", reference) is not None
        query = select(WorkflowRow).where(
            WorkflowRow.id == reference if is_id else WorkflowRow.name == reference.replace("\0", "\ufffd")
        )
        if lock:
            query = query.with_for_update(read=lock == "share")
        row = (await self._connection.execute(query)).first()
        return None if row is None else struct_from_row(row, Workflow)

    async def list_page(self, page: Page, status: WorkflowStatus | None) -> Listing[WorkflowSummary]:
        query = select(*_ITEM_COLUMNS)
        if status is not None:
            query = query.where(WorkflowRow.status == status)
        return await fetch_page(self._connection, query, WorkflowRow.id.desc(), page, WorkflowSummary)

    async def save(self, workflow: Workflow) -> bool:
        values = _build_values(workflow)
        for fixed in ("id", "tenant_id", "user_id", "created_at"):
            del values[fixed]
        try:
            await self._connection.execute(update(WorkflowRow).where(WorkflowRow.id == workflow.id).values(**values))
        except IntegrityError:
            return False
        return True

    async def delete(self, workflow_id: str) -> None:
        await self._connection.execute(delete(WorkflowRow).where(WorkflowRow.id == workflow_id))

    async def lock_writes(self) -> None:
        await self._connection.execute(_LOCK_SQL)

    async def count(self) -> int:
        return (await self._connection.execute(select(func.count()).select_from(WorkflowRow))).scalar_one()
