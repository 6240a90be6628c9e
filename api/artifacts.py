"""Handle artifacts: upload, list, read, delete and export them, and read their tool calls."""

import asyncio
import functools
from collections.abc import AsyncIterator
from dataclasses import dataclass

import msgspec
from litestar import Response, Router, delete, get, post
from litestar.di import Provide
from litestar.response import Stream

from api.body_memory import BodyMemoryLimiter
from api.exports import CSV_OPTIONS, ExportFormat, RecordExport, stream_export
from api.ingest import BatchIngest
from api.operations import IDEMPOTENCY_KEY, read_body_as, require_scope, return_files, return_json
from api.queries import build_filter
from api.requests import HttpRequest, QueryTime, Store
from domain import artifacts, ports
from domain.artifacts import (
    Artifact,
    ArtifactFilter,
    ArtifactMetadata,
    ArtifactStatus,
    PackedArtifact,
    ReplayLevel,
    SemanticBucketCount,
    ToolCallNode,
    service,
)
from domain.shared.access import Caller
from domain.shared.errors import DomainError
from domain.shared.pages import Listing, Page, build_listing
from infra.compression import MAX_INLINE_BYTES, compress_in_thread, decompress_stream, prefetch_first_chunk, stream_once
from infra.tables import MEDIA_TYPES, CsvOptions

_READ_ACCESS = require_scope("read:artifacts")
MAX_ARTIFACT_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class ArtifactQuery:
    """Hold the query parameters that select artifacts."""

    environment: str | None = None
    semantic_bucket: str | None = None
    deterministic: bool | None = None
    replay_level: ReplayLevel | None = None
    model_name: str | None = None
    provider: str | None = None
    status: ArtifactStatus | None = None
    start_date: QueryTime = None
    end_date: QueryTime = None
    run_id: str | None = None
    tag: str | None = None
    error_type: str | None = None
    search: str | None = None
    execution_id: str | None = None
    tenant_id: str | None = None
    group_id: str | None = None

    def to_filter(self, caller: Caller) -> ArtifactFilter:
        """Return the filter: equal in every given parameter, from `start_date` on and before `end_date`."""
        artifact_filter = build_filter(ArtifactFilter, self, "start_date", "end_date")
        return service.normalize_filter(artifact_filter, caller.tenant_id, self.tenant_id, self.group_id)


ARTIFACT_QUERY = {"query_filter": Provide(ArtifactQuery, sync_to_thread=False)}


class ArtifactIngest(msgspec.Struct, frozen=True, kw_only=True):
    """Read uploaded artifacts within the memory for bodies, and store those of concurrent requests together."""

    body_memory: BodyMemoryLimiter
    batches: BatchIngest[PackedArtifact]
    clock: ports.Clock

    async def add_artifact(self, request: HttpRequest, caller: Caller) -> Response[ArtifactMetadata]:
        """Store the artifact of a request; answer 201 with its metadata."""
        async with self.body_memory.read_body(request) as body:
            read = functools.partial(
                artifacts.build_record, body, tenant_id=caller.tenant_id, user_id=caller.user_id, now=self.clock()
            )
            recorded = read() if len(body) < MAX_INLINE_BYTES else await asyncio.to_thread(read)
            artifact = PackedArtifact(record=recorded, packed_body=await compress_in_thread(recorded.body))
            return await self.batches.add_item(request, caller, artifact, body)


class ArtifactReader:
    """Read bodies of artifacts from the database or from object storage."""

    def __init__(self, store: ports.Store, blobs: ports.Blobs) -> None:
        self._store, self._blobs = store, blobs

    async def open_body(
        self, caller: Caller, kurral_id: str, tenant_id: str | None
    ) -> tuple[int, AsyncIterator[bytes]]:
        """Return a body's size and its chunks, decompressed while they are read. No transaction stays open.

        Errors: `not_found`, `internal_error`, `storage_unavailable`.
        """
        async with self._store.transaction(caller) as tx:
            location = await service.get_artifact_body(tx, kurral_id, tenant_id)
        try:
            stored = (
                await self._blobs.read_object(location.key)
                if location.packed_body is None
                else stream_once(location.packed_body)
            )
            return location.size, await prefetch_first_chunk(decompress_stream(stored))
        except DomainError as error:
            if error.code != "not_found":
                raise
            # If the artifact was deleted meanwhile, its row is gone too.
            async with self._store.transaction(caller) as tx:
                await service.get_artifact(tx, kurral_id, tenant_id)
            raise DomainError("internal_error", f"The body of {kurral_id!r} is missing.") from error


@post(
    "/artifacts/upload",
    opt=require_scope("write:artifacts", IDEMPOTENCY_KEY, read_body_as(Artifact)),
    request_max_body_size=MAX_ARTIFACT_BYTES,
)
async def upload_artifact(
    artifact_ingest: ArtifactIngest, request: HttpRequest, caller: Caller
) -> Response[ArtifactMetadata]:
    """Store an artifact of up to 32 MiB, bare or under `artifact_data`.

    A repeated upload of the same artifact gets the first answer again.
    """
    return await artifact_ingest.add_artifact(request, caller)


@get("/artifacts", opt=_READ_ACCESS)
async def list_artifacts(
    store: Store, caller: Caller, pagination: Page, query_filter: ArtifactQuery
) -> Listing[ArtifactMetadata]:
    """List artifacts without their bodies, newest first."""
    artifact_filter = query_filter.to_filter(caller)
    async with store.transaction(caller) as tx:
        return await tx.artifacts.list_page(artifact_filter, pagination)


@get("/artifacts/semantic-buckets/list", opt=_READ_ACCESS)
async def list_semantic_buckets(store: Store, caller: Caller, pagination: Page) -> Listing[SemanticBucketCount]:
    """List the semantic buckets with their number of artifacts, the largest first."""
    async with store.transaction(caller) as tx:
        return await service.list_semantic_buckets(tx, pagination)


@get(
    "/artifacts/export",
    opt=require_scope("read:artifacts", return_files(*MEDIA_TYPES.values())),
    dependencies=CSV_OPTIONS,
)
async def export_artifacts(
    store: Store,
    caller: Caller,
    query_filter: ArtifactQuery,
    csv_options: CsvOptions,
    format: ExportFormat = "csv",
) -> Stream:
    """Export all artifacts that match the filter, without their bodies, newest first, as a file."""
    list_after = functools.partial(service.list_artifacts_after, filters=query_filter.to_filter(caller))
    export = RecordExport(name="artifacts", row_type=ArtifactMetadata, list_after=list_after)
    return stream_export(store, caller, export, format, csv_options)


@get("/artifacts/{kurral_id:str}", opt=require_scope("read:artifacts", return_json(Artifact)))
async def get_artifact(
    artifact_reader: ArtifactReader, caller: Caller, kurral_id: str, tenant_id: str | None = None
) -> Stream:
    """Return a whole artifact, by its `kurral_id` or `id`."""
    _, chunks = await artifact_reader.open_body(caller, kurral_id, tenant_id)
    return Stream(chunks, media_type="application/json")


@get("/artifacts/{kurral_id:str}/metadata", opt=_READ_ACCESS)
async def get_artifact_metadata(
    store: Store, caller: Caller, kurral_id: str, tenant_id: str | None = None
) -> ArtifactMetadata:
    """Return an artifact without its body."""
    async with store.transaction(caller) as tx:
        return await service.get_artifact(tx, kurral_id, tenant_id)


@get("/artifacts/{kurral_id:str}/tool-calls", opt=_READ_ACCESS)
async def list_artifact_tool_calls(
    artifact_reader: ArtifactReader,
    body_memory: BodyMemoryLimiter,
    caller: Caller,
    pagination: Page,
    kurral_id: str,
    tenant_id: str | None = None,
) -> Listing[ToolCallNode]:
    """List an artifact's tool calls as trees, each call with those that it made. A page counts the outermost calls."""
    size, chunks = await artifact_reader.open_body(caller, kurral_id, tenant_id)
    async with body_memory.reserve_memory(size):
        body = b"".join([chunk async for chunk in chunks])
        calls = await asyncio.to_thread(service.parse_call_tree, body)
    page_calls = calls[pagination.offset : pagination.offset + pagination.limit]
    return build_listing(page_calls, len(calls), pagination)


@delete("/artifacts/{kurral_id:str}", opt=require_scope("write:artifacts"))
async def delete_artifact(store: Store, caller: Caller, kurral_id: str, tenant_id: str | None = None) -> None:
    """Delete an artifact, its body, and its share of the statistics."""
    async with store.transaction(caller) as tx:
        await service.delete_artifact(tx, kurral_id, tenant_id)


router = Router(
    "/",
    route_handlers=[
        upload_artifact,
        list_artifacts,
        list_semantic_buckets,
        export_artifacts,
        get_artifact,
        get_artifact_metadata,
        list_artifact_tool_calls,
        delete_artifact,
    ],
    dependencies=ARTIFACT_QUERY,
    tags=["artifacts"],
)
