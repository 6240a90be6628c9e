"""Create and drop the monthly partitions of record tables."""

from datetime import datetime

from sqlalchemy import text

from domain.stats import RECORD_KINDS, RecordKind
from infra.postgres.connection import TxConnection


class PostgresPartitions:
    """Provide `domain.retention.RecordPartitions` on Postgres."""

    def __init__(self, connection: TxConnection) -> None:
        self._connection = connection

    async def create_partitions(self, now: datetime, ahead: int) -> int:
        inserted = [
            await self._connection.execute(
                text("SELECT make_partitions(:kind, :now, :ahead)"), {"kind": kind, "now": now, "ahead": ahead}
            )
            for kind in RECORD_KINDS
        ]
        return sum(entry.scalar_one() for entry in inserted)

    async def drop_empty_partition(self, kind: RecordKind, before: datetime) -> int:
        dropped = await self._connection.execute(
            text("SELECT drop_empty_partition(:kind, :before)"), {"kind": kind, "before": before}
        )
        return int(dropped.scalar_one())
