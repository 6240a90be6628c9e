"""Handle evaluations: store one or a batch, list and export them, and return their statistics."""

import asyncio
import functools
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from litestar import Response, Router, delete, get, post
from litestar.di import Provide
from litestar.response import Stream

from api.body_memory import BodyMemoryLimiter
from api.exports import CSV_OPTIONS, ExportFormat, RecordExport, stream_export
from api.ingest import BatchIngest
from api.operations import (
    IDEMPOTENCY_KEY,
    RequestBody,
    describe_json,
    read_body_as,
    refer_to,
    require_scope,
    return_files,
)
from api.queries import build_filter
from api.requests import HttpRequest, QueryTime, Store
from domain import evaluations, ports
from domain.evaluations import (
    MAX_EVALUATION_BATCH,
    Evaluation,
    EvaluationBatch,
    EvaluationFilter,
    EvaluationPoint,
    EvaluationStats,
    NewEvaluation,
)
from domain.shared.access import Caller
from domain.shared.pages import Listing, Page
from domain.stats import TimeBucket, TimeSeries, build_timeseries
from infra.tables import MEDIA_TYPES, CsvOptions

_READ_ACCESS = require_scope("read:evaluations")
_CREATE_ACCESS = require_scope("write:evaluations", IDEMPOTENCY_KEY, read_body_as(NewEvaluation))
# Holds an ordinary batch of a thousand. Below this size, reading is faster than handing over to a thread.
MAX_INLINE_READ_BYTES = 1024 * 1024
MAX_BATCH_BODY_BYTES = 32 * 1024 * 1024

_BATCH_LIST: Final[dict[str, Any]] = {
    "type": "array",
    "items": refer_to(NewEvaluation),
    "minItems": 1,
    "maxItems": MAX_EVALUATION_BATCH,
}
_BATCH_OBJECT: Final = {"type": "object", "required": ["evaluations"], "properties": {"evaluations": _BATCH_LIST}}
_BATCH_BODY: Final = RequestBody(
    content=describe_json({"anyOf": [_BATCH_LIST, _BATCH_OBJECT]}), body_types=(NewEvaluation,)
)


@dataclass(frozen=True, kw_only=True)
class EvaluationQuery:
    """Hold the query parameters that select evaluations."""

    hallucinated: bool | None = None
    mode: str | None = None
    model_name: str | None = None
    agent_name: str | None = None
    session_id: str | None = None
    execution_id: str | None = None
    artifact_id: str | None = None
    since: QueryTime = None
    until: QueryTime = None

    def to_filter(self) -> EvaluationFilter:
        """Return the filter: equal in every given parameter, from `since` on and before `until`."""
        return build_filter(EvaluationFilter, self)


class EvaluationIngest(msgspec.Struct, frozen=True, kw_only=True):
    """Read evaluations within the memory for bodies, and store those of concurrent requests together."""

    body_memory: BodyMemoryLimiter
    single: BatchIngest[list[Evaluation]]
    batches: BatchIngest[list[Evaluation]]
    clock: ports.Clock

    async def add_evaluation(self, request: HttpRequest, caller: Caller) -> Response[Evaluation]:
        """Store the evaluation of a request; answer 201 with it."""
        body = await request.body()
        data = [evaluations.parse_evaluation(body)]
        created = evaluations.build_evaluations(caller.tenant_id, caller.user_id, data, self.clock(), batch=False)
        return await self.single.add_item(request, caller, created, body)

    async def add_batch(self, request: HttpRequest, caller: Caller) -> Response[EvaluationBatch]:
        """Store the batch of a request, all of it or none; answer 201 with it."""
        async with self.body_memory.read_body(request) as body:
            is_large = len(body) > MAX_INLINE_READ_BYTES
            read = functools.partial(self._read_batch, caller, body)
            created = await asyncio.to_thread(read) if is_large else read()
            return await self.batches.add_item(request, caller, created, body)

    def _read_batch(self, caller: Caller, body: bytes) -> list[Evaluation]:
        data = evaluations.parse_evaluation_batch(body)
        return evaluations.build_evaluations(caller.tenant_id, caller.user_id, data, self.clock(), batch=True)


@post("/evaluations", opt=_CREATE_ACCESS)
async def create_evaluation(
    evaluation_ingest: EvaluationIngest, request: HttpRequest, caller: Caller
) -> Response[Evaluation]:
    """Store an evaluation. Missing metrics are computed soon after; `metrics` shows when they are."""
    return await evaluation_ingest.add_evaluation(request, caller)


@post("/metrics", opt=_CREATE_ACCESS)
async def upload_metrics(
    evaluation_ingest: EvaluationIngest, request: HttpRequest, caller: Caller
) -> Response[Evaluation]:
    """Store an evaluation, as AgentOps' client sends it: the same as `POST /evaluations`."""
    return await evaluation_ingest.add_evaluation(request, caller)


@post(
    "/evaluations/batch",
    opt=require_scope("write:evaluations", IDEMPOTENCY_KEY, _BATCH_BODY),
    request_max_body_size=MAX_BATCH_BODY_BYTES,
)
async def create_evaluation_batch(
    evaluation_ingest: EvaluationIngest, request: HttpRequest, caller: Caller
) -> Response[EvaluationBatch]:
    """Store up to 1000 evaluations, all or none. Send a JSON list of them, or `{"evaluations": […]}`."""
    return await evaluation_ingest.add_batch(request, caller)


@get("/evaluations", opt=_READ_ACCESS)
async def list_evaluations(
    store: Store, caller: Caller, pagination: Page, query_filter: EvaluationQuery
) -> Listing[Evaluation]:
    """List evaluations, newest first."""
    evaluation_filter = query_filter.to_filter()
    async with store.transaction(caller) as tx:
        return await evaluations.list_evaluations(tx, evaluation_filter, pagination)


@get("/evaluations/stats", opt=_READ_ACCESS)
async def get_evaluation_stats(
    store: Store, caller: Caller, query_filter: EvaluationQuery, days: int | None = None
) -> EvaluationStats:
    """Return statistics over all evaluations, or those of the last `days` times 24 hours. Exact at any moment."""
    evaluation_filter = query_filter.to_filter()
    async with store.transaction(caller) as tx:
        return await evaluations.compute_evaluation_stats(tx, evaluation_filter, days)


@get("/evaluations/timeseries", opt=_READ_ACCESS)
async def get_evaluation_timeseries(
    store: Store, caller: Caller, query_filter: EvaluationQuery, days: int = 7, bucket: TimeBucket = "day"
) -> TimeSeries[EvaluationPoint]:
    """Return statistics over the evaluations of the last `days` dates (UTC), per day or hour, oldest first."""
    evaluation_filter = query_filter.to_filter()
    async with store.transaction(caller) as tx:
        return build_timeseries(
            await evaluations.compute_evaluation_timeseries(tx, evaluation_filter, days, bucket), days, bucket
        )


@get(
    "/evaluations/export",
    opt=require_scope("read:evaluations", return_files(*MEDIA_TYPES.values())),
    dependencies=CSV_OPTIONS,
)
async def export_evaluations(
    store: Store,
    caller: Caller,
    query_filter: EvaluationQuery,
    csv_options: CsvOptions,
    format: ExportFormat = "csv",
) -> Stream:
    """Export all evaluations that match the filter, newest first, as a file."""
    list_after = functools.partial(
        evaluations.list_evaluations_after, filters=evaluations.normalize_filter(query_filter.to_filter())
    )
    export = RecordExport(name="evaluations", row_type=Evaluation, list_after=list_after)
    return stream_export(store, caller, export, format, csv_options)


@get("/evaluations/{evaluation_id:str}", opt=_READ_ACCESS)
async def get_evaluation(store: Store, caller: Caller, evaluation_id: str) -> Evaluation:
    """Return an evaluation."""
    async with store.transaction(caller) as tx:
        return await evaluations.get_evaluation(tx, evaluation_id)


@delete("/evaluations/{evaluation_id:str}", opt=require_scope("write:evaluations"))
async def delete_evaluation(store: Store, caller: Caller, evaluation_id: str) -> None:
    """Delete an evaluation and its share of the statistics."""
    async with store.transaction(caller) as tx:
        await evaluations.delete_evaluation(tx, evaluation_id)


router = Router(
    "/",
    route_handlers=[
        create_evaluation,
        upload_metrics,
        create_evaluation_batch,
        list_evaluations,
        get_evaluation_stats,
        get_evaluation_timeseries,
        export_evaluations,
        get_evaluation,
        delete_evaluation,
    ],
    dependencies={"query_filter": Provide(EvaluationQuery, sync_to_thread=False)},
    tags=["evaluations"],
)
