"""Find which stored objects and cached folders rows still refer to, over all tenants."""

from sqlalchemy import text

from domain.shared import ids
from infra.postgres.connection import TxConnection


class PostgresStorageReferences:
    """Provide `domain.retention.StorageReferences` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def find_objects(self, paths: list[str]) -> set[str]:
        rows = await self._connection.execute(
            text("SELECT path FROM known_objects(CAST(:paths AS text[])) AS path"), {"paths": paths}
        )
        return {row.path for row in rows}

    async def find_versions(self, version_ids: list[str]) -> set[str]:
        row_ids = {ids.decode_id("ver", version_id): version_id for version_id in version_ids}
        rows = await self._connection.execute(
            text("SELECT id FROM known_versions(CAST(:ids AS uuid[])) AS id"),
            {"ids": [row_id for row_id in row_ids if row_id is not None]},
        )
        return {row_ids[row.id] for row in rows}

    async def find_environments(self, names: list[str]) -> set[str]:
        rows = await self._connection.execute(
            text("SELECT name FROM known_environments(CAST(:names AS text[])) AS name"), {"names": names}
        )
        return {row.name for row in rows}
