"""Admit runs at their gates, free those whose time has come, and cancel those that expired, in Postgres."""

from datetime import datetime
from typing import Final

import asyncpg
from sqlalchemy import BigInteger, Identity, Text
from sqlalchemy.orm import Mapped, mapped_column

from domain.executions import Execution, ExpiredRun, FreedRun, Gate, GateKind
from domain.shared import ids
from domain.shared.jobs import Job
from infra.postgres.connection import TxConnection
from infra.postgres.db import Base


class GateSignalRow(Base):
    """Map a row of `gate_signals`: a gate where somebody may be admitted."""

    __tablename__ = "gate_signals"
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)


_ENTER_SQL: Final = "SELECT enter_gates($1, $2, $3)"
_LOCK_THREAD_SQL: Final = (
    "SELECT pg_advisory_xact_lock(gate_lock(current_setting('paddock.tenant_id'), 'thread', $1::uuid::text))"
)
# The one that holds the thread first.
_OPEN_SQL: Final = """
    SELECT id FROM executions
    WHERE thread_id = $1 AND status IN ('pending', 'preparing', 'running', 'waiting')
      AND blocked IS DISTINCT FROM 'delayed'
    ORDER BY gate IS NOT DISTINCT FROM 'thread', coalesce(run_at, created_at), id
"""


class PostgresGates:
    """Provide `domain.executions.Gates` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def enter(self, execution: Execution) -> GateKind | None:
        thread = None if execution.thread_id is None else ids.decode_id("thread", execution.thread_id)
        key, limit = execution.concurrency_key, execution.concurrency_limit
        result: GateKind | None = await self._connection.fetch_value(_ENTER_SQL, thread, key, limit)
        return result

    async def lock_thread(self, thread_id: str) -> list[str]:
        row_id = ids.decode_id("thread", thread_id)
        if row_id is None:
            return []
        await self._connection.execute_sql(_LOCK_THREAD_SQL, row_id)
        return [ids.encode_id("exec", record["id"]) for record in await self._connection.fetch(_OPEN_SQL, row_id)]

    async def list_of_runs(self, execution_ids: list[str]) -> list[Gate]:
        row_ids = [ids.decode_id("exec", execution_id) for execution_id in execution_ids]
        return [Gate(**record) for record in await self._connection.fetch("SELECT * FROM gates_of_runs($1)", row_ids)]

    async def list_signalled(self, limit: int) -> list[Gate]:
        return [Gate(**record) for record in await self._connection.fetch("SELECT * FROM signalled_gates($1)", limit)]

    async def admit(self, gate: Gate, now: datetime) -> list[FreedRun]:
        admitted = await self._connection.fetch(
            "SELECT *, $1 AS tenant_id FROM admit_runs($1, $2, $3, $4)", gate.tenant_id, gate.kind, gate.name, now
        )
        return [_read_freed(record, record["concurrency_key"]) for record in admitted]

    async def free_due(self, now: datetime, limit: int) -> tuple[list[FreedRun], float | None]:
        records = await self._connection.fetch("SELECT * FROM free_due_runs($1, $2)", now, limit)
        freed = [_read_freed(record) for record in records if record["id"] is not None]
        return freed, next((record["next"] for record in records if record["id"] is None), None)

    async def expire(self, now: datetime, limit: int) -> list[ExpiredRun]:
        records = await self._connection.fetch("SELECT *, 0 AS attempt FROM expire_runs($1, $2)", now, limit)
        jobs = [_read_job(record) for record in records]
        return [ExpiredRun(execution_id=job.row_id, job=job) for job in jobs]


def _read_job(record: asyncpg.Record) -> Job:
    return Job(
        lane=record["lane"],
        row_id=ids.encode_id("exec", record["id"]),
        tenant_id=record["tenant_id"],
        attempt=record["attempt"],
    )


def _read_freed(record: asyncpg.Record, key: str | None = None) -> FreedRun:
    gate = None
    if key is not None and record["blocked"] is not None:
        gate = Gate(tenant_id=record["tenant_id"], kind="key", name=key)
    return FreedRun(job=_read_job(record), blocked=record["blocked"], gate=gate)
