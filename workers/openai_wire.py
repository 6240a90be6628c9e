"""OpenAI's wire as the gateway speaks it: what is asked for becomes our shapes, our parts become chunks.

From platform.openai.com/docs/api-reference/chat. What has no effect here is refused by name rather than ignored.
"""

import re
import time
import uuid
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from domain.chat import CallPart, Message, ModelError, Options, Part, Reply, Text, ToolCall, ToolSpec, Usage
from domain.errors import DomainError
from domain.json_limits import JsonTooLarge, check_json
from domain.texts import mend_json

MAX_MESSAGES: Final = 4096
MAX_TOOLS: Final = 128
_NOTHING: Final[dict[str, Any]] = {"type": "object", "properties": {}}
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Tokens = Annotated[int, Meta(ge=1, le=2**31 - 1)]
_Word = Annotated[str, Meta(min_length=1, max_length=256)]


class Refused(Exception):
    """A request answered with an error. `again` tells the client whether to try once more; None leaves it to it."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        kind: str | None = None,
        again: bool | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.retry_after, self.again = status, retry_after, again
        usual = "invalid_request_error" if status < 500 else "server_error"
        self.body = {"error": {"message": message, "type": kind or usual, "param": param, "code": code}}

    @property
    def headers(self) -> dict[str, str]:
        """What tells the client whether and when to try again."""
        told = {} if self.again is None else {"x-should-retry": "true" if self.again else "false"}
        return told if self.retry_after is None else {**told, "Retry-After": f"{max(0.0, self.retry_after):g}"}


class _Called(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`parsed_arguments`, `index` and `parsed` below are what openai's library notes of an answer, and sends back."""

    name: _Word
    arguments: str
    parsed_arguments: Any = None


class _ToolCall(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    id: _Word
    function: _Called
    type: Literal["function"] = "function"
    index: int | None = None


class _Message(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[_ToolCall] | None = None
    tool_call_id: str | None = None
    name: str | None = None
    parsed: Any = None


class _Function(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`strict` asks for arguments that fit the schema, which is what the provider is given in either case."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Tool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    type: Literal["function"]
    function: _Function


class _Schema(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    schema: dict[str, Any] = {}
    strict: bool | None = None


class _Format(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: _Schema | None = None


class _StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    include_usage: bool = False


class _Request(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    model: str
    messages: Annotated[list[_Message], Meta(min_length=1, max_length=MAX_MESSAGES)]
    tools: Annotated[list[_Tool], Meta(min_length=1, max_length=MAX_TOOLS)] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    max_tokens: _Tokens | None = None
    max_completion_tokens: _Tokens | None = None
    stop: str | Annotated[list[str], Meta(min_length=1, max_length=16)] | None = None
    seed: int | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    response_format: _Format | None = None
    n: int = 1
    stream: bool = False
    stream_options: _StreamOptions | None = None


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A request for a completion, in our shapes."""

    model: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    options: Options
    stream: bool
    include_usage: bool


def asked(body: bytes) -> Asked:
    """What a request's body asks for. Errors: `Refused`."""
    try:
        check_json(body)
    except JsonTooLarge as error:
        raise Refused(400, f"The body {error.reason}") from None
    try:
        raw = msgspec.json.decode(mend_json(body))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise Refused(400, "The body is not JSON.") from None
    if not isinstance(raw, dict):
        raise Refused(400, "The body must be a JSON object.")
    # Clients that send null where they mean nothing are common.
    told = _given(raw)
    if isinstance(told.get("messages"), list):
        told["messages"] = [_given(one) if isinstance(one, dict) else one for one in told["messages"]]
    try:
        request = msgspec.convert(told, _Request)
    except msgspec.ValidationError as error:
        raise Refused(400, f"{error}.", param=_param(str(error))) from None
    except RecursionError:
        raise Refused(400, "The body nests too deep.") from None
    if request.n != 1:
        raise Refused(400, "`n` can only be 1 here.", param="n")
    if request.stream_options is not None and not request.stream:
        raise Refused(400, "`stream_options` is for requests with `stream` alone.", param="stream_options")
    return Asked(
        model=request.model,
        messages=_messages(request.messages),
        tools=_tools(request.tools or []),
        options=_options(request),
        stream=request.stream,
        include_usage=request.stream_options is not None and request.stream_options.include_usage,
    )


def _given(told: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in told.items() if value is not None}


def _param(problem: str) -> str | None:
    """The field that a validation error is about."""
    unknown = re.search(r"unknown field `([^`]*)`", problem)
    place = re.search(r"at `\$\.?([^`]*)`", problem)
    return ".".join(one.group(1) for one in (place, unknown) if one is not None) or None


def _messages(sent: list[_Message]) -> tuple[Message, ...]:
    made: list[Message] = []
    names: dict[str, str] = {}
    for number, one in enumerate(sent):
        where = f"messages[{number}]"
        if one.tool_calls is not None and one.role != "assistant":
            raise Refused(400, f"`{where}.tool_calls` is for messages of the assistant.", param=f"{where}.tool_calls")
        for field in ("tool_call_id", "name"):
            if getattr(one, field) is not None and one.role != "tool":
                raise Refused(400, f"`{where}.{field}` has no effect here.", param=f"{where}.{field}")
        if one.content is None and not one.tool_calls:
            raise Refused(400, f"`{where}.content` is missing.", param=f"{where}.content")
        if one.role == "tool" and one.tool_call_id not in names:
            raise Refused(
                400,
                f"`{where}.tool_call_id` must be the id of a tool call in a message before.",
                param=f"{where}.tool_call_id",
            )
        calls = tuple(
            ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
            for call in one.tool_calls or ()
        )
        names.update({call.id: call.name for call in calls})
        made.append(
            Message(
                role="system" if one.role == "developer" else one.role,
                content=_text(one.content, where),
                tool_calls=calls,
                tool_call_id=one.tool_call_id,
                # Some providers insist on it; OpenAI's wire leaves it to be found by the id.
                name=names[one.tool_call_id] if one.tool_call_id is not None else None,
            )
        )
    return tuple(made)


def _text(content: str | list[dict[str, Any]] | None, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for number, part in enumerate(content):
        if part.keys() != {"type", "text"} or part["type"] != "text" or not isinstance(part["text"], str):
            kind = str(part.get("type"))[:40]
            raise Refused(
                400,
                f"`{where}.content[{number}]` is {kind!r}; only text is taken here, as text or {{type, text}}.",
                param=f"{where}.content",
            )
    return "\n".join(part["text"] for part in content)


def _tools(sent: list[_Tool]) -> tuple[ToolSpec, ...]:
    made: list[ToolSpec] = []
    for number, tool in enumerate(sent):
        function, where = tool.function, f"tools[{number}].function"
        parameters = function.parameters or _NOTHING
        if parameters.get("type") != "object":
            raise Refused(
                400, f"`{where}.parameters` must be a JSON Schema of type object.", param=f"{where}.parameters"
            )
        if function.name in {one.name for one in made}:
            raise Refused(400, f"`{where}.name` is the name of two tools.", param=f"{where}.name")
        made.append(ToolSpec(name=function.name, description=function.description or "", parameters=parameters))
    return tuple(made)


def _options(request: _Request) -> Options:
    for field in ("tool_choice", "parallel_tool_calls"):
        if getattr(request, field) is not None and request.tools is None:
            raise Refused(400, f"`{field}` is for requests with `tools` alone.", param=field)
    if request.tool_choice not in (None, "auto", "none", "required"):
        raise Refused(400, "`tool_choice` must be auto, none or required; a single tool cannot be chosen here.")
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise Refused(400, "`max_tokens` and `max_completion_tokens` mean the same: give one.", param="max_tokens")
    stop = (request.stop,) if isinstance(request.stop, str) else request.stop
    return Options(
        temperature=request.temperature,
        max_tokens=request.max_tokens or request.max_completion_tokens,
        top_p=request.top_p,
        seed=request.seed,
        stop=None if stop is None else tuple(stop),
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        tool_choice=request.tool_choice or "auto",
        parallel_tool_calls=request.parallel_tool_calls,
        schema=_schema(request.response_format),
    )


def _schema(wanted: _Format | None) -> dict[str, Any] | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "object"}
    if wanted.json_schema is None:
        raise Refused(400, "`response_format.json_schema` is missing.", param="response_format")
    # Its name and description tell a model what is wanted; in a schema they are called so.
    told = _given({"title": wanted.json_schema.name, "description": wanted.json_schema.description})
    return {**told, **wanted.json_schema.schema}


class Writer:
    """Writes one answer, whole or in chunks."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked
        self._id, self._created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())

    def whole(self, reply: Reply) -> dict[str, Any]:
        """The answer as one object."""
        message: dict[str, Any] = {"role": "assistant", "content": reply.message.content}
        if reply.message.tool_calls:
            message["content"] = reply.message.content or None
            message["tool_calls"] = [
                {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for call in reply.message.tool_calls
            ]
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reply.finish}
        return {**self._head("chat.completion"), "choices": [choice], "usage": _usage(reply.usage)}

    def first(self) -> bytes:
        """What a stream begins with."""
        return self._chunk({"role": "assistant", "content": ""}, None)

    def part(self, part: Part) -> bytes:
        """A part as it came; nothing for what is no part of an answer, such as what a model thinks aloud."""
        if isinstance(part, Text):
            return self._chunk({"content": part.text}, None)
        if not isinstance(part, CallPart):
            return b""
        call: dict[str, Any] = {
            "index": part.index,
            "function": _given({"name": part.name}) | {"arguments": part.arguments},
        }
        if part.id is not None:
            call |= {"id": part.id, "type": "function"}
        return self._chunk({"tool_calls": [call]}, None)

    def last(self, reply: Reply) -> bytes:
        """What a stream ends with when it ends well."""
        told = self._chunk({}, reply.finish)
        if self._asked.include_usage:
            told += _event({**self._head("chat.completion.chunk"), "choices": [], "usage": _usage(reply.usage)})
        return told + b"data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, Any], finish: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        usage = {"usage": None} if self._asked.include_usage else {}
        return _event({**self._head("chat.completion.chunk"), "choices": [choice], **usage})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._asked.model}


def failed(refused: Refused) -> bytes:
    """What a stream ends with when it does not end well."""
    return _event(refused.body)


def _event(told: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(told) + b"\n\n"


def _usage(usage: Usage | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


def listed(name: str) -> dict[str, Any]:
    """A model in a list of models."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "paddock"}


def no_model(name: str) -> Refused:
    """The refusal of a model that the version does not name."""
    return Refused(
        404, f"The model {name[:256]!r} is not among the `models` of the manifest.", "model_not_found", "model"
    )


def refusal(error: Exception, model: str) -> Refused | None:
    """How a failed call is told to the agent; None for what is nobody's business but ours.

    A provider's own words are passed on only where they say what is wrong with the request: others may hold
    addresses, or a piece of a key.
    """
    if isinstance(error, ModelError):
        return _of_model(error, model)
    if isinstance(error, DomainError):
        if error.code == "budget_exceeded":
            return Refused(402, error.detail, error.code, kind=error.code, again=False)
        if error.code == "model_unavailable":
            return Refused(503, f"The model {model!r} cannot be reached now.", error.code)
        if error.code in ("not_found", "invalid_field"):
            words = f"There is no model {model!r} now: register it under /models."
            return Refused(404, words, "model_not_found", "model")
    return None


def _of_model(error: ModelError, model: str) -> Refused:
    match error.kind:
        case "rate_limited":
            words = f"The provider of {model!r} takes no more requests for now."
            return Refused(429, words, "rate_limit_exceeded", kind="requests", retry_after=error.retry_after)
        case "unavailable":
            return Refused(
                503, f"The model {model!r} cannot be reached now.", error.kind, retry_after=error.retry_after
            )
        case "timeout":
            return Refused(504, f"The model {model!r} did not answer in time.", error.kind)
        case "cut_off" | "malformed":
            return Refused(502, f"The answer of {model!r} broke off or could not be read.", error.kind)
        case "refused":
            return Refused(400, error.message, "refused_by_provider", again=False)
        case "unauthorized":
            words = (
                f"The provider of {model!r} does not accept the key that is kept for it. The agent's own key has no "
                "part in this: whoever operates this installation, or keeps its provider keys, must mend it."
            )
            return Refused(502, words, "provider_key_refused", again=False)
        case "not_allowed":
            words = f"The address of {model!r} is one that must not be reached from this installation."
            return Refused(502, words, "address_not_allowed", again=False)
