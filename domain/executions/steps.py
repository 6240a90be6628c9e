"""Record the steps of a model agent's run, so that a claim after a lost worker resumes where the last one stopped.

The `path` of a step is its place in the run: `2` is the second call of the model, `2.0` the first tool call of its
answer, `2.0/1` the first call of the model in the task delegated there. A finished step is never repeated.
"""

from datetime import datetime
from typing import Any, Final, Literal, Protocol

import msgspec

from domain.events import ExecutionEvent
from domain.executions.rings import ring_plan
from domain.executions.schema import Execution
from domain.ports import Tx
from domain.shared.leases import LostLease

RunStepStatus = Literal["started", "waiting", "approved", "rejected", "finished"]
# How many tool calls of one answer are made; it bounds the work that one answer can ask for.
MAX_CALLS_PER_ANSWER: Final = 64


class RunStep(msgspec.Struct, kw_only=True):
    """Describe one step. `input` is a tool's arguments; `output` a model's answer or a tool's result."""

    execution_id: str
    path: str
    kind: Literal["model", "tool"]
    name: str
    status: RunStepStatus
    attempt: int
    call_id: str | None = None
    input: Any = None
    output: Any = None
    decided_by: str | None = None
    decided_at: datetime | None = None
    reason: str | None = None
    started_at: datetime
    finished_at: datetime | None = None


class RunSteps(Protocol):
    """Store the steps of the bound tenant's executions. Every write is guarded by the attempt that holds the lease."""

    async def list_steps(self, execution_id: str) -> list[RunStep]: ...
    async def save_step(self, step: RunStep) -> bool | None:
        """Write a step in its present status. Returns None if its attempt has lost the lease.

        Returns False if it was already written like this: a commit whose answer was lost is retried.
        """
        ...

    async def decide_calls(
        self, execution_id: str, call_ids: list[str], status: RunStepStatus, by: str, reason: str | None, now: datetime
    ) -> None: ...


async def write_step(tx: Tx, step: RunStep, events: list[ExecutionEvent]) -> None:
    """Write a step in its present status, and its events to the log. Errors: `LostLease`; then nothing is written."""
    is_new = await tx.steps.save_step(step)
    if is_new is None:
        raise LostLease(step.execution_id)
    if is_new and events and not await tx.events.append_if_leased(step.execution_id, step.attempt, events):
        raise LostLease(step.execution_id)
    tx.announce_status(step.execution_id, "running")


async def park_for_approval(tx: Tx, execution: Execution, waiting: list[RunStep]) -> None:
    """Release a leased execution until a person decides on its tool calls. Errors: `LostLease`."""
    calls = [_describe_call(step) for step in waiting]
    call_ids = [call["call_id"] for call in calls]
    for call in calls:
        # Some servers give several calls one id. Approving one of them must not approve another.
        if call_ids.count(call["call_id"]) > 1:
            call["call_id"] = call["path"]
    event = ExecutionEvent(type="approval", data={"status": "waiting", "calls": calls}, at=tx.now)
    if not await tx.events.append_if_leased(execution.id, execution.attempt, [event]):
        raise LostLease(execution.id)
    if not await tx.executions.park_execution(execution.id, execution.attempt, calls, tx.now):
        raise LostLease(execution.id)
    tx.announce_status(execution.id, "waiting")
    ring_plan(tx, execution)


def _describe_call(step: RunStep) -> dict[str, Any]:
    return {"call_id": step.call_id, "path": step.path, "tool": step.name, "args": step.input}
