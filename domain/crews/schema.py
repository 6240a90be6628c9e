"""What a crew is: agents, and the tasks that they do, as CrewAI writes them or from the catalogue."""

from datetime import datetime
from typing import Annotated, Final, Literal, Protocol

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain.shared.errors import FieldError
from domain.shared.names import Name
from domain.shared.pages import Listing, Page

Process = Literal["sequential", "hierarchical"]

MAX_CREW_AGENTS: Final = 100
MAX_CREW_TASKS: Final = 100
MAX_CREW_YAML_LENGTH: Final = 256 * 1024
# Words of paths.
RESERVED_CREW_NAMES: Final = frozenset({"debug"})
# The step that plans comes before all others.
PLANNING_STEP: Final = "planning"

CrewName = Annotated[Name, Meta(examples=["Research Team"])]
Description = Annotated[
    str,
    Meta(max_length=10_000, pattern=r"^[^\x00]*$", examples=["Team specialized in research and analysis"]),
]
Yaml = Annotated[str, Meta(max_length=MAX_CREW_YAML_LENGTH, pattern=r"^[^\x00]*$", description="As CrewAI writes it.")]
Reference = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
Model = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[^\x00]*$", examples=["gpt-4"])]
Rpm = Annotated[int, Meta(ge=1, le=10_000, description="Calls of models in a minute at most.")]
AgentNames = Annotated[list[Reference], Meta(max_length=MAX_CREW_AGENTS, examples=[[]])]
TaskNames = Annotated[list[Reference], Meta(max_length=MAX_CREW_TASKS, examples=[[]])]


class CrewSettings(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What a crew is made of. `agents` and `tasks` come after those of the YAML documents, in that order.

    `model` is for agents that name none. In a `hierarchical` crew each task is given to a manager, who has the
    others do it: `manager_agent`, by its key in `agents_yaml` or from the tenant's, or one that is made for it, on
    `manager_model` or the crew's. With `planning` a model says first how to go about each task. `verbose` is for
    agents that do not say whether they are.
    """

    agents_yaml: Yaml | None = None
    tasks_yaml: Yaml | None = None
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


CREW_SETTING_FIELDS: Final = CrewSettings.__struct_fields__


class NewCrew(CrewSettings, kw_only=True, forbid_unknown_fields=True):
    """What to create. The name is unique in the tenant and works wherever a crew is named."""

    name: CrewName
    description: Description | None = None


class PatchCrew(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What to change; each of the fields is replaced as a whole, and the crew as it is then is checked anew."""

    name: Name | UnsetType = UNSET
    description: Description | None | UnsetType = UNSET
    agents_yaml: Yaml | None | UnsetType = UNSET
    tasks_yaml: Yaml | None | UnsetType = UNSET
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


class Crew(msgspec.Struct, kw_only=True):
    """A crew, see `Settings`. `agents` and `tasks` hold ids. A list leaves out YAML of more than 16 KiB."""

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
    agents_yaml: str | None
    tasks_yaml: str | None
    agents: list[str]
    tasks: list[str]
    user_id: str
    tenant_id: str
    created_at: datetime
    updated_at: datetime

    @property
    def settings(self) -> CrewSettings:
        """What it is made of."""
        return CrewSettings(**{name: getattr(self, name) for name in CREW_SETTING_FIELDS})


class CrewYaml(msgspec.Struct, frozen=True, kw_only=True):
    """A crew in CrewAI's form. Posted again, with its other fields as they are, it makes the same crew."""

    agents_yaml: str
    tasks_yaml: str


class CrewProblem(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong, or worth a second look, at a place: `tasks_yaml.write.agent`. `line` counts from 1."""

    field: str
    message: str
    line: int | None = None

    @property
    def field_error(self) -> FieldError:
        """It as one field at fault."""
        place = self.field if self.line is None else f"{self.field} (line {self.line})"
        return FieldError(field=place, message=self.message)


class CrewAgentSummary(msgspec.Struct, frozen=True, kw_only=True):
    """An agent as the crew knows it: by `key`. `agent_id` tells which of the tenant's it is, if it is one."""

    key: str
    agent_id: str | None
    role: str | None
    model: str | None
    tools: list[str]
    allow_delegation: bool


class CrewTaskSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A task as the crew knows it. `context` are the tasks whose answers come with it."""

    key: str
    name: str
    agent: str | None
    context: list[str]
    tools: list[str]
    async_execution: bool
    output_file: str | None


class CrewStepSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A step of what is run."""

    id: str
    name: str
    agent: str
    depends_on: list[str]


class CrewValidation(msgspec.Struct, frozen=True, kw_only=True):
    """All that is wrong with a crew. `inputs` are the names that its texts hold in braces.

    `steps` is what is run, in case it is `valid`.
    """

    valid: bool
    errors: list[CrewProblem]
    warnings: list[CrewProblem]
    agents: list[CrewAgentSummary]
    tasks: list[CrewTaskSummary]
    inputs: list[str]
    steps: list[CrewStepSummary]


class Crews(Protocol):
    """The crews of the bound tenant."""

    async def add(self, crew: Crew) -> bool: ...
    async def find(self, reference: str, lock: bool | Literal["share"] = False) -> Crew | None: ...
    async def list_page(self, page: Page) -> Listing[Crew]: ...
    async def save(self, crew: Crew) -> bool: ...
    async def delete(self, crew_id: str) -> None: ...
    async def list_names_by_task(self, task_id: str) -> list[str]:
        """The names of crews that name this task."""
        ...
