"""Sends the traces of executions that have ended to a collector, each at least once."""

import asyncio
from datetime import datetime, timedelta
from typing import Final

import structlog

from domain import traces
from domain.ports import Store
from domain.shared.errors import DomainError
from domain.shared.status import TERMINAL
from domain.traces import Due, Sources
from infra.otlp import Away, Collector, Refused, packed, pause
from workers.leases import persist

BATCH: Final = 32
AT_A_TIME: Final = 4
# Much longer than a round takes.
LEASE: Final = timedelta(minutes=10)
# How often it is said that traces are wanted, see migration 0020.
WANTED: Final = timedelta(hours=1)
# What belongs to an ended execution ends soon; that long it is waited for.
STRAGGLING: Final = timedelta(minutes=10)
AGAIN: Final = timedelta(seconds=5)

_log = structlog.get_logger("paddock.traces")


class Exporter:
    """Exports traces in rounds. While the collector is away nothing is lost: what is due waits in the database."""

    def __init__(self, store: Store, collector: Collector) -> None:
        self._store, self._collector = store, collector
        self._said: datetime | None = None
        self._rest: datetime | None = None
        self._failures = 0

    async def __call__(self) -> bool:
        """One round. Returns whether there may be more."""
        async with self._store.begin_unbound() as tx:
            now = tx.now
            if said := self._said is None or now - self._said >= WANTED:
                await tx.traces.wanted(now)
            rests = self._rest is not None and now < self._rest
            claimed = [] if rests else await tx.traces.claim(BATCH, now, now + LEASE)
        self._said = now if said else self._said
        if not claimed:
            return False
        turn = _Round(self._store, self._collector, claimed, now)
        try:
            await turn.take()
        finally:
            # Also when told to stop: whoever comes next need not wait for the lease.
            await asyncio.shield(turn.settle())
        if turn.lost is not None:
            raise turn.lost
        self._failures = self._failures + 1 if turn.away is not None else 0
        self._rest = None if turn.away is None else now + pause(self._failures, turn.away.after)
        return len(claimed) == BATCH and turn.away is None


class _Round:
    """What one round has claimed, and what becomes of it."""

    def __init__(self, store: Store, collector: Collector, claimed: list[Due], now: datetime) -> None:
        self._store, self._collector, self._claimed, self._now = store, collector, claimed, now
        self.away: Away | None = None
        self.lost: DomainError | None = None
        self._done: list[str] = []
        # With the seconds after which it may be tried again, if somebody said so.
        self._failed: dict[str, float | None] = {}
        self._early: list[str] = []

    async def take(self) -> None:
        """Send them all, or as many as it takes to see that the collector is away."""
        slots = asyncio.Semaphore(AT_A_TIME)

        async def one(due: Due) -> None:
            async with slots:
                if self.away is None and self.lost is None:
                    await self._export(due)

        async with asyncio.TaskGroup() as group:
            for due in self._claimed:
                group.create_task(one(due))

    async def settle(self) -> None:
        """Write down what became of them. What was not tried is due again at once."""
        known = {*self._done, *self._failed, *self._early}
        rest = [due.execution_id for due in self._claimed if due.execution_id not in known]

        async def write() -> None:
            async with self._store.begin_unbound() as tx:
                await tx.traces.exported(self._done)
                await tx.traces.postpone(self._early, self._now + AGAIN, False)
                await tx.traces.postpone(rest, self._now, False)
                for due in self._claimed:
                    if due.execution_id in self._failed:
                        until = self._now + pause(due.tries, self._failed[due.execution_id])
                        await tx.traces.postpone([due.execution_id], until, True)

        await persist(write)

    async def _export(self, due: Due) -> None:
        log = _log.bind(execution_id=due.execution_id, tenant_id=due.tenant_id)
        try:
            told = await self._sent(due)
        except Away as away:
            log.warning("the collector of traces is away; they are sent later", error=str(away))
            self.away, self._failed[due.execution_id] = away, away.after
        except Refused as refused:
            log.error("the collector does not take a trace; it is given up", error=str(refused))
            self._done.append(due.execution_id)
        except DomainError as error:
            self.lost = error
        except Exception:
            # Others are not kept waiting by it.
            log.exception("a trace could not be exported")
            self._failed[due.execution_id] = None
        else:
            if told is not None:
                log.warning("the collector left out spans of a trace", told=told)

    async def _sent(self, due: Due) -> str | None:
        async with self._store.begin_for(due.tenant_id) as tx:
            found = await tx.traces.sources(due.execution_id, False, traces.MAX_SPANS)
        if found is not None and _straggling(found, self._now):
            self._early.append(due.execution_id)
            return None
        told = None
        if found is not None:
            told = await self._collector.send(await asyncio.to_thread(_packed, found, due.tenant_id))
        self._done.append(due.execution_id)
        return told


def _straggling(found: Sources, now: datetime) -> bool:
    """Whether some of it is still being stopped."""
    ended = found.runs[0].completed_at
    return ended is not None and now - ended < STRAGGLING and any(run.status not in TERMINAL for run in found.runs)


def _packed(found: Sources, tenant_id: str) -> bytes:
    return packed(traces.trace(found), tenant_id)
