"""What a request's body asks for, in our shapes."""

import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from domain.llms import ChatMessage, ModelOptions, ModelToolCall, ToolSpec
from domain.shared.json_limits import JsonTooLarge, check_json
from domain.shared.unicode_text import repair_json
from workers.run.openai_wire.errors import GatewayRefusal
from workers.run.openai_wire.schema import (
    AnswerFormat,
    ChatRequest,
    CompletionRequest,
    OfferedTool,
    RequestMessage,
    drop_nulls,
)
from workers.run.openai_wire.tool_choice import choose_tools

_NO_PARAMETERS: Final[dict[str, Any]] = {"type": "object", "properties": {}}
_UTF8_BOM: Final = b"\xef\xbb\xbf"
# They tell a provider who asks, what to keep, how to cache and what to charge: an answer is the same without them.
_IGNORED_FIELDS: Final = frozenset(
    {"service_tier", "safety_identifier", "user", "metadata", "store", "prediction"}
    | {"prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"}
)
# What asks for something that is not done here, unless its value asks for nothing.
_NEUTRAL_VALUES: Final[dict[str, Callable[[Any], bool]]] = {
    "modalities": lambda value: value in (["text"], []),
    "logprobs": lambda value: value is False,
    "top_logprobs": lambda value: value == 0,
    "logit_bias": lambda value: value == {},
    "functions": lambda value: value == [],
    "function_call": lambda value: value in ("none", "auto"),
    "web_search_options": lambda value: value is False,
    "echo": lambda value: value is False,
    "best_of": lambda value: value == 1,
    "repetition_penalty": lambda value: value == 1,
    "min_p": lambda value: value == 0,
}
_ALTERNATIVES: Final = {
    "functions": "send `tools`",
    "function_call": "send `tool_choice` and `tools`",
    "modalities": 'answers are text: send ["text"] or nothing',
}
# What libraries note of an answer and send back with it, and what is for a provider's cache.
_MESSAGE_NOTES: Final = frozenset(
    {"name", "id", "annotations", "parsed", "index", "reasoning_content", "reasoning", "reasoning_details", "thinking"}
    | {"thinking_blocks", "provider_specific_fields", "cache_control"}
)
_CALL_NOTES: Final = frozenset(
    {"index", "extra_content", "thought_signature", "provider_specific_fields", "cache_control", "parsed_arguments"}
)
_PART_NOTES: Final = frozenset({"cache_control", "annotations", "citations", "id", "index", "logprobs", "parsed"})
_TEXT_PARTS: Final = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}


def parse_request(body: bytes) -> CompletionRequest:
    """What a request's body asks for. Errors: `Refused`."""
    try:
        check_json(body)
    except JsonTooLarge as error:
        raise GatewayRefusal(400, f"The body {error.reason}") from None
    try:
        raw = msgspec.json.decode(repair_json(body.removeprefix(_UTF8_BOM)))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise GatewayRefusal(400, "The body is not JSON.") from None
    if not isinstance(raw, dict):
        raise GatewayRefusal(400, "The body must be a JSON object.")
    try:
        request = msgspec.convert(_drop_ignored_fields(raw), ChatRequest)
    except msgspec.ValidationError as error:
        raise GatewayRefusal(400, f"{error}.", param=_find_param(str(error))) from None
    except RecursionError:
        raise GatewayRefusal(400, "The body nests too deep.") from None
    if request.n != 1:
        raise GatewayRefusal(400, "`n` can only be 1 here.", param="n")
    if request.stream_options.include_usage and not request.stream:
        raise GatewayRefusal(400, "`stream_options` is for requests with `stream` alone.", param="stream_options")
    tools, choice = choose_tools(request.tool_choice, _parse_tools(request.tools))
    return CompletionRequest(
        model=request.model,
        messages=_parse_messages(request.messages),
        tools=tools,
        options=msgspec.structs.replace(_parse_options(request), tool_choice=choice),
        stream=request.stream,
        include_usage=request.stream_options.include_usage,
    )


def _drop_ignored_fields(raw: dict[str, Any]) -> dict[str, Any]:
    """The fields that change something. Errors: `Refused` for those that ask for what is not done."""
    told = drop_nulls(raw)
    for field, is_neutral in _NEUTRAL_VALUES.items():
        if field in told and not is_neutral(told.pop(field)):
            instead = _ALTERNATIVES.get(field, "leave it out")
            raise GatewayRefusal(400, f"`{field}` asks for something that is not done here: {instead}.", param=field)
    told = {field: value for field, value in told.items() if field not in _IGNORED_FIELDS}
    if isinstance(messages := told.get("messages"), list):
        told["messages"] = [_drop_notes(one, _MESSAGE_NOTES) for one in messages]
        for message in told["messages"]:
            if isinstance(message, dict) and isinstance(calls := message.get("tool_calls"), list):
                message["tool_calls"] = [_clean_function(one) for one in calls]
    if isinstance(tools := told.get("tools"), list):
        told["tools"] = [_clean_function(one) for one in tools]
    return told


def _drop_notes(value: Any, notes: frozenset[str]) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: one for name, one in value.items() if one is not None and name not in notes}


def _clean_function(entry: Any) -> Any:
    """A tool, or a call of one."""
    found = _drop_notes(entry, _CALL_NOTES)
    if isinstance(found, dict) and "function" in found:
        found["function"] = _drop_notes(found["function"], _CALL_NOTES)
    return found


def _find_param(problem: str) -> str | None:
    """The field that a validation error is about."""
    unknown = re.search(r"unknown field `([^`]*)`", problem)
    place = re.search(r"at `\$\.?([^`]*)`", problem)
    return ".".join(one.group(1) for one in (place, unknown) if one is not None) or None


def _parse_messages(sent: list[RequestMessage]) -> tuple[ChatMessage, ...]:
    made: list[ChatMessage] = []
    names: dict[str, str] = {}
    for number, one in enumerate(sent):
        where = f"messages[{number}]"
        if one.tool_calls and one.role != "assistant":
            raise GatewayRefusal(
                400, f"`{where}.tool_calls` is for messages of the assistant.", param=f"{where}.tool_calls"
            )
        if one.tool_call_id is not None and one.role != "tool":
            raise GatewayRefusal(
                400, f"`{where}.tool_call_id` is for messages of a tool.", param=f"{where}.tool_call_id"
            )
        if one.content is None and one.role != "assistant":
            raise GatewayRefusal(400, f"`{where}.content` is missing.", param=f"{where}.content")
        if one.role == "tool" and one.tool_call_id not in names:
            raise GatewayRefusal(
                400,
                f"`{where}.tool_call_id` must be the id of a tool call in a message before.",
                param=f"{where}.tool_call_id",
            )
        calls = tuple(
            ModelToolCall(id=call.id, name=call.function.name, arguments=_parse_arguments(call.function.arguments))
            for call in one.tool_calls or ()
        )
        names.update({call.id: call.name for call in calls})
        made.append(
            ChatMessage(
                role="system" if one.role == "developer" else one.role,
                content=_join_text(one.content, where) or one.refusal or "",
                tool_calls=calls,
                tool_call_id=one.tool_call_id,
                # Some providers insist on it; OpenAI's wire leaves it to be found by the id.
                name=names[one.tool_call_id] if one.tool_call_id is not None else None,
            )
        )
    return tuple(made)


def _parse_arguments(sent: str | dict[str, Any]) -> str:
    return sent if isinstance(sent, str) else msgspec.json.encode(sent).decode()


def _join_text(content: str | list[Any] | None, where: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(_parse_text_part(part, f"{where}.content[{number}]") for number, part in enumerate(content))


def _parse_text_part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise GatewayRefusal(400, f"`{where}` must be text or {{type, text}}.", param=where)
    told = _drop_notes(part, _PART_NOTES)
    kind = told.pop("type", "text")
    field = _TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if field is None:
        raise GatewayRefusal(
            400, f"`{where}` is of type {str(kind)[:40]!r}; parts of type 'text' alone are taken here.", param=where
        )
    text = told.pop(field, None)
    if not isinstance(text, str):
        raise GatewayRefusal(400, f"`{where}.{field}` must be text.", param=f"{where}.{field}")
    if told:
        name = min(told)[:64]
        raise GatewayRefusal(400, f"`{where}.{name}` is an unknown field: leave it out.", param=f"{where}.{name}")
    return text


def _parse_tools(sent: list[OfferedTool]) -> tuple[ToolSpec, ...]:
    made: list[ToolSpec] = []
    for number, tool in enumerate(sent):
        function, where = tool.function, f"tools[{number}].function"
        parameters = function.parameters or _NO_PARAMETERS
        types = parameters.get("type", "object")
        if "object" not in (types if isinstance(types, list) else [types]):
            raise GatewayRefusal(
                400, f"`{where}.parameters` must be a JSON Schema of type object.", param=f"{where}.parameters"
            )
        if function.name in {one.name for one in made}:
            raise GatewayRefusal(400, f"`{where}.name` is the name of two tools.", param=f"{where}.name")
        made.append(
            ToolSpec(
                name=function.name,
                description=function.description or "",
                parameters={**parameters, "type": "object"},
            )
        )
    return tuple(made)


def _parse_options(request: ChatRequest) -> ModelOptions:
    most = (request.max_tokens, request.max_completion_tokens)
    if None not in most and most[0] != most[1]:
        raise GatewayRefusal(
            400, "`max_tokens` and `max_completion_tokens` mean the same: give one.", param="max_tokens"
        )
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    return ModelOptions(
        temperature=request.temperature,
        max_tokens=request.max_tokens or request.max_completion_tokens,
        top_p=request.top_p,
        seed=request.seed,
        stop=stop or None,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        parallel_tool_calls=request.parallel_tool_calls if request.tools else None,
        schema=_parse_answer_schema(request.response_format),
    )


def _parse_answer_schema(wanted: AnswerFormat | None) -> dict[str, Any] | None:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "object"}
    if wanted.json_schema is None:
        raise GatewayRefusal(400, "`response_format.json_schema` is missing.", param="response_format")
    # Its name and description tell a model what is wanted; in a schema they are called so.
    told = drop_nulls({"title": wanted.json_schema.name, "description": wanted.json_schema.description})
    return {**told, **wanted.json_schema.schema}
