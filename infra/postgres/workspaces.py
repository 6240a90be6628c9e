"""Store the list of files of workspaces in Postgres; their bytes are in object storage."""

from datetime import datetime
from typing import Final

from sqlalchemy import BigInteger, ForeignKey, Text
from sqlalchemy.orm import Mapped, mapped_column

from domain.shared import ids
from domain.workspaces import WorkspaceFile
from infra.postgres.connection import TxConnection
from infra.postgres.db import Base, Id, RowMapper, create_timestamp


class WorkspaceFileRow(Base):
    """Map a row of `workspace_files`: one file."""

    __tablename__ = "workspace_files"
    execution_id: Mapped[str] = mapped_column(Id("exec"), ForeignKey("executions.id"), primary_key=True)
    path: Mapped[str] = mapped_column(Text, primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    sha256: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    key: Mapped[str] = mapped_column(Text, index=True)
    updated_at: Mapped[datetime] = mapped_column(create_timestamp())


_ROW_MAPPER: Final = RowMapper(WorkspaceFileRow, WorkspaceFile)
_LIST_SQL: Final = f"SELECT {_ROW_MAPPER.columns} FROM workspace_files WHERE execution_id = $1 ORDER BY path"
_FIND_SQL: Final = f"SELECT {_ROW_MAPPER.columns} FROM workspace_files WHERE execution_id = $1 AND path = $2"
_PUT_SQL: Final = """
    INSERT INTO workspace_files (execution_id, path, tenant_id, sha256, size_bytes, key, updated_at)
    SELECT id, $2, tenant_id, $3, $4, $5, $6 FROM executions WHERE id = $1
    ON CONFLICT (execution_id, path) DO UPDATE SET
        sha256 = excluded.sha256, size_bytes = excluded.size_bytes, key = excluded.key,
        updated_at = excluded.updated_at
"""
_COPY_SQL: Final = """
    INSERT INTO workspace_files (execution_id, path, tenant_id, sha256, size_bytes, key, updated_at)
    SELECT $2, path, tenant_id, sha256, size_bytes, key, updated_at FROM workspace_files WHERE execution_id = $1
    FOR KEY SHARE
"""


class PostgresWorkspaces:
    """Provide `domain.workspaces.Workspaces` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def list_files(self, execution_id: str) -> list[WorkspaceFile]:
        return [
            _ROW_MAPPER.to_struct(record)
            for record in await self._connection.fetch(_LIST_SQL, ids.decode_id("exec", execution_id))
        ]

    async def find(self, execution_id: str, path: str) -> WorkspaceFile | None:
        record = await self._connection.fetch_row(
            _FIND_SQL, ids.decode_id("exec", execution_id), path.replace("\0", "\ufffd")
        )
        return None if record is None else _ROW_MAPPER.to_struct(record)

    async def find_blob_key(self, execution_id: str, path: str) -> str | None:
        query = "SELECT key FROM workspace_files WHERE execution_id = $1 AND path = $2"
        result: str | None = await self._connection.fetch_value(
            query, ids.decode_id("exec", execution_id), path.replace("\0", "\ufffd")
        )
        return result

    async def list_keys(self, execution_id: str, *, lock: bool = False) -> dict[str, str]:
        query = f"SELECT path, key FROM workspace_files WHERE execution_id = $1{' FOR KEY SHARE' if lock else ''}"
        records = await self._connection.fetch(query, ids.decode_id("exec", execution_id))
        return {record["path"]: record["key"] for record in records}

    async def copy_files(self, execution_id: str, into: str) -> None:
        await self._connection.execute_sql(_COPY_SQL, ids.decode_id("exec", execution_id), ids.decode_id("exec", into))

    async def save_file(self, execution_id: str, file: WorkspaceFile, key: str) -> None:
        await self._connection.execute_sql(
            _PUT_SQL, ids.decode_id("exec", execution_id), file.path, file.sha256, file.size_bytes, key, file.updated_at
        )
