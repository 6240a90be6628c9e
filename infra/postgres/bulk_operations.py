"""Store bulk operations in Postgres: the executions that each still has to deal with, and its counts."""

from datetime import datetime
from typing import Any, Final

from sqlalchemy import ARRAY, Select, Text, Uuid, cast, exists, func, insert, literal, select
from sqlalchemy.orm import Mapped, aliased, mapped_column

from domain.bulk_operations import MAX_SHOWN_ERRORS, BulkAction, BulkError, BulkOperation, BulkOwner
from domain.executions import ExecutionFilter
from domain.shared import ids
from domain.shared.access import Caller
from domain.shared.errors import DomainError
from domain.shared.pages import Listing, Page
from domain.shared.status import TERMINAL_STATUSES
from infra.postgres.connection import TxConnection
from infra.postgres.db import Base, Id, create_timestamp, replace_unstorable_text, struct_from_row
from infra.postgres.execution_filters import apply_filter
from infra.postgres.execution_rows import ExecutionRow
from infra.postgres.execution_terms import ExecutionTermRow
from infra.postgres.pages import fetch_page


class BulkOperationRow(Base):
    """Map a row of `bulk_operations`: an operation, and on whose behalf it works."""

    __tablename__ = "bulk_operations"
    id: Mapped[str] = mapped_column(Id("bulk"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    user_id: Mapped[str] = mapped_column(Id("user"))
    key_id: Mapped[str | None] = mapped_column(Id("key"))
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    action: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text)
    total: Mapped[int]
    done: Mapped[int]
    failed: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(create_timestamp())
    updated_at: Mapped[datetime] = mapped_column(create_timestamp())
    completed_at: Mapped[datetime | None] = mapped_column(create_timestamp())


class BulkItemRow(Base):
    """Map a row of `bulk_items`: an execution that an operation has not dealt with, or failed on."""

    __tablename__ = "bulk_items"
    operation_id: Mapped[str] = mapped_column(Id("bulk"), primary_key=True)
    execution_id: Mapped[str] = mapped_column(Id("exec"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    error_code: Mapped[str | None] = mapped_column(Text)
    error: Mapped[str | None] = mapped_column(Text)


_ADD_SQL: Final = """
    INSERT INTO bulk_operations
        (id, tenant_id, user_id, key_id, scopes, action, status, total, done, failed, created_at, updated_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, 0, 0, 0, $8, $8)
"""
_ADD_IDS_SQL: Final = """
    INSERT INTO bulk_items (operation_id, execution_id, tenant_id)
    SELECT $1, e.id, e.tenant_id FROM executions e WHERE e.id = ANY ($2)
"""
_SAVE_TOTAL_SQL: Final = """
    UPDATE bulk_operations SET total = $2, status = CASE WHEN $2 = 0 THEN 'completed' ELSE status END,
        completed_at = CASE WHEN $2 = 0 THEN $3::timestamptz END
    WHERE id = $1
"""
_CANCEL_SQL: Final = """
    UPDATE bulk_operations SET status = 'cancelled', completed_at = $2, updated_at = $2
    WHERE id = $1 AND status = 'running'
"""
_COMPLETE_SQL: Final = """
    UPDATE bulk_operations o SET status = 'completed', completed_at = $2, updated_at = $2
    WHERE o.id = $1 AND o.status = 'running'
      AND NOT EXISTS (SELECT FROM bulk_items i WHERE i.operation_id = o.id AND i.error IS NULL)
"""
_ERRORS_SQL: Final = f"""
    SELECT execution_id, error_code, error FROM bulk_items
    WHERE operation_id = $1 AND error IS NOT NULL ORDER BY execution_id LIMIT {MAX_SHOWN_ERRORS}
"""
_PENDING_SQL: Final = """
    SELECT i.execution_id FROM bulk_items i JOIN bulk_operations o ON o.id = i.operation_id
    WHERE o.id = $1 AND o.status = 'running' AND i.error IS NULL ORDER BY i.execution_id LIMIT $2
"""
# The execution first, as its deletion locks it: the two would otherwise wait for each other.
_LOCK_SQL: Final = "SELECT FROM executions WHERE id = $1 FOR UPDATE"
_COUNT_RUNNING_SQL: Final = "SELECT count(*) FROM bulk_operations WHERE status = 'running'"
_TAKE_SQL: Final = """
    WITH running AS (SELECT * FROM bulk_operations WHERE id = $1 AND status = 'running' FOR UPDATE),
    taken AS (
        DELETE FROM bulk_items i USING running r
        WHERE i.operation_id = r.id AND i.execution_id = $2 AND i.error IS NULL RETURNING i.operation_id
    )
    SELECT r.action, r.user_id, r.key_id, r.scopes FROM running r JOIN taken t ON t.operation_id = r.id
"""
_SETTLE_SQL: Final = """
    WITH noted AS (
        INSERT INTO bulk_items (operation_id, execution_id, tenant_id, error_code, error)
        SELECT $1, $2, current_setting('paddock.tenant_id'), $3, $4 WHERE $3::text IS NOT NULL
    ), remaining AS (
        SELECT EXISTS (SELECT FROM bulk_items i WHERE i.operation_id = $1 AND i.error IS NULL) AS any
    )
    UPDATE bulk_operations o SET
        done = o.done + CASE WHEN $3::text IS NULL THEN 1 ELSE 0 END,
        failed = o.failed + CASE WHEN $3::text IS NULL THEN 0 ELSE 1 END,
        status = CASE WHEN r.any THEN o.status ELSE 'completed' END,
        completed_at = CASE WHEN r.any THEN NULL ELSE $5::timestamptz END,
        updated_at = $5
    FROM remaining r WHERE o.id = $1
"""


class PostgresBulkOperations:
    """Provide `domain.bulk_operations.BulkOperations` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def add(self, operation: BulkOperation, caller: Caller) -> None:
        await self._connection.execute_sql(
            _ADD_SQL,
            _decode_operation(operation.id or ""),
            caller.tenant_id,
            ids.decode_id("user", caller.user_id),
            None if caller.key_id is None else ids.decode_id("key", caller.key_id),
            sorted(caller.scopes),
            operation.action,
            operation.status,
            operation.created_at,
        )

    async def add_ids(self, operation_id: str, execution_ids: list[str]) -> int:
        row_ids = [ids.decode_id("exec", execution_id) for execution_id in execution_ids]
        answer = await self._connection.execute_sql(_ADD_IDS_SQL, _decode_operation(operation_id), row_ids)
        return int(answer.split()[-1])

    async def add_matches(self, operation_id: str, filters: ExecutionFilter, action: BulkAction, limit: int) -> int:
        matches = _select_matches(filters, action).order_by(ExecutionRow.id.desc()).limit(limit)
        columns = matches.with_only_columns(
            cast(literal(_decode_operation(operation_id)), Uuid), ExecutionRow.id, ExecutionRow.tenant_id
        )
        statement = insert(BulkItemRow).from_select(["operation_id", "execution_id", "tenant_id"], columns)
        return (await self._connection.execute(statement)).rowcount

    async def count_matches(self, filters: ExecutionFilter, action: BulkAction) -> int:
        counted = select(func.count()).select_from(_select_matches(filters, action).subquery())
        return (await self._connection.execute(counted)).scalar_one()

    async def find_missing(self, execution_ids: list[str]) -> set[str]:
        row_ids = {ids.decode_id("exec", execution_id): execution_id for execution_id in execution_ids}
        query = "SELECT id FROM executions WHERE id = ANY ($1)"
        records = await self._connection.fetch(query, [row_id for row_id in row_ids if row_id is not None])
        return set(execution_ids) - {row_ids[record["id"]] for record in records}

    async def save_total(self, operation_id: str, total: int, now: datetime) -> None:
        await self._connection.execute_sql(_SAVE_TOTAL_SQL, _decode_operation(operation_id), total, now)

    async def get(self, operation_id: str) -> BulkOperation | None:
        row_id = _decode_operation(operation_id)
        if row_id is None:
            return None
        query = select(BulkOperationRow).where(BulkOperationRow.id == operation_id)
        row = (await self._connection.execute(query)).first()
        if row is None:
            return None
        operation = _read_operation(row)
        operation.errors = [
            BulkError(
                execution_id=ids.encode_id("exec", record["execution_id"]),
                code=record["error_code"],
                message=record["error"],
            )
            for record in await self._connection.fetch(_ERRORS_SQL, row_id)
        ]
        return operation

    async def list_page(self, page: Page) -> Listing[BulkOperation]:
        left = (BulkOperationRow.total - BulkOperationRow.done - BulkOperationRow.failed).label("left")
        query = select(*BulkOperationRow.__table__.columns, left)
        return await fetch_page(self._connection, query, BulkOperationRow.id.desc(), page, BulkOperation)

    async def cancel(self, operation_id: str, now: datetime) -> None:
        await self._connection.execute_sql(_CANCEL_SQL, _decode_operation(operation_id), now)

    async def count_running(self) -> int:
        return int(await self._connection.fetch_value(_COUNT_RUNNING_SQL))

    async def list_running(self, limit: int) -> list[tuple[str, str]]:
        records = await self._connection.fetch("SELECT tenant_id, id FROM running_bulk_operations($1)", limit)
        return [(record["tenant_id"], ids.encode_id("bulk", record["id"])) for record in records]

    async def list_pending(self, operation_id: str, limit: int) -> list[str]:
        records = await self._connection.fetch(_PENDING_SQL, _decode_operation(operation_id), limit)
        return [ids.encode_id("exec", record["execution_id"]) for record in records]

    async def complete_empty(self, operation_id: str, now: datetime) -> None:
        await self._connection.execute_sql(_COMPLETE_SQL, _decode_operation(operation_id), now)

    async def take_execution(self, operation_id: str, execution_id: str) -> BulkOwner | None:
        row_ids = _decode_operation(operation_id), ids.decode_id("exec", execution_id)
        await self._connection.execute_sql(_LOCK_SQL, row_ids[1])
        record = await self._connection.fetch_row(_TAKE_SQL, *row_ids)
        if record is None:
            return None
        return BulkOwner(
            action=record["action"],
            user_id=ids.encode_id("user", record["user_id"]),
            key_id=None if record["key_id"] is None else ids.encode_id("key", record["key_id"]),
            scopes=frozenset(record["scopes"]),
        )

    async def settle_execution(
        self, operation_id: str, execution_id: str, error: DomainError | None, now: datetime
    ) -> None:
        row_ids = _decode_operation(operation_id), ids.decode_id("exec", execution_id)
        failure = (None, None) if error is None else (error.code, replace_unstorable_text(error.detail))
        await self._connection.execute_sql(_SETTLE_SQL, *row_ids, *failure, now)


def _decode_operation(operation_id: str) -> Any:
    return ids.decode_id("bulk", operation_id)


def _read_operation(row: Any) -> BulkOperation:
    operation = struct_from_row(row, BulkOperation)
    operation.left = operation.total - operation.done - operation.failed
    return operation


def _select_matches(filters: ExecutionFilter, action: BulkAction) -> Select[Any]:
    """Return a query of what an action can be done to among what was started: open executions, or ended ones."""
    has_ended = ExecutionRow.status.in_(sorted(TERMINAL_STATUSES))
    query = apply_filter(select(ExecutionRow.id), filters).where(ExecutionRow.parent_id.is_(None))
    query = query.where(~has_ended if action == "cancel" else has_ended)
    if filters.terms is not None:
        for term in filters.terms.required:
            query = query.where(_has_term(term))
        for term in filters.terms.excluded:
            query = query.where(~_has_term(term))
    return query


def _has_term(term: str) -> Any:
    named = aliased(ExecutionTermRow)
    return exists().where(named.execution_id == ExecutionRow.id, named.term == term)
