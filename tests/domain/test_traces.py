"""Traces as trees: everything is in them once, and what it cost adds up, whatever was written down in which order."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain import traces
from domain.costs import nanos_from_usd
from domain.plans.schema import WHOLE_STEP
from domain.shared import ids
from domain.stats import NANOS_PER_UNIT
from domain.traces import (
    DelegatedAgent,
    PlannedStep,
    Span,
    TracedModelCall,
    TracedPlan,
    TracedPlanStep,
    TracedRun,
    TracedRunStep,
    TraceSources,
    messages,
)

T0 = datetime(2030, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def run(kind: Any = "agent", begun: float = 0, ended: float | None = 100, **more: Any) -> TracedRun:
    fields = {
        "id": ids.generate_id("exec"),
        "tenant_id": "t",
        "kind": kind,
        "status": "running" if ended is None else "completed",
        "run_name": "it-123456",
        "created_at": at(begun),
        "started_at": at(begun),
        "completed_at": None if ended is None else at(ended),
    }
    return TracedRun(**{**fields, **more})


def model_step(of: TracedRun, path: str, begun: float, ended: float, **more: Any) -> TracedRunStep:
    fields = {"name": "m", "status": "finished", "started_at": at(begun), "finished_at": at(ended), "finish": "stop"}
    return TracedRunStep(run_id=of.id, path=path, kind="model", **{**fields, **more})


def tool_step(of: TracedRun, path: str, begun: float, ended: float | None, **more: Any) -> TracedRunStep:
    fields = {
        "name": "t",
        "status": "started" if ended is None else "finished",
        "started_at": at(begun),
        "finished_at": None if ended is None else at(ended),
        "call_id": f"call-{path}",
    }
    return TracedRunStep(run_id=of.id, path=path, kind="tool", **{**fields, **more})


def call(of: TracedRun, ended: float, cost: float = 0.001, **more: Any) -> TracedModelCall:
    fields = {
        "id": ids.generate_id("cost"),
        "run_id": of.id,
        "provider": "openai",
        "model": "gpt",
        "model_name": "m",
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "total_tokens": 7,
        "cost_usd": cost,
        "created_at": at(ended),
        "duration_ms": 500.0,
    }
    return TracedModelCall(**{**fields, **more})


def stage(of: TracedRun, step: str, item: int = WHOLE_STEP, **more: Any) -> TracedPlanStep:
    fields = {"status": "completed", "tries": 1, "started_at": at(1), "finished_at": at(2)}
    return TracedPlanStep(run_id=of.id, step=step, item=item, **{**fields, **more})


def all_of(span: Span) -> Iterator[Span]:
    yield span
    for child in span.children:
        yield from all_of(child)


def shape(span: Span) -> Any:
    """A tree as `(kind name, [...])`."""
    return f"{span.kind} {span.name}", [shape(child) for child in span.children]


def tree(**parts: Any) -> Span:
    (root,) = traces.build_trace(TraceSources(**parts)).spans
    return root


# Random work of random executions.

PATHS = ["1", "2", "3", "1.0", "1.1", "2.0", "1.0/1", "1.0/2", "1.0/1.0", "1.0/1.0/1", "2.0/1", "9.9/1", "9.9/1.3/2"]
SECONDS = st.integers(0, 200).map(lambda tenths: tenths / 10)
COSTS = st.one_of(st.just(0.0), st.floats(0, 10), st.sampled_from([0.1, 0.2, 0.3, 1e-9, 3.3e-10]))


@st.composite
def sources(draw: st.DrawFn) -> TraceSources:
    """A tree of executions of any kinds, each with any steps and bills, as if clocks were never right."""
    runs = [run(draw(st.sampled_from(["agent", "tool", "crew", "workflow", "generation"])), ended=None)]
    stages: list[TracedPlanStep] = []
    steps: list[TracedRunStep] = []
    for _ in range(draw(st.integers(0, 12))):
        parent = draw(st.sampled_from(runs))
        step, item = draw(st.sampled_from("abc")), draw(st.sampled_from([WHOLE_STEP, WHOLE_STEP, 0, 1]))
        place = step if item == WHOLE_STEP else f"{step}[{item}]"
        status = draw(st.sampled_from(["pending", "running", "waiting", "completed", "failed", "cancelled"]))
        kind = draw(st.sampled_from(["agent", "tool", "crew", "workflow"]))
        ended = draw(st.one_of(st.none(), SECONDS)) if status in ("pending", "running", "waiting") else draw(SECONDS)
        runs.append(run(kind, draw(SECONDS), ended, parent_id=parent.id, root_id=runs[0].id, step=place, status=status))
        if draw(st.booleans()):
            known = {(one.run_id, one.step, one.item) for one in stages}
            for number in {WHOLE_STEP, item}:
                if (parent.id, step, number) not in known:
                    told = draw(st.sampled_from(["pending", "running", "completed", "failed", "skipped", "cancelled"]))
                    stages.append(
                        stage(
                            *(parent, step, number),
                            status=told,
                            tries=draw(st.integers(0, 2)),
                            started_at=draw(st.one_of(st.none(), SECONDS.map(at))),
                            finished_at=draw(st.one_of(st.none(), SECONDS.map(at))),
                            characters=draw(st.one_of(st.none(), st.integers(0, 99))),
                        )
                    )
    for one in runs:
        for path in draw(st.sets(st.sampled_from(PATHS))):
            begun, length = draw(SECONDS), draw(SECONDS)
            if "." in path.rpartition("/")[2]:
                steps.append(
                    tool_step(
                        *(one, path, begun, draw(st.one_of(st.none(), st.just(begun + length)))),
                        delegate=draw(st.one_of(st.none(), st.just(DelegatedAgent(name="other")))),
                    )
                )
            else:
                name = draw(st.sampled_from(["m", "n"]))
                steps.append(model_step(one, path, begun, begun + length, name=name, prompt_tokens=2))
    calls = [
        call(
            draw(st.sampled_from(runs)),
            draw(SECONDS),
            draw(COSTS),
            model_name=draw(st.sampled_from(["m", "n"])),
            status=draw(st.sampled_from(["ok", "ok", "error", "cancelled"])),
            duration_ms=draw(st.floats(0, 1e6)),
        )
        for _ in range(draw(st.integers(0, 12)))
    ]
    plans = [
        TracedPlan(run_id=one.id, name="P", steps=[PlannedStep(id="b", name="B", context=["a", "c"])])
        for one in runs
        if one.kind in ("crew", "workflow") and draw(st.booleans())
    ]
    return TraceSources(runs=runs, plans=plans, stages=stages, steps=steps, calls=calls)


@settings(max_examples=300, deadline=None)
@given(found=sources(), seed=st.randoms(use_true_random=False))
def test_whatever_is_on_record_is_in_the_tree_once_and_adds_up(found: TraceSources, seed: random.Random) -> None:
    made = traces.build_trace(found)
    (root,) = made.spans
    spans = list(all_of(root))
    names = [span.id for span in spans]
    assert len(names) == len(set(names))
    assert not made.truncated
    # Every execution, tool call and bill once; an answer with its bill, or by itself.
    assert {one.id for one in found.runs} <= set(names)
    assert {one.id for one in found.calls} <= set(names)
    whose = {one.id: one for one in found.runs}
    for step in found.steps:
        if step.kind == "tool":
            assert (f"{step.run_id}:{step.path}" in names) is (whose[step.run_id].kind != "tool")
    answers = [span for span in spans if span.kind == "model_call" and span.status == "ok"]
    billed = [one for one in found.calls if one.status == "ok"]
    models = [one for one in found.steps if one.kind == "model"]
    assert max(len(billed), len(models)) <= len(answers) <= len(billed) + len(models)
    # Cost and tokens: nothing is lost, nothing is counted twice.
    assert nanos_from_usd(root.cost_usd) == sum(nanos_from_usd(one.cost_usd) for one in found.calls)
    assert root.cost_usd == sum(nanos_from_usd(one.cost_usd) for one in found.calls) / NANOS_PER_UNIT
    unbilled = [span for span in answers if not span.id.startswith("cost_")]
    assert root.total_tokens == sum(one.total_tokens for one in found.calls) + 2 * len(unbilled)
    for span in spans:
        if span.children:
            assert nanos_from_usd(span.cost_usd) == sum(nanos_from_usd(child.cost_usd) for child in span.children)
            assert span.total_tokens == sum(child.total_tokens for child in span.children)
        elif span.kind != "model_call":
            assert (span.cost_usd, span.total_tokens) == (0.0, 0)
        assert span.cost_usd == nanos_from_usd(span.cost_usd) / NANOS_PER_UNIT
        for child in span.children:
            assert child.parent_id == span.id
        begins = [child.started_at for child in span.children if child.started_at is not None]
        assert begins == sorted(begins)
        if span.duration_ms is not None and span.kind != "model_call":
            assert span.duration_ms == pytest.approx(max(0.0, (span.ended_at - span.started_at).total_seconds() * 1000))
    # In whatever order it was read.
    shuffled = {
        name: seed.sample(rows, len(rows))
        for name, rows in msgspec.structs.asdict(found).items()
        if name != "is_truncated"
    }
    shuffled["runs"].sort(key=lambda one: one.id != found.runs[0].id)
    assert traces.build_trace(TraceSources(**shuffled)) == made


@settings(max_examples=200, deadline=None)
@given(found=sources(), most=st.integers(1, 30))
def test_a_tree_is_cut_from_below(found: TraceSources, most: int) -> None:
    whole, cut = traces.build_trace(found).spans[0], traces.build_trace(found, most)
    there = {span.id: span for span in all_of(whole)}
    kept = list(all_of(cut.spans[0]))
    assert len(kept) == min(most, len(there))
    assert cut.truncated is (len(there) > most)
    depth = {}

    def measure(span: Span, level: int) -> None:
        depth[span.id] = level
        for child in span.children:
            measure(child, level + 1)

    measure(whole, 0)
    left = [name for name in there if name not in {span.id for span in kept}]
    assert all(depth[name] >= max(depth[span.id] for span in kept) for name in left)
    for span in kept:
        if span.children:
            assert nanos_from_usd(span.cost_usd) == sum(nanos_from_usd(child.cost_usd) for child in span.children)


def test_more_than_was_read_is_told() -> None:
    assert traces.build_trace(TraceSources(runs=[run()], is_truncated=True)).truncated


def test_an_agent_that_delegates() -> None:
    boss = run(agent_name="Boss", agent_id=ids.generate_id("agent"), temperature=0.5, max_tokens=10)
    helper = DelegatedAgent(name="Helper", id=ids.generate_id("agent"), temperature=0.1)
    root = tree(
        runs=[boss],
        steps=[
            model_step(boss, "1", 1, 2, finish="tool_calls"),
            tool_step(boss, "1.0", 2, 8, name="delegate", delegate=helper),
            model_step(boss, "1.0/1", 2.5, 4, finish="tool_calls"),
            tool_step(boss, "1.0/1.0", 4, 5, failed=True),
            model_step(boss, "1.0/2", 5, 7),
            model_step(boss, "2", 8, 9, finish="length"),
        ],
        calls=[call(boss, ended, ended / 1000) for ended in (2, 4, 7, 9)],
    )
    assert shape(root) == (
        "agent Boss",
        [
            ("model_call m", []),
            (
                "tool delegate",
                [("agent Helper", [("model_call m", []), ("tool t", []), ("model_call m", [])])],
            ),
            ("model_call m", []),
        ],
    )
    first, delegated, last = root.children
    (nested,) = delegated.children
    assert nested.cost_usd == delegated.cost_usd == pytest.approx(0.011)
    assert root.cost_usd == pytest.approx(0.022)
    assert nested.duration_ms == delegated.duration_ms == 6000.0
    assert [one.attributes["gen_ai.response.finish_reasons"] for one in (first, last)] == [["tool_calls"], ["length"]]
    assert nested.children[1].status == "error"
    assert nested.children[1].attributes["error.type"] == "tool_failed"
    # Each call is asked as its agent says.
    assert first.attributes["gen_ai.request.temperature"] == 0.5
    assert nested.children[0].attributes["gen_ai.request.temperature"] == 0.1
    assert nested.attributes["gen_ai.agent.id"] == helper.id
    assert (first.started_at, first.ended_at, first.duration_ms) == (at(1.5), at(2), 500.0)


def test_a_call_that_was_tried_again_is_a_span_for_each_try() -> None:
    one = run()
    root = tree(
        runs=[one],
        steps=[model_step(one, "1", 1, 5, name="m")],
        calls=[
            call(one, 2, status="error", error_type="rate_limited", cost_usd=0.0),
            call(one, 3, status="error", error_type="unavailable", cost_usd=0.0),
            call(one, 5),
        ],
    )
    assert [child.status for child in root.children] == ["error", "error", "ok"]
    assert [child.attributes.get("error.type") for child in root.children] == ["rate_limited", "unavailable", None]
    assert {child.attributes["paddock.step.path"] for child in root.children} == {"1"}
    assert "gen_ai.response.finish_reasons" not in root.children[0].attributes


def test_what_failed_for_another_model_is_where_it_was_asked() -> None:
    """The first model never answered, so no step says that it was asked: its bills lie where time puts them."""
    boss = run()
    root = tree(
        runs=[boss],
        steps=[
            model_step(boss, "1", 0, 1),
            tool_step(boss, "1.0", 1, 9, name="delegate", delegate=DelegatedAgent(name="Helper")),
            model_step(boss, "1.0/1", 4, 6, name="fallback"),
            model_step(boss, "2", 9, 10),
        ],
        calls=[
            call(boss, 1),
            call(boss, 3, status="error", error_type="timeout"),
            call(boss, 6, model_name="fallback"),
            call(boss, 10),
        ],
    )
    assert shape(root.children[1].children[0]) == (
        "agent Helper",
        [("model_call m", []), ("model_call fallback", [])],
    )


def test_bills_of_calls_side_by_side_are_told_apart_by_their_models() -> None:
    one = run()
    root = tree(
        runs=[one],
        steps=[model_step(one, "1.0/1", 0, 10), model_step(one, "1.1/1", 1, 11, name="n")],
        calls=[call(one, 5, model_name="n", status="error"), call(one, 10), call(one, 11, model_name="n")],
    )
    assert [(span.name, span.attributes["paddock.step.path"]) for span in root.children] == [
        *(("n", "1.1/1"), ("m", "1.0/1"), ("n", "1.1/1")),
    ]


def test_the_bill_of_an_attempt_that_was_lost_takes_no_answer_from_another() -> None:
    """Both were answered; only the one that still held the execution wrote its answer down, with its bill."""
    one = run()
    root = tree(runs=[one], steps=[model_step(one, "1", 1, 5)], calls=[call(one, 3), call(one, 5)])
    lost, kept = root.children
    assert "gen_ai.response.finish_reasons" not in lost.attributes
    assert kept.attributes["gen_ai.response.finish_reasons"] == ["stop"]


def test_a_clock_that_was_set_back_loses_no_answer() -> None:
    one = run()
    root = tree(
        runs=[one],
        steps=[model_step(one, "1", 5, 6), model_step(one, "2", 6, 7)],
        calls=[call(one, 90), call(one, 91)],
    )
    assert [child.attributes["paddock.step.path"] for child in root.children] == ["1", "2"]


def test_answers_whose_bills_are_gone_stay() -> None:
    one = run()
    root = tree(runs=[one], steps=[model_step(one, "1", 5, 6, prompt_tokens=10, completion_tokens=5)])
    (answer,) = root.children
    assert (answer.kind, answer.cost_usd, answer.total_tokens) == ("model_call", 0.0, 15)
    assert root.total_tokens == 15


def test_calls_of_uploaded_code_lie_below_it() -> None:
    one = run(agent_name="Coder", agent_version_id=ids.generate_id("ver"))
    root = tree(runs=[one], calls=[call(one, 5), call(one, 4)])
    assert shape(root) == ("agent Coder", [("model_call m", []), ("model_call m", [])])
    assert root.attributes["gen_ai.agent.version"] == one.agent_version_id


@pytest.mark.parametrize(
    ("status", "ended", "told"),
    [
        *(("pending", None, "running"), ("running", None, "running"), ("waiting", None, "waiting")),
        *(("completed", 9, "ok"), ("failed", 9, "error"), ("cancelled", 9, "cancelled")),
    ],
)
def test_the_status_of_an_execution(status: Any, ended: float | None, told: str) -> None:
    root = tree(runs=[run(status=status, ended=ended)])
    assert root.status == told
    assert (root.ended_at is None) is (ended is None)


def test_tool_calls_wait_are_decided_on_and_end_with_their_execution() -> None:
    waiting = run(ended=None, status="waiting")
    (call_,) = tree(runs=[waiting], steps=[tool_step(waiting, "1.0", 1, None, status="waiting")]).children
    assert (call_.status, call_.ended_at) == ("waiting", None)

    gone = run(ended=30, status="cancelled")
    (call_,) = tree(runs=[gone], steps=[tool_step(gone, "1.0", 1, None)]).children
    assert (call_.status, call_.ended_at, call_.duration_ms) == ("cancelled", at(30), 29_000.0)

    broken = run(ended=30, status="failed", error_type="timeout")
    steps = [tool_step(broken, "1.0", 1, None), tool_step(broken, "1.1", 1, None, status="waiting")]
    under_way, waited = tree(runs=[broken], steps=steps).children
    assert (under_way.status, under_way.attributes["error.type"]) == ("error", "timeout")
    assert waited.status == "cancelled"

    told = {"decided_by": "user_x", "decided_at": at(2)}
    one = run()
    root = tree(
        runs=[one],
        steps=[
            tool_step(one, "1.0", 1, 3, **told),
            tool_step(one, "1.1", 1, 4, failed=True, rejected=True, reason="no", **told),
        ],
    )
    approved, rejected = root.children
    assert [(event.name, event.at) for event in approved.events] == [("approved", at(2))]
    assert (rejected.status, rejected.attributes["error.type"]) == ("error", "rejected")
    assert [event.name for event in rejected.events] == ["rejected"]
    assert rejected.events[0].attributes == {"paddock.decided_by": "user_x", "paddock.reason": "no"}


def test_a_crew_with_context_and_a_second_try() -> None:
    crew = run("crew", run_name="Team-abcdef", crew_id=ids.generate_id("crew"))
    ids_ = sorted(ids.generate_id("exec") for _ in range(3))
    first, failed, again = (
        run(
            "agent", begun, ended, id=name, parent_id=crew.id, root_id=crew.id, step=step, status=status, agent_name="A"
        )
        for name, begun, ended, step, status in (
            (ids_[0], 1, 5, "research", "completed"),
            (ids_[1], 6, 7, "write", "failed"),
            (ids_[2], 8, 9, "write", "completed"),
        )
    )
    root = tree(
        runs=[crew, first, failed, again],
        plans=[
            TracedPlan(
                run_id=crew.id,
                name="News",
                steps=[
                    PlannedStep(id="research", name="Find out"),
                    PlannedStep(id="write", name="Write", context=["research"]),
                    PlannedStep(id="later", name="Later"),
                ],
            )
        ],
        stages=[
            stage(crew, "research", characters=1234, finished_at=at(5)),
            stage(crew, "write", tries=2, started_at=at(6), finished_at=at(9)),
            stage(crew, "later", status="pending", tries=0, started_at=None, finished_at=None),
        ],
        calls=[call(first, 3, 0.25), call(failed, 7, 0.5), call(again, 9, 1.0)],
    )
    assert shape(root) == (
        "crew News",
        [
            ("task Find out", [("agent A", [("model_call m", [])])]),
            (
                "task Write",
                [
                    ("memory context", []),
                    ("agent A", [("model_call m", [])]),
                    ("agent A", [("model_call m", [])]),
                ],
            ),
        ],
    )
    assert root.cost_usd == 1.75
    write = root.children[1]
    memory, one, two = write.children
    assert write.cost_usd == 1.5
    assert memory.attributes["paddock.context.steps"] == ["research"]
    assert memory.attributes["paddock.context.characters"] == 1234
    assert (memory.started_at, memory.ended_at) == (at(6), at(6))
    assert [(span.attributes["paddock.try"], span.status) for span in (one, two)] == [(1, "error"), (2, "ok")]
    assert root.attributes["gen_ai.operation.name"] == "invoke_workflow"
    assert root.attributes["gen_ai.workflow.name"] == "News"


def test_a_workflow_with_items_skipped_steps_and_one_in_another() -> None:
    flow = run("workflow", workflow_id=ids.generate_id("wf"))
    below: dict[str, Any] = {"parent_id": flow.id, "root_id": flow.id}
    items = [run("tool", 1 + n, 3 + n, step=f"each[{n}]", run_name="add-1", **below) for n in (0, 1)]
    inner = run("workflow", 5, 6, step="sub", run_name="Inner-1", **below)
    asked = {"approved": False, "decided_by": "user_x", "decided_at": at(7), "reason": "no"}
    root = tree(
        runs=[flow, *items, inner],
        stages=[
            stage(flow, "each", started_at=at(1), finished_at=at(4)),
            stage(flow, "each", 1, started_at=at(2), finished_at=at(4)),
            stage(flow, "each", 0, started_at=at(1), finished_at=at(3)),
            stage(flow, "sub", started_at=at(5), finished_at=at(6)),
            stage(flow, "not", status="skipped", tries=0, started_at=None, finished_at=at(6.5)),
            stage(flow, "ask", status="failed", tries=0, error_type="rejected", finished_at=at(7), **asked),
        ],
        # An execution that is a tool call has it as its own only step: that is no second span.
        steps=[tool_step(items[0], "1", 1, 3)],
    )
    assert shape(root) == (
        "workflow it",
        [
            ("step ask", []),
            ("step each", [("step each[0]", [("tool add", [])]), ("step each[1]", [("tool add", [])])]),
            ("step sub", [("workflow Inner", [])]),
            ("step not", []),
        ],
    )
    asked_, _, _, skipped = root.children
    assert (asked_.status, asked_.attributes["error.type"]) == ("error", "rejected")
    assert [event.name for event in asked_.events] == ["rejected"]
    assert (skipped.status, skipped.duration_ms, skipped.attributes["paddock.step.status"]) == ("ok", 0.0, "skipped")


def test_what_an_ended_plan_left_undone_ended_with_it() -> None:
    flow = run("workflow", status="cancelled", ended=50)
    queued = run(begun=5, ended=49, started_at=None, status="cancelled", parent_id=flow.id, step="a")
    root = tree(
        runs=[flow, queued],
        stages=[
            stage(flow, "a", status="running", started_at=at(5), finished_at=None),
            stage(flow, "b", status="waiting", tries=0, started_at=at(6), finished_at=None),
        ],
    )
    assert [(one.status, one.ended_at) for one in root.children] == [("cancelled", at(50))] * 2
    (never,) = root.children[0].children
    assert (never.status, never.started_at, never.ended_at) == ("cancelled", at(5), at(49))
    # While the plan goes on, so do they.
    root = tree(
        runs=[run("workflow", id=flow.id, ended=None)],
        stages=[stage(flow, "a", status="waiting", tries=0, started_at=at(5), finished_at=None)],
    )
    assert [(one.status, one.ended_at) for one in root.children] == [("waiting", None)]


def test_a_task_is_given_what_was_completed_once_it_starts() -> None:
    crew = run("crew")
    stages = [
        stage(crew, "a", characters=10),
        stage(crew, "b", status="failed", characters=None),
        stage(crew, "c", status="skipped", characters=20),
        stage(crew, "d", started_at=at(3)),
        stage(crew, "e", status="cancelled", tries=0, started_at=None),
    ]
    told = [PlannedStep(id=step, context=["a", "b", "c", "gone"]) for step in "de"]
    root = tree(runs=[crew], stages=stages, plans=[TracedPlan(run_id=crew.id, steps=told)])
    below = {one.name: [child.attributes["paddock.context.steps"] for child in one.children] for one in root.children}
    assert below == {"a": [], "b": [], "c": [], "d": [["a"]], "e": []}


def test_at_one_moment_context_comes_first_and_items_by_their_number() -> None:
    crew = run("crew")
    agent = run(parent_id=crew.id, step="b", begun=1)
    root = tree(
        runs=[crew, agent],
        stages=[stage(crew, "a", characters=1), stage(crew, "b"), *(stage(crew, "c", n) for n in range(12))],
        plans=[TracedPlan(run_id=crew.id, steps=[PlannedStep(id="b", context=["a"])])],
    )
    _, given_, many = root.children
    assert [child.kind for child in given_.children] == ["memory", "agent"]
    assert [child.attributes["paddock.step.item"] for child in many.children] == list(range(12))


def test_a_child_by_its_own_id_belongs_to_the_same_trace() -> None:
    flow = run("workflow")
    child = run(parent_id=flow.id, root_id=flow.id, step="a")
    alone = traces.build_trace(TraceSources(runs=[child]))
    assert alone.trace_id == traces.build_trace(TraceSources(runs=[flow, child])).trace_id
    assert alone.spans[0].parent_id is None
    assert alone.execution_id == child.id


def test_content_is_bounded_and_not_there_by_itself() -> None:
    def content(span: Span) -> dict[str, Any]:
        names = ("gen_ai.input.messages", "gen_ai.output.messages")
        names += ("gen_ai.tool.call.arguments", "gen_ai.tool.call.result")
        return {name: span.attributes[name] for name in names if name in span.attributes}

    one = run()
    steps = [model_step(one, "1", 0, 1), tool_step(one, "1.0", 2, 3)]
    assert [content(span) for span in all_of(tree(runs=[one], steps=steps, calls=[call(one, 1)]))] == [{}, {}, {}]
    long = "é" * 5000
    one = run(id=one.id, input=long, output="short")
    steps = [model_step(one, "1", 0, 1, answer=long), tool_step(one, "1.0", 2, 3, arguments="{}", answer=long)]
    agent, answer, tool = all_of(tree(runs=[one], steps=steps, calls=[call(one, 1)]))
    (asked,) = agent.attributes["gen_ai.input.messages"]
    assert asked["role"] == "user"
    texts = [asked["parts"][0]["content"], content(tool)["gen_ai.tool.call.result"]]
    texts.append(answer.attributes["gen_ai.output.messages"][0]["parts"][0]["content"])
    for text in texts:
        assert len(text.encode()) <= traces.schema.MAX_CONTENT_BYTES
        assert text.startswith("éé")
        assert text.endswith("…")
    assert agent.attributes["gen_ai.output.messages"][0]["parts"] == [{"type": "text", "content": "short"}]
    assert content(tool)["gen_ai.tool.call.arguments"] == "{}"


def test_what_calls_were_sent_is_bounded_by_call_and_by_trace() -> None:
    one = run(prompt='{"agent": 1}')
    steps = [model_step(one, str(number), number, number + 1, answer="é" * 5000) for number in range(1, 101)]
    calls = [call(one, number + 1) for number in range(1, 101)]
    sent = [span.attributes for span in all_of(tree(runs=[one], steps=steps, calls=calls)) if span.kind == "model_call"]
    sizes = [len(msgspec.json.encode(found.get("gen_ai.input.messages", []))) for found in sent]
    assert max(sizes) <= messages.MAX_CALL_BYTES + 100
    assert sum(sizes) <= messages.MAX_TRACE_BYTES + 10_000
    # The newest stay, and what is left out is counted.
    assert len(sent[3]["gen_ai.input.messages"]) == 4
    assert "paddock.input.omitted_messages" not in sent[3]
    assert sent[60]["paddock.input.omitted_messages"] + len(sent[60]["gen_ai.input.messages"]) == 61
    assert sent[99]["paddock.input.omitted_messages"] > sent[60]["paddock.input.omitted_messages"]
