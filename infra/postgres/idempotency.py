"""Store first answers by idempotency key in Postgres."""

from datetime import datetime

from sqlalchemy import LargeBinary, Text
from sqlalchemy.orm import Mapped, mapped_column

from domain.shared.idempotency import IDEMPOTENCY_LIFETIME, IdempotentRequest, StoredResponse
from infra.postgres.connection import TxConnection
from infra.postgres.db import Base, create_timestamp


class AnswerRow(Base):
    """Map a row of `idempotency_keys`: a first answer, kept for a day."""

    __tablename__ = "idempotency_keys"
    tenant_id: Mapped[str] = mapped_column(Text, primary_key=True)
    owner: Mapped[str] = mapped_column(Text, primary_key=True)
    key: Mapped[str] = mapped_column(Text, primary_key=True)
    fingerprint: Mapped[bytes] = mapped_column(LargeBinary)
    status: Mapped[int]
    body: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(create_timestamp(), index=True)


# Keys in order, so that two batches which share some cannot wait for each other.
_CLAIM_MANY = """
    INSERT INTO idempotency_keys (tenant_id, owner, key, fingerprint, status, body, created_at)
    SELECT current_setting('paddock.tenant_id'), owner, key, fingerprint, 0, '', $4
    FROM unnest($1::text[], $2::text[], $3::bytea[]) AS a(owner, key, fingerprint) ORDER BY owner, key
    ON CONFLICT (tenant_id, owner, key) DO UPDATE
        SET fingerprint = excluded.fingerprint, status = 0, body = '', created_at = excluded.created_at
        WHERE idempotency_keys.created_at < $5
    RETURNING owner, key
"""
_FIND_MANY = """
    SELECT k.owner, k.key, k.fingerprint, k.status, k.body
    FROM unnest($1::text[], $2::text[]) AS a(owner, key) JOIN idempotency_keys k ON k.owner = a.owner AND k.key = a.key
"""
_KEEP_MANY = """
    UPDATE idempotency_keys k SET status = 201, body = a.body
    FROM unnest($1::text[], $2::text[], $3::bytea[]) AS a(owner, key, body)
    WHERE k.owner = a.owner AND k.key = a.key
"""
_FORGET_MANY = """
    UPDATE idempotency_keys k SET created_at = '-infinity'
    FROM unnest($1::text[], $2::text[]) AS a(owner, key) WHERE k.owner = a.owner AND k.key = a.key
"""


class PostgresIdempotencyKeys:
    """Provide `domain.shared.idempotency.IdempotencyKeys` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def claim_keys(self, asked: list[IdempotentRequest], now: datetime) -> dict[tuple[str, str], StoredResponse]:
        # A concurrent request with the same key waits here for the other's commit, then finds its answer.
        columns = [[getattr(entry, name) for entry in asked] for name in ("owner", "key", "fingerprint")]
        claimed = await self._connection.fetch(_CLAIM_MANY, *columns, now, now - IDEMPOTENCY_LIFETIME)
        mine = {(record["owner"], record["key"]) for record in claimed}
        others = [(entry.owner, entry.key) for entry in asked if (entry.owner, entry.key) not in mine]
        if not others:
            return {}
        result = await self._connection.fetch(_FIND_MANY, *([pair[place] for pair in others] for place in (0, 1)))
        return {
            (record["owner"], record["key"]): StoredResponse(
                fingerprint=record["fingerprint"], status=record["status"], body=record["body"]
            )
            for record in result
        }

    async def store_responses(self, answers: dict[tuple[str, str], bytes]) -> None:
        owners, keys = ([pair[place] for pair in answers] for place in (0, 1))
        await self._connection.execute_sql(_KEEP_MANY, owners, keys, list(answers.values()))

    async def release_keys(self, claimed: list[tuple[str, str]]) -> None:
        # Left for anybody: as old as a key that has expired.
        owners, keys = ([pair[place] for pair in claimed] for place in (0, 1))
        await self._connection.execute_sql(_FORGET_MANY, owners, keys)
