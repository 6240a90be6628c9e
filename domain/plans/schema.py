"""What a plan is: steps with dependencies, compiled from a crew or a workflow when it is started.

A plan is written down with its execution and never changes: agents are in it as they were then. Each step that is
run is an execution of its own, a child of the plan's.
"""

from datetime import datetime
from typing import Annotated, Any, Final, Literal, Protocol

import msgspec
from msgspec import Meta

from domain.agents.schema import AgentSpec
from domain.events import ExecutionEvent
from domain.executions.schema import Execution
from domain.shared.status import ExecutionStatus

PlanKind = Literal["crew", "workflow"]
StepStatus = Literal["pending", "waiting", "running", "completed", "failed", "skipped", "cancelled"]
ENDED_STEP_STATUSES: Final[frozenset[str]] = frozenset({"completed", "failed", "skipped", "cancelled"})

MAX_PLAN_STEPS: Final = 2_000
MAX_MAP_ITEMS: Final = 1_000
# Steps and items of one plan together.
MAX_STEP_RUNS: Final = 20_000
# Plans within plans.
MAX_PLAN_DEPTH: Final = 5
# The step itself, among the items of a step that is mapped over a list.
WHOLE_STEP: Final = -1
# A plan may wait for people: seconds until it is given up.
PLAN_TIMEOUT_SECONDS: Final = 7 * 24 * 3600


class RetryPolicy(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """How often a step that failed is tried again, and the seconds before: `delay`, times `factor` each time."""

    attempts: Annotated[int, Meta(ge=0, le=10, description="Tries after the first one.")] = 0
    delay: Annotated[float, Meta(ge=0, le=3600)] = 1.0
    factor: Annotated[float, Meta(ge=1, le=10)] = 2.0
    max_delay: Annotated[float, Meta(ge=0, le=86400)] = 300.0

    def compute_delay(self, tries: int) -> float:
        """Seconds after so many tries have failed."""
        return float(min(self.delay * self.factor ** max(tries - 1, 0), self.max_delay))


class AgentWork(msgspec.Struct, kw_only=True, frozen=True, tag="agent", tag_field="kind"):
    """Run an agent: an uploaded one by its version, a model agent as `spec` has it, with all that it inherits.

    `timeout` is the agent's own, in seconds; `calls_models` tells that a version names some.
    """

    name: str
    agent_id: str | None = None
    version_id: str | None = None
    timeout: int | None = None
    calls_models: bool = False
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
    """What a crew's task asks for. `{name}` in it is the plan's input of that name.

    `context` are the steps whose answers come with it; `planned_by` the step whose answer says how to go about it.
    """

    description: str
    expected_output: str | None = None
    context: list[str] = []
    planned_by: str | None = None
    markdown: bool = False


class PlanStep(msgspec.Struct, kw_only=True, frozen=True):
    """One step. `inputs` may nest; strings in them, and `prompt`, are templates. `when` is an
    expression, and so is `map`, unless it is the list itself.

    `timeout` in seconds of one try. A crew's task has a `text` in place of `prompt` and `inputs`. A failure of a step
    with `continue_on_failure` does not fail the plan.
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
    # A file of the workspace that the answer of a model agent is written to.
    output_file: str | None = None


class Plan(msgspec.Struct, kw_only=True, frozen=True):
    """A plan. `outputs` is a template of what it comes to; without one it is the last step's answer.

    `crew_id` or `workflow_id` says what it was compiled from, `max_rpm` bounds the calls of models in a minute.
    """

    kind: PlanKind
    name: str
    steps: list[PlanStep]
    outputs: Any = None
    crew_id: str | None = None
    workflow_id: str | None = None
    max_rpm: int | None = None


class StepRun(msgspec.Struct, kw_only=True):
    """How far a step of an execution is, or one `item` of a step that is mapped over a list (`WHOLE` is the step).

    `execution_id` is the child that runs it now or ran it last, `tries` how many there were. `due_at` is when a step
    that failed is tried again.
    """

    step: str
    item: int = WHOLE_STEP
    status: StepStatus = "pending"
    tries: int = 0
    execution_id: str | None = None
    due_at: datetime | None = None
    error_type: str | None = None
    error_message: str | None = None
    approved: bool | None = None
    decided_by: str | None = None
    decided_at: datetime | None = None
    reason: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


class StepProgress(msgspec.Struct, kw_only=True, frozen=True):
    """How the child is that runs a step. `waiting_for` are the tool calls that wait for an approval in it."""

    step: str
    item: int
    execution_id: str
    status: ExecutionStatus
    error_type: str | None = None
    error_message: str | None = None
    waiting_for: list[dict[str, Any]] | None = None


class DuePlan(msgspec.Struct, kw_only=True, frozen=True):
    """A plan that something may have changed for."""

    execution_id: str
    tenant_id: str


class LockedPlan(msgspec.Struct, kw_only=True, frozen=True):
    """A plan that this transaction alone may advance. `revision` counts how often it was written down."""

    revision: int
    execution: Execution


class Plans(Protocol):
    """The plans of the bound tenant's executions."""

    async def add(self, execution_id: str, plan: Plan, runs: list[StepRun]) -> None:
        """Write a plan beside its execution, and that it is to be advanced."""
        ...

    async def get(self, execution_id: str) -> Plan | None: ...
    async def list_due(self, now: datetime, limit: int) -> tuple[list[DuePlan], float | None]:
        """Plans of any tenants, those told of first come first; and seconds until the next that is known of."""
        ...

    async def try_lock(self, execution_id: str, now: datetime) -> LockedPlan | None:
        """Lock a plan and forget what was told of it; None if somebody else is at it."""
        ...

    async def lock(self, execution_id: str) -> None:
        """Lock a plan, when whoever is at it has done."""
        ...

    async def clear_signals(self, execution_id: str) -> None:
        """Forget what was told of a locked plan, and what is due later: it has ended."""
        ...

    async def list_runs(self, execution_id: str) -> list[StepRun]: ...
    async def list_progress(self, execution_id: str) -> list[StepProgress]:
        """How the children are of the steps that run."""
        ...

    async def get_child_outputs(self, executions: list[str]) -> tuple[dict[str, Any] | None, int]:
        """What children came to, by their ids, and the bytes of that; None if it is too large to work with."""
        ...

    async def get_step_outputs(self, execution_id: str) -> dict[str, Any]:
        """What completed steps came to, by step; a mapped one as a list."""
        ...

    async def save(self, execution_id: str, runs: list[StepRun]) -> None: ...
    async def signal_plan(self, execution_id: str, due_at: datetime | None = None) -> None:
        """Have a plan advanced at that time, or at once."""
        ...

    async def update_execution(self, execution: Execution, events: list[ExecutionEvent], now: datetime) -> bool:
        """Write down the state of a plan's execution, which has not ended, and what is told of it."""
        ...

    async def get_max_rpm(self, execution_id: str) -> int | None:
        """How many calls of models the plan may make in a minute."""
        ...

    async def reserve_model_call(self, execution_id: str, max_rpm: int, now: datetime) -> datetime:
        """When the next call of a model may be made, which is written down: at most so many in a minute."""
        ...
