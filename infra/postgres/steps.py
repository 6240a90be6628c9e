"""Store the steps of executions in Postgres."""

from datetime import datetime
from typing import Any, Final

from sqlalchemy import ForeignKey, Text
from sqlalchemy.orm import Mapped, mapped_column

from domain.executions import RunStep, RunStepStatus
from domain.shared import ids
from infra.postgres.connection import TxConnection
from infra.postgres.db import Base, Id, RowMapper, create_json_column, create_timestamp, encode_json_text


class StepRow(Base):
    """Map a row of `execution_steps`: one step."""

    __tablename__ = "execution_steps"
    execution_id: Mapped[str] = mapped_column(Id("exec"), ForeignKey("executions.id"), primary_key=True)
    path: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text)
    attempt: Mapped[int]
    call_id: Mapped[str | None] = mapped_column(Text)
    input: Mapped[Any | None] = mapped_column(create_json_column())
    output: Mapped[Any | None] = mapped_column(create_json_column())
    decided_by: Mapped[str | None] = mapped_column(Id("user"))
    decided_at: Mapped[datetime | None] = mapped_column(create_timestamp())
    reason: Mapped[str | None] = mapped_column(Text)
    started_at: Mapped[datetime] = mapped_column(create_timestamp())
    finished_at: Mapped[datetime | None] = mapped_column(create_timestamp())


_ROW_MAPPER: Final = RowMapper(StepRow, RunStep)
_LIST_SQL: Final = (
    f"SELECT {_ROW_MAPPER.columns} FROM execution_steps WHERE execution_id = $1 ORDER BY started_at, path"
)
# A finished step counts once, and stays as it is.
_PUT_SQL: Final = """
    WITH held AS (
        SELECT id, tenant_id FROM executions
        WHERE id = $1 AND attempt = $2 AND status IN ('preparing', 'running') FOR UPDATE
    ), put AS (
        INSERT INTO execution_steps AS s (execution_id, path, tenant_id, kind, name, status, attempt, call_id, input,
                                          output, started_at, finished_at)
        SELECT id, $3, tenant_id, $4, $5, $6, $2, $7, $8::text::json, $9::text::json, $10, $11 FROM held
        ON CONFLICT (execution_id, path) DO UPDATE SET
            status = excluded.status, attempt = excluded.attempt, output = excluded.output,
            finished_at = excluded.finished_at
        WHERE s.status <> 'finished' AND (s.status, s.attempt) <> (excluded.status, excluded.attempt)
        RETURNING s.status
    ), counted AS (
        UPDATE executions e SET steps_completed = e.steps_completed + 1,
                                steps_total = greatest(e.steps_total, e.steps_completed + 1)
        FROM put WHERE e.id = $1 AND put.status = 'finished'
    )
    SELECT EXISTS (SELECT FROM put) FROM held
"""
_DECIDE_SQL: Final = """
    UPDATE execution_steps SET status = $3, decided_by = $4, reason = $5, decided_at = $6
    WHERE execution_id = $1 AND path = ANY ($2) AND status = 'waiting'
"""


class PostgresSteps:
    """Provide `domain.executions.steps.RunSteps` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def list_steps(self, execution_id: str) -> list[RunStep]:
        records = await self._connection.fetch(_LIST_SQL, ids.decode_id("exec", execution_id))
        return [_ROW_MAPPER.to_struct(record) for record in records]

    async def save_step(self, step: RunStep) -> bool | None:
        written: bool | None = await self._connection.fetch_value(
            _PUT_SQL,
            ids.decode_id("exec", step.execution_id),
            step.attempt,
            step.path,
            step.kind,
            step.name,
            step.status,
            step.call_id,
            encode_json_text(step.input),
            encode_json_text(step.output),
            step.started_at,
            step.finished_at,
        )
        return written

    async def decide_calls(
        self, execution_id: str, paths: list[str], status: RunStepStatus, by: str, reason: str | None, now: datetime
    ) -> None:
        await self._connection.execute_sql(
            _DECIDE_SQL, ids.decode_id("exec", execution_id), paths, status, ids.decode_id("user", by), reason, now
        )
