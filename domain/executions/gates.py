"""Admit runs at their gates: one at a time on a thread, and as many at a time as a concurrency key allows.

A run passes the gate of its thread, then that of its key, and while it waits it is pending and `blocked`, so no claim
looks at it. It holds both until it has ended, also while it waits for an approval. The end of a run notes its gates
in the same transaction (`note_gates.sql`), and the next runs are admitted right after the commit, or by upkeep.

Order of locks: a transaction that holds rows never waits for a gate. A start only tries the locks of its gates, and
`reserve_thread` comes before everything else that a start locks. Admission locks one gate in a transaction of its own.
"""

from datetime import datetime
from typing import Final, Protocol

import msgspec

from domain.agents import AgentSpec
from domain.executions.queries import cancel_execution
from domain.executions.schema import Execution, ExecutionStart
from domain.executions.steering import BlockReason, GateKind
from domain.ports import Tx
from domain.shared.errors import Conflict, InvalidField
from domain.shared.jobs import Job

REPLACED_ON_THREAD: Final = "Replaced by a newer run of its thread."


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    """Identify a gate: a thread by its id, or a concurrency key of a tenant."""

    tenant_id: str
    kind: GateKind
    name: str


class FreedRun(msgspec.Struct, frozen=True, kw_only=True):
    """Describe a run that passed a gate or whose time came: with its `job`, unless it waits at the `gate`."""

    job: Job
    blocked: BlockReason | None = None
    gate: Gate | None = None


class ExpiredRun(msgspec.Struct, frozen=True, kw_only=True):
    """Identify a run that was cancelled because it had not begun when it expired."""

    execution_id: str
    job: Job


class Gates(Protocol):
    """Find who holds a gate and who waits at it, and admit them. All but the first two methods serve all tenants."""

    async def enter(self, execution: Execution) -> GateKind | None:
        """Return the gate where a new run has to wait. Waits for no other transaction."""
        ...

    async def lock_thread(self, thread_id: str) -> list[str]:
        """Keep others from entering a thread until the commit. Returns its open runs, without delayed ones."""
        ...

    async def list_of_runs(self, execution_ids: list[str]) -> list[Gate]: ...
    async def list_signalled(self, limit: int) -> list[Gate]:
        """Return gates where somebody may be admitted, the oldest first."""
        ...

    async def admit(self, gate: Gate, now: datetime) -> list[FreedRun]: ...
    async def free_due(self, now: datetime, limit: int) -> tuple[list[FreedRun], float | None]:
        """Free delayed runs whose time has come. Returns them, and in how many seconds the next one is due."""
        ...

    async def expire(self, now: datetime, limit: int) -> list[ExpiredRun]: ...


async def add_at_gates(tx: Tx, execution: Execution, spec: AgentSpec | None = None) -> Execution:
    """Write a new execution, blocked if it has to wait at a gate or for its time, and return it as it was written."""
    gate: GateKind | None = None
    if execution.blocked is None and (execution.thread_id is not None or execution.concurrency_key is not None):
        gate = await tx.gates.enter(execution)
        if gate is not None:
            execution = msgspec.structs.replace(execution, blocked="busy")
            tx.free_gates(execution.id)
    await tx.executions.add(execution, spec, gate)
    return execution


async def reserve_thread(tx: Tx, data: ExecutionStart) -> None:
    """Apply `if_busy` to the thread of a start, before the start locks anything else.

    Errors: `thread_busy` naming the run that holds the thread; `invalid_field`.
    """
    if data.if_busy is None:
        return
    if data.thread_id is None:
        raise InvalidField("if_busy", "is about a thread: send its thread_id as well.")
    if data.if_busy == "queue":
        return
    if data.run_at is not None or data.delay_seconds is not None:
        raise InvalidField("if_busy", "is decided at the start; a run that begins later waits for its thread: queue.")
    open_ids = await tx.gates.lock_thread(data.thread_id)
    if data.if_busy == "reject" and open_ids:
        raise Conflict(f"The thread is busy with the execution {open_ids[0]!r}.", "thread_busy")
    for execution_id in open_ids:
        await cancel_execution(tx, execution_id, REPLACED_ON_THREAD)


async def admit_next(tx: Tx, gate: Gate) -> list[Gate]:
    """Admit the runs that a gate has room for, ring for them, and return the gates where they wait next."""
    admitted = await tx.gates.admit(gate, tx.now)
    ring_freed(tx, admitted)
    return list({run.gate for run in admitted if run.gate is not None})


def ring_freed(tx: Tx, freed: list[FreedRun]) -> None:
    """Ring for the runs that wait at no gate any more."""
    for run in freed:
        if run.blocked is None:
            tx.ring_job(run.job)


def announce_expiry(tx: Tx, expired: list[ExpiredRun]) -> None:
    """Wake the requests that wait for runs that expired, and admit the next ones at their gates."""
    for run in expired:
        tx.announce_status(run.execution_id, "cancelled")
        tx.free_gates(run.execution_id)
        if run.job.lane == "plan":
            tx.ring_job(run.job)
