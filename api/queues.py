"""Report the state of the queues to admins."""

from litestar import Router, get

from api.operations import require_scope
from api.requests import Store
from domain.queues import WORKER_TIMEOUT, QueueStats, WorkerInfo
from domain.shared.access import OPERATOR_TENANT_ID, Caller
from domain.shared.pages import Listing


class QueueOverview(Listing[QueueStats], frozen=True, kw_only=True):
    """List every lane, and the workers that are alive. `queues` is the same list as `items`."""

    queues: list[QueueStats]
    workers: list[WorkerInfo]


@get("/queues", opt=require_scope("admin"))
async def get_queues(store: Store, caller: Caller) -> QueueOverview:
    """Return depth, running rows, failures of the last day and oldest waiting row per lane.

    Admins of the operators' tenant see all tenants; other admins see their own tenant's rows and no workers.
    """
    async with store.transaction(caller) as tx:
        if caller.tenant_id != OPERATOR_TENANT_ID:
            return _make_overview(await tx.queues.list_stats(tx.now, caller.tenant_id), [])
        return _make_overview(await tx.queues.list_stats(tx.now), await tx.workers.list_alive(tx.now - WORKER_TIMEOUT))


def _make_overview(lanes: list[QueueStats], workers: list[WorkerInfo]) -> QueueOverview:
    return QueueOverview(
        items=lanes, queues=lanes, workers=workers, total=len(lanes), limit=len(lanes), offset=0, has_more=False
    )


router = Router("/", route_handlers=[get_queues], tags=["operations"])
