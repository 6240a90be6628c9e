"""Define the requests and the drafts of generations."""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from domain import llms
from domain.crews import Process, YamlText
from domain.shared.status import ExecutionStatus

GenerationKind = Literal["agent", "task", "crew", "name"]

MAX_OFFERED_TOOLS: Final = 24

Description = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=4_000,
        pattern=r"^[^\x00]*$",
        examples=["Create a crew for content marketing including research, writing, and review"],
    ),
]
ModelName = Annotated[str, Meta(min_length=1, max_length=256, examples=[llms.LOCAL_MODEL_NAME])]
ToolNames = Annotated[
    list[Annotated[str, Meta(min_length=1, max_length=200)]],
    Meta(max_length=MAX_OFFERED_TOOLS, examples=[["http_request"]]),
]


class GenerationStart(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Start a generation from a description. The model chooses among `tools`; by default among all enabled tools."""

    description: Description
    model: ModelName = llms.LOCAL_MODEL_NAME
    tools: ToolNames | None = None


class NameGenerationStart(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Start the generation of a run's name, from a description, the documents of a crew, or both."""

    agents_yaml: YamlText | None = None
    tasks_yaml: YamlText | None = None
    description: Description | None = None
    model: ModelName = llms.LOCAL_MODEL_NAME


class AgentDraft(msgspec.Struct, frozen=True, kw_only=True):
    """Return an agent to send to `POST /agents`."""

    name: str
    role: str
    goal: str
    backstory: str
    tools: list[str]
    model: str


class TaskDraft(msgspec.Struct, frozen=True, kw_only=True):
    """Return a task to send to `POST /tasks`. `agent` is one of the tenant's, or of the crew with this task."""

    name: str
    description: str
    expected_output: str
    agent: str | None
    tools: list[str]


class CrewDraft(msgspec.Struct, frozen=True, kw_only=True):
    """Return a crew to send to `POST /crews`."""

    name: str
    description: str
    process: Process
    model: str
    agents_yaml: str
    tasks_yaml: str


class AgentGeneration(msgspec.Struct, frozen=True, kw_only=True):
    """Return the generated agent; null while the model works. Its name is free in the tenant at this moment."""

    agent: AgentDraft | None
    execution_id: str
    status: ExecutionStatus


class TaskGeneration(msgspec.Struct, frozen=True, kw_only=True):
    """Return the generated task; null while the model works."""

    task: TaskDraft | None
    execution_id: str
    status: ExecutionStatus


class CrewGeneration(msgspec.Struct, frozen=True, kw_only=True):
    """Return the generated crew; null while the model works. Its agents and tasks are also listed one by one."""

    crew: CrewDraft | None
    agents: list[AgentDraft]
    tasks: list[TaskDraft]
    execution_id: str
    status: ExecutionStatus


class NameGeneration(msgspec.Struct, frozen=True, kw_only=True):
    """Return the generated name of a run; null while the model works."""

    name: str | None
    execution_id: str
    status: ExecutionStatus
