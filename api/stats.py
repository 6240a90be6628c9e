"""Statistics over artifacts."""

from litestar import Router, get
from litestar.di import Provide

from api.artifacts import provide_filter
from api.front import Front, needs
from domain.artifacts import service
from domain.artifacts.service import ArtifactPoint, ArtifactStats, Filter
from domain.shared.access import Caller
from domain.stats import Bucket, Series, series_of

_READ = needs("read:stats")


@get("/stats", opt=_READ)
async def get_stats(front: Front, caller: Caller, narrowed: Filter) -> ArtifactStats:
    """Figures over artifacts. Exact at any moment."""
    async with front.store.begin(caller) as tx:
        return await service.stats(tx, narrowed)


@get("/stats/timeseries", opt=_READ)
async def get_timeseries(
    front: Front, caller: Caller, narrowed: Filter, days: int = 7, bucket: Bucket = "day"
) -> Series[ArtifactPoint]:
    """Artifacts of the last `days` dates (UTC), per day or hour, oldest first."""
    async with front.store.begin(caller) as tx:
        return series_of(await service.timeseries(tx, narrowed, days, bucket), days, bucket)


router = Router(
    "/",
    route_handlers=[get_stats, get_timeseries],
    dependencies={"narrowed": Provide(provide_filter, sync_to_thread=False)},
    tags=["stats"],
)
