"""Run the loops of a worker process, and end them.

The process ends in three steps: it takes nothing new, then what runs may end, then the rest is handed back.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import structlog

from domain.shared.errors import DomainError
from infra.polling import PollResult, poll
from infra.worker_metrics import WorkerMetrics

# A loop without a round for so many seconds hangs. A round may take a minute where the database is slow.
STALLED_SECONDS: Final = 300.0

_log = structlog.get_logger("paddock.workers")


class Drain:
    """Tell the loops of one process that it is about to end. What runs has `seconds` left from then on.

    The loops report each round. With `once_idle`, the process ends after so many seconds without any work.
    """

    def __init__(
        self,
        seconds: float = 0.0,
        once_idle: float | None = None,
        metrics: WorkerMetrics | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds, self._once_idle, self._now = seconds, once_idle, now
        self.metrics = metrics or WorkerMetrics()
        self.stop_event = asyncio.Event()
        self._wake_events: list[asyncio.Event] = []
        self._main: asyncio.Future[None] | None = None
        self._forced = False
        self._last_round_at: dict[str, float] = {}
        self._last_work_at = now()

    def has_begun(self) -> bool:
        """Return whether no new work may be taken any more."""
        return self.stop_event.is_set()

    def wake_on_drain(self, event: asyncio.Event) -> asyncio.Event:
        """Have the event set when draining begins, so that a loop that waits for it ends. Return the event."""
        self._wake_events.append(event)
        if self.has_begun():
            event.set()
        return event

    async def sleep(self, seconds: float) -> bool:
        """Sleep until draining begins, for at most so many seconds. Return whether the loop is to go on."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.stop_event.wait(), seconds)
        return not self.has_begun()

    async def poll(
        self,
        name: str,
        work: Callable[[], Awaitable[PollResult]],
        *,
        wake: asyncio.Event | None = None,
        min_pause_seconds: float = 0.0,
    ) -> None:
        """Do rounds of `work` until draining begins, as `infra.polling.poll` does, and report them."""
        if wake is not None:
            self.wake_on_drain(wake)
        await poll(
            name,
            work,
            stop=self.stop_event,
            wake=wake,
            min_pause_seconds=min_pause_seconds,
            on_round=self.note_round,
        )

    def begin_drain(self, reason: str) -> None:
        """Begin to drain, and end what still runs after `seconds`. Further calls change nothing."""
        if self.has_begun():
            return
        _log.info("the worker drains", reason=reason, seconds=self._seconds)
        self.stop_event.set()
        for event in self._wake_events:
            event.set()
        asyncio.get_running_loop().call_later(self._seconds, self.force_end)

    def force_end(self) -> None:
        """Cancel what still runs; it hands its rows back."""
        if self._main is not None and not self._main.done() and not self._forced:
            self._forced = True
            self._main.cancel()

    async def run(self, main: Awaitable[None]) -> None:
        """Run `main` to its end. SIGTERM and SIGINT begin to drain; the second of them forces the end."""
        self._main = asyncio.ensure_future(main)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        with contextlib.suppress(asyncio.CancelledError):
            await self._main

    def _on_signal(self, number: signal.Signals) -> None:
        if self.has_begun():
            self.force_end()
        else:
            self.begin_drain(number.name)

    # rounds of the loops

    def note_round(self, loop: str, did_work: bool | None) -> None:
        """Note a round of a loop, and whether it did any work, None if it failed."""
        self._last_round_at[loop] = self._now()
        self.metrics.loop_polls.labels(loop, {True: "worked", False: "idle", None: "failed"}[did_work]).inc()
        if did_work is not False:
            self.note_work()

    def note_work(self) -> None:
        """Note that there is something to do."""
        self._last_work_at = self._now()

    def list_stalled_loops(self) -> list[str]:
        """Return the names of the loops that hang."""
        return sorted(loop for loop, at in self._last_round_at.items() if self._now() - at > STALLED_SECONDS)

    async def end_when_idle(self, busy: Callable[[], int], check: Callable[[], Awaitable[None]]) -> None:
        """Begin to drain once there was no work for `once_idle` seconds, if that is set. `check` asks the database.

        A database that cannot be reached may hold work, so a process is not idle during an outage.
        """
        if self._once_idle is None:
            return
        while await self.sleep(min(self._once_idle / 4, 1.0)):
            if busy():
                self.note_work()
            if self._now() - self._last_work_at < self._once_idle:
                continue
            try:
                await check()
            except DomainError:
                self.note_work()
            else:
                self.begin_drain(f"there was nothing to do for {self._once_idle:g} s")


async def run_with_background(work: Coroutine[Any, Any, None], *background: Coroutine[Any, Any, None]) -> None:
    """Do the work to its end, with the background coroutines beside it. If one of those fails, everything ends."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(coroutine) for coroutine in background]
        await work
        for task in tasks:
            task.cancel()
