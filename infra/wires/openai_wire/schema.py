"""Define a request for a completion as OpenAI's clients send it, without the fields that have no effect."""

from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from domain.llms import ReasoningEffort
from infra.wires.common import AnswerRequest

MAX_MESSAGES: Final = 4096
MAX_TOOLS: Final = 128
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Tokens = Annotated[int, Meta(ge=1, le=2**31 - 1)]
_Word = Annotated[str, Meta(min_length=1, max_length=256)]
_TokenNumber = Annotated[str, Meta(pattern=r"^[0-9]{1,9}$")]
_ToolName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


class CalledFunction(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Hold the function of a call that a model asked for. Some clients send its arguments parsed."""

    name: _Word
    arguments: str | dict[str, Any] = ""


class RequestedCall(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Hold a call that a model asked for in an earlier message."""

    id: _Word
    function: CalledFunction
    type: Literal["function"] = "function"


class RequestMessage(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Hold a message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Any] | None = None
    refusal: str | None = None
    tool_calls: list[RequestedCall] | None = None
    tool_call_id: str | None = None
    cache_control: Any = None


class OfferedFunction(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Describe a function to call. The provider is asked for arguments that fit the schema with or without `strict`."""

    name: _ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    cache_control: Any = None


class OfferedTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Hold a tool that the model may call."""

    type: Literal["function"]
    function: OfferedFunction
    cache_control: Any = None


class AnswerSchema(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Hold the schema of the answer."""

    name: _ToolName
    description: str | None = None
    schema: dict[str, Any] = {}
    strict: bool | None = None


class AnswerFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Choose between text and JSON for the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: AnswerSchema | None = None


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Choose what a stream includes. Obfuscation is ignored: the stream does not leave the machine."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Hold the body of a request. `tool_choice` has too many shapes for a type."""

    model: str
    messages: Annotated[list[RequestMessage], Meta(min_length=1, max_length=MAX_MESSAGES)]
    tools: Annotated[list[OfferedTool], Meta(max_length=MAX_TOOLS)] = []
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_tokens: _Tokens | None = None
    max_completion_tokens: _Tokens | None = None
    stop: str | Annotated[list[str], Meta(max_length=16)] | None = None
    seed: int | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    top_k: Annotated[int, Meta(ge=1, le=10_000_000)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=2)] | None = None
    logit_bias: dict[_TokenNumber, Annotated[int, Meta(ge=-100, le=100)]] = {}
    reasoning_effort: ReasoningEffort | None = None
    verbosity: Literal["low", "medium", "high"] | None = None
    service_tier: _Word | None = None
    response_format: AnswerFormat | None = None
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()


class CompletionRequest(AnswerRequest, frozen=True, kw_only=True):
    """Hold a parsed request for a completion."""

    include_usage: bool
