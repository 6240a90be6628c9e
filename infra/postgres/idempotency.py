"""First answers by idempotency key in Postgres."""

from datetime import datetime, timedelta

from sqlalchemy import LargeBinary, Text, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.sql import func

from domain.idempotency import LIFETIME, Answer
from infra.postgres.db import Base, as_struct, timestamp


class AnswerRow(Base):
    """A first answer, kept for a day."""

    __tablename__ = "idempotency_keys"
    tenant_id: Mapped[str] = mapped_column(Text, primary_key=True)
    owner: Mapped[str] = mapped_column(Text, primary_key=True)
    key: Mapped[str] = mapped_column(Text, primary_key=True)
    fingerprint: Mapped[bytes] = mapped_column(LargeBinary)
    status: Mapped[int]
    body: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(timestamp(), index=True)


class PostgresAnswers:
    """Implements `domain.idempotency.Answers`."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def claim(self, owner: str, key: str, fingerprint: bytes, now: datetime) -> Answer | None:
        # A concurrent request with the same key waits here for the other's commit, then finds its answer.
        values = {"fingerprint": fingerprint, "status": 0, "body": b"", "created_at": now}
        claim = insert(AnswerRow).values(
            tenant_id=func.current_setting("paddock.tenant_id"), owner=owner, key=key, **values
        )
        claimed = await self._connection.execute(
            claim.on_conflict_do_update(
                index_elements=["tenant_id", "owner", "key"],
                set_=values,
                where=AnswerRow.created_at < now - timedelta(seconds=LIFETIME.total_seconds()),
            ).returning(AnswerRow.key)
        )
        if claimed.first() is not None:
            return None
        query = select(AnswerRow).where(AnswerRow.owner == owner, AnswerRow.key == key)
        return as_struct((await self._connection.execute(query)).one(), Answer)

    async def keep(self, owner: str, key: str, status: int, body: bytes) -> None:
        statement = update(AnswerRow).where(AnswerRow.owner == owner, AnswerRow.key == key)
        await self._connection.execute(statement.values(status=status, body=body))
