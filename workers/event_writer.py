"""Writes what many runs tell while they go on, in one statement for all of them, a few times a second."""

import asyncio
from typing import Any, Final

import structlog

from domain.events import Event, Written
from domain.executions import Execution
from domain.ports import Clock, Store
from domain.shared.errors import DomainError
from domain.shared.leases import LostLease
from infra.outage_log import tell_outage

# Seconds in which words gather. Whoever reads along sees them so much later at most, and two network trips. The more
# there is to write the longer: a pause is as long as the last writing, so that the database keeps up.
PAUSE: Final = 0.03
LONGEST: Final = 0.25
# What one run may have waiting to be written, in characters, before it has to wait itself.
HEAVY: Final = 256 * 1024
# How many events go in one statement; runs that are left over come first in the next.
MOST: Final = 2000
AWAY: Final = 0.5
_POOLED: Final = ("token", "thinking")

_log = structlog.get_logger("paddock.events")
Key = tuple[str, int]


class _Pending:
    """What one attempt at a run has still to tell."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.weight = 0
        self.flushed: list[asyncio.Future[None]] = []


class Scribe:
    """The events of all runs of this process. `run` must be running."""

    def __init__(self, store: Store, clock: Clock, pause: float = PAUSE) -> None:
        self._store, self._clock, self._pause = store, clock, pause
        self._pending: dict[Key, _Pending] = {}
        # What is on its way to the database: taken out of what waits, and not there yet.
        self._writing: dict[Key, _Pending] = {}
        self._lost: set[Key] = set()
        self._failed: dict[Key, Exception] = {}
        self._wake = asyncio.Event()

    def tell(self, execution: Execution, kind: Any, **data: Any) -> None:
        """Note an event. Pieces of one answer that wait together become one."""
        key = (execution.id, execution.attempt)
        pending = self._pending.get(key)
        if pending is None:
            pending = self._pending[key] = _Pending()
        if kind in _POOLED:
            pending.weight += len(data["content"])
            last = pending.events[-1] if pending.events else None
            if last is not None and last.type == kind and last.data["step"] == data["step"]:
                last.data["pieces"].append(data["content"])
                return
            data["pieces"] = [data.pop("content")]
        pending.events.append(Event(type=kind, data=data, at=self._clock()))
        self._wake.set()

    async def room(self, execution: Execution) -> None:
        """Wait until not too much of this run waits to be written. Errors: `LostLease`."""
        key = self._told(execution)
        pending = self._pending.get(key)
        if pending is not None and pending.weight > HEAVY:
            await self.flush(execution)

    async def flush(self, execution: Execution) -> None:
        """Wait until all that was told of this run is written. Errors: `LostLease`, and whatever kept it from that."""
        key = self._told(execution)
        pending = self._pending.get(key) or self._writing.get(key)
        if pending is None:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        pending.flushed.append(done)
        self._wake.set()
        await done

    def _told(self, execution: Execution) -> Key:
        key = (execution.id, execution.attempt)
        if key in self._lost:
            raise LostLease(execution.id)
        if key in self._failed:
            raise self._failed[key]
        return key

    def forget(self, execution: Execution) -> None:
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
            await asyncio.sleep(min(max(self._pause, took), LONGEST))
            self._wake.clear()
            batch, begun = self._taken(), loop.time()
            self._writing = dict(batch)
            await self._written(batch)
            took = loop.time() - begun

    async def _written(self, batch: dict[Key, _Pending]) -> None:
        """Write a batch, however long it takes. What cannot be written fails its own run alone."""
        while batch:
            try:
                await self._write(batch)
                return
            except DomainError as error:
                tell_outage(_log, "events wait", error)
                await asyncio.sleep(AWAY)
            except Exception as error:
                if len(batch) > 1:
                    for key, pending in batch.items():
                        await self._written({key: pending})
                    return
                key, pending = next(iter(batch.items()))
                _log.exception("events cannot be written", execution_id=key[0])
                self._failed[key] = error
                self._ended(key, pending, error)
                return

    def _taken(self) -> dict[Key, _Pending]:
        """What is written next, taken out of what waits."""
        taken: dict[Key, _Pending] = {}
        count = 0
        for key in list(self._pending):
            if count >= MOST:
                self._wake.set()
                break
            taken[key] = self._pending.pop(key)
            count += len(taken[key].events)
        return taken

    async def _write(self, batch: dict[Key, _Pending]) -> None:
        written = [
            Written(execution_id=key[0], attempt=key[1], events=[_whole(event) for event in pending.events])
            for key, pending in batch.items()
            if pending.events
        ]
        held = set[Key]()
        if written:
            async with self._store.begin_single() as tx:
                held = await tx.events.append_all(written)
                for key in held:
                    tx.changed(key[0], "running")
        for key, pending in batch.items():
            lost = bool(pending.events) and key not in held
            if lost:
                self._lost.add(key)
            self._ended(key, pending, LostLease(key[0]) if lost else None)

    def _ended(self, key: Key, pending: _Pending, error: Exception | None) -> None:
        """What was on its way has come to an end; whoever waited for it is told."""
        self._writing.pop(key, None)
        for done in pending.flushed:
            if done.done():
                continue
            if error is not None:
                done.set_exception(error)
            else:
                done.set_result(None)


def _whole(event: Event) -> Event:
    if event.type not in _POOLED:
        return event
    data = {"content": "".join(event.data["pieces"]).replace("\0", "\ufffd"), "step": event.data["step"]}
    return Event(type=event.type, data=data, at=event.at)
