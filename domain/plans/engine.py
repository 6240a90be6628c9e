"""Advance the state of a plan: decide which steps start, which are retried, and when the plan ends.

Pure: no step runs here.

    pending ──► waiting (for an approval) ──► running ──► completed | failed
       └──► skipped | cancelled                  └──► pending (for a retry)

A step is ready when all steps that it depends on are settled: completed, skipped, or failed with `continue_on_failure`.
After any other failure no new step starts; running steps finish, and then the plan fails.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

import msgspec

from domain.plans.schema import (
    ENDED_STEP_STATUSES,
    MAX_MAP_ITEMS,
    MAX_STEP_RUNS,
    WHOLE_STEP,
    Plan,
    PlanStep,
    StepRun,
    StepStatus,
)

RunKey = tuple[str, int]
# A retry cannot change the result of these.
FINAL_ERROR_TYPES: Final = frozenset(
    {
        "rejected",
        "budget_exceeded",
        "cancelled",
        "bad_expression",
        "input_invalid",
        "map_too_large",
        "not_startable",
        "outputs_too_large",
    }
)


class StepFailed(Exception):
    """Report that a step cannot be evaluated or started."""

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(message)
        # The message may quote values, and text columns hold no U+0000.
        self.error_type, self.message = error_type, message.replace("\0", "\ufffd")


class StepEvaluator(Protocol):
    """Evaluate the plan's expressions. Errors: `StepFailed`."""

    def evaluate_condition(self, step: PlanStep) -> bool:
        """Return the value of the step's `when`."""
        ...

    def count_items(self, step: PlanStep) -> int:
        """Return the length of the list that the step is mapped over."""
        ...


class PlanOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """Describe how a plan ended; without an `error_type` it completed."""

    error_type: str | None = None
    error_message: str | None = None


class PlanState:
    """Hold a plan and the progress of its steps. `runs` has a row for every step, and for each item of a mapped step.

    `changed_runs` collects the rows to save. `change_count` grows with every change: call `advance_steps` and
    `advance_mapped_steps` until it stays the same.
    """

    def __init__(self, plan: Plan, runs: Iterable[StepRun]) -> None:
        self.plan = plan
        self.steps = {step.id: step for step in plan.steps}
        self.runs: dict[RunKey, StepRun] = {}
        self.changed_runs: dict[RunKey, StepRun] = {}
        self.change_count = 0
        self._item_runs: dict[str, list[StepRun]] = {}
        self._settled: set[str] = set()
        # For every step: how many dependencies are open, and which steps depend on it; and the pending steps without
        # open dependencies. With thousands of steps, looking at each of them every time would be too slow.
        self._open_dependencies = {step.id: len(set(step.depends_on)) for step in plan.steps}
        self._dependents = _group_dependents(plan)
        self._positions = {step.id: position for position, step in enumerate(plan.steps)}
        self._unblocked: set[str] = set()
        self._failed_run: StepRun | None = None
        for run in runs:
            self._register_run(run)

    # Record what happened.

    def end_try(self, key: RunKey, error_type: str | None, error_message: str | None, now: datetime) -> bool:
        """Record the end of a running try. Return False if the run was not running."""
        run, step = self.runs[key], self.steps[key[0]]
        if run.status != "running":
            return False
        if error_type is None:
            self._change_run(run, "completed", finished_at=now, error_type=None, error_message=None)
        elif error_type not in FINAL_ERROR_TYPES and run.tries <= step.retry.attempts:
            due = now + timedelta(seconds=step.retry.compute_delay(run.tries))
            self._change_run(run, "pending", due_at=due, error_type=error_type, error_message=error_message)
        else:
            self._fail_run(run, error_type, error_message, now)
        return True

    def decide_step(self, step: str, approved: bool, by: str, reason: str | None, now: datetime) -> bool:
        """Record the decision on a waiting step. Return False if the step was not waiting."""
        run = self.runs.get((step, WHOLE_STEP))
        if run is None or run.status != "waiting":
            return False
        decision = {"approved": approved, "decided_by": by, "decided_at": now, "reason": reason}
        if approved:
            self._change_run(run, "pending", **decision)
        else:
            self._fail_run(run, "rejected", reason or "The step was rejected.", now, **decision)
        return True

    # Derive what follows.

    def list_ready_steps(self, now: datetime) -> list[PlanStep]:
        """Return the steps for `advance_steps`; load the outputs that their expressions refer to first."""
        if self.is_failing:
            return []
        unblocked = sorted(self._unblocked, key=lambda step_id: self._positions[step_id])
        return [self.steps[step_id] for step_id in unblocked if _is_due(self.runs[step_id, WHOLE_STEP], now)]

    def advance_steps(self, ready: list[PlanStep], evaluator: StepEvaluator, now: datetime) -> list[StepRun]:
        """Advance these steps. Return the runs to start now, which count as running."""
        starts: list[StepRun] = []
        for step in ready:
            if not self.is_failing:
                self._advance_step(step, evaluator, now, starts)
        return starts

    def advance_mapped_steps(self, now: datetime) -> list[StepRun]:
        """Advance the items of mapped steps; cancel steps that have not begun in a failing plan.

        Return the runs to start now.
        """
        starts: list[StepRun] = []
        for step_id in list(self._item_runs):
            if self.runs[step_id, WHOLE_STEP].status == "running":
                self._advance_items(self.runs[step_id, WHOLE_STEP], now, starts)
        if self.is_failing:
            open_runs = [
                run for run in self.runs.values() if run.item == WHOLE_STEP and run.status in ("pending", "waiting")
            ]
            for run in open_runs:
                self._change_run(run, "cancelled", finished_at=now)
        return starts

    def cancel_runs(self, now: datetime) -> None:
        """Cancel every run that has not ended."""
        for run in self.runs.values():
            if run.status not in ENDED_STEP_STATUSES:
                self._change_run(run, "cancelled", finished_at=now)

    @property
    def is_failing(self) -> bool:
        """Whether a step failed that the plan requires."""
        return self._failed_run is not None

    @property
    def outcome(self) -> PlanOutcome | None:
        """The outcome of the plan; None until it has ended."""
        if any(run.status not in ENDED_STEP_STATUSES for run in self.runs.values()):
            return None
        failed = self._failed_run
        if failed is None:
            return PlanOutcome()
        message = f"The step {self.steps[failed.step].name!r} failed: {failed.error_message}"
        return PlanOutcome(error_type=failed.error_type, error_message=message)

    @property
    def completed_count(self) -> int:
        """The number of steps that are completed or skipped."""
        return sum(run.item == WHOLE_STEP and run.status in ("completed", "skipped") for run in self.runs.values())

    def list_child_ids(self, step: str) -> list[str]:
        """Return the executions of a completed step; those of a mapped step in the order of its items."""
        items = sorted(self._item_runs.get(step, []), key=lambda run: run.item)
        runs = [self.runs[step, WHOLE_STEP]] if self.steps[step].map is None else items
        return [run.execution_id for run in runs if run.execution_id is not None]

    # Apply the rules.

    def _advance_step(self, step: PlanStep, evaluator: StepEvaluator, now: datetime, starts: list[StepRun]) -> None:
        run = self.runs[step.id, WHOLE_STEP]
        try:
            is_new = run.tries == 0 and run.approved is None
            if is_new and step.when is not None and not evaluator.evaluate_condition(step):
                self._change_run(run, "skipped", finished_at=now)
                return
            if step.requires_approval and run.approved is None:
                self._change_run(run, "waiting", started_at=now)
                return
            if step.map is None:
                self._start_run(run, now, starts)
                return
            count = evaluator.count_items(step)
            if count > MAX_MAP_ITEMS:
                raise StepFailed("map_too_large", f"The list has {count} items; at most {MAX_MAP_ITEMS} are allowed.")
            if count + len(self.runs) > MAX_STEP_RUNS:
                message = f"With its {count} items the plan has more than {MAX_STEP_RUNS} steps and items."
                raise StepFailed("map_too_large", message)
        except StepFailed as failed:
            self._fail_run(run, failed.error_type, failed.message, now)
            return
        self._change_run(run, "running", tries=1, started_at=run.started_at or now)
        self._item_runs[step.id] = []
        for item in range(count):
            item_run = StepRun(step=step.id, item=item)
            self._register_run(item_run)
            self.changed_runs[step.id, item] = item_run

    def _advance_items(self, whole: StepRun, now: datetime, starts: list[StepRun]) -> None:
        step, items = self.steps[whole.step], self._item_runs.get(whole.step, [])
        failed = next((item for item in items if item.status == "failed"), None)
        running_count = sum(item.status == "running" for item in items)
        if failed is None and not self.is_failing:
            for item in items:
                if running_count < step.max_parallel and _is_due(item, now):
                    self._start_run(item, now, starts)
                    running_count += 1
        if running_count:
            return
        if failed is not None or self.is_failing:
            for item in items:
                if item.status not in ENDED_STEP_STATUSES:
                    self._change_run(item, "cancelled", finished_at=now)
        if failed is not None:
            self._fail_run(whole, failed.error_type, f"Item {failed.item}: {failed.error_message}", now)
        elif self.is_failing and any(item.status == "cancelled" for item in items):
            self._change_run(whole, "cancelled", finished_at=now)
        elif all(item.status == "completed" for item in items):
            self._change_run(whole, "completed", finished_at=now)
        elif all(item.status in ENDED_STEP_STATUSES for item in items):
            self._fail_run(whole, "cancelled", "An item was cancelled.", now)

    def _start_run(self, run: StepRun, now: datetime, starts: list[StepRun]) -> None:
        self._change_run(run, "running", tries=run.tries + 1, due_at=None, started_at=run.started_at or now)
        starts.append(run)

    def _fail_run(
        self, run: StepRun, error_type: str | None, message: str | None, now: datetime, **fields: Any
    ) -> None:
        self._change_run(run, "failed", error_type=error_type, error_message=message, finished_at=now, **fields)

    def _change_run(self, run: StepRun, status: StepStatus, **fields: Any) -> None:
        run.status = status
        for name, value in fields.items():
            setattr(run, name, value)
        self.changed_runs[run.step, run.item] = run
        self.change_count += 1
        self._register_run(run)

    def _register_run(self, run: StepRun) -> None:
        key = run.step, run.item
        if run.item != WHOLE_STEP and key not in self.runs:
            self._item_runs.setdefault(run.step, []).append(run)
        self.runs[key] = run
        if run.item != WHOLE_STEP:
            return
        if run.status == "pending" and not self._open_dependencies[run.step]:
            self._unblocked.add(run.step)
        else:
            self._unblocked.discard(run.step)
        is_lenient = self.steps[run.step].continue_on_failure
        if run.status in ("completed", "skipped") or (run.status == "failed" and is_lenient):
            self._settle_step(run.step)
        elif run.status == "failed" and self._failed_run is None:
            self._failed_run = run

    def _settle_step(self, step: str) -> None:
        if step in self._settled:
            return
        self._settled.add(step)
        for dependent in self._dependents.get(step, ()):
            self._open_dependencies[dependent] -= 1
            run = self.runs.get((dependent, WHOLE_STEP))
            if not self._open_dependencies[dependent] and run is not None and run.status == "pending":
                self._unblocked.add(dependent)


def _is_due(run: StepRun, now: datetime) -> bool:
    return run.status == "pending" and (run.due_at is None or run.due_at <= now)


def _group_dependents(plan: Plan) -> dict[str, list[str]]:
    """Return for each step the steps that depend on it."""
    dependents: dict[str, list[str]] = {}
    for step in plan.steps:
        for dependency in set(step.depends_on):
            dependents.setdefault(dependency, []).append(step.id)
    return dependents


def create_runs(plan: Plan) -> list[StepRun]:
    """Return the runs of a plan that has not begun."""
    return [StepRun(step=step.id) for step in plan.steps]


def resume_runs(plan: Plan, old_runs: Iterable[StepRun]) -> list[StepRun]:
    """Return the runs of a plan that continues after a failure: completed steps stay completed.

    Skipped steps, and the lists of mapped steps, stay as well, unless a step before them runs again: then they are
    evaluated anew. A step that did not complete keeps the id of its last execution, which may be a plan to resume.
    """
    runs = {(run.step, run.item): run for run in old_runs}
    item_runs: dict[str, list[StepRun]] = {}
    for run in runs.values():
        if run.item != WHOLE_STEP:
            item_runs.setdefault(run.step, []).append(run)
    repeated = {step.id for step in plan.steps if runs[step.id, WHOLE_STEP].status not in ("completed", "skipped")}
    affected = _find_descendants(plan, repeated)
    resumed: list[StepRun] = []
    for step in plan.steps:
        whole, items = runs[step.id, WHOLE_STEP], item_runs.get(step.id, [])
        if whole.status == "completed" or (whole.status == "skipped" and step.id not in affected):
            resumed += [whole, *items]
        elif items and step.id not in affected:
            resumed.append(StepRun(step=step.id, status="running", tries=1, approved=whole.approved))
            resumed += [run if run.status == "completed" else _restart_run(run) for run in items]
        else:
            resumed.append(_restart_run(whole))
    return resumed


def _restart_run(run: StepRun) -> StepRun:
    return StepRun(step=run.step, item=run.item, execution_id=run.execution_id)


def _find_descendants(plan: Plan, steps: set[str]) -> set[str]:
    """Return the steps that depend on one of `steps`, directly or not."""
    dependents = _group_dependents(plan)
    descendants, open_steps = set[str](), list(steps)
    while open_steps:
        new_steps = [step for step in dependents.get(open_steps.pop(), ()) if step not in descendants]
        descendants.update(new_steps)
        open_steps += new_steps
    return descendants
