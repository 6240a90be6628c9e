"""Test traces as trees: they hold every record once and their costs add up, in any order of the records."""

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

START_TIME = datetime(2030, 1, 1, tzinfo=UTC)


def compute_time(seconds: float) -> datetime:
    return START_TIME + timedelta(seconds=seconds)


def build_run(kind: Any = "agent", begun: float = 0, ended: float | None = 100, **more: Any) -> TracedRun:
    fields = {
        "id": ids.generate_id("exec"),
        "tenant_id": "t",
        "kind": kind,
        "status": "running" if ended is None else "completed",
        "run_name": "it-123456",
        "created_at": compute_time(begun),
        "started_at": compute_time(begun),
        "completed_at": None if ended is None else compute_time(ended),
    }
    return TracedRun(**{**fields, **more})


def build_model_step(run: TracedRun, path: str, begun: float, ended: float, **more: Any) -> TracedRunStep:
    fields = {
        "name": "m",
        "status": "finished",
        "started_at": compute_time(begun),
        "finished_at": compute_time(ended),
        "finish": "stop",
    }
    return TracedRunStep(run_id=run.id, path=path, kind="model", **{**fields, **more})


def build_tool_step(run: TracedRun, path: str, begun: float, ended: float | None, **more: Any) -> TracedRunStep:
    fields = {
        "name": "t",
        "status": "started" if ended is None else "finished",
        "started_at": compute_time(begun),
        "finished_at": None if ended is None else compute_time(ended),
        "call_id": f"call-{path}",
    }
    return TracedRunStep(run_id=run.id, path=path, kind="tool", **{**fields, **more})


def build_call(run: TracedRun, ended: float, cost: float = 0.001, **more: Any) -> TracedModelCall:
    fields = {
        "id": ids.generate_id("cost"),
        "run_id": run.id,
        "provider": "openai",
        "model": "gpt",
        "model_name": "m",
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "total_tokens": 7,
        "cost_usd": cost,
        "created_at": compute_time(ended),
        "duration_ms": 500.0,
    }
    return TracedModelCall(**{**fields, **more})


def build_stage(run: TracedRun, step: str, item: int = WHOLE_STEP, **more: Any) -> TracedPlanStep:
    fields = {"status": "completed", "tries": 1, "started_at": compute_time(1), "finished_at": compute_time(2)}
    return TracedPlanStep(run_id=run.id, step=step, item=item, **{**fields, **more})


def iterate_spans(span: Span) -> Iterator[Span]:
    yield span
    for child in span.children:
        yield from iterate_spans(child)


def outline_span(span: Span) -> Any:
    """Return a tree as `(kind name, [...])`."""
    return f"{span.kind} {span.name}", [outline_span(child) for child in span.children]


def build_tree(**parts: Any) -> Span:
    (root,) = traces.build_trace(TraceSources(**parts)).spans
    return root


# Random records of random executions.

STEP_PATHS = [
    "1",
    "2",
    "3",
    "1.0",
    "1.1",
    "2.0",
    "1.0/1",
    "1.0/2",
    "1.0/1.0",
    "1.0/1.0/1",
    "2.0/1",
    "9.9/1",
    "9.9/1.3/2",
]
SECONDS_AFTER_START = st.integers(0, 200).map(lambda tenths: tenths / 10)
COSTS_USD = st.one_of(st.just(0.0), st.floats(0, 10), st.sampled_from([0.1, 0.2, 0.3, 1e-9, 3.3e-10]))


@st.composite
def draw_sources(draw: st.DrawFn) -> TraceSources:
    """Draw a tree of executions of any kind with any steps and costs, at times that need not be consistent."""
    runs = [build_run(draw(st.sampled_from(["agent", "tool", "crew", "workflow", "generation"])), ended=None)]
    stages: list[TracedPlanStep] = []
    steps: list[TracedRunStep] = []
    for _ in range(draw(st.integers(0, 12))):
        parent = draw(st.sampled_from(runs))
        step, item = draw(st.sampled_from("abc")), draw(st.sampled_from([WHOLE_STEP, WHOLE_STEP, 0, 1]))
        place = step if item == WHOLE_STEP else f"{step}[{item}]"
        status = draw(st.sampled_from(["pending", "running", "waiting", "completed", "failed", "cancelled"]))
        kind = draw(st.sampled_from(["agent", "tool", "crew", "workflow"]))
        ended = (
            draw(st.one_of(st.none(), SECONDS_AFTER_START))
            if status in ("pending", "running", "waiting")
            else draw(SECONDS_AFTER_START)
        )
        runs.append(
            build_run(
                kind,
                draw(SECONDS_AFTER_START),
                ended,
                parent_id=parent.id,
                root_id=runs[0].id,
                step=place,
                status=status,
            )
        )
        if draw(st.booleans()):
            known_stages = {(known_stage.run_id, known_stage.step, known_stage.item) for known_stage in stages}
            for number in {WHOLE_STEP, item}:
                if (parent.id, step, number) not in known_stages:
                    step_status = draw(
                        st.sampled_from(["pending", "running", "completed", "failed", "skipped", "cancelled"])
                    )
                    stages.append(
                        build_stage(
                            *(parent, step, number),
                            status=step_status,
                            tries=draw(st.integers(0, 2)),
                            started_at=draw(st.one_of(st.none(), SECONDS_AFTER_START.map(compute_time))),
                            finished_at=draw(st.one_of(st.none(), SECONDS_AFTER_START.map(compute_time))),
                            characters=draw(st.one_of(st.none(), st.integers(0, 99))),
                        )
                    )
    for traced_run in runs:
        for path in draw(st.sets(st.sampled_from(STEP_PATHS))):
            begun, length = draw(SECONDS_AFTER_START), draw(SECONDS_AFTER_START)
            if "." in path.rpartition("/")[2]:
                steps.append(
                    build_tool_step(
                        *(traced_run, path, begun, draw(st.one_of(st.none(), st.just(begun + length)))),
                        delegate=draw(st.one_of(st.none(), st.just(DelegatedAgent(name="other")))),
                    )
                )
            else:
                name = draw(st.sampled_from(["m", "n"]))
                steps.append(build_model_step(traced_run, path, begun, begun + length, name=name, prompt_tokens=2))
    calls = [
        build_call(
            draw(st.sampled_from(runs)),
            draw(SECONDS_AFTER_START),
            draw(COSTS_USD),
            model_name=draw(st.sampled_from(["m", "n"])),
            status=draw(st.sampled_from(["ok", "ok", "error", "cancelled"])),
            duration_ms=draw(st.floats(0, 1e6)),
        )
        for _ in range(draw(st.integers(0, 12)))
    ]
    plans = [
        TracedPlan(run_id=traced_run.id, name="P", steps=[PlannedStep(id="b", name="B", context=["a", "c"])])
        for traced_run in runs
        if traced_run.kind in ("crew", "workflow") and draw(st.booleans())
    ]
    return TraceSources(runs=runs, plans=plans, stages=stages, steps=steps, calls=calls)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(sources=draw_sources(), seed=st.randoms(use_true_random=False))
def test_trace_holds_every_record_once_and_costs_add_up(sources: TraceSources, seed: random.Random) -> None:
    trace = traces.build_trace(sources)
    (root,) = trace.spans
    spans = list(iterate_spans(root))
    names = [span.id for span in spans]
    assert len(names) == len(set(names))
    assert not trace.truncated
    # Every execution, tool call and cost once; an answer with its cost, or alone.
    assert {run.id for run in sources.runs} <= set(names)
    assert {call.id for call in sources.calls} <= set(names)
    run_by_id = {run.id: run for run in sources.runs}
    for step in sources.steps:
        if step.kind == "tool":
            assert (f"{step.run_id}:{step.path}" in names) is (run_by_id[step.run_id].kind != "tool")
    answers = [span for span in spans if span.kind == "model_call" and span.status == "ok"]
    billed = [call for call in sources.calls if call.status == "ok"]
    models = [step for step in sources.steps if step.kind == "model"]
    assert max(len(billed), len(models)) <= len(answers) <= len(billed) + len(models)
    # Cost and tokens: nothing is lost, nothing is counted twice.
    assert nanos_from_usd(root.cost_usd) == sum(nanos_from_usd(call.cost_usd) for call in sources.calls)
    assert root.cost_usd == sum(nanos_from_usd(call.cost_usd) for call in sources.calls) / NANOS_PER_UNIT
    unbilled = [span for span in answers if not span.id.startswith("cost_")]
    assert root.total_tokens == sum(call.total_tokens for call in sources.calls) + 2 * len(unbilled)
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
    # The order of the records does not matter.
    shuffled = {
        name: seed.sample(rows, len(rows))
        for name, rows in msgspec.structs.asdict(sources).items()
        if name != "is_truncated"
    }
    shuffled["runs"].sort(key=lambda run: run.id != sources.runs[0].id)
    assert traces.build_trace(TraceSources(**shuffled)) == trace


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(sources=draw_sources(), max_spans=st.integers(1, 30))
def test_truncated_trace_keeps_the_upper_levels(sources: TraceSources, max_spans: int) -> None:
    whole, cut = traces.build_trace(sources).spans[0], traces.build_trace(sources, max_spans)
    span_by_id = {span.id: span for span in iterate_spans(whole)}
    kept_spans = list(iterate_spans(cut.spans[0]))
    assert len(kept_spans) == min(max_spans, len(span_by_id))
    assert cut.truncated is (len(span_by_id) > max_spans)
    depth = {}

    def measure_depth(span: Span, level: int) -> None:
        depth[span.id] = level
        for child in span.children:
            measure_depth(child, level + 1)

    measure_depth(whole, 0)
    dropped_ids = [name for name in span_by_id if name not in {span.id for span in kept_spans}]
    assert all(depth[name] >= max(depth[span.id] for span in kept_spans) for name in dropped_ids)
    for span in kept_spans:
        if span.children:
            assert nanos_from_usd(span.cost_usd) == sum(nanos_from_usd(child.cost_usd) for child in span.children)


def test_trace_of_truncated_sources_is_marked_truncated() -> None:
    assert traces.build_trace(TraceSources(runs=[build_run()], is_truncated=True)).truncated


def test_delegated_agent_is_a_nested_span() -> None:
    boss = build_run(agent_name="Boss", agent_id=ids.generate_id("agent"), temperature=0.5, max_tokens=10)
    helper = DelegatedAgent(name="Helper", id=ids.generate_id("agent"), temperature=0.1)
    root = build_tree(
        runs=[boss],
        steps=[
            build_model_step(boss, "1", 1, 2, finish="tool_calls"),
            build_tool_step(boss, "1.0", 2, 8, name="delegate", delegate=helper),
            build_model_step(boss, "1.0/1", 2.5, 4, finish="tool_calls"),
            build_tool_step(boss, "1.0/1.0", 4, 5, failed=True),
            build_model_step(boss, "1.0/2", 5, 7),
            build_model_step(boss, "2", 8, 9, finish="length"),
        ],
        calls=[build_call(boss, ended, ended / 1000) for ended in (2, 4, 7, 9)],
    )
    assert outline_span(root) == (
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
    assert [call_span.attributes["gen_ai.response.finish_reasons"] for call_span in (first, last)] == [
        ["tool_calls"],
        ["length"],
    ]
    assert nested.children[1].status == "error"
    assert nested.children[1].attributes["error.type"] == "tool_failed"
    # Each call has the parameters of its agent.
    assert first.attributes["gen_ai.request.temperature"] == 0.5
    assert nested.children[0].attributes["gen_ai.request.temperature"] == 0.1
    assert nested.attributes["gen_ai.agent.id"] == helper.id
    assert (first.started_at, first.ended_at, first.duration_ms) == (compute_time(1.5), compute_time(2), 500.0)


def test_each_try_of_a_model_call_is_a_span() -> None:
    agent_run = build_run()
    root = build_tree(
        runs=[agent_run],
        steps=[build_model_step(agent_run, "1", 1, 5, name="m")],
        calls=[
            build_call(agent_run, 2, status="error", error_type="rate_limited", cost_usd=0.0),
            build_call(agent_run, 3, status="error", error_type="unavailable", cost_usd=0.0),
            build_call(agent_run, 5),
        ],
    )
    assert [child.status for child in root.children] == ["error", "error", "ok"]
    assert [child.attributes.get("error.type") for child in root.children] == ["rate_limited", "unavailable", None]
    assert {child.attributes["paddock.step.path"] for child in root.children} == {"1"}
    assert "gen_ai.response.finish_reasons" not in root.children[0].attributes


def test_failed_call_before_a_fallback_stays_in_its_agent() -> None:
    """Place the costs of a model that never answered by their time, as no step records the call."""
    boss = build_run()
    root = build_tree(
        runs=[boss],
        steps=[
            build_model_step(boss, "1", 0, 1),
            build_tool_step(boss, "1.0", 1, 9, name="delegate", delegate=DelegatedAgent(name="Helper")),
            build_model_step(boss, "1.0/1", 4, 6, name="fallback"),
            build_model_step(boss, "2", 9, 10),
        ],
        calls=[
            build_call(boss, 1),
            build_call(boss, 3, status="error", error_type="timeout"),
            build_call(boss, 6, model_name="fallback"),
            build_call(boss, 10),
        ],
    )
    assert outline_span(root.children[1].children[0]) == (
        "agent Helper",
        [("model_call m", []), ("model_call fallback", [])],
    )


def test_costs_of_parallel_calls_are_matched_by_model() -> None:
    agent_run = build_run()
    root = build_tree(
        runs=[agent_run],
        steps=[build_model_step(agent_run, "1.0/1", 0, 10), build_model_step(agent_run, "1.1/1", 1, 11, name="n")],
        calls=[
            build_call(agent_run, 5, model_name="n", status="error"),
            build_call(agent_run, 10),
            build_call(agent_run, 11, model_name="n"),
        ],
    )
    assert [(span.name, span.attributes["paddock.step.path"]) for span in root.children] == [
        *(("n", "1.1/1"), ("m", "1.0/1"), ("n", "1.1/1")),
    ]


def test_cost_of_a_lost_attempt_takes_no_answer_of_another() -> None:
    """Match the only stored answer with the cost of the attempt that still held the lease."""
    agent_run = build_run()
    root = build_tree(
        runs=[agent_run],
        steps=[build_model_step(agent_run, "1", 1, 5)],
        calls=[build_call(agent_run, 3), build_call(agent_run, 5)],
    )
    lost, answered = root.children
    assert "gen_ai.response.finish_reasons" not in lost.attributes
    assert answered.attributes["gen_ai.response.finish_reasons"] == ["stop"]


def test_clock_set_back_loses_no_answer() -> None:
    agent_run = build_run()
    root = build_tree(
        runs=[agent_run],
        steps=[build_model_step(agent_run, "1", 5, 6), build_model_step(agent_run, "2", 6, 7)],
        calls=[build_call(agent_run, 90), build_call(agent_run, 91)],
    )
    assert [child.attributes["paddock.step.path"] for child in root.children] == ["1", "2"]


def test_answers_without_costs_stay_in_the_trace() -> None:
    agent_run = build_run()
    root = build_tree(
        runs=[agent_run], steps=[build_model_step(agent_run, "1", 5, 6, prompt_tokens=10, completion_tokens=5)]
    )
    (answer,) = root.children
    assert (answer.kind, answer.cost_usd, answer.total_tokens) == ("model_call", 0.0, 15)
    assert root.total_tokens == 15


def test_model_calls_of_uploaded_code_are_its_children() -> None:
    agent_run = build_run(agent_name="Coder", agent_version_id=ids.generate_id("ver"))
    root = build_tree(runs=[agent_run], calls=[build_call(agent_run, 5), build_call(agent_run, 4)])
    assert outline_span(root) == ("agent Coder", [("model_call m", []), ("model_call m", [])])
    assert root.attributes["gen_ai.agent.version"] == agent_run.agent_version_id


@pytest.mark.parametrize(
    ("status", "ended", "span_status"),
    [
        *(("pending", None, "running"), ("running", None, "running"), ("waiting", None, "waiting")),
        *(("completed", 9, "ok"), ("failed", 9, "error"), ("cancelled", 9, "cancelled")),
    ],
)
def test_span_status_follows_execution_status(status: Any, ended: float | None, span_status: str) -> None:
    root = build_tree(runs=[build_run(status=status, ended=ended)])
    assert root.status == span_status
    assert (root.ended_at is None) is (ended is None)


def test_tool_call_spans_show_waiting_decisions_and_cancellation() -> None:
    waiting = build_run(ended=None, status="waiting")
    (call_,) = build_tree(runs=[waiting], steps=[build_tool_step(waiting, "1.0", 1, None, status="waiting")]).children
    assert (call_.status, call_.ended_at) == ("waiting", None)

    cancelled_run = build_run(ended=30, status="cancelled")
    (call_,) = build_tree(runs=[cancelled_run], steps=[build_tool_step(cancelled_run, "1.0", 1, None)]).children
    assert (call_.status, call_.ended_at, call_.duration_ms) == ("cancelled", compute_time(30), 29_000.0)

    failed_run = build_run(ended=30, status="failed", error_type="timeout")
    steps = [build_tool_step(failed_run, "1.0", 1, None), build_tool_step(failed_run, "1.1", 1, None, status="waiting")]
    under_way, waited = build_tree(runs=[failed_run], steps=steps).children
    assert (under_way.status, under_way.attributes["error.type"]) == ("error", "timeout")
    assert waited.status == "cancelled"

    decision = {"decided_by": "user_x", "decided_at": compute_time(2)}
    agent_run = build_run()
    root = build_tree(
        runs=[agent_run],
        steps=[
            build_tool_step(agent_run, "1.0", 1, 3, **decision),
            build_tool_step(agent_run, "1.1", 1, 4, failed=True, rejected=True, reason="no", **decision),
        ],
    )
    approved, rejected = root.children
    assert [(event.name, event.at) for event in approved.events] == [("approved", compute_time(2))]
    assert (rejected.status, rejected.attributes["error.type"]) == ("error", "rejected")
    assert [event.name for event in rejected.events] == ["rejected"]
    assert rejected.events[0].attributes == {"paddock.decided_by": "user_x", "paddock.reason": "no"}


def test_crew_trace_shows_context_and_second_try() -> None:
    crew = build_run("crew", run_name="Team-abcdef", crew_id=ids.generate_id("crew"))
    ids_ = sorted(ids.generate_id("exec") for _ in range(3))
    first, failed, again = (
        build_run(
            "agent", begun, ended, id=name, parent_id=crew.id, root_id=crew.id, step=step, status=status, agent_name="A"
        )
        for name, begun, ended, step, status in (
            (ids_[0], 1, 5, "research", "completed"),
            (ids_[1], 6, 7, "write", "failed"),
            (ids_[2], 8, 9, "write", "completed"),
        )
    )
    root = build_tree(
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
            build_stage(crew, "research", characters=1234, finished_at=compute_time(5)),
            build_stage(crew, "write", tries=2, started_at=compute_time(6), finished_at=compute_time(9)),
            build_stage(crew, "later", status="pending", tries=0, started_at=None, finished_at=None),
        ],
        calls=[build_call(first, 3, 0.25), build_call(failed, 7, 0.5), build_call(again, 9, 1.0)],
    )
    assert outline_span(root) == (
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
    memory, first_try, second_try = write.children
    assert write.cost_usd == 1.5
    assert memory.attributes["paddock.context.steps"] == ["research"]
    assert memory.attributes["paddock.context.characters"] == 1234
    assert (memory.started_at, memory.ended_at) == (compute_time(6), compute_time(6))
    assert [(span.attributes["paddock.try"], span.status) for span in (first_try, second_try)] == [
        (1, "error"),
        (2, "ok"),
    ]
    assert root.attributes["gen_ai.operation.name"] == "invoke_workflow"
    assert root.attributes["gen_ai.workflow.name"] == "News"


def test_workflow_trace_shows_items_skipped_steps_and_nested_workflow() -> None:
    flow = build_run("workflow", workflow_id=ids.generate_id("wf"))
    below: dict[str, Any] = {"parent_id": flow.id, "root_id": flow.id}
    items = [build_run("tool", 1 + n, 3 + n, step=f"each[{n}]", run_name="add-1", **below) for n in (0, 1)]
    inner = build_run("workflow", 5, 6, step="sub", run_name="Inner-1", **below)
    asked = {"approved": False, "decided_by": "user_x", "decided_at": compute_time(7), "reason": "no"}
    root = build_tree(
        runs=[flow, *items, inner],
        stages=[
            build_stage(flow, "each", started_at=compute_time(1), finished_at=compute_time(4)),
            build_stage(flow, "each", 1, started_at=compute_time(2), finished_at=compute_time(4)),
            build_stage(flow, "each", 0, started_at=compute_time(1), finished_at=compute_time(3)),
            build_stage(flow, "sub", started_at=compute_time(5), finished_at=compute_time(6)),
            build_stage(flow, "not", status="skipped", tries=0, started_at=None, finished_at=compute_time(6.5)),
            build_stage(
                flow, "ask", status="failed", tries=0, error_type="rejected", finished_at=compute_time(7), **asked
            ),
        ],
        # An execution of a tool has the call as its only step, which is not a second span.
        steps=[build_tool_step(items[0], "1", 1, 3)],
    )
    assert outline_span(root) == (
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


def test_open_steps_end_with_their_plan() -> None:
    flow = build_run("workflow", status="cancelled", ended=50)
    queued = build_run(begun=5, ended=49, started_at=None, status="cancelled", parent_id=flow.id, step="a")
    root = build_tree(
        runs=[flow, queued],
        stages=[
            build_stage(flow, "a", status="running", started_at=compute_time(5), finished_at=None),
            build_stage(flow, "b", status="waiting", tries=0, started_at=compute_time(6), finished_at=None),
        ],
    )
    assert [(stage_span.status, stage_span.ended_at) for stage_span in root.children] == [
        ("cancelled", compute_time(50))
    ] * 2
    (unstarted,) = root.children[0].children
    assert (unstarted.status, unstarted.started_at, unstarted.ended_at) == (
        "cancelled",
        compute_time(5),
        compute_time(49),
    )
    # While the plan runs, its steps stay open.
    root = build_tree(
        runs=[build_run("workflow", id=flow.id, ended=None)],
        stages=[build_stage(flow, "a", status="waiting", tries=0, started_at=compute_time(5), finished_at=None)],
    )
    assert [(stage_span.status, stage_span.ended_at) for stage_span in root.children] == [("waiting", None)]


def test_context_of_a_task_lists_completed_steps_only() -> None:
    crew = build_run("crew")
    stages = [
        build_stage(crew, "a", characters=10),
        build_stage(crew, "b", status="failed", characters=None),
        build_stage(crew, "c", status="skipped", characters=20),
        build_stage(crew, "d", started_at=compute_time(3)),
        build_stage(crew, "e", status="cancelled", tries=0, started_at=None),
    ]
    planned_steps = [PlannedStep(id=step, context=["a", "b", "c", "gone"]) for step in "de"]
    root = build_tree(runs=[crew], stages=stages, plans=[TracedPlan(run_id=crew.id, steps=planned_steps)])
    below = {
        task.name: [child.attributes["paddock.context.steps"] for child in task.children] for task in root.children
    }
    assert below == {"a": [], "b": [], "c": [], "d": [["a"]], "e": []}


def test_simultaneous_spans_are_ordered_by_context_and_item() -> None:
    crew = build_run("crew")
    agent = build_run(parent_id=crew.id, step="b", begun=1)
    root = build_tree(
        runs=[crew, agent],
        stages=[
            build_stage(crew, "a", characters=1),
            build_stage(crew, "b"),
            *(build_stage(crew, "c", n) for n in range(12)),
        ],
        plans=[TracedPlan(run_id=crew.id, steps=[PlannedStep(id="b", context=["a"])])],
    )
    _, task_with_context, mapped_task = root.children
    assert [child.kind for child in task_with_context.children] == ["memory", "agent"]
    assert [child.attributes["paddock.step.item"] for child in mapped_task.children] == list(range(12))


def test_child_execution_has_the_trace_id_of_its_root() -> None:
    flow = build_run("workflow")
    child = build_run(parent_id=flow.id, root_id=flow.id, step="a")
    alone = traces.build_trace(TraceSources(runs=[child]))
    assert alone.trace_id == traces.build_trace(TraceSources(runs=[flow, child])).trace_id
    assert alone.spans[0].parent_id is None
    assert alone.execution_id == child.id


def test_content_is_optional_and_bounded() -> None:
    def select_content(span: Span) -> dict[str, Any]:
        names = ("gen_ai.input.messages", "gen_ai.output.messages")
        names += ("gen_ai.tool.call.arguments", "gen_ai.tool.call.result")
        return {name: span.attributes[name] for name in names if name in span.attributes}

    agent_run = build_run()
    steps = [build_model_step(agent_run, "1", 0, 1), build_tool_step(agent_run, "1.0", 2, 3)]
    assert [
        select_content(span)
        for span in iterate_spans(build_tree(runs=[agent_run], steps=steps, calls=[build_call(agent_run, 1)]))
    ] == [{}, {}, {}]
    long = "é" * 5000
    agent_run = build_run(id=agent_run.id, input=long, output="short")
    steps = [
        build_model_step(agent_run, "1", 0, 1, answer=long),
        build_tool_step(agent_run, "1.0", 2, 3, arguments="{}", answer=long),
    ]
    agent, answer, tool = iterate_spans(build_tree(runs=[agent_run], steps=steps, calls=[build_call(agent_run, 1)]))
    (message,) = agent.attributes["gen_ai.input.messages"]
    assert message["role"] == "user"
    texts = [message["parts"][0]["content"], select_content(tool)["gen_ai.tool.call.result"]]
    texts.append(answer.attributes["gen_ai.output.messages"][0]["parts"][0]["content"])
    for text in texts:
        assert len(text.encode()) <= traces.schema.MAX_CONTENT_BYTES
        assert text.startswith("éé")
        assert text.endswith("…")
    assert agent.attributes["gen_ai.output.messages"][0]["parts"] == [{"type": "text", "content": "short"}]
    assert select_content(tool)["gen_ai.tool.call.arguments"] == "{}"


def test_input_messages_are_bounded_per_call_and_per_trace() -> None:
    agent_run = build_run(prompt='{"agent": 1}')
    steps = [
        build_model_step(agent_run, str(number), number, number + 1, answer="é" * 5000) for number in range(1, 101)
    ]
    calls = [build_call(agent_run, number + 1) for number in range(1, 101)]
    call_attributes = [
        span.attributes
        for span in iterate_spans(build_tree(runs=[agent_run], steps=steps, calls=calls))
        if span.kind == "model_call"
    ]
    sizes = [len(msgspec.json.encode(attributes.get("gen_ai.input.messages", []))) for attributes in call_attributes]
    assert max(sizes) <= messages.MAX_CALL_BYTES + 100
    assert sum(sizes) <= messages.MAX_TRACE_BYTES + 10_000
    # The newest messages stay, and the omitted ones are counted.
    assert len(call_attributes[3]["gen_ai.input.messages"]) == 4
    assert "paddock.input.omitted_messages" not in call_attributes[3]
    assert (
        call_attributes[60]["paddock.input.omitted_messages"] + len(call_attributes[60]["gen_ai.input.messages"]) == 61
    )
    assert call_attributes[99]["paddock.input.omitted_messages"] > call_attributes[60]["paddock.input.omitted_messages"]
