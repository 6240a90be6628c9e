"""Upkeep: finds what was lost, and removes what nobody needs.

Every job can be derived again from a row, so this is what makes Redis a mere doorbell. Any number of
these processes may run: each write is guarded by the state it expects.
"""

from datetime import datetime, timedelta
from typing import Final

import structlog

from domain import builds, executions
from domain.ports import BlobInfo, Blobs, Clock, Queue, Store
from domain.shared.errors import DomainError
from domain.shared.jobs import Lane
from infra.outage_log import log_outage
from infra.redis import REDIS_OUTAGE_ERRORS
from infra.settings import Settings
from workers.lifecycle import Drain

_log = structlog.get_logger("paddock.upkeep")

# A waiting row this old is checked for its ring; younger ones are most likely just being taken.
MIN_RING_AGE: Final = timedelta(seconds=2)
MAX_UPKEEP_BATCH: Final = 500
# The record lane looks by itself every few seconds, and may have very many rows that wait.
RUNG_LANES: Final[tuple[Lane, ...]] = ("build", "run", "llm", "plan")
SWEEP_INTERVAL: Final = timedelta(hours=1)
_SWEPT_PREFIXES: Final = ("uploads/", "bundles/", "environments/", "workspaces/")


class Upkeep:
    """One upkeep process."""

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
        # Since when leases could be extended without a break, as far as we know, and when that was seen last.
        self._extendable_since: datetime = clock()
        self._seen_at: datetime | None = None

    async def run(self) -> None:
        """Look after everything until draining begins. Outages are waited out."""
        # The first sweep comes after a minute: a new installation has no bucket yet.
        swept = self._clock() - SWEEP_INTERVAL + timedelta(minutes=1)
        while not self._drain.has_begun():
            try:
                looked = await self.requeue_expired()
                await self.ring_lost_jobs()
                self._drain.note_round("upkeep", bool(looked))
                if self._clock() - swept >= SWEEP_INTERVAL:
                    await self.sweep_objects()
                    swept = self._clock()
            except DomainError as error:
                self._drain.note_round("upkeep", None)
                log_outage(_log, "upkeep waits", error)
            except REDIS_OUTAGE_ERRORS as error:
                self._drain.note_round("upkeep", None)
                _log.warning("upkeep waits for redis", error=str(error))
            await self._drain.sleep(self._settings.upkeep_seconds)

    async def requeue_expired(self) -> int:
        """Return rows whose lease ran out to their queue, or fail them. Returns how many it looked at.

        A lease counts from when it could be extended: while the database was away, slow or full, or this machine
        asleep, healthy workers could not, and have the whole of it once that is over.
        """
        began = self._clock()
        if self._seen_at is None or began - self._seen_at > self._outage_threshold:
            self._extendable_since = began
        self._seen_at = None
        async with self._store.system_transaction() as tx:
            # What can be read may not be writable, for the workers neither.
            await tx.queues.probe_writes()
            expired = await tx.queues.list_expired_leases(tx.now, MAX_UPKEEP_BATCH)
        now = self._clock()
        if now - began > self._outage_threshold:
            # It answered late, and workers have waited as we did.
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
        """So much later than it should be, a look at the database shows that leases may not have been extended."""
        return self._lease / 3 + timedelta(seconds=self._settings.upkeep_seconds)

    async def ring_lost_jobs(self) -> int:
        """Ring again for waiting rows whose ring was lost. Returns how many."""
        async with self._store.system_transaction() as tx:
            waiting = [
                job
                for lane in RUNG_LANES
                for job in await tx.queues.list_waiting_jobs(lane, tx.now - MIN_RING_AGE, MAX_UPKEEP_BATCH)
            ]
        rung = await self._queue.ring_lost_jobs(waiting) if waiting else 0
        if rung:
            _log.info("rang again", jobs=rung)
        return rung

    async def sweep_objects(self) -> dict[str, int]:
        """Remove objects that are old and belong to nothing. Returns how much of each kind."""
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
            _log.info("swept", **removed)
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
        # Buckets may be large.
        self._drain.note_round("upkeep", True)
        keys = [blob.key for blob in blobs]
        async with self._store.system_transaction() as tx:
            known = await tx.references.find_objects(keys)
        unknown = [key for key in keys if key not in known]
        if unknown:
            await self._blobs.delete(unknown)
        return len(unknown)
