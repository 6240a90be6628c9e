"""Find agents, crews and workflows in Postgres by one name."""

from typing import Any, Final

from domain.shared import ids
from domain.targets import TARGET_KINDS, RunTarget, TargetKind
from infra.postgres.catalog import replace_nul
from infra.postgres.connection import TxConnection

_ID_PREFIXES: Final[dict[TargetKind, str]] = {"agent": "agent", "crew": "crew", "workflow": "wf"}
_TARGET_COLUMNS: Final = "id, name, tenant_id, created_at, description"
_TARGET_SELECTS: Final[dict[TargetKind, str]] = {
    "agent": f"SELECT 'agent' AS target, kind = 'llm' AS uses_model, {_TARGET_COLUMNS} "
    "FROM agents WHERE deleted_at IS NULL",
    "crew": f"SELECT 'crew' AS target, false AS uses_model, {_TARGET_COLUMNS} FROM crews WHERE true",
    "workflow": f"SELECT 'workflow' AS target, false AS uses_model, {_TARGET_COLUMNS} FROM workflows WHERE true",
}
# A new version that is being built, or that failed, leaves the current one in use.
_IS_RUNNABLE: Final = " AND status <> 'archived' AND (status = 'ready' OR current_version_id IS NOT NULL)"
_LIST_SQL: Final = " UNION ALL ".join(
    f"({select}{_IS_RUNNABLE if kind == 'agent' else ''} ORDER BY id DESC LIMIT $1)"
    for kind, select in _TARGET_SELECTS.items()
)


class PostgresTargets:
    """Provide `domain.targets.Targets` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def list_targets(self, limit: int) -> list[RunTarget]:
        return [_read_target(record) for record in await self._connection.fetch(_LIST_SQL, limit)]

    async def find_targets(self, reference: str, kinds: tuple[TargetKind, ...]) -> list[RunTarget]:
        for kind in kinds:
            if (row_id := ids.decode_id(_ID_PREFIXES[kind], reference)) is not None:
                records = await self._connection.fetch(f"{_TARGET_SELECTS[kind]} AND id = $1", row_id)
                return [_read_target(record) for record in records]
        find_sql = " UNION ALL ".join(f"{_TARGET_SELECTS[kind]} AND name = $1" for kind in kinds)
        records = await self._connection.fetch(find_sql, replace_nul(reference))
        return sorted((_read_target(record) for record in records), key=lambda target: TARGET_KINDS.index(target.kind))


def _read_target(record: Any) -> RunTarget:
    kind: TargetKind = record["target"]
    fields = {name: record[name] for name in ("uses_model", "name", "tenant_id", "created_at", "description")}
    return RunTarget(kind=kind, id=ids.encode_id(_ID_PREFIXES[kind], record["id"]), **fields)
