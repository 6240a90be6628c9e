"""The queues, for admins."""

import msgspec
from litestar import Router, get

from api.front import Front, needs
from domain.access import OPERATORS, Caller
from domain.queues import ALIVE, QueueStats, WorkerInfo


class Queues(msgspec.Struct, frozen=True, kw_only=True):
    """Every lane, and the workers that were alive a moment ago."""

    queues: list[QueueStats]
    workers: list[WorkerInfo]


@get("/queues", opt=needs("admin"))
async def get_queues(front: Front, caller: Caller) -> Queues:
    """Depth, running, failed in the last day and oldest waiting, per lane: of all tenants for the operators' admins.

    An admin of another tenant sees that tenant's rows and no workers.
    """
    async with front.store.begin(caller) as tx:
        if caller.tenant_id != OPERATORS:
            return Queues(queues=await tx.queues.stats(tx.now, caller.tenant_id), workers=[])
        return Queues(queues=await tx.queues.stats(tx.now), workers=await tx.queues.workers(tx.now - ALIVE))


router = Router("/", route_handlers=[get_queues], tags=["operations"])
