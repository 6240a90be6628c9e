"""Transactions: bound to one tenant when they begin, ringing for jobs once they have committed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime

import asyncpg
from sqlalchemy import exc, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from domain.access import Caller
from domain.accounts import Accounts
from domain.agents import Agents
from domain.builds import Builds
from domain.errors import DomainError
from domain.events import Events
from domain.executions import Executions
from domain.idempotency import Answers
from domain.jobs import Job
from domain.keys import Keys
from domain.ports import Clock, Queue, Tx
from domain.queues import Queues
from infra.postgres.accounts import PostgresAccounts
from infra.postgres.agents import PostgresAgents
from infra.postgres.builds import PostgresBuilds
from infra.postgres.events import PostgresEvents
from infra.postgres.executions import PostgresExecutions
from infra.postgres.idempotency import PostgresAnswers
from infra.postgres.keys import PostgresKeys
from infra.postgres.queues import PostgresQueues

_BIND = text("SELECT set_config('paddock.tenant_id', :tenant, true)")
_GONE = (OperationalError, OSError, TimeoutError, exc.TimeoutError)
_PASSING = (
    asyncpg.CannotConnectNowError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.AdminShutdownError,
    asyncpg.TooManyConnectionsError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
)
_DETAIL = "The database did not answer. Try again; with an Idempotency-Key nothing is done twice."


class PostgresTx:
    """One open transaction: a repository per capability on one connection."""

    def __init__(self, connection: AsyncConnection, now: datetime) -> None:
        self.now = now
        self.rings: list[Job] = []
        self.changes: list[str] = []
        self.accounts: Accounts = PostgresAccounts(connection)
        self.keys: Keys = PostgresKeys(connection)
        self.agents: Agents = PostgresAgents(connection)
        self.builds: Builds = PostgresBuilds(connection, now)
        self.executions: Executions = PostgresExecutions(connection)
        self.events: Events = PostgresEvents(connection)
        self.answers: Answers = PostgresAnswers(connection)
        self.queues: Queues = PostgresQueues(connection)

    def ring(self, job: Job) -> None:
        """Ring for this job after the commit."""
        self.rings.append(job)

    def changed(self, row_id: str) -> None:
        """Wake waiters of this row after the commit."""
        self.changes.append(row_id)


class PostgresStore:
    """Begins transactions. Errors: `unavailable` while the database cannot be reached."""

    def __init__(self, engine: AsyncEngine, queue: Queue, clock: Clock) -> None:
        self._engine = engine
        self._queue = queue
        self._clock = clock

    def begin(self, caller: Caller) -> AbstractAsyncContextManager[Tx]:
        """For a caller: sees and writes its tenant's rows alone."""
        return self._begin(caller.tenant_id)

    def begin_for(self, tenant_id: str) -> AbstractAsyncContextManager[Tx]:
        """For work on a tenant's behalf without a caller."""
        return self._begin(tenant_id)

    def begin_unbound(self) -> AbstractAsyncContextManager[Tx]:
        """Bound to no tenant: sees no tenant's rows."""
        return self._begin("")

    async def check(self) -> None:
        """One round trip, for health. Errors: `unavailable`."""
        async with self._begin(""):
            pass

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()

    @asynccontextmanager
    async def _begin(self, tenant_id: str) -> AsyncIterator[Tx]:
        try:
            connection = await self._bound(tenant_id)
            try:
                tx = PostgresTx(connection, self._clock())
                yield tx
                await connection.commit()
            finally:
                # Closing rolls back what was not committed, also when the task is being cancelled.
                await asyncio.shield(connection.close())
        except _GONE as error:
            raise _unavailable() from error
        except DBAPIError as error:
            if error.connection_invalidated or isinstance(getattr(error.orig, "__cause__", None), _PASSING):
                raise _unavailable() from error
            raise
        except _PASSING as error:
            raise _unavailable() from error
        if tx.rings or tx.changes:
            await self._queue.ring(tx.rings, tx.changes)

    async def _bound(self, tenant_id: str) -> AsyncConnection:
        # A pooled connection may have died with its server. Nothing was written on it, so try a fresh one once.
        for last in (False, True):
            connection = await self._engine.connect()
            try:
                await connection.execute(_BIND, {"tenant": tenant_id})
            except DBAPIError as error:
                await connection.close()
                if last or not error.connection_invalidated:
                    raise
            except BaseException:
                await asyncio.shield(connection.close())
                raise
            else:
                return connection
        raise AssertionError("unreachable")


def _unavailable() -> DomainError:
    return DomainError(
        "unavailable",
        "The database did not answer. Try again; with an Idempotency-Key nothing is done twice.",
        retry_after=1,
    )
