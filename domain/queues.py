"""What is waiting and running, per lane; and the rows upkeep looks for, across tenants.

Upkeep sees ids, tenants and times alone, through views that hold nothing a tenant wrote.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final, Protocol

import msgspec

from domain.shared.jobs import Job, Lane
from domain.stats import RecordKind

# A worker that gave no sign of life for this long is not counted; it gives one every five seconds.
WORKER_TIMEOUT: Final = timedelta(seconds=20)


class QueueStats(msgspec.Struct, frozen=True, kw_only=True):
    """One lane. `oldest_seconds` is how long the oldest waiting row has waited, `failed` counts the last day."""

    lane: Lane
    depth: int
    running: int
    failed: int
    oldest_seconds: float | None


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A worker process, by its last sign of life.

    `busy` of its `slots` have work; `warm` and `blank` sandboxes wait for some. `problem` says why it
    cannot run code, if it cannot. It serves its health and metrics on `metrics_port`, if on any.
    """

    id: str
    lane: str
    host: str
    pid: int
    slots: int
    busy: int
    warm: int
    blank: int
    problem: str | None
    metrics_port: int | None = None
    started_at: datetime
    seen_at: datetime


def choose_gauge_exporter(workers: Iterable[WorkerInfo]) -> WorkerInfo | None:
    """Return the one process that exports what is counted in the database: the oldest upkeep that serves metrics.

    Whoever sees the same signs of life comes to the same one.
    """
    serving = [worker for worker in workers if worker.lane == "upkeep" and worker.metrics_port is not None]
    return min(serving, key=lambda worker: (worker.started_at, worker.id), default=None)


class ExpiredLease(msgspec.Struct, frozen=True, kw_only=True):
    """A row whose lease ran out."""

    lane: Lane
    row_id: str
    tenant_id: str


class QueuedBuild(msgspec.Struct, frozen=True, kw_only=True):
    """The row of a lane that is next."""

    row_id: str
    tenant_id: str


class WorkQueues(Protocol):
    """Rows that need a worker, over all tenants."""

    async def list_stats(self, now: datetime, tenant_id: str | None = None) -> list[QueueStats]: ...
    async def count_runs_by_status(self, since: datetime) -> dict[str, int]: ...
    async def list_waiting_jobs(self, lane: Lane, before: datetime, limit: int) -> list[Job]: ...
    async def find_next_build(self, newcomers: bool) -> QueuedBuild | None:
        """Return the version to build next; with `newcomers`, of tenants alone that have none being built."""
        ...

    async def list_expired_leases(self, now: datetime, limit: int) -> list[ExpiredLease]: ...
    async def extend_leases(self, lane: Lane, held: dict[str, int], until: datetime, stale: datetime) -> set[str]:
        """Extend leases that end before `stale`; returns the rows among `held` that still are."""
        ...

    async def probe_writes(self) -> None:
        """Write as little as extending a lease does: whoever can only read is not told of an outage otherwise."""
        ...

    async def list_workers(self, since: datetime) -> list[WorkerInfo]: ...
    async def record_heartbeat(self, worker: WorkerInfo) -> None: ...
    async def delete_worker(self, worker_id: str) -> None: ...
    async def find_referenced_objects(self, paths: list[str]) -> set[str]: ...
    async def find_live_versions(self, version_ids: list[str]) -> set[str]:
        """Return those of these versions whose agents were not deleted."""
        ...

    async def find_live_environments(self, names: list[str]) -> set[str]:
        """Return those of these environments that versions of agents have which were not deleted."""
        ...

    async def create_partitions(self, now: datetime, ahead: int) -> int:
        """Make the record tables' partitions of this month and `ahead` more. Returns how many were missing."""
        ...

    async def drop_empty_partition(self, kind: RecordKind, before: datetime) -> int:
        """Drop one partition of a record table, of a month before that of `before`, which holds no record.

        Returns how many: 0 also while somebody reads from the table for long. Keeps all others from the table until
        the transaction ends, so it is to do nothing else.
        """
        ...
