"""Schedules: what is due is started, once, however many of these processes there are.

Each due time is met in a transaction of its own, which holds the schedule's row. Whoever is killed in it has done
nothing, and another does it.
"""

from typing import Final

import structlog

from domain import schedules
from domain.ports import Store
from domain.schedules import DueSchedule
from domain.shared.errors import DATABASE_OUTAGE_CODES, DomainError
from infra.outage_log import log_outage
from workers.lifecycle import Drain

# Seconds after which a schedule that was just made, or an execution that has ended, is seen.
SCHEDULE_POLL_SECONDS: Final = 1.0
OUTAGE_RETRY_SECONDS: Final = 1.0
MAX_DUE_SCHEDULES: Final = 500

_log = structlog.get_logger("paddock.schedules")


class ScheduleStarter:
    """Starts what is due."""

    def __init__(self, store: Store, drain: Drain | None = None) -> None:
        self._store, self._drain = store, drain or Drain()

    async def run(self) -> None:
        """Do so until draining begins. Outages are waited out."""
        pause = 0.0
        while await self._drain.sleep(pause):
            try:
                pause = await self()
                self._drain.note_round("schedules", pause == 0.0)
            except DomainError as error:
                self._drain.note_round("schedules", None)
                log_outage(_log, "waits", error)
                pause = OUTAGE_RETRY_SECONDS
            except Exception:
                _log.exception("failed unexpectedly")
                pause = OUTAGE_RETRY_SECONDS

    async def __call__(self) -> float:
        """Meet one due time of each schedule that has one. Returns for how many seconds there is nothing to do."""
        async with self._store.system_transaction() as tx:
            now = tx.now
            due, soon = await tx.schedules.list_due(now, MAX_DUE_SCHEDULES)
        met = [await self._start_due(one) for one in due]
        if any(met):
            return 0.0
        return SCHEDULE_POLL_SECONDS if soon is None else min(SCHEDULE_POLL_SECONDS, (soon - now).total_seconds())

    async def _start_due(self, one: DueSchedule) -> bool:
        try:
            async with self._store.tenant_transaction(one.tenant_id) as tx:
                return await schedules.fire_schedule(tx, one.schedule_id)
        except Exception as error:
            if isinstance(error, DomainError) and error.code in DATABASE_OUTAGE_CODES:
                raise
            # A mistake of ours with one of them is not to stop the others.
            _log.exception("failed unexpectedly", schedule_id=one.schedule_id)
            return False
