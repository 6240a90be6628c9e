"""Look up hosts for runs, fairly: no tenant's slow names keep the others waiting."""

import asyncio
from typing import Final
from weakref import WeakValueDictionary

from infra.http import Outbound

# Of `infra.lookups.LOOKUP_THREADS`.
MAX_TENANT_LOOKUPS: Final = 4


class TenantLookups:
    """Look up hosts through the outbound guard, for a few connections of each tenant at a time."""

    def __init__(self, outbound: Outbound) -> None:
        self._outbound = outbound
        self._slots: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    async def find_addresses(self, tenant_id: str, host: str, port: int) -> list[str]:
        """Return the admitted addresses of a host. Errors: `OutboundRefused`, `OSError`, `ValueError`.

        A caller that is cancelled leaves its lookup to end by itself, which takes the tenant's share until then.
        """
        slots = self._slots.setdefault(tenant_id, asyncio.Semaphore(MAX_TENANT_LOOKUPS))
        await slots.acquire()
        lookup = asyncio.get_running_loop().create_task(self._outbound.resolve_allowed(host, port))
        lookup.add_done_callback(lambda done: _end_lookup(done, slots))
        return await asyncio.shield(lookup)


def _end_lookup(lookup: "asyncio.Task[list[str]]", slots: asyncio.Semaphore) -> None:
    slots.release()
    if not lookup.cancelled():
        lookup.exception()  # it may have no caller any more
