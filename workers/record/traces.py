"""Sends the traces of executions that have ended to a collector, each at least once."""

import asyncio
from datetime import datetime, timedelta
from typing import Final

import structlog

from domain import traces
from domain.ports import Store
from domain.shared.errors import DomainError
from domain.shared.status import TERMINAL_STATUSES
from domain.traces import PendingTraceExport, TraceSources
from infra.otlp import CollectorRefusal, CollectorUnavailable, TraceCollector, compute_retry_delay, pack_request
from infra.polling import retry_through_outage

MAX_EXPORT_BATCH: Final = 32
MAX_CONCURRENT_EXPORTS: Final = 4
# Much longer than a round takes.
EXPORT_LEASE: Final = timedelta(minutes=10)
# How often it is said that traces are wanted, see migration 0020.
DEMAND_INTERVAL: Final = timedelta(hours=1)
# What belongs to an ended execution ends soon; that long it is waited for.
MAX_STRAGGLER_WAIT: Final = timedelta(minutes=10)
STRAGGLER_RETRY_DELAY: Final = timedelta(seconds=5)

_log = structlog.get_logger("paddock.traces")


class TraceExporter:
    """Exports traces in rounds. While the collector is away nothing is lost: what is due waits in the database."""

    def __init__(self, store: Store, collector: TraceCollector) -> None:
        self._store, self._collector = store, collector
        self._demand_noted_at: datetime | None = None
        self._paused_until: datetime | None = None
        self._failure_count = 0

    async def __call__(self) -> bool:
        """One round. Returns whether there may be more."""
        async with self._store.system_transaction() as tx:
            now = tx.now
            if said := self._demand_noted_at is None or now - self._demand_noted_at >= DEMAND_INTERVAL:
                await tx.traces.enable_export(now)
            rests = self._paused_until is not None and now < self._paused_until
            claimed = [] if rests else await tx.traces.claim_exports(MAX_EXPORT_BATCH, now, now + EXPORT_LEASE)
        self._demand_noted_at = now if said else self._demand_noted_at
        if not claimed:
            return False
        turn = _ExportBatch(self._store, self._collector, claimed, now)
        try:
            await turn.export_all()
        finally:
            # Also when told to stop: whoever comes next need not wait for the lease.
            await asyncio.shield(turn.settle())
        if turn.database_error is not None:
            raise turn.database_error
        self._failure_count = self._failure_count + 1 if turn.collector_outage is not None else 0
        self._paused_until = (
            None
            if turn.collector_outage is None
            else now + compute_retry_delay(self._failure_count, turn.collector_outage.retry_after_seconds)
        )
        return len(claimed) == MAX_EXPORT_BATCH and turn.collector_outage is None


class _ExportBatch:
    """What one round has claimed, and what becomes of it."""

    def __init__(
        self, store: Store, collector: TraceCollector, claimed: list[PendingTraceExport], now: datetime
    ) -> None:
        self._store, self._collector, self._claimed, self._now = store, collector, claimed, now
        self.collector_outage: CollectorUnavailable | None = None
        self.database_error: DomainError | None = None
        self._exported: list[str] = []
        # With the seconds after which it may be tried again, if somebody said so.
        self._failed: dict[str, float | None] = {}
        self._stragglers: list[str] = []

    async def export_all(self) -> None:
        """Send them all, or as many as it takes to see that the collector is away."""
        slots = asyncio.Semaphore(MAX_CONCURRENT_EXPORTS)

        async def one(due: PendingTraceExport) -> None:
            async with slots:
                if self.collector_outage is None and self.database_error is None:
                    await self._export_trace(due)

        async with asyncio.TaskGroup() as group:
            for due in self._claimed:
                group.create_task(one(due))

    async def settle(self) -> None:
        """Write down what became of them. What was not tried is due again at once."""
        known = {*self._exported, *self._failed, *self._stragglers}
        rest = [due.execution_id for due in self._claimed if due.execution_id not in known]

        async def write() -> None:
            async with self._store.system_transaction() as tx:
                await tx.traces.mark_exported(self._exported)
                await tx.traces.postpone_exports(self._stragglers, self._now + STRAGGLER_RETRY_DELAY, False)
                await tx.traces.postpone_exports(rest, self._now, False)
                for due in self._claimed:
                    if due.execution_id in self._failed:
                        until = self._now + compute_retry_delay(due.tries, self._failed[due.execution_id])
                        await tx.traces.postpone_exports([due.execution_id], until, True)

        await retry_through_outage(write)

    async def _export_trace(self, due: PendingTraceExport) -> None:
        log = _log.bind(execution_id=due.execution_id, tenant_id=due.tenant_id)
        try:
            told = await self._send_trace(due)
        except CollectorUnavailable as away:
            log.warning("the collector of traces is away; they are sent later", error=str(away))
            self.collector_outage, self._failed[due.execution_id] = away, away.retry_after_seconds
        except CollectorRefusal as refused:
            log.error("the collector does not take a trace; it is given up", error=str(refused))
            self._exported.append(due.execution_id)
        except DomainError as error:
            self.database_error = error
        except Exception:
            # Others are not kept waiting by it.
            log.exception("a trace could not be exported")
            self._failed[due.execution_id] = None
        else:
            if told is not None:
                log.warning("the collector left out spans of a trace", told=told)

    async def _send_trace(self, due: PendingTraceExport) -> str | None:
        async with self._store.tenant_transaction(due.tenant_id) as tx:
            found = await tx.traces.get_sources(due.execution_id, False, traces.MAX_SPANS)
        if found is not None and _has_stragglers(found, self._now):
            self._stragglers.append(due.execution_id)
            return None
        told = None
        if found is not None:
            told = await self._collector.send_request(await asyncio.to_thread(_pack_trace, found, due.tenant_id))
        self._exported.append(due.execution_id)
        return told


def _has_stragglers(found: TraceSources, now: datetime) -> bool:
    """Whether some of it is still being stopped."""
    ended = found.runs[0].completed_at
    return (
        ended is not None
        and now - ended < MAX_STRAGGLER_WAIT
        and any(run.status not in TERMINAL_STATUSES for run in found.runs)
    )


def _pack_trace(found: TraceSources, tenant_id: str) -> bytes:
    return pack_request(traces.build_trace(found), tenant_id)
