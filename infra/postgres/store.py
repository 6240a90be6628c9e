"""Begin transactions, each bound to one tenant, and ring for jobs once they have committed."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Final, TypeVar, cast

import asyncpg
import structlog
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from domain.accounts import Accounts, ApiKeys, Tenants
from domain.agents import Agents
from domain.artifacts import Artifacts
from domain.builds import Builds
from domain.bulk_operations import BulkOperations
from domain.costs import Budgets, Costs
from domain.crews import CrewMemories, Crews
from domain.egress import DECLARED_EGRESS, EgressPolicy
from domain.evaluations import Evaluations
from domain.events import Events
from domain.executions import Executions, ExecutionTerms, Gates, RunSteps, admit_next
from domain.files import Files
from domain.llms import Llms
from domain.mcp import McpTargets
from domain.plans import Plans
from domain.ports import Clock, Queue, Tx
from domain.provider_keys import ProviderKeys
from domain.queues import Workers, WorkQueues
from domain.retention import RecordPartitions, RetentionRepository, StorageReferences
from domain.schedules import Schedules
from domain.secrets import Secrets
from domain.shared.access import Caller
from domain.shared.errors import DomainError
from domain.shared.idempotency import IdempotencyKeys
from domain.shared.jobs import Job, RowChange
from domain.states import States
from domain.stats import Stats
from domain.targets import Targets
from domain.tasks import Tasks
from domain.templates import Templates
from domain.threads import Threads
from domain.tools import Tools
from domain.traces import Traces
from domain.workflows import Workflows
from domain.workspaces import Workspaces
from infra.disks import build_full_disk_error, is_full
from infra.outage_log import log_outage
from infra.polling import retry_through_outage
from infra.postgres.accounts import PostgresAccounts
from infra.postgres.agents import PostgresAgents
from infra.postgres.artifacts import PostgresArtifacts
from infra.postgres.budgets import PostgresBudgets
from infra.postgres.builds import PostgresBuilds
from infra.postgres.bulk_operations import PostgresBulkOperations
from infra.postgres.connection import AsyncpgConnection, TxConnection
from infra.postgres.costs import PostgresCosts
from infra.postgres.crew_memories import PostgresCrewMemories
from infra.postgres.crews import PostgresCrews
from infra.postgres.evaluations import PostgresEvaluations
from infra.postgres.events import PostgresEvents
from infra.postgres.execution_terms import PostgresExecutionTerms
from infra.postgres.executions import PostgresExecutions
from infra.postgres.files import PostgresFiles
from infra.postgres.gates import PostgresGates
from infra.postgres.idempotency import PostgresIdempotencyKeys
from infra.postgres.keys import PostgresApiKeys
from infra.postgres.llms import PostgresLlms
from infra.postgres.mcp import PostgresMcpTargets
from infra.postgres.outages import LOST_CONNECTION_ERRORS, find_outage
from infra.postgres.partitions import PostgresPartitions
from infra.postgres.plans import PostgresPlans
from infra.postgres.provider_keys import PostgresProviderKeys
from infra.postgres.queues import PostgresWorkQueues
from infra.postgres.retention import PostgresRetention
from infra.postgres.schedules import PostgresSchedules
from infra.postgres.secrets import PostgresSecrets
from infra.postgres.session import check_session, get_session_start
from infra.postgres.states import PostgresStates
from infra.postgres.stats import PostgresStats
from infra.postgres.steps import PostgresSteps
from infra.postgres.storage_references import PostgresStorageReferences
from infra.postgres.targets import PostgresTargets
from infra.postgres.tasks import PostgresTasks
from infra.postgres.templates import PostgresTemplates
from infra.postgres.tenants import PostgresTenants
from infra.postgres.threads import PostgresThreads
from infra.postgres.tools import PostgresTools
from infra.postgres.traces import PostgresTraces
from infra.postgres.workers import PostgresWorkers
from infra.postgres.workflows import PostgresWorkflows
from infra.postgres.workspaces import PostgresWorkspaces

T = TypeVar("T")

_log = structlog.get_logger("paddock.store")

# As many gates as are looked at right after a commit; more are left to upkeep.
MAX_PROMPT_GATES: Final = 100

# More than a full disk takes, counted for no tenant.
_FILL_DISK_SQL: Final = """
    CREATE TEMPORARY TABLE paddock_room (filling text) ON COMMIT DROP;
    INSERT INTO paddock_room SELECT md5(n::text) FROM generate_series(1, 20000) AS n
"""


class PostgresTx:
    """Represent one open transaction: a repository per capability on one connection."""

    def __init__(self, connection: TxConnection, now: datetime, installation_egress: EgressPolicy) -> None:
        self.now, self.installation_egress = now, installation_egress
        self.rings: list[Job] = []
        self.changes: list[RowChange] = []
        self.freed: list[str] = []
        self._raw = connection.raw
        self.accounts: Accounts = PostgresAccounts(connection)
        self.tenants: Tenants = PostgresTenants(connection)
        self.api_keys: ApiKeys = PostgresApiKeys(connection)
        self.agents: Agents = PostgresAgents(connection)
        self.builds: Builds = PostgresBuilds(connection, now)
        self.executions: Executions = PostgresExecutions(connection)
        self.execution_terms: ExecutionTerms = PostgresExecutionTerms(connection)
        self.gates: Gates = PostgresGates(connection)
        self.events: Events = PostgresEvents(connection)
        self.steps: RunSteps = PostgresSteps(connection)
        self.plans: Plans = PostgresPlans(connection)
        self.workspaces: Workspaces = PostgresWorkspaces(connection)
        self.files: Files = PostgresFiles(connection, now)
        self.idempotency: IdempotencyKeys = PostgresIdempotencyKeys(connection)
        self.queues: WorkQueues = PostgresWorkQueues(connection)
        self.workers: Workers = PostgresWorkers(connection)
        self.references: StorageReferences = PostgresStorageReferences(connection)
        self.partitions: RecordPartitions = PostgresPartitions(connection)
        self.schedules: Schedules = PostgresSchedules(connection)
        self.secrets: Secrets = PostgresSecrets(connection)
        self.states: States = PostgresStates(connection)
        self.stats: Stats = PostgresStats(connection)
        self.artifacts: Artifacts = PostgresArtifacts(connection)
        self.evaluations: Evaluations = PostgresEvaluations(connection)
        self.costs: Costs = PostgresCosts(connection)
        self.budgets: Budgets = PostgresBudgets(connection)
        self.provider_keys: ProviderKeys = PostgresProviderKeys(connection)
        self.llms: Llms = PostgresLlms(connection)
        self.mcp: McpTargets = PostgresMcpTargets(connection)
        self.templates: Templates = PostgresTemplates(connection)
        self.threads: Threads = PostgresThreads(connection)
        self.crews: Crews = PostgresCrews(connection)
        self.crew_memories: CrewMemories = PostgresCrewMemories(connection)
        self.targets: Targets = PostgresTargets(connection)
        self.tasks: Tasks = PostgresTasks(connection)
        self.tools: Tools = PostgresTools(connection)
        self.traces: Traces = PostgresTraces(connection)
        self.workflows: Workflows = PostgresWorkflows(connection)
        self.retention: RetentionRepository = PostgresRetention(connection)
        self.bulk_operations: BulkOperations = PostgresBulkOperations(connection)

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """Undo what is done within, rings included, if it raises."""
        rings, changes, freed = len(self.rings), len(self.changes), len(self.freed)
        await self._raw.execute("SAVEPOINT here")
        try:
            yield
        except Exception:
            del self.rings[rings:], self.changes[changes:], self.freed[freed:]
            await self._raw.execute("ROLLBACK TO SAVEPOINT here; RELEASE SAVEPOINT here")
            raise
        await self._raw.execute("RELEASE SAVEPOINT here")

    async def check_writable(self, writing: bool) -> None:
        """Check that row-level security applies to this transaction, and that it may write. Errors: `UnsafeSession`."""
        await check_session(self._raw)
        if await self._raw.fetchval("SELECT current_setting('transaction_read_only')") == "on":
            raise asyncpg.ReadOnlySQLTransactionError("read-only")
        if writing:
            with contextlib.suppress(asyncpg.InsufficientPrivilegeError):
                await self._raw.execute(_FILL_DISK_SQL)

    def ring_job(self, job: Job) -> None:
        """Ring for this job after the commit."""
        self.rings.append(job)

    def free_gates(self, execution_id: str) -> None:
        """Admit the runs that wait at the gates of this execution, after the commit."""
        self.freed.append(execution_id)

    def announce_status(self, row_id: str, status: str) -> None:
        """Wake waiters of this row after the commit."""
        self.changes.append(RowChange(row_id=row_id, status=status))


class PostgresStore:
    """Begins transactions. Errors: `unavailable` while the database cannot be reached."""

    def __init__(
        self,
        engine: AsyncEngine,
        queue: Queue,
        clock: Clock,
        disk: Path | None = None,
        *,
        installation_egress: EgressPolicy = DECLARED_EGRESS,
    ) -> None:
        """Take as `disk` the folder of the database, if it is known here."""
        self._installation_egress = installation_egress
        self._engine = engine
        self._queue = queue
        self._clock = clock
        self._disk = disk
        # Whether its disk was full when it was last written to, as far as this process knows.
        self._was_full = False

    def transaction(self, caller: Caller) -> AbstractAsyncContextManager[Tx]:
        """Begin a transaction for a caller, which sees and writes its tenant's rows alone."""
        return self._begin(caller.tenant_id)

    def tenant_transaction(self, tenant_id: str) -> AbstractAsyncContextManager[Tx]:
        """Begin a transaction for work on a tenant's behalf without a caller."""
        return self._begin(tenant_id)

    def system_transaction(self) -> AbstractAsyncContextManager[Tx]:
        """Bound to no tenant: sees no tenant's rows."""
        return self._begin("")

    def autocommit(self) -> AbstractAsyncContextManager[Tx]:
        """Prepare for one statement, which is a transaction by itself.

        It sees no tenant's rows but through narrow functions.
        """
        return self._begin(None)

    async def run(
        self,
        tenant_id: str | None,
        work: Callable[[Tx], Awaitable[T]],
        *,
        retry: bool = False,
        max_seconds: float | None = None,
    ) -> T:
        """Run `work` in one transaction, of this tenant or of the system, and return what it returns.

        With `retry`, the whole transaction is repeated through outages, for at most `max_seconds`; see
        `infra.polling.retry_through_outage`. `work` may therefore run more than once.
        """

        async def run_once() -> T:
            async with self._begin(tenant_id or "") as tx:
                return await work(tx)

        return await retry_through_outage(run_once, max_seconds) if retry else await run_once()

    async def check_health(self) -> None:
        """Check that row-level security applies to transactions and that they may write.

        If the disk was full when this process wrote last, the check writes more than a full one takes.
        Errors: an outage, `database_unsafe`.
        """
        async with self._begin("") as tx:
            await cast(PostgresTx, tx).check_writable(writing=self._was_full)
        self._was_full = False

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()

    @asynccontextmanager
    async def _begin(self, tenant_id: str | None) -> AsyncIterator[Tx]:
        try:
            connection, raw = await self._open_connection(tenant_id)
            try:
                tx = PostgresTx(TxConnection(connection, raw), self._clock(), self._installation_egress)
                yield tx
                if raw.is_in_transaction():
                    await raw.execute("COMMIT")
            finally:
                # Rolled back if it was not committed, also when the task is being cancelled.
                await asyncio.shield(_close_connection(connection, raw))
        except DomainError:
            raise
        except Exception as error:
            outage = find_outage(error)
            if outage is None:
                raise
            if outage.code == "unavailable" and is_full(self._disk):
                # Out of room for its log, Postgres ends.
                outage = build_full_disk_error("the database")
            self._was_full = self._was_full or outage.code == "storage_full"
            raise outage from error
        if tx.rings or tx.changes:
            await self._queue.ring_jobs(tx.rings, tx.changes)
        if tx.freed:
            await self._admit_next(tx.freed)

    async def _admit_next(self, execution_ids: list[str]) -> None:
        """Admit the next runs at the gates of these, a transaction for each gate; upkeep does what fails here."""
        try:
            async with self.autocommit() as tx:
                gates = await tx.gates.list_of_runs(execution_ids[:MAX_PROMPT_GATES])
            while gates:
                async with self.autocommit() as tx:
                    gates += await admit_next(tx, gates.pop(0))
        except DomainError as error:
            log_outage(_log, "the next runs at a gate are left to upkeep", error)

    async def _open_connection(self, tenant_id: str | None) -> tuple[AsyncConnection, AsyncpgConnection]:
        # A pooled connection may have died with its server. Nothing was written on it, so try a fresh one once.
        for last in (False, True):
            connection = await self._engine.connect()
            try:
                raw = cast(AsyncpgConnection, (await connection.get_raw_connection()).driver_connection)
                session = get_session_start(connection)
                if tenant_id is not None or not session.single:
                    binding = f"SELECT set_config('paddock.tenant_id', {_quote_text(tenant_id or '')}, true)"
                    await raw.execute(session.opening + binding)
                elif raw.is_closed():
                    raise ConnectionResetError("closed")
            except LOST_CONNECTION_ERRORS:
                await connection.invalidate()
                await connection.close()
                if last:
                    raise
            except BaseException:
                await asyncio.shield(_drop_connection(connection))
                raise
            else:
                return connection, raw
        raise AssertionError("unreachable")


def _quote_text(text: str) -> str:
    """Return a string constant (PostgreSQL 4.1.2.1): quotes doubled, backslashes mean nothing."""
    return "'" + text.replace("\0", "\ufffd").replace("'", "''") + "'"


async def _close_connection(connection: AsyncConnection, raw: AsyncpgConnection) -> None:
    if raw.is_in_transaction():
        try:
            await raw.execute("ROLLBACK", timeout=5)
        except Exception:
            # The connection is not used again, and this error hides none that came before.
            await connection.invalidate()
    await connection.close()


async def _drop_connection(connection: AsyncConnection) -> None:
    await connection.invalidate()
    await connection.close()
