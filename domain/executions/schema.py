"""Define executions: one run of an agent, a tool, a crew or a workflow, from `pending` to exactly one terminal status.

    pending ──► preparing ──► running ──► completed | failed
       └────────────┴────────────┴──────► cancelled

A worker claims a pending row (a lease and a fencing token, see `domain.shared.leases`), works with no transaction
open, and settles it. Cancelling settles the row at once; the worker notices and kills the process tree.
"""

from datetime import datetime
from typing import Annotated, Any, Final, Literal, Protocol

import msgspec
from msgspec import Meta

from domain.agents import AgentSpec
from domain.events import ExecutionEvent
from domain.executions.lanes import LaneShare, RunLane
from domain.executions.steering import (
    PRIORITY_STEP,
    BlockReason,
    ConcurrencyKey,
    ConcurrencyLimit,
    DelaySeconds,
    ExpirySeconds,
    IfBusy,
    Priority,
)
from domain.llms import ConversationMessage, ModelOptions, ToolSpec
from domain.ports import SandboxOutcome
from domain.shared.errors import InvalidField
from domain.shared.json_limits import check_json_field
from domain.shared.leases import Lease
from domain.shared.pages import Listing, Page
from domain.shared.status import ExecutionStatus
from domain.shared.tags import Metadata, Tags

ExecutionKind = Literal["agent", "tool", "crew", "workflow", "generation"]
# `safe` asks before a tool with effects, `sandbox` has only tools inside the fence, `yolo` never asks.
ExecutionMode = Literal["safe", "sandbox", "yolo"]

DEFAULT_TIMEOUT_SECONDS: Final = 30
# Models take longer than code.
MODEL_AGENT_TIMEOUT_SECONDS: Final = 300
# A crew or a workflow may wait for people.
MAX_PLAN_TIMEOUT_SECONDS: Final = 7 * 24 * 3600
DEFAULT_MAX_ATTEMPTS: Final = 3
# How much of its log an execution shows as text.
MAX_LOG_CHARACTERS: Final = 64 * 1024
MAX_LOG_LINES: Final = 2000
# Ends the message of a run in a thread that did not complete.
THREAD_UNCHANGED: Final = " The thread is as it was before this run."

Payload = Annotated[dict[str, Any], Meta(examples=[{"input": "Hello, world!"}])]
TimeoutSeconds = Annotated[
    int,
    Meta(
        ge=1,
        le=MAX_PLAN_TIMEOUT_SECONDS,
        description="Seconds; at most 3600 for an agent, 604800 for a crew or a workflow.",
        examples=[30],
    ),
]
CostLimitUsd = Annotated[float, Meta(gt=0, le=1_000_000, description="US dollars.", examples=[5.0])]
StateName = Annotated[str, Meta(max_length=128, examples=["conversation-42"])]
RunFiles = Annotated[
    dict[str, str],
    Meta(
        description="A path below the run's work folder for each file, and the id of an uploaded file. "
        "Naming files takes the scope `read:files`.",
        examples=[{"data.csv": "file_01k3v9rt0hf7btqeqn5j8x2a4c"}],
    ),
]
ThreadId = Annotated[str, Meta(examples=["thread_01k3v9rt0hf7btqeqn5j8x2a4c"])]
StartMessages = Annotated[
    list[ConversationMessage],
    Meta(
        description="A conversation before the task, in the form of OpenAI's chat completions.",
        examples=[[{"role": "user", "content": "My name is Ada."}, {"role": "assistant", "content": "Hello, Ada."}]],
    ),
]
RunName = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f]*$(?!\n)")]
MaxAttempts = Annotated[int, Meta(ge=1, le=10, description="Claims before a run whose workers die is failed.")]


class Execution(msgspec.Struct, kw_only=True):
    """Describe one execution. `total_cost` in USD, `timeout` in seconds; `result` repeats `output_data`.

    `error_type` is the exception's class name when the agent raised, else one of `timeout out_of_memory crashed
    result_not_json result_too_large input_invalid output_invalid sandbox_unavailable worker_lost expired
    version_unavailable internal_error cancelled`, `model_unavailable` where a worker cannot serve the models of a
    manifest, `tool_failed` of a single tool call, and for model agents `budget_exceeded too_many_steps` or the error of
    the model (`rate_limited unavailable timeout cut_off malformed refused unauthorized not_allowed`) or of its file
    (`output_file`). A crew or a workflow has the `error_type` of the step that failed, or `rejected bad_expression
    map_too_large outputs_too_large not_startable`.
    While the status is `waiting`, `waiting_for` holds the tool calls `{call_id, tool, args}` and the steps
    `{call_id, step, name}` that wait for an approval. `results` has the results of completed steps, by id.
    A `pending` one may be `blocked`: `delayed` until `run_at`, or `busy` while its thread or its `concurrency_key` has
    no room. One that has not begun by `expires_at` is cancelled. `messages` is the conversation that it started with.
    `output_schema` is what the uploaded agent had in place of its version's when the run started.
    `logs` has the first 64 KiB of the log as text, a line each; it is null in lists.
    """

    id: str
    run_name: str
    kind: ExecutionKind
    agent_id: str | None
    agent_name: str | None = None
    agent_version_id: str | None
    crew_id: str | None = None
    workflow_id: str | None = None
    schedule_id: str | None = None
    parent_id: str | None = None
    root_id: str | None = None
    step: str | None = None
    user_id: str
    tenant_id: str
    status: ExecutionStatus
    mode: ExecutionMode | None = None
    model: str | None = None
    cost_limit: float | None = None
    env: dict[str, str] | None = None
    files: dict[str, str] | None = None
    state: str | None = None
    thread_id: str | None = None
    messages: list[dict[str, Any]] | None = None
    tags: list[str] = []
    metadata: dict[str, Any] | None = None
    run_at: datetime | None = None
    expires_at: datetime | None = None
    priority: int = 0
    concurrency_key: str | None = None
    concurrency_limit: int | None = None
    blocked: BlockReason | None = None
    output_schema: dict[str, Any] | None = None
    waiting_for: list[dict[str, Any]] | None = None
    input_data: Any
    output_data: Any
    error_message: str | None
    error_type: str | None
    attempt: int
    # Attempts that only went on after an approval.
    resumes: int = 0
    # Attempts that ended because their worker was stopped. Neither counts against `max_attempts`.
    handovers: int = 0
    max_attempts: int
    timeout: int
    lane: RunLane = "run"
    key_id: str | None = None
    retry_of: str | None
    steps_total: int
    steps_completed: int
    results: dict[str, Any] | None = None
    logs: str | None = None
    total_cost: float
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    updated_at: datetime
    execution_id: str = ""
    result: Any = None
    message: str = ""

    @property
    def turn_at(self) -> datetime | None:
        """The time of its turn among its tenant's runs, where that is not when it was started."""
        if self.run_at is None and not self.priority:
            return None
        due_at = self.created_at if self.run_at is None else max(self.run_at, self.created_at)
        return due_at - self.priority * PRIORITY_STEP

    def __post_init__(self) -> None:
        self.execution_id = self.id
        self.result = self.output_data
        self.message = self.error_message or _STATE_SENTENCES[self.blocked or self.status]


_STATE_SENTENCES: Final[dict[ExecutionStatus | BlockReason, str]] = {
    "delayed": "Execution is waiting for its time, run_at",
    "busy": "Execution is waiting for other executions of its thread or its concurrency_key",
    "pending": "Execution is waiting for a worker",
    "preparing": "Execution is being prepared",
    "running": "Execution is running",
    "waiting": "Execution is waiting for an approval",
    "completed": "Execution completed successfully",
    "failed": "Execution failed",
    "cancelled": "Execution was cancelled",
}


class ExecutionStart(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Give an execution its input and limits, when the path names what to run.

    One of `payload` and `inputs` (two names of the same thing) is what the entrypoint receives;
    `task` is added to it under that name. `agent_version_id` picks a version other than the current one.
    `files` puts uploaded files into the run's work folder.
    A model agent is asked `task`, with the inputs; `mode` and `model` apply to model agents, also to those of a crew or
    a workflow. `cost_limit` bounds what the run's calls of models may cost. `run_name` is the name of the execution.
    `state` names the state that uploaded code reads and leaves, by default `default`. `tags` and `metadata` find the
    execution again.
    `thread_id` names the thread that the run goes on with, and `thread` opens a new one; the run adds its turn when it
    is completed. With `fork_at`, it goes on with a copy of the thread up to the message of that number. `messages`
    come before the task, and after those of the thread.
    Runs of a thread go one after another; with `if_busy`, the start is refused, or the runs that are on the thread
    are cancelled. It begins at `run_at` or after `delay_seconds`, and is cancelled if it has not begun
    within `expires_in` seconds. Among the runs of the tenant, one of a higher `priority` goes first. Of all runs with
    the same `concurrency_key`, at most `concurrency_limit` (1 if left out) run at a time.
    """

    payload: Payload | None = None
    inputs: Payload | None = None
    task: Annotated[str, Meta(max_length=100_000)] | None = None
    agent_version_id: str | None = None
    mode: ExecutionMode | None = None
    model: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    cost_limit: CostLimitUsd | None = None
    timeout: TimeoutSeconds | None = None
    max_attempts: MaxAttempts | None = None
    run_name: RunName | None = None
    state: StateName | None = None
    files: RunFiles | None = None
    tags: Tags | None = None
    metadata: Metadata | None = None
    thread_id: ThreadId | None = None
    thread: bool | None = None
    fork_at: Annotated[int, Meta(ge=0, le=100_000)] | None = None
    messages: StartMessages | None = None
    if_busy: IfBusy | None = None
    run_at: datetime | None = None
    delay_seconds: DelaySeconds | None = None
    expires_in: ExpirySeconds | None = None
    priority: Priority = 0
    concurrency_key: ConcurrencyKey | None = None
    concurrency_limit: ConcurrencyLimit | None = None


class TargetedExecutionStart(ExecutionStart, kw_only=True, forbid_unknown_fields=True):
    """Name what to run in the body: one of an agent, a crew and a workflow, by id or name."""

    agent_id: Annotated[str, Meta(examples=["my-agent"])] | None = None
    crew_id: str | None = None
    workflow_id: str | None = None


class AnswerStart(TargetedExecutionStart, kw_only=True, forbid_unknown_fields=True):
    """Set also how the model of a model agent answers, for callers who ask as they would ask a model.

    `options` come before the agent's own and `instructions` after its own. `client_tools` are tools that the caller
    offers and calls itself: a call of one ends the run.
    """

    options: ModelOptions = ModelOptions()
    instructions: str | None = None
    client_tools: tuple[ToolSpec, ...] = ()


class TermQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Select executions that have all `required` terms and none of the `excluded`; see `domain.executions.terms`."""

    required: list[str]
    excluded: list[str] = []


class ExecutionFilter(msgspec.Struct, frozen=True):
    """Select executions of a list. Times are inclusive at `since`, exclusive at `until`.

    Without a `parent_id` or an agent, the list leaves out the steps of crews and workflows. All of several tags and of
    several members `key:value` of the metadata must match. `terms` are what these and the `search` are found by.
    """

    status: ExecutionStatus | None = None
    kind: ExecutionKind | None = None
    agent_id: str | None = None
    agent_version_id: str | None = None
    crew_id: str | None = None
    workflow_id: str | None = None
    schedule_id: str | None = None
    parent_id: str | None = None
    thread_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    tag: list[str] | None = None
    metadata: list[str] | None = None
    search: str | None = None
    terms: TermQuery | None = None


class AttemptOutcome(msgspec.Struct, kw_only=True, frozen=True):
    """Hold the outcome of one attempt at an execution, with the last events that it wrote."""

    execution: Execution
    outcome: SandboxOutcome
    events: list[ExecutionEvent]


class ExecutionSettlement(msgspec.Struct, kw_only=True, frozen=True):
    """List the executions that were settled, as (id, attempt); the others had lost their lease.

    `has_waiting` tells whether executions of any tenant waited for a worker at that moment.
    """

    settled_attempts: frozenset[tuple[str, int]]
    has_waiting: bool


class ApprovalDecision(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Choose the waiting tool call or step to decide on; all without `call_id`. The model receives the `reason`."""

    call_id: Annotated[str, Meta(max_length=200)] | None = None
    reason: Annotated[str, Meta(max_length=4000, pattern=r"^[^\x00]*$")] | None = None


class Executions(Protocol):
    """Store the executions of the bound tenant. Every write is guarded by the status that it expects."""

    async def add(self, execution: Execution, spec: AgentSpec | None, gate: str | None = None) -> None:
        """Write an execution. `spec` is the model agent as it was at the start; every attempt runs that.

        A `busy` one waits at the `gate`: of its `thread`, or of its `key`.
        """
        ...

    async def get_spec(self, execution_id: str) -> AgentSpec | None: ...
    async def lock_execution(self, execution_id: str) -> Execution | None: ...
    async def park_execution(self, execution_id: str, attempt: int, calls: list[dict[str, Any]], now: datetime) -> bool:
        """Park a leased execution until a person decides on its calls."""
        ...

    async def resume_execution(self, execution_id: str, now: datetime) -> Execution | None: ...
    async def set_waiting_calls(self, execution_id: str, calls: list[dict[str, Any]], now: datetime) -> None:
        """Replace the calls that wait, when some of them are decided."""
        ...

    async def get(self, execution_id: str) -> Execution | None: ...
    async def save_labels(self, execution: Execution, now: datetime) -> None:
        """Save the name, the tags and the metadata of an execution that is locked."""
        ...

    async def list_page(self, filters: ExecutionFilter, page: Page) -> Listing[Execution]: ...
    async def claim_pending(
        self, lease: Lease, slots: int, local_versions: frozenset[str], share: LaneShare
    ) -> list[Execution]:
        """Claim up to `slots` pending executions over all tenants, first of the tenants with the fewest running."""
        ...

    async def begin_running(self, execution_id: str, attempt: int, now: datetime) -> bool: ...
    async def settle_attempts(self, outcomes: list[AttemptOutcome], now: datetime) -> ExecutionSettlement:
        """Settle executions of any tenants whose attempt still holds the lease."""
        ...

    async def cancel_execution(self, execution_id: str, reason: str, now: datetime) -> bool: ...
    async def cancel_children(self, execution_id: str, reason: str, now: datetime) -> list[str]:
        """Cancel the open steps of a plan, and those of plans within it. Returns their ids."""
        ...

    async def count_open_runs(self, agent_id: str) -> int:
        """Count an agent's executions that have not ended, without steps of plans, which wait in their plan.

        Blocks other starts of the agent until the commit.
        """
        ...

    async def cancel_oldest(
        self, agent_id: str, keep: int, reason: str, now: datetime, steps: bool = False
    ) -> list[str]:
        """Cancel an agent's open executions but the newest `keep`; with `steps`, also steps of plans."""
        ...

    async def release_execution(self, execution_id: str, attempt: int, now: datetime) -> Execution | None: ...
    async def hand_over_execution(self, execution_id: str, attempt: int, now: datetime) -> Execution | None:
        """Release an execution without counting the attempt."""
        ...

    async def requeue_expired(self, execution_id: str, now: datetime) -> Execution | None: ...


def build_payload(data: ExecutionStart) -> dict[str, Any]:
    """Build what the entrypoint receives. Errors: `invalid_field` for both names at once, or for deep nesting."""
    if data.payload is not None and data.inputs is not None:
        raise InvalidField("inputs", "means payload; send one of them.")
    field = name_payload_field(data)
    payload = dict(data.payload or data.inputs or {})
    check_json_field(field, payload)
    if data.task is not None:
        if "task" in payload:
            raise InvalidField("task", f"is given twice, here and inside {field}.")
        payload["task"] = data.task
    return payload


def name_payload_field(data: ExecutionStart) -> str:
    """Return the name under which a start gives its payload."""
    return "inputs" if data.inputs is not None else "payload"


def status_from_outcome(outcome: SandboxOutcome) -> ExecutionStatus:
    """Return the status that an outcome leads to."""
    return "completed" if outcome.error_type is None else "failed"
