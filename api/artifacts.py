"""Artifacts: upload, lists, bodies, tool calls, figures, and their export."""

import asyncio
import functools
from collections.abc import AsyncIterator

from litestar import Response, Router, delete, get, post
from litestar.di import Provide
from litestar.response import Stream

from api.exports import CSV_OPTIONS, Format, exported
from api.front import Front, QueryTime, needs
from api.requests import HttpRequest
from domain import artifacts
from domain.artifacts import service
from domain.artifacts.calls import CallNode
from domain.artifacts.record import Metadata, Status
from domain.artifacts.schema import Level
from domain.artifacts.service import BucketCount, Filter, Stored
from domain.shared.access import Caller
from domain.shared.errors import DomainError
from domain.shared.pages import Listing, Page, listing
from domain.shared.times import read_time_or_none
from infra.compression import LARGE, begun, once, packed, unpacked
from infra.tables import CsvOptions

_READ = needs("read:artifacts")
_WRITE = needs("write:artifacts")


def provide_filter(
    caller: Caller,
    environment: str | None = None,
    semantic_bucket: str | None = None,
    deterministic: bool | None = None,
    replay_level: Level | None = None,
    model_name: str | None = None,
    provider: str | None = None,
    status: Status | None = None,
    start_date: QueryTime = None,
    end_date: QueryTime = None,
    run_id: str | None = None,
    tag: str | None = None,
    error_type: str | None = None,
    search: str | None = None,
    execution_id: str | None = None,
    tenant_id: str | None = None,
    group_id: str | None = None,
) -> Filter:
    """Which artifacts: equal in every parameter that is given, from `start_date` on and before `end_date`."""
    wanted = Filter(
        environment=environment,
        semantic_bucket=semantic_bucket,
        deterministic=deterministic,
        replay_level=replay_level,
        model_name=model_name,
        provider=provider,
        status=status,
        start_date=read_time_or_none("start_date", start_date),
        end_date=read_time_or_none("end_date", end_date, end=True),
        run_id=run_id,
        tag=tag,
        error_type=error_type,
        search=search,
        execution_id=execution_id,
    )
    return service.narrowed(wanted, caller.tenant_id, tenant_id, group_id)


@post("/artifacts/upload", opt=_WRITE, request_max_body_size=32 * 1024 * 1024)
async def upload_artifact(front: Front, request: HttpRequest, caller: Caller) -> Response[Metadata]:
    """Store an artifact of up to 32 MiB, bare or under `artifact_data`. The same one again is answered as at first."""
    async with front.large_bodies.body(request) as sent:
        read = functools.partial(
            artifacts.recorded, sent, tenant_id=caller.tenant_id, user_id=caller.user_id, now=front.clock()
        )
        recorded = read() if len(sent) < LARGE else await asyncio.to_thread(read)
        item = Stored(recorded=recorded, packed=await packed(recorded.body))
        return await front.artifacts.add(request, caller, item, sent)


@get("/artifacts", opt=_READ)
async def list_artifacts(front: Front, caller: Caller, part: Page, narrowed: Filter) -> Listing[Metadata]:
    """Artifacts without their bodies, newest first."""
    async with front.store.begin(caller) as tx:
        return await tx.artifacts.page(narrowed, part)


@get("/artifacts/semantic-buckets/list", opt=_READ)
async def list_semantic_buckets(front: Front, caller: Caller, part: Page) -> Listing[BucketCount]:
    """The semantic buckets there are, the fullest first."""
    async with front.store.begin(caller) as tx:
        return await service.semantic_buckets(tx, part)


@get("/artifacts/export", opt=_READ, dependencies=CSV_OPTIONS)
async def export_artifacts(
    front: Front, caller: Caller, narrowed: Filter, csv_options: CsvOptions, format: Format = "csv"
) -> Stream:
    """Every artifact that the filter lets through, without its body, newest first, as a file."""
    after = functools.partial(service.after, wanted=narrowed)
    return exported(front, caller, Metadata, after, format, "artifacts", csv_options)


@get("/artifacts/{kurral_id:str}", opt=_READ)
async def get_artifact(front: Front, caller: Caller, kurral_id: str, tenant_id: str | None = None) -> Stream:
    """The whole artifact, by its `kurral_id` or `id`."""
    _, chunks = await _body(front, caller, kurral_id, tenant_id)
    return Stream(chunks, media_type="application/json")


@get("/artifacts/{kurral_id:str}/metadata", opt=_READ)
async def get_artifact_metadata(front: Front, caller: Caller, kurral_id: str, tenant_id: str | None = None) -> Metadata:
    """An artifact without its body."""
    async with front.store.begin(caller) as tx:
        return await service.get(tx, kurral_id, tenant_id)


@get("/artifacts/{kurral_id:str}/tool-calls", opt=_READ)
async def get_tool_calls(
    front: Front, caller: Caller, kurral_id: str, part: Page, tenant_id: str | None = None
) -> Listing[CallNode]:
    """An artifact's tool calls as a tree, each with those that it made; a page has so many that no other made."""
    size, chunks = await _body(front, caller, kurral_id, tenant_id)
    async with front.large_bodies.hold(size):
        whole = b"".join([chunk async for chunk in chunks])
        calls = await asyncio.to_thread(service.calls_of, whole)
    return listing(calls[part.offset : part.offset + part.limit], len(calls), part)


@delete("/artifacts/{kurral_id:str}", opt=_WRITE)
async def delete_artifact(front: Front, caller: Caller, kurral_id: str, tenant_id: str | None = None) -> None:
    """Delete an artifact, its body, and what it counts in statistics."""
    async with front.store.begin(caller) as tx:
        await service.delete(tx, kurral_id, tenant_id)


async def _body(
    front: Front, caller: Caller, kurral_id: str, tenant_id: str | None
) -> tuple[int, AsyncIterator[bytes]]:
    """A body's size and its chunks, decompressed on their way. By then all of it is here, and nothing else is held.

    Errors: `not_found`, `internal_error`, `storage_unavailable`.
    """
    async with front.store.begin(caller) as tx:
        found = await service.body(tx, kurral_id, tenant_id)
    try:
        stored = await front.blobs.get(found.key) if found.packed is None else once(found.packed)
        return found.size, await begun(unpacked(stored))
    except DomainError as error:
        if error.code != "not_found":
            raise
        # Deleted while we looked; the row tells.
        async with front.store.begin(caller) as tx:
            await service.get(tx, kurral_id, tenant_id)
        raise DomainError("internal_error", f"The body of {kurral_id!r} is missing.") from error


router = Router(
    "/",
    route_handlers=[
        upload_artifact,
        list_artifacts,
        list_semantic_buckets,
        export_artifacts,
        get_artifact,
        get_artifact_metadata,
        get_tool_calls,
        delete_artifact,
    ],
    dependencies={"narrowed": Provide(provide_filter, sync_to_thread=False)},
    tags=["artifacts"],
)
