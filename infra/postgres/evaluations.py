"""Store evaluations in Postgres. Every change writes its deltas in the same statement."""

from datetime import datetime
from typing import Any, Final

from sqlalchemy import BigInteger, Text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from domain.evaluations import (
    MAX_SCORING_ATTEMPTS,
    ClaimedEvaluation,
    Evaluation,
    EvaluationFilter,
    EvaluationScores,
    list_missing_scores,
    query_from_filter,
)
from domain.shared import ids
from domain.shared.pages import Listing, Page
from infra.postgres.bulk import BulkColumns
from infra.postgres.db import Base, Id, RowMapper, create_json_column, create_timestamp
from infra.postgres.record_measures import EVALUATION_MEASURES
from infra.postgres.records import RecordRepository


class EvaluationRow(Base):
    """Map a row of `evaluations`: an evaluation. Partitioned by `id`, that is by the month of its receipt."""

    __tablename__ = "evaluations"
    id: Mapped[str] = mapped_column(Id("eval"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    user_id: Mapped[str] = mapped_column(Id("user"))
    created_at: Mapped[datetime] = mapped_column(create_timestamp())
    prompt: Mapped[str] = mapped_column(Text)
    response: Mapped[str] = mapped_column(Text)
    retrieved_docs: Mapped[Any | None] = mapped_column(create_json_column())
    semantic_drift: Mapped[float | None]
    uncertainty: Mapped[float | None]
    factual_support: Mapped[float | None]
    hallucination_probability: Mapped[float | None]
    hallucinated: Mapped[bool | None]
    latency_sec: Mapped[float | None]
    throughput_qps: Mapped[float | None]
    mode: Mapped[str | None] = mapped_column(Text)
    model_name: Mapped[str | None] = mapped_column(Text)
    agent_name: Mapped[str | None] = mapped_column(Text)
    session_id: Mapped[str | None] = mapped_column(Text)
    execution_id: Mapped[str | None] = mapped_column(Id("exec"))
    artifact_id: Mapped[str | None] = mapped_column(Text)
    # `metadata` is a name of SQLAlchemy's own.
    metadata_: Mapped[Any | None] = mapped_column("metadata", create_json_column())
    metrics: Mapped[str] = mapped_column(Text)
    computed: Mapped[list[str]] = mapped_column(ARRAY(Text))
    attempt: Mapped[int] = mapped_column(BigInteger)
    handovers: Mapped[int]
    claimed_until: Mapped[datetime | None] = mapped_column(create_timestamp())


MAX_CLAIM_BYTES: Final = 4 * 1024 * 1024
_INPUT_COLUMNS: Final = [name for name in Evaluation.__struct_fields__ if name != "computed"]
_BULK_COLUMNS: Final = BulkColumns[Evaluation](EvaluationRow, _INPUT_COLUMNS)
_ROW_MAPPER: Final = RowMapper(EvaluationRow, Evaluation)
_MEASURED_COLUMNS: Final = ", ".join(EVALUATION_MEASURES.measured_columns)
_ADD_SQL: Final = (
    f"WITH added AS (INSERT INTO evaluations ({_BULK_COLUMNS.names}) SELECT {_BULK_COLUMNS.values} FROM "
    f"{_BULK_COLUMNS.source} "
    f"RETURNING {_MEASURED_COLUMNS}, 1 AS sign) {EVALUATION_MEASURES.build_delta_insert('added')}"
)
_CLAIM_SQL: Final = f"SELECT {_ROW_MAPPER.columns}, attempt FROM claim_evaluations($1, $2, $3, $4)"
_METRIC_COLUMNS: Final = EvaluationScores.__struct_fields__
_SCORE_SQL: Final = (
    "WITH given AS (SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::float8[], $4::float8[], $5::float8[], "
    f"$6::float8[], $7::boolean[], $8::text[]) AS g(id, attempt, {', '.join(_METRIC_COLUMNS)}, computed)), "
    f"old AS (SELECT e.id, {', '.join('e.' + name for name in EVALUATION_MEASURES.measured_columns)} "
    "FROM evaluations e JOIN given g ON g.id = e.id AND g.attempt = e.attempt WHERE e.metrics = 'pending' "
    "AND e.claimed_until IS NOT NULL ORDER BY e.id FOR UPDATE OF e), "
    "moved AS (UPDATE evaluations e SET metrics = 'computed', claimed_until = NULL, "
    "computed = ARRAY(SELECT json_array_elements_text(g.computed::json)), "
    f"{', '.join(f'{name} = g.{name}' for name in _METRIC_COLUMNS)} FROM given g JOIN old o ON o.id = g.id "
    f"WHERE e.id = g.id RETURNING {', '.join('e.' + name for name in EVALUATION_MEASURES.measured_columns)}), "
    f"changed AS (SELECT {_MEASURED_COLUMNS}, -1 AS sign FROM old UNION ALL SELECT {_MEASURED_COLUMNS}, 1 "
    "AS sign FROM moved), "
    f"noted AS ({EVALUATION_MEASURES.build_delta_insert('changed')}) SELECT count(*) FROM moved"
)
_FAIL_SQL: Final = (
    "UPDATE evaluations e SET claimed_until = NULL, "
    f"metrics = CASE WHEN e.attempt - e.handovers >= {MAX_SCORING_ATTEMPTS} THEN 'failed' ELSE metrics END "
    "FROM unnest($1::uuid[], $2::bigint[]) AS g(id, attempt) "
    "WHERE e.id = g.id AND e.attempt = g.attempt AND e.metrics = 'pending'"
)
_RELEASE_SQL: Final = (
    "UPDATE evaluations e SET claimed_until = NULL, handovers = e.handovers + 1 "
    "FROM unnest($1::uuid[], $2::bigint[]) AS g(id, attempt) "
    "WHERE e.id = g.id AND e.attempt = g.attempt AND e.metrics = 'pending'"
)


class PostgresEvaluations(RecordRepository[Evaluation]):
    """Provide `domain.evaluations.Evaluations` on Postgres."""

    measures = EVALUATION_MEASURES
    prefix = "eval"
    row_mapper = _ROW_MAPPER

    async def add(self, evaluations: list[Evaluation]) -> None:
        await self._connection.execute_sql(_ADD_SQL, *_BULK_COLUMNS.collect_parameters(evaluations))

    async def get(self, evaluation_id: str) -> Evaluation | None:
        return await self._get_by_id(evaluation_id)

    async def list_page(self, narrowed: EvaluationFilter, page: Page) -> Listing[Evaluation]:
        return await self._select_page(query_from_filter(narrowed), page)

    async def list_after(
        self, narrowed: EvaluationFilter, place: tuple[datetime, str] | None, limit: int
    ) -> list[Evaluation]:
        return await self._select_after(query_from_filter(narrowed), place, limit)

    async def delete_many(self, evaluation_ids: list[str]) -> int:
        return await self._delete_rows(evaluation_ids)

    async def find_linked(self, executions: set[str], artifacts: set[str]) -> tuple[set[str], set[str]]:
        row_ids = [ids.decode_id("exec", entry) for entry in executions]
        runs = await self._connection.fetch("SELECT id FROM executions WHERE id = ANY ($1)", row_ids) if row_ids else []
        records = []
        if artifacts:
            query = "SELECT kurral_id FROM artifact_ids WHERE kurral_id = ANY ($1)"
            records = await self._connection.fetch(query, list(artifacts))
        return {ids.encode_id("exec", run["id"]) for run in runs}, {record["kurral_id"] for record in records}

    async def claim_pending(self, most: int, now: datetime, until: datetime) -> list[ClaimedEvaluation]:
        records = await self._connection.fetch(_CLAIM_SQL, most, MAX_CLAIM_BYTES, now, until)
        return [
            ClaimedEvaluation(evaluation=_ROW_MAPPER.to_struct(record), attempt=record["attempt"]) for record in records
        ]

    async def save_scores(self, scored: list[tuple[ClaimedEvaluation, EvaluationScores]]) -> int:
        return int(
            await self._connection.fetch_value(
                _SCORE_SQL,
                [ids.decode_id("eval", entry.evaluation.id) for entry, _ in scored],
                [entry.attempt for entry, _ in scored],
                *([getattr(scores, name) for _, scores in scored] for name in _METRIC_COLUMNS),
                [
                    "[" + ",".join(f'"{name}"' for name in list_missing_scores(entry.evaluation)) + "]"
                    for entry, _ in scored
                ],
            )
        )

    async def release_claims(self, claimed: list[ClaimedEvaluation]) -> None:
        row_ids = [ids.decode_id("eval", entry.evaluation.id) for entry in claimed]
        await self._connection.execute_sql(_RELEASE_SQL, row_ids, [entry.attempt for entry in claimed])

    async def fail_claims(self, claimed: list[ClaimedEvaluation]) -> None:
        row_ids = [ids.decode_id("eval", entry.evaluation.id) for entry in claimed]
        await self._connection.execute_sql(_FAIL_SQL, row_ids, [entry.attempt for entry in claimed])
