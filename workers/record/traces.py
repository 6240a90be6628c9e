"""Export the traces of ended executions to a collector, each at least once."""

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
# Interval at which the demand for traces is recorded: without it the database collects no traces for export.
DEMAND_INTERVAL: Final = timedelta(hours=1)
# Time that the export of an ended execution waits until its children have ended as well.
MAX_STRAGGLER_WAIT: Final = timedelta(minutes=10)
STRAGGLER_RETRY_DELAY: Final = timedelta(seconds=5)

_log = structlog.get_logger("paddock.traces")


class TraceExporter:
    """Export traces in rounds. An outage of the collector loses nothing: due traces stay in the database."""

    def __init__(self, store: Store, collector: TraceCollector) -> None:
        self._store, self._collector = store, collector
        self._demand_noted_at: datetime | None = None
        self._paused_until: datetime | None = None
        self._failure_count = 0

    async def export_traces(self) -> bool:
        """Export a batch of traces. Return whether there may be more."""
        async with self._store.system_transaction() as tx:
            now = tx.now
            if must_note := self._demand_noted_at is None or now - self._demand_noted_at >= DEMAND_INTERVAL:
                await tx.traces.enable_export(now)
            is_paused = self._paused_until is not None and now < self._paused_until
            claimed = [] if is_paused else await tx.traces.claim_exports(MAX_EXPORT_BATCH, now, now + EXPORT_LEASE)
        self._demand_noted_at = now if must_note else self._demand_noted_at
        if not claimed:
            return False
        batch = _ExportBatch(self._store, self._collector, claimed, now)
        try:
            await batch.export_all()
        finally:
            # Also when this process is stopping: the next worker need not wait until the lease expires.
            await asyncio.shield(batch.settle())
        if batch.database_error is not None:
            raise batch.database_error
        self._failure_count = self._failure_count + 1 if batch.collector_outage is not None else 0
        self._paused_until = (
            None
            if batch.collector_outage is None
            else now + compute_retry_delay(self._failure_count, batch.collector_outage.retry_after_seconds)
        )
        return len(claimed) == MAX_EXPORT_BATCH and batch.collector_outage is None


class _ExportBatch:
    """Export the traces that one round has claimed, and record the result of each."""

    def __init__(
        self, store: Store, collector: TraceCollector, claimed: list[PendingTraceExport], now: datetime
    ) -> None:
        self._store, self._collector, self._claimed, self._now = store, collector, claimed, now
        self.collector_outage: CollectorUnavailable | None = None
        self.database_error: DomainError | None = None
        self._exported: list[str] = []
        # By execution: the seconds after which the collector wants the next try, None if it did not send them.
        self._failed: dict[str, float | None] = {}
        self._stragglers: list[str] = []

    async def export_all(self) -> None:
        """Export the claimed traces until the collector or the database turns out to be unreachable."""
        slots = asyncio.Semaphore(MAX_CONCURRENT_EXPORTS)

        async def export_in_slot(due: PendingTraceExport) -> None:
            async with slots:
                if self.collector_outage is None and self.database_error is None:
                    await self._export_trace(due)

        async with asyncio.TaskGroup() as group:
            for due in self._claimed:
                group.create_task(export_in_slot(due))

    async def settle(self) -> None:
        """Write the results to the database. A trace that was not tried is due again at once."""
        tried = {*self._exported, *self._failed, *self._stragglers}
        untried = [due.execution_id for due in self._claimed if due.execution_id not in tried]

        async def write() -> None:
            async with self._store.system_transaction() as tx:
                await tx.traces.mark_exported(self._exported)
                await tx.traces.postpone_exports(self._stragglers, self._now + STRAGGLER_RETRY_DELAY, False)
                await tx.traces.postpone_exports(untried, self._now, False)
                for due in self._claimed:
                    if due.execution_id in self._failed:
                        until = self._now + compute_retry_delay(due.tries, self._failed[due.execution_id])
                        await tx.traces.postpone_exports([due.execution_id], until, True)

        await retry_through_outage(write)

    async def _export_trace(self, due: PendingTraceExport) -> None:
        log = _log.bind(execution_id=due.execution_id, tenant_id=due.tenant_id)
        try:
            partial_failure = await self._send_trace(due)
        except CollectorUnavailable as outage:
            log.warning("the collector of traces is unreachable; they are sent later", error=str(outage))
            self.collector_outage, self._failed[due.execution_id] = outage, outage.retry_after_seconds
        except CollectorRefusal as refused:
            log.error("the collector refuses a trace; it is not sent again", error=str(refused))
            self._exported.append(due.execution_id)
        except DomainError as error:
            self.database_error = error
        except Exception:
            # The other traces are still exported.
            log.exception("a trace cannot be exported")
            self._failed[due.execution_id] = None
        else:
            if partial_failure is not None:
                log.warning("the collector left out spans of a trace", error=partial_failure)

    async def _send_trace(self, due: PendingTraceExport) -> str | None:
        """Send a trace. Return the collector's message about spans that it left out, None without one."""
        async with self._store.tenant_transaction(due.tenant_id) as tx:
            sources = await tx.traces.get_sources(due.execution_id, False, traces.MAX_SPANS)
        if sources is not None and _has_stragglers(sources, self._now):
            self._stragglers.append(due.execution_id)
            return None
        partial_failure = None
        if sources is not None:
            payload = await asyncio.to_thread(_pack_trace, sources, due.tenant_id)
            partial_failure = await self._collector.send_request(payload)
        self._exported.append(due.execution_id)
        return partial_failure


def _has_stragglers(sources: TraceSources, now: datetime) -> bool:
    """Return whether a child of the execution has not ended yet and is still worth waiting for."""
    ended_at = sources.runs[0].completed_at
    if ended_at is None or now - ended_at >= MAX_STRAGGLER_WAIT:
        return False
    return any(run.status not in TERMINAL_STATUSES for run in sources.runs)


def _pack_trace(sources: TraceSources, tenant_id: str) -> bytes:
    return pack_request(traces.build_trace(sources), tenant_id)
