"""Store plans in Postgres: the plan as it was compiled, a row per step, and the signals since it was advanced."""

from datetime import datetime, timedelta
from typing import Any, Final

import asyncpg
import msgspec
from sqlalchemy import ARRAY, BigInteger, ForeignKey, Identity, Text
from sqlalchemy.orm import Mapped, mapped_column

from domain.events import ExecutionEvent
from domain.executions import Execution
from domain.plans import DuePlan, LockedPlan, Plan, StepProgress, StepRun
from domain.shared import ids
from infra.postgres.connection import TxConnection
from infra.postgres.db import (
    Base,
    Id,
    create_json_column,
    create_timestamp,
    encode_json_text,
    replace_unstorable_text,
)
from infra.postgres.executions import EXECUTION_MAPPER as EXECUTION


class PlanRow(Base):
    """Map a row of `plans`: a plan."""

    __tablename__ = "plans"
    execution_id: Mapped[str] = mapped_column(Id("exec"), ForeignKey("executions.id"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    plan: Mapped[Any] = mapped_column(create_json_column())
    max_rpm: Mapped[int | None]
    revision: Mapped[int]


class PlanCallsRow(Base):
    """Map a row of `plan_calls`: when models were called for a plan in the last minute."""

    __tablename__ = "plan_calls"
    execution_id: Mapped[str] = mapped_column(Id("exec"), primary_key=True)
    agent: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    calls: Mapped[list[datetime]] = mapped_column(ARRAY(create_timestamp()))


class PlanSignalRow(Base):
    """Map a row of `plan_signals`: something that may have changed for a plan, or will."""

    __tablename__ = "plan_signals"
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    execution_id: Mapped[str] = mapped_column(Id("exec"), index=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    due_at: Mapped[datetime] = mapped_column(create_timestamp(), index=True)


class PlanStepRow(Base):
    """Map a row of `plan_steps`: a step of an execution, or an item of one."""

    __tablename__ = "plan_steps"
    plan_id: Mapped[str] = mapped_column("execution_id", Id("exec"), primary_key=True)
    step: Mapped[str] = mapped_column(Text, primary_key=True)
    item: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text)
    tries: Mapped[int]
    child_id: Mapped[str | None] = mapped_column(Id("exec"))
    due_at: Mapped[datetime | None] = mapped_column(create_timestamp())
    error_type: Mapped[str | None] = mapped_column(Text)
    error_message: Mapped[str | None] = mapped_column(Text)
    approved: Mapped[bool | None]
    decided_by: Mapped[str | None] = mapped_column(Id("user"))
    decided_at: Mapped[datetime | None] = mapped_column(create_timestamp())
    reason: Mapped[str | None] = mapped_column(Text)
    started_at: Mapped[datetime | None] = mapped_column(create_timestamp())
    finished_at: Mapped[datetime | None] = mapped_column(create_timestamp())


# What of a step changes, its type in an array, and how it is written.
_STEP_COLUMN_TYPES: Final = {
    "status": "text",
    "tries": "integer",
    "child_id": "uuid",
    "due_at": "timestamptz",
    "error_type": "text",
    "error_message": "text",
    "approved": "boolean",
    "decided_by": "uuid",
    "decided_at": "timestamptz",
    "reason": "text",
    "started_at": "timestamptz",
    "finished_at": "timestamptz",
}
_RUNS_SQL: Final = f"SELECT step, item, {', '.join(_STEP_COLUMN_TYPES)} FROM plan_steps WHERE execution_id = $1"
_SAVE_SQL: Final = (
    f"INSERT INTO plan_steps (execution_id, tenant_id, step, item, {', '.join(_STEP_COLUMN_TYPES)}) "
    "SELECT $1, current_setting('paddock.tenant_id'), * FROM unnest($2::text[], $3::integer[], "
    + ", ".join(f"${place}::{kind}[]" for place, kind in enumerate(_STEP_COLUMN_TYPES.values(), 4))
    + ") ON CONFLICT (execution_id, step, item) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in _STEP_COLUMN_TYPES)
)
_LOCK_PLAN_SQL: Final = "SELECT revision FROM plans WHERE execution_id = $1 FOR UPDATE"
_PROGRESS_SQL: Final = """
    SELECT s.step, s.item, s.child_id, c.status, c.error_type, c.error_message, c.waiting_for
    FROM plan_steps s JOIN executions c ON c.id = s.child_id
    WHERE s.execution_id = $1 AND s.status = 'running'
"""
# As much of what steps came to as can be shown or worked with at once, in bytes; what comes later is left out.
MAX_PLAN_OUTPUTS_BYTES: Final = 8 * 1024 * 1024
# As much as one step can be given to work with.
MAX_STEP_ANSWERS_BYTES: Final = 16 * 1024 * 1024
_OUTPUTS_SQL: Final = f"""
    SELECT step, item, alone, CASE WHEN held <= {MAX_PLAN_OUTPUTS_BYTES} THEN output_data END AS output_data FROM (
        SELECT s.step, s.item, c.output_data, s.child_id IS NULL AS alone,
               sum(octet_length(c.output_data::text)) OVER (ORDER BY s.step, s.item) AS held
        FROM plan_steps s LEFT JOIN executions c ON c.id = s.child_id
        WHERE s.execution_id = $1 AND s.status = 'completed'
    ) AS found ORDER BY step, item
"""
_MOVE_SQL: Final = """
    WITH moved AS (
        UPDATE executions SET
            status = $2, attempt = 1, started_at = coalesce(started_at, greatest($3, run_at)), updated_at = $3,
            completed_at = $4, steps_completed = $5, waiting_for = $6::text::json, output_data = $7::text::json,
            error_type = $8, error_message = $9, last_seq = last_seq + $10::integer
        WHERE id = $1 AND status IN ('pending', 'running', 'waiting') RETURNING tenant_id, last_seq
    ), noted AS (
        INSERT INTO execution_events (execution_id, seq, tenant_id, at, type, data)
        SELECT $1, m.last_seq - $10::integer + w.number, m.tenant_id, w.at, w.type, w.data::json
        FROM moved m
        CROSS JOIN unnest($11::timestamptz[], $12::text[], $13::text[]) WITH ORDINALITY AS w(at, type, data, number)
    )
    SELECT count(*) FROM moved
"""
_SIGNAL_SQL: Final = """
    INSERT INTO plan_signals (execution_id, tenant_id, due_at)
    VALUES ($1, current_setting('paddock.tenant_id'), coalesce($2, to_timestamp(0)))
"""
_ANSWERS_SQL: Final = f"""
    SELECT id, CASE WHEN held <= {MAX_STEP_ANSWERS_BYTES} THEN output_data END AS output_data, held FROM (
        SELECT id, output_data, sum(octet_length(output_data::text)) OVER () AS held
        FROM executions WHERE id = ANY ($1)
    ) AS found
"""


class PostgresPlans:
    """Provide `domain.plans.Plans` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def add(self, execution_id: str, plan: Plan, runs: list[StepRun], is_blocked: bool = False) -> None:
        row_id = ids.decode_id("exec", execution_id)
        await self._connection.execute_sql(
            "INSERT INTO plans (execution_id, tenant_id, plan, max_rpm) "
            "VALUES ($1, current_setting('paddock.tenant_id'), $2::text::json, $3)",
            row_id,
            msgspec.json.encode(plan).decode(),
            plan.max_rpm,
        )
        await self.save(execution_id, runs)
        if not is_blocked:
            await self.signal_plan(execution_id)

    async def get(self, execution_id: str) -> Plan | None:
        result = await self._connection.fetch_value(
            "SELECT plan::text FROM plans WHERE execution_id = $1", ids.decode_id("exec", execution_id)
        )
        return None if result is None else msgspec.json.decode(result, type=Plan)

    async def list_due(self, now: datetime, limit: int) -> tuple[list[DuePlan], float | None]:
        records = await self._connection.fetch("SELECT * FROM due_plans($1, $2)", now, limit)
        result = [
            DuePlan(execution_id=ids.encode_id("exec", record["execution_id"]), tenant_id=record["tenant_id"])
            for record in records
            if record["execution_id"] is not None
        ]
        return result, next((record["next"] for record in records if record["execution_id"] is None), None)

    async def lock(self, execution_id: str) -> None:
        await self._connection.execute_sql(_LOCK_PLAN_SQL, ids.decode_id("exec", execution_id))

    async def clear_signals(self, execution_id: str) -> None:
        await self._connection.execute_sql(
            "DELETE FROM plan_signals WHERE execution_id = $1", ids.decode_id("exec", execution_id)
        )

    async def try_lock(self, execution_id: str, now: datetime) -> LockedPlan | None:
        row_id = ids.decode_id("exec", execution_id)
        revision = await self._connection.fetch_value(f"{_LOCK_PLAN_SQL} SKIP LOCKED", row_id)
        if revision is None:
            return None
        # Before anything else is read: a signal from here on is seen by the worker that takes the plan next.
        await self._connection.execute_sql(
            "DELETE FROM plan_signals WHERE execution_id = $1 AND due_at <= $2", row_id, now
        )
        fresh = await self._connection.fetch_row(f"SELECT {EXECUTION.columns} FROM executions WHERE id = $1", row_id)
        assert fresh is not None
        return LockedPlan(revision=revision, execution=EXECUTION.to_struct(fresh))

    async def list_runs(self, execution_id: str) -> list[StepRun]:
        records = await self._connection.fetch(_RUNS_SQL, ids.decode_id("exec", execution_id))
        return [_read_step(record) for record in records]

    async def list_progress(self, execution_id: str) -> list[StepProgress]:
        records = await self._connection.fetch(_PROGRESS_SQL, ids.decode_id("exec", execution_id))
        return [
            StepProgress(
                step=record["step"],
                item=record["item"],
                execution_id=ids.encode_id("exec", record["child_id"]),
                status=record["status"],
                error_type=record["error_type"],
                error_message=record["error_message"],
                waiting_for=record["waiting_for"] if record["status"] == "waiting" else None,
            )
            for record in records
        ]

    async def get_child_outputs(self, executions: list[str]) -> tuple[dict[str, Any] | None, int]:
        row_ids = [ids.decode_id("exec", entry) for entry in executions]
        records = await self._connection.fetch(_ANSWERS_SQL, row_ids)
        size = int(records[0]["held"] or 0) if records else 0
        if size > MAX_STEP_ANSWERS_BYTES:
            return None, size
        return {ids.encode_id("exec", record["id"]): record["output_data"] for record in records}, size

    async def get_step_outputs(self, execution_id: str) -> dict[str, Any]:
        records = await self._connection.fetch(_OUTPUTS_SQL, ids.decode_id("exec", execution_id))
        # A completed step without a child is one that is mapped.
        result: dict[str, Any] = {
            record["step"]: [] if record["alone"] else record["output_data"] for record in records if record["item"] < 0
        }
        for record in records:
            if record["item"] >= 0 and record["step"] in result:
                result[record["step"]].append(record["output_data"])
        return result

    async def save(self, execution_id: str, runs: list[StepRun]) -> None:
        if not runs:
            return
        row_id = ids.decode_id("exec", execution_id)
        await self._connection.execute_sql(
            _SAVE_SQL,
            row_id,
            [run.step for run in runs],
            [run.item for run in runs],
            *([_get_value(run, name) for run in runs] for name in _STEP_COLUMN_TYPES),
        )
        await self._connection.execute_sql("UPDATE plans SET revision = revision + 1 WHERE execution_id = $1", row_id)

    async def signal_plan(self, execution_id: str, due_at: datetime | None = None) -> None:
        await self._connection.execute_sql(_SIGNAL_SQL, ids.decode_id("exec", execution_id), due_at)

    async def update_execution(self, execution: Execution, events: list[ExecutionEvent], now: datetime) -> bool:
        moved = await self._connection.fetch_value(
            _MOVE_SQL,
            ids.decode_id("exec", execution.id),
            execution.status,
            now,
            execution.completed_at,
            execution.steps_completed,
            encode_json_text(execution.waiting_for),
            encode_json_text(execution.output_data),
            replace_unstorable_text(execution.error_type),
            replace_unstorable_text(execution.error_message),
            len(events),
            [event.at for event in events],
            [event.type for event in events],
            [msgspec.json.encode(event.data).decode() for event in events],
        )
        return bool(moved)

    async def get_max_rpm(self, execution_id: str) -> int | None:
        query = "SELECT max_rpm FROM plans WHERE execution_id = $1"
        result: int | None = await self._connection.fetch_value(query, ids.decode_id("exec", execution_id))
        return result

    async def reserve_model_call(self, execution_id: str, max_rpm: int, now: datetime, agent: str = "") -> datetime:
        row_id = ids.decode_id("exec", execution_id)
        await self._connection.execute_sql(
            "INSERT INTO plan_calls (execution_id, agent, tenant_id, calls) "
            "VALUES ($1, $2, current_setting('paddock.tenant_id'), '{}') ON CONFLICT DO NOTHING",
            row_id,
            agent,
        )
        calls = await self._connection.fetch_value(
            "SELECT calls FROM plan_calls WHERE execution_id = $1 AND agent = $2 FOR UPDATE", row_id, agent
        )
        minute = timedelta(minutes=1)
        slot = now if len(calls) < max_rpm else max(now, calls[-max_rpm] + minute)
        await self._connection.execute_sql(
            "UPDATE plan_calls SET calls = $3 WHERE execution_id = $1 AND agent = $2",
            row_id,
            agent,
            # Clocks differ: the last one is not always the latest.
            sorted([*calls, slot])[-max_rpm:],
        )
        return slot


def _get_value(run: StepRun, name: str) -> Any:
    if name == "child_id":
        return None if run.execution_id is None else ids.decode_id("exec", run.execution_id)
    if name == "decided_by":
        return None if run.decided_by is None else ids.decode_id("user", run.decided_by)
    if name in ("error_message", "reason", "error_type"):
        return replace_unstorable_text(getattr(run, name))
    return getattr(run, name)


def _read_step(record: asyncpg.Record) -> StepRun:
    values = {name: record[name] for name in ("step", "item", *_STEP_COLUMN_TYPES)}
    child, by = values.pop("child_id"), values["decided_by"]
    values["decided_by"] = None if by is None else ids.encode_id("user", by)
    return StepRun(execution_id=None if child is None else ids.encode_id("exec", child), **values)
