"""Store artifacts in Postgres. Every change writes its deltas in the same statement."""

from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
from sqlalchemy import BigInteger, Integer, LargeBinary, Text
from sqlalchemy.dialects.postgresql import ARRAY, TSVECTOR
from sqlalchemy.orm import Mapped, mapped_column

from domain.agents import Agent
from domain.artifacts import (
    ArtifactBody,
    ArtifactFilter,
    ArtifactMetadata,
    ExecutionTokens,
    PackedArtifact,
    PendingBody,
    UnrecordedExecution,
    query_from_filter,
)
from domain.executions import Execution, RunStep
from domain.shared import ids
from domain.shared.pages import Listing, Page
from infra.postgres.bulk import BulkColumns
from infra.postgres.db import Base, Id, RowMapper, create_timestamp
from infra.postgres.execution_rows import ExecutionRow
from infra.postgres.objects import format_artifact_key
from infra.postgres.record_measures import ARTIFACT_MEASURES
from infra.postgres.records import RecordRepository
from infra.postgres.steps import StepRow

# A deleted artifact's object is deleted once more when a process that may have been writing it has given up.
SECOND_DELETION_DELAY: Final = timedelta(minutes=2)


class ArtifactRow(Base):
    """Map a row of `artifacts`: what is kept of an artifact besides its body.

    Partitioned by `id`, that is by the month of its receipt.
    """

    __tablename__ = "artifacts"
    id: Mapped[str] = mapped_column(Id("art"), primary_key=True)
    kurral_id: Mapped[str] = mapped_column(Text)
    run_id: Mapped[str] = mapped_column(Text)
    tenant_id: Mapped[str] = mapped_column(Text)
    execution_id: Mapped[str | None] = mapped_column(Id("exec"))
    user_id: Mapped[str] = mapped_column(Id("user"))
    created_at: Mapped[datetime] = mapped_column(create_timestamp())
    created_by: Mapped[str | None] = mapped_column(Text)
    received_at: Mapped[datetime] = mapped_column(create_timestamp())
    schema_version: Mapped[str] = mapped_column(Text)
    environment: Mapped[str] = mapped_column(Text)
    semantic_buckets: Mapped[list[str]] = mapped_column(ARRAY(Text))
    deterministic: Mapped[bool]
    replay_level: Mapped[str] = mapped_column(Text)
    determinism_score: Mapped[float]
    status: Mapped[str] = mapped_column(Text)
    error_type: Mapped[str | None] = mapped_column(Text)
    error_message: Mapped[str | None] = mapped_column(Text)
    model_name: Mapped[str | None] = mapped_column(Text)
    model_version: Mapped[str | None] = mapped_column(Text)
    provider: Mapped[str | None] = mapped_column(Text)
    duration_ms: Mapped[float | None]
    cost_usd: Mapped[float | None]
    prompt_tokens: Mapped[int | None] = mapped_column(BigInteger)
    completion_tokens: Mapped[int | None] = mapped_column(BigInteger)
    total_tokens: Mapped[int | None] = mapped_column(BigInteger)
    tool_calls: Mapped[int] = mapped_column(Integer)
    tool_errors: Mapped[int] = mapped_column(Integer)
    graph_hash: Mapped[str | None] = mapped_column(Text)
    tags: Mapped[list[str]] = mapped_column(ARRAY(Text))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    labelled_tenant: Mapped[str | None] = mapped_column(Text)
    failures: Mapped[str | None] = mapped_column(TSVECTOR)


class ArtifactIdRow(Base):
    """Map a row of `artifact_ids`: which artifact has a `kurral_id`, and the fingerprint that tells a repetition."""

    __tablename__ = "artifact_ids"
    tenant_id: Mapped[str] = mapped_column(Text, primary_key=True)
    kurral_id: Mapped[str] = mapped_column(Text, primary_key=True)
    id: Mapped[str] = mapped_column(Id("art"))
    fingerprint: Mapped[bytes] = mapped_column(LargeBinary)


class ArtifactBodyRow(Base):
    """Map a row of `artifact_bodies`: a compressed body on its way to object storage."""

    __tablename__ = "artifact_bodies"
    id: Mapped[str] = mapped_column(Id("art"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    key: Mapped[str] = mapped_column(Text)
    packed: Mapped[bytes] = mapped_column(LargeBinary)
    since: Mapped[datetime] = mapped_column(create_timestamp())
    claimed_until: Mapped[datetime | None] = mapped_column(create_timestamp())


class DoomedObjectRow(Base):
    """Map a row of `doomed_objects`: an object to be deleted at `due`, and once more at `again_at` if that is set."""

    __tablename__ = "doomed_objects"
    key: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    due: Mapped[datetime] = mapped_column(create_timestamp())
    again_at: Mapped[datetime | None] = mapped_column(create_timestamp())


_BULK_COLUMNS: Final = BulkColumns[ArtifactMetadata](ArtifactRow, ArtifactMetadata.__struct_fields__)
_ROW_MAPPER: Final = RowMapper(ArtifactRow, ArtifactMetadata)
_MEASURED_COLUMNS: Final = ", ".join(ARTIFACT_MEASURES.measured_columns)
_EXECUTION_MAPPER: Final = RowMapper(ExecutionRow, Execution)
_STEP_MAPPER: Final = RowMapper(StepRow, RunStep)
_BULK_WIDTH: Final = _BULK_COLUMNS.width
# Ids in order, so that two transactions which share some cannot wait for each other.
_ADD_SQL: Final = (
    f"WITH given AS MATERIALIZED (SELECT * FROM unnest({_BULK_COLUMNS.arrays}, "
    f"${_BULK_WIDTH + 1}::text[], ${_BULK_WIDTH + 2}::bytea[], "
    f"${_BULK_WIDTH + 3}::text[], ${_BULK_WIDTH + 4}::bytea[]) AS given({_BULK_COLUMNS.names}, failures, "
    "fingerprint, key, packed)), "
    "claimed AS (INSERT INTO artifact_ids (tenant_id, kurral_id, id, fingerprint) "
    "SELECT tenant_id, kurral_id, id, fingerprint FROM given ORDER BY kurral_id "
    "ON CONFLICT DO NOTHING RETURNING id), "
    f"added AS (INSERT INTO artifacts ({_BULK_COLUMNS.names}, failures) SELECT {_BULK_COLUMNS.values}, "
    "CASE WHEN failures <> '' THEN to_tsvector('simple', failures) END FROM given "
    f"WHERE id IN (SELECT id FROM claimed) RETURNING {_MEASURED_COLUMNS}, 1 AS sign), "
    "bodies AS (INSERT INTO artifact_bodies (id, tenant_id, key, packed, since) "
    "SELECT id, tenant_id, key, packed, received_at FROM given WHERE id IN (SELECT id FROM claimed)), "
    f"noted AS ({ARTIFACT_MEASURES.build_delta_insert('added')}) SELECT id FROM claimed"
)
_FIND_SQL: Final = (
    f"SELECT {', '.join('a.' + name for name in _ROW_MAPPER.columns.split(', '))}, i.fingerprint "
    "FROM artifact_ids i JOIN artifacts a ON a.id = i.id WHERE i.tenant_id = current_setting('paddock.tenant_id') "
    "AND i.kurral_id = ANY ($1)"
)
_DELETE_SQL: Final = (
    f"WITH gone AS (DELETE FROM artifacts WHERE id = ANY ($1) "
    f"RETURNING id, tenant_id, kurral_id, received_at, {_MEASURED_COLUMNS}, -1 AS sign), "
    "named AS (DELETE FROM artifact_ids i USING gone g WHERE i.tenant_id = g.tenant_id AND i.kurral_id = g.kurral_id), "
    "waited AS (DELETE FROM artifact_bodies b USING gone g WHERE b.id = g.id RETURNING b.id), "
    "doomed AS (INSERT INTO doomed_objects (key, tenant_id, due, again_at) "
    "SELECT k.key, current_setting('paddock.tenant_id'), $3, CASE WHEN w.id IS NOT NULL THEN $4::timestamptz END "
    "FROM unnest($1::uuid[], $2::text[]) AS k(id, key) JOIN gone g ON g.id = k.id LEFT JOIN waited w ON w.id = k.id), "
    f"noted AS ({ARTIFACT_MEASURES.build_delta_insert('gone')}) SELECT count(*) FROM gone"
)
_ENDED_SQL: Final = (
    f"SELECT {', '.join('e.' + name for name in _EXECUTION_MAPPER.columns.split(', '))}, a.name AS agent_name, "
    "(SELECT v.data->>'message' FROM execution_events v WHERE v.execution_id = e.id AND v.type = 'log' "
    "AND v.data->>'stream' = 'traceback' ORDER BY v.seq DESC LIMIT 1) AS stack, e.spec, "
    "(SELECT json_build_object('provider', max(c.provider), 'prompt', sum(c.prompt_tokens), "
    "'completion', sum(c.completion_tokens), 'cached', sum(c.cached_tokens), 'reasoning', sum(c.reasoning_tokens)) "
    "FROM costs c WHERE c.execution_id = e.id HAVING count(*) > 0) AS used "
    "FROM executions e LEFT JOIN agents a ON a.id = e.agent_id WHERE e.id = ANY ($1) AND NOT e.recorded"
)


_TOOL_CALLS_SQL: Final = (
    f"SELECT {_STEP_MAPPER.columns} FROM execution_steps WHERE execution_id = ANY ($1) AND kind = 'tool' "
    "ORDER BY started_at, path"
)


def _read_ended(record: Any, calls: Mapping[str, list[RunStep]]) -> UnrecordedExecution:
    execution = _EXECUTION_MAPPER.to_struct(record)
    return UnrecordedExecution(
        execution=execution,
        agent_name=record["agent_name"],
        stack=record["stack"],
        spec=None if record["spec"] is None else msgspec.convert(record["spec"], Agent),
        tokens=None if record["used"] is None else msgspec.convert(record["used"], ExecutionTokens),
        calls=calls.get(execution.id, []),
    )


def get_body_key(metadata: ArtifactMetadata) -> str:
    """Return the key of an artifact's body in object storage."""
    return format_artifact_key(metadata.tenant_id, metadata.received_at, metadata.id)


class PostgresArtifacts(RecordRepository[ArtifactMetadata]):
    """Provide `domain.artifacts.service.Artifacts` on Postgres."""

    measures = ARTIFACT_MEASURES
    prefix = "art"
    row_mapper = _ROW_MAPPER

    async def add(self, stored: list[PackedArtifact]) -> set[str]:
        rows = [entry.record.metadata for entry in stored]
        records = await self._connection.fetch(
            _ADD_SQL,
            *_BULK_COLUMNS.collect_parameters(rows),
            [entry.record.failures for entry in stored],
            [entry.record.fingerprint for entry in stored],
            [get_body_key(row) for row in rows],
            [entry.packed_body for entry in stored],
        )
        return {ids.encode_id("art", record["id"]) for record in records}

    async def find(self, kurral_ids: list[str]) -> dict[str, tuple[ArtifactMetadata, bytes]]:
        records = await self._connection.fetch(_FIND_SQL, kurral_ids)
        return {record["kurral_id"]: (_ROW_MAPPER.to_struct(record), record["fingerprint"]) for record in records}

    async def get(self, reference: str) -> ArtifactMetadata | None:
        if "\0" in reference:
            return None
        result = (await self.find([reference])).get(reference)
        if result is not None:
            return result[0]
        return await self._get_by_id(reference)

    async def get_body(self, metadata: ArtifactMetadata) -> ArtifactBody:
        query = "SELECT packed FROM artifact_bodies WHERE id = $1"
        packed = await self._connection.fetch_value(query, ids.decode_id("art", metadata.id))
        return ArtifactBody(key=get_body_key(metadata), size=metadata.size_bytes, packed_body=packed)

    async def list_page(self, narrowed: ArtifactFilter, page: Page) -> Listing[ArtifactMetadata]:
        return await self._select_page(query_from_filter(narrowed), page)

    async def list_after(
        self, narrowed: ArtifactFilter, place: tuple[datetime, str] | None, limit: int
    ) -> list[ArtifactMetadata]:
        return await self._select_after(query_from_filter(narrowed), place, limit)

    async def delete(self, artifact_ids: list[str], now: datetime) -> int:
        if not artifact_ids:
            return 0
        row_ids = [ids.decode_id("art", entry) for entry in artifact_ids]
        query = f"SELECT {_ROW_MAPPER.columns} FROM artifacts WHERE id = ANY ($1)"
        rows = [_ROW_MAPPER.to_struct(record) for record in await self._connection.fetch(query, row_ids)]
        result = [ids.decode_id("art", row.id) for row in rows]
        return int(
            await self._connection.fetch_value(
                _DELETE_SQL, result, [get_body_key(row) for row in rows], now, now + SECOND_DELETION_DELAY
            )
        )

    async def claim_pending_bodies(
        self, most: int, most_bytes: int, now: datetime, until: datetime
    ) -> list[PendingBody]:
        records = await self._connection.fetch(
            "SELECT * FROM claim_bodies($1, $2, $3, $4)", most, most_bytes, now, until
        )
        return [
            PendingBody(id=ids.encode_id("art", record["id"]), key=record["key"], packed_body=record["packed"])
            for record in records
        ]

    async def mark_bodies_stored(self, artifact_ids: list[str]) -> set[str]:
        row_ids = [ids.decode_id("art", entry) for entry in artifact_ids]
        records = await self._connection.fetch("SELECT * FROM stored_bodies($1) AS id", row_ids)
        return {ids.encode_id("art", record["id"]) for record in records}

    async def release_bodies(self, artifact_ids: list[str]) -> None:
        await self._connection.execute_sql(
            "SELECT release_bodies($1)", [ids.decode_id("art", entry) for entry in artifact_ids]
        )

    async def list_deletable_objects(self, now: datetime, limit: int) -> list[str]:
        return [
            record["key"]
            for record in await self._connection.fetch("SELECT * FROM due_objects($1, $2) AS key", now, limit)
        ]

    async def mark_objects_deleted(self, keys: list[str], now: datetime) -> None:
        await self._connection.execute_sql("SELECT gone_objects($1, $2)", keys, now)

    async def list_unrecorded(self, limit: int) -> list[tuple[str, str]]:
        records = await self._connection.fetch("SELECT * FROM unrecorded_executions($1)", limit)
        return [(record["tenant_id"], ids.encode_id("exec", record["id"])) for record in records]

    async def load_unrecorded(self, executions: list[str]) -> list[UnrecordedExecution]:
        row_ids = [ids.decode_id("exec", entry) for entry in executions]
        records, calls = await self._connection.fetch(_ENDED_SQL, row_ids), defaultdict[str, list[RunStep]](list)
        if any(record["lane"] == "llm" for record in records):
            for record in await self._connection.fetch(_TOOL_CALLS_SQL, row_ids):
                step = _STEP_MAPPER.to_struct(record)
                calls[step.execution_id].append(step)
        return [_read_ended(record, calls) for record in records]

    async def mark_recorded(self, executions: list[str]) -> set[str]:
        query = "UPDATE executions SET recorded = true WHERE id = ANY ($1) RETURNING id"
        records = await self._connection.fetch(query, [ids.decode_id("exec", entry) for entry in executions])
        return {ids.encode_id("exec", record["id"]) for record in records}
