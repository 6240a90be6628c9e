"""Advance the plans of all tenants: each in one short transaction, several at once."""

import asyncio
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
from infra.polling import PollResult
from workers.lifecycle import Drain

_log = structlog.get_logger("paddock.plans")

# Seconds between two looks without a ring, and after a plan failed because of a bug.
PLAN_POLL_SECONDS: Final = 5.0
# Seconds until the next try at a plan that another process holds, and at one that met an outage.
BUSY_RETRY_SECONDS: Final = 0.05
OUTAGE_RETRY_SECONDS: Final = 1.0
# Seconds after which a plan leaves its slot to others.
MAX_ADVANCE_SECONDS: Final = 0.2
# Plans that are kept in memory between two rounds.
MAX_CACHED_PLANS: Final = 200


class PlanAdvancer:
    """Advance plans in one worker process, up to `slots` at a time."""

    def __init__(self, store: Store, slots: int, rung: asyncio.Event, drain: Drain | None = None) -> None:
        self._store, self._slots, self._wake, self._drain = store, slots, rung, drain or Drain()
        self._cached_plans: OrderedDict[str, PlanCache] = OrderedDict()
        self._running: dict[str, asyncio.Task[None]] = {}
        # When to try again plans that could not be advanced; until then they take no slot.
        self._retry_at: dict[str, float] = {}

    @property
    def busy_count(self) -> int:
        """The number of plans that are being advanced."""
        return len(self._running)

    async def run(self) -> None:
        """Advance plans until draining begins. Those that are being advanced then are finished, which takes no time."""
        try:
            await self._drain.poll("plans", self._start_due_plans, wake=self._wake)
        finally:
            if self._running:
                await asyncio.wait(self._running.values(), timeout=5)

    async def _start_due_plans(self) -> PollResult:
        """Start to advance the plans that are due, as far as slots are free."""
        count = self._slots + len(self._running) + len(self._retry_at)
        async with self._store.autocommit() as tx:
            due, next_due_seconds = await tx.plans.list_due(tx.now, count)
        now = time.monotonic()
        self._retry_at = {execution_id: at for execution_id, at in self._retry_at.items() if at > now}
        startable = [
            plan for plan in due if plan.execution_id not in self._running and plan.execution_id not in self._retry_at
        ]
        for plan in startable[: self._slots - len(self._running)]:
            self._running[plan.execution_id] = asyncio.create_task(self._advance_plan(plan))
        # The plans that are advanced now ring when they are done.
        pauses = [at - now for at in self._retry_at.values()]
        if next_due_seconds is not None:
            pauses.append(next_due_seconds)
        pause = min(PLAN_POLL_SECONDS, max(min(pauses, default=PLAN_POLL_SECONDS), BUSY_RETRY_SECONDS))
        return PollResult(did_work=bool(due), pause_seconds=pause)

    async def _advance_plan(self, plan: DuePlan) -> None:
        cached, pause = self._cached_plans.pop(plan.execution_id, None), 0.0
        try:
            async with self._store.tenant_transaction(plan.tenant_id) as tx:
                until = time.monotonic() + MAX_ADVANCE_SECONDS
                cached = await plans.advance_plan(tx, plan.execution_id, cached, lambda: time.monotonic() > until)
            if cached is not None:
                self._cached_plans[plan.execution_id] = cached
                if len(self._cached_plans) > MAX_CACHED_PLANS:
                    self._cached_plans.popitem(last=False)
        except (PlanLocked, LostLease):
            # The signals of the plan stay until it is advanced.
            pause = BUSY_RETRY_SECONDS
        except DomainError as error:
            log_outage(_log, "a plan waits", error, execution_id=plan.execution_id)
            pause = OUTAGE_RETRY_SECONDS
        except Exception as error:
            _log.exception("a plan cannot be advanced", execution_id=plan.execution_id)
            pause = PLAN_POLL_SECONDS
            await self._fail_plan(plan, f"The worker failed: {type(error).__name__}.")
        finally:
            if pause:
                self._retry_at[plan.execution_id] = time.monotonic() + pause
            del self._running[plan.execution_id]
            self._wake.set()

    async def _fail_plan(self, plan: DuePlan, message: str) -> None:
        try:
            async with self._store.tenant_transaction(plan.tenant_id) as tx:
                await plans.fail_plan(tx, plan.execution_id, message)
        except (DomainError, LostLease, PlanLocked):
            # The signals of the plan stay, and it is tried again.
            pass
        except Exception:
            _log.exception("a plan cannot be failed", execution_id=plan.execution_id)
