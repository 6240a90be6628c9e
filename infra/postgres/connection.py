"""Wrap the connection of one transaction, which repositories use in two ways."""

from typing import TypeAlias

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection

# A connection of asyncpg as SQLAlchemy holds it.
AsyncpgConnection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


class TxConnection:
    """Run statements of SQLAlchemy with `execute`, and plain SQL on hot paths with the other methods.

    Plain SQL goes to asyncpg as it is, with `$1` for parameters.
    """

    def __init__(self, connection: AsyncConnection, raw: AsyncpgConnection) -> None:
        self.raw = raw
        self.execute = connection.execute
        self.fetch = raw.fetch
        self.fetch_row = raw.fetchrow
        self.fetch_value = raw.fetchval
        self.execute_sql = raw.execute
        self.execute_many = raw.executemany
