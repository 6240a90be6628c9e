"""Write the events of many running executions with one statement for all of them, a few times a second."""

import asyncio
from typing import Any, Final

import structlog

from domain.events import AttemptEvents, ExecutionEvent
from domain.executions import Execution
from domain.ports import Clock, Store
from domain.shared.leases import LostLease
from infra.polling import retry_through_outage

# Seconds in which pieces of answers gather; readers see them later by that much. A pause is as long as the last write
# took, up to the maximum, so that the database keeps up.
FLUSH_SECONDS: Final = 0.03
MAX_FLUSH_SECONDS: Final = 0.25
# Characters that one run may have pending before it has to wait.
MAX_PENDING_CHARACTERS: Final = 256 * 1024
# Events in one statement; runs that are left over come first in the next.
MAX_EVENT_BATCH: Final = 2000
_MERGED_TYPES: Final = ("token", "thinking")

_log = structlog.get_logger("paddock.events")
AttemptKey = tuple[str, int]


class _PendingEvents:
    """Hold the events of one attempt that are not written yet."""

    def __init__(self) -> None:
        self.events: list[ExecutionEvent] = []
        self.character_count = 0
        self.flush_waiters: list[asyncio.Future[None]] = []


class EventWriter:
    """Write the events of all runs of this process. `run` must be running."""

    def __init__(self, store: Store, clock: Clock, pause: float = FLUSH_SECONDS) -> None:
        self._store, self._clock, self._pause = store, clock, pause
        self._pending: dict[AttemptKey, _PendingEvents] = {}
        # Events on their way to the database: no longer pending, and not written yet.
        self._writing: dict[AttemptKey, _PendingEvents] = {}
        self._lost: set[AttemptKey] = set()
        self._failed: dict[AttemptKey, Exception] = {}
        self._wake = asyncio.Event()

    def add_event(self, execution: Execution, kind: Any, **data: Any) -> None:
        """Add an event. Pending pieces of one answer are merged into one event."""
        key = (execution.id, execution.attempt)
        pending = self._pending.get(key)
        if pending is None:
            pending = self._pending[key] = _PendingEvents()
        if kind in _MERGED_TYPES:
            pending.character_count += len(data["content"])
            last = pending.events[-1] if pending.events else None
            if last is not None and last.type == kind and last.data["step"] == data["step"]:
                last.data["pieces"].append(data["content"])
                return
            data["pieces"] = [data.pop("content")]
        pending.events.append(ExecutionEvent(type=kind, data=data, at=self._clock()))
        self._wake.set()

    async def wait_for_space(self, execution: Execution) -> None:
        """Wait until this run has few enough pending events. Errors: `LostLease`."""
        key = self._check_key(execution)
        pending = self._pending.get(key)
        if pending is not None and pending.character_count > MAX_PENDING_CHARACTERS:
            await self.flush(execution)

    async def flush(self, execution: Execution) -> None:
        """Wait until all events of this run are written. Errors: `LostLease`, and what kept them from being written."""
        key = self._check_key(execution)
        pending = self._pending.get(key) or self._writing.get(key)
        if pending is None:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        pending.flush_waiters.append(waiter)
        self._wake.set()
        await waiter

    def _check_key(self, execution: Execution) -> AttemptKey:
        key = (execution.id, execution.attempt)
        if key in self._lost:
            raise LostLease(execution.id)
        if key in self._failed:
            raise self._failed[key]
        return key

    def forget_attempt(self, execution: Execution) -> None:
        """Drop the pending events of an attempt that has ended."""
        key = (execution.id, execution.attempt)
        self._pending.pop(key, None)
        self._lost.discard(key)
        self._failed.pop(key, None)

    async def run(self) -> None:
        """Write for as long as the process lives. An outage is waited out, and no pending event is lost."""
        loop, write_seconds = asyncio.get_running_loop(), 0.0
        while True:
            await self._wake.wait()
            await asyncio.sleep(min(max(self._pause, write_seconds), MAX_FLUSH_SECONDS))
            self._wake.clear()
            batch, started_at = self._take_batch(), loop.time()
            self._writing = dict(batch)
            await self._write_batch(batch)
            write_seconds = loop.time() - started_at

    async def _write_batch(self, batch: dict[AttemptKey, _PendingEvents]) -> None:
        """Write a batch, however long an outage takes. Events that cannot be written fail their own run alone."""
        if not batch:
            return
        try:
            await retry_through_outage(lambda: self._append_batch(batch))
        except Exception as error:
            if len(batch) > 1:
                for key, pending in batch.items():
                    await self._write_batch({key: pending})
                return
            key, pending = next(iter(batch.items()))
            _log.exception("events cannot be written", execution_id=key[0])
            self._failed[key] = error
            self._notify_waiters(key, pending, error)

    def _take_batch(self) -> dict[AttemptKey, _PendingEvents]:
        """Return the events to write next, which are no longer pending then."""
        batch: dict[AttemptKey, _PendingEvents] = {}
        count = 0
        for key in list(self._pending):
            if count >= MAX_EVENT_BATCH:
                self._wake.set()
                break
            batch[key] = self._pending.pop(key)
            count += len(batch[key].events)
        return batch

    async def _append_batch(self, batch: dict[AttemptKey, _PendingEvents]) -> None:
        attempts = [
            AttemptEvents(
                execution_id=key[0], attempt=key[1], events=[_merge_pieces(event) for event in pending.events]
            )
            for key, pending in batch.items()
            if pending.events
        ]
        held_keys = set[AttemptKey]()
        if attempts:
            async with self._store.autocommit() as tx:
                held_keys = await tx.events.append_batches(attempts)
                for key in held_keys:
                    tx.announce_status(key[0], "running")
        for key, pending in batch.items():
            is_lost = bool(pending.events) and key not in held_keys
            if is_lost:
                self._lost.add(key)
            self._notify_waiters(key, pending, LostLease(key[0]) if is_lost else None)

    def _notify_waiters(self, key: AttemptKey, pending: _PendingEvents, error: Exception | None) -> None:
        """End the write of an attempt's events, and wake those that wait for it."""
        self._writing.pop(key, None)
        for waiter in pending.flush_waiters:
            if waiter.done():
                continue
            if error is not None:
                waiter.set_exception(error)
            else:
                waiter.set_result(None)


def _merge_pieces(event: ExecutionEvent) -> ExecutionEvent:
    if event.type not in _MERGED_TYPES:
        return event
    data = {"content": "".join(event.data["pieces"]).replace("\0", "\ufffd"), "step": event.data["step"]}
    return ExecutionEvent(type=event.type, data=data, at=event.at)
