"""Define what is waiting and running, per lane; and the rows upkeep looks for, across tenants.

Upkeep sees ids, tenants and times alone, through views that hold nothing a tenant wrote.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final, Protocol

import msgspec

from domain.shared.jobs import Job, Lane

# A worker that gave no sign of life for this long is not counted; it gives one every five seconds.
WORKER_TIMEOUT: Final = timedelta(seconds=20)


class QueueStats(msgspec.Struct, frozen=True, kw_only=True):
    """Count one lane. `oldest_seconds` is how long the oldest waiting row has waited, `failed` counts the last day."""

    lane: Lane
    depth: int
    running: int
    failed: int
    oldest_seconds: float | None


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Describe a worker process, by its last sign of life.

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

    Processes that see the same signs of life choose the same one.
    """
    serving = [worker for worker in workers if worker.lane == "upkeep" and worker.metrics_port is not None]
    return min(serving, key=lambda worker: (worker.started_at, worker.id), default=None)


class ExpiredLease(msgspec.Struct, frozen=True, kw_only=True):
    """Identify a row whose lease ran out."""

    lane: Lane
    row_id: str
    tenant_id: str


class QueuedBuild(msgspec.Struct, frozen=True, kw_only=True):
    """Identify the version that is built next."""

    row_id: str
    tenant_id: str


class WorkQueues(Protocol):
    """Find rows of all tenants that need a worker, and extend their leases."""

    async def list_stats(self, now: datetime, tenant_id: str | None = None) -> list[QueueStats]:
        """Return one entry per lane: for one tenant, or for all."""
        ...

    async def count_runs_by_status(self, since: datetime) -> dict[str, int]:
        """Count open executions, and those that ended since a time."""
        ...

    async def list_waiting_jobs(self, lane: Lane, before: datetime, limit: int) -> list[Job]:
        """Return a job for each row that has waited since before a time, longest wait first."""
        ...

    async def find_next_build(self, newcomers: bool) -> QueuedBuild | None:
        """Return the version to build next. With `newcomers`, consider only tenants that have no build running."""
        ...

    async def list_expired_leases(self, now: datetime, limit: int) -> list[ExpiredLease]: ...
    async def extend_leases(self, lane: Lane, attempts: dict[str, int], until: datetime, stale: datetime) -> set[str]:
        """Extend the leases that end before `stale`.

        `attempts` maps ids of rows to the attempt under which they are held. Returns the ids of rows still held.
        """
        ...

    async def probe_writes(self) -> None:
        """Write as little as extending a lease does, so that a database that only reads is noticed as an outage."""
        ...


class Workers(Protocol):
    """Keep worker processes, by their last heartbeat."""

    async def list_alive(self, since: datetime) -> list[WorkerInfo]: ...
    async def save(self, worker: WorkerInfo) -> None: ...
    async def delete(self, worker_id: str) -> None: ...
