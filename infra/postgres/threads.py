"""Store threads and their messages in Postgres."""

from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec
from sqlalchemy import BigInteger, Integer, Text, Uuid, select, update
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.orm import Mapped, mapped_column

from domain.llms import ChatMessage, estimate_tokens
from domain.shared import ids
from domain.shared.pages import MAX_COUNTED_ROWS, Listing, Page
from domain.threads import StoredMessage, Thread, ThreadLock
from infra.postgres.connection import TxConnection
from infra.postgres.db import Base, Id, RowMapper, create_json_column, create_timestamp
from infra.postgres.executions import OPEN_STATUSES
from infra.postgres.pages import fetch_page

# A start does not hinder the turn of a run that is settled, which locks itself before its thread.
_LOCK_CLAUSES: Final = {False: "", True: " FOR UPDATE", "share": " FOR KEY SHARE", "turn": " FOR NO KEY UPDATE"}


class ThreadRow(Base):
    """Map a row of `threads`: a conversation."""

    __tablename__ = "threads"
    id: Mapped[str] = mapped_column(Id("thread"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    user_id: Mapped[str] = mapped_column(Id("user"))
    title: Mapped[str | None] = mapped_column(Text)
    tags: Mapped[list[str]] = mapped_column(ARRAY(Text))
    # The attribute `metadata` is SQLAlchemy's own.
    thread_metadata: Mapped[Any | None] = mapped_column("metadata", create_json_column())
    summary: Mapped[str | None] = mapped_column(Text)
    summarized_seq: Mapped[int] = mapped_column(BigInteger)
    last_seq: Mapped[int] = mapped_column(BigInteger)
    forked_from: Mapped[str | None] = mapped_column(Id("thread"))
    forked_seq: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(create_timestamp())
    updated_at: Mapped[datetime] = mapped_column(create_timestamp())


class ThreadMessageRow(Base):
    """Map a row of `thread_messages`: a message, which is never changed."""

    __tablename__ = "thread_messages"
    thread_id: Mapped[str] = mapped_column(Id("thread"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    role: Mapped[str] = mapped_column(Text)
    content: Mapped[Any] = mapped_column(create_json_column())
    tokens: Mapped[int] = mapped_column(Integer)
    execution_id: Mapped[Any | None] = mapped_column(Uuid)
    created_at: Mapped[datetime] = mapped_column(create_timestamp())


_ROW_MAPPER: Final = RowMapper(ThreadRow, Thread)
_FIND_SQL: Final = f"SELECT {_ROW_MAPPER.columns} FROM threads WHERE id = $1"
_MESSAGE_COLUMNS: Final = "seq, content::text AS content, tokens, execution_id, created_at"
_ADD_MESSAGES_SQL: Final = """
    INSERT INTO thread_messages (thread_id, seq, tenant_id, role, content, tokens, execution_id, created_at)
    SELECT $1, $2 + m.place, current_setting('paddock.tenant_id'), m.role, m.content::json, m.tokens, $3, $4
    FROM unnest($5::bigint[], $6::text[], $7::text[], $8::integer[]) AS m(place, role, content, tokens)
"""
_LIST_SQL: Final = f"SELECT {_MESSAGE_COLUMNS} FROM thread_messages WHERE thread_id = $1"
# Summed from the newest on; the first message that does not fit, and all before it, are left out.
_NEWEST_SQL: Final = f"""
    SELECT {_MESSAGE_COLUMNS} FROM thread_messages WHERE thread_id = $1 AND seq >= (
        SELECT min(seq) FROM (
            SELECT seq, sum(tokens) OVER (ORDER BY seq DESC) - tokens AS newer_tokens, tokens FROM (
                SELECT seq, tokens FROM thread_messages WHERE thread_id = $1 AND seq > $2
                ORDER BY seq DESC LIMIT $3
            ) AS newest
        ) AS summed WHERE newer_tokens = 0 OR newer_tokens + tokens <= $3
    ) ORDER BY seq
"""
_COPY_SQL: Final = """
    INSERT INTO thread_messages (thread_id, seq, tenant_id, role, content, tokens, execution_id, created_at)
    SELECT $2, seq, tenant_id, role, content, tokens, execution_id, created_at
    FROM thread_messages WHERE thread_id = $1 AND seq <= $3
"""
_OPEN_RUNS_SQL: Final = f"""
    SELECT id FROM executions WHERE thread_id = $1 AND status IN {OPEN_STATUSES}
    AND ($2 OR blocked IS DISTINCT FROM 'delayed') ORDER BY id
"""
_UNUSED_SQL: Final = f"""
    SELECT id FROM threads AS t WHERE t.updated_at < $1 AND NOT EXISTS (
        SELECT FROM executions AS e WHERE e.thread_id = t.id AND e.status IN {OPEN_STATUSES}
    ) ORDER BY id LIMIT $2 FOR UPDATE SKIP LOCKED
"""


class PostgresThreads:
    """Provide `domain.threads.Threads` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def add(self, thread: Thread) -> None:
        await self._connection.execute(insert(ThreadRow).values(_collect_values(thread)))

    async def find(self, thread_id: str, lock: ThreadLock = False) -> Thread | None:
        row_id = ids.decode_id("thread", thread_id)
        if row_id is None:
            return None
        record = await self._connection.fetch_row(f"{_FIND_SQL}{_LOCK_CLAUSES[lock]}", row_id)
        return None if record is None else _ROW_MAPPER.to_struct(record)

    async def list_page(self, page: Page, tag: str | None) -> Listing[Thread]:
        query = select(*ThreadRow.__table__.columns)
        if tag is not None:
            query = query.where(ThreadRow.tags.contains([tag.replace("\0", "\ufffd")]))
        return await fetch_page(self._connection, query, ThreadRow.id.desc(), page, Thread, MAX_COUNTED_ROWS)

    async def save(self, thread: Thread) -> None:
        values = _collect_values(thread)
        await self._connection.execute(update(ThreadRow).where(ThreadRow.id == thread.id).values(values))

    async def delete(self, thread_id: str) -> None:
        await self._delete_rows([ids.decode_id("thread", thread_id)])

    async def delete_unused(self, before: datetime, limit: int) -> int:
        records = await self._connection.fetch(_UNUSED_SQL, before, limit)
        await self._delete_rows([record["id"] for record in records])
        return len(records)

    async def _delete_rows(self, row_ids: list[UUID | None]) -> None:
        await self._connection.execute_sql("DELETE FROM agent_states WHERE thread_id = ANY ($1)", row_ids)
        await self._connection.execute_sql("DELETE FROM thread_messages WHERE thread_id = ANY ($1)", row_ids)
        await self._connection.execute_sql("DELETE FROM threads WHERE id = ANY ($1)", row_ids)

    async def add_messages(
        self, thread: Thread, messages: list[ChatMessage], execution_id: str | None, now: datetime
    ) -> None:
        await self._connection.execute_sql(
            _ADD_MESSAGES_SQL,
            ids.decode_id("thread", thread.id),
            thread.last_seq,
            None if execution_id is None else ids.decode_id("exec", execution_id),
            now,
            list(range(1, len(messages) + 1)),
            [message.role for message in messages],
            [msgspec.json.encode(message).decode() for message in messages],
            [estimate_tokens(message) for message in messages],
        )

    async def list_messages(self, thread_id: str, page: Page, is_descending: bool) -> list[StoredMessage]:
        order = "DESC" if is_descending else "ASC"
        query = f"{_LIST_SQL} ORDER BY seq {order} LIMIT $2 OFFSET $3"
        row_id = ids.decode_id("thread", thread_id)
        records = await self._connection.fetch(query, row_id, page.limit + 1, page.offset)
        return [_read_message(record) for record in records]

    async def measure_messages(self, thread_id: str, page: Page, is_descending: bool) -> int:
        order = "DESC" if is_descending else "ASC"
        query = (
            f"SELECT coalesce(sum(octet_length(content)), 0) FROM ({_LIST_SQL} ORDER BY seq {order} LIMIT $2 OFFSET $3)"
        )
        row_id = ids.decode_id("thread", thread_id)
        return int(await self._connection.fetch_value(f"{query} AS listed", row_id, page.limit, page.offset))

    async def list_newest(self, thread_id: str, after: int, max_tokens: int) -> list[StoredMessage]:
        row_id = ids.decode_id("thread", thread_id)
        records = await self._connection.fetch(_NEWEST_SQL, row_id, after, max_tokens)
        return [_read_message(record) for record in records]

    async def find_last_role(self, thread_id: str) -> str | None:
        query = "SELECT role FROM thread_messages WHERE thread_id = $1 ORDER BY seq DESC LIMIT 1"
        records = await self._connection.fetch(query, ids.decode_id("thread", thread_id))
        return records[0]["role"] if records else None

    async def find_turn_end(self, thread_id: str, execution_id: str) -> int | None:
        query = "SELECT max(seq) FROM thread_messages WHERE thread_id = $1 AND execution_id = $2"
        row_ids = ids.decode_id("thread", thread_id), ids.decode_id("exec", execution_id)
        result: int | None = await self._connection.fetch_value(query, *row_ids)
        return result

    async def copy_messages(self, thread_id: str, fork_id: str, at: int) -> None:
        row_ids = ids.decode_id("thread", thread_id), ids.decode_id("thread", fork_id)
        await self._connection.execute_sql(_COPY_SQL, *row_ids, at)

    async def list_open_runs(self, thread_id: str, with_delayed: bool = True) -> list[str]:
        records = await self._connection.fetch(_OPEN_RUNS_SQL, ids.decode_id("thread", thread_id), with_delayed)
        return [ids.encode_id("exec", record["id"]) for record in records]


def _collect_values(thread: Thread) -> dict[Any, Any]:
    columns = ThreadRow.__table__.columns
    return {columns[name]: getattr(thread, name) for name in Thread.__struct_fields__}


def _read_message(record: Any) -> StoredMessage:
    run_id = record["execution_id"]
    return StoredMessage(
        seq=record["seq"],
        message=msgspec.json.decode(record["content"], type=ChatMessage),
        execution_id=None if run_id is None else ids.encode_id("exec", run_id),
        tokens=record["tokens"],
        created_at=record["created_at"],
    )
