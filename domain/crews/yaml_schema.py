"""Define the fields of agents and tasks, as CrewAI writes them."""

import re
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from domain.agents import (
    DEFAULT_PLAN_ATTEMPTS,
    AgentMcpServer,
    AgentOptions,
    AgentText,
    MaxSteps,
    MaxTokens,
    ModelReference,
    Temperature,
    TimeoutSeconds,
    ToolReferences,
)
from domain.crews.knowledge import KnowledgeConfig, KnowledgeSources
from domain.crews.schema import Reference, Rpm
from domain.schemas import JsonSchema
from domain.shared.errors import DomainError, InvalidField
from domain.tasks import ContextNames, OutputPath
from domain.tools import check_mcp_configuration

DEFAULT_DATE_FORMAT: Final = "%Y-%m-%d"
MAX_GUARDRAILS: Final = 10
MAX_MCP_SERVERS: Final = 16
MAX_INPUT_FILES: Final = 32
# The fields that mean a JSON Schema of the answer.
ANSWER_SCHEMA_FIELDS: Final = ("output_json", "output_pydantic", "response_model")
# No widths and flags: `%9999999Y` would make a text of ten million characters.
_DATE_FORMAT_PATTERN: Final = r"^(?:[^%\x00]|%[aAbBdHIjmMpSUwWxXcyYZ%])*$"
_URL_PATTERN: Final = re.compile(r"https?://", re.IGNORECASE)

TaskTitle = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[^\x00]*$")]
Guardrail = Annotated[str, Meta(min_length=1, max_length=10_000, pattern=r"^[^\x00]*$")]
Guardrails = Annotated[list[Guardrail], Meta(max_length=MAX_GUARDRAILS)]
GuardrailRetries = Annotated[int, Meta(ge=0, le=20)]
DateFormat = Annotated[str, Meta(min_length=1, max_length=100, pattern=_DATE_FORMAT_PATTERN)]
InputName = Annotated[str, Meta(min_length=1, max_length=100, pattern=r"^[^\x00/]*$")]
PlanAttempts = Annotated[int, Meta(ge=1, le=10)]
Retries = Annotated[int, Meta(ge=0, le=10)]


class McpReference(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Hold an MCP server as CrewAI writes it. `secrets` name provider keys by header, which CrewAI has not."""

    url: Annotated[str, Meta(min_length=1, max_length=2048)]
    headers: dict[str, str] = {}
    secrets: dict[str, str] = {}
    streamable: bool = True
    cache_tools_list: bool = False
    tool_filter: None = None


class PlanningOptions(msgspec.Struct, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Hold CrewAI's `planning_config`. Only `max_attempts` has an effect; of the others the default is taken."""

    max_attempts: PlanAttempts | None = None
    reasoning_effort: Literal["medium"] = "medium"
    observe_steps: None = None
    max_steps: Literal[20] = 20
    max_replans: Literal[3] = 3
    max_step_iterations: Literal[15] = 15
    step_timeout: None = None
    llm: None = None
    system_prompt: None = None
    plan_prompt: None = None
    refine_prompt: None = None


class YamlAgent(msgspec.Struct, kw_only=True):
    """Hold an agent of `agents_yaml`. `llm` and `model` mean the same; `max_iter` limits the model calls per task,
    `max_execution_time` is in seconds. `planning` and a `planning_config` mean the same as `reasoning`.
    """

    role: AgentText | None = None
    goal: AgentText | None = None
    backstory: AgentText | None = None
    instructions: AgentText | None = None
    llm: ModelReference | None = None
    model: ModelReference | None = None
    fallback_model: ModelReference | None = None
    tools: ToolReferences = []
    allow_delegation: bool | None = None
    verbose: bool | None = None
    max_iter: MaxSteps | None = None
    max_execution_time: TimeoutSeconds | None = None
    temperature: Temperature | None = None
    max_tokens: MaxTokens | None = None
    max_rpm: Rpm | None = None
    max_retry_limit: Retries | None = None
    mcps: Annotated[list[str | McpReference], Meta(max_length=MAX_MCP_SERVERS)] = []
    inject_date: bool = False
    date_format: DateFormat = DEFAULT_DATE_FORMAT
    reasoning: bool = False
    planning: bool = False
    planning_config: PlanningOptions | None = None
    max_reasoning_attempts: PlanAttempts | None = None
    guardrail: Guardrail | None = None
    guardrail_max_retries: GuardrailRetries | None = None
    respect_context_window: bool = True
    memory: bool | None = None
    knowledge_sources: KnowledgeSources = []
    knowledge_config: KnowledgeConfig | None = None

    @property
    def options(self) -> AgentOptions:
        """How the agent works in each task. Errors: `invalid_field` for an address that cannot be one."""
        return AgentOptions(
            servers=[server for reference in self.mcps if (server := _read_server(reference)) is not None],
            max_rpm=self.max_rpm,
            plan_attempts=self._count_plans(),
            fits_context=self.respect_context_window,
        )

    @property
    def named_tools(self) -> list[str]:
        """The agent's tools, and the tenant's MCP servers in `mcps`: `notion#search` is the tool `notion/search`."""
        servers = [text.replace("#", "/", 1) for text in self.mcps if isinstance(text, str) and not _is_url(text)]
        return list(dict.fromkeys([*self.tools, *servers]))

    def _count_plans(self) -> int | None:
        if not (self.reasoning or self.planning or self.planning_config is not None):
            return None
        configured = self.planning_config.max_attempts if self.planning_config is not None else None
        return configured or self.max_reasoning_attempts or DEFAULT_PLAN_ATTEMPTS


class YamlTask(msgspec.Struct, kw_only=True):
    """Hold a task of `tasks_yaml`. `name` is its title; without one its key is used."""

    name: TaskTitle | None = None
    description: AgentText | None = None
    expected_output: AgentText | None = None
    agent: Reference | None = None
    context: ContextNames | None = None
    tools: ToolReferences = []
    async_execution: bool = False
    markdown: bool = False
    output_file: OutputPath | None = None
    human_input: bool = False
    guardrail: Guardrail | None = None
    guardrails: Guardrails | Guardrail = []
    guardrail_max_retries: GuardrailRetries | None = None
    max_retries: GuardrailRetries | None = None
    output_json: JsonSchema | None = None
    output_pydantic: JsonSchema | None = None
    response_model: JsonSchema | None = None
    input_files: Annotated[dict[InputName, OutputPath], Meta(max_length=MAX_INPUT_FILES)] = {}

    @property
    def rules(self) -> list[str]:
        """The guardrails of the task. As in CrewAI, `guardrails` come in place of `guardrail`."""
        listed = [self.guardrails] if isinstance(self.guardrails, str) else self.guardrails
        return list(listed) or ([self.guardrail] if self.guardrail is not None else [])


def _is_url(text: str) -> bool:
    return _URL_PATTERN.match(text) is not None


def _read_server(reference: str | McpReference) -> AgentMcpServer | None:
    """Return the server of a URL, None for one that is named. Errors: `invalid_field`."""
    tool = None
    if isinstance(reference, str):
        if not _is_url(reference):
            return None
        url, _, tool = reference.partition("#")
        reference = McpReference(url=url)
    if not reference.streamable:
        raise InvalidField("mcps", "with streamable false mean server-sent events, which is not spoken here.")
    try:
        check_mcp_configuration({"url": reference.url, "headers": reference.headers, "secrets": reference.secrets})
    except DomainError as error:
        place = error.errors[0].field.removeprefix("configuration.")
        raise InvalidField("mcps", f"{reference.url[:200]}: {place} {error.errors[0].message}") from None
    return AgentMcpServer(url=reference.url, headers=reference.headers, secrets=reference.secrets, tool=tool or None)


def list_task_fields(item: Any, written: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of an agent or a task that are set and not `written` yet, as YAML has them."""
    fields = {field.name: field for field in msgspec.structs.fields(type(item))}
    more = {name: getattr(item, name) for name in fields if name not in written}
    return {
        name: msgspec.to_builtins(value)
        for name, value in more.items()
        if value != (None if fields[name].default is msgspec.NODEFAULT else fields[name].default) and value != []
    }
