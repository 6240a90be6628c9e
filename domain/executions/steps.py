"""What a run of a model agent has done, step by step, so that a claim after a loss goes on where the last one was.

A step has a place in its run, its `path`: `2` is the second call of the model, `2.0` the first tool call of its
answer, `2.0/1` the first call of the model in what was delegated there. A finished step is never done again.
"""

from datetime import datetime
from typing import Any, Final, Literal, Protocol

import msgspec

from domain.events import ExecutionEvent
from domain.executions.schema import Execution, ring_plan
from domain.ports import Tx
from domain.shared.leases import LostLease

RunStepStatus = Literal["started", "waiting", "approved", "rejected", "finished"]
# How many of the tool calls in one answer are made, so that there is an end to what one answer can ask for.
MAX_CALLS_PER_ANSWER: Final = 64


class RunStep(msgspec.Struct, kw_only=True):
    """One step. `input` is a tool's arguments; `output` a model's answer or a tool's result."""

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
    """The steps of the bound tenant's executions. Every write is guarded by the attempt that holds the execution."""

    async def list_steps(self, execution_id: str) -> list[RunStep]: ...
    async def save_step(self, step: RunStep) -> bool | None:
        """Write a step in its present state. None if its attempt does not hold the execution any more.

        False if it was written so before: a commit whose answer was lost is tried again.
        """
        ...

    async def decide_calls(
        self, execution_id: str, call_ids: list[str], status: RunStepStatus, by: str, reason: str | None, now: datetime
    ) -> None: ...


async def write_step(tx: Tx, step: RunStep, told: list[ExecutionEvent]) -> None:
    """A step as it is now, and what is told of it in the log. Errors: `LostLease`, and nothing is written then."""
    written = await tx.steps.save_step(step)
    if written is None:
        raise LostLease(step.execution_id)
    if written and told and not await tx.events.append_if_leased(step.execution_id, step.attempt, told):
        raise LostLease(step.execution_id)
    tx.announce_status(step.execution_id, "running")


async def park_for_approval(tx: Tx, execution: Execution, waiting: list[RunStep]) -> None:
    """Let go of a held execution until somebody decides on its tool calls. Errors: `LostLease`."""
    calls = [_shown(step) for step in waiting]
    ids = [call["call_id"] for call in calls]
    for call in calls:
        # Some servers give several calls one id; who approves one of them must not approve another by it.
        if ids.count(call["call_id"]) > 1:
            call["call_id"] = call["path"]
    event = ExecutionEvent(type="approval", data={"status": "waiting", "calls": calls}, at=tx.now)
    if not await tx.events.append_if_leased(execution.id, execution.attempt, [event]):
        raise LostLease(execution.id)
    if not await tx.executions.park_execution(execution.id, execution.attempt, calls, tx.now):
        raise LostLease(execution.id)
    tx.announce_status(execution.id, "waiting")
    ring_plan(tx, execution)


def _shown(step: RunStep) -> dict[str, Any]:
    return {"call_id": step.call_id, "path": step.path, "tool": step.name, "args": step.input}
