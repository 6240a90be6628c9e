"""What an agent is: an uploaded archive (`code`), or a model with instructions and tools (`llm`)."""

import re
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Protocol

import msgspec
from msgspec import UNSET, Meta, UnsetType

from domain.shared.pages import Listing, Page

AgentStatus = Literal["draft", "building", "ready", "failed", "archived"]
AgentKind = Literal["code", "llm"]
ConcurrencyPolicy = Literal["queue", "reject", "replace"]

AGENT_NAME_PATTERN: Final = re.compile(r"[^\x00-\x1f/\\]{1,128}")
RESERVED_AGENT_NAMES: Final = frozenset({".", "..", "executions"})
MAX_TIMEOUT_SECONDS: Final = 3600
# Agents that one slug finds, among which there is the one that is meant.
MAX_SLUG_MATCHES: Final = 50
MAX_AGENT_STEPS: Final = 100
AgentName = Annotated[str, Meta(min_length=1, max_length=128, examples=["my-agent"])]
MaxConcurrency = Annotated[int, Meta(ge=1, le=100_000, examples=[4])]
Description = Annotated[str, Meta(max_length=10_000, pattern=r"^[^\x00]*$", examples=["My AI agent"])]
AgentText = Annotated[str, Meta(max_length=100_000, pattern=r"^[^\x00]*$")]
EntityReference = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
ModelReference = Annotated[str, Meta(min_length=1, max_length=256, pattern=r"^[^\x00]*$")]
Temperature = Annotated[float, Meta(ge=0, le=2, examples=[0.7])]
MaxTokens = Annotated[int, Meta(ge=1, le=1_000_000, examples=[2000])]
MaxSteps = Annotated[int, Meta(ge=1, le=MAX_AGENT_STEPS, description="Calls of the model in one run at most.")]
TimeoutSeconds = Annotated[int, Meta(ge=1, le=MAX_TIMEOUT_SECONDS, description="Seconds of wall time.", examples=[300])]
ToolReferences = Annotated[
    list[EntityReference], Meta(max_length=64, examples=[["filesystem_read", "filesystem_write"]])
]

# The fields that make an agent a model agent, and which a child takes from its parent where it has none.
LLM_FIELDS: Final = (
    *("role", "goal", "backstory", "instructions", "provider", "model", "fallback_model", "temperature"),
    *("max_tokens", "max_steps", "timeout", "allow_delegation", "verbose", "template", "template_id"),
)


class Agent(msgspec.Struct, kw_only=True):
    """An agent. `current_version_id` is what an execution of a `code` agent runs; its `status` follows its builds.

    At most `max_concurrency` of its executions run at the same time. What happens to one more is
    `concurrency_policy`: it waits (`queue`), is refused with 409 (`reject`), or the oldest that has not
    ended is cancelled for it (`replace`). Without a `max_concurrency` there is no limit.

    A model agent (`llm`) shows its own fields; null ones are its `parent`'s (`?resolved=true` shows what is in
    force), and its tools are added to those of its parent. `max_tokens` bounds one answer, `max_steps` the calls of
    the model in one run, `timeout` is in seconds. `fallback_model` is asked when `model` does not answer. What a
    `template` says comes before the `instructions`; the text itself, `template_text`, is there with what is in force.
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
    template: str | None = None
    template_id: str | None = None
    template_text: str | None = None
    parent: str | None = None
    parent_id: str | None = None
    created_at: datetime
    updated_at: datetime


def build_unlisted_agent(name: str, user_id: str, tenant_id: str, at: datetime, **more: Any) -> Agent:
    """A model agent of one run alone: it is in no catalogue, and has no id."""
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


class AgentSpec(Agent, kw_only=True):
    """A model agent as one run has it, with all that it inherits.

    It may `delegate` to its `team` besides, by name; a `manager` must do so before it answers. `answer_schema` is the
    JSON Schema of its answer, which is decoded then. `max_rpm` bounds the calls of models in a minute of the plan that
    the run belongs to. The answer is written to `output_file` of the run's workspace too.
    """

    team: list[Agent] = msgspec.field(default_factory=list)
    manager: bool = False
    answer_schema: dict[str, Any] | None = None
    max_rpm: int | None = None
    output_file: str | None = None

    @classmethod
    def from_agent(cls, agent: Agent, **more: Any) -> "AgentSpec":
        """The spec of an agent that is resolved."""
        return cls(**{name: getattr(agent, name) for name in Agent.__struct_fields__}, **more)


class ModelAgentFields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What only a model agent has. `llm` is another name of `model`.

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
    template: EntityReference | None | UnsetType = UNSET
    parent: EntityReference | None | UnsetType = UNSET

    def collect_sent_fields(self) -> dict[str, Any]:
        """The fields that were sent, by name."""
        values = {name: getattr(self, name) for name in ModelAgentFields.__struct_fields__}
        return {name: value for name, value in values.items() if value is not UNSET}


class NewAgent(ModelAgentFields, kw_only=True, forbid_unknown_fields=True):
    """What to create. The name is unique in the tenant and works wherever a path takes an agent.

    With any field of a model agent it is one; without, it waits for an archive to be uploaded.
    """

    name: AgentName
    description: Description | None = None
    max_concurrency: MaxConcurrency | None = None
    concurrency_policy: ConcurrencyPolicy = "queue"


class PatchAgent(ModelAgentFields, kw_only=True, forbid_unknown_fields=True):
    """What to change. `archived` stops new executions, `ready` brings an archived agent back."""

    name: AgentName | UnsetType = UNSET
    description: Description | None | UnsetType = UNSET
    status: Literal["archived", "ready"] | UnsetType = UNSET
    max_concurrency: MaxConcurrency | None | UnsetType = UNSET
    concurrency_policy: ConcurrencyPolicy | UnsetType = UNSET


class Agents(Protocol):
    """The agents of the bound tenant."""

    async def add(self, agent: Agent) -> bool: ...
    async def find(self, reference: str, lock: bool | Literal["share"] = False) -> Agent | None: ...
    async def list_by_slug(self, slug: str) -> list[Agent]:
        """Those whose name makes this slug (see `domain.shared.names.make_slug`), `MAX_OF_SLUG` at most."""
        ...

    async def list_page(self, page: Page, status: AgentStatus | None, parent_id: str | None) -> Listing[Agent]: ...
    async def save(self, agent: Agent) -> bool: ...
    async def list_children(self, agent_id: str) -> list[Agent]: ...
    async def delete(self, agent_id: str, now: datetime) -> None: ...
