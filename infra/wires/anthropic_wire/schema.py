"""Define a request for a message as Anthropic's clients send it, without the fields that have no effect."""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from domain.llms import ReasoningEffort
from infra.wires.common import AnswerRequest

MAX_MESSAGES: Final = 4096
MAX_TOOLS: Final = 128
_Word = Annotated[str, Meta(min_length=1, max_length=256)]
_Tokens = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class InputMessage(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Hold a message of the conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Any]


class ToolUseBlock(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Hold a call that a model asked for earlier."""

    id: _Word
    name: _Word
    input: dict[str, Any]
    cache_control: Any = None


class ToolResultBlock(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Hold the result of a call."""

    tool_use_id: _Word
    content: str | list[Any] = ""
    is_error: bool = False
    cache_control: Any = None


class ThinkingBlock(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Hold reasoning of an earlier answer, as this wire sealed it: in the signature, or as data if it has no words."""

    signature: str = ""
    data: str = ""


class InputTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Hold a tool that the model may call. The provider is asked for fitting arguments with or without `strict`."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    input_schema: dict[str, Any]
    description: str = ""
    strict: bool = False
    cache_control: Any = None


class ThinkingConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Choose whether the model thinks before it answers."""

    type: Literal["enabled", "adaptive", "disabled"]
    budget_tokens: Annotated[int, Meta(ge=1024)] | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Hold the schema of the answer."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Hold the settings of the answer."""

    format: OutputFormat | None = None
    effort: ReasoningEffort | None = None


class MessageBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Hold the body of a request. `tool_choice` has too many shapes for a type."""

    model: str
    max_tokens: _Tokens
    messages: Annotated[list[InputMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
    system: str | list[Any] = ""
    tools: Annotated[list[Any], Meta(max_length=MAX_TOOLS)] = []
    tool_choice: Any = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    stop_sequences: Annotated[list[str], Meta(max_length=16)] = []
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    service_tier: _Word | None = None
    cache_control: Any = None
    stream: bool = False


class MessageRequest(AnswerRequest, frozen=True, kw_only=True):
    """Hold a parsed request for a message. Thinking is shown only to clients that asked for it, as others do not
    expect such blocks."""

    shows_thinking: bool
