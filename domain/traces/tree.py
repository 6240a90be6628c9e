"""Build the tree of spans from records, without side effects."""

from collections import defaultdict, deque
from typing import Final

from domain.costs import nanos_from_usd
from domain.plans import WHOLE_STEP
from domain.plans import StepStatus as StageStatus
from domain.shared import ids
from domain.shared.status import TERMINAL_STATUSES, ExecutionStatus
from domain.stats import NANOS_PER_UNIT
from domain.traces import attributes, spans
from domain.traces.agent_spans import AgentSpanBuilder
from domain.traces.attributes import find_run_name
from domain.traces.messages import ContentBudget
from domain.traces.schema import (
    MAX_SPANS,
    Span,
    SpanStatus,
    Trace,
    TracedModelCall,
    TracedPlan,
    TracedPlanStep,
    TracedRun,
    TracedRunStep,
    TraceSources,
)

_RUN_STATUSES: Final[dict[ExecutionStatus, SpanStatus]] = {
    "pending": "running",
    "preparing": "running",
    "running": "running",
    "waiting": "waiting",
    "completed": "ok",
    "failed": "error",
    "cancelled": "cancelled",
}
_STEP_STATUSES: Final[dict[StageStatus, SpanStatus]] = {
    "pending": "running",
    "running": "running",
    "waiting": "waiting",
    "completed": "ok",
    "skipped": "ok",
    "failed": "error",
    "cancelled": "cancelled",
}


def build_trace(sources: TraceSources, limit: int = MAX_SPANS) -> Trace:
    """Build the trace of the first of the executions."""
    run = sources.runs[0]
    root = _TreeBuilder(sources).build_run(run, None, None)
    is_cut = _cut_tree(root, limit)
    _sum_costs(root)
    return Trace(
        execution_id=run.id,
        trace_id=derive_trace_id(run),
        status=run.status,
        truncated=is_cut or sources.is_truncated,
        spans=[root],
    )


def derive_trace_id(run: TracedRun) -> str:
    """Return the id of the trace in other systems: the 128 bits of the topmost execution's id, in hexadecimal."""
    return format_trace_id(run.root_id or run.id)


def format_trace_id(execution_id: str) -> str:
    """Return the id of the trace of a topmost execution in other systems."""
    uuid = ids.decode_id("exec", execution_id)
    assert uuid is not None, "not an id of an execution"
    return uuid.hex


class _TreeBuilder:
    """Build spans of executions, with those of their steps below them."""

    def __init__(self, sources: TraceSources) -> None:
        self._children = defaultdict[str, dict[str, list[TracedRun]]](lambda: defaultdict(list))
        for run in sorted(sources.runs, key=lambda run: run.id):
            if run.parent_id is not None:
                self._children[run.parent_id][run.step or ""].append(run)
        self._plans = {plan.run_id: plan for plan in sources.plans}
        self._stages = defaultdict[str, dict[str, dict[int, TracedPlanStep]]](lambda: defaultdict(dict))
        for stage in sources.stages:
            self._stages[stage.run_id][stage.step][stage.item] = stage
        self._steps = defaultdict[str, list[TracedRunStep]](list)
        for step in sources.steps:
            self._steps[step.run_id].append(step)
        self._budget = ContentBudget()
        self._calls = defaultdict[str, list[TracedModelCall]](list)
        for call in sources.calls:
            self._calls[call.run_id].append(call)

    def build_run(self, run: TracedRun, parent_id: str | None, number: int | None) -> Span:
        """Build an execution with all below it; `number` counts the tries of a step."""
        plan = self._plans.get(run.id)
        has_ended = run.status in TERMINAL_STATUSES
        span = spans.build_span(
            id=run.id,
            parent_id=parent_id,
            name=find_run_name(run, plan),
            kind=run.kind if run.kind in ("crew", "workflow", "tool") else "agent",
            status=_RUN_STATUSES[run.status],
            # One that was cancelled while it waited for a worker never began.
            started_at=run.started_at or (run.created_at if has_ended else None),
            ended_at=run.completed_at if has_ended else None,
            attributes=attributes.describe_run(run, plan, number),
        )
        span.children = AgentSpanBuilder(run, self._steps[run.id], self._calls[run.id], self._budget).build_children(
            span
        )
        span.children += self._build_plan_steps(run, plan, span)
        spans.sort_children(span)
        return span

    def _build_plan_steps(self, run: TracedRun, plan: TracedPlan | None, span: Span) -> list[Span]:
        """Build the steps of a plan that have begun, or never will."""
        stages, children = self._stages[run.id], dict(self._children[run.id])
        planned = {step.id: step for step in (plan.steps or [] if plan is not None else [])}
        built: list[Span] = []
        for step_id, of_step in stages.items():
            whole = of_step.get(WHOLE_STEP) or min(of_step.values(), key=lambda stage: stage.item)
            if not _has_begun(whole):
                continue
            step = planned.get(step_id)
            step_span = self._build_stage(run, whole, step_id, span.id, (step and step.name) or step_id)
            step_span.children = self._build_tries(children.pop(step_id, []), step_span.id)
            step_span.children += self._build_context(stages, whole, (step and step.context) or [], step_span)
            for stage in of_step.values():
                if stage.item != WHOLE_STEP and _has_begun(stage):
                    path = f"{step_id}[{stage.item}]"
                    item = self._build_stage(run, stage, path, step_span.id, path)
                    item.children = self._build_tries(children.pop(path, []), item.id)
                    spans.sort_children(item)
                    step_span.children.append(item)
            spans.sort_children(step_span)
            built.append(step_span)
        for orphans in children.values():
            # Their steps were not read: there are too many.
            built += self._build_tries(orphans, span.id)
        return built

    def _build_tries(self, runs: list[TracedRun], parent_id: str) -> list[Span]:
        return [self.build_run(run, parent_id, number) for number, run in enumerate(runs, 1)]

    def _build_stage(self, run: TracedRun, stage: TracedPlanStep, path: str, parent_id: str, name: str) -> Span:
        has_ended = run.status in TERMINAL_STATUSES
        span = spans.build_span(
            id=f"{run.id}/{path}",
            parent_id=parent_id,
            name=name,
            kind="task" if run.kind == "crew" else "step",
            status=_STEP_STATUSES[stage.status],
            started_at=stage.started_at or stage.finished_at,
            ended_at=stage.finished_at or (run.completed_at if has_ended else None),
            attributes=attributes.describe_plan_step(stage),
        )
        if has_ended and span.status in ("running", "waiting"):
            span.status = "cancelled"
        if stage.decided_at is not None:
            span.events = [
                spans.build_decision_event(bool(stage.approved), stage.decided_at, stage.decided_by, stage.reason)
            ]
        return span

    def _build_context(
        self, stages: dict[str, dict[int, TracedPlanStep]], stage: TracedPlanStep, context: list[str], task: Span
    ) -> list[Span]:
        """Build the context that a task got from others when it was started."""
        others = [stages.get(step_id, {}).get(WHOLE_STEP) for step_id in context]
        sources = [
            other
            for other in others
            if other is not None and other.status == "completed" and other.characters is not None
        ]
        if not sources or not stage.tries:
            return []
        length = sum(source.characters or 0 for source in sources)
        memory = spans.build_span(
            id=f"{task.id}#context",
            parent_id=task.id,
            name="context",
            kind="memory",
            status="ok",
            started_at=task.started_at,
            ended_at=task.started_at,
            attributes=attributes.describe_memory([source.step for source in sources], length),
        )
        return [memory]


def _has_begun(stage: TracedPlanStep) -> bool:
    return stage.status != "pending" or stage.tries > 0 or stage.started_at is not None


def _cut_tree(root: Span, limit: int) -> bool:
    """Leave out spans beyond the limit, the deepest first. Returns whether there were any."""
    room, is_cut, level = limit - 1, False, deque([root])
    while level:
        span = level.popleft()
        if len(span.children) > room:
            span.children, is_cut = span.children[:room], True
        room -= len(span.children)
        level.extend(span.children)
    return is_cut


def _sum_costs(span: Span) -> tuple[int, int]:
    """Set every span's cost and tokens from the calls below it. Returns both, costs as exact nano-dollars."""
    if not span.children:
        return nanos_from_usd(span.cost_usd), span.total_tokens
    sums = [_sum_costs(child) for child in span.children]
    cost, tokens = sum(nanos for nanos, _ in sums), sum(count for _, count in sums)
    span.cost_usd, span.total_tokens = cost / NANOS_PER_UNIT, tokens
    return cost, tokens
