"""Find jobs that were lost and leases that expired, and remove objects that no row refers to.

Every job can be derived again from a row, so Redis is only used to wake workers. Any number of these processes may run:
each write is guarded by the state that it expects.
"""

from datetime import datetime, timedelta
from typing import Final

import structlog

from domain import builds, executions
from domain.ports import BlobInfo, Blobs, Clock, Queue, Store
from domain.shared.jobs import Lane
from infra.polling import PollResult
from infra.redis import REDIS_OUTAGE_ERRORS
from infra.settings import Settings
from workers.lifecycle import Drain

_log = structlog.get_logger("paddock.upkeep")

# Age from which a waiting row is checked for a lost ring; younger rows are most likely being claimed.
MIN_RING_AGE: Final = timedelta(seconds=2)
MAX_UPKEEP_BATCH: Final = 500
# Without the record lane, which polls every few seconds and may have very many waiting rows.
RUNG_LANES: Final[tuple[Lane, ...]] = ("build", "run", "llm", "plan")
SWEEP_INTERVAL: Final = timedelta(hours=1)
_SWEPT_PREFIXES: Final = ("uploads/", "bundles/", "environments/", "workspaces/", "files/")


class Upkeep:
    """Recover lost work and sweep object storage, in one upkeep process."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        queue: Queue,
        blobs: Blobs,
        clock: Clock,
        drain: Drain | None = None,
    ) -> None:
        self._settings, self._store, self._queue, self._blobs, self._clock = settings, store, queue, blobs, clock
        self._drain = drain or Drain()
        self._lease = timedelta(seconds=settings.lease_seconds)
        # Since when leases could be extended without interruption, as far as is known, and when that was last checked.
        self._extendable_since: datetime = clock()
        self._seen_at: datetime | None = None
        # The first sweep comes after a minute: a new installation has no bucket yet.
        self._next_sweep_at = clock() + timedelta(minutes=1)

    async def run(self) -> None:
        """Recover and sweep until draining begins."""
        await self._drain.poll("upkeep", self._run_round)

    async def _run_round(self) -> PollResult:
        pause = self._settings.upkeep_seconds
        expired = await self.requeue_expired()
        try:
            await self.ring_lost_jobs()
        except REDIS_OUTAGE_ERRORS as error:
            _log.warning("upkeep waits for redis", error=str(error))
            return PollResult(did_work=True, pause_seconds=pause)
        if self._clock() >= self._next_sweep_at:
            await self.sweep_objects()
            self._next_sweep_at = self._clock() + SWEEP_INTERVAL
        return PollResult(did_work=bool(expired), pause_seconds=pause)

    async def requeue_expired(self) -> int:
        """Requeue or fail the rows whose lease expired. Return the number of rows checked.

        A lease counts from when it could be extended. While the database is unreachable, slow or full, or this machine
        is suspended, healthy workers cannot extend their leases. They get the time of a whole lease afterwards.
        """
        began = self._clock()
        if self._seen_at is None or began - self._seen_at > self._outage_threshold:
            self._extendable_since = began
        self._seen_at = None
        async with self._store.system_transaction() as tx:
            # A database that can be read may still refuse writes, and so the workers' extensions.
            await tx.queues.probe_writes()
            expired = await tx.queues.list_expired_leases(tx.now, MAX_UPKEEP_BATCH)
        now = self._clock()
        if now - began > self._outage_threshold:
            # The database answered late, so the workers have waited as well.
            self._extendable_since = now
        if now - self._extendable_since < self._lease:
            expired = []
        for row in expired:
            _log.warning("lease expired", row_id=row.row_id)
            async with self._store.tenant_transaction(row.tenant_id) as tx:
                if row.lane == "build":
                    await builds.requeue_expired_build(tx, row.row_id)
                else:
                    await executions.requeue_expired(tx, row.row_id)
        self._seen_at = self._clock()
        return len(expired)

    @property
    def _outage_threshold(self) -> timedelta:
        """Return the delay of a round from which workers may have been unable to extend their leases."""
        return self._lease / 3 + timedelta(seconds=self._settings.upkeep_seconds)

    async def ring_lost_jobs(self) -> int:
        """Ring again for the waiting rows whose ring was lost. Return their number."""
        async with self._store.system_transaction() as tx:
            waiting = [
                job
                for lane in RUNG_LANES
                for job in await tx.queues.list_waiting_jobs(lane, tx.now - MIN_RING_AGE, MAX_UPKEEP_BATCH)
            ]
        rung = await self._queue.ring_lost_jobs(waiting) if waiting else 0
        if rung:
            _log.info("lost jobs rung again", jobs=rung)
        return rung

    async def sweep_objects(self) -> dict[str, int]:
        """Remove old objects that no row refers to, and old unfinished uploads. Return the number of each kind."""
        now = self._clock()
        removed: dict[str, int] = {}
        before = now - timedelta(hours=self._settings.staging_hours)
        removed["uploads_aborted"] = sum(
            [await self._blobs.abort_uploads(prefix, before) for prefix in _SWEPT_PREFIXES]
        )
        removed["objects"] = sum([await self._sweep_prefix(prefix, before) for prefix in _SWEPT_PREFIXES])
        for kind, count in removed.items():
            self._drain.metrics.removals.labels(kind).inc(count)
        if any(removed.values()):
            _log.info("objects swept", **removed)
        return removed

    async def _sweep_prefix(self, prefix: str, before: datetime) -> int:
        removed, batch = 0, list[BlobInfo]()
        async for blob in self._blobs.list_objects(prefix):
            if blob.modified < before:
                batch.append(blob)
            if len(batch) == MAX_UPKEEP_BATCH:
                removed += await self._remove_unknown(batch)
                batch = []
        return removed + (await self._remove_unknown(batch) if batch else 0)

    async def _remove_unknown(self, blobs: list[BlobInfo]) -> int:
        # The sweep of a large bucket takes long; this shows that the upkeep loop is not stalled.
        self._drain.note_round("upkeep", True)
        keys = [blob.key for blob in blobs]
        async with self._store.system_transaction() as tx:
            referenced = await tx.references.find_objects(keys)
        unknown = [key for key in keys if key not in referenced]
        if unknown:
            await self._blobs.delete(unknown)
        return len(unknown)
