"""Remove what is too old, in batches: by each tenant's retention, and by the ages in `domain.retention`.

Records are removed in the same way as single deletions, so statistics stay consistent with the rows. The partition of a
month is dropped once it is empty. Objects without rows are swept by `workers.upkeep.recovery`.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import structlog

from domain.ports import Store, Tx
from domain.retention import MAX_REMOVAL_BATCH, RETENTION_PERIODS, ExpiringKind
from domain.shared.errors import DomainError
from domain.stats import RECORD_KINDS, RecordKind
from infra.polling import PollResult, poll
from workers.lifecycle import Drain

MAX_DELETED_RECORDS: Final = 500
PARTITION_GRACE: Final = timedelta(days=1)
RETENTION_INTERVAL: Final = timedelta(hours=1)
# A new installation has other work in its first minute.
FIRST_RUN_DELAY: Final = timedelta(minutes=1)
# Partitions created ahead of time, in months: an installation, or its upkeep, may be stopped for weeks.
MONTHS_AHEAD: Final = 2

_log = structlog.get_logger("paddock.retention")

_ForgetRows = Callable[[Tx, datetime], Awaitable[int]]
# Deleted in this order: each kind refers to the kinds after it.
_FORGET_BY_KIND: Final[dict[str, _ForgetRows]] = {
    "executions": lambda tx, before: tx.retention.delete_executions(before),
    "threads": lambda tx, before: tx.threads.delete_unused(before, MAX_REMOVAL_BATCH),
    "versions": lambda tx, before: tx.retention.delete_versions(before),
    "agents": lambda tx, before: tx.retention.delete_agents(before),
}


async def _forget_events(tx: Tx, before: datetime) -> int:
    return await tx.retention.delete_events(before)


class RetentionSweeper:
    """Create partitions ahead of time, remove what is too old, and drop empty partitions.

    `default_days` is the retention of tenants that did not set one, `default_event_days` that of their events; 0 keeps
    everything.
    """

    def __init__(
        self, store: Store, drain: Drain | None = None, default_days: int = 0, default_event_days: int = 0
    ) -> None:
        self._store, self._drain = store, drain or Drain()
        self._default_days, self._default_event_days = default_days, default_event_days
        self._is_first_round = True

    async def run(self) -> None:
        """Create partitions and remove what is too old, every hour until draining begins."""
        await poll("retention", self._run_round, stop=self._drain.stop_event)

    async def _run_round(self) -> PollResult:
        # Without a delay: records of a month without a partition are refused.
        await self.make_partitions()
        if self._is_first_round:
            self._is_first_round = False
            return PollResult(did_work=False, pause_seconds=FIRST_RUN_DELAY.total_seconds())
        await self.remove_expired()
        return PollResult(did_work=True, pause_seconds=RETENTION_INTERVAL.total_seconds())

    async def make_partitions(self) -> int:
        """Create the partitions that are missing, and return their number."""
        async with self._store.system_transaction() as tx:
            created = await tx.partitions.create_partitions(tx.now, MONTHS_AHEAD)
        if created:
            _log.info("partitions created", partitions=created)
        return created

    async def remove_expired(self) -> Counter[str]:
        """Remove everything that is too old. Return the number of rows or partitions of each kind."""
        removed: Counter[str] = Counter()
        for expiring, age in RETENTION_PERIODS.items():
            removed[expiring] += await self._remove_in_batches(expiring, partial(self._forget_expired, expiring, age))
        async with self._store.system_transaction() as tx:
            retained = await tx.retention.list_tenants(self._default_days)
            event_retained = await tx.retention.list_event_tenants(self._default_event_days)
        for tenant_id, days in retained:
            age = timedelta(days=days)
            for kind in RECORD_KINDS:
                delete = partial(self._delete_records, tenant_id, kind, age)
                removed[kind] += await self._remove_in_batches(kind, delete)
            for name, forget in _FORGET_BY_KIND.items():
                remove = partial(self._forget_rows, tenant_id, age, forget)
                removed[name] += await self._remove_in_batches(name, remove)
        # After the executions: the events of those that are gone need no treatment.
        for tenant_id, days in event_retained:
            forget_events = partial(self._forget_rows, tenant_id, timedelta(days=days), _forget_events)
            removed["events"] += await self._remove_in_batches("events", forget_events)
        for kind in RECORD_KINDS:
            removed["partitions"] += await self._remove_in_batches(
                "partitions", partial(self._drop_empty_partition, kind)
            )
        if any(removed.values()):
            _log.info("removed what was too old", **{kind: count for kind, count in removed.items() if count})
        return removed

    async def _remove_in_batches(self, kind: str, remove: Callable[[], Awaitable[int]]) -> int:
        """Remove batch after batch until nothing is left. A failure ends this kind until the next round."""
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
        # Each partition is dropped in a separate transaction, because that locks the whole table: with two tables
        # locked, it would deadlock with a transaction that uses both. Rows with yesterday's ids may still arrive.
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
