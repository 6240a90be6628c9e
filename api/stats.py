"""Handle statistics over artifacts."""

from litestar import Router, get

from api.artifacts import ARTIFACT_QUERY, ArtifactQuery
from api.operations import require_scope
from api.requests import Store
from domain.artifacts import ArtifactPoint, ArtifactStats, service
from domain.shared.access import Caller
from domain.stats import TimeBucket, TimeSeries, build_timeseries

_READ_ACCESS = require_scope("read:stats")


@get("/stats", opt=_READ_ACCESS)
async def get_artifact_stats(store: Store, caller: Caller, query_filter: ArtifactQuery) -> ArtifactStats:
    """Return statistics over artifacts. They are exact at any moment."""
    artifact_filter = query_filter.to_filter(caller)
    async with store.transaction(caller) as tx:
        return await service.compute_artifact_stats(tx, artifact_filter)


@get("/stats/timeseries", opt=_READ_ACCESS)
async def get_artifact_timeseries(
    store: Store, caller: Caller, query_filter: ArtifactQuery, days: int = 7, bucket: TimeBucket = "day"
) -> TimeSeries[ArtifactPoint]:
    """Return statistics over the artifacts of the last `days` dates (UTC), per day or hour, oldest first."""
    artifact_filter = query_filter.to_filter(caller)
    async with store.transaction(caller) as tx:
        return build_timeseries(
            await service.compute_artifact_timeseries(tx, artifact_filter, days, bucket), days, bucket
        )


router = Router(
    "/",
    route_handlers=[get_artifact_stats, get_artifact_timeseries],
    dependencies=ARTIFACT_QUERY,
    tags=["stats"],
)
