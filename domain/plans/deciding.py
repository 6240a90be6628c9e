"""Approving and rejecting what a plan waits for: its own steps, and tool calls of the agents in it."""

from typing import Any

from domain import steps
from domain.access import Caller
from domain.errors import conflict, invalid
from domain.events import Event
from domain.executions import Decision, Execution, get, job_of
from domain.plans.engine import Board
from domain.ports import Tx


async def decide(tx: Tx, caller: Caller, execution_id: str, approved: bool, data: Decision) -> Execution:
    """Decide on what an execution waits for; on all of it without a `call_id`. A plan's step has its id as `call_id`.

    Errors: `not_found`, `conflict` for one that does not wait, `invalid_field` for a call that does not.
    """
    execution = await get(tx, execution_id)
    if execution.lane != "plan":
        return await steps.decide(tx, caller, execution_id, approved, data)
    # What it waits for changes only with this lock.
    await tx.plans.take(execution_id, tx.now, wait=True)
    await tx.plans.signal(execution_id, tx.now)
    execution = await get(tx, execution_id)
    if execution.status != "waiting":
        raise conflict(f"The execution is {execution.status}; nothing of it waits for an approval.")
    calls = execution.waiting_for or []
    chosen = [call for call in calls if data.call_id in (None, call["call_id"])]
    if not chosen:
        known = ", ".join(str(call["call_id"]) for call in calls)
        raise invalid("call_id", f"does not wait for an approval; these do: {known}.")
    await _steps(tx, caller, execution, [call["step"] for call in chosen if "execution_id" not in call], approved, data)
    for call in chosen:
        if "execution_id" in call:
            await _call(tx, caller, call, approved, data)
    tx.ring(job_of(execution))
    tx.changed(execution.id, "waiting")
    return await get(tx, execution_id)


async def _steps(
    tx: Tx, caller: Caller, execution: Execution, chosen: list[str], approved: bool, data: Decision
) -> None:
    plan = await tx.plans.get(execution.id)
    assert plan is not None, "a plan's execution without a plan"
    board = Board(plan, await tx.plans.runs(execution.id))
    for step in chosen:
        board.decided(step, approved, caller.user_id, data.reason, tx.now)
    await tx.plans.save(execution.id, list(board.changed.values()))
    if chosen:
        told: dict[str, Any] = {
            "status": "approved" if approved else "rejected",
            "calls": [{"step": step} for step in chosen],
        }
        told |= {"by": caller.user_id, "reason": data.reason}
        await tx.events.append_waiting(execution.id, [Event(type="approval", data=told, at=tx.now)])


async def _call(tx: Tx, caller: Caller, call: dict[str, Any], approved: bool, data: Decision) -> None:
    """A tool call that waits in a child. Somebody may have decided on it there already."""
    child = await get(tx, call["execution_id"])
    if child.status == "waiting" and any(one["call_id"] == call["call_id"] for one in child.waiting_for or []):
        one = Decision(call_id=call["call_id"], reason=data.reason)
        await steps.decide(tx, caller, child.id, approved, one)
