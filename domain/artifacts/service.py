"""Store, read, list, count and delete artifacts, uploaded ones and those of executions.

A body waits in Postgres, compressed, until a worker has put it into object storage; it is readable all the while.
"""

from datetime import datetime
from typing import Final, Protocol

import msgspec

from domain.agents import Agent
from domain.artifacts.calls import ToolCallNode, build_call_tree
from domain.artifacts.record import ArtifactMetadata, ArtifactRecord, ArtifactStatus
from domain.artifacts.schema import ArtifactToolCall, ReplayLevel
from domain.executions import Execution, RunStep
from domain.ports import Tx
from domain.shared.errors import Conflict, DomainError, InvalidField, NotFound
from domain.shared.jobs import Job
from domain.shared.pages import Listing, Page, build_listing
from domain.shared.search_text import build_search_query
from domain.stats import (
    NANOS_PER_UNIT,
    StatsQuery,
    TimeBucket,
    list_bucket_starts,
    parse_time_range,
    read_timeseries,
    refuse_nul_characters,
    sort_counts,
)

BYTES_PER_GIGABYTE: Final = 1_000_000_000


class ArtifactFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Select artifacts of a list, from `start_date` on and before `end_date`. `search` looks through errors."""

    environment: str | None = None
    semantic_bucket: str | None = None
    deterministic: bool | None = None
    replay_level: ReplayLevel | None = None
    model_name: str | None = None
    provider: str | None = None
    status: ArtifactStatus | None = None
    start_date: datetime | None = None
    end_date: datetime | None = None
    run_id: str | None = None
    tag: str | None = None
    error_type: str | None = None
    search: str | None = None
    execution_id: str | None = None
    labelled_tenant: str | None = None


class PackedArtifact(msgspec.Struct, frozen=True, kw_only=True):
    """Hold an artifact to store, with its body compressed."""

    record: ArtifactRecord
    packed_body: bytes


class ArtifactBody(msgspec.Struct, frozen=True, kw_only=True):
    """Locate an artifact's compressed body: in `packed_body` while it waits, else in object storage under `key`."""

    key: str
    size: int
    packed_body: bytes | None


class PendingBody(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a body on its way to object storage. `id` is the artifact's."""

    id: str
    key: str
    packed_body: bytes


class ExecutionTokens(msgspec.Struct, frozen=True, kw_only=True):
    """Sum the tokens of an execution's calls of models, with the provider of the last one."""

    provider: str
    prompt: int
    completion: int
    cached: int
    reasoning: int


class UnrecordedExecution(msgspec.Struct, frozen=True, kw_only=True):
    """Hold an ended execution without an artifact, with the parts that only its log and its agent know."""

    execution: Execution
    agent_name: str | None
    stack: str | None
    spec: Agent | None = None
    tokens: ExecutionTokens | None = None
    calls: list[RunStep] = []


class SemanticBucketCount(msgspec.Struct, frozen=True, kw_only=True):
    """Count the artifacts in a semantic bucket."""

    semantic_bucket: str
    count: int


class ArtifactStats(msgspec.Struct, kw_only=True):
    """Summarize artifacts. Rates from 0 to 100, durations in milliseconds; quantiles are within 1 %.

    `total_size_gb` is of the bodies before compression, in units of 10^9 bytes. An artifact counts in each of its
    semantic buckets.
    """

    total_artifacts: int
    total_size_gb: float
    by_environment: dict[str, int]
    by_replay_level: dict[str, int]
    by_semantic_bucket: dict[str, int]
    by_model: dict[str, int]
    by_provider: dict[str, int]
    by_status: dict[str, int]
    total_cost_usd: float
    total_tokens: int
    avg_duration_ms: float | None
    p50: float | None
    p95: float | None
    p99: float | None
    error_rate: float
    deterministic_rate: float


class ArtifactPoint(msgspec.Struct, kw_only=True):
    """Summarize an hour or a day (UTC) of artifacts."""

    date: datetime
    count: int
    total_cost: float
    total_tokens: int
    errors: int
    deterministic: int


class Artifacts(Protocol):
    """Store the artifacts of the bound tenant. Every change writes its statistics deltas in the same statement."""

    async def add(self, stored: list[PackedArtifact]) -> set[str]:
        """Store those whose `kurral_id` is new, with their bodies. Returns the ids (ours) of these."""
        ...

    async def find(self, kurral_ids: list[str]) -> dict[str, tuple[ArtifactMetadata, bytes]]:
        """Return artifacts and their fingerprints, by `kurral_id`."""
        ...

    async def get(self, reference: str) -> ArtifactMetadata | None: ...
    async def get_body(self, metadata: ArtifactMetadata) -> ArtifactBody: ...
    async def list_page(self, filters: ArtifactFilter, page: Page) -> Listing[ArtifactMetadata]: ...
    async def list_after(
        self, filters: ArtifactFilter, place: tuple[datetime, str] | None, limit: int
    ) -> list[ArtifactMetadata]: ...
    async def delete(self, artifact_ids: list[str], now: datetime) -> int:
        """Delete rows, waiting bodies and their statistics; marks their objects for deletion."""
        ...

    async def list_older(self, before: datetime, limit: int) -> list[str]:
        """List the oldest artifacts (our ids) from before a time."""
        ...

    async def claim_pending_bodies(
        self, limit: int, max_bytes: int, now: datetime, until: datetime
    ) -> list[PendingBody]: ...
    async def mark_bodies_stored(self, ids: list[str]) -> set[str]:
        """Mark bodies as stored in object storage. Returns those whose artifacts were deleted meanwhile."""
        ...

    async def release_bodies(self, ids: list[str]) -> None: ...
    async def list_deletable_objects(self, now: datetime, limit: int) -> list[str]: ...
    async def mark_objects_deleted(self, keys: list[str], now: datetime) -> None: ...
    async def list_unrecorded(self, limit: int) -> list[tuple[str, str]]:
        """List ended executions without an artifact over all tenants, as (tenant, execution)."""
        ...

    async def load_unrecorded(self, executions: list[str]) -> list[UnrecordedExecution]: ...
    async def mark_recorded(self, executions: list[str]) -> set[str]:
        """Mark executions as recorded. Return those that still exist."""
        ...


async def store_artifacts(tx: Tx, sent: list[PackedArtifact]) -> list[ArtifactMetadata | DomainError]:
    """Store artifacts. A repeated upload returns the first one's metadata; a different one of its id is a conflict."""
    new_ids = await tx.artifacts.add(sent)
    if new_ids:
        tx.ring_job(Job(lane="record", row_id=sent[0].record.metadata.id, tenant_id="", attempt=0))
    repeated = [artifact.record.metadata for artifact in sent if artifact.record.metadata.id not in new_ids]
    stored = await tx.artifacts.find([metadata.kurral_id for metadata in repeated]) if repeated else {}
    return [_answer_upload(artifact, new_ids, stored) for artifact in sent]


def _answer_upload(
    sent: PackedArtifact, new_ids: set[str], stored: dict[str, tuple[ArtifactMetadata, bytes]]
) -> ArtifactMetadata | DomainError:
    metadata = sent.record.metadata
    if metadata.id in new_ids:
        return metadata
    if metadata.kurral_id not in stored:
        # It was deleted between the two statements.
        return Conflict(f"An artifact {metadata.kurral_id!r} was just deleted; send this one again.")
    first, fingerprint = stored[metadata.kurral_id]
    if fingerprint != sent.record.fingerprint:
        return Conflict(f"Another artifact has the kurral_id {metadata.kurral_id!r}.")
    return first


async def get_artifact(tx: Tx, reference: str, labelled: str | None = None) -> ArtifactMetadata:
    """Return an artifact by its `kurral_id`, or by our id. `labelled` must be its tenant, or the one its body names.

    Errors: `not_found`.
    """
    metadata = await tx.artifacts.get(reference)
    is_foreign = metadata and labelled is not None and labelled not in (metadata.tenant_id, metadata.labelled_tenant)
    if metadata is None or is_foreign:
        raise NotFound("artifact", reference)
    return metadata


async def get_artifact_body(tx: Tx, reference: str, labelled: str | None = None) -> ArtifactBody:
    """Locate an artifact's body. Errors: `not_found`."""
    return await tx.artifacts.get_body(await get_artifact(tx, reference, labelled))


def normalize_filter(filters: ArtifactFilter, tenant_id: str, *tenants: str | None) -> ArtifactFilter:
    """Return the filter with its times in UTC. A tenant is the caller's own, or one that bodies name.

    Errors: `invalid_field`.
    """
    since, until = parse_time_range(filters.start_date, filters.end_date, ("start_date", "end_date"))
    refuse_nul_characters(filters)
    if any(tenant is not None and "\0" in tenant for tenant in tenants):
        raise InvalidField("tenant_id", "must not hold U+0000.")
    tenant_ids = {tenant for tenant in tenants if tenant is not None}
    if len(tenant_ids) > 1:
        raise InvalidField("group_id", "means tenant_id; send one of them.")
    others = sorted(tenant_ids - {tenant_id})
    if filters.search is not None:
        filters = msgspec.structs.replace(filters, search=build_search_query(filters.search))
    return msgspec.structs.replace(
        filters,
        start_date=since,
        end_date=until,
        labelled_tenant=others[0] if others else filters.labelled_tenant,
    )


def query_from_filter(filters: ArtifactFilter) -> StatsQuery:
    """Return a filter as a query of statistics."""
    names = [name for name in ArtifactFilter.__struct_fields__ if name not in ("start_date", "end_date")]
    by_name = {name: getattr(filters, name) for name in names}
    return StatsQuery(kind="artifacts", filters=by_name, since=filters.start_date, until=filters.end_date)


async def list_artifacts_after(
    tx: Tx, last: ArtifactMetadata | None, limit: int, *, filters: ArtifactFilter
) -> list[ArtifactMetadata]:
    """List the next artifacts after `last`, newest first."""
    return await tx.artifacts.list_after(filters, None if last is None else (last.created_at, last.id), limit)


async def delete_artifact(tx: Tx, reference: str, labelled: str | None = None) -> None:
    """Delete an artifact, its body and its share of the statistics. Errors: `not_found`."""
    metadata = await get_artifact(tx, reference, labelled)
    if not await tx.artifacts.delete([metadata.id], tx.now):
        raise NotFound("artifact", reference)
    tx.ring_job(Job(lane="record", row_id=metadata.id, tenant_id="", attempt=0))


async def list_semantic_buckets(tx: Tx, page: Page) -> Listing[SemanticBucketCount]:
    """List the semantic buckets, the largest first."""
    counts = _count_buckets((await tx.stats.sum_groups(query_from_filter(ArtifactFilter()))).sum_by("semantic_bucket"))
    rows = [SemanticBucketCount(semantic_bucket=name, count=count) for name, count in counts.items()]
    return build_listing(rows[page.offset : page.offset + page.limit + 1], len(rows), page)


async def compute_artifact_stats(tx: Tx, filters: ArtifactFilter) -> ArtifactStats:
    """Compute statistics of artifacts."""
    sums = await tx.stats.sum_groups(query_from_filter(filters))
    total, timed = sums.sum_measure("count"), sums.sum_measure("duration_ms_known")
    return ArtifactStats(
        total_artifacts=total,
        total_size_gb=sums.sum_measure("size_bytes") / BYTES_PER_GIGABYTE,
        by_environment=sort_counts(sums.sum_by("environment")),
        by_replay_level=sort_counts(sums.sum_by("replay_level")),
        by_semantic_bucket=_count_buckets(sums.sum_by("semantic_bucket")),
        by_model=sort_counts(sums.sum_by("model_name")),
        by_provider=sort_counts(sums.sum_by("provider")),
        by_status=sort_counts(sums.sum_by("status")),
        total_cost_usd=sums.sum_measure("cost_usd") / NANOS_PER_UNIT,
        total_tokens=sums.sum_measure("tokens"),
        # Stored in microseconds.
        avg_duration_ms=sums.sum_measure("duration_ms") / (1000 * timed) if timed else None,
        p50=sums.quantiles[0],
        p95=sums.quantiles[1],
        p99=sums.quantiles[2],
        error_rate=100 * sums.sum_measure("errors") / total if total else 0.0,
        deterministic_rate=100 * sums.sum_measure("deterministic") / total if total else 0.0,
    )


def _count_buckets(by_set: dict[str, int]) -> dict[str, int]:
    """Count by semantic bucket, from counts by the JSON list of an artifact's buckets."""
    counts: dict[str, int] = {}
    for names, count in by_set.items():
        for name in msgspec.json.decode(names, type=list[str]):
            counts[name] = counts.get(name, 0) + count
    return sort_counts(counts)


async def compute_artifact_timeseries(
    tx: Tx, filters: ArtifactFilter, days: int, bucket: TimeBucket
) -> list[ArtifactPoint]:
    """Count artifacts per hour or day, oldest first, with empty ones. Errors: `invalid_field`."""
    points = await read_timeseries(tx, query_from_filter(filters), bucket, list_bucket_starts(tx.now, days, bucket))
    return [
        ArtifactPoint(
            date=point["begin"],
            count=point.get("count", 0),
            total_cost=point.get("cost_usd", 0) / NANOS_PER_UNIT,
            total_tokens=point.get("tokens", 0),
            errors=point.get("errors", 0),
            deterministic=point.get("deterministic", 0),
        )
        for point in points
    ]


def parse_call_tree(body: bytes) -> list[ToolCallNode]:
    """Parse the tool calls of a body as a tree."""
    return build_call_tree(_CALLS_DECODER.decode(body).tool_calls)


class _ToolCallsOnly(msgspec.Struct):
    tool_calls: list[ArtifactToolCall] = []


_CALLS_DECODER: Final = msgspec.json.Decoder(_ToolCallsOnly)
