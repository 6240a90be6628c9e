"""What is said to language models and what they answer, in the terms that all providers share."""

from collections.abc import Callable
from typing import Any, Final, Literal

import msgspec

from domain.shared.secrets import Secret

MessageRole = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
# Which of OpenAI's two interfaces a model is asked over.
ModelApi = Literal["responses", "chat"]
ModelErrorKind = Literal[
    "rate_limited",  # 429: passes by itself, maybe after `retry_after`
    "unavailable",  # 5xx, or nobody answers: passes by itself
    "timeout",  # no answer, or no next part, in time
    "cut_off",  # the answer ended in the middle
    "malformed",  # the answer is not what the provider's protocol says
    "refused",  # 4xx: the same request will be refused again
    "unauthorized",  # the key is missing or not accepted
    "not_allowed",  # the address is one that must not be reached from here
]
TRANSIENT_ERROR_KINDS: Final[frozenset[str]] = frozenset(
    {"rate_limited", "unavailable", "timeout", "cut_off", "malformed"}
)


class ModelToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that a model asks for. `arguments` is JSON text as the model wrote it, valid or not."""

    id: str
    name: str
    arguments: str


class ProviderParts(msgspec.Struct, frozen=True, kw_only=True):
    """An answer as its provider wrote it, with reasoning that it wants back to go on: signed, sealed, or by id.

    `writer` is who wrote it: nobody else is given these. What the parts hold is the business of `infra.llm` alone.
    """

    writer: str
    parts: tuple[dict[str, Any], ...]


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One message. `tool_call_id` and `name` belong to role `tool`, `tool_calls` and the last to role `assistant`."""

    role: MessageRole
    content: str = ""
    tool_calls: tuple[ModelToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    provider_parts: ProviderParts | None = None


class ToolSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A tool as a model sees it. `parameters` is a JSON Schema of type object; the name fits `[A-Za-z0-9_-]{1,64}`."""

    name: str
    description: str
    parameters: dict[str, Any]


class ModelTarget(msgspec.Struct, frozen=True, kw_only=True):
    """A model to call. `name` is its name in the registry, `model` the provider's own name for it.

    `base_url` None means the provider's usual one. `price` is dollars per million tokens where it was set by hand.
    `api` None leaves to the provider's habit which interface is used.
    """

    name: str
    provider: str
    model: str
    base_url: str | None = None
    api_key: Secret | None = None
    parameters: dict[str, Any] = {}
    price: "ModelPrice | None" = None
    api: ModelApi | None = None


class ModelPrice(msgspec.Struct, frozen=True, kw_only=True):
    """US dollars per million tokens. Cached prompt tokens cost as much as others unless told."""

    input: float
    output: float
    cached_input: float | None = None


class ModelOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to answer. None leaves it to the provider. `schema` asks for JSON of that JSON Schema."""

    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    tool_choice: Literal["auto", "none", "required"] = "auto"
    parallel_tool_calls: bool | None = None
    schema: dict[str, Any] | None = None


class ModelCall(msgspec.Struct, frozen=True, kw_only=True):
    """One call of a model. `timeout` is in seconds, for the next part of the answer.

    `on_sent` is called once the request has gone out: from then on its prompt is owed.
    """

    target: ModelTarget
    messages: tuple[ChatMessage, ...]
    tools: tuple[ToolSpec, ...] = ()
    options: ModelOptions = ModelOptions()
    timeout: float = 60.0
    on_sent: Callable[[], None] | None = None


class ModelUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of one call. Cached ones are part of the prompt's, reasoning ones part of the completion's."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion."""
        return self.prompt_tokens + self.completion_tokens


class TextDelta(msgspec.Struct, frozen=True):
    """A piece of the answer's text."""

    text: str


class ReasoningDelta(msgspec.Struct, frozen=True):
    """A piece of what a model thinks aloud. No part of its answer."""

    text: str


class ToolCallDelta(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of a tool call: `id` and `name` come with the first piece of call number `index`."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class ReportedUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of the call so far, as the provider reports them; None where it does not, or what it says cannot be."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class ReplyNotice(msgspec.Struct, frozen=True):
    """What was odd about an answer that counts all the same. For the log of the run."""

    message: str


class ModelReply(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer, always the last part. `usage` is None when the provider did not report all of it."""

    message: ChatMessage
    finish: FinishReason
    usage: ModelUsage | None


ReplyPart = TextDelta | ReasoningDelta | ToolCallDelta | ReportedUsage | ReplyNotice | ModelReply


class ModelError(Exception):
    """A model did not answer as it should. `retry_after` is in seconds, where the provider said so.

    `tool` is the name of the tool that the provider refuses, where it said which.
    """

    def __init__(self, kind: ModelErrorKind, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.kind, self.message, self.retry_after = kind, message, retry_after
        self.tool: str | None = None

    @property
    def is_transient(self) -> bool:
        """Whether the same call may well succeed later."""
        return self.kind in TRANSIENT_ERROR_KINDS


class ToolFailed(Exception):
    """A tool did not do what it was asked. The message is for the model that asked, and for the log."""
