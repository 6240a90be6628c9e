"""Find in Postgres what is exposed to MCP clients, and the runs of their calls."""

from typing import Any, Final
from uuid import UUID

import msgspec

from domain.agents import MAX_ANCESTRY_DEPTH
from domain.mcp import REQUEST_METADATA_KEY, ExposedTarget, McpDefinition
from domain.shared import ids
from infra.postgres.connection import TxConnection

_ID_PREFIXES: Final = {"agent": "agent", "crew": "crew", "workflow": "wf"}
# An agent without a version that runs, or without a model, cannot be started.
_LIST_SQL: Final = """
    SELECT 'agent' AS kind, id, name FROM agents
    WHERE expose @> '{mcp}' AND deleted_at IS NULL AND status <> 'archived'
      AND (status = 'ready' OR current_version_id IS NOT NULL)
    UNION ALL SELECT 'crew', id, name FROM crews WHERE expose @> '{mcp}'
    UNION ALL SELECT 'workflow', id, name FROM workflows WHERE expose @> '{mcp}' AND status = 'active'
    ORDER BY id
"""
_DEFINE_SQL: Final = f"""
    SELECT 'agent' AS kind, a.id, a.description, a.kind = 'llm' AS runs_model,
           coalesce(own.input_schema, v.input_schema)::text AS input_schema,
           coalesce(own.output_schema, v.output_schema)::text AS output_schema,
           NULL AS inputs, '' AS texts
    FROM agents a LEFT JOIN agent_versions v ON v.id = a.current_version_id
    CROSS JOIN LATERAL (
        -- Its own schemas, or those of the nearest ancestor that has them.
        WITH RECURSIVE ancestors AS (
            SELECT a.parent_id, a.input_schema, a.output_schema, 1 AS depth
            UNION ALL SELECT p.parent_id, p.input_schema, p.output_schema, depth + 1
            FROM ancestors c JOIN agents p ON p.id = c.parent_id AND p.deleted_at IS NULL
            WHERE depth <= {MAX_ANCESTRY_DEPTH}
        ) SELECT (array_agg(input_schema ORDER BY depth) FILTER (WHERE input_schema IS NOT NULL))[1] AS input_schema,
                 (array_agg(output_schema ORDER BY depth) FILTER (WHERE output_schema IS NOT NULL))[1] AS output_schema
        FROM ancestors
    ) AS own
    WHERE a.id = ANY ($1::uuid[]) AND a.deleted_at IS NULL
    UNION ALL SELECT 'crew', id, description, false, NULL, NULL, inputs::text,
           concat(agents_yaml, E'\\n', tasks_yaml)
    FROM crews WHERE id = ANY ($1::uuid[])
    UNION ALL SELECT 'workflow', id, description, false, NULL, output_schema::text, inputs::text, ''
    FROM workflows WHERE id = ANY ($1::uuid[])
"""
# A retry has the metadata of the call's run, and does not belong to the call.
_FIND_CALL_SQL: Final = f"""
    SELECT id FROM executions
    WHERE status IN ('pending', 'preparing', 'running', 'waiting') AND user_id = $2 AND parent_id IS NULL
      AND metadata ->> '{REQUEST_METADATA_KEY}' = $1 AND retry_of IS NULL
    ORDER BY id DESC LIMIT 1
"""


class PostgresMcpTargets:
    """Provide `domain.mcp.McpTargets` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def list_targets(self) -> list[ExposedTarget]:
        records = await self._connection.fetch(_LIST_SQL)
        return [ExposedTarget(kind=row["kind"], id=_encode(row), name=row["name"]) for row in records]

    async def list_definitions(self, targets: list[ExposedTarget]) -> dict[str, McpDefinition]:
        row_ids = [ids.decode_id(_ID_PREFIXES[target.kind], target.id) for target in targets]
        records = await self._connection.fetch(_DEFINE_SQL, row_ids)
        return {definition.id: definition for definition in map(_read_definition, records)}

    async def find_open_call(self, request_key: str, user_id: str) -> str | None:
        record = await self._connection.fetch_row(_FIND_CALL_SQL, request_key, ids.decode_id("user", user_id))
        return None if record is None else ids.encode_id("exec", record["id"])


def _read_definition(row: Any) -> McpDefinition:
    return McpDefinition(
        id=_encode(row),
        description=row["description"],
        runs_model=row["runs_model"],
        input_schema=_decode(row["input_schema"]),
        output_schema=_decode(row["output_schema"]),
        inputs=_decode(row["inputs"]),
        texts=row["texts"],
    )


def _encode(row: Any) -> str:
    row_id: UUID = row["id"]
    return ids.encode_id(_ID_PREFIXES[row["kind"]], row_id)


def _decode(text: str | None) -> dict[str, Any] | None:
    # A column that was set to JSON's null is none too.
    value: dict[str, Any] | None = None if text is None else msgspec.json.decode(text)
    return value
