"""Fold the deltas of statistics into rollups, so that a query has few deltas to add up."""

from typing import Final

import structlog

from domain import stats
from domain.ports import Store
from domain.stats import UnfoldedDeltas

MAX_FOLDED_TENANTS: Final = 64

_log = structlog.get_logger("paddock.stats")


class StatsFolder:
    """Fold the deltas of all tenants. Any number of processes may do so at the same time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # Where the last round ended, so that each tenant gets its turn even if many tenants always have deltas.
        self._last_tenant: UnfoldedDeltas | None = None

    async def fold_deltas(self) -> bool:
        """Fold up to `stats.MAX_FOLD_DELTAS` deltas of each kind and tenant. Return whether there may be more."""
        async with self._store.system_transaction() as tx:
            queues = await tx.stats.list_unfolded(self._last_tenant, MAX_FOLDED_TENANTS)
        more = len(queues) == MAX_FOLDED_TENANTS or self._last_tenant is not None
        self._last_tenant = queues[-1] if len(queues) == MAX_FOLDED_TENANTS else None
        for queue in queues:
            async with self._store.tenant_transaction(queue.tenant_id) as tx:
                more |= await tx.stats.fold_deltas(queue.kind, stats.MAX_FOLD_DELTAS) == stats.MAX_FOLD_DELTAS
        return more
