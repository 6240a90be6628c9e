"""Define plans: steps with dependencies, compiled from a crew or a workflow when it starts.

A plan is stored with its execution and never changes: it holds its agents as they were at that moment. Each step that
runs is an execution of its own, a child of the plan's execution.
"""

from datetime import datetime
from typing import Annotated, Any, Final, Literal, Protocol

import msgspec
from msgspec import Meta

from domain.agents import AgentSpec, KnowledgeText
from domain.events import ExecutionEvent
from domain.executions import Execution
from domain.shared.status import ExecutionStatus

PlanKind = Literal["crew", "workflow"]
StepStatus = Literal["pending", "waiting", "running", "completed", "failed", "skipped", "cancelled"]
ENDED_STEP_STATUSES: Final[frozenset[str]] = frozenset({"completed", "failed", "skipped", "cancelled"})

MAX_PLAN_STEPS: Final = 2_000
MAX_MAP_ITEMS: Final = 1_000
# Steps and items of one plan together.
MAX_STEP_RUNS: Final = 20_000
# Levels of plans within plans.
MAX_PLAN_DEPTH: Final = 5
# The item number that stands for the step itself, beside the items of a step that is mapped over a list.
WHOLE_STEP: Final = -1
# A plan may wait for people's decisions.
PLAN_TIMEOUT_SECONDS: Final = 7 * 24 * 3600


class RetryPolicy(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """Define how often a failed step is retried, and the seconds before: `delay`, times `factor` after each try."""

    attempts: Annotated[int, Meta(ge=0, le=10, description="Tries after the first one.")] = 0
    delay: Annotated[float, Meta(ge=0, le=3600)] = 1.0
    factor: Annotated[float, Meta(ge=1, le=10)] = 2.0
    max_delay: Annotated[float, Meta(ge=0, le=86400)] = 300.0

    def compute_delay(self, tries: int) -> float:
        """Return the seconds to wait after `tries` failed tries."""
        return float(min(self.delay * self.factor ** max(tries - 1, 0), self.max_delay))


class AgentWork(msgspec.Struct, kw_only=True, frozen=True, tag="agent", tag_field="kind"):
    """Run an agent: an uploaded one by its version, a model agent by its `spec`, with everything it inherits.

    `timeout` is the agent's own, in seconds. `calls_models` is true for a version whose manifest names models, and
    `env` are the uploaded agent's variables. `input_schema` counts for its payload; `output_schema` is the agent's own,
    in place of its version's.
    """

    name: str
    agent_id: str | None = None
    version_id: str | None = None
    timeout: int | None = None
    calls_models: bool = False
    env: dict[str, str] | None = None
    input_schema: dict[str, Any] | None = None
    output_schema: dict[str, Any] | None = None
    spec: AgentSpec | None = None


class ToolWork(msgspec.Struct, kw_only=True, frozen=True, tag="tool", tag_field="kind"):
    """Make one tool call, with the step's inputs as arguments. `tool` is an id, or `id/name` on an MCP server."""

    name: str
    tool: str


class PlanWork(msgspec.Struct, kw_only=True, frozen=True, tag="plan", tag_field="kind"):
    """Run a crew or a workflow within the plan."""

    plan: "Plan"


StepWork = AgentWork | ToolWork | PlanWork


class TaskText(msgspec.Struct, kw_only=True, frozen=True):
    """Describe what a crew's task asks for. `{name}` in it stands for the plan's input of that name.

    `context` lists the steps whose answers are added; `planned_by` is the step whose answer plans this task. With a
    `date_format` the day of the start is added, in UTC; `input_files` are files of the run that it names.
    """

    description: str
    expected_output: str | None = None
    context: list[str] = []
    planned_by: str | None = None
    markdown: bool = False
    date_format: str | None = None
    input_files: dict[str, str] = {}


class PlanStep(msgspec.Struct, kw_only=True, frozen=True):
    """Describe one step. `inputs` may nest; strings in them, and `prompt`, are templates. `when` and `map` are
    expressions; `map` may also be the list itself.

    `timeout` counts the seconds of one try. A crew's task has a `text` in place of `prompt` and `inputs`. A failed
    step with `continue_on_failure` does not fail the plan.
    """

    id: str
    name: str
    work: StepWork
    depends_on: list[str] = []
    prompt: str | None = None
    text: TaskText | None = None
    inputs: dict[str, Any] = {}
    when: str | None = None
    map: str | list[Any] | None = None
    max_parallel: int = 10
    retry: RetryPolicy = RetryPolicy()
    timeout: int | None = None
    requires_approval: bool = False
    continue_on_failure: bool = False
    # The workspace file that receives a model agent's answer.
    output_file: str | None = None


class Plan(msgspec.Struct, kw_only=True, frozen=True):
    """Hold the steps of a plan. `outputs` is the template of its result; without one the last step's answer is used.

    `crew_id` or `workflow_id` names its source, and the result fits the `output_schema`. `max_rpm` limits the model
    calls per minute. `default_inputs` are the values of inputs that a run does not have, `knowledge` what its agents
    may look up.
    """

    kind: PlanKind
    name: str
    steps: list[PlanStep]
    outputs: Any = None
    crew_id: str | None = None
    workflow_id: str | None = None
    max_rpm: int | None = None
    output_schema: dict[str, Any] | None = None
    default_inputs: dict[str, Any] = {}
    knowledge: list[KnowledgeText] = []


class StepHistory(msgspec.Struct, kw_only=True):
    """Hold how a step has gone so far: its tries, its last error, a person's decision about it, and its times."""

    step: str
    tries: int = 0
    error_type: str | None = None
    error_message: str | None = None
    approved: bool | None = None
    decided_by: str | None = None
    decided_at: datetime | None = None
    reason: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


class StepRun(StepHistory, kw_only=True):
    """Track the progress of a step, or of one `item` of a mapped step (`WHOLE_STEP` is the step itself).

    `execution_id` is the child of the current or the last try, `tries` counts them. `due_at` is the time of the next
    try after a failure.
    """

    item: int = WHOLE_STEP
    status: StepStatus = "pending"
    execution_id: str | None = None
    due_at: datetime | None = None

    @property
    def is_whole_step(self) -> bool:
        """Whether this is the step itself, not an item of it."""
        return self.item == WHOLE_STEP


def format_step_label(step: str, item: int) -> str:
    """Return the label of a step, `review`, or of one of its items, `review[3]`."""
    return step if item == WHOLE_STEP else f"{step}[{item}]"


class StepProgress(msgspec.Struct, kw_only=True, frozen=True):
    """Report the status of the child that runs a step. `waiting_for` lists its tool calls that wait for approval."""

    step: str
    item: int
    execution_id: str
    status: ExecutionStatus
    error_type: str | None = None
    error_message: str | None = None
    waiting_for: list[dict[str, Any]] | None = None


class DuePlan(msgspec.Struct, kw_only=True, frozen=True):
    """Name a plan that has been signalled."""

    execution_id: str
    tenant_id: str


class LockedPlan(msgspec.Struct, kw_only=True, frozen=True):
    """Hold a plan that this transaction alone may advance. `revision` counts how often its steps were saved."""

    revision: int
    execution: Execution


class Plans(Protocol):
    """Store the plans of the bound tenant's executions."""

    async def add(self, execution_id: str, plan: Plan, runs: list[StepRun], is_blocked: bool = False) -> None:
        """Add a plan to its execution, and signal it unless it `is_blocked`: then the end of that does."""
        ...

    async def get(self, execution_id: str) -> Plan | None: ...
    async def list_due(self, now: datetime, limit: int) -> tuple[list[DuePlan], float | None]:
        """Return signalled plans of all tenants, the oldest signals first; and the seconds until the next signal."""
        ...

    async def try_lock(self, execution_id: str, now: datetime) -> LockedPlan | None:
        """Lock a plan and remove its signals that are due; None if another transaction holds the lock."""
        ...

    async def lock(self, execution_id: str) -> None:
        """Lock a plan; wait for the transaction that holds the lock."""
        ...

    async def clear_signals(self, execution_id: str) -> None:
        """Remove all signals of a locked plan, later ones too: it has ended."""
        ...

    async def list_runs(self, execution_id: str) -> list[StepRun]: ...
    async def list_progress(self, execution_id: str) -> list[StepProgress]:
        """Return the status of the children whose steps run."""
        ...

    async def get_child_outputs(self, executions: list[str]) -> tuple[dict[str, Any] | None, int]:
        """Return the outputs of children by their ids, and their bytes; None for outputs that are too large."""
        ...

    async def get_step_outputs(self, execution_id: str) -> dict[str, Any]:
        """Return the outputs of completed steps by step id; a mapped step has a list."""
        ...

    async def save(self, execution_id: str, runs: list[StepRun]) -> None: ...
    async def signal_plan(self, execution_id: str, due_at: datetime | None = None) -> None:
        """Have a plan advanced at a time, or at once."""
        ...

    async def update_execution(self, execution: Execution, events: list[ExecutionEvent], now: datetime) -> bool:
        """Save the state of a plan's execution and append events; False if the execution has ended."""
        ...

    async def get_max_rpm(self, execution_id: str) -> int | None:
        """Return how many model calls per minute the plan allows."""
        ...

    async def reserve_model_call(self, execution_id: str, max_rpm: int, now: datetime, agent: str = "") -> datetime:
        """Reserve the next model call of a plan, or of an `agent` in it, within `max_rpm` calls per minute.

        Return its time.
        """
        ...
