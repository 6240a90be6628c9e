"""Store deltas and rollups, and read answers from them. See `domain.stats` for what they are."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import msgspec
from sqlalchemy import BigInteger, Identity, Index, LargeBinary, Numeric, Text, Uuid
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from domain.stats import (
    QUANTILE_FRACTIONS,
    GroupSums,
    RecordKind,
    RollupCover,
    RollupSpan,
    StatsQuery,
    StatsResult,
    TimeBucket,
    UnfoldedDeltas,
    cover_period,
)
from infra.postgres.connection import TxConnection
from infra.postgres.db import Base, create_timestamp
from infra.postgres.record_measures import MEASURES_BY_KIND, RecordMeasures
from infra.sketches import compute_quantiles, merge_sketches


class StatDeltaRow(Base):
    """Map a row of `stat_deltas`: what one commit changed in the sums of one hour and combination of dimensions."""

    __tablename__ = "stat_deltas"
    __table_args__ = (Index("stat_deltas_tenant_id_kind_hour", "tenant_id", "kind", "hour"),)
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(Text)
    hour: Mapped[datetime] = mapped_column(create_timestamp())
    dims: Mapped[list[str | None]] = mapped_column(ARRAY(Text))
    measures: Mapped[list[Decimal]] = mapped_column(ARRAY(Numeric))
    bins: Mapped[bytes] = mapped_column(LargeBinary)


class StatRollupRow(Base):
    """Map a row of `stat_rollups`: the sums of one hour, day or month and combination of dimensions.

    `dims_key` stands for `dims` in the key.
    """

    __tablename__ = "stat_rollups"
    tenant_id: Mapped[str] = mapped_column(Text, primary_key=True)
    kind: Mapped[str] = mapped_column(Text, primary_key=True)
    level: Mapped[str] = mapped_column(Text, primary_key=True)
    start: Mapped[datetime] = mapped_column(create_timestamp(), primary_key=True)
    dims_key: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    dims: Mapped[list[str | None]] = mapped_column(ARRAY(Text))
    measures: Mapped[list[Decimal]] = mapped_column(ARRAY(Numeric))
    bins: Mapped[bytes] = mapped_column(LargeBinary)


# How many combinations of dimensions an answer names.
MAX_COMBINATIONS: Final = 2000
_LOCK_SQL: Final = """
    SELECT pg_try_advisory_xact_lock(hashtextextended('fold ' || $1 || current_setting('paddock.tenant_id'), 0))
"""
_TAKE_DELTAS_SQL: Final = """
    WITH gone AS (
        DELETE FROM stat_deltas WHERE id IN (
            SELECT id FROM stat_deltas WHERE tenant_id = current_setting('paddock.tenant_id') AND kind = $1
            ORDER BY id LIMIT $2)
        RETURNING hour, dims, measures, bins
    )
    SELECT l.level, date_trunc(l.level, hour, 'UTC') AS start, dims, count(*) AS deltas,
           ARRAY[{sums}] AS measures, string_agg(bins, '') AS bins
    FROM gone, (VALUES ('hour'), ('day'), ('month')) AS l(level) GROUP BY 1, 2, 3
"""
_FIND_ROLLUPS_SQL: Final = """
    SELECT r.level, r.start, r.dims_key, r.measures, r.bins
    FROM unnest($2::text[], $3::timestamptz[], $4::uuid[]) AS k(level, start, dims_key)
    JOIN stat_rollups r ON r.tenant_id = current_setting('paddock.tenant_id') AND r.kind = $1
        AND r.level = k.level AND r.start = k.start AND r.dims_key = k.dims_key
"""
_SAVE_ROLLUPS_SQL: Final = """
    INSERT INTO stat_rollups (tenant_id, kind, level, start, dims_key, dims, measures, bins)
    VALUES (current_setting('paddock.tenant_id'), $1, $2, $3, $4, $5, $6, $7)
    ON CONFLICT (tenant_id, kind, level, start, dims_key)
    DO UPDATE SET measures = excluded.measures, bins = excluded.bins
"""
_DELETE_ROLLUPS_SQL: Final = """
    DELETE FROM stat_rollups r USING unnest($2::text[], $3::timestamptz[], $4::uuid[]) AS k(level, start, dims_key)
    WHERE r.tenant_id = current_setting('paddock.tenant_id') AND r.kind = $1
        AND r.level = k.level AND r.start = k.start AND r.dims_key = k.dims_key
"""


class PostgresStats:
    """Provide `domain.stats.Stats` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def sum_groups(self, question: StatsQuery) -> StatsResult:
        facts = MEASURES_BY_KIND[question.kind]
        source, values = _build_source(facts, question)
        sums = ", ".join(f"sum(measures[{n}])" for n in range(1, len(facts.measure_names) + 1))
        grouped = (
            f"SELECT dims, ARRAY[{sums}] AS measures, string_agg(bins, '') AS bins FROM ({source}) AS s GROUP BY dims"
        )
        # All combinations beyond the most frequent ones are one, without names: a tenant may make as many as it likes.
        ranked = f"SELECT *, row_number() OVER (ORDER BY measures[1] DESC, dims) AS place FROM ({grouped}) AS g"
        query = (
            f"SELECT min(dims) AS dims, min(place) > {MAX_COMBINATIONS} AS rest, ARRAY[{sums}] AS measures, "
            f"string_agg(bins, '') AS bins FROM ({ranked}) AS r GROUP BY least(place, {MAX_COMBINATIONS + 1})"
        )
        records = await self._connection.fetch(query, *values)
        groups = [
            GroupSums(
                dims=dict.fromkeys(facts.dims)
                if record["rest"]
                else dict(zip(facts.dims, record["dims"], strict=True)),
                measures=dict(zip(facts.measure_names, map(int, record["measures"]), strict=True)),
            )
            for record in records
            # A combination whose records are all gone sums up to nothing until it is folded away.
            if any(record["measures"])
        ]
        return StatsResult(
            groups=groups,
            quantiles=compute_quantiles(b"".join(record["bins"] for record in records), QUANTILE_FRACTIONS),
        )

    async def sum_measure(self, question: StatsQuery, measure: str) -> int:
        facts = MEASURES_BY_KIND[question.kind]
        source, values = _build_source(facts, question)
        place = facts.measure_names.index(measure) + 1
        query = f"SELECT coalesce(sum(measures[{place}]), 0)::bigint FROM ({source}) AS s"
        return int(await self._connection.fetch_value(query, *values))

    async def sum_buckets(self, question: StatsQuery, bucket: TimeBucket) -> list[tuple[datetime, dict[str, int]]]:
        facts = MEASURES_BY_KIND[question.kind]
        source, values = _build_source(facts, question, level=bucket)
        sums = ", ".join(f"sum(measures[{n}])" for n in range(1, len(facts.measure_names) + 1))
        query = (
            f"SELECT date_trunc('{bucket}', hour, 'UTC') AS start, ARRAY[{sums}] AS measures "
            f"FROM ({source}) AS s GROUP BY 1 ORDER BY 1"
        )
        return [
            (record["start"], dict(zip(facts.measure_names, map(int, record["measures"]), strict=True)))
            for record in await self._connection.fetch(query, *values)
        ]

    async def fold_deltas(self, kind: RecordKind, most: int) -> int:
        if not await self._connection.fetch_value(_LOCK_SQL, kind):
            return 0
        names = MEASURES_BY_KIND[kind].measure_names
        sums = ", ".join(f"sum(measures[{n}])" for n in range(1, len(names) + 1))
        fresh = await self._connection.fetch(_TAKE_DELTAS_SQL.format(sums=sums), kind, most)
        if not fresh:
            return 0
        keys = [(record["level"], record["start"], _hash_dims(record["dims"])) for record in fresh]
        columns: list[Sequence[Any]] = [list(column) for column in zip(*keys, strict=True)]
        row_id: dict[Any, tuple[list[Decimal], bytes]] = {
            (record["level"], record["start"], record["dims_key"]): (record["measures"], record["bins"])
            for record in await self._connection.fetch(_FIND_ROLLUPS_SQL, kind, *columns)
        }
        upserts, dropped = [], defaultdict[str, list[Any]](list)
        for key, record in zip(keys, fresh, strict=True):
            before, bins = row_id.get(key, ([Decimal(0)] * len(names), b""))
            measures = [old + new for old, new in zip(before, record["measures"], strict=True)]
            if any(measures):
                upserts.append((kind, *key, record["dims"], measures, merge_sketches(bins + record["bins"])))
            else:
                for place, part in enumerate(key):
                    dropped[str(place)].append(part)
        if upserts:
            await self._connection.execute_many(_SAVE_ROLLUPS_SQL, upserts)
        if dropped:
            await self._connection.execute_sql(_DELETE_ROLLUPS_SQL, kind, *dropped.values())
        return sum(record["deltas"] for record in fresh if record["level"] == "hour")

    async def list_unfolded(self, after: UnfoldedDeltas | None, limit: int) -> list[UnfoldedDeltas]:
        place = ("", "") if after is None else (after.tenant_id, after.kind)
        records = await self._connection.fetch("SELECT tenant_id, kind FROM unfolded($1, $2, $3)", *place, limit)
        return [UnfoldedDeltas(tenant_id=record["tenant_id"], kind=record["kind"]) for record in records]


def _hash_dims(dims: list[str | None]) -> UUID:
    """Hash a combination of dimensions to 16 bytes: an index entry must not be as long as names may be."""
    return UUID(bytes=hashlib.blake2b(msgspec.json.encode(dims), digest_size=16).digest())


def _build_source(
    facts: RecordMeasures, question: StatsQuery, level: TimeBucket | None = None
) -> tuple[str, list[Any]]:
    """Return what to sum up, as a query for `hour, dims, measures, bins`, and its parameters."""
    if facts.needs_records(question.filters):
        stretch = cover_period(question.since, question.until)
        parts: tuple[tuple[datetime, datetime], ...] = (
            (question.since or stretch.since, question.until or stretch.until),
        )
        return _build_record_source(facts, question, parts, [])
    stretch = _cover_level(question, level) if level else cover_period(question.since, question.until)
    values: list[Any] = [
        [span.level for span in stretch.spans],
        [span.since for span in stretch.spans],
        [span.until for span in stretch.spans],
        stretch.since,
        stretch.until,
        facts.kind,
    ]
    narrowed, filter_values = facts.build_dims_filter(question.filters, len(values) + 1)
    values += filter_values
    # Each span is a range of the primary key: LATERAL keeps the planner from looking at all rollups for them.
    source = (
        "SELECT r.* FROM unnest($1::text[], $2::timestamptz[], $3::timestamptz[]) AS s(level, since, until) "
        "CROSS JOIN LATERAL (SELECT start AS hour, dims, measures, bins FROM stat_rollups "
        "WHERE tenant_id = current_setting('paddock.tenant_id') AND kind = $6 AND level = s.level "
        f"AND start >= s.since AND start < s.until{narrowed} OFFSET 0) AS r "
        "UNION ALL SELECT hour, dims, measures, bins FROM stat_deltas "
        "WHERE tenant_id = current_setting('paddock.tenant_id') AND kind = $6 "
        f"AND hour >= $4 AND hour < $5{narrowed}"
    )
    if not stretch.parts:
        return source, values
    rows, values = _build_record_source(facts, question, stretch.parts, values)
    return f"{source} UNION ALL {rows}", values


def _build_record_source(
    facts: RecordMeasures, question: StatsQuery, parts: tuple[tuple[datetime, datetime], ...], values: list[Any]
) -> tuple[str, list[Any]]:
    ranges = []
    for since, until in parts:
        ranges.append(f"(created_at >= ${len(values) + 1} AND created_at < ${len(values) + 2})")
        values = [*values, since, until]
    narrowed, filter_values = facts.build_record_filter(question.filters, len(values) + 1)
    rows = (
        f"(SELECT *, 1 AS sign FROM {facts.kind} WHERE tenant_id = current_setting('paddock.tenant_id') "
        f"AND ({' OR '.join(ranges)}){narrowed})"
    )
    return facts.build_sums_query(rows), [*values, *filter_values]


def _cover_level(question: StatsQuery, level: TimeBucket) -> RollupCover:
    assert question.since is not None
    assert question.until is not None
    span = RollupSpan(level=level, since=question.since, until=question.until)
    return RollupCover(spans=(span,), since=question.since, until=question.until, parts=())
