"""Build the spans of one agent: calls of models and of tools, in it and in the agents that it delegated to."""

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

_CALL_STATUSES: Final[dict[str, SpanStatus]] = {"ok": "ok", "error": "error", "cancelled": "cancelled"}
# How many answers that ended after a cost was written are candidates for it.
_MAX_NEAR_ANSWERS: Final = 16


class AgentSpanBuilder:
    """Build the spans of an execution's work.

    Costs do not name the answer that they are for. An agent calls one model after the other, though, so a cost is for
    the answer that was awaited when it was written. Calls that failed before an answer belong to that answer too.
    """

    def __init__(
        self, run: TracedRun, steps: list[TracedRunStep], calls: list[TracedModelCall], budget: ContentBudget
    ) -> None:
        self._run, self._has_ended = run, run.status in TERMINAL_STATUSES
        self._sent = SentMessages(run, steps, budget)
        self._answers = sorted(
            (step for step in steps if step.kind == "model"),
            key=lambda step: (step.finished_at or step.started_at, step.path),
        )
        # An execution of one tool call has it as its only step.
        self._tools = [] if run.kind == "tool" else [step for step in steps if step.kind == "tool"]
        self._tools.sort(key=lambda step: (step.path.count("/"), step.started_at, step.path))
        self._calls = sorted(calls, key=lambda call: (call.created_at, call.id))
        self._delegating = {_get_parent_path(step.path) for step in steps} - {""}
        self._agent_spans: dict[str, Span] = {}
        self._agents: dict[str, TracedRun | DelegatedAgent] = {"": run}

    def build_children(self, agent: Span) -> list[Span]:
        """Build the children of the agent's span."""
        self._agent_spans[""] = agent
        for step in self._tools:
            self._add_tool_call(step)
        matched = self._match_costs()
        billed = {step.path for call, step in matched if step is not None and call.status == "ok"}
        delegations = _DelegationTimes([step for step in self._tools if step.path in self._agent_spans])
        for call, answer in matched:
            self._add_model_call(
                call,
                answer,
                _get_parent_path(answer.path) if answer is not None else delegations.find_innermost(call.created_at),
            )
        for step in self._answers:
            if step.path not in billed:
                self._add_unbilled_answer(step)
        for path, place in self._agent_spans.items():
            if path:
                spans.sort_children(place)
        return agent.children

    def _find_agent_path(self, path: str) -> str:
        """Return the path of the agent of a step, or of the nearest agent above it that has a span."""
        while path not in self._agent_spans:
            path = _get_parent_path(path)
        return path

    def _add_tool_call(self, step: TracedRunStep) -> None:
        place = self._agent_spans[self._find_agent_path(_get_parent_path(step.path))]
        ended = step.finished_at or (self._run.completed_at if self._has_ended else None)
        span = spans.build_span(
            id=f"{self._run.id}:{step.path}",
            parent_id=place.id,
            name=step.name,
            kind="tool",
            status=self._choose_status(step),
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
        self._agent_spans[step.path] = agent
        self._agents[step.path] = step.delegate or DelegatedAgent(name=step.name)

    def _choose_status(self, step: TracedRunStep) -> SpanStatus:
        if step.status == "finished":
            return "error" if step.failed or step.rejected else "ok"
        if self._has_ended:
            # A step under way when the run failed, failed with it; a delegated agent above all.
            return "error" if step.status == "started" and self._run.status == "failed" else "cancelled"
        return "waiting" if step.status == "waiting" else "running"

    def _add_model_call(self, call: TracedModelCall, step: TracedRunStep | None, path: str) -> None:
        path = self._find_agent_path(path)
        place = self._agent_spans[path]
        span = spans.build_span(
            id=call.id,
            parent_id=place.id,
            name=call.model_name,
            kind="model_call",
            status=_CALL_STATUSES[call.status],
            started_at=None,
            ended_at=call.created_at,
            attributes=attributes.describe_model_call(call, step, self._agents[path]),
        )
        # The cost is written when the call has ended.
        span.duration_ms = round(call.duration_ms, 3)
        span.started_at = call.created_at - timedelta(milliseconds=call.duration_ms)
        span.cost_usd, span.total_tokens = nanos_from_usd(call.cost_usd) / NANOS_PER_UNIT, call.total_tokens
        sent = self._sent.list_for_step(step.path) if step is not None else self._sent.list_for_next(path)
        span.attributes |= attributes.describe_sent_messages(*sent)
        place.children.append(span)

    def _add_unbilled_answer(self, step: TracedRunStep) -> None:
        path = self._find_agent_path(_get_parent_path(step.path))
        span = spans.build_span(
            id=f"{self._run.id}:{step.path}",
            parent_id=self._agent_spans[path].id,
            name=step.name,
            kind="model_call",
            status="ok",
            started_at=step.started_at,
            ended_at=step.finished_at,
            attributes=attributes.describe_unbilled_answer(step, self._agents[path]),
        )
        span.total_tokens = (step.prompt_tokens or 0) + (step.completion_tokens or 0)
        span.attributes |= attributes.describe_sent_messages(*self._sent.list_for_step(step.path))
        self._agent_spans[path].children.append(span)

    def _match_costs(self) -> list[tuple[TracedModelCall, TracedRunStep | None]]:
        """Match each cost with the answer that it is for."""
        ends = [step.finished_at or step.started_at for step in self._answers]
        answers_by_call: dict[str, TracedRunStep] = {}
        matched_paths: set[str] = set()
        # The last ones first: the cost of an answer is written with it. An earlier one is of an attempt that was lost.
        for call in reversed(self._calls):
            first = bisect_left(ends, call.created_at)
            near = [step for step in self._answers[first : first + _MAX_NEAR_ANSWERS] if _is_candidate(call, step)]
            if call.status == "ok":
                near = [step for step in near if step.path not in matched_paths]
            if near:
                answers_by_call[call.id] = near[0]
                if call.status == "ok":
                    matched_paths.add(near[0].path)
        # Where a clock was set back in between: match in order.
        left = defaultdict[str, deque[TracedRunStep]](deque)
        for step in self._answers:
            if step.path not in matched_paths:
                left[step.name].append(step)
        for call in self._calls:
            if call.status == "ok" and call.id not in answers_by_call and left[call.model_name]:
                answers_by_call[call.id] = left[call.model_name].popleft()
        return [(call, answers_by_call.get(call.id)) for call in self._calls]


class _DelegationTimes:
    """Find the innermost delegated agent that was at work at a time."""

    def __init__(self, delegations: Iterable[TracedRunStep]) -> None:
        levels = defaultdict[int, list[TracedRunStep]](list)
        for step in delegations:
            levels[step.path.count("/")].append(step)
        # Agents of one level work one after the other.
        self._levels = [
            sorted(levels[level], key=lambda step: step.started_at) for level in sorted(levels, reverse=True)
        ]
        self._starts = [[step.started_at for step in level] for level in self._levels]

    def find_innermost(self, moment: datetime) -> str:
        for level, starts in zip(self._levels, self._starts, strict=True):
            last = bisect_right(starts, moment) - 1
            if last >= 0 and (level[last].finished_at is None or moment <= (level[last].finished_at or moment)):
                return level[last].path
        return ""


def _is_candidate(call: TracedModelCall, step: TracedRunStep) -> bool:
    return step.started_at <= call.created_at and step.name == call.model_name


def _get_parent_path(path: str) -> str:
    """Return the path of the delegating call that a step lies in: `2.0` of `2.0/1`; empty without one."""
    return path.rpartition("/")[0]
