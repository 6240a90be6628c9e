"""Evaluations: one, a batch, lists, figures, and their export."""

import asyncio
import functools

from litestar import Response, Router, delete, get, post
from litestar.di import Provide
from litestar.response import Stream

from api.exports import CSV_OPTIONS, Format, exported
from api.front import Front, QueryTime, needs
from api.requests import HttpRequest
from domain import evaluations
from domain.evaluations import Batch, Evaluation, EvaluationPoint, EvaluationStats, Filter
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page
from domain.shared.times import read_time_or_none
from domain.stats import Bucket, Series, series_of
from infra.tables import CsvOptions

_READ = needs("read:evaluations")
# An ordinary batch of a thousand; a thread takes longer than reading it.
READ_AT_ONCE = 1024 * 1024


def provide_filter(
    hallucinated: bool | None = None,
    mode: str | None = None,
    model_name: str | None = None,
    agent_name: str | None = None,
    session_id: str | None = None,
    execution_id: str | None = None,
    artifact_id: str | None = None,
    since: QueryTime = None,
    until: QueryTime = None,
) -> Filter:
    """Which evaluations: equal in every parameter that is given, from `since` on and before `until`."""
    return Filter(
        hallucinated=hallucinated,
        mode=mode,
        model_name=model_name,
        agent_name=agent_name,
        session_id=session_id,
        execution_id=execution_id,
        artifact_id=artifact_id,
        since=read_time_or_none("since", since),
        until=read_time_or_none("until", until, end=True),
    )


@post("/evaluations", opt=needs("write:evaluations"))
async def create_evaluation(front: Front, request: HttpRequest, caller: Caller) -> Response[Evaluation]:
    """Store an evaluation. Metrics that are left out are computed soon after (`metrics` tells)."""
    return await _stored(front, request, caller)


@post("/metrics", opt=needs("write:evaluations"))
async def upload_metrics(front: Front, request: HttpRequest, caller: Caller) -> Response[Evaluation]:
    """Store an evaluation, as AgentOps' client sends it: the same as `POST /evaluations`."""
    return await _stored(front, request, caller)


async def _stored(front: Front, request: HttpRequest, caller: Caller) -> Response[Evaluation]:
    sent = await request.body()
    data = [evaluations.read(sent)]
    made = evaluations.evaluated(caller.tenant_id, caller.user_id, data, front.clock(), batch=False)
    return await front.evaluations.add(request, caller, made, sent)


@post("/evaluations/batch", opt=needs("write:evaluations"), request_max_body_size=32 * 1024 * 1024)
async def create_batch(front: Front, request: HttpRequest, caller: Caller) -> Response[Batch]:
    """Store up to 1000 evaluations, all or none: a JSON list of them, or `{"evaluations": […]}`."""
    async with front.large_bodies.body(request) as sent:
        made = await _evaluated(front, caller, sent)
        return await front.evaluation_batches.add(request, caller, made, sent)


async def _evaluated(front: Front, caller: Caller, sent: bytes) -> list[Evaluation]:
    """A batch as it is stored, read in a thread if that takes long."""

    def read() -> list[Evaluation]:
        data = evaluations.read_batch(sent)
        return evaluations.evaluated(caller.tenant_id, caller.user_id, data, front.clock(), batch=True)

    return read() if len(sent) <= READ_AT_ONCE else await asyncio.to_thread(read)


@get("/evaluations", opt=_READ)
async def list_evaluations(front: Front, caller: Caller, part: Page, narrowed: Filter) -> Listing[Evaluation]:
    """Evaluations, newest first."""
    async with front.store.begin(caller) as tx:
        return await evaluations.list_evaluations(tx, narrowed, part)


@get("/evaluations/stats", opt=_READ)
async def get_evaluation_stats(
    front: Front, caller: Caller, narrowed: Filter, days: int | None = None
) -> EvaluationStats:
    """Figures over all evaluations, or those of the last `days` times 24 hours. Exact at any moment."""
    async with front.store.begin(caller) as tx:
        return await evaluations.stats(tx, narrowed, days)


@get("/evaluations/timeseries", opt=_READ)
async def get_evaluation_timeseries(
    front: Front, caller: Caller, narrowed: Filter, days: int = 7, bucket: Bucket = "day"
) -> Series[EvaluationPoint]:
    """Evaluations of the last `days` dates (UTC), per day or hour, oldest first."""
    async with front.store.begin(caller) as tx:
        return series_of(await evaluations.timeseries(tx, narrowed, days, bucket), days, bucket)


@get("/evaluations/export", opt=_READ, dependencies=CSV_OPTIONS)
async def export_evaluations(
    front: Front, caller: Caller, narrowed: Filter, csv_options: CsvOptions, format: Format = "csv"
) -> Stream:
    """Every evaluation that the filter lets through, newest first, as a file."""
    wanted = evaluations.narrowed(narrowed)
    after = functools.partial(evaluations.after, wanted=wanted)
    return exported(front, caller, Evaluation, after, format, "evaluations", csv_options)


@get("/evaluations/{evaluation_id:str}", opt=_READ)
async def get_evaluation(front: Front, caller: Caller, evaluation_id: str) -> Evaluation:
    """One evaluation."""
    async with front.store.begin(caller) as tx:
        return await evaluations.get(tx, evaluation_id)


@delete("/evaluations/{evaluation_id:str}", opt=needs("write:evaluations"))
async def delete_evaluation(front: Front, caller: Caller, evaluation_id: str) -> None:
    """Delete an evaluation, and what it counts in statistics."""
    async with front.store.begin(caller) as tx:
        await evaluations.delete(tx, evaluation_id)


router = Router(
    "/",
    route_handlers=[
        create_evaluation,
        upload_metrics,
        create_batch,
        list_evaluations,
        get_evaluation_stats,
        get_evaluation_timeseries,
        export_evaluations,
        get_evaluation,
        delete_evaluation,
    ],
    dependencies={"narrowed": Provide(provide_filter, sync_to_thread=False)},
    tags=["evaluations"],
)
