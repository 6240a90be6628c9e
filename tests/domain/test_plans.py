"""Test the plan engine with random plans and any interleaving of finishes, failures, retries, cancels and crashes."""

import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.plans.engine import FINAL_ERROR_TYPES, PlanState, StepFailed, create_runs, resume_runs
from domain.plans.schema import (
    ENDED_STEP_STATUSES,
    MAX_STEP_RUNS,
    WHOLE_STEP,
    AgentWork,
    Plan,
    PlanStep,
    RetryPolicy,
    StepRun,
)

START_TIME = datetime(2026, 1, 1, tzinfo=UTC)


@st.composite
def draw_plan(draw: st.DrawFn) -> Plan:
    """Draw a plan without cycles: a step depends on steps before it, and then all steps are shuffled."""
    count = draw(st.integers(1, 8))
    steps: list[PlanStep] = []
    for number in range(count):
        above = [f"s{other}" for other in range(number)]
        steps.append(
            PlanStep(
                id=f"s{number}",
                name=f"s{number}",
                work=AgentWork(name="a"),
                depends_on=draw(st.lists(st.sampled_from(above), unique=True, max_size=3)) if above else [],
                when=draw(st.sampled_from([None, None, "true", "false", "broken"])),
                map=draw(st.sampled_from([None, None, None, "0", "1", "3", "1001", "broken"])),
                max_parallel=draw(st.integers(1, 3)),
                retry=RetryPolicy(attempts=draw(st.integers(0, 2)), delay=draw(st.sampled_from([0.0, 5.0]))),
                requires_approval=draw(st.integers(0, 4)) == 0,
                continue_on_failure=draw(st.integers(0, 3)) == 0,
            )
        )
    return Plan(kind="workflow", name="p", steps=draw(st.permutations(steps)))


class FakeEvaluator:
    def evaluate_condition(self, step: PlanStep) -> bool:
        if step.when == "broken":
            raise StepFailed("bad_expression", "broken")
        return step.when == "true"

    def count_items(self, step: PlanStep) -> int:
        if step.map == "broken":
            raise StepFailed("bad_expression", "broken")
        return int(str(step.map))


class PlanSimulation:
    """Simulate a plan, its stored rows and its running children. A crash loses what is not stored."""

    def __init__(self, plan: Plan, runs: list[StepRun] | None = None) -> None:
        self.plan, self.now = plan, START_TIME
        self.rows = {(run.step, run.item): run for run in (create_runs(plan) if runs is None else runs)}
        self.children: dict[int, tuple[str, int]] = {}
        self.ended_children: dict[int, str | None] = {}
        self.attempts: dict[tuple[str, int], list[int]] = {}
        self.recorded_steps: set[tuple[str, int]] = set()
        self.outcome: Any = None
        self.start_order: list[tuple[str, int]] = []

    def advance_plan(self, crash: bool) -> None:
        """Run one transaction: all of it is stored, or nothing."""
        state = PlanState(self.plan, copy.deepcopy(list(self.rows.values())))
        completed_steps: list[tuple[str, int]] = []
        for child, key in self.children.items():
            if child in self.ended_children:
                error = self.ended_children[child]
                state.end_try(key, error, None if error is None else "it failed", self.now)
                completed_steps.append(key) if error is None else None
        starts: list[StepRun] = []
        before = -1
        while state.change_count != before:
            before = state.change_count
            starts += [
                *state.advance_steps(state.list_ready_steps(self.now), FakeEvaluator(), self.now),
                *state.advance_mapped_steps(self.now),
            ]
        second_state = PlanState(self.plan, copy.deepcopy(list(state.runs.values())))
        assert [
            *second_state.advance_steps(second_state.list_ready_steps(self.now), FakeEvaluator(), self.now),
            *second_state.advance_mapped_steps(self.now),
        ] == []
        assert not second_state.changed_runs, "the engine stopped before all ready steps were started"
        if crash:
            return
        for run in starts:
            self._check_start(run, state)
        self.recorded_steps |= set(completed_steps)
        self.children = {child: key for child, key in self.children.items() if child not in self.ended_children}
        for run in starts:
            key = run.step, run.item
            number = sum(len(numbers) for numbers in self.attempts.values())
            self.attempts.setdefault(key, []).append(number)
            self.children[number] = key
            self.start_order.append(key)
        self.rows |= copy.deepcopy(state.changed_runs)
        self.outcome = state.outcome

    def _check_start(self, run: StepRun, state: PlanState) -> None:
        step, key = state.steps[run.step], (run.step, run.item)
        assert key not in self.recorded_steps, "step was started again after its result was recorded"
        assert len(self.attempts.get(key, [])) <= step.retry.attempts, (
            "step was started more often than its retries allow"
        )
        for other in step.depends_on:
            above = state.runs[other, WHOLE_STEP]
            assert above.status in ("completed", "skipped") or (
                above.status == "failed" and state.steps[other].continue_on_failure
            ), "step was started before its dependencies ended"
        if step.requires_approval:
            assert state.runs[run.step, WHOLE_STEP].approved is True

    def cancel(self) -> None:
        state = PlanState(self.plan, copy.deepcopy(list(self.rows.values())))
        state.cancel_runs(self.now)
        self.rows |= state.changed_runs
        self.children, self.outcome = {}, "cancelled"


SIMULATION_EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["finish", "fail", "final", "turn", "crash", "approve", "reject", "later", "cancel_child"]),
        st.integers(0, 30),
    ),
    max_size=60,
)


def apply_event(simulation: PlanSimulation, event: str, choice: int) -> None:
    running = [child for child in simulation.children if child not in simulation.ended_children]
    if event in ("finish", "fail", "final", "cancel_child") and running:
        errors = {
            "finish": None,
            "fail": "ValueError",
            "final": sorted(FINAL_ERROR_TYPES)[choice % len(FINAL_ERROR_TYPES)],
        }
        simulation.ended_children[running[choice % len(running)]] = errors.get(event, "cancelled")
    elif event in ("approve", "reject"):
        waiting = [run for run in simulation.rows.values() if run.status == "waiting"]
        if waiting:
            state = PlanState(simulation.plan, copy.deepcopy(list(simulation.rows.values())))
            chosen = waiting[choice % len(waiting)].step
            assert state.decide_step(chosen, event == "approve", "user", None, simulation.now)
            simulation.rows |= state.changed_runs
    elif event == "later":
        simulation.now += timedelta(seconds=choice)
    elif event == "turn":
        simulation.advance_plan(crash=False)
    elif event == "crash":
        simulation.advance_plan(crash=True)


def run_to_end(simulation: PlanSimulation) -> None:
    """Complete every child, approve every step and advance time until the plan ends."""
    for _ in range(400):
        if simulation.outcome is not None:
            return
        for child in simulation.children:
            simulation.ended_children.setdefault(child, None)
        apply_event(simulation, "approve", 0)
        simulation.now += timedelta(seconds=30)
        simulation.advance_plan(crash=False)
    raise AssertionError(f"the plan does not end: {simulation.rows}")


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(plan=draw_plan(), events=SIMULATION_EVENTS)
def test_any_plan_ends_once_after_any_events(plan: Plan, events: list[tuple[str, int]]) -> None:
    simulation = PlanSimulation(plan)
    simulation.advance_plan(crash=False)
    for event, choice in events:
        if simulation.outcome is None:
            apply_event(simulation, event, choice)
    run_to_end(simulation)
    assert all(run.status in ENDED_STEP_STATUSES for run in simulation.rows.values())
    assert not [child for child in simulation.children if child not in simulation.ended_children], (
        "a child runs after the plan ended"
    )
    failed = [
        run
        for run in simulation.rows.values()
        if run.item == WHOLE_STEP
        and run.status == "failed"
        and not next(step for step in plan.steps if step.id == run.step).continue_on_failure
    ]
    assert (simulation.outcome.error_type is not None) == bool(failed)
    if not failed:
        assert all(run.status != "cancelled" for run in simulation.rows.values() if run.item == WHOLE_STEP)
    before = copy.deepcopy(simulation.rows)
    simulation.advance_plan(crash=False)
    assert simulation.rows == before, "the plan changed after its end"


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(plan=draw_plan(), events=SIMULATION_EVENTS)
def test_resumed_plan_runs_no_completed_step_again(plan: Plan, events: list[tuple[str, int]]) -> None:
    first = PlanSimulation(plan)
    first.advance_plan(crash=False)
    for event, choice in events:
        if first.outcome is None:
            apply_event(first, event, choice)
    if first.outcome is None:
        first.cancel()
    completed_before = {key for key, run in first.rows.items() if run.status in ("completed", "skipped")}
    # A list is evaluated anew, with all its items, when a step before it runs again: its output may be another.
    reevaluated = {
        step.id
        for step in plan.steps
        if (step.id, WHOLE_STEP) not in completed_before
        and any((above, WHOLE_STEP) not in completed_before for above in find_ancestors(plan, step.id))
    }
    resumed = PlanSimulation(plan, resume_runs(plan, copy.deepcopy(list(first.rows.values()))))
    resumed.advance_plan(crash=False)
    run_to_end(resumed)
    kept_runs = {key for key in completed_before if key[0] not in reevaluated}
    assert not kept_runs & set(resumed.start_order), "a completed step was run again"


def find_ancestors(plan: Plan, step_id: str) -> set[str]:
    dependencies = {step.id: step.depends_on for step in plan.steps}
    ancestors, open_steps = set[str](), list(dependencies[step_id])
    while open_steps:
        step = open_steps.pop()
        if step not in ancestors:
            ancestors.add(step)
            open_steps += dependencies[step]
    return ancestors


@pytest.mark.parametrize("is_source_failed", [True, False])
def test_resumed_list_keeps_its_items_only_if_no_step_before_it_runs_again(is_source_failed: bool) -> None:
    source = PlanStep(id="source", name="source", work=AgentWork(name="a"), continue_on_failure=True)
    mapped = PlanStep(id="mapped", name="mapped", work=AgentWork(name="a"), depends_on=["source"], map="2")
    plan = Plan(kind="workflow", name="p", steps=[source, mapped])
    runs = [
        StepRun(step="source", status="failed" if is_source_failed else "completed"),
        StepRun(step="mapped", status="cancelled"),
        StepRun(step="mapped", item=0, status="completed"),
        StepRun(step="mapped", item=1, status="cancelled"),
    ]
    simulation = PlanSimulation(plan, resume_runs(plan, runs))
    simulation.advance_plan(crash=False)
    run_to_end(simulation)
    again = [("source", WHOLE_STEP), ("mapped", 0), ("mapped", 1)]
    assert simulation.start_order == (again if is_source_failed else [("mapped", 1)])


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(plan=draw_plan(), events=SIMULATION_EVENTS, at=st.integers(0, 60))
def test_cancelled_plan_starts_nothing(plan: Plan, events: list[tuple[str, int]], at: int) -> None:
    simulation = PlanSimulation(plan)
    simulation.advance_plan(crash=False)
    for event, choice in events[:at]:
        if simulation.outcome is None:
            apply_event(simulation, event, choice)
    simulation.cancel()
    before = len(simulation.start_order)
    for event, choice in events[at:]:
        apply_event(simulation, event, choice)
    simulation.advance_plan(crash=False)
    assert len(simulation.start_order) == before
    assert all(run.status in ENDED_STEP_STATUSES for run in simulation.rows.values())


def test_failed_step_is_retried_with_backoff() -> None:
    retry = RetryPolicy(attempts=3, delay=1, factor=2, max_delay=3)
    assert [retry.compute_delay(tries) for tries in (1, 2, 3, 4)] == [1, 2, 3, 3]
    plan = Plan(kind="workflow", name="p", steps=[PlanStep(id="a", name="a", work=AgentWork(name="a"), retry=retry)])
    state, now = PlanState(plan, create_runs(plan)), START_TIME
    for pause in (1, 2, 3):
        assert [run.step for run in state.advance_steps(state.list_ready_steps(now), FakeEvaluator(), now)] == ["a"]
        state.end_try(("a", WHOLE_STEP), "ValueError", "no", now)
        assert state.runs["a", WHOLE_STEP].due_at == now + timedelta(seconds=pause)
        assert state.list_ready_steps(now + timedelta(seconds=pause - 0.001)) == []
        now += timedelta(seconds=pause)
    state.advance_steps(state.list_ready_steps(now), FakeEvaluator(), now)
    state.end_try(("a", WHOLE_STEP), "ValueError", "no", now)
    state.advance_mapped_steps(now)
    assert state.outcome is not None
    assert (state.outcome.error_type, state.runs["a", WHOLE_STEP].tries) == ("ValueError", 4)


@pytest.mark.parametrize("kind", sorted(FINAL_ERROR_TYPES))
def test_final_errors_are_not_retried(kind: str) -> None:
    step = PlanStep(id="a", name="a", work=AgentWork(name="a"), retry=RetryPolicy(attempts=5, delay=0))
    plan = Plan(kind="workflow", name="p", steps=[step])
    state = PlanState(plan, create_runs(plan))
    state.advance_steps(state.list_ready_steps(START_TIME), FakeEvaluator(), START_TIME)
    assert state.end_try(("a", WHOLE_STEP), kind, "no", START_TIME)
    assert state.runs["a", WHOLE_STEP].status == "failed"


def test_ready_steps_are_listed_in_plan_order() -> None:
    steps = [
        PlanStep(id=step_id, name=step_id, work=AgentWork(name="a"), depends_on=["z"] if step_id != "z" else [])
        for step_id in "cbaz"
    ]
    plan = Plan(kind="workflow", name="p", steps=steps)
    state = PlanState(plan, create_runs(plan))
    assert [step.id for step in state.list_ready_steps(START_TIME)] == ["z"]
    state.advance_steps(state.list_ready_steps(START_TIME), FakeEvaluator(), START_TIME)
    assert state.list_ready_steps(START_TIME) == []
    state.end_try(("z", WHOLE_STEP), None, None, START_TIME)
    assert [step.id for step in state.list_ready_steps(START_TIME)] == ["c", "b", "a"]


def test_number_of_steps_and_items_is_bounded() -> None:
    steps = [PlanStep(id=f"s{n}", name="s", work=AgentWork(name="a"), map="1000", max_parallel=1) for n in range(21)]
    plan = Plan(kind="workflow", name="p", steps=steps)
    state = PlanState(plan, create_runs(plan))
    for step in state.list_ready_steps(START_TIME):
        state.advance_steps([step], FakeEvaluator(), START_TIME)
    assert len(state.runs) <= MAX_STEP_RUNS
    assert state.runs["s19", WHOLE_STEP].error_type == "map_too_large"


def test_resuming_reevaluates_steps_after_a_tolerated_failure() -> None:
    def build_step(step_id: str, *above: str, **more: Any) -> PlanStep:
        return PlanStep(id=step_id, name=step_id, work=AgentWork(name="a"), depends_on=list(above), **more)

    steps = [
        build_step("a", continue_on_failure=True),
        build_step("b", "a"),
        build_step("m", "a", map="3"),
        build_step("o"),
        build_step("p", map="3"),
    ]
    plan = Plan(kind="workflow", name="p", steps=[*steps, build_step("k", "a")])
    before = [
        *(StepRun(step="a", status="failed", execution_id="e"), StepRun(step="b", status="skipped")),
        *(StepRun(step="m", status="failed"), StepRun(step="m", item=0, status="completed")),
        *(StepRun(step="o", status="skipped"), StepRun(step="k", status="completed")),
        *(StepRun(step="p", status="failed"), StepRun(step="p", item=0, status="completed")),
        StepRun(step="p", item=1, status="failed", execution_id="f"),
    ]
    resumed = {(run.step, run.item): (run.status, run.execution_id) for run in resume_runs(plan, before)}
    assert resumed == {
        ("a", WHOLE_STEP): ("pending", "e"),
        ("b", WHOLE_STEP): ("pending", None),
        ("m", WHOLE_STEP): ("pending", None),
        ("o", WHOLE_STEP): ("skipped", None),
        ("k", WHOLE_STEP): ("completed", None),
        ("p", WHOLE_STEP): ("running", None),
        ("p", 0): ("completed", None),
        ("p", 1): ("pending", "f"),
    }
