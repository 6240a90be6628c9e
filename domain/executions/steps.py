"""What a run of a model agent has done, step by step, so that a claim after a loss goes on where the last one was.

A step has a place in its run, its `path`: `2` is the second call of the model, `2.0` the first tool call of its
answer, `2.0/1` the first call of the model in what was delegated there. A finished step is never done again.
"""

from datetime import datetime
from typing import Any, Final, Literal, Protocol

import msgspec

from domain.events import Event
from domain.executions.queries import get
from domain.executions.schema import Decision, Execution, job_of, tell_plan
from domain.ports import Tx
from domain.shared.access import Caller
from domain.shared.errors import conflict, invalid
from domain.shared.leases import LostLease

StepStatus = Literal["started", "waiting", "approved", "rejected", "finished"]
# How many of the tool calls in one answer are made, so that there is an end to what one answer can ask for.
MAX_CALLS: Final = 64


class Step(msgspec.Struct, kw_only=True):
    """One step. `input` is a tool's arguments; `output` a model's answer or a tool's result."""

    execution_id: str
    path: str
    kind: Literal["model", "tool"]
    name: str
    status: StepStatus
    attempt: int
    call_id: str | None = None
    input: Any = None
    output: Any = None
    decided_by: str | None = None
    decided_at: datetime | None = None
    reason: str | None = None
    started_at: datetime
    finished_at: datetime | None = None


class Steps(Protocol):
    """The steps of the bound tenant's executions. Every write is guarded by the attempt that holds the execution."""

    async def of(self, execution_id: str) -> list[Step]: ...
    async def put(self, step: Step) -> bool | None:
        """Write a step in its present state. None if its attempt does not hold the execution any more.

        False if it was written so before: a commit whose answer was lost is tried again.
        """
        ...

    async def decide(
        self, execution_id: str, call_ids: list[str], status: StepStatus, by: str, reason: str | None, now: datetime
    ) -> None: ...


async def write(tx: Tx, step: Step, told: list[Event]) -> None:
    """A step as it is now, and what is told of it in the log. Errors: `LostLease`, and nothing is written then."""
    written = await tx.steps.put(step)
    if written is None:
        raise LostLease(step.execution_id)
    if written and told and not await tx.events.append_held(step.execution_id, step.attempt, told):
        raise LostLease(step.execution_id)
    tx.changed(step.execution_id, "running")


async def park(tx: Tx, execution: Execution, waiting: list[Step]) -> None:
    """Let go of a held execution until somebody decides on its tool calls. Errors: `LostLease`."""
    calls = [_shown(step) for step in waiting]
    ids = [call["call_id"] for call in calls]
    for call in calls:
        # Some servers give several calls one id; who approves one of them must not approve another by it.
        if ids.count(call["call_id"]) > 1:
            call["call_id"] = call["path"]
    event = Event(type="approval", data={"status": "waiting", "calls": calls}, at=tx.now)
    if not await tx.events.append_held(execution.id, execution.attempt, [event]):
        raise LostLease(execution.id)
    if not await tx.executions.wait(execution.id, execution.attempt, calls, tx.now):
        raise LostLease(execution.id)
    tx.changed(execution.id, "waiting")
    tell_plan(tx, execution)


async def decide(tx: Tx, caller: Caller, execution_id: str, approved: bool, data: Decision) -> Execution:
    """Approve or reject what an execution waits for. It goes on when nothing of it waits any more.

    Errors: `not_found`, `conflict` for one that does not wait, `invalid_field` for a call that does not.
    """
    execution = await tx.executions.lock(execution_id)
    if execution is None:
        await get(tx, execution_id)
        raise conflict("The execution cannot be decided on now.")
    if execution.status != "waiting":
        raise conflict(f"The execution is {execution.status}; nothing of it waits for an approval.")
    calls = execution.waiting_for or []
    chosen = [call for call in calls if data.call_id in (None, call["call_id"])]
    if not chosen:
        known = ", ".join(call["call_id"] for call in calls)
        raise invalid("call_id", f"does not wait for an approval; these do: {known}.")
    verdict: StepStatus = "approved" if approved else "rejected"
    paths = [call["path"] for call in chosen]
    await tx.steps.decide(execution.id, paths, verdict, caller.user_id, data.reason, tx.now)
    told = {"status": verdict, "calls": chosen, "by": caller.user_id, "reason": data.reason}
    await tx.events.append_waiting(execution.id, [Event(type="approval", data=told, at=tx.now)])
    rest = [call for call in calls if call not in chosen]
    if rest:
        await tx.executions.narrow(execution.id, rest, tx.now)
        tx.changed(execution.id, "waiting")
    else:
        after = await tx.executions.resume(execution.id, tx.now)
        if after is not None:
            tx.ring(job_of(after))
            tell_plan(tx, after)
            tx.changed(after.id, after.status)
    return await get(tx, execution_id)


def _shown(step: Step) -> dict[str, Any]:
    return {"call_id": step.call_id, "path": step.path, "tool": step.name, "args": step.input}
