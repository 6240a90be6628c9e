"""Advance a plan in one short transaction: take in the results of its steps and start the steps that are ready.

Nothing is held between two transactions. If a worker dies in one, everything stays as it was, signals included, and
another worker repeats it.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, Final

import msgspec

from domain import executions, schemas, threads
from domain.agents import AgentSpec
from domain.events import ExecutionEvent
from domain.executions import Execution
from domain.expressions import ExpressionReferences
from domain.plans import child_executions, renderer
from domain.plans.engine import PlanOutcome, PlanState, StepFailed
from domain.plans.renderer import PlanScope
from domain.plans.schema import AgentWork, LockedPlan, Plan, PlanStep, StepProgress, StepRun, format_step_label
from domain.ports import Tx
from domain.shared.errors import DomainError
from domain.shared.jobs import Job
from domain.shared.leases import LostLease
from domain.shared.status import TERMINAL_STATUSES, ExecutionStatus

# Outputs that one advance keeps loaded before it drops them for others.
MAX_CACHED_OUTPUT_BYTES: Final = 16 * 1024 * 1024


class PlanCache(msgspec.Struct, kw_only=True):
    """Keep a plan between two advances. The `state` is valid while the stored plan has the same `revision`."""

    plan: Plan
    revision: int = -1
    state: PlanState | None = None
    references: dict[str, ExpressionReferences] = {}


class PlanLocked(Exception):
    """Report that another transaction advances this plan."""


async def advance_plan(
    tx: Tx, execution_id: str, cache: PlanCache | None, is_time_up: Callable[[], bool] = lambda: False
) -> PlanCache | None:
    """Advance a plan as far as possible; leave the rest to another transaction once `is_time_up`.

    Return what to keep for the next advance; None once the plan has ended. Errors: `PlanLocked`, `LostLease`.
    """
    locked = await _lock_plan(tx, execution_id)
    if locked.execution.status in TERMINAL_STATUSES:
        await _clean_up(tx, locked.execution)
        return None
    if executions.is_expired(locked.execution, tx.now):
        # It has not begun. Upkeep cancels it.
        return None
    if cache is None:
        cache = PlanCache(plan=await _get_plan(tx, execution_id))
    if cache.state is None or cache.revision != locked.revision:
        cache.state = PlanState(cache.plan, await tx.plans.list_runs(execution_id))
    advance = _Advance(tx, locked.execution, cache, cache.state, is_time_up)
    has_ended = await advance.run()
    # `save` increments the revision by one.
    cache.revision = locked.revision + bool(advance.saved_count)
    return None if has_ended else cache


async def fail_plan(tx: Tx, execution_id: str, message: str) -> None:
    """Fail a plan that cannot be advanced because of an internal error. Errors: `PlanLocked`, `LostLease`."""
    locked = await _lock_plan(tx, execution_id)
    await executions.cancel_child_executions(tx, execution_id, message)
    await tx.plans.clear_signals(execution_id)
    if locked.execution.status in TERMINAL_STATUSES:
        return
    failed = msgspec.structs.replace(
        locked.execution,
        status="failed",
        waiting_for=None,
        completed_at=tx.now,
        error_type="internal_error",
        error_message=message,
    )
    data = {"status": "failed", "attempt": 1, "error_type": "internal_error", "error_message": message}
    if not await tx.plans.update_execution(failed, [ExecutionEvent(type="status", data=data, at=tx.now)], tx.now):
        raise LostLease(execution_id)
    tx.announce_status(execution_id, "failed")
    executions.note_end(tx, failed)
    executions.ring_plan(tx, failed)


async def _lock_plan(tx: Tx, execution_id: str) -> LockedPlan:
    locked = await tx.plans.try_lock(execution_id, tx.now)
    if locked is None:
        raise PlanLocked
    return locked


async def _get_plan(tx: Tx, execution_id: str) -> Plan:
    plan = await tx.plans.get(execution_id)
    assert plan is not None, "a plan's execution without a plan"
    return plan


class _Advance:
    """Advance a plan once."""

    def __init__(
        self, tx: Tx, execution: Execution, cache: PlanCache, state: PlanState, is_time_up: Callable[[], bool]
    ) -> None:
        self._tx, self._execution, self._plan, self._state = tx, execution, cache.plan, state
        self._is_time_up = is_time_up
        self._scope = PlanScope(cache.plan, execution.input_data, state.runs, cache.references, tx.now)
        self._loaded_bytes = 0
        self._existing_agents: set[str] = set()
        self.saved_count = 0

    async def run(self) -> bool:
        """Advance the plan and save it. Return whether it has ended."""
        tx, now, is_first = self._tx, self._tx.now, self._execution.status == "pending"
        progress = await tx.plans.list_progress(self._execution.id)
        for child in progress:
            self._record_progress(child)
        deadline = (self._execution.started_at or now) + timedelta(seconds=self._execution.timeout)
        outcome: PlanOutcome | None
        has_more = False
        if now >= deadline:
            message = f"The {self._plan.kind} took longer than {self._execution.timeout} s."
            outcome = PlanOutcome(error_type="timeout", error_message=message)
            await executions.cancel_child_executions(tx, self._execution.id, message)
            self._state.cancel_runs(now)
        else:
            has_more = await self._advance_steps()
            outcome = self._state.outcome
        changed, self._state.changed_runs = list(self._state.changed_runs.values()), {}
        await tx.plans.save(self._execution.id, changed)
        self.saved_count = len(changed)
        for due_at in {run.due_at for run in changed if run.status == "pending" and run.due_at is not None}:
            await tx.plans.signal_plan(self._execution.id, due_at)
        if has_more:
            await tx.plans.signal_plan(self._execution.id)
        if is_first and outcome is None:
            await tx.plans.signal_plan(self._execution.id, deadline)
        events = [ExecutionEvent(type="step", data=step_to_event_data(run), at=now) for run in changed]
        await self._update_execution(events, outcome, self._list_waiting(progress))
        if outcome is not None:
            await tx.plans.clear_signals(self._execution.id)
        return outcome is not None

    def _record_progress(self, child: StepProgress) -> None:
        key = child.step, child.item
        if child.status == "completed":
            self._state.end_try(key, None, None, self._tx.now)
        elif child.status in TERMINAL_STATUSES:
            error_type = "cancelled" if child.status == "cancelled" else child.error_type or "failed"
            self._state.end_try(key, error_type, child.error_message, self._tx.now)

    async def _advance_steps(self) -> bool:
        """Advance steps until nothing changes. Return whether time was up before that."""
        now, evaluated_count, change_count = self._tx.now, 0, -1
        while self._state.change_count != change_count:
            change_count = self._state.change_count
            for step in self._state.list_ready_steps(now):
                if evaluated_count and self._is_time_up():
                    return True
                evaluated_count += 1
                await self._load_references(step)
                for run in self._state.advance_steps([step], self._scope, now):
                    await self._start_run(run)
            for run in self._state.advance_mapped_steps(now):
                await self._start_run(run)
        return False

    async def _load_references(self, step: PlanStep) -> None:
        if step.when is None and step.map is None:
            return
        try:
            await self._load_outputs(self._scope.find_references(step).steps)
        except StepFailed as failed:
            self._scope.failures[step.id] = failed

    async def _start_run(self, run: StepRun) -> None:
        step = self._state.steps[run.step]
        try:
            await self._load_outputs(self._scope.find_references(step).steps)
            payload = self._scope.render_payload(step, run)
            spec = await self._render_spec(step.work, step) if isinstance(step.work, AgentWork) else None
            start = child_executions.ChildStart(
                parent=self._execution,
                plan=self._plan,
                step=step,
                run=run,
                payload=payload,
                spec=spec,
                # The first try of a resumed plan's step resumes the plan that its last execution ran.
                resumed_id=run.execution_id if run.tries == 1 else None,
            )
            child = await child_executions.start_child(self._tx, start)
        except StepFailed as failed:
            self._state.end_try((run.step, run.item), failed.error_type, failed.message, self._tx.now)
        else:
            run.execution_id = child.id

    async def _render_spec(self, work: AgentWork, step: PlanStep) -> AgentSpec | None:
        if work.agent_id is not None and work.agent_id not in self._existing_agents:
            # With the shared lock, deleting the agent waits for this transaction and then sees the execution.
            if await self._tx.agents.find(work.agent_id, lock="share") is None:
                raise StepFailed("not_startable", f"The agent {work.name!r} was deleted.")
            self._existing_agents.add(work.agent_id)
        return self._scope.render_spec(work, step)

    async def _load_outputs(self, steps: Iterable[str]) -> None:
        """Load the outputs of steps. Errors: `StepFailed` for outputs that are too large together."""
        if self._loaded_bytes > MAX_CACHED_OUTPUT_BYTES and self._scope.list_missing_outputs(steps):
            self._scope.clear_outputs()
            self._loaded_bytes = 0
        missing = {step: self._state.list_child_ids(step) for step in self._scope.list_missing_outputs(steps)}
        if not missing:
            return
        child_ids = [child_id for step_children in missing.values() for child_id in step_children]
        outputs, size = await self._tx.plans.get_child_outputs(child_ids)
        if outputs is None:
            step_ids = ", ".join(sorted(missing)[:10])
            message = f"The outputs of the steps {step_ids} have {size} bytes together, which is too much to load."
            raise StepFailed("outputs_too_large", message)
        self._loaded_bytes += size
        for step, step_children in missing.items():
            answers = [outputs.get(child_id) for child_id in step_children]
            self._scope.outputs[step] = answers if self._state.steps[step].map is not None else answers[0]

    def _list_waiting(self, progress: list[StepProgress]) -> list[dict[str, Any]]:
        """Return the calls that wait for an approval: steps of the plan, and calls below it, each with its own id."""
        steps = [
            {"call_id": run.step, "step": run.step, "name": self._state.steps[run.step].name}
            for run in self._state.runs.values()
            if run.status == "waiting"
        ]
        calls = [
            {
                **call,
                "step": format_step_label(child.step, child.item),
                "execution_id": call.get("execution_id", child.execution_id),
            }
            for child in progress
            if child.status == "waiting" and self._state.runs[child.step, child.item].status == "running"
            for call in child.waiting_for or []
        ]
        # Models number their calls anew in each run: an approval of one call must not approve another by its id.
        id_counts = Counter(call["call_id"] for call in (*steps, *calls))
        for call in calls:
            if id_counts[call["call_id"]] > 1:
                call["call_id"] = child_executions.prefix_call_id(call["execution_id"], call["call_id"])
        return [*steps, *calls]

    async def _update_execution(
        self, events: list[ExecutionEvent], outcome: PlanOutcome | None, waiting: list[dict[str, Any]]
    ) -> None:
        tx, before = self._tx, self._execution
        status: ExecutionStatus = "waiting" if waiting else "running"
        changes: dict[str, Any] = {}
        if outcome is not None:
            if outcome.error_type is None:
                outcome, changes = await self._render_result(events)
            outcome = await self._end_turn(outcome, changes)
            status, waiting = ("failed" if outcome.error_type else "completed"), []
            changes |= {"completed_at": tx.now}
            changes |= {"error_type": outcome.error_type, "error_message": outcome.error_message}
        after = msgspec.structs.replace(
            before, status=status, waiting_for=waiting or None, steps_completed=self._state.completed_count, **changes
        )
        new_calls = [call for call in waiting if call not in (before.waiting_for or [])]
        if new_calls:
            events.append(ExecutionEvent(type="approval", data={"status": "waiting", "calls": new_calls}, at=tx.now))
        if status != before.status:
            data = {"status": status, "attempt": 1, "error_type": after.error_type}
            events.append(ExecutionEvent(type="status", data={**data, "error_message": after.error_message}, at=tx.now))
        if not await tx.plans.update_execution(after, events, tx.now):
            # The plan was cancelled at this moment; the children that were started here must not run.
            raise LostLease(before.id)
        tx.announce_status(before.id, status)
        if outcome is not None:
            executions.note_end(tx, after)
        if outcome is not None and before.parent_id is not None:
            tx.ring_job(Job(lane="plan", row_id=before.parent_id, tenant_id=before.tenant_id, attempt=0))

    async def _end_turn(self, outcome: PlanOutcome, changes: dict[str, Any]) -> PlanOutcome:
        """Write the turn of a completed plan to its thread. Return the outcome, or why that cannot be."""
        execution = self._execution
        if execution.thread_id is None:
            return outcome
        if outcome.error_type is None:
            turn = threads.build_plain_turn(execution, changes.get("output_data"))
            try:
                await threads.append_turn(self._tx, execution, threads.NO_CONVERSATION, turn)
            except DomainError as error:
                if error.code not in threads.THREAD_ERRORS:
                    raise
                changes.clear()
                outcome = PlanOutcome(error_type=error.code, error_message=error.detail)
        if outcome.error_type is not None:
            message = f"{outcome.error_message or ''}{executions.THREAD_UNCHANGED}".strip()
            outcome = msgspec.structs.replace(outcome, error_message=message)
        return outcome

    async def _render_result(self, events: list[ExecutionEvent]) -> tuple[PlanOutcome, dict[str, Any]]:
        try:
            await self._load_outputs(renderer.list_output_steps(self._plan))
            result = self._scope.render_result()
            problem = await schemas.find_output_problem(self._plan.output_schema, result, self._execution.tenant_id)
            if problem is not None:
                return PlanOutcome(error_type="output_invalid", error_message=problem), {}
            return PlanOutcome(), {"output_data": result}
        except StepFailed as failed:
            if failed.error_type != "outputs_too_large" or self._plan.outputs is not None:
                return PlanOutcome(error_type=failed.error_type, error_message=failed.message), {}
            # The plan asks for no output of its own, and each step keeps its own.
            message = f"The {self._plan.kind} has no output of its own. {failed.message}"
            events.append(ExecutionEvent(type="warning", data={"message": message}, at=self._tx.now))
            return PlanOutcome(), {"output_data": None}


async def _clean_up(tx: Tx, execution: Execution) -> None:
    """Cancel what still runs of an ended plan, and remove its signals."""
    ending = "was cancelled" if execution.status == "cancelled" else "has ended"
    await executions.cancel_child_executions(tx, execution.id, f"Its plan {ending}.")
    state = PlanState(await _get_plan(tx, execution.id), await tx.plans.list_runs(execution.id))
    for child in await tx.plans.list_progress(execution.id):
        if child.status == "completed":
            state.end_try((child.step, child.item), None, None, tx.now)
    state.cancel_runs(tx.now)
    await tx.plans.save(execution.id, list(state.changed_runs.values()))
    await tx.plans.clear_signals(execution.id)


def step_to_event_data(run: StepRun) -> dict[str, Any]:
    """Return the log event's data for a step that has changed."""
    data: dict[str, Any] = {
        "step": run.step,
        "status": run.status,
        "tries": run.tries,
        "execution_id": run.execution_id,
    }
    if not run.is_whole_step:
        data["item"] = run.item
    if run.error_type is not None:
        data |= {"error_type": run.error_type, "error_message": run.error_message}
    if run.due_at is not None:
        data["due_at"] = run.due_at
    return data
