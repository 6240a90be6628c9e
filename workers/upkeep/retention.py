"""Retention: what is too old goes, by tenant or by itself, in batches; `domain.retention` says what.

Records go the way that single deletions go, so statistics stay equal to the rows there are. A month whose last
record has gone is dropped as a whole. Objects whose rows have gone are swept by `workers.upkeep`.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import structlog

from domain.ports import Store, Tx
from domain.retention import RETENTION_PERIODS, ExpiringKind
from domain.shared.errors import DomainError
from domain.stats import RECORD_KINDS, RecordKind
from infra.outage_log import log_outage
from workers.lifecycle import Drain

MAX_DELETED_RECORDS: Final = 500
PARTITION_GRACE: Final = timedelta(days=1)
RETENTION_INTERVAL: Final = timedelta(hours=1)
# A new installation has enough to do.
FIRST_RUN_DELAY: Final = timedelta(minutes=1)
OUTAGE_RETRY_DELAY: Final = timedelta(seconds=5)
# Months made ahead of time: an installation may be asleep for long, or its upkeep.
MONTHS_AHEAD: Final = 2

_log = structlog.get_logger("paddock.retention")

_ForgetRows = Callable[[Tx, datetime], Awaitable[int]]
# In this order: each refers to what comes after it.
_FORGET_BY_KIND: Final[dict[str, _ForgetRows]] = {
    "executions": lambda tx, before: tx.retention.delete_executions(before),
    "versions": lambda tx, before: tx.retention.delete_versions(before),
    "agents": lambda tx, before: tx.retention.delete_agents(before),
}


class RetentionSweeper:
    """Makes partitions ahead of time, removes what is too old, and drops partitions that are empty.

    `default_days` is how long tenants keep what they made who do not say so themselves; 0 is for good.
    """

    def __init__(self, store: Store, drain: Drain | None = None, default_days: int = 0) -> None:
        self._store, self._drain, self._default_days = store, drain or Drain(), default_days

    async def run(self) -> None:
        """Do all of it every hour until draining begins. Outages are waited out."""
        pause = FIRST_RUN_DELAY
        while not self._drain.has_begun():
            try:
                # At once: records of a month without a partition cannot be taken.
                await self.make_partitions()
                if await self._drain.sleep(pause.total_seconds()):
                    await self()
                pause = RETENTION_INTERVAL
            except DomainError as error:
                log_outage(_log, "waits", error)
                pause = OUTAGE_RETRY_DELAY
                await self._drain.sleep(OUTAGE_RETRY_DELAY.total_seconds())

    async def make_partitions(self) -> int:
        """Make the partitions that are missing. Returns how many."""
        async with self._store.system_transaction() as tx:
            made = await tx.partitions.create_partitions(tx.now, MONTHS_AHEAD)
        if made:
            _log.info("made partitions", partitions=made)
        return made

    async def __call__(self) -> Counter[str]:
        """Remove all that is too old. Returns how much of each kind has gone."""
        gone: Counter[str] = Counter()
        for expiring, age in RETENTION_PERIODS.items():
            gone[expiring] += await self._remove_in_batches(expiring, partial(self._forget_expired, expiring, age))
        async with self._store.system_transaction() as tx:
            retained = await tx.retention.list_tenants(self._default_days)
        for tenant_id, days in retained:
            age = timedelta(days=days)
            for kind in RECORD_KINDS:
                gone[kind] += await self._remove_in_batches(kind, partial(self._delete_records, tenant_id, kind, age))
            for name, forget in _FORGET_BY_KIND.items():
                gone[name] += await self._remove_in_batches(name, partial(self._forget_rows, tenant_id, age, forget))
        for kind in RECORD_KINDS:
            gone["partitions"] += await self._remove_in_batches("partitions", partial(self._drop_empty_partition, kind))
        if any(gone.values()):
            _log.info("too old", **{kind: count for kind, count in gone.items() if count})
        return gone

    async def _remove_in_batches(self, kind: str, remove: Callable[[], Awaitable[int]]) -> int:
        """Remove batch after batch until there is none. What fails waits for the next time, and stops nothing else."""
        total = 0
        try:
            while not self._drain.has_begun() and (removed := await remove()):
                total += removed
        except DomainError:
            raise
        except Exception:
            _log.exception("cannot remove what is too old", kind=kind)
        self._drain.metrics.removals.labels(kind).inc(total)
        return total

    async def _forget_expired(self, kind: ExpiringKind, age: timedelta) -> int:
        async with self._store.system_transaction() as tx:
            return await tx.retention.delete_expired(kind, tx.now - age)

    async def _forget_rows(self, tenant_id: str, age: timedelta, forget: _ForgetRows) -> int:
        async with self._store.tenant_transaction(tenant_id) as tx:
            return await forget(tx, tx.now - age)

    async def _drop_empty_partition(self, kind: RecordKind) -> int:
        # Each in a transaction of its own, as it stops all others of the table: with both tables locked, one that uses
        # both would deadlock with it. Ids of yesterday may still be on their way.
        async with self._store.system_transaction() as tx:
            return await tx.partitions.drop_empty_partition(kind, tx.now - PARTITION_GRACE)

    async def _delete_records(self, tenant_id: str, kind: RecordKind, age: timedelta) -> int:
        async with self._store.tenant_transaction(tenant_id) as tx:
            before = tx.now - age
            if kind == "evaluations":
                return await tx.evaluations.delete_many(await tx.evaluations.list_older(before, MAX_DELETED_RECORDS))
            if kind == "costs":
                return await tx.costs.delete_many(await tx.costs.list_older(before, MAX_DELETED_RECORDS))
            return await tx.artifacts.delete(await tx.artifacts.list_older(before, MAX_DELETED_RECORDS), tx.now)
