"""Store executions in Postgres. Every change of state writes its event in the same statement."""

from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from sqlalchemy import (
    Select,
    Text,
    Update,
    case,
    func,
    insert,
    literal,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSON
from sqlalchemy.types import TypeEngine

from domain.agents import AgentSpec
from domain.executions import (
    MAX_LOG_CHARACTERS,
    MAX_LOG_LINES,
    THREAD_UNCHANGED,
    AttemptOutcome,
    Execution,
    ExecutionFilter,
    ExecutionSettlement,
    LaneShare,
    status_from_outcome,
)
from domain.shared import ids
from domain.shared.leases import Lease
from domain.shared.pages import MAX_COUNTED_ROWS, Listing, Page
from domain.shared.status import LEASED_STATUSES
from infra.postgres.connection import TxConnection
from infra.postgres.db import (
    Id,
    RowMapper,
    create_timestamp,
    encode_json_text,
    replace_unstorable_text,
    struct_from_row,
)
from infra.postgres.events import EventRow
from infra.postgres.execution_filters import apply_filter
from infra.postgres.execution_rows import ExecutionRow
from infra.postgres.execution_terms import fetch_found_page
from infra.postgres.pages import fetch_page

# A list leaves out input, output and waiting calls larger than this many bytes; the execution itself shows them.
MAX_LISTED_DATA_BYTES = 16 * 1024


_ALL_COLUMNS = list(ExecutionRow.__table__.columns)
OPEN_STATUSES = ("pending", "preparing", "running", "waiting")
# What a model agent was when it was started is the worker's alone to read.
_STORED_COLUMNS = [
    *(name for name in Execution.__struct_fields__ if name in ExecutionRow.__table__.columns),
    *("spec", "turn_at", "gate"),
]


def _describe_parameter(kind: TypeEngine[Any]) -> tuple[str, Callable[[Any], Any]]:
    """Return how a value of this type goes to asyncpg: the cast of its parameter, and what is done to the value."""
    if isinstance(kind, Id):
        prefix = kind.prefix
        return "", lambda value: None if value is None else ids.decode_id(prefix, value)
    if isinstance(kind, JSON):
        return "::text::json", lambda value: None if value is None else msgspec.json.encode(value).decode()
    return "", lambda value: value


def _trim_column(column: Any, name: str) -> Any:
    small = func.octet_length(column.cast(Text))
    return case((small <= MAX_LISTED_DATA_BYTES, column), else_=None).label(name)


def _select_with_events(moved: Update, now: datetime) -> Select[Any]:
    """Select the rows an update moved, with a status event written for each in the same statement."""
    after = moved.values(last_seq=ExecutionRow.last_seq + 1, updated_at=now).returning(*_ALL_COLUMNS).cte("moved")
    data = func.json_build_object(
        *("status", after.c.status, "attempt", after.c.attempt),
        *("error_type", after.c.error_type, "error_message", after.c.error_message),
        type_=JSON,
    )
    event = select(
        after.c.id, after.c.last_seq, after.c.tenant_id, literal(now, create_timestamp()), literal("status"), data
    )
    columns = ["execution_id", "seq", "tenant_id", "at", "type", "data"]
    noted = insert(EventRow).from_select(columns, event).cte("noted")
    return select(after).add_cte(noted)


EXECUTION_MAPPER = RowMapper(ExecutionRow, Execution)
_STORED_AS = [(name, *_describe_parameter(ExecutionRow.__table__.columns[name].type)) for name in _STORED_COLUMNS]
# Runs in the order of ids, as leases are extended; then plans from the innermost out, as costs are counted and as
# a transaction that ends one of them locks what is below it.
_DESCENDANTS_SQL = f"""
    WITH RECURSIVE below AS (
        SELECT e.id, 1 AS deep FROM executions e WHERE e.parent_id = $1
        UNION ALL
        SELECT e.id, b.deep + 1 FROM executions e JOIN below b ON e.parent_id = b.id
    )
    SELECT e.id FROM executions e JOIN below b ON b.id = e.id WHERE e.status IN {OPEN_STATUSES}
    ORDER BY e.lane = 'plan', CASE WHEN e.lane = 'plan' THEN -b.deep ELSE 0 END, e.id FOR NO KEY UPDATE OF e
"""
_CANCEL_SQL = f"""
    WITH moved AS (
        UPDATE executions SET
            status = 'cancelled', error_type = 'cancelled', lease_expires_at = NULL,
            error_message = $2 || CASE WHEN thread_id IS NULL THEN '' ELSE '{THREAD_UNCHANGED}' END,
            completed_at = $3, updated_at = $3, waiting_for = NULL, last_seq = last_seq + 1
        WHERE id = ANY ($1) AND status IN {OPEN_STATUSES} RETURNING *
    ), noted AS (
        INSERT INTO execution_events (execution_id, seq, tenant_id, at, type, data)
        SELECT id, last_seq, tenant_id, $3, 'status', json_build_object(
            'status', status, 'attempt', attempt, 'error_type', error_type, 'error_message', error_message)
        FROM moved
    )
    SELECT id FROM moved
"""
_GET_SQL = f"SELECT {EXECUTION_MAPPER.columns} FROM executions WHERE id = $1"
# Lines until the limit is reached; the last one is cut where it is passed.
_GET_WITH_LOGS = f"""
    SELECT {EXECUTION_MAPPER.columns}, (
        SELECT left(string_agg(line, E'\n' ORDER BY seq), {MAX_LOG_CHARACTERS}) FROM (
            SELECT seq, line, sum(char_length(line) + 1) OVER (ORDER BY seq) - char_length(line) AS begins_at FROM (
                SELECT seq, data->>'message' AS line FROM execution_events
                WHERE execution_id = $1 AND type = 'log' ORDER BY seq LIMIT {MAX_LOG_LINES}
            ) AS lines
        ) AS placed WHERE begins_at <= {MAX_LOG_CHARACTERS}
    ) AS logs
    FROM executions WHERE id = $1
"""
_LABEL_SQL = "UPDATE executions SET run_name = $2, tags = $3, metadata = $4::text::json, updated_at = $5 WHERE id = $1"
_SPEC_SQL = "SELECT spec FROM executions WHERE id = $1"
_ADD_SQL = (
    f"WITH added AS (INSERT INTO executions ({', '.join(_STORED_COLUMNS)}, last_seq) "
    f"VALUES ({', '.join(f'${n}{cast}' for n, (_, cast, _) in enumerate(_STORED_AS, 1))}, 1) RETURNING *) "
    "INSERT INTO execution_events (execution_id, seq, tenant_id, at, type, data) "
    "SELECT id, 1, tenant_id, created_at, 'status', json_build_object('status', status, 'attempt', attempt) FROM added"
)
_CLAIM_SQL = f"SELECT {EXECUTION_MAPPER.columns} FROM claim_runs($1, $2, $3, $4, $5, $6, $7, $8)"
_SETTLE_SQL = "SELECT * FROM settle_runs($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)"


class PostgresExecutions:
    """Provide `domain.executions.Executions` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def add(self, execution: Execution, spec: AgentSpec | None, gate: str | None = None) -> None:
        apart = {"spec": spec, "gate": gate}
        values = (apart[name] if name in apart else getattr(execution, name) for name, _, _ in _STORED_AS)
        await self._connection.execute_sql(
            _ADD_SQL, *(write(value) for value, (_, _, write) in zip(values, _STORED_AS, strict=True))
        )

    async def get_spec(self, execution_id: str) -> AgentSpec | None:
        result = await self._connection.fetch_value(_SPEC_SQL, ids.decode_id("exec", execution_id))
        return None if result is None else msgspec.convert(result, AgentSpec)

    async def lock_execution(self, execution_id: str) -> Execution | None:
        row_id = ids.decode_id("exec", execution_id)
        record = await self._connection.fetch_row(f"{_GET_SQL} FOR UPDATE", row_id) if row_id is not None else None
        return None if record is None else EXECUTION_MAPPER.to_struct(record)

    async def get(self, execution_id: str) -> Execution | None:
        row_id = ids.decode_id("exec", execution_id)
        record = await self._connection.fetch_row(_GET_WITH_LOGS, row_id) if row_id is not None else None
        if record is None:
            return None
        execution = EXECUTION_MAPPER.to_struct(record)
        execution.logs = record["logs"]
        return execution

    async def save_labels(self, execution: Execution, now: datetime) -> None:
        await self._connection.execute_sql(
            _LABEL_SQL,
            ids.decode_id("exec", execution.id),
            execution.run_name,
            execution.tags,
            encode_json_text(execution.metadata),
            now,
        )

    async def list_page(self, narrowed: ExecutionFilter, page: Page) -> Listing[Execution]:
        heavy = ("input_data", "output_data", "waiting_for", "env", "messages", "output_schema")
        columns = [column for column in _ALL_COLUMNS if column.name not in heavy]
        query = select(*columns, *(_trim_column(getattr(ExecutionRow, name), name) for name in heavy))
        query = apply_filter(query, narrowed)
        if narrowed.terms is not None:
            has_filters = narrowed != ExecutionFilter(
                **{name: getattr(narrowed, name) for name in ("tag", "metadata", "search", "terms")}
            )
            return await fetch_found_page(self._connection, query, narrowed.terms, page, has_filters)
        return await fetch_page(self._connection, query, ExecutionRow.id.desc(), page, Execution, MAX_COUNTED_ROWS)

    async def claim_pending(
        self, lease: Lease, slots: int, local_versions: frozenset[str], share: LaneShare
    ) -> list[Execution]:
        versions = [ids.decode_id("ver", version_id) for version_id in local_versions]
        times = lease.claimed_at, lease.expires_at
        records = await self._connection.fetch(
            _CLAIM_SQL, lease.worker_id, slots, *times, versions, share.max_running, share.lane, share.reserved_slots
        )
        return [EXECUTION_MAPPER.to_struct(record) for record in records]

    async def begin_running(self, execution_id: str, attempt: int, now: datetime) -> bool:
        moved = update(ExecutionRow).where(
            ExecutionRow.id == execution_id, ExecutionRow.attempt == attempt, ExecutionRow.status == "preparing"
        )
        return await self._update_one(moved.values(status="running"), now) is not None

    async def settle_attempts(self, ended: list[AttemptOutcome], now: datetime) -> ExecutionSettlement:
        row_ids = [ids.decode_id("exec", entry.execution.id) for entry in ended]
        lines = [
            (
                row_ids[place],
                entry.execution.attempt,
                number,
                event.at,
                event.type,
                msgspec.json.encode(event.data).decode(),
            )
            for place, entry in enumerate(ended)
            for number, event in enumerate(entry.events, 1)
        ]
        records = await self._connection.fetch(
            _SETTLE_SQL,
            row_ids,
            [entry.execution.attempt for entry in ended],
            [status_from_outcome(entry.outcome) for entry in ended],
            [None if entry.outcome.output is None else entry.outcome.output.decode() for entry in ended],
            [replace_unstorable_text(entry.outcome.error_type) for entry in ended],
            [replace_unstorable_text(entry.outcome.error_message) for entry in ended],
            [len(entry.events) for entry in ended],
            now,
            *([line[field] for line in lines] for field in range(6)),
        )
        return ExecutionSettlement(
            settled_attempts=frozenset((ids.encode_id("exec", record["id"]), record["attempt"]) for record in records),
            has_waiting=any(record["waiting"] for record in records),
        )

    async def cancel_execution(self, execution_id: str, reason: str, now: datetime) -> bool:
        moved = update(ExecutionRow).where(ExecutionRow.id == execution_id, ExecutionRow.status.in_(OPEN_STATUSES))
        return await self._update_one(_set_cancelled(moved, reason, now), now) is not None

    async def cancel_children(self, execution_id: str, reason: str, now: datetime) -> list[str]:
        result = await self._connection.fetch(_DESCENDANTS_SQL, ids.decode_id("exec", execution_id))
        return await cancel_executions(self._connection, [record["id"] for record in result], reason, now)

    async def count_open_runs(self, agent_id: str) -> int:
        row_id = ids.decode_id("agent", agent_id)
        await self._connection.execute_sql("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", agent_id)
        query = (
            f"SELECT count(*) FROM executions WHERE agent_id = $1 AND status IN {OPEN_STATUSES} AND parent_id IS NULL "
            "AND blocked IS DISTINCT FROM 'delayed'"
        )
        return int(await self._connection.fetch_value(query, row_id))

    async def cancel_oldest(
        self, agent_id: str, keep: int, reason: str, now: datetime, steps: bool = False
    ) -> list[str]:
        # Locked in the order of ids, as leases are extended, so that the two cannot deadlock; then counted.
        # A CTE is run once; a subquery that locks might be run again, and choose other rows then.
        of_agent = select(ExecutionRow.id).where(
            ExecutionRow.agent_id == agent_id, ExecutionRow.status.in_(OPEN_STATUSES)
        )
        if not steps:
            is_due = ExecutionRow.blocked.is_distinct_from("delayed")
            of_agent = of_agent.where(ExecutionRow.parent_id.is_(None), is_due)
        locked = of_agent.order_by(ExecutionRow.id).with_for_update().cte("locked")
        chosen = select(locked.c.id).order_by(locked.c.id.desc()).offset(keep)
        moved = update(ExecutionRow).where(ExecutionRow.id.in_(chosen.scalar_subquery()))
        rows = await self._connection.execute(_select_with_events(_set_cancelled(moved, reason, now), now))
        return [struct_from_row(row, Execution).id for row in rows]

    async def park_execution(self, execution_id: str, attempt: int, calls: list[dict[str, Any]], now: datetime) -> bool:
        moved = update(ExecutionRow).where(
            ExecutionRow.id == execution_id, ExecutionRow.attempt == attempt, ExecutionRow.status == "running"
        )
        parked = moved.values(status="waiting", waiting_for=calls, worker=None, lease_expires_at=None)
        return await self._update_one(parked, now) is not None

    async def resume_execution(self, execution_id: str, now: datetime) -> Execution | None:
        moved = update(ExecutionRow).where(ExecutionRow.id == execution_id, ExecutionRow.status == "waiting")
        return await self._update_one(
            moved.values(status="pending", waiting_for=None, resumes=ExecutionRow.resumes + 1), now
        )

    async def set_waiting_calls(self, execution_id: str, calls: list[dict[str, Any]], now: datetime) -> None:
        await self._connection.execute(
            update(ExecutionRow)
            .where(ExecutionRow.id == execution_id, ExecutionRow.status == "waiting")
            .values(waiting_for=calls, updated_at=now)
        )

    async def release_execution(self, execution_id: str, attempt: int, now: datetime) -> Execution | None:
        return await self._release_one(now, ExecutionRow.id == execution_id, ExecutionRow.attempt == attempt)

    async def hand_over_execution(self, execution_id: str, attempt: int, now: datetime) -> Execution | None:
        moved = update(ExecutionRow).where(
            ExecutionRow.id == execution_id, ExecutionRow.attempt == attempt, ExecutionRow.status.in_(LEASED_STATUSES)
        )
        freed = moved.values(status="pending", handovers=ExecutionRow.handovers + 1, worker=None, lease_expires_at=None)
        return await self._update_one(freed, now)

    async def requeue_expired(self, execution_id: str, now: datetime) -> Execution | None:
        return await self._release_one(now, ExecutionRow.id == execution_id, ExecutionRow.lease_expires_at < now)

    async def _release_one(self, now: datetime, *which: Any) -> Execution | None:
        """Set an execution to pending again, or to failed when its attempts are used up."""
        # A claim after an approval, or after a worker was stopped, is none after a loss.
        counted = ExecutionRow.attempt - ExecutionRow.resumes - ExecutionRow.handovers
        used_up = counted >= ExecutionRow.max_attempts
        reason = func.format(
            "The worker stopped answering during attempt %s of %s.", counted, ExecutionRow.max_attempts
        )
        moved = (
            update(ExecutionRow)
            .where(*which, ExecutionRow.status.in_(LEASED_STATUSES))
            .values(
                status=case((used_up, "failed"), else_="pending"),
                error_type=case((used_up, "worker_lost"), else_=None),
                error_message=case((used_up, _explain_in_thread(reason)), else_=None),
                completed_at=case((used_up, now), else_=None),
                worker=None,
                lease_expires_at=None,
            )
        )
        return await self._update_one(moved, now)

    async def _update_one(self, moved: Update, now: datetime) -> Execution | None:
        row = (await self._connection.execute(_select_with_events(moved, now))).first()
        return None if row is None else struct_from_row(row, Execution)


async def cancel_executions(connection: TxConnection, row_ids: list[UUID], reason: str, now: datetime) -> list[str]:
    """Cancel those of these executions that have not ended, and return their ids."""
    if not row_ids:
        return []
    records = await connection.fetch(_CANCEL_SQL, row_ids, reason, now)
    return [ids.encode_id("exec", record["id"]) for record in records]


def _explain_in_thread(reason: Any) -> Any:
    """Return the expression for the reason of an ending; in a thread, it says that the thread stays as it was."""
    return func.concat(reason, case((ExecutionRow.thread_id.is_(None), ""), else_=THREAD_UNCHANGED))


def _set_cancelled(moved: Update, reason: str, now: datetime) -> Update:
    return moved.values(
        status="cancelled",
        error_type="cancelled",
        error_message=_explain_in_thread(reason),
        lease_expires_at=None,
        completed_at=now,
        waiting_for=None,
    )
