"""Store the event log of executions in Postgres.

An execution's row holds the number of its last event; taking numbers locks the row, so numbers
appear in the order of commits and without gaps.
"""

import itertools
from datetime import datetime
from typing import Any, Final

import msgspec
from sqlalchemy import ForeignKey, Text, select, text
from sqlalchemy.orm import Mapped, mapped_column

from domain.events import AttemptEvents, EventQuery, EventSlice, ExecutionEvent, LogEntry, render_log_entry
from domain.shared import ids
from domain.shared.pages import MAX_COUNTED_ROWS, Listing, Page, build_listing
from domain.shared.status import TERMINAL_STATUSES, ExecutionStatus
from infra.postgres.connection import TxConnection
from infra.postgres.db import Base, Id, create_json_column, create_timestamp, struct_from_row


class EventRow(Base):
    """Map a row of `execution_events`: one event."""

    __tablename__ = "execution_events"
    execution_id: Mapped[str] = mapped_column(Id("exec"), ForeignKey("executions.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    at: Mapped[datetime] = mapped_column(create_timestamp())
    type: Mapped[str] = mapped_column(Text)
    data: Mapped[Any] = mapped_column(create_json_column())


# What a model says comes in hundreds of pieces, and what code streams is no line of a log: these are for streams.
_STREAMED_TYPES: Final = ("token", "thinking", "output", "progress")
_STATE_SQL = text("SELECT status, last_seq FROM executions WHERE id = :id")

_APPEND_TO: Final = """
    WITH held AS (
        UPDATE executions SET last_seq = last_seq + :count
        WHERE id = :id AND {}
        RETURNING tenant_id, last_seq - :count AS base
    )
    INSERT INTO execution_events (execution_id, seq, tenant_id, at, type, data)
    SELECT :id, base + written.n, tenant_id, written.at, written.type, written.data::json
    FROM held, unnest(CAST(:times AS timestamptz[]), CAST(:types AS text[]), CAST(:datas AS text[]))
         WITH ORDINALITY AS written(at, type, data, n)
    RETURNING seq
    """
_APPEND_SQL = text(_APPEND_TO.format("attempt = :attempt AND status IN ('preparing', 'running')"))
_APPEND_WAITING = text(_APPEND_TO.format("status = 'waiting'"))

# A build speaks once, when it has ended; its whole log is the version's `build_log`.
_AGENT_LOGS = """
    SELECT updated_at AS timestamp, 'build' AS source, CASE status WHEN 'ready' THEN 'INFO' ELSE 'ERROR' END AS level,
           CASE status WHEN 'ready' THEN 'Build completed successfully'
                ELSE 'Build failed: ' || coalesce(error_message, '') END AS message,
           json_build_object('version', version, 'status', status) AS metadata, id AS subject, 0 AS seq
    FROM agent_versions WHERE agent_id = :agent AND status IN ('ready', 'failed')
    UNION ALL
    SELECT e.at, 'runtime',
           CASE WHEN e.type = 'log' THEN e.data->>'level'
                WHEN e.data->>'status' = 'failed' THEN 'ERROR' ELSE 'INFO' END,
           CASE WHEN e.type = 'log' THEN e.data->>'message'
                ELSE x.run_name || ' ' || (e.data->>'status') || coalesce(': ' || x.error_message, '') END,
           json_build_object('status', e.data->>'status', 'stream', e.data->>'stream'), e.execution_id, e.seq
    FROM executions x JOIN execution_events e ON e.execution_id = x.id
    WHERE x.id IN (SELECT id FROM executions WHERE agent_id = :agent ORDER BY id DESC LIMIT 500)
      -- Others have a status of another kind, and texts that ->> cannot read (U+0000).
      AND CASE e.type WHEN 'log' THEN true
                      WHEN 'status' THEN e.data->>'status' IN ('completed', 'failed', 'cancelled') ELSE false END
"""


class PostgresEvents:
    """Provide `domain.events.Events` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def append_while_waiting(self, execution_id: str, written: list[ExecutionEvent]) -> None:
        await self._connection.execute(
            _APPEND_WAITING, {"id": ids.decode_id("exec", execution_id), **_build_parameters(written)}
        )

    async def append_batches(self, written: list[AttemptEvents]) -> set[tuple[str, int]]:
        row_ids = [ids.decode_id("exec", entry.execution_id) for entry in written]
        lines = [
            (row_ids[place], number, event.at, event.type, msgspec.json.encode(event.data).decode())
            for place, entry in enumerate(written)
            for number, event in enumerate(entry.events, 1)
        ]
        records = await self._connection.fetch(
            "SELECT * FROM append_events($1, $2, $3, $4, $5, $6, $7, $8)",
            row_ids,
            [entry.attempt for entry in written],
            [len(entry.events) for entry in written],
            *([line[field] for line in lines] for field in range(5)),
        )
        return {(ids.encode_id("exec", record["id"]), record["attempt"]) for record in records}

    async def find_slices(self, asked: list[EventQuery], limit: int) -> list[EventSlice | None]:
        row_ids = [ids.decode_id("exec", entry.execution_id) for entry in asked]
        records = await self._connection.fetch(
            "SELECT * FROM read_events($1, $2, $3, $4)",
            row_ids,
            [entry.tenant_id for entry in asked],
            [entry.seq for entry in asked],
            limit,
        )
        result: list[EventSlice | None] = [None] * len(asked)
        for place, rows in itertools.groupby(records, key=lambda record: record["place"]):
            of_one = list(rows)
            first = of_one[0]
            events = [_read_event(row) for row in of_one if row["seq"] is not None]
            reached = events[-1].seq if events else asked[place - 1].seq
            ended = first["status"] in TERMINAL_STATUSES and reached >= first["last_seq"]
            result[place - 1] = EventSlice(events=events, last_seq=first["last_seq"], is_complete=ended)
        return result

    async def append_if_leased(self, execution_id: str, attempt: int, written: list[ExecutionEvent]) -> bool:
        appended = await self._connection.execute(
            _APPEND_SQL,
            {
                "id": ids.decode_id("exec", execution_id),
                "attempt": attempt,
                **_build_parameters(written),
            },
        )
        return len(appended.all()) == len(written)

    async def get_state(self, execution_id: str) -> tuple[ExecutionStatus, int] | None:
        if ids.decode_id("exec", execution_id) is None:
            return None
        result = await self._connection.execute(_STATE_SQL, {"id": ids.decode_id("exec", execution_id)})
        row = result.first()
        return None if row is None else (row.status, row.last_seq)

    async def list_logs(self, execution_id: str, page: Page) -> Listing[LogEntry]:
        query = (
            select(EventRow, text("count(*) OVER () AS total"))
            .where(EventRow.execution_id == execution_id, EventRow.type.not_in(_STREAMED_TYPES))
            .order_by(EventRow.seq)
            .limit(page.limit + 1)
            .offset(page.offset)
        )
        rows = (await self._connection.execute(query)).all()
        total = rows[0].total if rows else 0
        return build_listing(
            [render_log_entry(struct_from_row(row, ExecutionEvent), execution_id) for row in rows], total, page
        )

    async def list_agent_logs(self, agent_id: str, page: Page) -> Listing[LogEntry]:
        values = {"agent": ids.decode_id("agent", agent_id), "limit": page.limit + 1, "offset": page.offset}
        query = f"SELECT * FROM ({_AGENT_LOGS}) AS l ORDER BY timestamp DESC, seq DESC LIMIT :limit OFFSET :offset"
        rows = (await self._connection.execute(text(query), values)).all()
        count = f"SELECT count(*) FROM (SELECT 1 FROM ({_AGENT_LOGS}) AS l LIMIT {MAX_COUNTED_ROWS}) AS c"
        total = (await self._connection.execute(text(count), values)).scalar_one()
        return build_listing([_read_agent_entry(row) for row in rows], total, page)


def _build_parameters(written: list[ExecutionEvent]) -> dict[str, Any]:
    return {
        "count": len(written),
        "times": [event.at for event in written],
        "types": [event.type for event in written],
        "datas": [msgspec.json.encode(event.data).decode() for event in written],
    }


def _read_event(row: Any) -> ExecutionEvent:
    return ExecutionEvent(type=row["type"], data=row["data"], at=row["at"], seq=row["seq"])


def _read_agent_entry(row: Any) -> LogEntry:
    prefix, key = ("ver", "version_id") if row.source == "build" else ("exec", "execution_id")
    metadata = {key: ids.encode_id(prefix, row.subject)}
    metadata |= {name: value for name, value in row.metadata.items() if value is not None}
    return LogEntry(timestamp=row.timestamp, level=row.level, message=row.message, source=row.source, metadata=metadata)
