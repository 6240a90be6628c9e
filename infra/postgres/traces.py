"""Traces in Postgres: everything that one is made of, in a single statement; and what is still to be exported."""

from datetime import datetime
from typing import Any, Final
from uuid import UUID

import msgspec
from sqlalchemy import Text
from sqlalchemy.orm import Mapped, mapped_column

from domain.shared import ids
from domain.traces import (
    MAX_CONTENT_BYTES,
    PendingTraceExport,
    TracedModelCall,
    TracedPlan,
    TracedPlanStep,
    TracedRun,
    TracedRunStep,
    TraceSources,
)
from infra.postgres.connection import TxConnection
from infra.postgres.db import Base, Id, create_timestamp


class TraceExportWantedRow(Base):
    """Map a row of `trace_export`: when somebody last said that traces are exported.

    Belongs to the installation, not to a tenant.
    """

    __tablename__ = "trace_export"
    one: Mapped[bool] = mapped_column(primary_key=True)
    wanted_at: Mapped[datetime] = mapped_column(create_timestamp())


class TraceExportRow(Base):
    """Map a row of `trace_exports`: an ended execution whose trace is to be exported at `due_at`.

    While an exporter holds it, `due_at` is when that claim ends.
    """

    __tablename__ = "trace_exports"
    execution_id: Mapped[str] = mapped_column(Id("exec"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    due_at: Mapped[datetime] = mapped_column(create_timestamp())
    tries: Mapped[int]


def _build_readable_check(column: str) -> str:
    """Return SQL for whether texts can be taken out of a column of json: Postgres cannot take out those with U+0000."""
    return rf"position('\u0000' in {column}::text) = 0"


def _build_content_column(text: str) -> str:
    """Return SQL for a text where content is asked for: what is shown, and one character more if there is more."""
    return f"CASE WHEN $3 THEN left({text}, {MAX_CONTENT_BYTES + 1}) END"


_ANSWER_SQL: Final = (
    f"CASE WHEN e.lane = 'llm' AND json_typeof(e.output_data) = 'object' AND {_build_readable_check('e.output_data')} "
    "THEN coalesce(e.output_data->>'content', e.output_data::text) ELSE e.output_data::text END"
)
_MESSAGE_SQL: Final = (
    f"CASE WHEN {_build_readable_check('s.output')} THEN s.output->'message'->>'content' ELSE s.output::text END"
)
# The agent and the input that a prompt was made of, where they are not too much to be read for each call.
_MAX_PROMPT: Final = 256 * 1024
_PROMPT_SQL: Final = (
    f"CASE WHEN $3 AND e.lane = 'llm' AND json_typeof(e.spec) = 'object' AND "
    f"octet_length(e.spec::text) + octet_length(e.input_data::text) <= {_MAX_PROMPT} "
    "THEN json_build_object('agent', e.spec, 'input', e.input_data)::text END"
)
_TOOL_CALLS_SQL: Final = (
    f"CASE WHEN $3 AND s.kind = 'model' AND {_build_readable_check('s.output')} "
    "THEN s.output->'message'->'tool_calls' END"
)
_IS_DELEGATION_SQL: Final = (
    f"s.name = 'delegate' AND {_build_readable_check('s.input')} AND json_typeof(s.input->'agent') = 'object'"
)

# One statement, so that all is of one moment. What is too much is not read: every LATERAL below has a limit, so that it
# is looked up row by row, in the order of the tree, until there is enough. Texts of prompts and answers are read where
# they are asked for alone.
_SOURCES_SQL: Final = rf"""
    WITH RECURSIVE walk AS (
        SELECT e.id FROM executions e WHERE e.id = $1
        UNION ALL
        SELECT c.id FROM walk w CROSS JOIN LATERAL (
            SELECT x.id FROM executions x WHERE x.parent_id = w.id ORDER BY x.id LIMIT $2) AS c
    ), tree AS MATERIALIZED (SELECT w.id FROM walk w LIMIT $2)
    SELECT 'run' AS kind, row_to_json(found)::text AS data FROM (
        SELECT e.id, e.tenant_id, e.parent_id, e.root_id, e.step, e.kind, e.status, e.run_name, e.agent_id,
               e.agent_version_id, coalesce(spec.name, a.name) AS agent_name, e.crew_id, e.workflow_id, e.schedule_id,
               e.mode, e.model, spec.provider, spec.temperature, spec.max_tokens, e.attempt, e.error_type,
               e.error_message, e.created_at, e.started_at, e.completed_at,
               {_build_content_column("e.input_data::text")} AS input, {_build_content_column(_ANSWER_SQL)} AS
                   output, {_PROMPT_SQL} AS prompt
        FROM tree t CROSS JOIN LATERAL (SELECT * FROM executions x WHERE x.id = t.id LIMIT 1) AS e
        LEFT JOIN LATERAL (SELECT x.name FROM agents x WHERE x.id = e.agent_id LIMIT 1) AS a ON true
        CROSS JOIN LATERAL json_to_record(
            coalesce(CASE WHEN {_build_readable_check("e.spec")} THEN e.spec END, '{{}}')
        ) AS spec(name text, provider text, temperature double precision, max_tokens integer)
    ) AS found
    UNION ALL
    SELECT 'plan', row_to_json(found)::text FROM (
        SELECT p.execution_id AS run_id, plan.name, (
            SELECT json_agg(json_build_object(
                'id', step->>'id', 'name', step->>'name', 'context', step->'text'->'context'))
            FROM json_array_elements(plan.steps) AS step) AS steps
        FROM tree t CROSS JOIN LATERAL (SELECT * FROM plans x WHERE x.execution_id = t.id LIMIT 1) AS p
        CROSS JOIN LATERAL json_to_record(
            coalesce(CASE WHEN {_build_readable_check("p.plan")} THEN p.plan END, '{{}}')) AS plan(name text, steps
                json)
    ) AS found
    UNION ALL
    SELECT 'stage', row_to_json(found)::text FROM (
        SELECT s.execution_id AS run_id, s.step, s.item, s.status, s.tries, s.child_id, s.error_type, s.error_message,
               s.approved, s.decided_by, s.decided_at, s.reason, s.started_at, s.finished_at,
               CASE WHEN p.kind = 'crew' AND s.status = 'completed' THEN (
                   SELECT char_length({_ANSWER_SQL}) FROM executions e WHERE e.id = s.child_id) END AS characters
        FROM tree t CROSS JOIN LATERAL (SELECT x.kind FROM executions x WHERE x.id = t.id LIMIT 1) AS p
        CROSS JOIN LATERAL (
            SELECT * FROM plan_steps x WHERE x.execution_id = t.id ORDER BY x.step, x.item LIMIT $2) AS s
        LIMIT $2
    ) AS found
    UNION ALL
    SELECT 'step', row_to_json(found)::text FROM (
        SELECT s.execution_id AS run_id, s.path, s.kind, s.name, s.status, s.attempt, s.call_id, s.decided_by,
               s.decided_at, s.reason, s.started_at, s.finished_at,
               -- As the loop writes them, see workers/agent/loop.py.
               s.kind = 'tool' AND s.output::text LIKE '{{"error":%' AS failed,
               s.kind = 'tool' AND s.output::text LIKE '{{"error":%,"rejected":true}}' AS rejected,
               CASE WHEN {_IS_DELEGATION_SQL} THEN (
                   SELECT row_to_json(d) FROM json_to_record(s.input->'agent') AS d(
                       id text, name text, model text, provider text, temperature double precision,
                       max_tokens integer)) END AS delegate,
               answer.finish, answer.prompt_tokens, answer.completion_tokens,
               {_build_content_column(f"CASE WHEN {_IS_DELEGATION_SQL} THEN s.input->>'task' ELSE s.input::text END")}
                   AS arguments,
               {_build_content_column(f"CASE WHEN s.kind = 'model' THEN {_MESSAGE_SQL} ELSE s.output::text END")}
                   AS answer,
               {_TOOL_CALLS_SQL} AS tool_calls,
               CASE WHEN $3 AND {_IS_DELEGATION_SQL} AND octet_length(s.input::text) <= {_MAX_PROMPT} THEN
                   json_build_object(
                   'agent', s.input->'agent', 'input', json_build_object('task', s.input->'task'))::text END AS prompt
        FROM tree t CROSS JOIN LATERAL (
            SELECT * FROM execution_steps x WHERE x.execution_id = t.id ORDER BY x.started_at, x.path LIMIT $2) AS s
        CROSS JOIN LATERAL (
            SELECT o.finish, u.prompt_tokens, u.completion_tokens
            FROM json_to_record(
                coalesce(CASE WHEN s.kind = 'model' AND {_build_readable_check("s.output")} THEN s.output END, '{{}}')
            ) AS o(finish text, usage json)
            CROSS JOIN LATERAL json_to_record(
                coalesce(CASE WHEN json_typeof(o.usage) = 'object' THEN o.usage END, '{{}}')
            ) AS u(prompt_tokens bigint, completion_tokens bigint)
        ) AS answer
        LIMIT $2
    ) AS found
    UNION ALL
    SELECT 'call', row_to_json(found)::text FROM (
        SELECT c.id, c.execution_id AS run_id, c.provider, c.model, c.model_name, c.prompt_tokens, c.completion_tokens,
               c.total_tokens, c.cached_tokens, c.reasoning_tokens, c.cost_usd, c.estimated, c.status, c.error_type,
               c.duration_ms, c.first_token_ms, c.created_at
        FROM tree t CROSS JOIN LATERAL (
            SELECT * FROM costs x WHERE x.execution_id = t.id ORDER BY x.created_at, x.id LIMIT $2) AS c
        LIMIT $2
    ) AS found
"""
# What of each is an id, and of what.
_ID_PREFIXES: Final[dict[str, dict[str, str]]] = {
    "run": {
        "id": "exec",
        "parent_id": "exec",
        "root_id": "exec",
        "agent_id": "agent",
        "agent_version_id": "ver",
        "crew_id": "crew",
        "workflow_id": "wf",
        "schedule_id": "sched",
    },
    "plan": {"run_id": "exec"},
    "stage": {"run_id": "exec", "child_id": "exec", "decided_by": "user"},
    "step": {"run_id": "exec", "decided_by": "user"},
    "call": {"id": "cost", "run_id": "exec"},
}


class PostgresTraces:
    """Provide `domain.traces.schema.Traces` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def get_sources(self, execution_id: str, content: bool, most: int) -> TraceSources | None:
        row_id = ids.decode_id("exec", execution_id)
        if row_id is None:
            return None
        result: dict[str, list[dict[str, Any]]] = {kind: [] for kind in _ID_PREFIXES}
        for record in await self._connection.fetch(_SOURCES_SQL, row_id, most + 1, content):
            result[record["kind"]].append(_decode_row(record["kind"], record["data"]))
        if not result["run"]:
            return None
        result["run"].sort(key=lambda row: row["id"] != execution_id)
        return TraceSources(
            runs=msgspec.convert(result["run"][:most], list[TracedRun]),
            plans=msgspec.convert(result["plan"], list[TracedPlan]),
            stages=msgspec.convert(result["stage"][:most], list[TracedPlanStep]),
            steps=msgspec.convert(result["step"][:most], list[TracedRunStep]),
            calls=msgspec.convert(result["call"][:most], list[TracedModelCall]),
            is_truncated=any(len(rows) > most for rows in result.values()),
        )

    async def enable_export(self, now: datetime) -> None:
        await self._connection.execute_sql("SELECT want_traces($1)", now)

    async def claim_exports(self, most: int, now: datetime, until: datetime) -> list[PendingTraceExport]:
        records = await self._connection.fetch("SELECT * FROM claim_traces($1, $2, $3)", most, now, until)
        return [
            PendingTraceExport(
                execution_id=ids.encode_id("exec", record["execution_id"]),
                tenant_id=record["tenant_id"],
                tries=record["tries"],
            )
            for record in records
        ]

    async def mark_exported(self, execution_ids: list[str]) -> None:
        await self._connection.execute_sql("SELECT exported_traces($1)", _decode_ids(execution_ids))

    async def postpone_exports(self, execution_ids: list[str], until: datetime, counts: bool) -> None:
        await self._connection.execute_sql(
            "SELECT postpone_traces($1, $2, $3)", _decode_ids(execution_ids), until, counts
        )


def _decode_row(kind: str, data: str) -> dict[str, Any]:
    row: dict[str, Any] = {name: value for name, value in msgspec.json.decode(data).items() if value is not None}
    for name, prefix in _ID_PREFIXES[kind].items():
        if name in row:
            row[name] = ids.encode_id(prefix, UUID(row[name]))
    return row


def _decode_ids(execution_ids: list[str]) -> list[UUID | None]:
    return [ids.decode_id("exec", entry) for entry in execution_ids]
