"""Advancing a plan: one short transaction that takes in what its steps came to and starts what is ready.

Nothing is held in between. A worker that dies in it leaves everything as it was, with what was told of the plan, so
another one does the same again.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, Final

import msgspec

from domain import executions
from domain.agents import AgentSpec
from domain.events import ExecutionEvent
from domain.executions import Execution
from domain.expressions import ExpressionReferences
from domain.plans import child_executions, renderer
from domain.plans.engine import PlanOutcome, PlanState, StepFailed
from domain.plans.renderer import PlanScope
from domain.plans.schema import WHOLE_STEP, AgentWork, Plan, PlanStep, StepProgress, StepRun
from domain.ports import Tx
from domain.shared.jobs import Job
from domain.shared.leases import LostLease
from domain.shared.status import TERMINAL_STATUSES, ExecutionStatus


class PlanCache(msgspec.Struct, kw_only=True):
    """What is known of a plan between two times that it is advanced. `revision` tells whether it still holds."""

    plan: Plan
    revision: int = -1
    state: PlanState | None = None
    references: dict[str, ExpressionReferences] = {}


# Bytes of outputs that are kept at hand in one turn, before others take their place.
MAX_CACHED_OUTPUT_BYTES: Final = 16 * 1024 * 1024


class PlanLocked(Exception):
    """Somebody else advances this plan at the moment."""


async def advance_plan(
    tx: Tx, execution_id: str, cache: PlanCache | None, is_time_up: Callable[[], bool] = lambda: False
) -> PlanCache | None:
    """Advance a plan as far as it goes now; the rest is for another turn once it is `enough` for this one.

    None when it has ended. Errors: `Busy`, `LostLease`.
    """
    taken = await tx.plans.try_lock(execution_id, tx.now)
    if taken is None:
        raise PlanLocked
    if taken.execution.status in TERMINAL_STATUSES:
        await _swept(tx, taken.execution)
        return None
    if cache is None:
        plan = await tx.plans.get(execution_id)
        assert plan is not None, "a plan's execution without a plan"
        cache = PlanCache(plan=plan)
    if cache.state is None or cache.revision != taken.revision:
        cache.state = PlanState(cache.plan, await tx.plans.list_runs(execution_id))
    turn = _Turn(tx, taken.execution, cache, cache.state, is_time_up)
    ended = await turn.take()
    # `save` counts up by one.
    cache.revision = taken.revision + bool(turn.saved)
    return None if ended else cache


async def fail_plan(tx: Tx, execution_id: str, message: str) -> None:
    """End a plan that cannot be advanced, for a mistake of ours. Errors: `Busy`, `LostLease`."""
    taken = await tx.plans.try_lock(execution_id, tx.now)
    if taken is None:
        raise PlanLocked
    await executions.cancel_child_executions(tx, execution_id, message)
    await tx.plans.clear_signals(execution_id)
    if taken.execution.status in TERMINAL_STATUSES:
        return
    after = msgspec.structs.replace(
        taken.execution,
        status="failed",
        waiting_for=None,
        completed_at=tx.now,
        error_type="internal_error",
        error_message=message,
    )
    event = {"status": "failed", "attempt": 1, "error_type": "internal_error", "error_message": message}
    if not await tx.plans.update_execution(after, [ExecutionEvent(type="status", data=event, at=tx.now)], tx.now):
        raise LostLease(execution_id)
    tx.announce_status(execution_id, "failed")
    executions.ring_plan(tx, after)


class _Turn:
    """One time that a plan is advanced."""

    def __init__(
        self, tx: Tx, execution: Execution, known: PlanCache, board: PlanState, enough: Callable[[], bool]
    ) -> None:
        self._tx, self._execution, self._known, self._board, self._enough = tx, execution, known, board, enough
        self._plan = known.plan
        self._scope = PlanScope(known.plan, execution.input_data, board.runs, known.references)
        # Bytes of outputs at hand; agents that are known to be there.
        self._held = 0
        self._there: set[str] = set()
        self.saved = 0

    async def take(self) -> bool:
        """Returns whether the plan has ended."""
        tx, now, first = self._tx, self._tx.now, self._execution.status == "pending"
        progress = await tx.plans.list_progress(self._execution.id)
        for one in progress:
            self._take_in(one)
        began = self._execution.started_at or now
        deadline = began + timedelta(seconds=self._execution.timeout)
        outcome: PlanOutcome | None
        more = False
        if now >= deadline:
            told = f"The {self._plan.kind} took longer than {self._execution.timeout} s."
            outcome = PlanOutcome(error_type="timeout", error_message=told)
            await executions.cancel_child_executions(tx, self._execution.id, told)
            self._board.cancel_runs(now)
        else:
            more = await self._go_on()
            outcome = self._board.outcome
        changed, self._board.changed_runs = list(self._board.changed_runs.values()), {}
        await tx.plans.save(self._execution.id, changed)
        self.saved = len(changed)
        for due_at in {run.due_at for run in changed if run.status == "pending" and run.due_at is not None}:
            await tx.plans.signal_plan(self._execution.id, due_at)
        if more:
            await tx.plans.signal_plan(self._execution.id)
        if first and outcome is None:
            await tx.plans.signal_plan(self._execution.id, deadline)
        events = [ExecutionEvent(type="step", data=step_to_event_data(run), at=now) for run in changed]
        waiting = self._waiting(progress)
        await self._move(events, outcome, waiting)
        if outcome is not None:
            await tx.plans.clear_signals(self._execution.id)
        return outcome is not None

    def _take_in(self, one: StepProgress) -> None:
        """What has become of a child."""
        if one.status == "completed":
            self._board.end_try((one.step, one.item), None, None, self._tx.now)
        elif one.status in TERMINAL_STATUSES:
            kind = "cancelled" if one.status == "cancelled" else one.error_type or "failed"
            self._board.end_try((one.step, one.item), kind, one.error_message, self._tx.now)

    async def _go_on(self) -> bool:
        """Returns whether there is more to do, in another turn."""
        now, judged, before = self._tx.now, 0, -1
        while self._board.change_count != before:
            before = self._board.change_count
            for step in self._board.list_ready_steps(now):
                if judged and self._enough():
                    return True
                judged += 1
                await self._judgeable(step)
                for run in self._board.advance_steps([step], self._scope, now):
                    await self._start(run)
            for run in self._board.advance_mapped_steps(now):
                await self._start(run)
        return False

    async def _judgeable(self, step: PlanStep) -> None:
        if step.when is None and step.map is None:
            return
        try:
            await self._load(self._scope.find_references(step).steps)
        except StepFailed as failed:
            self._scope.failures[step.id] = failed

    async def _start(self, run: StepRun) -> None:
        step = self._board.steps[run.step]
        # Where a plan is run again from where it failed, the first try goes on with what is left of a plan within it.
        before = run.execution_id if run.tries == 1 else None
        try:
            await self._load(self._scope.find_references(step).steps)
            payload = self._scope.render_payload(step, run)
            spec = await self._agent(step.work, step) if isinstance(step.work, AgentWork) else None
            child = await child_executions.start_child(
                self._tx, self._execution, self._plan, step, run, payload, spec, before
            )
        except StepFailed as failed:
            self._board.end_try((run.step, run.item), failed.error_type, failed.message, self._tx.now)
        else:
            run.execution_id = child.id

    async def _agent(self, work: AgentWork, step: PlanStep) -> AgentSpec | None:
        if work.agent_id is not None and work.agent_id not in self._there:
            # Shared, so that whoever deletes it waits for this, and then finds what was started.
            if await self._tx.agents.find(work.agent_id, lock="share") is None:
                raise StepFailed("not_startable", f"The agent {work.name!r} was deleted.")
            self._there.add(work.agent_id)
        return self._scope.render_spec(work, step)

    async def _load(self, steps: Iterable[str]) -> None:
        """Have the outputs of steps at hand. Errors: `StepFailed` where they are too large together."""
        if self._held > MAX_CACHED_OUTPUT_BYTES and self._scope.list_missing_outputs(steps):
            self._scope.clear_outputs()
            self._held = 0
        missing = {step: self._board.list_child_ids(step) for step in self._scope.list_missing_outputs(steps)}
        if not missing:
            return
        found, size = await self._tx.plans.get_child_outputs([one for made in missing.values() for one in made])
        if found is None:
            named = ", ".join(sorted(missing)[:10])
            told = f"The outputs that it refers to come to {size} bytes, which is too much: {named}."
            raise StepFailed("outputs_too_large", told)
        self._held += size
        for step, made in missing.items():
            answers = [found.get(one) for one in made]
            self._scope.outputs[step] = answers if self._board.steps[step].map is not None else answers[0]

    def _waiting(self, progress: list[StepProgress]) -> list[dict[str, Any]]:
        """What waits for somebody's decision: steps of the plan, and what waits within them, each by its own id."""
        steps = [
            {"call_id": run.step, "step": run.step, "name": self._board.steps[run.step].name}
            for run in self._board.runs.values()
            if run.status == "waiting"
        ]
        calls = [
            {**call, "step": _place(one), "execution_id": call.get("execution_id", one.execution_id)}
            for one in progress
            if one.status == "waiting" and self._board.runs[one.step, one.item].status == "running"
            for call in one.waiting_for or []
        ]
        # Models number their calls anew in each run: who approves one of them must not approve another by its id.
        known = Counter(call["call_id"] for call in (*steps, *calls))
        for call in calls:
            if known[call["call_id"]] > 1:
                call["call_id"] = child_executions.qualify_call_id(call["execution_id"], call["call_id"])
        return [*steps, *calls]

    async def _move(
        self, events: list[ExecutionEvent], outcome: PlanOutcome | None, waiting: list[dict[str, Any]]
    ) -> None:
        tx, before = self._tx, self._execution
        status: ExecutionStatus = "waiting" if waiting else "running"
        values: dict[str, Any] = {}
        if outcome is not None:
            if outcome.error_type is None:
                outcome, values = await self._result(events)
            status, waiting = ("failed" if outcome.error_type else "completed"), []
            values |= {"completed_at": tx.now}
            values |= {"error_type": outcome.error_type, "error_message": outcome.error_message}
        after = msgspec.structs.replace(
            before, status=status, waiting_for=waiting or None, steps_completed=self._board.completed_count, **values
        )
        fresh = [one for one in waiting if one not in (before.waiting_for or [])]
        if fresh:
            events.append(ExecutionEvent(type="approval", data={"status": "waiting", "calls": fresh}, at=tx.now))
        if status != before.status:
            told = {"status": status, "attempt": 1, "error_type": after.error_type}
            events.append(ExecutionEvent(type="status", data={**told, "error_message": after.error_message}, at=tx.now))
        if not await tx.plans.update_execution(after, events, tx.now):
            # Cancelled at this moment: what was begun here is not.
            raise LostLease(before.id)
        tx.announce_status(before.id, status)
        if outcome is not None and before.parent_id is not None:
            tx.ring_job(Job(lane="plan", row_id=before.parent_id, tenant_id=before.tenant_id, attempt=0))

    async def _result(self, events: list[ExecutionEvent]) -> tuple[PlanOutcome, dict[str, Any]]:
        try:
            await self._load(renderer.list_output_steps(self._plan))
            return PlanOutcome(), {"output_data": self._scope.render_result()}
        except StepFailed as failed:
            if failed.error_type != "outputs_too_large" or self._plan.outputs is not None:
                return PlanOutcome(error_type=failed.error_type, error_message=failed.message), {}
            # Nobody asked for all of it in one, and the steps have it.
            told = f"The {self._plan.kind} has no output of its own. {failed.message}"
            events.append(ExecutionEvent(type="warning", data={"message": told}, at=self._tx.now))
            return PlanOutcome(), {"output_data": None}


async def _swept(tx: Tx, execution: Execution) -> None:
    """An ended plan runs nothing any more."""
    told = "What it belongs to was cancelled." if execution.status == "cancelled" else "What it belongs to has ended."
    await executions.cancel_child_executions(tx, execution.id, told)
    plan = await tx.plans.get(execution.id)
    assert plan is not None, "a plan's execution without a plan"
    board = PlanState(plan, await tx.plans.list_runs(execution.id))
    for one in await tx.plans.list_progress(execution.id):
        if one.status == "completed":
            board.end_try((one.step, one.item), None, None, tx.now)
    board.cancel_runs(tx.now)
    await tx.plans.save(execution.id, list(board.changed_runs.values()))
    await tx.plans.clear_signals(execution.id)


def _place(one: StepProgress) -> str:
    return one.step if one.item == WHOLE_STEP else f"{one.step}[{one.item}]"


def step_to_event_data(run: StepRun) -> dict[str, Any]:
    """What the log says of a step that has moved."""
    told: dict[str, Any] = {
        "step": run.step,
        "status": run.status,
        "tries": run.tries,
        "execution_id": run.execution_id,
    }
    if run.item != WHOLE_STEP:
        told["item"] = run.item
    if run.error_type is not None:
        told |= {"error_type": run.error_type, "error_message": run.error_message}
    if run.due_at is not None:
        told["due_at"] = run.due_at
    return told
