"""Folding: deltas become rollups, so that a question never has many of them to add up."""

from typing import Final

import structlog

from domain import stats
from domain.ports import Store
from domain.stats import UnfoldedDeltas

MAX_FOLDED_TENANTS: Final = 64

_log = structlog.get_logger("paddock.stats")


class StatsFolder:
    """Folds the deltas of all tenants. Any number of these may run."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # Where the last round ended: tenants take turns, however many of them have something every time.
        self._last_tenant: UnfoldedDeltas | None = None

    async def __call__(self) -> bool:
        """One round: up to `stats.FOLD` deltas of each kind and tenant. Returns whether there may be more."""
        async with self._store.system_transaction() as tx:
            waiting = await tx.stats.list_unfolded(self._last_tenant, MAX_FOLDED_TENANTS)
        more = len(waiting) == MAX_FOLDED_TENANTS or self._last_tenant is not None
        self._last_tenant = waiting[-1] if len(waiting) == MAX_FOLDED_TENANTS else None
        for one in waiting:
            async with self._store.tenant_transaction(one.tenant_id) as tx:
                more |= await tx.stats.fold_deltas(one.kind, stats.MAX_FOLD_DELTAS) == stats.MAX_FOLD_DELTAS
        return more
