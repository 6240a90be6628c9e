"""Define what statistics know of each kind of record, and build the SQL that makes sums of records.

One place says how a record counts, so that adding, changing and deleting it, and reading it for the part of
an hour, cannot disagree. Measures are whole numbers (fractions are scaled), so that sums are exact in any order.
"""

from typing import Any, Final
from uuid import UUID

import msgspec

from domain.shared import ids
from domain.stats import NANOS_PER_UNIT, RecordKind
from infra.sketches import build_bin_expression

# What lists show of large columns: so many characters of a text, and none of an object larger than so many bytes.
MAX_LISTED_TEXT_CHARACTERS: Final = 4000
MAX_LISTED_JSON_BYTES: Final = 16 * 1024
# Filters that are ids, and the prefixes of those.
_ID_PREFIXES: Final = {"execution_id": "exec", "agent_id": "agent", "key_id": "key", "workflow_id": "wf"}


class RecordMeasures(msgspec.Struct, frozen=True, kw_only=True):
    """Define how records of a kind count.

    `dims` are SQL expressions of type text, `measures` of type bigint (null counts as 0), `value` is what
    quantiles are taken of. `list_dims` names those dims that hold a JSON list. `record_conditions` are conditions on
    records, with `{}` for the parameter, where they are not just a dim's equality.
    """

    kind: RecordKind
    dims: dict[str, str]
    measures: dict[str, str]
    value: str
    list_dims: frozenset[str] = frozenset()
    record_conditions: dict[str, str] = {}
    # In lists, what stands for columns that may be large; and how many bytes a record is worth in an export.
    listed_columns: dict[str, str] = {}
    weight: str = "1000"
    measured_columns: tuple[str, ...] = ()

    @property
    def measure_names(self) -> list[str]:
        """The measures, in the order in which they are kept."""
        return ["count", *self.measures]

    def build_sums_query(self, source: str) -> str:
        """Return a query for `hour, dims, measures, bins` of the rows of `source`, each with a `sign` (1 or -1)."""
        inner = ", ".join(f"sum(sign * coalesce({sql}, 0)) AS m{n}" for n, sql in enumerate(self.measures.values(), 1))
        outer = ", ".join(f"sum(m{n})" for n in range(len(self.measure_names)))
        dims = ", ".join(self.dims.values())
        return (
            f"SELECT hour, dims, ARRAY[{outer}]::numeric[] AS measures, "
            "coalesce(string_agg(int2send(bin) || int8send(n), '') FILTER (WHERE bin IS NOT NULL AND n <> 0), '') "
            f"AS bins FROM (SELECT date_trunc('hour', created_at, 'UTC') AS hour, ARRAY[{dims}]::text[] AS dims, "
            f"CASE WHEN {self.value} IS NULL THEN NULL ELSE {build_bin_expression(self.value)} END AS bin, "
            f"sum(sign) AS n, sum(sign) AS m0, {inner} "
            f"FROM {source} AS r GROUP BY 1, 2, 3) AS b GROUP BY hour, dims"
        )

    def build_delta_insert(self, source: str) -> str:
        """Return an INSERT of the deltas that the rows of `source` make, for use as the last part of a statement."""
        return (
            "INSERT INTO stat_deltas (tenant_id, kind, hour, dims, measures, bins) "
            f"SELECT current_setting('paddock.tenant_id'), '{self.kind}', hour, dims, measures, bins "
            f"FROM ({self.build_sums_query(source)}) AS s"
        )

    def build_delete(self) -> str:
        """Return a DELETE of the records whose ids are `$1`, which counts them, and what they counted."""
        return (
            # In order, so that two that delete the same do not wait for each other.
            f"WITH locked AS (SELECT id FROM {self.kind} WHERE id = ANY ($1) ORDER BY id FOR UPDATE), "
            f"gone AS (DELETE FROM {self.kind} WHERE id IN (SELECT id FROM locked) "
            f"RETURNING {', '.join(self.measured_columns)}, -1 AS sign), "
            f"noted AS ({self.build_delta_insert('gone')}) SELECT count(*) FROM gone"
        )

    def build_dims_filter(self, filters: dict[str, Any], place: int) -> tuple[str, list[Any]]:
        """Return conditions on the array `dims`, with parameters from `$place` on, and the parameters."""
        conditions, values = list[str](), list[Any]()
        for number, name in enumerate(self.dims, 1):
            if filters.get(name) is not None:
                value = _decode_value(name, filters[name])
                shape = "dims[{n}]::jsonb ? ${p}" if name in self.list_dims else "dims[{n}] = ${p}"
                conditions.append(shape.format(n=number, p=place + len(values)))
                values.append(str(value).lower() if isinstance(value, bool) else str(value))
        return "".join(f" AND {condition}" for condition in conditions), values

    def build_record_filter(self, filters: dict[str, Any], place: int) -> tuple[str, list[Any]]:
        """Return conditions on records, dims among them, with parameters from `$place` on, and the parameters."""
        conditions, values = list[str](), list[Any]()
        for name, value in filters.items():
            if value is None:
                continue
            if isinstance(value, bool):
                # As the predicates of partial indexes have it.
                column = self.dims[name].removesuffix("::text")
                conditions.append(column if value else f"NOT {column}")
                continue
            shape = self.record_conditions.get(name) or f"{self.dims[name]} = {{}}"
            conditions.append(shape.format(f"${place + len(values)}"))
            values.append(_decode_value(name, value))
        return "".join(f" AND {condition}" for condition in conditions), values

    def needs_records(self, filters: dict[str, Any]) -> bool:
        """Tell whether only the records themselves can answer."""
        return any(value is not None and name not in self.dims for name, value in filters.items())


def _decode_value(name: str, value: Any) -> Any:
    """Return a value as columns have it. Text that is no id becomes the id zero, which no row has."""
    return (ids.decode_id(_ID_PREFIXES[name], value) or UUID(int=0)) if name in _ID_PREFIXES else value


def scale_to_billionths(column: str) -> str:
    """Return SQL that turns a column of fractions into whole numbers of billionths."""
    return f"({column} * {NANOS_PER_UNIT})::bigint"


EVALUATION_MEASURES: Final = RecordMeasures(
    kind="evaluations",
    dims={
        "model_name": "model_name",
        "agent_name": "agent_name",
        "mode": "mode",
        "hallucinated": "hallucinated::text",
    },
    measures={
        "hallucinated": "hallucinated::int",
        "judged": "(hallucinated IS NOT NULL)::int",
        **{
            name: sql
            for column in ("latency_sec", "throughput_qps", "semantic_drift", "uncertainty", "factual_support")
            for name, sql in (
                (column, scale_to_billionths(column)),
                (f"{column}_known", f"({column} IS NOT NULL)::int"),
            )
        },
    },
    value="latency_sec",
    record_conditions={
        "session_id": "session_id = {}",
        "execution_id": "execution_id = {}",
        "artifact_id": "artifact_id = {}",
    },
    measured_columns=(
        *("created_at", "model_name", "agent_name", "mode", "hallucinated", "latency_sec", "throughput_qps"),
        *("semantic_drift", "uncertainty", "factual_support"),
    ),
    listed_columns={
        "prompt": f"left(r.prompt, {MAX_LISTED_TEXT_CHARACTERS})",
        "response": f"left(r.response, {MAX_LISTED_TEXT_CHARACTERS})",
        "retrieved_docs": f"CASE WHEN octet_length(r.retrieved_docs::text) <= {MAX_LISTED_JSON_BYTES} "
        "THEN r.retrieved_docs END",
        "metadata": f"CASE WHEN octet_length(r.metadata::text) <= {MAX_LISTED_JSON_BYTES} THEN r.metadata END",
    },
    weight="octet_length(prompt) + octet_length(response) + coalesce(octet_length(retrieved_docs::text), 0) "
    "+ coalesce(octet_length(metadata::text), 0) + 500",
)

ARTIFACT_MEASURES: Final = RecordMeasures(
    kind="artifacts",
    dims={
        "environment": "environment",
        "deterministic": "deterministic::text",
        "replay_level": "replay_level",
        "model_name": "model_name",
        "provider": "provider",
        "status": "status",
        "semantic_bucket": "to_json(semantic_buckets)::text",
    },
    measures={
        "errors": "(status = 'error')::int",
        "deterministic": "deterministic::int",
        "size_bytes": "size_bytes",
        "cost_usd": scale_to_billionths("cost_usd"),
        "tokens": "total_tokens",
        "duration_ms": "(duration_ms * 1000)::bigint",
        "duration_ms_known": "(duration_ms IS NOT NULL)::int",
    },
    value="duration_ms",
    list_dims=frozenset({"semantic_bucket"}),
    record_conditions={
        "semantic_bucket": "semantic_buckets @> ARRAY[{}]::text[]",
        "run_id": "run_id = {}",
        "tag": "tags @> ARRAY[{}]::text[]",
        "error_type": "error_type = {}",
        "search": "failures IS NOT NULL AND failures @@ websearch_to_tsquery('simple', {})",
        "execution_id": "execution_id = {}",
        "labelled_tenant": "labelled_tenant = {}",
    },
    measured_columns=(
        *("created_at", "environment", "deterministic", "replay_level", "model_name", "provider", "status"),
        *("semantic_buckets", "size_bytes", "cost_usd", "total_tokens", "duration_ms"),
    ),
)

COST_MEASURES: Final = RecordMeasures(
    kind="costs",
    dims={
        "agent_id": "agent_id::text",
        **{name: name for name in ("agent_name", "provider", "model", "model_name", "status")},
    },
    measures={
        "cost_usd": scale_to_billionths("cost_usd"),
        **{
            name: name
            for name in ("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "reasoning_tokens")
        },
        "errors": "(status = 'error')::int",
        "estimated": "estimated::int",
        "duration_ms": "(duration_ms * 1000)::bigint",
    },
    value="duration_ms",
    record_conditions={name: f"{name} = {{}}" for name in ("agent_id", "execution_id", "key_id", "workflow_id")},
    measured_columns=(
        *("created_at", "agent_id", "agent_name", "provider", "model", "model_name", "status", "cost_usd"),
        *("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "reasoning_tokens"),
        *("estimated", "duration_ms"),
    ),
)

MEASURES_BY_KIND: Final[dict[RecordKind, RecordMeasures]] = {
    "evaluations": EVALUATION_MEASURES,
    "artifacts": ARTIFACT_MEASURES,
    "costs": COST_MEASURES,
}
