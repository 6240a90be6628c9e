"""The queues, for admins."""

from litestar import Router, get

from api.front import Front, needs
from domain.queues import ALIVE, QueueStats, WorkerInfo
from domain.shared.access import OPERATORS, Caller
from domain.shared.pages import Listing


class Queues(Listing[QueueStats], frozen=True, kw_only=True):
    """Every lane, and the workers that were alive a moment ago. `queues` is `items`."""

    queues: list[QueueStats]
    workers: list[WorkerInfo]


@get("/queues", opt=needs("admin"))
async def get_queues(front: Front, caller: Caller) -> Queues:
    """Depth, running, failed in the last day and oldest waiting, per lane: of all tenants for the operators' admins.

    An admin of another tenant sees that tenant's rows and no workers.
    """
    async with front.store.begin(caller) as tx:
        if caller.tenant_id != OPERATORS:
            return _listed(await tx.queues.stats(tx.now, caller.tenant_id), [])
        return _listed(await tx.queues.stats(tx.now), await tx.queues.workers(tx.now - ALIVE))


def _listed(lanes: list[QueueStats], workers: list[WorkerInfo]) -> Queues:
    return Queues(
        items=lanes, queues=lanes, workers=workers, total=len(lanes), limit=len(lanes), offset=0, has_more=False
    )


router = Router("/", route_handlers=[get_queues], tags=["operations"])
