"""Approving and rejecting what a plan waits for: its own steps, those of plans in it, and tool calls of agents."""

from typing import Any

import msgspec

from domain.events import ExecutionEvent
from domain.executions import ApprovalDecision, Execution, get_execution, job_from_execution, ring_plan, steps
from domain.plans.child_executions import qualify_call_id
from domain.plans.coordinator import step_to_event_data
from domain.plans.engine import PlanState
from domain.ports import Tx
from domain.shared.access import Caller
from domain.shared.errors import Conflict, InvalidField

WaitingCall = dict[str, Any]


async def decide_approval(
    tx: Tx, caller: Caller, execution_id: str, approved: bool, data: ApprovalDecision
) -> Execution:
    """Decide on what an execution waits for; on all of it without a `call_id`. A plan's step has its id as `call_id`.

    Errors: `not_found`, `conflict` for one that does not wait, `invalid_field` for a call that does not.
    """
    execution = await get_execution(tx, execution_id)
    if execution.lane != "plan":
        return await steps.decide_approval(tx, caller, execution_id, approved, data)
    # What it waits for changes only with this lock.
    await tx.plans.lock(execution_id)
    execution = await get_execution(tx, execution_id)
    calls = execution.waiting_for or []
    if execution.status != "waiting":
        raise Conflict(f"The execution is {execution.status}; nothing of it waits for an approval.")
    chosen = [call for call in calls if data.call_id in (None, call["call_id"])]
    if not chosen:
        known = ", ".join(str(call["call_id"]) for call in calls)
        raise InvalidField("call_id", f"does not wait for an approval; these do: {known}.")
    deciding = _Deciding(tx, caller, approved, data)
    decided = await deciding.decide(execution, chosen)
    if not decided:
        raise Conflict("Somebody has decided on that already.")
    await deciding.note(execution, decided, [call for call in calls if call not in chosen])
    return await get_execution(tx, execution_id)


class _Deciding:
    """One decision. Plans are locked from the root down, as here alone; their executions from the leaves up."""

    def __init__(self, tx: Tx, caller: Caller, approved: bool, data: ApprovalDecision) -> None:
        self._tx, self._caller, self._approved, self._data = tx, caller, approved, data

    async def decide(self, root: Execution, chosen: list[WaitingCall]) -> list[WaitingCall]:
        """Decide on what waits in a locked plan and in others below it. Returns what nobody had decided on there."""
        leaves, plans = await self._below(root, chosen)
        for plan_id in plans:
            await self._tx.plans.lock(plan_id)
        known: set[str] = set()
        for leaf_id in leaves:
            decided = await self._calls(leaf_id, [call for call in chosen if call.get("execution_id") == leaf_id])
            known |= {_key(leaf_id, call) for call in decided}
        wanted = {_key(root.id, call) for call in chosen}
        for plan_id in reversed(plans):
            known |= await self._plan(plan_id, wanted, known)
        known |= {_key(root.id, call) for call in await self.steps(root, _own(chosen))}
        return [call for call in chosen if _key(root.id, call) in known]

    async def _below(self, root: Execution, chosen: list[WaitingCall]) -> tuple[list[str], list[str]]:
        """Where it waits: runs, and plans with those between them and the root, from the root down."""
        leaves: list[str] = []
        plans: dict[str, int] = {}
        for execution_id in sorted({call["execution_id"] for call in chosen if "execution_id" in call}):
            way: list[str] = []
            one = await self._tx.executions.get(execution_id)
            while one is not None and one.id != root.id:
                way.append(one.id) if one.lane == "plan" else leaves.append(one.id)
                one = await self._tx.executions.get(one.parent_id or "")
            plans |= {plan_id: level for level, plan_id in enumerate(reversed(way))}
        return leaves, sorted(plans, key=lambda one: plans[one])

    async def _calls(self, execution_id: str, chosen: list[WaitingCall]) -> list[WaitingCall]:
        """Tool calls of an agent."""
        execution = await self._tx.executions.lock_execution(execution_id)
        if execution is None or execution.status != "waiting":
            return []
        waiting = {call["path"]: call["call_id"] for call in execution.waiting_for or []}
        decided = [call for call in chosen if call["path"] in waiting]
        for call in decided:
            one = ApprovalDecision(call_id=waiting[call["path"]], reason=self._data.reason)
            await steps.decide_approval(self._tx, self._caller, execution_id, self._approved, one)
        return decided

    async def _plan(self, execution_id: str, wanted: set[str], known: set[str]) -> set[str]:
        """Steps of a plan within, which is locked, and what it too is waiting for below it."""
        execution = await get_execution(self._tx, execution_id)
        if execution.status != "waiting":
            return set()
        calls = execution.waiting_for or []
        own = await self.steps(execution, [call for call in _own(calls) if _key(execution_id, call) in wanted])
        found = {_key(execution_id, call) for call in own}
        decided = [call for call in calls if _key(execution_id, call) in found | known]
        if decided:
            await self.note(execution, decided, [call for call in calls if call not in decided])
        return found

    async def steps(self, execution: Execution, chosen: list[WaitingCall]) -> list[WaitingCall]:
        """Steps of a locked plan itself."""
        if not chosen:
            return []
        plan, now = await self._tx.plans.get(execution.id), self._tx.now
        assert plan is not None, "a plan's execution without a plan"
        board = PlanState(plan, await self._tx.plans.list_runs(execution.id))
        decided = [
            call
            for call in chosen
            if board.decide_step(call["step"], self._approved, self._caller.user_id, self._data.reason, now)
        ]
        changed = list(board.changed_runs.values())
        await self._tx.plans.save(execution.id, changed)
        if events := [
            ExecutionEvent(type="step", data=step_to_event_data(run), at=now)
            for run in changed
            if run.status == "failed"
        ]:
            await self._tx.events.append_while_waiting(execution.id, events)
        return decided

    async def note(self, execution: Execution, decided: list[WaitingCall], rest: list[WaitingCall]) -> None:
        """Write down what was decided, and what of a locked plan still waits. Errors: `conflict` if cancelled."""
        now = self._tx.now
        told: dict[str, Any] = {"status": "approved" if self._approved else "rejected", "calls": decided}
        told |= {"by": self._caller.user_id, "reason": self._data.reason}
        events = [ExecutionEvent(type="approval", data=told, at=now)]
        after = msgspec.structs.replace(execution, waiting_for=rest or None, status="waiting" if rest else "running")
        if not rest:
            status = {"status": "running", "attempt": 1, "error_type": None, "error_message": None}
            events.append(ExecutionEvent(type="status", data=status, at=now))
        if not await self._tx.plans.update_execution(after, events, now):
            raise Conflict("The execution was cancelled meanwhile; nothing of it waits for an approval.")
        await self._tx.plans.signal_plan(execution.id)
        self._tx.ring_job(job_from_execution(execution))
        ring_plan(self._tx, execution)
        self._tx.announce_status(execution.id, after.status)


def _key(plan_id: str, call: WaitingCall) -> str:
    """Says which call is meant in the lists of all plans that wait for it."""
    return qualify_call_id(call.get("execution_id", plan_id), call["call_id"])


def _own(calls: list[WaitingCall]) -> list[WaitingCall]:
    """Steps of the plan itself."""
    return [call for call in calls if "execution_id" not in call]
