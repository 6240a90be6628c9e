"""Define crews: agents and their tasks, from CrewAI's YAML or from the catalogue."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal, Protocol

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain.crews.knowledge import KnowledgeConfig, KnowledgeSources, MemoryScope
from domain.shared.errors import FieldError
from domain.shared.exposure import Door, Exposure
from domain.shared.field_errors import add_line
from domain.shared.names import Name
from domain.shared.pages import Listing, Page

Process = Literal["sequential", "hierarchical"]

MAX_CREW_AGENTS: Final = 100
MAX_CREW_TASKS: Final = 100
MAX_CREW_YAML_LENGTH: Final = 256 * 1024
# These are parts of paths.
RESERVED_CREW_NAMES: Final = frozenset({"debug"})
# The planning step comes before all others.
PLANNING_STEP: Final = "planning"

CrewName = Annotated[Name, Meta(examples=["Research Team"])]
Description = Annotated[
    str,
    Meta(max_length=10_000, pattern=r"^[^\x00]*$", examples=["Team specialized in research and analysis"]),
]
YamlText = Annotated[str, Meta(max_length=MAX_CREW_YAML_LENGTH, pattern=r"^[^\x00]*$", description="In CrewAI's form.")]
CrewFiles = Annotated[
    dict[str, YamlText],
    Meta(
        max_length=2 * MAX_CREW_AGENTS + 2,
        description="The files of a CrewAI project, by path: `crew.jsonc` and `agents/NAME.jsonc`.",
        examples=[{}],
    ),
]
CrewInputs = Annotated[dict[str, Any], Meta(description="Values for `{name}` that a run need not give.", examples=[{}])]
Reference = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
Model = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[^\x00]*$", examples=["gpt-4"])]
Rpm = Annotated[int, Meta(ge=1, le=10_000, description="Maximum model calls per minute.")]
AgentNames = Annotated[list[Reference], Meta(max_length=MAX_CREW_AGENTS, examples=[[]])]
TaskNames = Annotated[list[Reference], Meta(max_length=MAX_CREW_TASKS, examples=[[]])]


class CrewSettings(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Define the parts of a crew. `agents` and `tasks` come after those of the YAML documents, in that order.

    `model` is for agents that name none. In a `hierarchical` crew a manager receives each task and delegates it:
    `manager_agent`, a key in `agents_yaml` or one of the tenant's agents, or else a generated manager on
    `manager_model` or the crew's model. With `planning` a model first plans each task. `verbose` is the default for
    agents that do not set it. A run's own inputs come before `inputs`. With `memory` a run is given what earlier runs
    came to, and of `knowledge_sources` what fits its tasks.
    """

    agents_yaml: YamlText | None = None
    tasks_yaml: YamlText | None = None
    agents: AgentNames = []
    tasks: TaskNames = []
    process: Process = "sequential"
    model: Model | None = None
    manager_model: Model | None = None
    manager_agent: Reference | None = None
    planning: bool = False
    planning_model: Model | None = None
    max_rpm: Rpm | None = None
    verbose: bool = False
    inputs: CrewInputs = {}
    memory: bool | MemoryScope = False
    knowledge_sources: KnowledgeSources = []
    knowledge_config: KnowledgeConfig | None = None


CREW_SETTING_FIELDS: Final = CrewSettings.__struct_fields__


class CrewSource(CrewSettings, kw_only=True, forbid_unknown_fields=True):
    """Define a crew, also by the `files` of a CrewAI project in place of YAML. What they set comes before the rest."""

    files: CrewFiles = {}


class NewCrew(CrewSource, kw_only=True, forbid_unknown_fields=True):
    """Create a crew. The name is unique in the tenant and works wherever a crew is referenced.

    It is required, unless `crew.jsonc` has one.
    """

    name: CrewName | None = None
    description: Description | None = None
    expose: Exposure = []


class PatchCrew(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Change a crew: each field sent is replaced as a whole, and the result is validated again.

    `files` replace the YAML, and the settings that `crew.jsonc` has.
    """

    name: Name | UnsetType = UNSET
    description: Description | None | UnsetType = UNSET
    agents_yaml: YamlText | None | UnsetType = UNSET
    tasks_yaml: YamlText | None | UnsetType = UNSET
    agents: AgentNames | UnsetType = UNSET
    tasks: TaskNames | UnsetType = UNSET
    process: Process | UnsetType = UNSET
    model: Model | None | UnsetType = UNSET
    manager_model: Model | None | UnsetType = UNSET
    manager_agent: Reference | None | UnsetType = UNSET
    planning: bool | UnsetType = UNSET
    planning_model: Model | None | UnsetType = UNSET
    max_rpm: Rpm | None | UnsetType = UNSET
    verbose: bool | UnsetType = UNSET
    inputs: CrewInputs | UnsetType = UNSET
    memory: bool | MemoryScope | UnsetType = UNSET
    knowledge_sources: KnowledgeSources | UnsetType = UNSET
    knowledge_config: KnowledgeConfig | None | UnsetType = UNSET
    files: CrewFiles | UnsetType = UNSET
    expose: Exposure | UnsetType = UNSET


class Crew(msgspec.Struct, kw_only=True):
    """Describe a crew, see `CrewSettings`. `agents` and `tasks` hold ids. Lists leave out YAML of more than 16 KiB.

    `expose` names the doors that show it to other programs: `mcp` makes it a tool of the MCP server.
    """

    id: str
    name: str
    description: str | None
    process: Process
    model: str | None
    manager_model: str | None
    manager_agent: str | None
    planning: bool
    planning_model: str | None
    max_rpm: int | None
    verbose: bool
    inputs: dict[str, Any]
    memory: bool | MemoryScope
    knowledge_sources: KnowledgeSources
    knowledge_config: KnowledgeConfig | None
    agents_yaml: str | None
    tasks_yaml: str | None
    agents: list[str]
    tasks: list[str]
    expose: list[Door] = msgspec.field(default_factory=list)
    user_id: str
    tenant_id: str
    created_at: datetime
    updated_at: datetime

    @property
    def settings(self) -> CrewSettings:
        """The parts of the crew."""
        return CrewSettings(**{name: getattr(self, name) for name in CREW_SETTING_FIELDS})


class CrewYaml(msgspec.Struct, frozen=True, kw_only=True):
    """Return a crew in CrewAI's form. With the crew's other fields it creates the same crew again."""

    agents_yaml: str
    tasks_yaml: str


class CrewProblem(msgspec.Struct, frozen=True, kw_only=True):
    """Report an error or a warning at a place: `tasks_yaml.write.agent`. `line` counts from 1."""

    field: str
    message: str
    line: int | None = None

    @property
    def field_error(self) -> FieldError:
        """The problem as the error of a field."""
        return add_line(FieldError(field=self.field, message=self.message), self.line)


class CrewAgentSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Describe an agent of a crew. `agent_id` is set for an agent of the tenant."""

    key: str
    agent_id: str | None
    role: str | None
    model: str | None
    tools: list[str]
    allow_delegation: bool


class CrewTaskSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Describe a task of a crew. `context` lists the tasks whose answers it receives."""

    key: str
    name: str
    agent: str | None
    context: list[str]
    tools: list[str]
    async_execution: bool
    output_file: str | None


class CrewStepSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Describe a step of a crew's plan."""

    id: str
    name: str
    agent: str
    depends_on: list[str]


class CrewValidation(msgspec.Struct, frozen=True, kw_only=True):
    """Report all errors and warnings of a crew. `inputs` are the names that its texts contain in braces.

    `steps` are the steps of its plan, if it is `valid`.
    """

    valid: bool
    errors: list[CrewProblem]
    warnings: list[CrewProblem]
    agents: list[CrewAgentSummary]
    tasks: list[CrewTaskSummary]
    inputs: list[str]
    steps: list[CrewStepSummary]


class Crews(Protocol):
    """Store the crews of the bound tenant."""

    async def add(self, crew: Crew) -> bool: ...
    async def find(self, reference: str, lock: bool | Literal["share"] = False) -> Crew | None: ...
    async def list_page(self, page: Page) -> Listing[Crew]: ...
    async def save(self, crew: Crew) -> bool: ...
    async def delete(self, crew_id: str) -> None: ...
    async def list_names_by_task(self, task_id: str) -> list[str]:
        """Return the names of crews that contain this task."""
        ...
