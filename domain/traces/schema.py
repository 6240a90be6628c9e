"""Define traces, and the records they are built from: executions, their steps, and their calls of models."""

from datetime import datetime
from typing import Any, Final, Literal, Protocol

import msgspec

from domain.executions import ExecutionKind, RunStepStatus
from domain.llms import ModelToolCall
from domain.plans import StepHistory
from domain.plans import StepStatus as StageStatus
from domain.shared.status import ExecutionStatus

SpanKind = Literal["crew", "workflow", "task", "step", "agent", "model_call", "tool", "memory"]
SpanStatus = Literal["ok", "error", "running", "waiting", "cancelled"]

# The most spans of a trace; the deepest are left out first.
MAX_SPANS: Final = 5_000
# How much of a prompt or an answer a span shows.
MAX_CONTENT_BYTES: Final = 4096


class SpanEvent(msgspec.Struct, kw_only=True):
    """Describe an event within a span: `approved` or `rejected`, by whom and why."""

    name: str
    at: datetime
    attributes: dict[str, Any] = {}


class Span(msgspec.Struct, kw_only=True):
    """Describe a part of a trace. Durations in milliseconds, costs in US dollars.

    `crew` and `workflow` are plans, made of `task`s (of a crew) or `step`s. `agent` is a run of an agent, also one that
    another delegates to; each try has a span of its own. `memory` is the context that a task got from others.
    Cost and tokens are those of its calls of models: a span's are the sum of its `children`'s. An open span
    has no `ended_at`; a span that was never finished in an execution that has ended, ends with that execution.

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
    """Describe the parts of an execution so far. `trace_id` is the id of its export, see docs/operations.md.

    `truncated` tells that there is more than `MAX_SPANS`; sums are then of what is shown.
    """

    execution_id: str
    trace_id: str
    status: ExecutionStatus
    truncated: bool
    spans: list[Span]


# The records that a trace is built from.


class TracedRun(msgspec.Struct, kw_only=True, frozen=True):
    """Hold an execution, with the fields of its agent that a trace shows. `input` and `output` only with content."""

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
    """Hold a step as its plan defines it. `context` are the steps whose answers come with a task."""

    id: str
    name: str | None = None
    context: list[str] | None = None


class TracedPlan(msgspec.Struct, kw_only=True, frozen=True):
    """Hold a plan and its named steps."""

    run_id: str
    name: str | None = None
    steps: list[PlannedStep] | None = None


class TracedPlanStep(StepHistory, kw_only=True):
    """Hold the progress of a plan's step, or of one item of it; `characters` is the length of a crew's answer."""

    run_id: str
    item: int
    status: StageStatus
    child_id: str | None = None
    characters: int | None = None


class DelegatedAgent(msgspec.Struct, kw_only=True, frozen=True):
    """Name the agent that a task was delegated to."""

    id: str | None = None
    name: str
    model: str | None = None
    provider: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None


class TracedRunStep(msgspec.Struct, kw_only=True, frozen=True):
    """Hold a step of a model agent, see `domain.executions.RunStep`.

    `failed`, `rejected` and `delegate` belong to tool calls, `finish` and the tokens to answers.

    `arguments` is the input of a tool or of a delegation, `answer` its result, `tool_calls` the calls that a model
    asked for, `prompt` the agent and input of a delegation. All of these only with content.
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
    arguments: str | None = None
    answer: str | None = None
    tool_calls: tuple[ModelToolCall, ...] = ()
    prompt: str | None = None


class TracedModelCall(msgspec.Struct, kw_only=True, frozen=True):
    """Hold a call of a model that has ended, as it is billed."""

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
    """Hold the records of one execution and those below it; the first of `runs` is the one that was requested.

    `is_truncated` tells that there are more records than were read.
    """

    runs: list[TracedRun]
    plans: list[TracedPlan] = []
    stages: list[TracedPlanStep] = []
    steps: list[TracedRunStep] = []
    calls: list[TracedModelCall] = []
    is_truncated: bool = False


class PendingTraceExport(msgspec.Struct, kw_only=True, frozen=True):
    """Name an ended execution whose trace is to be exported; `tries` includes this one."""

    execution_id: str
    tenant_id: str
    tries: int


class Traces(Protocol):
    """Read the bound tenant's records for traces, and queue the exports of all tenants."""

    async def get_sources(self, execution_id: str, content: bool, limit: int) -> TraceSources | None:
        """Read the records of a trace as of one moment, up to `limit` of each kind."""
        ...

    async def enable_export(self, now: datetime) -> None:
        """Enable the export: from now on every execution that ends is exported."""
        ...

    async def claim_exports(self, limit: int, now: datetime, until: datetime) -> list[PendingTraceExport]:
        """Claim due exports, the oldest first; no other worker gets them before `until`."""
        ...

    async def mark_exported(self, execution_ids: list[str]) -> None: ...
    async def postpone_exports(self, execution_ids: list[str], until: datetime, counts: bool) -> None:
        """Release claimed exports until they are due again. `counts` tells that this was a try."""
        ...
