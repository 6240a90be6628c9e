"""Define how long data that would grow without limit is kept. `docs/operations.md` has the table of all of it.

Data that a tenant made is kept for as many days as the tenant sets, or else the installation. Data that serves
nothing after some time is removed automatically.
"""

from datetime import datetime, timedelta
from typing import Final, Literal, Protocol

import msgspec

from domain.shared.idempotency import IDEMPOTENCY_LIFETIME
from domain.shared.status import ExecutionStatus
from domain.stats import RecordKind

ExpiringKind = Literal[
    "answers",
    "refresh_tokens",
    "sessions",
    "invites",
    "holds",
    "schedule_runs",
    "bulk_operations",
    "trace_exports",
    "workers",
    "files",
]

# How long each is kept after its time: tokens, sessions, invites and holds after they expired, the others after they
# were made or last seen. Tokens go before the sessions that are gone with their last one.
RETENTION_PERIODS: Final[dict[ExpiringKind, timedelta]] = {
    "answers": IDEMPOTENCY_LIFETIME,
    "refresh_tokens": timedelta(days=1),
    "sessions": timedelta(days=1),
    "invites": timedelta(days=30),
    "holds": timedelta(hours=1),
    "schedule_runs": timedelta(days=90),
    "bulk_operations": timedelta(days=90),
    "trace_exports": timedelta(days=7),
    "workers": timedelta(minutes=5),
    "files": timedelta(0),
}
# How much one transaction removes. An execution may have tens of thousands of events.
MAX_REMOVAL_BATCH: Final = 200
MAX_REMOVED_EVENTS: Final = 20_000


class ExecutionMember(msgspec.Struct, frozen=True, kw_only=True):
    """Describe an execution or one of its steps. `is_billed` tells whether a call of a model is not billed yet."""

    id: str
    status: ExecutionStatus
    is_billed: bool


class ExecutionRecords(msgspec.Struct, frozen=True, kw_only=True):
    """Name the records of executions."""

    artifact_ids: list[str]
    evaluation_ids: list[str]


class RetentionRepository(Protocol):
    """Removes what is too old. Each call removes one batch, and returns how many rows that were."""

    async def lock_members(self, execution_id: str) -> list[ExecutionMember]:
        """Lock an execution and its steps, and those of plans within it."""
        ...

    async def list_records(self, execution_ids: list[str]) -> ExecutionRecords:
        """Return the records of executions, and the evaluations of their artifacts."""
        ...

    async def erase_executions(self, execution_ids: list[str], now: datetime) -> None:
        """Delete ended executions with everything but records; their costs no longer name them."""
        ...

    async def list_tenants(self, default_days: int) -> list[tuple[str, int]]:
        """Return the tenants that keep what they made for so many days only. `default_days` of 0 keeps it for good."""
        ...

    async def delete_expired(self, kind: ExpiringKind, before: datetime) -> int:
        """Remove rows of all tenants whose time was over then."""
        ...

    async def list_event_tenants(self, default_days: int) -> list[tuple[str, int]]:
        """Return the tenants that keep events for so many days only, as `list_tenants` does."""
        ...

    async def delete_events(self, before: datetime) -> int:
        """Remove events of the bound tenant's executions that ended before, but the last of each.

        Returns how many executions that were.
        """
        ...

    async def delete_executions(self, before: datetime) -> int:
        """Remove the bound tenant's executions that ended before, with events, steps, files, plans, traces to send.

        What runs keeps everything it belongs to; what has no artifact yet waits for it.
        """
        ...

    async def delete_versions(self, before: datetime) -> int:
        """Remove the bound tenant's old versions that are not active, not the newest, and that nothing runs or ran."""
        ...

    async def delete_agents(self, before: datetime) -> int:
        """Remove the bound tenant's deleted agents that nothing refers to."""
        ...


class StorageReferences(Protocol):
    """Tells which stored objects and cached folders rows of any tenant still refer to."""

    async def find_objects(self, keys: list[str]) -> set[str]:
        """Return those of these objects in object storage that a row refers to."""
        ...

    async def find_versions(self, version_ids: list[str]) -> set[str]:
        """Return those of these versions whose agents were not deleted."""
        ...

    async def find_environments(self, names: list[str]) -> set[str]:
        """Return those of these environments that a version of an agent uses which was not deleted."""
        ...


class RecordPartitions(Protocol):
    """Create and drop monthly partitions of the record tables."""

    async def create_partitions(self, now: datetime, ahead: int) -> int:
        """Create the partitions of this month and `ahead` more. Returns how many were missing."""
        ...

    async def drop_empty_partition(self, kind: RecordKind, before: datetime) -> int:
        """Drop one partition of a record table that holds no record, of a month before that of `before`.

        Returns how many were dropped: 0 also while a long read uses the table. The table is locked until the
        transaction ends, so the transaction should do nothing else.
        """
        ...
