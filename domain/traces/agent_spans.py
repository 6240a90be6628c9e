"""What one agent did, as spans: calls of models and of tools, in it and in those that it delegated to."""

from bisect import bisect_left, bisect_right
from collections import defaultdict, deque
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Final

from domain.costs import nanos_from_usd
from domain.shared.status import TERMINAL_STATUSES
from domain.stats import NANOS_PER_UNIT
from domain.traces import attributes, spans
from domain.traces.messages import ContentBudget, SentMessages
from domain.traces.schema import DelegatedAgent, Span, SpanStatus, TracedModelCall, TracedRun, TracedRunStep

_CALLS: Final[dict[str, SpanStatus]] = {"ok": "ok", "error": "error", "cancelled": "cancelled"}
# Among how many answers that ended after a bill was written the one that it is for is looked for.
_NEAR: Final = 16


class AgentSpanBuilder:
    """The work of an execution.

    Bills do not say which answer they are for. An agent asks one model after the other, though, so it is the one that
    was being waited for when the bill was written; what has failed before an answer came belongs to that as well.
    """

    def __init__(
        self, run: TracedRun, steps: list[TracedRunStep], calls: list[TracedModelCall], budget: ContentBudget
    ) -> None:
        self._run, self._over = run, run.status in TERMINAL_STATUSES
        self._sent = SentMessages(run, steps, budget)
        self._answers = sorted(
            (step for step in steps if step.kind == "model"),
            key=lambda one: (one.finished_at or one.started_at, one.path),
        )
        # An execution that is one tool call has that as its only step.
        self._tools = [] if run.kind == "tool" else [step for step in steps if step.kind == "tool"]
        self._tools.sort(key=lambda one: (one.path.count("/"), one.started_at, one.path))
        self._calls = sorted(calls, key=lambda one: (one.created_at, one.id))
        self._delegating = {_above(step.path) for step in steps} - {""}
        self._places: dict[str, Span] = {}
        self._askers: dict[str, TracedRun | DelegatedAgent] = {"": run}

    def build_children(self, agent: Span) -> list[Span]:
        """What lies directly below the agent's span."""
        self._places[""] = agent
        for step in self._tools:
            self._tool(step)
        matched = self._matched()
        billed = {step.path for call, step in matched if step is not None and call.status == "ok"}
        nested = _Nested([step for step in self._tools if step.path in self._places])
        for call, answer in matched:
            self._call(call, answer, _above(answer.path) if answer is not None else nested.at(call.created_at))
        for step in self._answers:
            if step.path not in billed:
                self._unbilled(step)
        for path, place in self._places.items():
            if path:
                spans.sort_children(place)
        return agent.children

    def _place(self, path: str) -> str:
        """The agent that did this, or the nearest that is known."""
        while path not in self._places:
            path = _above(path)
        return path

    def _tool(self, step: TracedRunStep) -> None:
        place = self._places[self._place(_above(step.path))]
        ended = step.finished_at or (self._run.completed_at if self._over else None)
        span = spans.build_span(
            id=f"{self._run.id}:{step.path}",
            parent_id=place.id,
            name=step.name,
            kind="tool",
            status=self._status(step),
            started_at=step.started_at,
            ended_at=ended,
            attributes=attributes.describe_tool_call(step),
        )
        if span.status == "error" and step.finished_at is None and self._run.error_type is not None:
            span.attributes[attributes.ERROR_ATTRIBUTE] = self._run.error_type
        if step.decided_at is not None:
            approved = step.status == "approved" or (step.status == "finished" and not step.rejected)
            span.events = [spans.build_decision_event(approved, step.decided_at, step.decided_by, step.reason)]
        place.children.append(span)
        if step.delegate is None and step.path not in self._delegating:
            return
        agent = spans.build_span(
            id=f"{span.id}/agent",
            parent_id=span.id,
            name=step.delegate.name if step.delegate is not None else step.name,
            kind="agent",
            status=span.status,
            started_at=step.started_at,
            ended_at=ended,
            attributes=attributes.describe_delegate(step),
        )
        span.children = [agent]
        self._places[step.path] = agent
        self._askers[step.path] = step.delegate or DelegatedAgent(name=step.name)

    def _status(self, step: TracedRunStep) -> SpanStatus:
        if step.status == "finished":
            return "error" if step.failed or step.rejected else "ok"
        if self._over:
            # What was under way when all failed, failed with it: a delegated agent above all.
            return "error" if step.status == "started" and self._run.status == "failed" else "cancelled"
        return "waiting" if step.status == "waiting" else "running"

    def _call(self, call: TracedModelCall, step: TracedRunStep | None, path: str) -> None:
        path = self._place(path)
        place = self._places[path]
        span = spans.build_span(
            id=call.id,
            parent_id=place.id,
            name=call.model_name,
            kind="model_call",
            status=_CALLS[call.status],
            started_at=None,
            ended_at=call.created_at,
            attributes=attributes.describe_model_call(call, step, self._askers[path]),
        )
        # The bill is written when the call has ended.
        span.duration_ms = round(call.duration_ms, 3)
        span.started_at = call.created_at - timedelta(milliseconds=call.duration_ms)
        span.cost_usd, span.total_tokens = nanos_from_usd(call.cost_usd) / NANOS_PER_UNIT, call.total_tokens
        sent = self._sent.list_for_step(step.path) if step is not None else self._sent.list_for_next(path)
        span.attributes |= attributes.describe_sent_messages(*sent)
        place.children.append(span)

    def _unbilled(self, step: TracedRunStep) -> None:
        path = self._place(_above(step.path))
        span = spans.build_span(
            id=f"{self._run.id}:{step.path}",
            parent_id=self._places[path].id,
            name=step.name,
            kind="model_call",
            status="ok",
            started_at=step.started_at,
            ended_at=step.finished_at,
            attributes=attributes.describe_unbilled_answer(step, self._askers[path]),
        )
        span.total_tokens = (step.prompt_tokens or 0) + (step.completion_tokens or 0)
        span.attributes |= attributes.describe_sent_messages(*self._sent.list_for_step(step.path))
        self._places[path].children.append(span)

    def _matched(self) -> list[tuple[TracedModelCall, TracedRunStep | None]]:
        """Each bill with the answer that it is for."""
        ends = [step.finished_at or step.started_at for step in self._answers]
        found: dict[str, TracedRunStep] = {}
        taken: set[str] = set()
        # The last ones first: the bill of an answer is written with it. One before is of an attempt that was lost.
        for call in reversed(self._calls):
            first = bisect_left(ends, call.created_at)
            near = [one for one in self._answers[first : first + _NEAR] if _fits(call, one)]
            if call.status == "ok":
                near = [one for one in near if one.path not in taken]
            if near:
                found[call.id] = near[0]
                if call.status == "ok":
                    taken.add(near[0].path)
        # Where a clock was set back in between: in their order.
        left = defaultdict[str, deque[TracedRunStep]](deque)
        for one in self._answers:
            if one.path not in taken:
                left[one.name].append(one)
        for call in self._calls:
            if call.status == "ok" and call.id not in found and left[call.model_name]:
                found[call.id] = left[call.model_name].popleft()
        return [(call, found.get(call.id)) for call in self._calls]


class _Nested:
    """Which delegated agent was at work at a time: the innermost one."""

    def __init__(self, delegations: Iterable[TracedRunStep]) -> None:
        levels = defaultdict[int, list[TracedRunStep]](list)
        for one in delegations:
            levels[one.path.count("/")].append(one)
        # Those of one level work one after the other.
        self._levels = [sorted(levels[level], key=lambda one: one.started_at) for level in sorted(levels, reverse=True)]
        self._starts = [[one.started_at for one in level] for level in self._levels]

    def at(self, moment: datetime) -> str:
        for level, starts in zip(self._levels, self._starts, strict=True):
            last = bisect_right(starts, moment) - 1
            if last >= 0 and (level[last].finished_at is None or moment <= (level[last].finished_at or moment)):
                return level[last].path
        return ""


def _fits(call: TracedModelCall, step: TracedRunStep) -> bool:
    return step.started_at <= call.created_at and step.name == call.model_name


def _above(path: str) -> str:
    """The delegating call that a step lies in: `2.0` of `2.0/1`, or none."""
    return path.rpartition("/")[0]
