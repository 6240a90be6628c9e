"""Define how an agent does the tasks of a crew, beside what every model agent has."""

from typing import Final

import msgspec

DEFAULT_GUARDRAIL_RETRIES: Final = 3
# Times that a plan is written, for an agent that may refine it until it is ready.
DEFAULT_PLAN_ATTEMPTS: Final = 3


class AgentMcpServer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Name an MCP server by its URL, with all its tools or only `tool`. `secrets` name provider keys by header."""

    url: str
    headers: dict[str, str] = {}
    secrets: dict[str, str] = {}
    tool: str | None = None


class AgentOptions(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Hold how a crew's agent works in every task of its own.

    With `plan_attempts` it first writes a plan, at most that many times. `max_rpm` limits its model calls per minute.
    With `fits_context` messages that the model's context has no room for are shortened.
    """

    servers: list[AgentMcpServer] = []
    max_rpm: int | None = None
    plan_attempts: int | None = None
    fits_context: bool = True


class TaskRules(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Hold what an answer has to pass: a judge for each of the `guardrails`, and with `human_input` a person."""

    guardrails: list[str] = []
    guardrail_retries: int = DEFAULT_GUARDRAIL_RETRIES
    human_input: bool = False


class KnowledgeText(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Hold a text that a crew knows, or an uploaded file with one. `agent` is the only one that reads it, if set.

    It is read in parts of `chunk_size` characters, of which two overlap by `chunk_overlap`.
    """

    name: str
    content: str | None = None
    file_id: str | None = None
    agent: str | None = None
    chunk_size: int = 4_000
    chunk_overlap: int = 200


class TaskRecall(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Hold what is given with a task: parts of the knowledge of its plan, and what the crew remembers.

    At most `results` of each, if they are as similar to the `question` as the `threshold`. The answer is kept in
    `memory_scope`; memories of `memory_scopes` are read.
    """

    agent: str
    question: str = ""
    has_knowledge: bool = False
    results: int = 5
    threshold: float = 0.25
    crew_id: str | None = None
    memory_scope: str | None = None
    memory_scopes: list[str] = []
