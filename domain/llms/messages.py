"""Describe calls of language models and their answers, in the terms that all providers share."""

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

import msgspec

from domain.llms.content import CacheTtl, MessagePart
from domain.shared.secrets import Secret

MessageRole = Literal["system", "user", "assistant", "tool"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
# The OpenAI API over which a model is called.
ModelApi = Literal["responses", "chat"]
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
ModelErrorKind = Literal[
    "rate_limited",  # 429: ends on its own, maybe after `retry_after`
    "unavailable",  # 5xx or no answer: ends on its own
    "timeout",  # no answer, or no next part, in time
    "cut_off",  # the answer ended early
    "malformed",  # the answer breaks the provider's protocol
    "refused",  # 4xx: the same request will be refused again
    "unauthorized",  # the key is missing or not accepted
    "not_allowed",  # the address is one that must not be reached from here
]
TRANSIENT_ERROR_KINDS: Final[frozenset[str]] = frozenset(
    {"rate_limited", "unavailable", "timeout", "cut_off", "malformed"}
)


class ModelToolCall(msgspec.Struct, frozen=True, kw_only=True):
    """Describe a tool call that a model requests. `arguments` is JSON text as the model wrote it, valid or not."""

    id: str
    name: str
    arguments: str


class ProviderParts(msgspec.Struct, frozen=True, kw_only=True):
    """Hold an answer in its provider's format, with reasoning that the provider needs back: signed, sealed, or by id.

    `writer` names the provider and model that wrote it; the parts are sent to no other. They are in order `{"text"}`,
    `{"call"}` with the call's index, and `{"item"}`, whose content only `infra.llm` knows.
    """

    writer: str
    parts: tuple[dict[str, Any], ...]


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """Describe one message of a conversation.

    `tool_call_id`, `name` and `is_error` belong to the role `tool`; `tool_calls` and `provider_parts` to the role
    `assistant`. A message of a user or a tool with images has `parts`, and `content` is their text; so has one with
    marks for the provider's cache within it. `cache` is a mark at its end.
    """

    role: MessageRole
    content: str = ""
    parts: tuple[MessagePart, ...] = ()
    cache: CacheTtl | None = None
    tool_calls: tuple[ModelToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    is_error: bool = False
    provider_parts: ProviderParts | None = None


class ToolSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Describe a tool as a model sees it.

    `parameters` is a JSON Schema of type object; the name matches `[A-Za-z0-9_-]{1,64}`. With `cache`, the provider is
    to cache the tools up to this one.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    cache: CacheTtl | None = None


class ModelTarget(msgspec.Struct, frozen=True, kw_only=True):
    """Describe the model to call. `name` is its name in the registry, `model` the provider's name for it.

    Without a `base_url` or an `api`, the provider's default is used. `price` is in dollars per million tokens, if set
    by hand.
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
    """Set a price in US dollars per million tokens. Without `cached_input`, cached prompt tokens cost the same."""

    input: float
    output: float
    cached_input: float | None = None


class ThinkingOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Set whether a model thinks before it answers, for at most `max_tokens`, and how much effort it makes.

    `adaptive` leaves it to the model for how long; None is the model's default. `display` is Anthropic's: whether the
    text is shown. `summary` is OpenAI's: how much of it is shown.
    """

    mode: Literal["enabled", "adaptive", "disabled"] | None = None
    max_tokens: int | None = None
    display: Literal["summarized", "omitted"] | None = None
    effort: ReasoningEffort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class ModelOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Set how the model answers. None means the provider's default. `schema` requests JSON of that JSON Schema.

    `allowed_tools` are the tools that `tool_choice` is about, of those that the model is shown; None is all. `cache`
    has the provider cache the conversation so far. With `must_apply`, a call whose model cannot apply an option is
    refused; otherwise the option is left out.
    """

    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, int] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    service_tier: str | None = None
    tool_choice: Literal["auto", "none", "required"] = "auto"
    allowed_tools: tuple[str, ...] | None = None
    parallel_tool_calls: bool | None = None
    schema: dict[str, Any] | None = None
    thinking: ThinkingOptions | None = None
    cache: CacheTtl | None = None
    must_apply: bool = False

    def rename_tools(self, names: Mapping[str, str]) -> "ModelOptions":
        """Return the options with other names of the tools."""
        if self.allowed_tools is None:
            return self
        return msgspec.structs.replace(self, allowed_tools=tuple(names[name] for name in self.allowed_tools))


class ModelCall(msgspec.Struct, frozen=True, kw_only=True):
    """Describe one call of a model. `timeout` is in seconds, for the next part of the answer.

    `on_sent` is called once the request is sent: from then on its prompt has to be paid.
    """

    target: ModelTarget
    messages: tuple[ChatMessage, ...]
    tools: tuple[ToolSpec, ...] = ()
    options: ModelOptions = ModelOptions()
    timeout: float = 60.0
    on_sent: Callable[[], None] | None = None


class ModelUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Count the tokens of one call. The prompt's include cached tokens, the completion's include reasoning tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Return the tokens of prompt and completion."""
        return self.prompt_tokens + self.completion_tokens


class TextDelta(msgspec.Struct, frozen=True):
    """Hold a piece of the answer's text."""

    text: str


class ReasoningDelta(msgspec.Struct, frozen=True):
    """Hold a piece of a model's reasoning, which is not part of its answer."""

    text: str


class ReasoningItem(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a piece of reasoning that is complete, as its provider needs it back: an item of `ProviderParts`.

    The text of it, if it is readable, came before in `ReasoningDelta`s.
    """

    writer: str
    item: dict[str, Any]


class ToolCallDelta(msgspec.Struct, frozen=True, kw_only=True):
    """Hold a piece of a tool call; `id` and `name` come with the first piece of call number `index`."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class ReportedUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Count the tokens so far as the provider reports them; None for a missing or impossible number."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class ReplyNotice(msgspec.Struct, frozen=True):
    """Describe an irregularity of an answer that is still valid, for the log of the run."""

    message: str


class ModelReply(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the whole answer, always the last part.

    `usage` is None if the provider did not report all of it. `stop_sequence` is the one of the options at which the
    model stopped, if the provider tells.
    """

    message: ChatMessage
    finish: FinishReason
    usage: ModelUsage | None
    stop_sequence: str | None = None


ReplyPart = TextDelta | ReasoningDelta | ReasoningItem | ToolCallDelta | ReportedUsage | ReplyNotice | ModelReply


class ModelError(Exception):
    """Report that a call of a model failed. `retry_after` is in seconds, if the provider sent it.

    `tool` is the name of the tool that the provider refuses, if it names one. `option` is the field of `ModelOptions`
    that the model cannot apply, `image`, or `model` if it does not serve such calls, if that is why it is not called.
    """

    def __init__(self, kind: ModelErrorKind, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.kind, self.message, self.retry_after = kind, message, retry_after
        self.tool: str | None = None
        self.option: str | None = None

    @property
    def is_transient(self) -> bool:
        """Return whether the same call is likely to succeed later."""
        return self.kind in TRANSIENT_ERROR_KINDS


class ToolFailed(Exception):
    """Report that a tool call failed. The message is for the model that called it, and for the log."""
