"""Stepping through plans: any plan, with any interleaving of finishes, failures, retries, cancels and crashes."""

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

T0 = datetime(2026, 1, 1, tzinfo=UTC)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Plans without circles: a step depends on such as come before it, and then they are shuffled."""
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


class Judge:
    def evaluate_condition(self, step: PlanStep) -> bool:
        if step.when == "broken":
            raise StepFailed("bad_expression", "broken")
        return step.when == "true"

    def count_items(self, step: PlanStep) -> int:
        if step.map == "broken":
            raise StepFailed("bad_expression", "broken")
        return int(str(step.map))


class World:
    """A plan, what is written down of it, and the children that run. A crash loses what is not written down."""

    def __init__(self, plan: Plan, runs: list[StepRun] | None = None) -> None:
        self.plan, self.now = plan, T0
        self.rows = {(run.step, run.item): run for run in (create_runs(plan) if runs is None else runs)}
        self.children: dict[int, tuple[str, int]] = {}
        self.ended: dict[int, str | None] = {}
        self.starts: dict[tuple[str, int], list[int]] = {}
        self.recorded: set[tuple[str, int]] = set()
        self.outcome: Any = None
        self.order: list[tuple[str, int]] = []

    def turn(self, crash: bool) -> None:
        """One transaction: it is written down as a whole, or not at all."""
        board = PlanState(self.plan, copy.deepcopy(list(self.rows.values())))
        taken: list[tuple[str, int]] = []
        for child, key in self.children.items():
            if child in self.ended:
                error = self.ended[child]
                board.end_try(key, error, None if error is None else "it failed", self.now)
                taken.append(key) if error is None else None
        starts: list[StepRun] = []
        before = -1
        while board.change_count != before:
            before = board.change_count
            starts += [
                *board.advance_steps(board.list_ready_steps(self.now), Judge(), self.now),
                *board.advance_mapped_steps(self.now),
            ]
        again = PlanState(self.plan, copy.deepcopy(list(board.runs.values())))
        assert [
            *again.advance_steps(again.list_ready_steps(self.now), Judge(), self.now),
            *again.advance_mapped_steps(self.now),
        ] == []
        assert not again.changed_runs, "it stopped while there was more to do"
        if crash:
            return
        for run in starts:
            self._check(run, board)
        self.recorded |= set(taken)
        self.children = {child: key for child, key in self.children.items() if child not in self.ended}
        for run in starts:
            key = run.step, run.item
            number = sum(len(one) for one in self.starts.values())
            self.starts.setdefault(key, []).append(number)
            self.children[number] = key
            self.order.append(key)
        self.rows |= copy.deepcopy(board.changed_runs)
        self.outcome = board.outcome

    def _check(self, run: StepRun, board: PlanState) -> None:
        step, key = board.steps[run.step], (run.step, run.item)
        assert key not in self.recorded, "run again after a recorded result"
        assert len(self.starts.get(key, [])) <= step.retry.attempts, "more tries than allowed"
        for other in step.depends_on:
            before = board.runs[other, WHOLE_STEP]
            assert before.status in ("completed", "skipped") or (
                before.status == "failed" and board.steps[other].continue_on_failure
            ), "started before what it depends on"
        if step.requires_approval:
            assert board.runs[run.step, WHOLE_STEP].approved is True

    def cancel(self) -> None:
        board = PlanState(self.plan, copy.deepcopy(list(self.rows.values())))
        board.cancel_runs(self.now)
        self.rows |= board.changed_runs
        self.children, self.outcome = {}, "cancelled"


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["finish", "fail", "final", "turn", "crash", "approve", "reject", "later", "cancel_child"]),
        st.integers(0, 30),
    ),
    max_size=60,
)


def _happen(world: World, event: str, which: int) -> None:
    running = [child for child in world.children if child not in world.ended]
    if event in ("finish", "fail", "final", "cancel_child") and running:
        errors = {
            "finish": None,
            "fail": "ValueError",
            "final": sorted(FINAL_ERROR_TYPES)[which % len(FINAL_ERROR_TYPES)],
        }
        world.ended[running[which % len(running)]] = errors.get(event, "cancelled")
    elif event in ("approve", "reject"):
        waiting = [run for run in world.rows.values() if run.status == "waiting"]
        if waiting:
            board = PlanState(world.plan, copy.deepcopy(list(world.rows.values())))
            chosen = waiting[which % len(waiting)].step
            assert board.decide_step(chosen, event == "approve", "user", None, world.now)
            world.rows |= board.changed_runs
    elif event == "later":
        world.now += timedelta(seconds=which)
    elif event == "turn":
        world.turn(crash=False)
    elif event == "crash":
        world.turn(crash=True)


def _to_its_end(world: World) -> None:
    """Everything that runs ends well, everybody approves, time goes on: nothing hangs."""
    for _ in range(400):
        if world.outcome is not None:
            return
        for child in world.children:
            world.ended.setdefault(child, None)
        _happen(world, "approve", 0)
        world.now += timedelta(seconds=30)
        world.turn(crash=False)
    raise AssertionError(f"it hangs: {world.rows}")


@settings(max_examples=300, deadline=None)
@given(plan=plans(), events=EVENTS)
def test_any_plan_comes_to_one_end_whatever_happens(plan: Plan, events: list[tuple[str, int]]) -> None:
    world = World(plan)
    world.turn(crash=False)
    for event, which in events:
        if world.outcome is None:
            _happen(world, event, which)
    _to_its_end(world)
    assert all(run.status in ENDED_STEP_STATUSES for run in world.rows.values())
    assert not [child for child in world.children if child not in world.ended], "something runs after the end"
    failed = [
        run
        for run in world.rows.values()
        if run.item == WHOLE_STEP
        and run.status == "failed"
        and not next(step for step in plan.steps if step.id == run.step).continue_on_failure
    ]
    assert (world.outcome.error_type is not None) == bool(failed)
    if not failed:
        assert all(run.status != "cancelled" for run in world.rows.values() if run.item == WHOLE_STEP)
    before = copy.deepcopy(world.rows)
    world.turn(crash=False)
    assert world.rows == before, "it went on after its end"


@settings(max_examples=150, deadline=None)
@given(plan=plans(), events=EVENTS)
def test_run_again_from_where_it_failed_keeps_what_is_completed(plan: Plan, events: list[tuple[str, int]]) -> None:
    first = World(plan)
    first.turn(crash=False)
    for event, which in events:
        if first.outcome is None:
            _happen(first, event, which)
    if first.outcome is None:
        first.cancel()
    done = {key for key, run in first.rows.items() if run.status in ("completed", "skipped")}
    again = World(plan, resume_runs(plan, copy.deepcopy(list(first.rows.values()))))
    again.turn(crash=False)
    _to_its_end(again)
    assert not done & set(again.order), "what was completed was run again"


@settings(max_examples=150, deadline=None)
@given(plan=plans(), events=EVENTS, at=st.integers(0, 60))
def test_nothing_runs_after_a_cancel(plan: Plan, events: list[tuple[str, int]], at: int) -> None:
    world = World(plan)
    world.turn(crash=False)
    for event, which in events[:at]:
        if world.outcome is None:
            _happen(world, event, which)
    world.cancel()
    before = len(world.order)
    for event, which in events[at:]:
        _happen(world, event, which)
    world.turn(crash=False)
    assert len(world.order) == before
    assert all(run.status in ENDED_STEP_STATUSES for run in world.rows.values())


def test_a_step_that_failed_is_tried_again_after_longer_and_longer_pauses() -> None:
    retry = RetryPolicy(attempts=3, delay=1, factor=2, max_delay=3)
    assert [retry.compute_delay(tries) for tries in (1, 2, 3, 4)] == [1, 2, 3, 3]
    plan = Plan(kind="workflow", name="p", steps=[PlanStep(id="a", name="a", work=AgentWork(name="a"), retry=retry)])
    board, now = PlanState(plan, create_runs(plan)), T0
    for pause in (1, 2, 3):
        assert [run.step for run in board.advance_steps(board.list_ready_steps(now), Judge(), now)] == ["a"]
        board.end_try(("a", WHOLE_STEP), "ValueError", "no", now)
        assert board.runs["a", WHOLE_STEP].due_at == now + timedelta(seconds=pause)
        assert board.list_ready_steps(now + timedelta(seconds=pause - 0.001)) == []
        now += timedelta(seconds=pause)
    board.advance_steps(board.list_ready_steps(now), Judge(), now)
    board.end_try(("a", WHOLE_STEP), "ValueError", "no", now)
    board.advance_mapped_steps(now)
    assert board.outcome is not None
    assert (board.outcome.error_type, board.runs["a", WHOLE_STEP].tries) == ("ValueError", 4)


@pytest.mark.parametrize("kind", sorted(FINAL_ERROR_TYPES))
def test_what_trying_again_would_not_change_is_not_tried_again(kind: str) -> None:
    step = PlanStep(id="a", name="a", work=AgentWork(name="a"), retry=RetryPolicy(attempts=5, delay=0))
    plan = Plan(kind="workflow", name="p", steps=[step])
    board = PlanState(plan, create_runs(plan))
    board.advance_steps(board.list_ready_steps(T0), Judge(), T0)
    assert board.end_try(("a", WHOLE_STEP), kind, "no", T0)
    assert board.runs["a", WHOLE_STEP].status == "failed"


def test_what_is_ready_comes_in_the_order_of_the_plan() -> None:
    steps = [
        PlanStep(id=one, name=one, work=AgentWork(name="a"), depends_on=["z"] if one != "z" else []) for one in "cbaz"
    ]
    plan = Plan(kind="workflow", name="p", steps=steps)
    board = PlanState(plan, create_runs(plan))
    assert [step.id for step in board.list_ready_steps(T0)] == ["z"]
    board.advance_steps(board.list_ready_steps(T0), Judge(), T0)
    assert board.list_ready_steps(T0) == []
    board.end_try(("z", WHOLE_STEP), None, None, T0)
    assert [step.id for step in board.list_ready_steps(T0)] == ["c", "b", "a"]


def test_a_plan_has_so_many_steps_and_items_in_all() -> None:
    steps = [PlanStep(id=f"s{n}", name="s", work=AgentWork(name="a"), map="1000", max_parallel=1) for n in range(21)]
    plan = Plan(kind="workflow", name="p", steps=steps)
    board = PlanState(plan, create_runs(plan))
    for step in board.list_ready_steps(T0):
        board.advance_steps([step], Judge(), T0)
    assert len(board.runs) <= MAX_STEP_RUNS
    assert board.runs["s19", WHOLE_STEP].error_type == "map_too_large"


def test_run_again_what_comes_after_a_failure_that_did_not_matter_is_judged_anew() -> None:
    def step(step_id: str, *above: str, **more: Any) -> PlanStep:
        return PlanStep(id=step_id, name=step_id, work=AgentWork(name="a"), depends_on=list(above), **more)

    steps = [
        step("a", continue_on_failure=True),
        step("b", "a"),
        step("m", "a", map="3"),
        step("o"),
        step("p", map="3"),
    ]
    plan = Plan(kind="workflow", name="p", steps=[*steps, step("k", "a")])
    before = [
        *(StepRun(step="a", status="failed", execution_id="e"), StepRun(step="b", status="skipped")),
        *(StepRun(step="m", status="failed"), StepRun(step="m", item=0, status="completed")),
        *(StepRun(step="o", status="skipped"), StepRun(step="k", status="completed")),
        *(StepRun(step="p", status="failed"), StepRun(step="p", item=0, status="completed")),
        StepRun(step="p", item=1, status="failed", execution_id="f"),
    ]
    found = {(run.step, run.item): (run.status, run.execution_id) for run in resume_runs(plan, before)}
    assert found == {
        ("a", WHOLE_STEP): ("pending", "e"),
        ("b", WHOLE_STEP): ("pending", None),
        ("m", WHOLE_STEP): ("pending", None),
        ("o", WHOLE_STEP): ("skipped", None),
        ("k", WHOLE_STEP): ("completed", None),
        ("p", WHOLE_STEP): ("running", None),
        ("p", 0): ("completed", None),
        ("p", 1): ("pending", "f"),
    }
