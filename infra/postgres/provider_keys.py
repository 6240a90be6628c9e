"""Store provider keys in Postgres: sealed texts, which no row class of another file reads."""

from datetime import datetime
from typing import Any, Literal

from sqlalchemy import LargeBinary, Text, UniqueConstraint, delete, func, select
from sqlalchemy.orm import Mapped, mapped_column

from domain.provider_keys import ProviderKey
from domain.shared import ids
from domain.shared.pages import Listing, Page
from infra.postgres.catalog import LOCK_CLAUSES, insert_row, replace_nul, update_row
from infra.postgres.connection import TxConnection
from infra.postgres.db import Base, Id, RowMapper, create_timestamp
from infra.postgres.pages import fetch_page


class ProviderKeyRow(Base):
    """Map a row of `provider_keys`: a key for an outside service, sealed."""

    __tablename__ = "provider_keys"
    __table_args__ = (UniqueConstraint("tenant_id", "slug"),)
    id: Mapped[str] = mapped_column(Id("pkey"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    slug: Mapped[str] = mapped_column(Text)
    service: Mapped[str] = mapped_column(Text)
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    last_four: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(create_timestamp())
    updated_at: Mapped[datetime] = mapped_column(create_timestamp())


_ROW_MAPPER = RowMapper(ProviderKeyRow, ProviderKey)
_LISTED_COLUMNS = [column for column in ProviderKeyRow.__table__.columns if column.name != "sealed"]
_FIND_SQL = f"SELECT {_ROW_MAPPER.columns} FROM provider_keys WHERE "
_USERS_SQL = (
    "SELECT 'model ' || name AS used_by FROM models WHERE api_key_name = $1 "
    "UNION ALL SELECT 'tool ' || name FROM tools WHERE $1 = ANY (key_names) ORDER BY used_by"
)
_FIND_FOR_SERVICE_SQL = "SELECT sealed FROM provider_keys WHERE lower(service) = $1 LIMIT 2"


class PostgresProviderKeys:
    """Provide `domain.provider_keys.ProviderKeys` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def add(self, key: ProviderKey, sealed: bytes) -> bool:
        values = {name: getattr(key, name) for name in ProviderKey.__struct_fields__}
        return await insert_row(self._connection, ProviderKeyRow, {**values, "sealed": sealed})

    async def find(self, reference: str, lock: bool | Literal["share"] = False) -> ProviderKey | None:
        row_id = ids.decode_id("pkey", reference)
        if row_id is not None:
            record = await self._connection.fetch_row(f"{_FIND_SQL} id = $1{LOCK_CLAUSES[lock]}", row_id)
        else:
            name = replace_nul(reference)
            record = await self._connection.fetch_row(
                f"{_FIND_SQL} (name = $1 OR slug = $1) ORDER BY name = $1 DESC LIMIT 1{LOCK_CLAUSES[lock]}", name
            )
        return None if record is None else _ROW_MAPPER.to_struct(record)

    async def list_page(self, page: Page, service: str | None) -> Listing[ProviderKey]:
        query = select(*_LISTED_COLUMNS)
        if service is not None:
            query = query.where(func.lower(ProviderKeyRow.service) == replace_nul(service.lower()))
        return await fetch_page(self._connection, query, ProviderKeyRow.id.desc(), page, ProviderKey)

    async def save(self, key: ProviderKey, sealed: bytes | None) -> bool:
        names = ("name", "slug", "service", "last_four", "updated_at")
        values: dict[str, Any] = {name: getattr(key, name) for name in names}
        if sealed is not None:
            values["sealed"] = sealed
        return await update_row(self._connection, ProviderKeyRow, key.id, values)

    async def delete(self, key_id: str) -> None:
        await self._connection.execute(delete(ProviderKeyRow).where(ProviderKeyRow.id == key_id))

    async def find_slug_holders(self, slugs: list[str]) -> dict[str, str]:
        result = await self._connection.fetch(
            "SELECT slug, name FROM provider_keys WHERE slug = ANY($1::text[])", slugs
        )
        return {record["slug"]: record["name"] for record in result}

    async def list_users(self, slug: str) -> list[str]:
        return [record["used_by"] for record in await self._connection.fetch(_USERS_SQL, slug)]

    async def find_sealed(self, slug: str) -> bytes | None:
        result: bytes | None = await self._connection.fetch_value(
            "SELECT sealed FROM provider_keys WHERE slug = $1", slug
        )
        return result

    async def find_sealed_for_service(self, service: str) -> bytes | None:
        result = await self._connection.fetch(_FIND_FOR_SERVICE_SQL, service)
        return result[0]["sealed"] if len(result) == 1 else None

    async def list_sealed(self, after: str | None, most: int) -> list[tuple[str, bytes]]:
        last = None if after is None else ids.decode_id("pkey", after)
        result = await self._connection.fetch("SELECT id, sealed FROM sealed_keys($1, $2)", last, most)
        return [(ids.encode_id("pkey", record["id"]), record["sealed"]) for record in result]

    async def replace_sealed(self, key_id: str, old: bytes, new: bytes) -> bool:
        moved: int = await self._connection.fetch_value(
            "SELECT reseal_key($1, $2, $3)", ids.decode_id("pkey", key_id), old, new
        )
        return moved == 1
