"""Define what the domain and the workers ask of infrastructure, on one page.

`Store` begins transactions, `Tx` is one of them with a repository per capability, `Queue` rings
workers, `Blobs` holds bytes, `Sandbox` runs untrusted code, `Llm` calls language models, `Prices` knows
what they cost. Adapters live in `infra/` and pass the contract suites in `tests/contracts/`.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeVar

import msgspec

from domain.work_folder import WorkCallback

if TYPE_CHECKING:
    from domain.accounts import Accounts, ApiKeys, Tenants
    from domain.agents import Agents
    from domain.artifacts import Artifacts
    from domain.builds import Builds
    from domain.bulk_operations import BulkOperations
    from domain.costs import Budgets, Costs
    from domain.crews import CrewMemories, Crews
    from domain.egress import EgressPolicy
    from domain.evaluations import Evaluations
    from domain.events import Events
    from domain.executions import Executions, ExecutionTerms, Gates, RunSteps
    from domain.files import Files
    from domain.llms import EmbeddingCall, EmbeddingReply, Llms, ModelCall, ModelTarget, ModelUsage, ReplyPart
    from domain.mcp import McpTargets
    from domain.plans import Plans
    from domain.provider_keys import ProviderKeys
    from domain.queues import Workers, WorkQueues
    from domain.retention import RecordPartitions, RetentionRepository, StorageReferences
    from domain.schedules import Schedules
    from domain.secrets import Secrets
    from domain.shared.access import Caller
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

T = TypeVar("T")

Clock = Callable[[], datetime]


class Tx(Protocol):
    """Represent one open transaction, bound to one tenant. It is committed when its block ends without an error."""

    now: datetime
    accounts: Accounts
    tenants: Tenants
    api_keys: ApiKeys
    agents: Agents
    builds: Builds
    executions: Executions
    execution_terms: ExecutionTerms
    gates: Gates
    events: Events
    steps: RunSteps
    plans: Plans
    workspaces: Workspaces
    files: Files
    idempotency: IdempotencyKeys
    queues: WorkQueues
    workers: Workers
    references: StorageReferences
    partitions: RecordPartitions
    schedules: Schedules
    secrets: Secrets
    states: States
    stats: Stats
    artifacts: Artifacts
    evaluations: Evaluations
    costs: Costs
    budgets: Budgets
    provider_keys: ProviderKeys
    llms: Llms
    mcp: McpTargets
    templates: Templates
    threads: Threads
    crews: Crews
    crew_memories: CrewMemories
    targets: Targets
    tasks: Tasks
    tools: Tools
    traces: Traces
    workflows: Workflows
    retention: RetentionRepository
    bulk_operations: BulkOperations
    # The hosts that the installation lets uploaded code reach.
    installation_egress: EgressPolicy

    def savepoint(self) -> AbstractAsyncContextManager[None]:
        """Undo what is done within, rings included, if it raises."""
        ...

    def ring_job(self, job: Job) -> None:
        """Ring for this job once the transaction has committed, and never if it does not."""
        ...

    def free_gates(self, execution_id: str) -> None:
        """Admit the runs that wait at the gates of this execution, if there is room, once this has committed."""
        ...

    def announce_status(self, row_id: str, status: str) -> None:
        """Wake the tasks that wait for this row, which has this status now, once the transaction has committed."""
        ...


class Store(Protocol):
    """Begins transactions. The tenant is bound here, once, and row-level security enforces it."""

    def transaction(self, caller: Caller) -> AbstractAsyncContextManager[Tx]:
        """Begin a transaction of a caller, which sees the rows of the caller's tenant alone."""
        ...

    def tenant_transaction(self, tenant_id: str) -> AbstractAsyncContextManager[Tx]:
        """Begin a transaction of a tenant without a caller, for workers and registration."""
        ...

    def system_transaction(self) -> AbstractAsyncContextManager[Tx]:
        """Begin a transaction without a tenant, for authentication and upkeep.

        It sees rows of tenants only through functions and views that show little.
        """
        ...

    def autocommit(self) -> AbstractAsyncContextManager[Tx]:
        """Prepare for one statement that is a transaction of its own, for hot paths.

        It sees what `system_transaction` sees.
        """
        ...

    async def run(
        self,
        tenant_id: str | None,
        work: Callable[[Tx], Awaitable[T]],
        *,
        retry: bool = False,
        max_seconds: float | None = None,
    ) -> T:
        """Run `work` in one transaction, of this tenant or of the system, and return what it returns.

        With `retry`, the whole transaction is repeated through outages, for at most `max_seconds`. `work` may
        therefore run more than once.
        """
        ...


class Queue(Protocol):
    """Ring workers, like a doorbell. Losing every ring loses nothing: upkeep derives them again from rows."""

    async def ring_jobs(self, jobs: Sequence[Job], changes: Sequence[RowChange] = ()) -> None:
        """Ring for jobs and wake waiters. Never raises and never waits long: rings may be lost."""
        ...

    async def ring_lost_jobs(self, jobs: Sequence[Job]) -> int:
        """Ring again for those of `jobs` that no worker holds and no queue lists. Returns how many."""
        ...


class BlobInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Describe one stored object: its key, its size in bytes and when it was written."""

    key: str
    size: int
    modified: datetime


class Blobs(Protocol):
    """Store objects, in R2 or any S3. Errors: `storage_unavailable` when it cannot be reached."""

    async def write_object(self, key: str, chunks: AsyncIterator[bytes]) -> int:
        """Store a stream under `key`, whole or not at all, holding one part in memory. Returns bytes stored."""

    async def upload_file(self, key: str, path: Path) -> None: ...
    async def read_object(self, key: str, bounds: tuple[int, int] | None = None) -> AsyncIterator[bytes]:
        """Return the bytes of an object in chunks, or those from the first to the last. Errors: `not_found`."""

    async def download_file(self, key: str, path: Path) -> None:
        """Write an object to a new file. Errors: `not_found`."""

    async def delete(self, keys: Sequence[str]) -> None: ...
    def list_objects(self, prefix: str) -> AsyncIterator[BlobInfo]: ...
    # Drops multipart uploads that began before a time and never ended. Returns how many.
    async def abort_uploads(self, prefix: str, before: datetime) -> int: ...
    # Makes one cheap round trip, for health.
    async def check_connection(self) -> None: ...


OutputStream = Literal["stdout", "stderr"]
# Called between reads: it must not block. What it raises ends the run.
OutputCallback = Callable[[OutputStream, bytes], None]
# What a program sends while it runs: `output` is a value of its stream, `progress` is `{"fraction", "message"}`,
# `state` the state that it leaves, sent once at its end. With `state_request` it asks for the state of before.
MessageKind = Literal["output", "progress", "state", "state_request"]
# Called with the JSON of each message, between reads: it must not block. What it raises ends the run.
MessageCallback = Callable[[MessageKind, bytes], None]
# Serves on the listeners of a program with a network, by name, from when it is entered until it is left; may be
# entered again.
NetworkServer = Callable[[Mapping[str, socket.socket]], AbstractAsyncContextManager[None]]

# The names of listeners besides those of hosts, which are called `host:port`.
GATEWAY_LISTENER: Final = "gateway"
PROXY_LISTENER: Final = "proxy"


class EgressHost(msgspec.Struct, frozen=True):
    """Name a host outside that a program reaches, and its TCP ports."""

    name: str
    ports: tuple[int, ...]


class ProgramNetwork(msgspec.Struct, frozen=True, kw_only=True):
    """Describe the listeners in a program's own network, on which the worker serves.

    With a `gateway` the program finds `OPENAI_BASE_URL` and its like in its environment. Each of `hosts` has an address
    of its own, with a listener for each port. Names below `proxied_domains` are reached by the proxy in `HTTPS_PROXY`.
    """

    gateway: bool = False
    hosts: tuple[EgressHost, ...] = ()
    proxied_domains: tuple[str, ...] = ()


class SandboxProgram(msgspec.Struct, frozen=True, kw_only=True):
    """Describe untrusted code that is ready to run: the folder of one version, its environment if any, and limits.

    `timeout` in seconds of wall time, `memory_mb` in MiB for the whole process tree. `variables` are set in its
    process before anything is imported. Without a `network` it has no sockets.
    """

    code: Path
    environment: Path | None
    entrypoint: str
    timeout: float
    memory_mb: int
    network: ProgramNetwork | None = None
    variables: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"SandboxProgram(code={self.code!r}, entrypoint={self.entrypoint!r}, variables={sorted(self.variables)})"


class ProgramHooks(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what a run of a program has besides its payload and its output.

    `context` is JSON that the program receives beside its payload. `load_state` returns the JSON of the state that
    earlier runs left, empty for none; it is called at most once, if the program asks for it. `serve` is for a program
    with a network, and left before the run returns; without it, connections are refused. `collect_work` is called
    however the program ended.
    """

    context: bytes = b"{}"
    on_message: MessageCallback | None = None
    load_state: Callable[[], Awaitable[bytes]] | None = None
    serve: NetworkServer | None = None
    fill_work: WorkCallback | None = None
    collect_work: WorkCallback | None = None


NO_HOOKS: Final = ProgramHooks()


class SandboxOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what a program left behind. `output` is valid JSON when `error_type` is None.

    `error_type` is an exception's class name for errors of the program itself, and one of
    `timeout out_of_memory crashed result_not_json result_too_large invalid_entrypoint
    output_too_large` for what the sandbox found. `stack` is the program's own traceback.
    """

    output: bytes | None = None
    error_type: str | None = None
    error_message: str | None = None
    stack: str | None = None


class ArchiveLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limit what an archive may hold: entries in all, folders deep, bytes per file and in total.

    `skip_litter` leaves out what systems put beside people's files (`._*`, `__MACOSX`, `Thumbs.db`).
    """

    entries: int
    depth: int
    file: int
    total: int
    skip_litter: bool = False


class UnpackedArchive(msgspec.Struct, frozen=True, kw_only=True):
    """Describe what came out of an archive, or why nothing did. `root` is the folder in it that holds the manifest.

    Where there is no manifest, `top` are the names at the top, folders with a slash behind, and `nested` the
    manifests in those folders. `left_out` lie beside the folder `root`, and `backslashes` are names that hold any.
    At most 40 of each; what is no UTF-8 is shown with escapes.
    """

    error: str | None = None
    top: list[str] = []
    nested: list[str] = []
    left_out: list[str] = []
    backslashes: list[str] = []
    root: str = ""
    manifest: str | None = None
    manifest_name: str | None = None
    requirements: str | None = None
    files: int = 0
    size: int = 0


class SandboxStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Tell whether this host can isolate code, and if not what to change."""

    available: bool
    reason: str = ""


class SandboxLost(Exception):
    """Report a sandbox that ended through no fault of its program, which may have begun.

    Its run counts as an attempt.
    """


class Sandbox(Protocol):
    """Runs untrusted code in a fence, used once. Errors: `sandbox_unavailable` where the host cannot isolate."""

    async def get_status(self) -> SandboxStatus: ...
    async def run_program(
        self, program: SandboxProgram, payload: bytes, on_output: OutputCallback, hooks: ProgramHooks = NO_HOOKS
    ) -> SandboxOutcome:
        """Call the entrypoint with a JSON payload. Cancelling this coroutine kills the whole process tree.

        Errors: `SandboxLost`, and any error of a callback.
        """
        ...

    # Drops what waits with the code of this folder imported, as the settings of its program have changed.
    def retire_slots(self, code: Path) -> None: ...
    async def check_entrypoint(self, program: SandboxProgram, on_output: OutputCallback) -> SandboxOutcome:
        """Import the entrypoint and see that it is callable, without calling it."""
        ...

    async def unpack_archive(self, archive: Path, into: Path, limits: ArchiveLimits = ...) -> UnpackedArchive:
        """Unpack an untrusted `.tar.gz` into an existing empty folder, inside the fence.

        Without `limits`, those of an upload hold.
        """
        ...

    async def compile_bytecode(self, folder: Path, shown_as: str) -> list[str]:
        """Write bytecode beside the sources in `folder`, inside the fence.

        `shown_as` is where the folder will lie at run time. Returns what did not compile, with file and line.
        """
        ...


class Llm(Protocol):
    """Call models of any provider, once. Errors of all methods: `domain.llms.ModelError`."""

    def stream(self, ask: ModelCall) -> AsyncGenerator[ReplyPart, None]:
        """Yield the parts of an answer as they come; the last one is its `ModelReply`.

        Closing the generator, or cancelling the task that waits for it, ends the provider's connection at once.
        """

    async def embed(self, ask: EmbeddingCall) -> EmbeddingReply: ...


class Prices(Protocol):
    """Calculate what calls of models cost."""

    def calculate_cost(self, target: ModelTarget, usage: ModelUsage) -> float | None:
        """Return the US dollars for one call, None if the price is unknown. The target's own price wins."""
