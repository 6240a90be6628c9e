"""Artifacts as they are kept: stored, read, listed, counted, deleted; and those that executions write by themselves.

A body waits in Postgres, compressed, until a worker has put it into object storage; it is readable all the while.
"""

from datetime import datetime
from typing import Final, Protocol

import msgspec

from domain.agents import Agent
from domain.artifacts.calls import ToolCallNode, build_call_tree
from domain.artifacts.record import ArtifactMetadata, ArtifactRecord, ArtifactStatus
from domain.artifacts.schema import ArtifactToolCall, ReplayLevel
from domain.artifacts.search_text import build_search_query
from domain.executions import Execution, RunStep
from domain.ports import Tx
from domain.shared.errors import Conflict, DomainError, InvalidField, NotFound
from domain.shared.jobs import Job
from domain.shared.pages import Listing, Page, build_listing
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
    """What artifacts are narrowed to, from `start_date` on and before `end_date`. `search` looks through errors."""

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
    """An artifact to be stored, with its body compressed."""

    record: ArtifactRecord
    packed_body: bytes


class ArtifactBody(msgspec.Struct, frozen=True, kw_only=True):
    """Where an artifact's body is: in `packed` while it waits, else in object storage under `key`. Compressed."""

    key: str
    size: int
    packed_body: bytes | None


class PendingBody(msgspec.Struct, frozen=True, kw_only=True):
    """A body on its way to object storage. `id` is the artifact's."""

    id: str
    key: str
    packed_body: bytes


class ExecutionTokens(msgspec.Struct, frozen=True, kw_only=True):
    """What an execution's calls of models came to: tokens, and the provider of the last one."""

    provider: str
    prompt: int
    completion: int
    cached: int
    reasoning: int


class UnrecordedExecution(msgspec.Struct, frozen=True, kw_only=True):
    """An ended execution that has not written its artifact, with what only its log and its agent know."""

    execution: Execution
    agent_name: str | None
    stack: str | None
    spec: Agent | None = None
    tokens: ExecutionTokens | None = None
    calls: list[RunStep] = []


class SemanticBucketCount(msgspec.Struct, frozen=True, kw_only=True):
    """A semantic bucket, and how many artifacts are in it."""

    semantic_bucket: str
    count: int


class ArtifactStats(msgspec.Struct, kw_only=True):
    """Figures over artifacts. Rates from 0 to 100, durations in milliseconds; quantiles are within 1 %.

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
    """An hour or a day (UTC) of artifacts."""

    date: datetime
    count: int
    total_cost: float
    total_tokens: int
    errors: int
    deterministic: int


class Artifacts(Protocol):
    """The artifacts of the bound tenant. Whatever changes them writes their deltas in the same statement."""

    async def add(self, stored: list[PackedArtifact]) -> set[str]:
        """Store those whose `kurral_id` is new, with their bodies. Returns the ids (ours) of these."""
        ...

    async def find(self, kurral_ids: list[str]) -> dict[str, tuple[ArtifactMetadata, bytes]]:
        """Artifacts and their fingerprints, by `kurral_id`."""
        ...

    async def get(self, reference: str) -> ArtifactMetadata | None: ...
    async def get_body(self, metadata: ArtifactMetadata) -> ArtifactBody: ...
    async def list_page(self, narrowed: ArtifactFilter, page: Page) -> Listing[ArtifactMetadata]: ...
    async def list_after(
        self, narrowed: ArtifactFilter, place: tuple[datetime, str] | None, limit: int
    ) -> list[ArtifactMetadata]: ...
    async def delete(self, artifact_ids: list[str], now: datetime) -> int:
        """Delete rows, waiting bodies and what they count; their objects are noted to be deleted."""
        ...

    async def list_older(self, before: datetime, limit: int) -> list[str]:
        """The oldest artifacts (our ids) from before a time."""
        ...

    async def claim_pending_bodies(
        self, most: int, most_bytes: int, now: datetime, until: datetime
    ) -> list[PendingBody]: ...
    async def mark_bodies_stored(self, ids: list[str]) -> set[str]:
        """These bodies are in object storage now. Returns those whose artifacts were deleted meanwhile."""
        ...

    async def release_bodies(self, ids: list[str]) -> None: ...
    async def list_deletable_objects(self, now: datetime, limit: int) -> list[str]: ...
    async def mark_objects_deleted(self, keys: list[str], now: datetime) -> None: ...
    async def list_unrecorded(self, limit: int) -> list[tuple[str, str]]:
        """Ended executions without an artifact over all tenants, as (tenant, execution)."""
        ...

    async def load_unrecorded(self, executions: list[str]) -> list[UnrecordedExecution]: ...
    async def mark_recorded(self, executions: list[str]) -> None: ...


async def store_artifacts(tx: Tx, sent: list[PackedArtifact]) -> list[ArtifactMetadata | DomainError]:
    """Store artifacts. One that is there already is answered as the first time if it is the same, else refused."""
    fresh = await tx.artifacts.add(sent)
    if fresh:
        tx.ring_job(Job(lane="record", row_id=sent[0].record.metadata.id, tenant_id="", attempt=0))
    others = [one.record.metadata.kurral_id for one in sent if one.record.metadata.id not in fresh]
    known = await tx.artifacts.find(others) if others else {}
    return [_answer(one, fresh, known) for one in sent]


def _answer(
    one: PackedArtifact, fresh: set[str], known: dict[str, tuple[ArtifactMetadata, bytes]]
) -> ArtifactMetadata | DomainError:
    mine = one.record.metadata
    if mine.id in fresh:
        return mine
    if mine.kurral_id not in known:
        # It was deleted between two statements.
        return Conflict(f"An artifact {mine.kurral_id!r} was just deleted; send this one again.")
    first, fingerprint = known[mine.kurral_id]
    if fingerprint != one.record.fingerprint:
        return Conflict(f"There is another artifact with the kurral_id {mine.kurral_id!r}.")
    return first


async def get_artifact(tx: Tx, reference: str, labelled: str | None = None) -> ArtifactMetadata:
    """An artifact by its `kurral_id`, or by our id. `labelled` has to be its tenant, or what its body calls it.

    Errors: `not_found`.
    """
    found = await tx.artifacts.get(reference)
    if found is None or (labelled is not None and labelled not in (found.tenant_id, found.labelled_tenant)):
        raise NotFound("artifact", reference)
    return found


async def get_artifact_body(tx: Tx, reference: str, labelled: str | None = None) -> ArtifactBody:
    """Where an artifact's body is. Errors: `not_found`."""
    return await tx.artifacts.get_body(await get_artifact(tx, reference, labelled))


def normalize_filter(wanted: ArtifactFilter, tenant_id: str, *tenants: str | None) -> ArtifactFilter:
    """The filter with its times in UTC. A tenant is one's own, or what bodies call themselves.

    Errors: `invalid_field`.
    """
    since, until = parse_time_range(wanted.start_date, wanted.end_date, ("start_date", "end_date"))
    refuse_nul_characters(wanted)
    if any(tenant is not None and "\0" in tenant for tenant in tenants):
        raise InvalidField("tenant_id", "must not hold U+0000.")
    named = {tenant for tenant in tenants if tenant is not None}
    if len(named) > 1:
        raise InvalidField("group_id", "means tenant_id, and the two differ.")
    others = sorted(named - {tenant_id})
    if wanted.search is not None:
        wanted = msgspec.structs.replace(wanted, search=build_search_query(wanted.search))
    return msgspec.structs.replace(
        wanted,
        start_date=since,
        end_date=until,
        labelled_tenant=others[0] if others else wanted.labelled_tenant,
    )


def query_from_filter(wanted: ArtifactFilter) -> StatsQuery:
    """The filter as what statistics are asked."""
    names = [name for name in ArtifactFilter.__struct_fields__ if name not in ("start_date", "end_date")]
    by_name = {name: getattr(wanted, name) for name in names}
    return StatsQuery(kind="artifacts", filters=by_name, since=wanted.start_date, until=wanted.end_date)


async def list_artifacts_after(
    tx: Tx, last: ArtifactMetadata | None, limit: int, *, filters: ArtifactFilter
) -> list[ArtifactMetadata]:
    """The next artifacts after `last`, newest first."""
    return await tx.artifacts.list_after(filters, None if last is None else (last.created_at, last.id), limit)


async def delete_artifact(tx: Tx, reference: str, labelled: str | None = None) -> None:
    """Delete an artifact, its body, and what it counts in statistics. Errors: `not_found`."""
    found = await get_artifact(tx, reference, labelled)
    if not await tx.artifacts.delete([found.id], tx.now):
        raise NotFound("artifact", reference)
    tx.ring_job(Job(lane="record", row_id=found.id, tenant_id="", attempt=0))


async def list_semantic_buckets(tx: Tx, page: Page) -> Listing[SemanticBucketCount]:
    """The semantic buckets there are, the fullest first."""
    counts = _buckets((await tx.stats.sum_groups(query_from_filter(ArtifactFilter()))).sum_by("semantic_bucket"))
    rows = [SemanticBucketCount(semantic_bucket=name, count=count) for name, count in counts.items()]
    return build_listing(rows[page.offset : page.offset + page.limit + 1], len(rows), page)


async def compute_artifact_stats(tx: Tx, wanted: ArtifactFilter) -> ArtifactStats:
    """Figures over artifacts."""
    found = await tx.stats.sum_groups(query_from_filter(wanted))
    total, known = found.sum_measure("count"), found.sum_measure("duration_ms_known")
    return ArtifactStats(
        total_artifacts=total,
        total_size_gb=found.sum_measure("size_bytes") / BYTES_PER_GIGABYTE,
        by_environment=sort_counts(found.sum_by("environment")),
        by_replay_level=sort_counts(found.sum_by("replay_level")),
        by_semantic_bucket=_buckets(found.sum_by("semantic_bucket")),
        by_model=sort_counts(found.sum_by("model_name")),
        by_provider=sort_counts(found.sum_by("provider")),
        by_status=sort_counts(found.sum_by("status")),
        total_cost_usd=found.sum_measure("cost_usd") / NANOS_PER_UNIT,
        total_tokens=found.sum_measure("tokens"),
        # Kept in microseconds.
        avg_duration_ms=found.sum_measure("duration_ms") / (1000 * known) if known else None,
        p50=found.quantiles[0],
        p95=found.quantiles[1],
        p99=found.quantiles[2],
        error_rate=100 * found.sum_measure("errors") / total if total else 0.0,
        deterministic_rate=100 * found.sum_measure("deterministic") / total if total else 0.0,
    )


def _buckets(by_set: dict[str, int]) -> dict[str, int]:
    """Counts by semantic bucket, from counts by the JSON list of an artifact's buckets."""
    counts: dict[str, int] = {}
    for names, count in by_set.items():
        for name in msgspec.json.decode(names, type=list[str]):
            counts[name] = counts.get(name, 0) + count
    return sort_counts(counts)


async def compute_artifact_timeseries(
    tx: Tx, wanted: ArtifactFilter, days: int, bucket: TimeBucket
) -> list[ArtifactPoint]:
    """Artifacts per hour or day, oldest first, empty ones too. Errors: `invalid_field`."""
    points = await read_timeseries(tx, query_from_filter(wanted), bucket, list_bucket_starts(tx.now, days, bucket))
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


def parse_call_tree(whole: bytes) -> list[ToolCallNode]:
    """The tool calls of a body as a tree."""
    return build_call_tree(_CALLS.decode(whole).tool_calls)


class _Calls(msgspec.Struct):
    tool_calls: list[ArtifactToolCall] = []


_CALLS: Final = msgspec.json.Decoder(_Calls)
