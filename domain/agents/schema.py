"""Describe agents: an uploaded archive (`code`), or a model with instructions and tools (`llm`)."""

import re
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Protocol, Self

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain.agents.task_rules import AgentOptions, TaskRecall, TaskRules
from domain.llms import ModelOptions, ToolSpec
from domain.schemas import JsonSchema
from domain.shared.exposure import Door, Exposure
from domain.shared.pages import Listing, Page
from domain.shared.patches import collect_sent_fields
from domain.shared.tags import Metadata, Tags

AgentStatus = Literal["draft", "building", "ready", "failed", "archived"]
AgentKind = Literal["code", "llm"]
ConcurrencyPolicy = Literal["queue", "reject", "replace"]

AGENT_NAME_PATTERN: Final = re.compile(r"[^\x00-\x1f/\\]{1,128}")
RESERVED_AGENT_NAMES: Final = frozenset({".", "..", "executions"})
MAX_TIMEOUT_SECONDS: Final = 3600
# A slug may match several agents; at most this many are looked at.
MAX_SLUG_MATCHES: Final = 50
MAX_AGENT_STEPS: Final = 100
AgentName = Annotated[str, Meta(min_length=1, max_length=128, examples=["my-agent"])]
MaxConcurrency = Annotated[int, Meta(ge=1, le=100_000, examples=[4])]
Description = Annotated[str, Meta(max_length=10_000, pattern=r"^[^\x00]*$", examples=["My AI agent"])]
AgentText = Annotated[str, Meta(max_length=100_000, pattern=r"^[^\x00]*$")]
Variables = Annotated[
    dict[str, str],
    Meta(
        description="Environment variables of the agent's process, in place of those of its manifest.",
        examples=[{"LOG_LEVEL": "debug"}],
    ),
]
EntityReference = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
ModelReference = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[^\x00]*$")]
Temperature = Annotated[float, Meta(ge=0, le=2, examples=[0.7])]
MaxTokens = Annotated[int, Meta(ge=1, le=1_000_000, examples=[2000])]
ContextTokens = Annotated[
    int,
    Meta(
        ge=256,
        le=10_000_000,
        description="Tokens of a prompt, estimated at four bytes each; the oldest turns are left out first.",
        examples=[32_000],
    ),
]
MaxSteps = Annotated[int, Meta(ge=1, le=MAX_AGENT_STEPS, description="Maximum number of model calls in one run.")]
TimeoutSeconds = Annotated[int, Meta(ge=1, le=MAX_TIMEOUT_SECONDS, description="Seconds of wall time.", examples=[300])]
ToolReferences = Annotated[
    list[EntityReference], Meta(max_length=64, examples=[["filesystem_read", "filesystem_write"]])
]

# The fields that make an agent a model agent. A child inherits those that it does not set.
LLM_FIELDS: Final = (
    *("role", "goal", "backstory", "instructions", "provider", "model", "fallback_model", "temperature"),
    *("max_tokens", "max_steps", "timeout", "allow_delegation", "verbose", "template", "template_id"),
    *("input_schema", "output_schema"),
    *("context_tokens", "summary"),
)


class Agent(msgspec.Struct, kw_only=True):
    """Show an agent.

    Executions of a `code` agent run the version `current_version_id`; its `status` follows its builds. At most
    `max_concurrency` executions run at the same time. `concurrency_policy` decides about the next one: it waits
    (`queue`), is refused with 409 (`reject`), or replaces the oldest unfinished one, which is cancelled (`replace`).
    Without a `max_concurrency` there is no limit. `env` are variables that its executions get in place of those of the
    version's manifest, or besides them; executions keep those of their start. The payload of a run fits the
    `input_schema`, and its result the `output_schema`; without them those of the version count, or of the `parent`.
    Lists leave out schemas of more than 16 KiB.
    `expose` names the doors that show the agent to other programs: `mcp` makes it a tool of the MCP server.

    A model agent (`llm`) shows its own fields; null fields are inherited from its `parent` (`?resolved=true` shows the
    effective values), and its tools are added to those of its parent. `max_tokens` limits one answer, `max_steps` the
    model calls in one run, and `timeout` is in seconds. `context_tokens` limits what the model is sent of a
    conversation; with `summary`, it sums up what is left out of a thread. `fallback_model` is called if `model` does
    not answer. The text of the `template` comes before the `instructions`; `template_text` is set only with the
    effective values.
    """

    id: str
    name: str
    description: str | None
    kind: AgentKind
    user_id: str
    tenant_id: str
    status: AgentStatus
    current_version_id: str | None
    max_concurrency: int | None = None
    concurrency_policy: ConcurrencyPolicy = "queue"
    role: str | None = None
    goal: str | None = None
    backstory: str | None = None
    instructions: str | None = None
    provider: str | None = None
    model: str | None = None
    fallback_model: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    max_steps: int | None = None
    timeout: int | None = None
    tools: list[str] = msgspec.field(default_factory=list)
    allow_delegation: bool | None = None
    verbose: bool | None = None
    context_tokens: int | None = None
    summary: bool | None = None
    template: str | None = None
    template_id: str | None = None
    template_text: str | None = None
    parent: str | None = None
    parent_id: str | None = None
    env: dict[str, str] | None = None
    tags: list[str] = msgspec.field(default_factory=list)
    metadata: dict[str, Any] | None = None
    input_schema: dict[str, Any] | None = None
    output_schema: dict[str, Any] | None = None
    expose: list[Door] = msgspec.field(default_factory=list)
    created_at: datetime
    updated_at: datetime


def build_unlisted_agent(name: str, user_id: str, tenant_id: str, at: datetime, **more: Any) -> Agent:
    """Build a model agent for a single run, which is not stored and has no id."""
    return Agent(
        id="",
        name=name,
        description=None,
        kind="llm",
        user_id=user_id,
        tenant_id=tenant_id,
        status="ready",
        current_version_id=None,
        created_at=at,
        updated_at=at,
        **more,
    )


class CrewAgent(Agent, kw_only=True):
    """Describe a model agent of a crew."""

    crew_options: AgentOptions | None = None

    @classmethod
    def from_agent(cls, agent: Agent, **more: Any) -> Self:
        """Return a resolved agent as one of this kind."""
        kind = CrewAgent if isinstance(agent, CrewAgent) else Agent
        return cls(**{name: getattr(agent, name) for name in kind.__struct_fields__}, **more)


class AgentSpec(CrewAgent, kw_only=True):
    """Describe a model agent for one run, with all inherited fields.

    It may also delegate to its `team` by name; a `manager` must do so before it answers. `answer_schema` is the JSON
    Schema of its answer, which is then decoded. `max_rpm` limits the model calls per minute of the run's plan. The
    answer is also written to `output_file` in the run's workspace, once it has passed the `rules`. With `recall` the
    task is given with what its crew knows. `options` are those
    of this run and come before the agent's own; `caller_instructions` follow the agent's. `client_tools` are shown to
    the model beside the agent's: a call of one of them ends the run, and the caller makes it.
    """

    team: list[CrewAgent] = msgspec.field(default_factory=list)
    manager: bool = False
    answer_schema: dict[str, Any] | None = None
    max_rpm: int | None = None
    output_file: str | None = None
    options: ModelOptions | None = None
    caller_instructions: str | None = None
    client_tools: list[ToolSpec] = msgspec.field(default_factory=list)
    rules: TaskRules | None = None
    recall: TaskRecall | None = None

    @property
    def expected_schema(self) -> dict[str, Any] | None:
        """The JSON Schema of this run's answer: that of its task, else the agent's own."""
        return self.output_schema if self.answer_schema is None else self.answer_schema


class ModelAgentFields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Set the fields of a model agent. `llm` is another name for `model`.

    `model` names an entry of `/models`, or with `provider` a model of that provider; `template` one of `/templates`.
    """

    role: AgentText | None | UnsetType = UNSET
    goal: AgentText | None | UnsetType = UNSET
    backstory: AgentText | None | UnsetType = UNSET
    instructions: AgentText | None | UnsetType = UNSET
    provider: EntityReference | None | UnsetType = UNSET
    model: ModelReference | None | UnsetType = UNSET
    llm: ModelReference | None | UnsetType = UNSET
    fallback_model: ModelReference | None | UnsetType = UNSET
    temperature: Temperature | None | UnsetType = UNSET
    max_tokens: MaxTokens | None | UnsetType = UNSET
    max_steps: MaxSteps | None | UnsetType = UNSET
    timeout: TimeoutSeconds | None | UnsetType = UNSET
    tools: ToolReferences | UnsetType = UNSET
    allow_delegation: bool | None | UnsetType = UNSET
    verbose: bool | None | UnsetType = UNSET
    context_tokens: ContextTokens | None | UnsetType = UNSET
    summary: bool | None | UnsetType = UNSET
    template: EntityReference | None | UnsetType = UNSET
    parent: EntityReference | None | UnsetType = UNSET

    def collect_model_fields(self) -> dict[str, Any]:
        """Return the fields of a model agent that were sent, by name."""
        sent = collect_sent_fields(self)
        return {name: value for name, value in sent.items() if name in ModelAgentFields.__struct_fields__}


class NewAgent(ModelAgentFields, kw_only=True, forbid_unknown_fields=True):
    """Create an agent. The name is unique in the tenant and can be used in every path that takes an agent.

    With any model field it becomes a model agent; without one it waits for an uploaded archive.
    """

    name: AgentName
    description: Description | None = None
    max_concurrency: MaxConcurrency | None = None
    concurrency_policy: ConcurrencyPolicy = "queue"
    env: Variables | None = None
    tags: Tags | None = None
    metadata: Metadata | None = None
    input_schema: JsonSchema | None = None
    output_schema: JsonSchema | None = None
    expose: Exposure = []


class PatchAgent(ModelAgentFields, kw_only=True, forbid_unknown_fields=True):
    """Change an agent. The status `archived` stops new executions; `ready` restores an archived agent.

    `env`, `tags` and `metadata` replace what was set before; null removes all of it. With a schema of null, that of
    the version or of the parent counts again.
    """

    name: AgentName | UnsetType = UNSET
    description: Description | None | UnsetType = UNSET
    status: Literal["archived", "ready"] | UnsetType = UNSET
    max_concurrency: MaxConcurrency | None | UnsetType = UNSET
    concurrency_policy: ConcurrencyPolicy | UnsetType = UNSET
    env: Variables | None | UnsetType = UNSET
    tags: Tags | None | UnsetType = UNSET
    metadata: Metadata | None | UnsetType = UNSET
    input_schema: JsonSchema | None | UnsetType = UNSET
    output_schema: JsonSchema | None | UnsetType = UNSET
    expose: Exposure | UnsetType = UNSET


class AgentFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Select agents of a list: children of the agent `parent`, with all `tags` and members `key:value` of metadata."""

    status: AgentStatus | None = None
    parent: str | None = None
    tags: list[str] = []
    metadata: list[str] = []


class Agents(Protocol):
    """Store the agents of the bound tenant."""

    async def add(self, agent: Agent) -> bool: ...
    async def find(self, reference: str, lock: bool | Literal["share"] = False) -> Agent | None: ...
    async def list_by_slug(self, slug: str) -> list[Agent]:
        """List at most `MAX_SLUG_MATCHES` agents whose name has this slug (see `domain.shared.names.make_slug`)."""
        ...

    async def list_page(self, page: Page, filters: AgentFilter) -> Listing[Agent]:
        """List agents; `filters.parent` is an id."""
        ...

    async def save(self, agent: Agent) -> bool: ...
    async def list_children(self, agent_id: str) -> list[Agent]: ...
    async def delete(self, agent_id: str, now: datetime) -> None: ...
