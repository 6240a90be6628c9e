"""Start the schedules that are due, each due time once, with any number of these processes.

Each due time is started in a separate transaction, which locks the schedule's row. If a process is killed during the
transaction, nothing is written, and another process starts the due time.
"""

from typing import Final

import structlog

from domain import schedules
from domain.ports import Store
from domain.schedules import DueSchedule
from domain.shared.errors import DATABASE_OUTAGE_CODES, DomainError
from infra.polling import PollResult
from workers.lifecycle import Drain

# Seconds after which a new schedule, or an execution that has ended, is noticed.
SCHEDULE_POLL_SECONDS: Final = 1.0
MAX_DUE_SCHEDULES: Final = 500

_log = structlog.get_logger("paddock.schedules")


class ScheduleStarter:
    """Start the executions of schedules that are due."""

    def __init__(self, store: Store, drain: Drain | None = None) -> None:
        self._store, self._drain = store, drain or Drain()

    async def run(self) -> None:
        """Start the schedules that are due until draining begins."""
        await self._drain.poll("schedules", self.start_due)

    async def start_due(self) -> PollResult:
        """Start one due time of each schedule that has one."""
        async with self._store.system_transaction() as tx:
            now = tx.now
            due, next_at = await tx.schedules.list_due(now, MAX_DUE_SCHEDULES)
        if any([await self._start_schedule(schedule) for schedule in due]):
            return PollResult(did_work=True, pause_seconds=0.0)
        pause = SCHEDULE_POLL_SECONDS
        if next_at is not None:
            pause = min(pause, (next_at - now).total_seconds())
        return PollResult(did_work=pause == 0.0, pause_seconds=pause)

    async def _start_schedule(self, schedule: DueSchedule) -> bool:
        try:
            async with self._store.tenant_transaction(schedule.tenant_id) as tx:
                return await schedules.fire_schedule(tx, schedule.schedule_id)
        except Exception as error:
            if isinstance(error, DomainError) and error.code in DATABASE_OUTAGE_CODES:
                raise
            # An error in one schedule must not stop the others.
            _log.exception("a schedule cannot be started", schedule_id=schedule.schedule_id)
            return False
