"""What a trace is, and what it is made of: executions, their steps, and the calls of models that they paid for."""

from datetime import datetime
from typing import Any, Final, Literal, Protocol

import msgspec

from domain.executions import ExecutionKind, RunStepStatus
from domain.llms import ModelToolCall
from domain.plans import StepStatus as StageStatus
from domain.shared.status import ExecutionStatus

SpanKind = Literal["crew", "workflow", "task", "step", "agent", "model_call", "tool", "memory"]
SpanStatus = Literal["ok", "error", "running", "waiting", "cancelled"]

# A trace has no more; what lies deeper in the tree is left out first.
MAX_SPANS: Final = 5_000
# As much of what was asked or answered as a span shows, in bytes.
MAX_CONTENT_BYTES: Final = 4096


class SpanEvent(msgspec.Struct, kw_only=True):
    """What happened at one moment of a span: `approved` or `rejected`, by whom and why."""

    name: str
    at: datetime
    attributes: dict[str, Any] = {}


class Span(msgspec.Struct, kw_only=True):
    """A part of a trace. Durations in milliseconds, costs in US dollars.

    `crew` and `workflow` are plans, made of `task`s (of a crew) or `step`s. `agent` is a run of an agent, also one that
    another delegates to; what is tried again is one span for each try. `memory` is what a task was given of others.
    Cost and tokens are those of the calls of models in it: a span's are the sum of its `children`'s. What has not ended
    has no `ended_at`; what began and was never finished in an execution that has ended, ended with that.

    Names of `attributes` are OpenTelemetry's, see `domain.traces.attributes`; our own begin with `paddock.`.
    """

    id: str
    parent_id: str | None
    name: str
    kind: SpanKind
    status: SpanStatus
    started_at: datetime | None
    ended_at: datetime | None
    duration_ms: float | None = None
    cost_usd: float = 0.0
    total_tokens: int = 0
    attributes: dict[str, Any]
    events: list[SpanEvent] = []
    children: list["Span"] = []


class Trace(msgspec.Struct, kw_only=True):
    """What an execution was made of so far. `trace_id` is the one under which it is exported, see docs/operations.md.

    `truncated` tells that there is more than `MAX_SPANS`; sums are then of what is shown.
    """

    execution_id: str
    trace_id: str
    status: ExecutionStatus
    truncated: bool
    spans: list[Span]


# What it is made of, as it is on record.


class TracedRun(msgspec.Struct, kw_only=True, frozen=True):
    """An execution, with what of its agent concerns a trace. `input` and `output` only where content is asked for."""

    id: str
    tenant_id: str
    parent_id: str | None = None
    root_id: str | None = None
    step: str | None = None
    kind: ExecutionKind
    status: ExecutionStatus
    run_name: str
    agent_id: str | None = None
    agent_version_id: str | None = None
    agent_name: str | None = None
    crew_id: str | None = None
    workflow_id: str | None = None
    schedule_id: str | None = None
    mode: str | None = None
    model: str | None = None
    provider: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    attempt: int = 0
    error_type: str | None = None
    error_message: str | None = None
    created_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    input: str | None = None
    output: str | None = None
    # JSON of a model agent and its input, as `domain.traces.messages.FirstPrompt` reads it.
    prompt: str | None = None


class PlannedStep(msgspec.Struct, kw_only=True, frozen=True):
    """What a plan says about one of its steps. `context` are the steps whose answers come with a task."""

    id: str
    name: str | None = None
    context: list[str] | None = None


class TracedPlan(msgspec.Struct, kw_only=True, frozen=True):
    """A plan, as far as its steps have names."""

    run_id: str
    name: str | None = None
    steps: list[PlannedStep] | None = None


class TracedPlanStep(msgspec.Struct, kw_only=True, frozen=True):
    """How far a step of a plan is, or one item of it; `characters` is how long its answer is, in a crew."""

    run_id: str
    step: str
    item: int
    status: StageStatus
    tries: int = 0
    child_id: str | None = None
    error_type: str | None = None
    error_message: str | None = None
    approved: bool | None = None
    decided_by: str | None = None
    decided_at: datetime | None = None
    reason: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    characters: int | None = None


class DelegatedAgent(msgspec.Struct, kw_only=True, frozen=True):
    """Whom a task was delegated to."""

    id: str | None = None
    name: str
    model: str | None = None
    provider: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None


class TracedRunStep(msgspec.Struct, kw_only=True, frozen=True):
    """A step of a model agent, see `domain.executions.steps`.

    `failed` and `rejected` are of tool calls, what follows of answers.

    `given` is what a tool was called with, or what was delegated, `answer` what came of it, `tool_calls` what a model
    asked for, `prompt` the agent and input of a delegation. All of these only where content is asked for.
    """

    run_id: str
    path: str
    kind: Literal["model", "tool"]
    name: str
    status: RunStepStatus
    attempt: int = 1
    call_id: str | None = None
    decided_by: str | None = None
    decided_at: datetime | None = None
    reason: str | None = None
    started_at: datetime
    finished_at: datetime | None = None
    failed: bool = False
    rejected: bool = False
    delegate: DelegatedAgent | None = None
    finish: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    given: str | None = None
    answer: str | None = None
    tool_calls: tuple[ModelToolCall, ...] = ()
    prompt: str | None = None


class TracedModelCall(msgspec.Struct, kw_only=True, frozen=True):
    """A call of a model that has ended, as it is billed."""

    id: str
    run_id: str
    provider: str
    model: str
    model_name: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: float = 0.0
    estimated: bool = False
    status: Literal["ok", "error", "cancelled"] = "ok"
    error_type: str | None = None
    duration_ms: float = 0.0
    first_token_ms: float | None = None
    created_at: datetime


class TraceSources(msgspec.Struct, kw_only=True, frozen=True):
    """Everything of one execution and those below it, the first of `runs` being the one that was asked for.

    `more` tells that there is more of something than was read.
    """

    runs: list[TracedRun]
    plans: list[TracedPlan] = []
    stages: list[TracedPlanStep] = []
    steps: list[TracedRunStep] = []
    calls: list[TracedModelCall] = []
    is_truncated: bool = False


class PendingTraceExport(msgspec.Struct, kw_only=True, frozen=True):
    """An ended execution whose trace is to be exported; `tries` counts this time."""

    execution_id: str
    tenant_id: str
    tries: int


class Traces(Protocol):
    """The traces of the bound tenant's executions; and what of all tenants' is still to be exported."""

    async def get_sources(self, execution_id: str, content: bool, most: int) -> TraceSources | None:
        """What a trace is made of, all as it was at one moment; up to `most` of each kind."""
        ...

    async def enable_export(self, now: datetime) -> None:
        """Note that traces are exported: from now on every execution that ends is one to export."""
        ...

    async def claim_exports(self, most: int, now: datetime, until: datetime) -> list[PendingTraceExport]:
        """Take what is due, the oldest first; nobody else gets it before `until`."""
        ...

    async def mark_exported(self, execution_ids: list[str]) -> None: ...
    async def postpone_exports(self, execution_ids: list[str], until: datetime, counts: bool) -> None:
        """Let go of what was claimed until it is due again. `counts` tells that it was a try."""
        ...
