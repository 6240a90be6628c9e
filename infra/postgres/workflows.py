"""Workflows in Postgres."""

from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Text, UniqueConstraint, delete, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from domain.shared import ids
from domain.shared.pages import Listing, Page
from domain.workflows.schema import Workflow, WorkflowStatus, WorkflowSummary
from infra.postgres.connection import TxConnection
from infra.postgres.db import Base, Id, json_column, struct_from_row, timestamp
from infra.postgres.pages import fetch_page


class WorkflowRow(Base):
    """A workflow, as somebody wrote it; what its steps name is looked up when it is started."""

    __tablename__ = "workflows"
    __table_args__ = (UniqueConstraint("tenant_id", "name"),)
    id: Mapped[str] = mapped_column(Id("wf"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    user_id: Mapped[str] = mapped_column(Id("user"))
    name: Mapped[str] = mapped_column(Text)
    description: Mapped[str | None] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text)
    inputs: Mapped[Any | None] = mapped_column(json_column())
    steps: Mapped[Any] = mapped_column(json_column())
    outputs: Mapped[Any | None] = mapped_column(json_column())
    steps_total: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(timestamp())
    updated_at: Mapped[datetime] = mapped_column(timestamp())


_W = WorkflowRow
_LOCK = text(
    "SELECT pg_advisory_xact_lock(hashtextextended('workflows of ' || current_setting('paddock.tenant_id'), 0))"
)
_ITEM = [
    _W.steps_total.label("steps") if name == "steps" else getattr(_W, name)
    for name in WorkflowSummary.__struct_fields__
]


def _values(workflow: Workflow) -> dict[str, Any]:
    return {name: getattr(workflow, name) for name in Workflow.__struct_fields__}


class PostgresWorkflows:
    """Implements `domain.workflows.Workflows`."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def add(self, workflow: Workflow) -> bool:
        made = await self._connection.execute(
            insert(_W).values(**_values(workflow)).on_conflict_do_nothing().returning(_W.id)
        )
        return made.first() is not None

    async def find(self, reference: str, lock: bool | Literal["share"] = False) -> Workflow | None:
        is_id = ids.decode_id("wf", reference) is not None
        query = select(_W).where(_W.id == reference if is_id else _W.name == reference.replace("\0", "\ufffd"))
        if lock:
            query = query.with_for_update(read=lock == "share")
        row = (await self._connection.execute(query)).first()
        return None if row is None else struct_from_row(row, Workflow)

    async def list_page(self, page: Page, status: WorkflowStatus | None) -> Listing[WorkflowSummary]:
        query = select(*_ITEM)
        if status is not None:
            query = query.where(_W.status == status)
        return await fetch_page(self._connection, query, _W.id.desc(), page, WorkflowSummary)

    async def save(self, workflow: Workflow) -> bool:
        values = _values(workflow)
        for fixed in ("id", "tenant_id", "user_id", "created_at"):
            del values[fixed]
        try:
            await self._connection.execute(update(_W).where(_W.id == workflow.id).values(**values))
        except IntegrityError:
            return False
        return True

    async def delete(self, workflow_id: str) -> None:
        await self._connection.execute(delete(_W).where(_W.id == workflow_id))

    async def lock_writes(self) -> None:
        await self._connection.execute(_LOCK)

    async def count(self) -> int:
        return (await self._connection.execute(select(func.count()).select_from(_W))).scalar_one()
