"""Ending a worker process: first nothing new is taken, then what runs may end, then the rest is handed back."""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Coroutine
from typing import Any

import structlog

_log = structlog.get_logger("paddock.workers")


class Drain:
    """Tells the loops of one process that it is about to end. What runs has `seconds` left from then on."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self._begun = asyncio.Event()
        self._woken: list[asyncio.Event] = []
        self._main: asyncio.Future[None] | None = None
        self._forced = False

    def has_begun(self) -> bool:
        """Whether no new work may be taken any more."""
        return self._begun.is_set()

    def wakes(self, event: asyncio.Event) -> asyncio.Event:
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

    def begin(self, reason: str) -> None:
        """Begin to drain, and end what still runs `seconds` from now. Further calls change nothing."""
        if self.has_begun():
            return
        _log.info("drains", reason=reason, seconds=self._seconds)
        self._begun.set()
        for event in self._woken:
            event.set()
        asyncio.get_running_loop().call_later(self._seconds, self.force)

    def force(self) -> None:
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
            self.force()
        else:
            self.begin(number.name)


async def with_company(work: Coroutine[Any, Any, None], *company: Coroutine[Any, Any, None]) -> None:
    """Do the work to its end, while the company goes on until then. If one of the company fails, all of it ends."""
    async with asyncio.TaskGroup() as group:
        beside = [group.create_task(one) for one in company]
        await work
        for task in beside:
            task.cancel()
