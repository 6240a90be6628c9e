"""Report that a worker process is alive, how busy it is, and what keeps it from working."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog
from msgspec.structs import replace

from domain.ports import Sandbox, Store
from domain.queues import WorkerInfo
from domain.shared.errors import DomainError
from infra.disks import build_full_disk_error, is_full
from infra.outage_log import log_outage
from infra.sandbox import SlotCounts
from workers.lifecycle import Drain

HEARTBEAT_SECONDS: Final = 5.0
# Lanes that write to the disk of their machine.
DISK_LANES: Final = ("build", "run", "llm")
NO_SANDBOXES: Final = SlotCounts(warm=0, blank=0, making=0, busy=0)

_log = structlog.get_logger("paddock.workers")


class Heartbeat:
    """Send the heartbeats of one worker process. `problem` says why it cannot isolate code, if it cannot."""

    def __init__(
        self,
        store: Store,
        info: WorkerInfo,
        data_dir: str,
        *,
        count_busy: Callable[[], int] = lambda: 0,
        sandbox: Sandbox | None = None,
    ) -> None:
        self._store, self.info, self._data_dir = store, info, Path(data_dir)
        self._count_busy, self._sandbox = count_busy, sandbox
        self.problem: str | None = None

    async def run(self, count_sandboxes: Callable[[], SlotCounts] = lambda: NO_SANDBOXES) -> None:
        """Send a heartbeat every few seconds, for as long as the process lives."""
        while True:
            await self._check_sandbox()
            await self.send(count_sandboxes())
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async def send(self, sandboxes: SlotCounts = NO_SANDBOXES) -> None:
        """Send one heartbeat. An outage is logged."""
        is_disk_full = self.info.lane in DISK_LANES and is_full(self._data_dir)
        problem = self.problem or (build_full_disk_error(f"the worker {self.info.id}").detail if is_disk_full else None)
        info = replace(self.info, busy=self._count_busy(), warm=sandboxes.warm, blank=sandboxes.blank, problem=problem)
        try:
            async with self._store.system_transaction() as tx:
                await tx.workers.save(replace(info, seen_at=tx.now))
        except Exception as error:
            log_outage(_log, "cannot send a heartbeat", error)

    async def remove(self) -> None:
        """Remove the process from the list of workers, if the database answers soon."""
        with contextlib.suppress(DomainError, asyncio.TimeoutError):
            async with asyncio.timeout(2), self._store.system_transaction() as tx:
                await tx.workers.delete(self.info.id)

    def export_metrics(self, drain: Drain) -> None:
        """Export how busy this process is."""
        metrics, slots = drain.metrics, self.info.slots
        metrics.add_gauge("paddock_worker_slots", "How much this process does at a time.", lambda: slots)
        metrics.add_gauge(
            "paddock_worker_busy",
            "How much it does now: rows that it holds, plans that it advances.",
            self._count_busy,
        )
        metrics.add_gauge("paddock_worker_draining", "1 once it is about to end.", lambda: float(drain.has_begun()))

    async def _check_sandbox(self) -> None:
        if self._sandbox is None:
            return
        status = await self._sandbox.get_status()
        problem = None if status.available else status.reason
        if problem and problem != self.problem:
            _log.error("runs are refused on this host", reason=problem)
        self.problem = problem


def export_sandbox_metrics(drain: Drain, count_sandboxes: Callable[[], SlotCounts]) -> None:
    """Export the sandboxes of this process, by state."""

    def export_state(state: str) -> None:
        description = "Sandboxes of this process, by state."
        drain.metrics.add_gauge(
            "paddock_worker_sandboxes", description, lambda: getattr(count_sandboxes(), state), state=state
        )

    for state in SlotCounts.__struct_fields__:
        export_state(state)
