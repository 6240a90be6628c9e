"""The tree of spans, made of what is on record. Pure."""

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

_RUNS: Final[dict[ExecutionStatus, SpanStatus]] = {
    "pending": "running",
    "preparing": "running",
    "running": "running",
    "waiting": "waiting",
    "completed": "ok",
    "failed": "error",
    "cancelled": "cancelled",
}
_STAGES: Final[dict[StageStatus, SpanStatus]] = {
    "pending": "running",
    "running": "running",
    "waiting": "waiting",
    "completed": "ok",
    "skipped": "ok",
    "failed": "error",
    "cancelled": "cancelled",
}


def build_trace(found: TraceSources, most: int = MAX_SPANS) -> Trace:
    """The trace of the first of the executions."""
    asked = found.runs[0]
    root = _Tree(found).run(asked, None, None)
    cut = _cut(root, most)
    _sum(root)
    return Trace(
        execution_id=asked.id,
        trace_id=derive_trace_id(asked),
        status=asked.status,
        truncated=cut or found.is_truncated,
        spans=[root],
    )


def derive_trace_id(run: TracedRun) -> str:
    """The id that all of its trace has elsewhere: the 128 bits of the topmost execution's, in hexadecimal digits."""
    known = ids.decode_id("exec", run.root_id or run.id)
    assert known is not None, "an execution's id that is none"
    return known.hex


class _Tree:
    def __init__(self, found: TraceSources) -> None:
        self._children = defaultdict[str, dict[str, list[TracedRun]]](lambda: defaultdict(list))
        for run in sorted(found.runs, key=lambda one: one.id):
            if run.parent_id is not None:
                self._children[run.parent_id][run.step or ""].append(run)
        self._plans = {plan.run_id: plan for plan in found.plans}
        self._stages = defaultdict[str, dict[str, dict[int, TracedPlanStep]]](lambda: defaultdict(dict))
        for stage in found.stages:
            self._stages[stage.run_id][stage.step][stage.item] = stage
        self._steps = defaultdict[str, list[TracedRunStep]](list)
        for step in found.steps:
            self._steps[step.run_id].append(step)
        self._budget = ContentBudget()
        self._calls = defaultdict[str, list[TracedModelCall]](list)
        for call in found.calls:
            self._calls[call.run_id].append(call)

    def run(self, run: TracedRun, parent_id: str | None, number: int | None) -> Span:
        """An execution with all below it; `number` counts the tries of a step."""
        plan = self._plans.get(run.id)
        over = run.status in TERMINAL_STATUSES
        span = spans.build_span(
            id=run.id,
            parent_id=parent_id,
            name=find_run_name(run, plan),
            kind=run.kind if run.kind in ("crew", "workflow", "tool") else "agent",
            status=_RUNS[run.status],
            # One that was cancelled while it waited for a worker never began.
            started_at=run.started_at or (run.created_at if over else None),
            ended_at=run.completed_at if over else None,
            attributes=attributes.describe_run(run, plan, number),
        )
        span.children = AgentSpanBuilder(run, self._steps[run.id], self._calls[run.id], self._budget).build_children(
            span
        )
        span.children += self._planned(run, plan, span)
        spans.sort_children(span)
        return span

    def _planned(self, run: TracedRun, plan: TracedPlan | None, span: Span) -> list[Span]:
        """The steps of a plan that have begun, or will never."""
        stages, children = self._stages[run.id], dict(self._children[run.id])
        known = {step.id: step for step in (plan.steps or [] if plan is not None else [])}
        found: list[Span] = []
        for step_id, of_step in stages.items():
            whole = of_step.get(WHOLE_STEP) or min(of_step.values(), key=lambda one: one.item)
            if not _begun(whole):
                continue
            told = known.get(step_id)
            made = self._stage(run, whole, step_id, span.id, (told and told.name) or step_id)
            made.children = self._tries(children.pop(step_id, []), made.id)
            made.children += self._context(stages, whole, (told and told.context) or [], made)
            for stage in of_step.values():
                if stage.item != WHOLE_STEP and _begun(stage):
                    place = f"{step_id}[{stage.item}]"
                    item = self._stage(run, stage, place, made.id, place)
                    item.children = self._tries(children.pop(place, []), item.id)
                    spans.sort_children(item)
                    made.children.append(item)
            spans.sort_children(made)
            found.append(made)
        for orphans in children.values():
            # Of steps that were not read: there are too many.
            found += self._tries(orphans, span.id)
        return found

    def _tries(self, runs: list[TracedRun], parent_id: str) -> list[Span]:
        return [self.run(run, parent_id, number) for number, run in enumerate(runs, 1)]

    def _stage(self, run: TracedRun, stage: TracedPlanStep, place: str, parent_id: str, name: str) -> Span:
        over = run.status in TERMINAL_STATUSES
        span = spans.build_span(
            id=f"{run.id}/{place}",
            parent_id=parent_id,
            name=name,
            kind="task" if run.kind == "crew" else "step",
            status=_STAGES[stage.status],
            started_at=stage.started_at or stage.finished_at,
            ended_at=stage.finished_at or (run.completed_at if over else None),
            attributes=attributes.describe_plan_step(stage),
        )
        if over and span.status in ("running", "waiting"):
            span.status = "cancelled"
        if stage.decided_at is not None:
            span.events = [
                spans.build_decision_event(bool(stage.approved), stage.decided_at, stage.decided_by, stage.reason)
            ]
        return span

    def _context(
        self, stages: dict[str, dict[int, TracedPlanStep]], stage: TracedPlanStep, context: list[str], task: Span
    ) -> list[Span]:
        """What a task was given of others when it was started."""
        others = [stages.get(one, {}).get(WHOLE_STEP) for one in context]
        given = [one for one in others if one is not None and one.status == "completed" and one.characters is not None]
        if not given or not stage.tries:
            return []
        length = sum(one.characters or 0 for one in given)
        memory = spans.build_span(
            id=f"{task.id}#context",
            parent_id=task.id,
            name="context",
            kind="memory",
            status="ok",
            started_at=task.started_at,
            ended_at=task.started_at,
            attributes=attributes.describe_memory([one.step for one in given], length),
        )
        return [memory]


def _begun(stage: TracedPlanStep) -> bool:
    return stage.status != "pending" or stage.tries > 0 or stage.started_at is not None


def _cut(root: Span, most: int) -> bool:
    """Leave out what is more than so many spans, the deepest first. Returns whether there was any."""
    room, cut, level = most - 1, False, deque([root])
    while level:
        span = level.popleft()
        if len(span.children) > room:
            span.children, cut = span.children[:room], True
        room -= len(span.children)
        level.extend(span.children)
    return cut


def _sum(span: Span) -> tuple[int, int]:
    """Every span's cost and tokens: its own calls', or what is below it. In nano-dollars, so that nothing is lost."""
    if not span.children:
        return nanos_from_usd(span.cost_usd), span.total_tokens
    sums = [_sum(child) for child in span.children]
    cost, tokens = sum(one for one, _ in sums), sum(one for _, one in sums)
    span.cost_usd, span.total_tokens = cost / NANOS_PER_UNIT, tokens
    return cost, tokens
