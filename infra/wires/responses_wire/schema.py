"""Define a request for a response as OpenAI's clients send it, without the fields that have no effect."""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from domain.llms import ChatMessage, ReasoningEffort
from infra.wires.common import AnswerRequest

MAX_INPUT_ITEMS: Final = 4096
MAX_TOOLS: Final = 128
_Word = Annotated[str, Meta(min_length=1, max_length=256)]
_ToolName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class TextFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Choose between text and JSON for the answer. Name, description and schema belong to `json_schema`."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: _ToolName | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class TextSettings(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Hold the settings of the answer's text. `medium` is how verbose a model is anyway."""

    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningSettings(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Hold the settings of the reasoning. `generate_summary` is an older name of `summary`."""

    effort: ReasoningEffort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class FunctionTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Describe a function to call. The provider is asked for arguments that fit the schema with or without `strict`."""

    type: Literal["function"]
    name: _ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    cache_control: Any = None


class MessageItem(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Hold a message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Any]


class FunctionCallItem(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Hold a call that a model asked for earlier. Some clients send its arguments parsed."""

    call_id: _Word
    name: _Word
    arguments: str | dict[str, Any]


class FunctionOutputItem(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Hold the result of a call."""

    call_id: _Word
    output: str | list[Any]


class ReasoningInputItem(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Hold reasoning of an earlier answer, as this wire sealed it."""

    encrypted_content: str | None = None


class StreamSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Choose what a stream includes. Obfuscation is ignored: the stream does not leave the machine."""

    include_obfuscation: bool = False


class ResponseBody(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Hold the body of a request. Items, tools and `tool_choice` have too many shapes for a type."""

    model: str
    input: str | Annotated[list[Any], Meta(min_length=1, max_length=MAX_INPUT_ITEMS)]
    instructions: str | None = None
    previous_response_id: _Word | None = None
    tools: Annotated[list[Any], Meta(max_length=MAX_TOOLS)] = []
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_output_tokens: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    text: TextSettings = msgspec.field(default_factory=TextSettings)
    reasoning: ReasoningSettings | None = None
    service_tier: _Word | None = None
    top_k: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    store: bool = True
    stream: bool = False
    stream_options: StreamSettings | None = None


class ResponseRequest(AnswerRequest, frozen=True, kw_only=True):
    """Hold a parsed request for a response.

    `echo` are the fields that a response repeats. `new_messages` are those of this request alone, without its
    instructions, as a later request may continue from them; `size` counts the bytes that they take.
    """

    echo: dict[str, Any]
    new_messages: tuple[ChatMessage, ...]
    size: int
    previous_response_id: str | None
    is_stored: bool
