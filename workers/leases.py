"""Holding rows: extending their leases while work goes on, and stopping work whose row is gone."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any, Final, TypeVar

import structlog

from domain.ports import Clock, SandboxLost, Store
from domain.shared.errors import DomainError
from domain.shared.jobs import Lane
from domain.shared.leases import HandoverRequested, LostLease
from infra.outage_log import log_outage
from infra.polling import retry_through_outage
from infra.redis import REVOKED_STATUSES, Bell
from workers.lifecycle import Drain

T = TypeVar("T")

# A cancelled run is killed within a second: the bell tells at once, and this is how often we look without it.
LEASE_POLL_SECONDS: Final = 0.4
_MIN_EXTEND_GAP_SECONDS: Final = 0.05

_log = structlog.get_logger("paddock.leases")


class LeaseKeeper:
    """The rows that this process holds. One statement extends them all."""

    def __init__(
        self, store: Store, bell: Bell, clock: Clock, lane: Lane, lease: timedelta, drain: Drain | None = None
    ) -> None:
        self._drain = drain or Drain()
        self._store, self._bell, self._clock, self._lane, self.lease_duration = store, bell, clock, lane, lease
        # By row and attempt: a row that was taken back may be claimed again before its first attempt here has ended.
        self._held: dict[tuple[str, int], asyncio.Task[Any]] = {}
        self._lost: set[tuple[str, int]] = set()
        self._changed, self._any = asyncio.Event(), asyncio.Event()

    @property
    def lease_count(self) -> int:
        """How many rows are held."""
        return len(self._held)

    async def hold_lease(self, row_id: str, attempt: int, work: Coroutine[Any, Any, T]) -> T:
        """Do the work while the lease is extended. Errors: `LostLease`, by which time the work has stopped."""
        task, mine = asyncio.create_task(work), (row_id, attempt)
        self._held[mine] = task
        self._any.set()
        self._drain.note_work()
        with self._bell.watch_row(row_id, REVOKED_STATUSES, self._changed):
            try:
                return await task
            except asyncio.CancelledError:
                if mine in self._lost:
                    raise LostLease(row_id) from None
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                raise
            finally:
                del self._held[mine]
                self._lost.discard(mine)
                self._drain.note_work()

    async def run_leased(
        self,
        log: Any,
        row_id: str,
        attempt: int,
        work: Coroutine[Any, Any, str | None],
        hand_over: Callable[[], Awaitable[None]],
        give_back: Callable[[], Awaitable[None]],
        fail: Callable[[str], Awaitable[None]],
    ) -> bool:
        """Do claimed work to an end, whatever comes: `work` settles its row and returns the error it settled with.

        `hand_over` returns the row to its queue when this process is told to stop, `give_back` when the sandbox was
        lost, which counts as an attempt; `fail` settles it with a reason. Returns whether it was the work that
        settled the row.
        """
        try:
            error = await self.hold_lease(row_id, attempt, work)
        except LostLease:
            self._count_outcome("lost")
            log.info("stopped: the row was cancelled or taken back")
        except SandboxLost as lost:
            self._count_outcome("sandbox_lost")
            log.warning("the sandbox was lost; the row is given back", reason=str(lost))
            await retry_through_outage(give_back)
        except HandoverRequested:
            self._count_outcome("handed_over")
            log.info("handed over at the end of a step")
            await retry_through_outage(hand_over)
        except asyncio.CancelledError:
            self._count_outcome("handed_over")
            await asyncio.shield(_hand_over_on_stop(log, hand_over))
            raise
        except Exception as unexpected:
            self._count_outcome("error")
            # A mistake of ours. Better a failure that says so now than three leases that run out.
            log.exception("failed unexpectedly")
            told = f"The worker failed: {type(unexpected).__name__}."
            with contextlib.suppress(LostLease):
                await retry_through_outage(lambda: fail(told))
        else:
            self._count_outcome("ok" if error is None else "failed")
            log.info("ended", error=error)
            return True
        return False

    def _count_outcome(self, outcome: str) -> None:
        self._drain.metrics.finished_rows.labels(self._lane, outcome).inc()

    async def extend_leases(self) -> None:
        """Run for as long as the process does."""
        while True:
            if not self._held:
                self._any.clear()
                await self._any.wait()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), LEASE_POLL_SECONDS)
            self._changed.clear()
            if self._held:
                await self._extend_held_leases()
                await asyncio.sleep(_MIN_EXTEND_GAP_SECONDS)

    async def _extend_held_leases(self) -> None:
        # Sorted by attempt: of two attempts at one row the newer one may be held, the older one is lost.
        mine = sorted(self._held, key=lambda one: one[1])
        asked, now = dict(mine), self._clock()
        try:
            async with self._store.system_transaction() as tx:
                held = await tx.queues.extend_leases(
                    self._lane, asked, now + self.lease_duration, now + self.lease_duration * 2 / 3
                )
        except Exception as error:
            # Work goes on: if the row was taken back meanwhile, the fencing token keeps us from settling it.
            self._drain.metrics.lease_failures.inc()
            log_outage(_log, "cannot extend leases", error)
            return
        for one in mine:
            row_id, attempt = one
            if (row_id not in held or attempt != asked[row_id]) and one in self._held and one not in self._lost:
                self._lost.add(one)
                self._held[one].cancel()


async def claim_or_release(claim: Coroutine[Any, Any, list[T]], hand_over: Callable[[T], Awaitable[None]]) -> list[T]:
    """Claim rows. If this process is told to stop meanwhile, what was claimed all the same is handed over."""
    claiming = asyncio.create_task(claim)
    try:
        return await asyncio.shield(claiming)
    except asyncio.CancelledError:
        await asyncio.wait((claiming,))
        claimed = [] if claiming.cancelled() or claiming.exception() is not None else claiming.result()
        await asyncio.gather(*(hand_over(one) for one in claimed), return_exceptions=True)
        raise


async def _hand_over_on_stop(log: Any, hand_over: Callable[[], Awaitable[None]]) -> None:
    try:
        await hand_over()
        log.info("handed over")
    except DomainError as error:
        log_outage(log, "could not hand a row over; its lease will run out", error)
