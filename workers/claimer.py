"""Claim executions as slots come free: at once when rung, and several with one statement under load."""

import asyncio
from typing import Any, Final, Protocol

import structlog

from infra.polling import PollResult
from workers.leases import claim_or_release
from workers.lifecycle import Drain

# Seconds between two looks at the queue without a ring: Redis may have lost one.
CLAIM_POLL_SECONDS: Final = 5.0

_log = structlog.get_logger("paddock.executions")


class ClaimRunner(Protocol):
    """Claim and run executions, as `workers.lane_runner.LaneRunner` does."""

    may_have_pending: bool

    async def claim_executions(self, slots: int) -> list[Any]: ...
    async def run_claimed(self, execution: Any) -> None: ...
    async def hand_over_execution(self, execution: Any) -> None: ...


class Claimer:
    """Fill the slots of one worker process with executions."""

    def __init__(self, runner: ClaimRunner, slots: int, rung: asyncio.Event, drain: Drain | None = None) -> None:
        self._runner, self._slots, self._wake, self._drain = runner, slots, rung, drain or Drain()
        self._running: set[asyncio.Task[None]] = set()
        # Whether the last look filled every slot, or found none free: there may be more in the queue.
        self._may_have_more = False

    async def run(self) -> None:
        """Claim executions until draining begins, then wait for those that run. If cancelled, they are handed over."""
        try:
            await self._drain.poll("claim", self._fill_slots, wake=self._wake)
            while self._running:
                await asyncio.wait(self._running)
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def _fill_slots(self) -> PollResult:
        """Claim as many executions as slots are free, and start them."""
        free = self._slots - len(self._running)
        if not free:
            self._may_have_more = True
            return PollResult(did_work=True, pause_seconds=CLAIM_POLL_SECONDS)
        claimed = await claim_or_release(self._runner.claim_executions(free), self._runner.hand_over_execution)
        for execution in claimed:
            task = asyncio.create_task(self._runner.run_claimed(execution))
            self._running.add(task)
            task.add_done_callback(self._on_execution_end)
        self._may_have_more = len(claimed) == free
        return PollResult(bool(claimed), 0.0 if self._may_have_more else CLAIM_POLL_SECONDS)

    def _on_execution_end(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if self._may_have_more or self._runner.may_have_pending:
            self._wake.set()
        if not task.cancelled() and task.exception() is not None:
            _log.error("a run could not be settled; its lease will run out", error=str(task.exception()))
