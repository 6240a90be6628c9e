"""Store API keys in Postgres."""

from datetime import datetime
from typing import Any

import asyncpg
from sqlalchemy import BigInteger, ForeignKey, LargeBinary, Text, delete, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import ARRAY, insert
from sqlalchemy.orm import Mapped, mapped_column

from domain.accounts import ApiKey, ApiKeyIdentity
from domain.shared import ids
from domain.shared.pages import Listing, Page
from infra.postgres.connection import TxConnection
from infra.postgres.db import Base, Id, create_timestamp, struct_from_row
from infra.postgres.pages import fetch_page


class ApiKeyRow(Base):
    """Map a row of `api_keys`: a key, by its SHA-256."""

    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(Id("key"), primary_key=True)
    tenant_id: Mapped[str] = mapped_column(Text, ForeignKey("tenants.id"), index=True)
    user_id: Mapped[str] = mapped_column(Id("user"), ForeignKey("users.id"))
    name: Mapped[str] = mapped_column(Text)
    description: Mapped[str | None] = mapped_column(Text)
    key_hash: Mapped[bytes] = mapped_column(LargeBinary, unique=True)
    key_prefix: Mapped[str] = mapped_column(Text)
    scopes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    rate_limit_per_minute: Mapped[int | None]
    expires_at: Mapped[datetime | None] = mapped_column(create_timestamp())
    is_active: Mapped[bool]
    last_used_at: Mapped[datetime | None] = mapped_column(create_timestamp())
    usage_count: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(create_timestamp())
    updated_at: Mapped[datetime] = mapped_column(create_timestamp())


_FIND_SQL = "SELECT f.* FROM unnest($1::bytea[]) AS h(hash) CROSS JOIN LATERAL find_key(h.hash) AS f"
_COUNT_USE_SQL = text(
    "SELECT count_key_use(CAST(:ids AS uuid[]), CAST(:uses AS bigint[]), CAST(:times AS timestamptz[]))"
)


class PostgresApiKeys:
    """Provide `domain.accounts.keys.ApiKeys` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def find(self, key_hashes: list[bytes]) -> dict[bytes, ApiKeyIdentity]:
        records = await self._connection.fetch(_FIND_SQL, key_hashes)
        return {record["key_hash"]: _read_identity(record) for record in records}

    async def count_use(self, uses: dict[str, tuple[int, datetime]]) -> None:
        # In the order of ids, so that two processes that count the same keys cannot deadlock.
        keys = sorted(uses)
        await self._connection.execute(
            _COUNT_USE_SQL,
            {
                "ids": [ids.decode_id("key", key) for key in keys],
                "uses": [uses[key][0] for key in keys],
                "times": [uses[key][1] for key in keys],
            },
        )

    async def count_active(self, user_id: str, now: datetime) -> int:
        in_force = ApiKeyRow.is_active, or_(ApiKeyRow.expires_at.is_(None), ApiKeyRow.expires_at > now)
        query = select(func.count()).select_from(ApiKeyRow).where(ApiKeyRow.user_id == user_id, *in_force)
        return int((await self._connection.execute(query)).scalar_one())

    async def add(self, key: ApiKey, key_hash: bytes) -> None:
        values = {name: getattr(key, name) for name in ApiKey.__struct_fields__}
        await self._connection.execute(insert(ApiKeyRow).values(**values, key_hash=key_hash))

    async def get(self, key_id: str, owner: str | None, lock: bool = False) -> ApiKey | None:
        if ids.decode_id("key", key_id) is None:
            return None
        query = select(ApiKeyRow).where(ApiKeyRow.id == key_id)
        if owner is not None:
            query = query.where(ApiKeyRow.user_id == owner)
        if lock:
            query = query.with_for_update()
        row = (await self._connection.execute(query)).first()
        return None if row is None else struct_from_row(row, ApiKey)

    async def list_page(self, owner: str | None, page: Page) -> Listing[ApiKey]:
        query = select(ApiKeyRow)
        if owner is not None:
            query = query.where(ApiKeyRow.user_id == owner)
        return await fetch_page(self._connection, query, ApiKeyRow.id.desc(), page, ApiKey)

    async def save(self, key: ApiKey) -> None:
        values: dict[str, Any] = {
            name: getattr(key, name)
            for name in (
                "name",
                "description",
                "scopes",
                "rate_limit_per_minute",
                "expires_at",
                "is_active",
                "updated_at",
            )
        }
        await self._connection.execute(update(ApiKeyRow).where(ApiKeyRow.id == key.id).values(**values))

    async def delete(self, key_id: str) -> None:
        await self._connection.execute(delete(ApiKeyRow).where(ApiKeyRow.id == key_id))


def _read_identity(record: asyncpg.Record) -> ApiKeyIdentity:
    result = dict(record)
    result["key_id"] = ids.encode_id("key", result["key_id"])
    result["user_id"] = ids.encode_id("user", result["user_id"])
    return struct_from_row(result, ApiKeyIdentity)
