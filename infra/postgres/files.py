"""Store uploaded files in Postgres; their bytes are in object storage."""

from datetime import datetime
from typing import Final

from sqlalchemy import BigInteger, ForeignKey, Text, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Mapped, mapped_column

from domain.files import StoredFile
from domain.shared import ids
from domain.shared.pages import Listing, Page
from infra.postgres.connection import TxConnection
from infra.postgres.db import Base, Id, RowMapper, create_timestamp
from infra.postgres.pages import fetch_page


class FileRow(Base):
    """Map a row of `files`: an uploaded file."""

    __tablename__ = "files"
    id: Mapped[str] = mapped_column(Id("file"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text, ForeignKey("tenants.id"))
    user_id: Mapped[str] = mapped_column(Id("user"), ForeignKey("users.id"))
    name: Mapped[str] = mapped_column(Text)
    content_type: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(Text)
    key: Mapped[str] = mapped_column(Text, index=True)
    created_at: Mapped[datetime] = mapped_column(create_timestamp())
    expires_at: Mapped[datetime | None] = mapped_column(create_timestamp())


_ROW_MAPPER: Final = RowMapper(FileRow, StoredFile)
_FIND_SQL: Final = f"SELECT {_ROW_MAPPER.columns} FROM files WHERE (expires_at IS NULL OR expires_at > $2) AND "
_DELETE_SQL: Final = """
    WITH gone AS (DELETE FROM files WHERE id = $1 RETURNING tenant_id)
    INSERT INTO doomed_objects (key, tenant_id, due)
    SELECT $2, tenant_id, $3 FROM gone WHERE NOT EXISTS (SELECT FROM workspace_files w WHERE w.key = $2)
    ON CONFLICT DO NOTHING
"""


class PostgresFiles:
    """Provide `domain.files.Files` on Postgres."""

    def __init__(self, connection: TxConnection, now: datetime) -> None:
        self._connection, self._now = connection, now

    async def add(self, file: StoredFile, key: str) -> None:
        values = {name: getattr(file, name) for name in StoredFile.__struct_fields__}
        await self._connection.execute(insert(FileRow).values(**values, key=key))

    async def find(self, file_id: str, *, lock: bool = False) -> StoredFile | None:
        row_id = ids.decode_id("file", file_id)
        if row_id is None:
            return None
        record = await self._connection.fetch_row(
            f"{_FIND_SQL} id = $1{' FOR UPDATE' if lock else ''}", row_id, self._now
        )
        return None if record is None else _ROW_MAPPER.to_struct(record)

    async def find_many(self, file_ids: list[str]) -> dict[str, StoredFile]:
        row_ids = [row_id for file_id in file_ids if (row_id := ids.decode_id("file", file_id)) is not None]
        records = await self._connection.fetch(
            f"{_FIND_SQL} id = ANY ($1::uuid[]) ORDER BY id FOR SHARE", row_ids, self._now
        )
        return {file.id: file for file in map(_ROW_MAPPER.to_struct, records)}

    async def list_page(self, page: Page) -> Listing[StoredFile]:
        query = select(FileRow).where(or_(FileRow.expires_at.is_(None), FileRow.expires_at > self._now))
        return await fetch_page(self._connection, query, FileRow.id.desc(), page, StoredFile)

    async def delete(self, file_id: str, key: str) -> None:
        await self._connection.execute_sql(_DELETE_SQL, ids.decode_id("file", file_id), key, self._now)
