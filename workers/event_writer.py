"""Writes what many runs tell while they go on, in one statement for all of them, a few times a second."""

import asyncio
from typing import Any, Final

import structlog

from domain.events import AttemptEvents, ExecutionEvent
from domain.executions import Execution
from domain.ports import Clock, Store
from domain.shared.errors import DomainError
from domain.shared.leases import LostLease
from infra.outage_log import log_outage

# Seconds in which words gather. Whoever reads along sees them so much later at most, and two network trips. The more
# there is to write the longer: a pause is as long as the last writing, so that the database keeps up.
FLUSH_SECONDS: Final = 0.03
MAX_FLUSH_SECONDS: Final = 0.25
# What one run may have waiting to be written, in characters, before it has to wait itself.
MAX_PENDING_CHARACTERS: Final = 256 * 1024
# How many events go in one statement; runs that are left over come first in the next.
MAX_EVENT_BATCH: Final = 2000
AWAY: Final = 0.5
_MERGED_TYPES: Final = ("token", "thinking")

_log = structlog.get_logger("paddock.events")
AttemptKey = tuple[str, int]


class _PendingEvents:
    """What one attempt at a run has still to tell."""

    def __init__(self) -> None:
        self.events: list[ExecutionEvent] = []
        self.character_count = 0
        self.flush_waiters: list[asyncio.Future[None]] = []


class EventWriter:
    """The events of all runs of this process. `run` must be running."""

    def __init__(self, store: Store, clock: Clock, pause: float = FLUSH_SECONDS) -> None:
        self._store, self._clock, self._pause = store, clock, pause
        self._pending: dict[AttemptKey, _PendingEvents] = {}
        # What is on its way to the database: taken out of what waits, and not there yet.
        self._writing: dict[AttemptKey, _PendingEvents] = {}
        self._lost: set[AttemptKey] = set()
        self._failed: dict[AttemptKey, Exception] = {}
        self._wake = asyncio.Event()

    def add_event(self, execution: Execution, kind: Any, **data: Any) -> None:
        """Note an event. Pieces of one answer that wait together become one."""
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
        """Wait until not too much of this run waits to be written. Errors: `LostLease`."""
        key = self._check_key(execution)
        pending = self._pending.get(key)
        if pending is not None and pending.character_count > MAX_PENDING_CHARACTERS:
            await self.flush(execution)

    async def flush(self, execution: Execution) -> None:
        """Wait until all that was told of this run is written. Errors: `LostLease`, and whatever kept it from that."""
        key = self._check_key(execution)
        pending = self._pending.get(key) or self._writing.get(key)
        if pending is None:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        pending.flush_waiters.append(done)
        self._wake.set()
        await done

    def _check_key(self, execution: Execution) -> AttemptKey:
        key = (execution.id, execution.attempt)
        if key in self._lost:
            raise LostLease(execution.id)
        if key in self._failed:
            raise self._failed[key]
        return key

    def forget_attempt(self, execution: Execution) -> None:
        """This attempt has ended: nothing more of it is written."""
        key = (execution.id, execution.attempt)
        self._pending.pop(key, None)
        self._lost.discard(key)
        self._failed.pop(key, None)

    async def run(self) -> None:
        """Write for as long as the process lives. An outage is waited out; nothing that waits is lost."""
        loop, took = asyncio.get_running_loop(), 0.0
        while True:
            await self._wake.wait()
            await asyncio.sleep(min(max(self._pause, took), MAX_FLUSH_SECONDS))
            self._wake.clear()
            batch, begun = self._take_batch(), loop.time()
            self._writing = dict(batch)
            await self._write_batch(batch)
            took = loop.time() - begun

    async def _write_batch(self, batch: dict[AttemptKey, _PendingEvents]) -> None:
        """Write a batch, however long it takes. What cannot be written fails its own run alone."""
        while batch:
            try:
                await self._append_batch(batch)
                return
            except DomainError as error:
                log_outage(_log, "events wait", error)
                await asyncio.sleep(AWAY)
            except Exception as error:
                if len(batch) > 1:
                    for key, pending in batch.items():
                        await self._write_batch({key: pending})
                    return
                key, pending = next(iter(batch.items()))
                _log.exception("events cannot be written", execution_id=key[0])
                self._failed[key] = error
                self._notify_waiters(key, pending, error)
                return

    def _take_batch(self) -> dict[AttemptKey, _PendingEvents]:
        """What is written next, taken out of what waits."""
        taken: dict[AttemptKey, _PendingEvents] = {}
        count = 0
        for key in list(self._pending):
            if count >= MAX_EVENT_BATCH:
                self._wake.set()
                break
            taken[key] = self._pending.pop(key)
            count += len(taken[key].events)
        return taken

    async def _append_batch(self, batch: dict[AttemptKey, _PendingEvents]) -> None:
        written = [
            AttemptEvents(
                execution_id=key[0], attempt=key[1], events=[_merge_pieces(event) for event in pending.events]
            )
            for key, pending in batch.items()
            if pending.events
        ]
        held = set[AttemptKey]()
        if written:
            async with self._store.autocommit() as tx:
                held = await tx.events.append_batches(written)
                for key in held:
                    tx.announce_status(key[0], "running")
        for key, pending in batch.items():
            lost = bool(pending.events) and key not in held
            if lost:
                self._lost.add(key)
            self._notify_waiters(key, pending, LostLease(key[0]) if lost else None)

    def _notify_waiters(self, key: AttemptKey, pending: _PendingEvents, error: Exception | None) -> None:
        """What was on its way has come to an end; whoever waited for it is told."""
        self._writing.pop(key, None)
        for done in pending.flush_waiters:
            if done.done():
                continue
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(None)


def _merge_pieces(event: ExecutionEvent) -> ExecutionEvent:
    if event.type not in _MERGED_TYPES:
        return event
    data = {"content": "".join(event.data["pieces"]).replace("\0", "\ufffd"), "step": event.data["step"]}
    return ExecutionEvent(type=event.type, data=data, at=event.at)
