"""The life of a worker process: what its loops do, and how it ends.

It ends in three steps: nothing new is taken, then what runs may end, then the rest is handed back.
"""

import asyncio
import contextlib
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

import structlog

from domain.shared.errors import DomainError
from infra.worker_metrics import WorkerMetrics

# A loop that has not turned for so many seconds hangs. A turn may take a minute where the database is slow.
STALLED_SECONDS: Final = 300.0

_log = structlog.get_logger("paddock.workers")


class Drain:
    """Tells the loops of one process that it is about to end. What runs has `seconds` left from then on.

    The loops tell it of each turn. With `once_idle`, the process ends when there was nothing to do for so many seconds.
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
        self._begun = asyncio.Event()
        self._woken: list[asyncio.Event] = []
        self._main: asyncio.Future[None] | None = None
        self._forced = False
        self._turned: dict[str, float] = {}
        self._worked = now()

    def has_begun(self) -> bool:
        """Whether no new work may be taken any more."""
        return self._begun.is_set()

    def wake_on_drain(self, event: asyncio.Event) -> asyncio.Event:
        """Have the event set when draining begins, so that whoever waits for it looks up. Returns the event."""
        self._woken.append(event)
        if self.has_begun():
            event.set()
        return event

    async def sleep(self, seconds: float) -> bool:
        """Sleep, at most until draining begins. Returns whether to go on with the loop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._begun.wait(), seconds)
        return not self.has_begun()

    def begin_drain(self, reason: str) -> None:
        """Begin to drain, and end what still runs `seconds` from now. Further calls change nothing."""
        if self.has_begun():
            return
        _log.info("drains", reason=reason, seconds=self._seconds)
        self._begun.set()
        for event in self._woken:
            event.set()
        asyncio.get_running_loop().call_later(self._seconds, self.force_end)

    def force_end(self) -> None:
        """End what still runs: it is cancelled, and hands its rows back."""
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

    # what the loops do

    def note_round(self, loop: str, found: bool | None) -> None:
        """Note that a loop has turned, and whether it found work. None: it could not look."""
        self._turned[loop] = self._now()
        self.metrics.loop_polls.labels(loop, {True: "worked", False: "idle", None: "failed"}[found]).inc()
        if found is not False:
            self.note_work()

    def note_work(self) -> None:
        """Note that there is something to do."""
        self._worked = self._now()

    def list_stalled_loops(self) -> list[str]:
        """Return the loops that have not turned for long."""
        return sorted(loop for loop, at in self._turned.items() if self._now() - at > STALLED_SECONDS)

    async def end_when_idle(self, busy: Callable[[], int], check: Callable[[], Awaitable[None]]) -> None:
        """Begin to drain once nothing was to be done for long, if that is wanted. `check` asks the database.

        What cannot be looked at may hold work: while the database is away, nobody is idle.
        """
        if self._once_idle is None:
            return
        while await self.sleep(min(self._once_idle / 4, 1.0)):
            if busy():
                self.note_work()
            if self._now() - self._worked < self._once_idle:
                continue
            try:
                await check()
            except DomainError:
                self.note_work()
            else:
                self.begin_drain(f"there was nothing to do for {self._once_idle:g} s")


async def run_with_background(work: Coroutine[Any, Any, None], *company: Coroutine[Any, Any, None]) -> None:
    """Do the work to its end, while the company goes on until then. If one of the company fails, all of it ends."""
    async with asyncio.TaskGroup() as group:
        beside = [group.create_task(one) for one in company]
        await work
        for task in beside:
            task.cancel()
