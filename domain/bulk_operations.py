"""Cancel, retry or delete many executions as one operation, which workers do piece by piece.

Each execution is dealt with in a transaction of its own, which also takes it from the operation's list. So a worker
that is killed leaves no execution half done, and none is retried twice.
"""

from datetime import datetime
from typing import Annotated, Final, Literal, Protocol

import msgspec
from msgspec import Meta

from domain import executions, launch
from domain.executions import ExecutionFilter, ExecutionKind
from domain.ports import Tx
from domain.shared import ids
from domain.shared.access import Caller, limit_scopes, require_scope
from domain.shared.errors import (
    DATABASE_OUTAGE_CODES,
    Conflict,
    DomainError,
    FieldError,
    Forbidden,
    InvalidField,
    InvalidFields,
    require_found,
)
from domain.shared.jobs import Job
from domain.shared.pages import Listing, Page
from domain.shared.status import ExecutionStatus
from domain.shared.times import read_time_or_none

BulkAction = Literal["cancel", "retry", "delete"]
BulkStatus = Literal["dry_run", "running", "completed", "cancelled"]

MAX_BULK_EXECUTIONS: Final = 10_000
# Operations of a tenant that run at the same time.
MAX_RUNNING_OPERATIONS: Final = 50
# Errors that an operation shows.
MAX_SHOWN_ERRORS: Final = 20
_SCOPES_BY_ACTION: Final[dict[BulkAction, str]] = {
    "cancel": "run:agents",
    "retry": "run:agents",
    "delete": "write:executions",
}
_REFERENCE_FIELDS: Final = ("agent_id", "crew_id", "workflow_id", "schedule_id")

TimeText = Annotated[str, Meta(max_length=64, examples=["2030-01-01T00:00:00Z"])]


class BulkFilter(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Select executions as the list does, without steps. `cancel` takes those that are open, the others the ended."""

    status: ExecutionStatus | None = None
    kind: ExecutionKind | None = None
    agent_id: str | None = None
    agent_version_id: str | None = None
    crew_id: str | None = None
    workflow_id: str | None = None
    schedule_id: str | None = None
    since: TimeText | None = None
    until: TimeText | None = None
    tag: list[str] | None = None
    metadata: list[str] | None = None
    search: str | None = None


class NewBulkOperation(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Start an operation on the executions of a `filter`, or on those named by `ids`.

    With `dry_run` nothing is done: the answer tells how many executions it would be.
    """

    action: BulkAction
    filter: BulkFilter | None = None
    ids: list[str] | None = None
    dry_run: bool = False


class BulkError(msgspec.Struct, kw_only=True, frozen=True):
    """Tell why an operation failed on an execution."""

    execution_id: str
    code: str
    message: str


class BulkOperation(msgspec.Struct, kw_only=True):
    """Show an operation: of `total` executions, those `done`, `failed` and `left`, and the first errors.

    A cancelled one leaves the rest as it is. A `dry_run` has no id.
    """

    id: str | None
    action: BulkAction
    status: BulkStatus
    total: int
    done: int = 0
    failed: int = 0
    left: int = 0
    errors: list[BulkError] = []
    user_id: str
    tenant_id: str
    created_at: datetime
    updated_at: datetime
    completed_at: datetime | None = None


class BulkOwner(msgspec.Struct, frozen=True, kw_only=True):
    """Describe on whose behalf an operation works: its caller, with the scopes of then."""

    action: BulkAction
    user_id: str
    key_id: str | None
    scopes: frozenset[str]


class BulkOperations(Protocol):
    """Store the operations of the bound tenant; `list_running` covers all tenants."""

    async def add(self, operation: BulkOperation, caller: Caller) -> None: ...
    async def add_ids(self, operation_id: str, execution_ids: list[str]) -> int:
        """Add executions to an operation. Returns how many; those that do not exist are left out."""
        ...

    async def add_matches(self, operation_id: str, filters: ExecutionFilter, action: BulkAction, limit: int) -> int:
        """Add up to `limit` executions that a filter selects to an operation. Returns how many."""
        ...

    async def count_matches(self, filters: ExecutionFilter, action: BulkAction) -> int: ...
    async def find_missing(self, execution_ids: list[str]) -> set[str]:
        """Return those of these executions that do not exist."""
        ...

    async def save_total(self, operation_id: str, total: int, now: datetime) -> None:
        """Save how many executions an operation has. Without any, it is complete."""
        ...

    async def get(self, operation_id: str) -> BulkOperation | None: ...
    async def list_page(self, page: Page) -> Listing[BulkOperation]: ...
    async def cancel(self, operation_id: str, now: datetime) -> None:
        """Cancel a running operation."""
        ...

    async def list_running(self, limit: int) -> list[tuple[str, str]]:
        """Return the tenant and the id of operations that run: the oldest of each tenant first."""
        ...

    async def list_pending(self, operation_id: str, limit: int) -> list[str]:
        """Return executions that a running operation has not dealt with."""
        ...

    async def complete_empty(self, operation_id: str, now: datetime) -> None:
        """Complete a running operation that has nothing left: its last executions were deleted by others."""
        ...

    async def count_running(self) -> int: ...
    async def take_execution(self, operation_id: str, execution_id: str) -> BulkOwner | None:
        """Take an execution from a running operation's list; None if another worker did."""
        ...

    async def settle_execution(
        self, operation_id: str, execution_id: str, error: DomainError | None, now: datetime
    ) -> None:
        """Count an execution that was taken, and complete the operation after the last one."""
        ...


async def start_operation(tx: Tx, caller: Caller, data: NewBulkOperation) -> BulkOperation:
    """Write an operation with the executions that it is about, and ring for it.

    Errors: `missing_scope`, `invalid_field`, also for more than `MAX_BULK_EXECUTIONS` executions; `conflict` while
    `MAX_RUNNING_OPERATIONS` run.
    """
    require_scope(caller, _SCOPES_BY_ACTION[data.action])
    if not data.dry_run and await tx.bulk_operations.count_running() >= MAX_RUNNING_OPERATIONS:
        raise Conflict(f"{MAX_RUNNING_OPERATIONS} operations are running already. Wait until one has ended.")
    if (data.filter is None) == (data.ids is None):
        raise InvalidField("ids" if data.filter is not None else "filter", "send one of filter and ids.")
    operation = BulkOperation(
        id=ids.generate_id("bulk"),
        action=data.action,
        status="running",
        total=0,
        user_id=caller.user_id,
        tenant_id=caller.tenant_id,
        created_at=tx.now,
        updated_at=tx.now,
    )
    if data.ids is not None:
        return await _start_with_ids(tx, caller, operation, data.ids, data.dry_run)
    filters = await _resolve_filter(tx, data.filter or BulkFilter())
    if data.dry_run:
        return _describe_dry_run(operation, await tx.bulk_operations.count_matches(filters, data.action))
    await tx.bulk_operations.add(operation, caller)
    added = await tx.bulk_operations.add_matches(operation.id or "", filters, data.action, MAX_BULK_EXECUTIONS + 1)
    if added > MAX_BULK_EXECUTIONS:
        count = await tx.bulk_operations.count_matches(filters, data.action)
        message = f"matches {count} executions; an operation may have {MAX_BULK_EXECUTIONS}. Narrow it, by time say."
        raise InvalidField("filter", message)
    return await _begin_operation(tx, operation, added)


async def _start_with_ids(
    tx: Tx, caller: Caller, operation: BulkOperation, execution_ids: list[str], dry_run: bool
) -> BulkOperation:
    distinct_ids = list(dict.fromkeys(execution_ids))
    if not 0 < len(distinct_ids) <= MAX_BULK_EXECUTIONS:
        raise InvalidField("ids", f"must be 1 to {MAX_BULK_EXECUTIONS} ids, not {len(distinct_ids)}.")
    missing = await tx.bulk_operations.find_missing(distinct_ids)
    if missing:
        message = "is not the id of an execution."
        errors = [
            FieldError(field=f"ids[{place}]", message=message)
            for place, execution_id in enumerate(execution_ids)
            if execution_id in missing
        ]
        raise InvalidFields(errors)
    if dry_run:
        return _describe_dry_run(operation, len(distinct_ids))
    await tx.bulk_operations.add(operation, caller)
    return await _begin_operation(tx, operation, await tx.bulk_operations.add_ids(operation.id or "", distinct_ids))


def _describe_dry_run(operation: BulkOperation, total: int) -> BulkOperation:
    return msgspec.structs.replace(operation, id=None, status="dry_run", total=total, left=total)


async def _begin_operation(tx: Tx, operation: BulkOperation, total: int) -> BulkOperation:
    operation_id = operation.id or ""
    await tx.bulk_operations.save_total(operation_id, total, tx.now)
    tx.ring_job(Job(lane="record", row_id=operation_id, tenant_id="", attempt=0))
    return await get_operation(tx, operation_id)


async def _resolve_filter(tx: Tx, data: BulkFilter) -> ExecutionFilter:
    """Return the filter of the list. Errors: `invalid_field`, also for a filter without fields or an unknown agent."""
    # An empty list selects nothing less: with it alone, everything would match.
    values = {name: value for name in data.__struct_fields__ if (value := getattr(data, name)) not in (None, [])}
    if not values:
        raise InvalidField("filter", "must have a field. Send since to select by time.")
    values["since"] = read_time_or_none("filter.since", data.since)
    values["until"] = read_time_or_none("filter.until", data.until, is_end=True)
    try:
        filters = await executions.resolve_filter(tx, ExecutionFilter(**values))
    except DomainError as error:
        raise InvalidFields(
            [msgspec.structs.replace(field_error, field=f"filter.{field_error.field}") for field_error in error.errors]
        ) from error
    for field in _REFERENCE_FIELDS:
        kind = field.removesuffix("_id")
        repository = getattr(tx, f"{kind}s")
        if getattr(data, field) is not None and await repository.find(getattr(data, field)) is None:
            raise InvalidField(f"filter.{field}", f"there is no {kind} {getattr(data, field)[:200]!r}.")
    return filters


async def get_operation(tx: Tx, operation_id: str) -> BulkOperation:
    """Return an operation with its progress. Errors: `not_found`."""
    return require_found("operation", operation_id, await tx.bulk_operations.get(operation_id))


async def list_operations(tx: Tx, page: Page) -> Listing[BulkOperation]:
    """List operations, newest first, without their errors."""
    return await tx.bulk_operations.list_page(page)


async def cancel_operation(tx: Tx, caller: Caller, operation_id: str) -> BulkOperation:
    """Cancel an operation; what it has done stays. Errors: `not_found`, `missing_scope`, `conflict` if it has ended."""
    operation = await get_operation(tx, operation_id)
    require_scope(caller, _SCOPES_BY_ACTION[operation.action])
    await tx.bulk_operations.cancel(operation_id, tx.now)
    operation = await get_operation(tx, operation_id)
    if operation.status != "cancelled":
        raise Conflict(f"The operation is {operation.status}; it can no longer be cancelled.")
    return operation


async def process_execution(tx: Tx, operation_id: str, execution_id: str) -> None:
    """Process one execution of an operation, unless another worker did. A refusal is recorded."""
    owner = await tx.bulk_operations.take_execution(operation_id, execution_id)
    if owner is None:
        return
    failure = None
    try:
        async with tx.savepoint():
            await _apply_action(tx, owner, execution_id)
    except DomainError as error:
        if error.code in DATABASE_OUTAGE_CODES:
            raise
        failure = error
    await tx.bulk_operations.settle_execution(operation_id, execution_id, failure, tx.now)


async def fail_execution(tx: Tx, operation_id: str, execution_id: str) -> None:
    """Record that an operation cannot deal with an execution, for a reason that the log of the worker has."""
    if await tx.bulk_operations.take_execution(operation_id, execution_id) is not None:
        error = DomainError("internal_error", "Something unexpected happened; the log of the worker has the reason.")
        await tx.bulk_operations.settle_execution(operation_id, execution_id, error, tx.now)


async def _apply_action(tx: Tx, owner: BulkOwner, execution_id: str) -> None:
    caller = await _build_caller(tx, owner)
    if owner.action == "cancel":
        await executions.cancel_execution(tx, execution_id)
    elif owner.action == "delete":
        await executions.delete_execution(tx, execution_id)
    else:
        await launch.retry_execution(tx, caller, execution_id, False)


async def _build_caller(tx: Tx, owner: BulkOwner) -> Caller:
    """Return the caller of then with the present role. Errors: `forbidden`, `missing_scope`."""
    user = await tx.accounts.get_user(owner.user_id)
    if user is None or not user.is_active:
        raise Forbidden("The user who started the operation is not an active user of this tenant any more.")
    key = None if owner.key_id is None else await tx.api_keys.get(owner.key_id, None)
    if owner.key_id is not None and (key is None or not key.is_active or (key.expires_at or tx.now) < tx.now):
        raise Forbidden("The API key that started the operation was revoked.")
    caller = Caller(
        tenant_id=user.tenant_id,
        user_id=user.id,
        role=user.role,
        scopes=limit_scopes(user.role, owner.scopes),
        key_id=owner.key_id,
    )
    require_scope(caller, _SCOPES_BY_ACTION[owner.action])
    return caller
