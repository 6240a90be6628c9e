"""Parse the body of a request for a completion."""

from typing import Any, Final

import msgspec

from domain.llms import ChatMessage, ModelOptions, ModelToolCall, ToolSpec
from workers.run.openai_wire.schema import AnswerFormat, ChatRequest, CompletionRequest, OfferedTool, RequestMessage
from workers.run.wire import (
    FieldRules,
    GatewayRefusal,
    choose_tools,
    convert_fields,
    decode_body,
    drop_notes,
    drop_nulls,
)

_NO_PARAMETERS: Final[dict[str, Any]] = {"type": "object", "properties": {}}
# Ignored are fields about identity, storage, caching and charges.
_FIELD_RULES: Final = FieldRules(
    ignored=frozenset(
        {"service_tier", "safety_identifier", "user", "metadata", "store", "prediction"}
        | {"prompt_cache_key", "prompt_cache_retention", "prompt_cache_options"}
    ),
    neutral_values={
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
    },
    alternatives={
        "functions": "send `tools`",
        "function_call": "send `tool_choice` and `tools`",
        "modalities": 'answers are text: send ["text"] or nothing',
    },
)
# Notes that libraries add to an answer and send back with it, and those for a provider's cache.
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
    """Return what a request's body asks for. Errors: `GatewayRefusal`."""
    request = convert_fields(_drop_ignored_fields(decode_body(body)), ChatRequest)
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
    """Return the fields that affect the answer. Errors: `GatewayRefusal` for those that are not supported."""
    fields = _FIELD_RULES.drop_ignored_fields(raw)
    if isinstance(messages := fields.get("messages"), list):
        fields["messages"] = [drop_notes(message, _MESSAGE_NOTES) for message in messages]
        for message in fields["messages"]:
            if isinstance(message, dict) and isinstance(calls := message.get("tool_calls"), list):
                message["tool_calls"] = [_clean_function(call) for call in calls]
    if isinstance(tools := fields.get("tools"), list):
        fields["tools"] = [_clean_function(tool) for tool in tools]
    return fields


def _clean_function(entry: Any) -> Any:
    """Return a tool, or a call of one, without the notes of libraries."""
    cleaned = drop_notes(entry, _CALL_NOTES)
    if isinstance(cleaned, dict) and "function" in cleaned:
        cleaned["function"] = drop_notes(cleaned["function"], _CALL_NOTES)
    return cleaned


def _parse_messages(sent: list[RequestMessage]) -> tuple[ChatMessage, ...]:
    messages: list[ChatMessage] = []
    names: dict[str, str] = {}
    for number, message in enumerate(sent):
        where = f"messages[{number}]"
        if message.tool_calls and message.role != "assistant":
            raise GatewayRefusal(
                400, f"`{where}.tool_calls` is for messages of the assistant.", param=f"{where}.tool_calls"
            )
        if message.tool_call_id is not None and message.role != "tool":
            raise GatewayRefusal(
                400, f"`{where}.tool_call_id` is for messages of a tool.", param=f"{where}.tool_call_id"
            )
        if message.content is None and message.role != "assistant":
            raise GatewayRefusal(400, f"`{where}.content` is missing.", param=f"{where}.content")
        if message.role == "tool" and message.tool_call_id not in names:
            raise GatewayRefusal(
                400,
                f"`{where}.tool_call_id` must be the id of a tool call in a message before.",
                param=f"{where}.tool_call_id",
            )
        calls = tuple(
            ModelToolCall(id=call.id, name=call.function.name, arguments=_parse_arguments(call.function.arguments))
            for call in message.tool_calls or ()
        )
        names.update({call.id: call.name for call in calls})
        messages.append(
            ChatMessage(
                role="system" if message.role == "developer" else message.role,
                content=_join_text(message.content, where) or message.refusal or "",
                tool_calls=calls,
                tool_call_id=message.tool_call_id,
                # Some providers insist on it; OpenAI's wire leaves it to be found by the id.
                name=names[message.tool_call_id] if message.tool_call_id is not None else None,
            )
        )
    return tuple(messages)


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
    fields = drop_notes(part, _PART_NOTES)
    kind = fields.pop("type", "text")
    field = _TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if field is None:
        raise GatewayRefusal(
            400, f"`{where}` is of type {str(kind)[:40]!r}; parts of type 'text' alone are taken here.", param=where
        )
    text = fields.pop(field, None)
    if not isinstance(text, str):
        raise GatewayRefusal(400, f"`{where}.{field}` must be text.", param=f"{where}.{field}")
    if fields:
        name = min(fields)[:64]
        raise GatewayRefusal(400, f"`{where}.{name}` is an unknown field: leave it out.", param=f"{where}.{name}")
    return text


def _parse_tools(sent: list[OfferedTool]) -> tuple[ToolSpec, ...]:
    tools: list[ToolSpec] = []
    for number, tool in enumerate(sent):
        function, where = tool.function, f"tools[{number}].function"
        parameters = function.parameters or _NO_PARAMETERS
        types = parameters.get("type", "object")
        if "object" not in (types if isinstance(types, list) else [types]):
            raise GatewayRefusal(
                400, f"`{where}.parameters` must be a JSON Schema of type object.", param=f"{where}.parameters"
            )
        if function.name in {spec.name for spec in tools}:
            raise GatewayRefusal(400, f"`{where}.name` is the name of two tools.", param=f"{where}.name")
        tools.append(
            ToolSpec(
                name=function.name,
                description=function.description or "",
                parameters={**parameters, "type": "object"},
            )
        )
    return tuple(tools)


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


def _parse_answer_schema(answer_format: AnswerFormat | None) -> dict[str, Any] | None:
    if answer_format is None or answer_format.type == "text":
        return None
    if answer_format.type == "json_object":
        return {"type": "object"}
    if answer_format.json_schema is None:
        raise GatewayRefusal(400, "`response_format.json_schema` is missing.", param="response_format")
    # Its name and description tell a model what to answer; in a schema they are called so.
    naming = drop_nulls({"title": answer_format.json_schema.name, "description": answer_format.json_schema.description})
    return {**naming, **answer_format.json_schema.schema}
