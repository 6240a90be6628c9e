"""Advances plans, of whichever tenants: each in one short transaction, several at once."""

import asyncio
import contextlib
import time
from collections import OrderedDict
from typing import Final

import structlog

from domain import plans
from domain.plans import DuePlan, PlanCache, PlanLocked
from domain.ports import Store
from domain.shared.errors import DomainError
from domain.shared.leases import LostLease
from infra.outage_log import log_outage
from workers.lifecycle import Drain

_log = structlog.get_logger("paddock.plans")

# How often to look without being rung, in seconds.
PLAN_POLL_SECONDS: Final = 5.0
# While somebody else is at a plan, or after something went wrong with it.
BUSY_RETRY_SECONDS: Final = 0.05
OUTAGE_RETRY_SECONDS: Final = 1.0
# How long one turn of a plan keeps the others from theirs.
MAX_ADVANCE_SECONDS: Final = 0.2
# Plans that are kept in mind between two times that they are advanced.
MAX_CACHED_PLANS: Final = 200


class PlanAdvancer:
    """The plan lane of one worker process, `slots` plans at a time."""

    def __init__(self, store: Store, slots: int, rung: asyncio.Event, drain: Drain | None = None) -> None:
        self._drain = drain or Drain()
        self._store, self._slots, self._wake = store, slots, self._drain.wake_on_drain(rung)
        self._cached_plans: OrderedDict[str, PlanCache] = OrderedDict()
        self._running: dict[str, asyncio.Task[None]] = {}
        # Plans that could not be advanced, and when to try again: they keep no others from their turn.
        self._retry_at: dict[str, float] = {}

    @property
    def busy_count(self) -> int:
        """How many plans are being advanced."""
        return len(self._running)

    async def run(self) -> None:
        """Advance plans until draining begins. What is being done then is finished, which takes no time."""
        try:
            while not self._drain.has_begun():
                self._wake.clear()
                pause = await self._start_due_plans()
                if self._drain.has_begun():
                    break
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), pause)
        finally:
            if self._running:
                await asyncio.wait(self._running.values(), timeout=5)

    async def _start_due_plans(self) -> float:
        """Begin with what is due. Returns how many seconds there is nothing more to do."""
        try:
            async with self._store.autocommit() as tx:
                due, following = await tx.plans.list_due(tx.now, self._slots + len(self._running) + len(self._retry_at))
        except DomainError as error:
            self._drain.note_round("plans", None)
            log_outage(_log, "cannot look for plans", error)
            return OUTAGE_RETRY_SECONDS
        except Exception:
            self._drain.note_round("plans", None)
            # A mistake of ours is no reason to leave what is being advanced.
            _log.exception("cannot look for plans")
            return OUTAGE_RETRY_SECONDS
        self._drain.note_round("plans", bool(due))
        now = time.monotonic()
        self._retry_at = {execution_id: at for execution_id, at in self._retry_at.items() if at > now}
        fresh = [one for one in due if one.execution_id not in self._running and one.execution_id not in self._retry_at]
        for one in fresh[: self._slots - len(self._running)]:
            task = asyncio.create_task(self._advance_plan(one))
            self._running[one.execution_id] = task
        # Whatever is advanced now wakes us when it is done.
        pauses = [at - now for at in self._retry_at.values()] + ([] if following is None else [following])
        return min(PLAN_POLL_SECONDS, max(min(pauses, default=PLAN_POLL_SECONDS), BUSY_RETRY_SECONDS))

    async def _advance_plan(self, one: DuePlan) -> None:
        known, pause = self._cached_plans.pop(one.execution_id, None), 0.0
        try:
            async with self._store.tenant_transaction(one.tenant_id) as tx:
                enough = time.monotonic() + MAX_ADVANCE_SECONDS
                known = await plans.advance_plan(tx, one.execution_id, known, lambda: time.monotonic() > enough)
            if known is not None:
                self._cached_plans[one.execution_id] = known
                if len(self._cached_plans) > MAX_CACHED_PLANS:
                    self._cached_plans.popitem(last=False)
        except (PlanLocked, LostLease):
            # What was told of it is still there.
            pause = BUSY_RETRY_SECONDS
        except DomainError as error:
            log_outage(_log, "a plan waits", error, execution_id=one.execution_id)
            pause = OUTAGE_RETRY_SECONDS
        except Exception as error:
            _log.exception("a plan could not be advanced", execution_id=one.execution_id)
            pause = PLAN_POLL_SECONDS
            await self._fail_plan(one, f"The worker failed: {type(error).__name__}.")
        finally:
            if pause:
                self._retry_at[one.execution_id] = time.monotonic() + pause
            del self._running[one.execution_id]
            self._wake.set()

    async def _fail_plan(self, one: DuePlan, told: str) -> None:
        try:
            async with self._store.tenant_transaction(one.tenant_id) as tx:
                await plans.fail_plan(tx, one.execution_id, told)
        except (DomainError, LostLease, PlanLocked):
            # What was told of it is still there.
            pass
        except Exception:
            _log.exception("a plan could not be given up", execution_id=one.execution_id)
