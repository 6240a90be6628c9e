"""Retention: records older than their tenant keeps them go, with their bodies and what they count.

They go the way that single deletions go, so statistics stay equal to the rows there are. A month whose last
record has gone is dropped as a whole.
"""

from datetime import timedelta
from typing import Final

import structlog

from domain.errors import DomainError
from domain.ports import Store
from domain.stats import KINDS, Kind
from infra.outage_log import tell_outage
from workers.drain import Drain

BATCH: Final = 500
GRACE: Final = timedelta(days=1)
EVERY: Final = timedelta(hours=1)
# A new installation has enough to do.
FIRST: Final = timedelta(minutes=1)
AWAY: Final = timedelta(seconds=5)
# Months made ahead of time: an installation may be asleep for long, or its upkeep.
AHEAD: Final = 2

_log = structlog.get_logger("paddock.retention")


class Retention:
    """Makes partitions ahead of time, deletes what is too old, and drops partitions that are empty."""

    def __init__(self, store: Store, drain: Drain | None = None) -> None:
        self._store, self._drain = store, drain or Drain()

    async def run(self) -> None:
        """Do all of it every hour until draining begins. Outages are waited out."""
        pause = FIRST
        while not self._drain.has_begun():
            try:
                # At once: records of a month without a partition cannot be taken.
                await self.make_partitions()
                if await self._drain.sleep(pause.total_seconds()):
                    await self()
                pause = EVERY
            except DomainError as error:
                tell_outage(_log, "waits", error)
                pause = AWAY
                await self._drain.sleep(AWAY.total_seconds())

    async def make_partitions(self) -> int:
        """Returns how many were missing."""
        async with self._store.begin_unbound() as tx:
            made = await tx.queues.make_partitions(tx.now, AHEAD)
        if made:
            _log.info("made partitions", partitions=made)
        return made

    async def __call__(self) -> dict[str, int]:
        """Returns how much of each kind has gone."""
        async with self._store.begin_unbound() as tx:
            retained = await tx.queues.retained()
        gone = dict.fromkeys((*KINDS, "partitions"), 0)
        for tenant_id, days in retained:
            for kind in KINDS:
                while deleted := await self._delete(tenant_id, kind, timedelta(days=days)):
                    gone[kind] += deleted
                    if deleted < BATCH:
                        break
        for kind in KINDS:
            while dropped := await self._drop_empty(kind):
                gone["partitions"] += dropped
        if any(gone.values()):
            _log.info("too old", **gone)
        return gone

    async def _drop_empty(self, kind: Kind) -> int:
        # Each in a transaction of its own, as it stops all others of the table: with both tables locked, one that uses
        # both would deadlock with it. Ids of yesterday may still be on their way.
        async with self._store.begin_unbound() as tx:
            return await tx.queues.drop_empty_partition(kind, tx.now - GRACE)

    async def _delete(self, tenant_id: str, kind: Kind, age: timedelta) -> int:
        async with self._store.begin_for(tenant_id) as tx:
            before = tx.now - age
            if kind == "evaluations":
                return await tx.evaluations.delete_many(await tx.evaluations.older(before, BATCH))
            if kind == "costs":
                return await tx.costs.delete_many(await tx.costs.older(before, BATCH))
            return await tx.artifacts.delete(await tx.artifacts.older(before, BATCH), tx.now)
