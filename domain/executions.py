"""Executions: one run of an agent, from `pending` to exactly one terminal state.

    pending ──► preparing ──► running ──► completed | failed
       └────────────┴────────────┴──────► cancelled

A worker claims a pending row (a lease and a fencing token, see `leases`), works with no transaction
open, and settles it. Cancelling settles the row at once; the worker notices and kills the tree.
"""

from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal, Protocol

import msgspec
from msgspec import Meta

from domain import agents, events, ids
from domain.access import Caller
from domain.builds import Version
from domain.errors import conflict, invalid, not_found
from domain.events import Event
from domain.jobs import Job
from domain.leases import Lease, LostLease
from domain.pages import Listing, Page
from domain.ports import Outcome, Tx
from domain.states import TERMINAL, Status
from domain.times import utc

Kind = Literal["agent"]

DEFAULT_TIMEOUT: Final = 30
MAX_TIMEOUT: Final = 3600
DEFAULT_MEMORY_MB: Final = 512
DEFAULT_ATTEMPTS: Final = 3
MAX_DEPTH: Final = 128

Payload = Annotated[dict[str, Any], Meta(examples=[{"input": "Hello, world!"}])]
Timeout = Annotated[int, Meta(ge=1, le=MAX_TIMEOUT, description="Seconds of wall time.", examples=[30])]
Attempts = Annotated[int, Meta(ge=1, le=10, description="Claims before a run whose workers die is failed.")]


class Execution(msgspec.Struct, kw_only=True):
    """One execution. `total_cost` in USD, `timeout` in seconds; `result` repeats `output_data`.

    `error_type` is the exception's class name when the agent raised, else one of `timeout
    out_of_memory crashed result_not_json result_too_large sandbox_unavailable worker_lost
    version_unavailable cancelled`.
    """

    id: str
    run_name: str
    kind: Kind
    agent_id: str | None
    agent_version_id: str | None
    crew_id: str | None = None
    workflow_id: str | None = None
    user_id: str
    tenant_id: str
    status: Status
    mode: str | None = None
    input_data: Any
    output_data: Any
    error_message: str | None
    error_type: str | None
    attempt: int
    max_attempts: int
    timeout: int
    retry_of: str | None
    steps_total: int
    steps_completed: int
    results: dict[str, Any] | None = None
    total_cost: float
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    updated_at: datetime
    execution_id: str = ""
    result: Any = None
    message: str = ""

    def __post_init__(self) -> None:
        self.execution_id = self.id
        self.result = self.output_data
        self.message = self.error_message or _SENTENCES[self.status]


_SENTENCES: Final[dict[Status, str]] = {
    "pending": "Execution is waiting for a worker",
    "preparing": "Execution is being prepared",
    "running": "Execution is running",
    "waiting": "Execution is waiting for an approval",
    "completed": "Execution completed successfully",
    "failed": "Execution failed",
    "cancelled": "Execution was cancelled",
}


class Start(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What to run an agent with, when the path names the agent.

    One of `payload` and `inputs` (two names of the same thing) is what the entrypoint receives;
    `task` is added to it under that name. `agent_version_id` picks a version other than the current.
    """

    payload: Payload | None = None
    inputs: Payload | None = None
    task: Annotated[str, Meta(max_length=100_000)] | None = None
    agent_version_id: str | None = None
    timeout: Timeout | None = None
    max_attempts: Attempts = DEFAULT_ATTEMPTS


class StartAny(Start, kw_only=True, forbid_unknown_fields=True):
    """What to run, when the path does not say."""

    agent_id: Annotated[str, Meta(examples=["my-agent"])]


class Filter(msgspec.Struct, frozen=True):
    """What a list of executions is narrowed to. Times are inclusive at `since`, exclusive at `until`."""

    status: Status | None = None
    kind: Kind | None = None
    agent_id: str | None = None
    agent_version_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None


class Ended(msgspec.Struct, kw_only=True, frozen=True):
    """What one attempt at an execution came to, with the last of what it wrote."""

    execution: Execution
    outcome: Outcome
    written: list[Event]


class Settled(msgspec.Struct, kw_only=True, frozen=True):
    """Which executions were settled, as (id, attempt); the others are not held by their attempt any more.

    `waiting` tells whether executions of anybody waited at that moment.
    """

    held: frozenset[tuple[str, int]]
    waiting: bool


class Executions(Protocol):
    """The executions of the bound tenant. Every write is guarded by the state it expects."""

    async def add(self, execution: Execution) -> None: ...
    async def get(self, execution_id: str) -> Execution | None: ...
    async def page(self, narrowed: Filter, page: Page) -> Listing[Execution]: ...
    async def claim(self, lease: Lease, slots: int, at_hand: frozenset[str], most: int | None) -> list[Execution]:
        """Claim up to `slots` pending executions over all tenants, those of whoever has the least running first."""
        ...

    async def begin_running(self, execution_id: str, attempt: int, now: datetime) -> bool: ...
    async def settle(self, ended: list[Ended], now: datetime) -> Settled:
        """Settle executions of any tenants that are still held by their attempt."""
        ...

    async def cancel(self, execution_id: str, reason: str, now: datetime) -> bool: ...
    async def open_runs(self, agent_id: str) -> int:
        """How many of an agent's executions have not ended. Holds off other starts of it until the commit."""
        ...

    async def cancel_oldest(self, agent_id: str, keep: int, reason: str, now: datetime) -> list[str]:
        """Cancel an agent's open executions but the newest `keep`."""
        ...

    async def release(self, execution_id: str, attempt: int, now: datetime) -> Execution | None: ...
    async def take_back(self, execution_id: str, now: datetime) -> Execution | None: ...


def depth(value: Any) -> int:
    """How deep a JSON value nests; a scalar is 0. Walks without recursion, so that depth cannot break it."""
    deepest, open_values = 0, [(value, 0)]
    while open_values:
        item, level = open_values.pop()
        deepest = max(deepest, level)
        if isinstance(item, dict):
            open_values.extend((child, level + 1) for child in item.values())
        elif isinstance(item, list):
            open_values.extend((child, level + 1) for child in item)
    return deepest


def payload_of(data: Start) -> dict[str, Any]:
    """What the entrypoint receives. Errors: `invalid_field` for both names at once, or too deep a nesting."""
    if data.payload is not None and data.inputs is not None:
        raise invalid("inputs", "means payload; send one of them.")
    field = "inputs" if data.inputs is not None else "payload"
    payload = dict(data.payload or data.inputs or {})
    if depth(payload) > MAX_DEPTH:
        raise invalid(field, f"nests deeper than {MAX_DEPTH} levels.")
    if data.task is not None:
        if "task" in payload:
            raise invalid("task", f"is given twice, here and inside {field}.")
        payload["task"] = data.task
    return payload


def job_of(execution: Execution) -> Job:
    """The run job of an execution in its present state."""
    return Job(lane="run", row_id=execution.id, tenant_id=execution.tenant_id, attempt=execution.attempt)


async def start(tx: Tx, caller: Caller, reference: str, data: Start) -> Execution:
    """Write a pending execution of an agent and ring for it.

    Errors: `not_found`, `agent_archived`, `version_not_ready`, `invalid_field`, `concurrency_limit`.
    """
    payload = payload_of(data)
    agent = await _startable(tx, reference)
    version = await _runnable(tx, agent, data.agent_version_id)
    await _make_room(tx, agent)
    return await _add(tx, caller, agent.name, version, payload, data.timeout, data.max_attempts, None)


async def _startable(tx: Tx, reference: str) -> agents.Agent:
    # Shared, so that archiving or deleting waits for this, and this for them; starts do not wait for each other.
    agent = await agents.get(tx, reference, lock="share")
    if agent.status == "archived":
        raise conflict(f"The agent {agent.name!r} is archived.", "agent_archived")
    return agent


async def _make_room(tx: Tx, agent: agents.Agent) -> None:
    """Apply what the agent says about one execution more than its limit."""
    most = agent.max_concurrency
    if most is None or agent.concurrency_policy == "queue":
        return
    if await tx.executions.open_runs(agent.id) < most:
        return
    if agent.concurrency_policy == "reject":
        raise conflict(f"{most} executions of {agent.name!r} have not ended; no more are let in.", "concurrency_limit")
    for replaced in await tx.executions.cancel_oldest(agent.id, most - 1, "Replaced by a newer execution.", tx.now):
        tx.changed(replaced, "cancelled")


async def _runnable(tx: Tx, agent: agents.Agent, version_id: str | None) -> Version:
    wanted = version_id or agent.current_version_id
    if wanted is None:
        newest = await tx.builds.newest(agent.id)
        state = "it has no version yet" if newest is None else f"its version {newest.version} is {newest.status}"
        raise conflict(f"The agent {agent.name!r} has nothing to run: {state}.", "version_not_ready")
    version = await tx.builds.find(agent.id, wanted)
    if version is None:
        raise invalid("agent_version_id", f"the agent {agent.name!r} has no such version.")
    if version.status != "ready":
        raise conflict(f"Version {version.version} is {version.status}, not ready.", "version_not_ready")
    return version


async def _add(
    tx: Tx,
    caller: Caller,
    name: str,
    version: Version,
    payload: Any,
    timeout: int | None,
    max_attempts: int,
    retry_of: str | None,
) -> Execution:
    execution_id = ids.new("exec")
    execution = Execution(
        id=execution_id,
        run_name=f"{name}-{execution_id[-6:]}",
        kind="agent",
        agent_id=version.agent_id,
        agent_version_id=version.id,
        user_id=caller.user_id,
        tenant_id=caller.tenant_id,
        status="pending",
        input_data=payload,
        output_data=None,
        error_message=None,
        error_type=None,
        attempt=0,
        max_attempts=max_attempts,
        timeout=timeout or version.timeout or DEFAULT_TIMEOUT,
        retry_of=retry_of,
        steps_total=1,
        steps_completed=0,
        total_cost=0.0,
        created_at=tx.now,
        started_at=None,
        completed_at=None,
        updated_at=tx.now,
    )
    await tx.executions.add(execution)
    tx.ring(job_of(execution))
    return execution


async def get(tx: Tx, execution_id: str) -> Execution:
    """An execution. Errors: `not_found`."""
    execution = await tx.executions.get(execution_id)
    if execution is None:
        raise not_found("execution", execution_id)
    return execution


def narrowed(caller: Caller, wanted: Filter, *tenants: str | None) -> Filter:
    """The filter with what a tenant filter means: one's own tenant changes nothing, another has no rows.

    Errors: `invalid_field` for a time without an offset.
    """
    times = {field: utc(field, at) for field in ("since", "until") if (at := getattr(wanted, field)) is not None}
    wanted = msgspec.structs.replace(wanted, **times)
    if any(tenant is not None and tenant != caller.tenant_id for tenant in tenants):
        return msgspec.structs.replace(wanted, agent_id="(another tenant)")
    return wanted


async def list_executions(tx: Tx, narrowed: Filter, page: Page) -> Listing[Execution]:
    """Executions, newest first. `agent_id` takes a name too; an unknown agent has no executions."""
    if narrowed.agent_id is not None:
        agent = await tx.agents.find(narrowed.agent_id)
        if agent is not None:
            narrowed = msgspec.structs.replace(narrowed, agent_id=agent.id)
    return await tx.executions.page(narrowed, page)


async def cancel(tx: Tx, execution_id: str, reason: str = "Cancelled on request.") -> Execution:
    """Settle an execution as cancelled; whoever runs it kills it within a second.

    Cancelling a cancelled one is fine. Errors: `not_found`, `conflict` for one that ended otherwise.
    """
    execution = await get(tx, execution_id)
    if execution.status not in TERMINAL and await tx.executions.cancel(execution_id, reason, tx.now):
        tx.changed(execution_id, "cancelled")
    after = await get(tx, execution_id)
    if after.status != "cancelled":
        raise conflict(f"The execution is {after.status}; it cannot be cancelled any more.")
    return after


async def retry(tx: Tx, caller: Caller, execution_id: str) -> Execution:
    """Run an ended execution again, as a new one with the same version, input and limits.

    Errors: `not_found`, `conflict` for one that has not ended, `version_not_ready`, `agent_archived`,
    `concurrency_limit`.
    """
    old = await get(tx, execution_id)
    if old.status not in TERMINAL:
        raise conflict(f"The execution is {old.status}; only one that has ended can be run again.")
    agent = await _startable(tx, old.agent_id or "")
    version = await _runnable(tx, agent, old.agent_version_id)
    await _make_room(tx, agent)
    return await _add(tx, caller, agent.name, version, old.input_data, old.timeout, old.max_attempts, old.id)


async def claim(
    tx: Tx,
    worker: str,
    lease: timedelta,
    slots: int,
    at_hand: frozenset[str] = frozenset(),
    most: int | None = None,
) -> list[Execution]:
    """Take up to `slots` pending executions over all tenants, fairly and within the limits of agents and tenants.

    One is `running` at once if its version is among those `at_hand` on the worker's machine, else
    `preparing`. `most` bounds every tenant's running executions, besides its own limit.
    """
    taken = await tx.executions.claim(Lease(worker=worker, taken_at=tx.now, until=tx.now + lease), slots, at_hand, most)
    for execution in taken:
        tx.changed(execution.id, execution.status)
    return taken


async def begin_running(tx: Tx, execution: Execution) -> None:
    """The version lies ready on this machine; the agent starts now. Errors: `LostLease`."""
    if not await tx.executions.begin_running(execution.id, execution.attempt, tx.now):
        raise LostLease(execution.id)
    tx.changed(execution.id, "running")


async def record(tx: Tx, execution: Execution, written: list[Event]) -> None:
    """Append what the agent wrote to the log of an execution held by this attempt. Errors: `LostLease`."""
    if not await tx.events.append_held(execution.id, execution.attempt, written):
        raise LostLease(execution.id)
    tx.changed(execution.id, "running")


def settled(outcome: Outcome) -> Outcome:
    """An outcome that can be kept: a result that nests beyond reason is none."""
    if outcome.output is not None and depth(msgspec.json.decode(outcome.output)) > MAX_DEPTH:
        return Outcome(error_type="result_not_json", error_message=f"The result nests deeper than {MAX_DEPTH} levels.")
    return outcome


async def finish(tx: Tx, ended: list[Ended]) -> Settled:
    """Settle executions of any tenants with what their sandboxes left behind."""
    kept = [_kept(one, tx.now) for one in ended]
    found = await tx.executions.settle(kept, tx.now)
    for one in kept:
        if (one.execution.id, one.execution.attempt) in found.held:
            tx.changed(one.execution.id, status_of(one.outcome))
    return found


def _kept(one: Ended, now: datetime) -> Ended:
    outcome = settled(one.outcome)
    if not outcome.stack:
        return msgspec.structs.replace(one, outcome=outcome)
    trace = events.logged("ERROR", outcome.stack, now, "traceback")
    return msgspec.structs.replace(one, outcome=outcome, written=[*one.written, trace])


def status_of(outcome: Outcome) -> Status:
    """The state that an outcome leads to."""
    return "completed" if outcome.error_type is None else "failed"


async def give_back(tx: Tx, execution: Execution) -> None:
    """Hand a held execution back, as a worker does that is told to stop. The attempt counts: it had begun."""
    _freed(tx, await tx.executions.release(execution.id, execution.attempt, tx.now))


async def take_back(tx: Tx, execution_id: str) -> None:
    """Give an expired lease's execution back to the queue, or fail it when its attempts are used up."""
    _freed(tx, await tx.executions.take_back(execution_id, tx.now))


def _freed(tx: Tx, after: Execution | None) -> None:
    if after is None:
        return
    if after.status == "pending":
        tx.ring(job_of(after))
    tx.changed(after.id, after.status)
