"""Stepping through a plan: what may start, what is to be tried again, when it has ended. Pure; no step is run here.

    pending ──► waiting (for an approval) ──► running ──► completed | failed
       └──► skipped | cancelled                  └──► pending (to be tried again)

A step is ready when all that it depends on is settled: completed, skipped, or failed where that does not matter. After
a failure that matters nothing new is started; what runs comes to its end, and then the plan has failed.
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
# Trying again changes nothing about these.
FINAL_ERROR_TYPES: Final = frozenset(
    {
        "rejected",
        "budget_exceeded",
        "cancelled",
        "bad_expression",
        "map_too_large",
        "not_startable",
        "outputs_too_large",
    }
)


class StepFailed(Exception):
    """A step cannot be judged or started. `kind` is its `error_type`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        # It may quote values, and stands in columns of text, which hold no U+0000.
        self.error_type, self.message = kind, message.replace("\0", "\ufffd")


class StepEvaluator(Protocol):
    """What the plan's expressions say. Errors: `StepFailed`."""

    def evaluate_condition(self, step: PlanStep) -> bool:
        """What its `when` says."""
        ...

    def count_items(self, step: PlanStep) -> int:
        """How many items the list has that it is mapped over."""
        ...


class PlanOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a plan has ended; without `error_type` it is completed."""

    error_type: str | None = None
    error_message: str | None = None


class PlanState:
    """A plan and how far each of its steps is. `runs` has a row for every step, and for each item of a mapped one.

    `changed` gathers what is to be written down, `moved` counts up whenever something moves: `advance` and `settle` are
    to be called until nothing does.
    """

    def __init__(self, plan: Plan, runs: Iterable[StepRun]) -> None:
        self.plan = plan
        self.steps = {step.id: step for step in plan.steps}
        self.runs: dict[RunKey, StepRun] = {}
        self.changed_runs: dict[RunKey, StepRun] = {}
        self.change_count = 0
        self._items: dict[str, list[StepRun]] = {}
        self._settled: set[str] = set()
        # Of every step how many others it still waits for, who waits for it, and those that pend and wait for none:
        # looking at every step each time is too much where there are thousands.
        self._waits = {step.id: len(set(step.depends_on)) for step in plan.steps}
        self._after = _after(plan)
        self._places = {step.id: place for place, step in enumerate(plan.steps)}
        self._ripe: set[str] = set()
        self._failed: StepRun | None = None
        for run in runs:
            self._know(run)

    # what happened

    def end_try(self, key: RunKey, error_type: str | None, error_message: str | None, now: datetime) -> bool:
        """The try that was running has ended. Returns whether it was."""
        run, step = self.runs[key], self.steps[key[0]]
        if run.status != "running":
            return False
        if error_type is None:
            self._move(run, "completed", finished_at=now, error_type=None, error_message=None)
        elif error_type not in FINAL_ERROR_TYPES and run.tries <= step.retry.attempts:
            due = now + timedelta(seconds=step.retry.compute_delay(run.tries))
            self._move(run, "pending", due_at=due, error_type=error_type, error_message=error_message)
        else:
            self._fail(run, error_type, error_message, now)
        return True

    def decide_step(self, step: str, approved: bool, by: str, reason: str | None, now: datetime) -> bool:
        """Somebody decided on a step that waits. Returns whether it did."""
        run = self.runs.get((step, WHOLE_STEP))
        if run is None or run.status != "waiting":
            return False
        note = {"approved": approved, "decided_by": by, "decided_at": now, "reason": reason}
        if approved:
            self._move(run, "pending", **note)
        else:
            self._fail(run, "rejected", reason or "The step was rejected.", now, **note)
        return True

    # what follows

    def list_ready_steps(self, now: datetime) -> list[PlanStep]:
        """The steps that `advance` judges now; what their expressions refer to must be known by then."""
        if self.is_failing:
            return []
        ripe = sorted(self._ripe, key=lambda one: self._places[one])
        return [self.steps[one] for one in ripe if _is_due(self.runs[one, WHOLE_STEP], now)]

    def advance_steps(self, ready: list[PlanStep], judge: StepEvaluator, now: datetime) -> list[StepRun]:
        """Move these steps. Returns what is to be started now, which counts as running."""
        starts: list[StepRun] = []
        for step in ready:
            if not self.is_failing:
                self._advance(step, judge, now, starts)
        return starts

    def advance_mapped_steps(self, now: datetime) -> list[StepRun]:
        """Move the items of mapped steps, and stop what is not begun any more. Returns what is to be started now."""
        starts: list[StepRun] = []
        for step_id in list(self._items):
            if self.runs[step_id, WHOLE_STEP].status == "running":
                self._advance_items(self.runs[step_id, WHOLE_STEP], now, starts)
        if self.is_failing:
            for run in [
                one for one in self.runs.values() if one.item == WHOLE_STEP and one.status in ("pending", "waiting")
            ]:
                self._move(run, "cancelled", finished_at=now)
        return starts

    def cancel_runs(self, now: datetime) -> None:
        """Nothing of it runs or waits any more."""
        for run in self.runs.values():
            if run.status not in ENDED_STEP_STATUSES:
                self._move(run, "cancelled", finished_at=now)

    @property
    def is_failing(self) -> bool:
        """Whether something failed that the plan cannot do without."""
        return self._failed is not None

    @property
    def outcome(self) -> PlanOutcome | None:
        """How it has ended; None while it has not."""
        if any(run.status not in ENDED_STEP_STATUSES for run in self.runs.values()):
            return None
        if self._failed is None:
            return PlanOutcome()
        named, failed = self.steps[self._failed.step].name, self._failed
        return PlanOutcome(
            error_type=failed.error_type, error_message=f"The step {named!r} failed: {failed.error_message}"
        )

    @property
    def completed_count(self) -> int:
        """How many steps are done with: completed, or skipped."""
        return sum(run.item == WHOLE_STEP and run.status in ("completed", "skipped") for run in self.runs.values())

    def list_child_ids(self, step: str) -> list[str]:
        """The executions that a completed step is made of, a mapped one's in the order of its items."""
        items = sorted(self._items.get(step, []), key=lambda run: run.item)
        runs = [self.runs[step, WHOLE_STEP]] if self.steps[step].map is None else items
        return [run.execution_id for run in runs if run.execution_id is not None]

    # the rules

    def _advance(self, step: PlanStep, judge: StepEvaluator, now: datetime, starts: list[StepRun]) -> None:
        run = self.runs[step.id, WHOLE_STEP]
        try:
            if run.tries == 0 and run.approved is None and step.when is not None and not judge.evaluate_condition(step):
                self._move(run, "skipped", finished_at=now)
                return
            if step.requires_approval and run.approved is None:
                self._move(run, "waiting", started_at=now)
                return
            if step.map is None:
                self._start(run, now, starts)
                return
            count = judge.count_items(step)
            if count > MAX_MAP_ITEMS:
                raise StepFailed("map_too_large", f"The list has {count} items; {MAX_MAP_ITEMS} are allowed.")
            if count + len(self.runs) > MAX_STEP_RUNS:
                told = f"With its {count} items the plan comes to more than {MAX_STEP_RUNS} steps and items."
                raise StepFailed("map_too_large", told)
        except StepFailed as failed:
            self._fail(run, failed.error_type, failed.message, now)
            return
        self._move(run, "running", tries=1, started_at=run.started_at or now)
        self._items[step.id] = []
        for item in range(count):
            made = StepRun(step=step.id, item=item)
            self._know(made)
            self.changed_runs[step.id, item] = made

    def _advance_items(self, whole: StepRun, now: datetime, starts: list[StepRun]) -> None:
        step, items = self.steps[whole.step], self._items.get(whole.step, [])
        failed = next((one for one in items if one.status == "failed"), None)
        running = sum(one.status == "running" for one in items)
        if failed is None and not self.is_failing:
            for one in items:
                if running < step.max_parallel and _is_due(one, now):
                    self._start(one, now, starts)
                    running += 1
        if running:
            return
        if failed is not None or self.is_failing:
            for one in items:
                if one.status not in ENDED_STEP_STATUSES:
                    self._move(one, "cancelled", finished_at=now)
        if failed is not None:
            self._fail(whole, failed.error_type, f"Item {failed.item}: {failed.error_message}", now)
        elif self.is_failing and any(one.status == "cancelled" for one in items):
            self._move(whole, "cancelled", finished_at=now)
        elif all(one.status == "completed" for one in items):
            self._move(whole, "completed", finished_at=now)
        elif all(one.status in ENDED_STEP_STATUSES for one in items):
            self._fail(whole, "cancelled", "An item was cancelled.", now)

    def _start(self, run: StepRun, now: datetime, starts: list[StepRun]) -> None:
        self._move(run, "running", tries=run.tries + 1, due_at=None, started_at=run.started_at or now)
        starts.append(run)

    def _fail(self, run: StepRun, kind: str | None, message: str | None, now: datetime, **more: Any) -> None:
        self._move(run, "failed", error_type=kind, error_message=message, finished_at=now, **more)

    def _move(self, run: StepRun, status: StepStatus, **more: Any) -> None:
        run.status = status
        for name, value in more.items():
            setattr(run, name, value)
        self.changed_runs[run.step, run.item] = run
        self.change_count += 1
        self._know(run)

    def _know(self, run: StepRun) -> None:
        key = run.step, run.item
        if run.item != WHOLE_STEP and key not in self.runs:
            self._items.setdefault(run.step, []).append(run)
        self.runs[key] = run
        if run.item != WHOLE_STEP:
            return
        if run.status == "pending" and not self._waits[run.step]:
            self._ripe.add(run.step)
        else:
            self._ripe.discard(run.step)
        lenient = self.steps[run.step].continue_on_failure
        if run.status in ("completed", "skipped") or (run.status == "failed" and lenient):
            self._settle(run.step)
        elif run.status == "failed" and self._failed is None:
            self._failed = run

    def _settle(self, step: str) -> None:
        if step in self._settled:
            return
        self._settled.add(step)
        for one in self._after.get(step, ()):
            self._waits[one] -= 1
            waiting = self.runs.get((one, WHOLE_STEP))
            if not self._waits[one] and waiting is not None and waiting.status == "pending":
                self._ripe.add(one)


def _is_due(run: StepRun, now: datetime) -> bool:
    return run.status == "pending" and (run.due_at is None or run.due_at <= now)


def _after(plan: Plan) -> dict[str, list[str]]:
    """The steps that depend on each."""
    after: dict[str, list[str]] = {}
    for step in plan.steps:
        for one in set(step.depends_on):
            after.setdefault(one, []).append(step.id)
    return after


def create_runs(plan: Plan) -> list[StepRun]:
    """The steps of a plan before anything has happened."""
    return [StepRun(step=step.id) for step in plan.steps]


def resume_runs(plan: Plan, before: Iterable[StepRun]) -> list[StepRun]:
    """The steps of a plan that is run again after a failure: what is completed stays so.

    So does what was skipped, and a list that a step is mapped over, unless something before it is run again: then they
    are judged anew. A step that did not complete keeps the id of its last execution, which may be a plan to go on with.
    """
    runs = {(run.step, run.item): run for run in before}
    items: dict[str, list[StepRun]] = {}
    for run in runs.values():
        if run.item != WHOLE_STEP:
            items.setdefault(run.step, []).append(run)
    anew = _anew(
        plan, {step.id for step in plan.steps if runs[step.id, WHOLE_STEP].status not in ("completed", "skipped")}
    )
    kept: list[StepRun] = []
    for step in plan.steps:
        whole, mapped = runs[step.id, WHOLE_STEP], items.get(step.id, [])
        if whole.status == "completed" or (whole.status == "skipped" and step.id not in anew):
            kept += [whole, *mapped]
        elif mapped and step.id not in anew:
            kept.append(StepRun(step=step.id, status="running", tries=1, approved=whole.approved))
            kept += [run if run.status == "completed" else _again(run) for run in mapped]
        else:
            kept.append(_again(whole))
    return kept


def _again(run: StepRun) -> StepRun:
    return StepRun(step=run.step, item=run.item, execution_id=run.execution_id)


def _anew(plan: Plan, again: set[str]) -> set[str]:
    """The steps that come after one that is run `again`."""
    after = _after(plan)
    found, open_steps = set[str](), list(again)
    while open_steps:
        fresh = [one for one in after.get(open_steps.pop(), ()) if one not in found]
        found.update(fresh)
        open_steps += fresh
    return found
