"""Decide on approvals: of a plan's own steps, of steps of plans within it, and of tool calls of agents."""

from typing import Any, Literal

import msgspec

from domain.events import ExecutionEvent
from domain.executions import ApprovalDecision, Execution, get_execution, job_from_execution, ring_plan
from domain.plans.child_executions import prefix_call_id
from domain.plans.coordinator import step_to_event_data
from domain.plans.engine import PlanState
from domain.ports import Tx
from domain.shared.access import Caller
from domain.shared.errors import Conflict, InvalidField

WaitingCall = dict[str, Any]


async def decide_approval(
    tx: Tx, caller: Caller, execution_id: str, approved: bool, data: ApprovalDecision
) -> Execution:
    """Approve or reject the calls that an execution waits for; all of them without a `call_id`.

    The `call_id` of a plan's step is the step's id. The execution continues when all its calls are decided.
    Errors: `not_found`; `conflict` for an execution that does not wait; `invalid_field` for an unknown call.
    """
    execution = await _lock_execution(tx, execution_id)
    calls = execution.waiting_for or []
    if execution.status != "waiting":
        raise Conflict(f"The execution is {execution.status}; it does not wait for an approval.")
    chosen = [call for call in calls if data.call_id in (None, call["call_id"])]
    if not chosen:
        waiting_ids = ", ".join(str(call["call_id"]) for call in calls)
        raise InvalidField("call_id", f"does not wait for an approval; these do: {waiting_ids}.")
    approval = _Approval(tx, caller, approved, data.reason)
    if execution.lane != "plan":
        await approval.decide_tool_calls(execution, chosen)
    elif decided := await approval.decide_plan_calls(execution, chosen):
        await approval.record_plan_decision(execution, decided, [call for call in calls if call not in chosen])
    else:
        raise Conflict("These calls are already decided.")
    return await get_execution(tx, execution_id)


async def _lock_execution(tx: Tx, execution_id: str) -> Execution:
    execution = await get_execution(tx, execution_id)
    if execution.lane == "plan":
        # The waiting calls of a plan change only under this lock.
        await tx.plans.lock(execution_id)
        return await get_execution(tx, execution_id)
    locked = await tx.executions.lock_execution(execution_id)
    if locked is None:
        raise Conflict("The execution cannot be decided on now.")
    return locked


class _Approval:
    """Apply one decision. Plans are locked from the root down; executions are locked here alone, from the leaves up."""

    def __init__(self, tx: Tx, caller: Caller, approved: bool, reason: str | None) -> None:
        self._tx, self._caller, self._approved, self._reason = tx, caller, approved, reason

    async def decide_tool_calls(self, execution: Execution, chosen: list[WaitingCall]) -> None:
        """Decide on tool calls of a locked agent's execution that waits for them."""
        tx, verdict = self._tx, self._verdict
        paths = [call["path"] for call in chosen]
        await tx.steps.decide_calls(execution.id, paths, verdict, self._caller.user_id, self._reason, tx.now)
        await tx.events.append_while_waiting(execution.id, [self._build_event(chosen)])
        remaining = [call for call in execution.waiting_for or [] if call not in chosen]
        if remaining:
            await tx.executions.set_waiting_calls(execution.id, remaining, tx.now)
            tx.announce_status(execution.id, "waiting")
        elif (resumed := await tx.executions.resume_execution(execution.id, tx.now)) is not None:
            tx.ring_job(job_from_execution(resumed))
            ring_plan(tx, resumed)
            tx.announce_status(resumed.id, resumed.status)

    async def decide_plan_calls(self, root: Execution, chosen: list[WaitingCall]) -> list[WaitingCall]:
        """Decide on waiting calls of a locked plan and of everything below it. Return those that were open."""
        agent_ids, plan_ids = await self._find_executions(root, chosen)
        for plan_id in plan_ids:
            await self._tx.plans.lock(plan_id)
        decided_keys: set[str] = set()
        for agent_id in agent_ids:
            calls = [call for call in chosen if call.get("execution_id") == agent_id]
            decided_keys |= {_build_key(agent_id, call) for call in await self._decide_agent_calls(agent_id, calls)}
        chosen_keys = {_build_key(root.id, call) for call in chosen}
        for plan_id in reversed(plan_ids):
            decided_keys |= await self._decide_inner_plan(plan_id, chosen_keys, decided_keys)
        decided_keys |= {_build_key(root.id, call) for call in await self._decide_steps(root, _select_steps(chosen))}
        return [call for call in chosen if _build_key(root.id, call) in decided_keys]

    async def record_plan_decision(
        self, execution: Execution, decided: list[WaitingCall], remaining: list[WaitingCall]
    ) -> None:
        """Record decided calls in a locked plan, and the calls it still waits for. Errors: `conflict` if cancelled."""
        tx, status = self._tx, "waiting" if remaining else "running"
        events = [self._build_event(decided)]
        after = msgspec.structs.replace(execution, waiting_for=remaining or None, status=status)
        if not remaining:
            data = {"status": "running", "attempt": 1, "error_type": None, "error_message": None}
            events.append(ExecutionEvent(type="status", data=data, at=tx.now))
        if not await tx.plans.update_execution(after, events, tx.now):
            raise Conflict("The execution was cancelled meanwhile; it does not wait for an approval.")
        await tx.plans.signal_plan(execution.id)
        tx.ring_job(job_from_execution(execution))
        ring_plan(tx, execution)
        tx.announce_status(execution.id, after.status)

    @property
    def _verdict(self) -> Literal["approved", "rejected"]:
        return "approved" if self._approved else "rejected"

    def _build_event(self, calls: list[WaitingCall]) -> ExecutionEvent:
        data = {"status": self._verdict, "calls": calls, "by": self._caller.user_id, "reason": self._reason}
        return ExecutionEvent(type="approval", data=data, at=self._tx.now)

    async def _find_executions(self, root: Execution, chosen: list[WaitingCall]) -> tuple[list[str], list[str]]:
        """Return the agents' executions that wait, and the plans between them and the root, from the root down."""
        agent_ids: list[str] = []
        plan_levels: dict[str, int] = {}
        for execution_id in sorted({call["execution_id"] for call in chosen if "execution_id" in call}):
            plan_ids: list[str] = []
            execution = await self._tx.executions.get(execution_id)
            while execution is not None and execution.id != root.id:
                (plan_ids if execution.lane == "plan" else agent_ids).append(execution.id)
                execution = await self._tx.executions.get(execution.parent_id or "")
            plan_levels |= {plan_id: level for level, plan_id in enumerate(reversed(plan_ids))}
        return agent_ids, sorted(plan_levels, key=lambda plan_id: plan_levels[plan_id])

    async def _decide_agent_calls(self, execution_id: str, chosen: list[WaitingCall]) -> list[WaitingCall]:
        execution = await self._tx.executions.lock_execution(execution_id)
        if execution is None or execution.status != "waiting":
            return []
        # The plan may know a call by another id than its own execution does; the path is the same.
        paths = {call["path"] for call in chosen}
        own_calls = [call for call in execution.waiting_for or [] if call["path"] in paths]
        if own_calls:
            await self.decide_tool_calls(execution, own_calls)
        own_paths = {call["path"] for call in own_calls}
        return [call for call in chosen if call["path"] in own_paths]

    async def _decide_inner_plan(self, execution_id: str, chosen_keys: set[str], decided_keys: set[str]) -> set[str]:
        """Decide on chosen steps of a locked inner plan, and record there what was decided below it."""
        execution = await get_execution(self._tx, execution_id)
        if execution.status != "waiting":
            return set()
        calls = execution.waiting_for or []
        chosen = [call for call in _select_steps(calls) if _build_key(execution_id, call) in chosen_keys]
        step_keys = {_build_key(execution_id, call) for call in await self._decide_steps(execution, chosen)}
        decided = [call for call in calls if _build_key(execution_id, call) in step_keys | decided_keys]
        if decided:
            await self.record_plan_decision(execution, decided, [call for call in calls if call not in decided])
        return step_keys

    async def _decide_steps(self, execution: Execution, chosen: list[WaitingCall]) -> list[WaitingCall]:
        """Decide on own steps of a locked plan. Return those that were waiting."""
        if not chosen:
            return []
        tx, plan = self._tx, await self._tx.plans.get(execution.id)
        assert plan is not None, "a plan's execution without a plan"
        state = PlanState(plan, await tx.plans.list_runs(execution.id))
        decided = [
            call
            for call in chosen
            if state.decide_step(call["step"], self._approved, self._caller.user_id, self._reason, tx.now)
        ]
        changed = list(state.changed_runs.values())
        await tx.plans.save(execution.id, changed)
        failed = [run for run in changed if run.status == "failed"]
        if failed:
            events = [ExecutionEvent(type="step", data=step_to_event_data(run), at=tx.now) for run in failed]
            await tx.events.append_while_waiting(execution.id, events)
        return decided


def _build_key(plan_id: str, call: WaitingCall) -> str:
    """Return a key that names the same call in the waiting lists of all plans above it."""
    return prefix_call_id(call.get("execution_id", plan_id), call["call_id"])


def _select_steps(calls: list[WaitingCall]) -> list[WaitingCall]:
    """Return the calls that are steps of the plan itself."""
    return [call for call in calls if "execution_id" not in call]
