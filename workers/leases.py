"""Extend the leases of claimed rows while work goes on, and stop work whose row was lost."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any, Final, TypeVar

import msgspec
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

# A cancelled run is killed within a second: the bell rings at once, and this is the pause between looks without it.
LEASE_POLL_SECONDS: Final = 0.4
_MIN_EXTEND_GAP_SECONDS: Final = 0.05

_log = structlog.get_logger("paddock.leases")


class LeasedWork(msgspec.Struct, frozen=True, kw_only=True):
    """Hold one attempt at a claimed row, and what else may become of the row.

    `run` settles the row and returns the error type that it settled with. `hand_over` returns the row to its queue
    when this process is to stop; `release` does after the sandbox was lost, which counts as an attempt; `fail` settles
    the row with a message.
    """

    row_id: str
    attempt: int
    log: Any
    run: Coroutine[Any, Any, str | None]
    hand_over: Callable[[], Awaitable[None]]
    release: Callable[[], Awaitable[None]]
    fail: Callable[[str], Awaitable[None]]


class LeaseKeeper:
    """Keep the leases of the rows that this process works on: one statement extends them all."""

    def __init__(
        self, store: Store, bell: Bell, clock: Clock, lane: Lane, lease: timedelta, drain: Drain | None = None
    ) -> None:
        self._drain = drain or Drain()
        self._store, self._bell, self._clock, self._lane, self.lease_duration = store, bell, clock, lane, lease
        # By row and attempt: a requeued row may be claimed again before its first attempt here has ended.
        self._held: dict[tuple[str, int], asyncio.Task[Any]] = {}
        self._lost: set[tuple[str, int]] = set()
        self._changed, self._any = asyncio.Event(), asyncio.Event()

    @property
    def lease_count(self) -> int:
        """The number of rows that are worked on."""
        return len(self._held)

    async def hold_lease(self, row_id: str, attempt: int, work: Coroutine[Any, Any, T]) -> T:
        """Do the work while the lease is extended. Errors: `LostLease`, once the work has stopped."""
        task, key = asyncio.create_task(work), (row_id, attempt)
        self._held[key] = task
        self._any.set()
        self._drain.note_work()
        with self._bell.watch_row(row_id, REVOKED_STATUSES, self._changed):
            try:
                return await task
            except asyncio.CancelledError:
                if key in self._lost:
                    raise LostLease(row_id) from None
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                raise
            finally:
                del self._held[key]
                self._lost.discard(key)
                self._drain.note_work()

    async def run_leased(self, work: LeasedWork) -> bool:
        """Run claimed work to its end. Return whether the work settled its row, which it may have left to others."""
        log = work.log
        try:
            error_type = await self.hold_lease(work.row_id, work.attempt, work.run)
        except LostLease:
            self._count_outcome("lost")
            log.info("stopped: the row was cancelled, or its lease was lost")
        except SandboxLost as lost:
            self._count_outcome("sandbox_lost")
            log.warning("the sandbox was lost; the row returns to its queue", reason=str(lost))
            await retry_through_outage(work.release)
        except HandoverRequested:
            self._count_outcome("handed_over")
            log.info("handed over at the end of a step")
            await retry_through_outage(work.hand_over)
        except asyncio.CancelledError:
            self._count_outcome("handed_over")
            await asyncio.shield(_hand_over_on_stop(log, work.hand_over))
            raise
        except Exception as error:
            self._count_outcome("error")
            # A bug. A failure now is better than three leases that run out.
            log.exception("failed unexpectedly")
            message = f"The worker failed: {type(error).__name__}."
            with contextlib.suppress(LostLease):
                await retry_through_outage(lambda: work.fail(message))
        else:
            self._count_outcome("ok" if error_type is None else "failed")
            log.info("ended", error=error_type)
            return True
        return False

    def _count_outcome(self, outcome: str) -> None:
        self._drain.metrics.finished_rows.labels(self._lane, outcome).inc()

    async def extend_leases(self) -> None:
        """Extend the leases of all rows in time, for as long as the process lives."""
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
        # Sorted by attempt: of two attempts at one row the newer one may hold it, and the older one has lost it.
        keys = sorted(self._held, key=lambda key: key[1])
        newest_attempts, now = dict(keys), self._clock()
        try:
            async with self._store.system_transaction() as tx:
                extended = await tx.queues.extend_leases(
                    self._lane, newest_attempts, now + self.lease_duration, now + self.lease_duration * 2 / 3
                )
        except Exception as error:
            # Work goes on: if the row was requeued meanwhile, the fencing token keeps this attempt from settling it.
            self._drain.metrics.lease_failures.inc()
            log_outage(_log, "cannot extend leases", error)
            return
        for key in keys:
            row_id, attempt = key
            is_lost = row_id not in extended or attempt != newest_attempts[row_id]
            if is_lost and key in self._held and key not in self._lost:
                self._lost.add(key)
                self._held[key].cancel()


async def claim_or_release(claim: Coroutine[Any, Any, list[T]], hand_over: Callable[[T], Awaitable[None]]) -> list[T]:
    """Claim rows. If the claim is cancelled, the rows that it still got are handed over."""
    claiming = asyncio.create_task(claim)
    try:
        return await asyncio.shield(claiming)
    except asyncio.CancelledError:
        await asyncio.wait((claiming,))
        claimed = [] if claiming.cancelled() or claiming.exception() is not None else claiming.result()
        await asyncio.gather(*(hand_over(row) for row in claimed), return_exceptions=True)
        raise


async def _hand_over_on_stop(log: Any, hand_over: Callable[[], Awaitable[None]]) -> None:
    try:
        await hand_over()
        log.info("handed over")
    except DomainError as error:
        log_outage(log, "cannot hand a row over; its lease will run out", error)
