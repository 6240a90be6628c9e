"""Define workflows: steps with dependencies, as users write them. Starting a workflow compiles it into a plan."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal, Protocol

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain.plans import MAX_PLAN_STEPS, PLAN_TIMEOUT_SECONDS, RetryPolicy
from domain.schemas import JsonSchema
from domain.shared.exposure import Door, Exposure
from domain.shared.names import KEY_PATTERN, Name
from domain.shared.pages import Listing, Page

WorkflowStatus = Literal["active", "archived"]
InputType = Literal["string", "number", "integer", "boolean", "array", "object"]

MAX_WORKFLOWS: Final = 1_000
MAX_WORKFLOW_INPUTS: Final = 200
MAX_WORKFLOW_BODY_BYTES: Final = 1024 * 1024
# These are parts of paths.
RESERVED_WORKFLOW_NAMES: Final = frozenset({"executions"})
# The fields of a step that name what it runs.
WORK_FIELDS: Final = ("agent", "crew", "tool", "workflow")

StepId = Annotated[
    str,
    Meta(
        pattern=rf"^{KEY_PATTERN.pattern}$(?!\n)",
        max_length=64,
        examples=["review"],
        description='Letters of any script. In expressions `steps.id`, or `steps["an id"]` for other ids.',
    ),
]
Named = Annotated[str, Meta(min_length=1, max_length=400, pattern=r"^[^\x00]*$")]
Title = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
Description = Annotated[str, Meta(max_length=10_000, pattern=r"^[^\x00]*$")]
Prompt = Annotated[str, Meta(min_length=1, max_length=100_000, pattern=r"^[^\x00]*$")]
Expression = Annotated[str, Meta(min_length=1, max_length=10_000, pattern=r"^[^\x00]*$")]
Tries = Annotated[int, Meta(ge=0, le=10, description="Retries after the first try.")]
Seconds = Annotated[int, Meta(ge=1, le=PLAN_TIMEOUT_SECONDS, description="Seconds of one try.", examples=[60])]
Path = Annotated[str, Meta(min_length=1, max_length=500, pattern=r"^[^\x00]*$", examples=["report.md"])]


class WorkflowInput(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Declare an input of a workflow. Without a `type` it accepts all values; the `default` replaces a missing one."""

    type: InputType | None = None
    required: bool = False
    default: Any = UNSET
    description: Description | None = None


class WorkflowStep(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Define one step: an agent, a crew, a tool or a workflow, by id or name; `server/tool` is a tool of an MCP server.

    `prompt` is the task of an agent. It and the strings in `inputs`, which are the arguments of a tool, may contain
    `{{ … }}`. `when` and `map` are expressions of the same language; `map` may also be the list itself. The step runs
    for each `item` of the list, at most `max_parallel` at once. `retry` is the number of retries after a failure.
    """

    id: StepId
    name: Title | None = None
    agent: Named | None = None
    crew: Named | None = None
    tool: Named | None = None
    workflow: Named | None = None
    prompt: Prompt | None = None
    inputs: dict[str, Any] = {}
    depends_on: Annotated[list[Annotated[str, Meta(max_length=64)]], Meta(max_length=MAX_PLAN_STEPS)] = []
    when: Expression | None = None
    map: Annotated[str, Meta(min_length=1, max_length=10_000)] | list[Any] | None = None
    max_parallel: Annotated[int, Meta(ge=1, le=1000)] | None = None
    retry: Tries | RetryPolicy = 0
    timeout: Seconds | None = None
    requires_approval: bool = False
    continue_on_failure: bool = False
    output_file: Path | None = None

    @property
    def work_fields(self) -> list[str]:
        """The `WORK_FIELDS` that are set; a valid step has one."""
        return [field for field in WORK_FIELDS if getattr(self, field) is not None]


Inputs = Annotated[
    dict[Annotated[str, Meta(min_length=1, max_length=64)], WorkflowInput], Meta(max_length=MAX_WORKFLOW_INPUTS)
]
Steps = Annotated[
    list[WorkflowStep],
    Meta(min_length=1, max_length=MAX_PLAN_STEPS, examples=[[{"id": "files", "tool": "filesystem_list"}]]),
]


class Workflow(msgspec.Struct, kw_only=True):
    """Describe a workflow. With `inputs` a run accepts only these; without, it accepts all values.

    `outputs` is the template of a run's result; without one the answer of the last step is used. A result that breaks
    the `output_schema` fails the run. `expose` names the doors that show it to other programs: `mcp` makes it a tool
    of the MCP server.
    """

    id: str
    name: str
    description: str | None
    status: WorkflowStatus
    inputs: dict[str, WorkflowInput] | None
    steps: list[WorkflowStep]
    outputs: Any
    output_schema: dict[str, Any] | None = None
    steps_total: int
    expose: list[Door] = msgspec.field(default_factory=list)
    tenant_id: str
    user_id: str
    created_at: datetime
    updated_at: datetime


class WorkflowSummary(msgspec.Struct, kw_only=True):
    """Describe a workflow in a list: `steps` is their number."""

    id: str
    name: str
    description: str | None
    status: WorkflowStatus
    steps: int
    tenant_id: str
    user_id: str
    created_at: datetime
    updated_at: datetime


class NewWorkflow(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Create a workflow. The name is unique in the tenant and works wherever a workflow is referenced."""

    name: Annotated[Name, Meta(examples=["code-review"])]
    description: Description | None = None
    status: WorkflowStatus = "active"
    inputs: Inputs | None = None
    steps: Steps
    outputs: Any = None
    expose: Exposure = []
    output_schema: JsonSchema | None = None


class PatchWorkflow(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Change a workflow. `inputs`, `steps`, `outputs` and `output_schema` are replaced as a whole.

    An archived one cannot start.
    """

    name: Name | UnsetType = UNSET
    description: Description | None | UnsetType = UNSET
    status: WorkflowStatus | UnsetType = UNSET
    inputs: Inputs | None | UnsetType = UNSET
    steps: Steps | UnsetType = UNSET
    outputs: Any = UNSET
    expose: Exposure | UnsetType = UNSET
    output_schema: JsonSchema | None | UnsetType = UNSET


class WorkflowYaml(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Send a workflow, or a change of one, as the text of a YAML document."""

    yaml: str


class Workflows(Protocol):
    """Store the workflows of the bound tenant."""

    async def add(self, workflow: Workflow) -> bool: ...
    async def find(self, reference: str, lock: bool | Literal["share"] = False) -> Workflow | None: ...
    async def list_page(self, page: Page, status: WorkflowStatus | None) -> Listing[WorkflowSummary]: ...
    async def save(self, workflow: Workflow) -> bool: ...
    async def delete(self, workflow_id: str) -> None: ...
    async def lock_writes(self) -> None:
        """Make other transactions that write workflows of the tenant wait until the commit."""
        ...

    async def count(self) -> int: ...
