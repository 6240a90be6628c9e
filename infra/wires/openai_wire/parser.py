"""Parse the body of a request for a completion."""

from typing import Any, Final

import msgspec

from domain.llms import (
    ChatMessage,
    MessagePart,
    MessageText,
    ModelOptions,
    ModelToolCall,
    ToolSpec,
)
from infra.wires.common import (
    ToolChoice,
    WireRefusal,
    build_message,
    build_thinking,
    choose_tools,
    convert_fields,
    decode_body,
    drop_notes,
    drop_nulls,
    find_last_mark,
    read_part,
    read_part_mark,
)
from infra.wires.openai_wire import fields as field_tables
from infra.wires.openai_wire.schema import AnswerFormat, ChatRequest, CompletionRequest, OfferedTool, RequestMessage

_NO_PARAMETERS: Final[dict[str, Any]] = {"type": "object", "properties": {}}


def parse_request(body: bytes) -> CompletionRequest:
    """Return what a request's body asks for. Errors: `WireRefusal`."""
    return parse_fields(decode_body(body))


def parse_fields(fields: dict[str, Any], earlier: tuple[ChatMessage, ...] = ()) -> CompletionRequest:
    """Return what the fields of a body ask for, of which none is null. Errors: `WireRefusal`.

    Results of tools may belong to calls of `earlier` messages, which the server keeps.
    """
    request = convert_fields(_drop_ignored_fields(fields), ChatRequest)
    if request.stream_options.include_usage and not request.stream:
        raise WireRefusal(400, "`stream_options` is for requests with `stream` alone.", param="stream_options")
    tools = _parse_tools(request.tools)
    return CompletionRequest(
        model=request.model,
        messages=_parse_messages(request.messages, earlier),
        tools=tools,
        options=_parse_options(request, choose_tools(request.tool_choice, tools)),
        stream=request.stream,
        include_usage=request.stream_options.include_usage,
    )


def _drop_ignored_fields(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that affect the answer. Errors: `WireRefusal` for those that are not supported."""
    fields = field_tables.FIELD_RULES.drop_ignored_fields(raw)
    if isinstance(messages := fields.get("messages"), list):
        fields["messages"] = [drop_notes(message, field_tables.MESSAGE_NOTES) for message in messages]
        for message in fields["messages"]:
            if isinstance(message, dict) and isinstance(calls := message.get("tool_calls"), list):
                message["tool_calls"] = [_clean_function(call, field_tables.CALL_NOTES) for call in calls]
    if isinstance(tools := fields.get("tools"), list):
        fields["tools"] = [_clean_function(tool, field_tables.TOOL_NOTES) for tool in tools]
    return fields


def _clean_function(entry: Any, notes: frozenset[str]) -> Any:
    """Return a tool, or a call of one, without the notes of libraries."""
    cleaned = drop_notes(entry, notes)
    if isinstance(cleaned, dict) and "function" in cleaned:
        cleaned["function"] = drop_notes(cleaned["function"], notes)
    return cleaned


def _parse_messages(sent: list[RequestMessage], earlier: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...]:
    messages: list[ChatMessage] = []
    names = {call.id: call.name for message in earlier for call in message.tool_calls}
    for number, message in enumerate(sent):
        where = f"messages[{number}]"
        _check_message(message, names, where)
        calls = tuple(
            ModelToolCall(id=call.id, name=call.function.name, arguments=_parse_arguments(call.function.arguments))
            for call in message.tool_calls or ()
        )
        names.update({call.id: call.name for call in calls})
        messages += _build_messages(message, calls, names, where)
    return tuple(messages)


def _check_message(message: RequestMessage, names: dict[str, str], where: str) -> None:
    """Refuse what does not belong to the role of a message. Errors: `WireRefusal`."""
    if message.tool_calls and message.role != "assistant":
        raise WireRefusal(400, f"`{where}.tool_calls` is for messages of the assistant.", param=f"{where}.tool_calls")
    if message.tool_call_id is not None and message.role != "tool":
        raise WireRefusal(400, f"`{where}.tool_call_id` is for messages of a tool.", param=f"{where}.tool_call_id")
    if message.content is None and message.role != "assistant":
        raise WireRefusal(400, f"`{where}.content` is missing.", param=f"{where}.content")
    if message.role == "tool" and message.tool_call_id not in names:
        raise WireRefusal(
            400,
            f"`{where}.tool_call_id` must be the id of a tool call in a message before.",
            param=f"{where}.tool_call_id",
        )


def _build_messages(
    message: RequestMessage, calls: tuple[ModelToolCall, ...], names: dict[str, str], where: str
) -> list[ChatMessage]:
    """Return a message as the domain has it; one of the system with several marks for the cache becomes several."""
    parts = _read_parts(message, where)
    cache = read_part_mark(message.cache_control, where)
    match message.role:
        case "system" | "developer" if any(part.cache is not None for part in parts[:-1]):
            texts = [part for part in parts if isinstance(part, MessageText)]
            built = [ChatMessage(role="system", content=part.text, cache=part.cache) for part in texts]
        case "system" | "developer":
            built = [build_message("system", parts)]
        case "assistant":
            texts = [part for part in parts if isinstance(part, MessageText)]
            content = "\n".join(part.text for part in texts) or message.refusal or ""
            built = [ChatMessage(role="assistant", content=content, tool_calls=calls, cache=find_last_mark(parts))]
        case "tool":
            # Some providers insist on the name; OpenAI's wire leaves it to be found by the id.
            name = names[message.tool_call_id or ""]
            built = [build_message("tool", parts, tool_call_id=message.tool_call_id, name=name)]
        case _:
            built = [build_message("user", parts)]
    return built if cache is None else [*built[:-1], msgspec.structs.replace(built[-1], cache=cache)]


def _parse_arguments(sent: str | dict[str, Any]) -> str:
    return sent if isinstance(sent, str) else msgspec.json.encode(sent).decode()


def _read_parts(message: RequestMessage, where: str) -> list[MessagePart]:
    content = message.content
    if content is None or isinstance(content, str):
        return [MessageText(text=content)] if content else []
    takes_images = message.role in ("user", "tool")
    return [
        read_part(part, f"{where}.content[{number}]", field_tables.PART_RULES, takes_images)
        for number, part in enumerate(content)
    ]


def _parse_tools(sent: list[OfferedTool]) -> tuple[ToolSpec, ...]:
    tools: list[ToolSpec] = []
    for number, tool in enumerate(sent):
        function, where = tool.function, f"tools[{number}].function"
        parameters = function.parameters or _NO_PARAMETERS
        types = parameters.get("type", "object")
        if "object" not in (types if isinstance(types, list) else [types]):
            raise WireRefusal(
                400, f"`{where}.parameters` must be a JSON Schema of type object.", param=f"{where}.parameters"
            )
        if function.name in {spec.name for spec in tools}:
            raise WireRefusal(400, f"`{where}.name` is the name of two tools.", param=f"{where}.name")
        tools.append(
            ToolSpec(
                name=function.name,
                description=function.description or "",
                parameters={**parameters, "type": "object"},
                cache=read_part_mark(tool.cache_control or function.cache_control, where),
            )
        )
    return tuple(tools)


def _parse_options(request: ChatRequest, choice: ToolChoice) -> ModelOptions:
    most = (request.max_tokens, request.max_completion_tokens)
    if None not in most and most[0] != most[1]:
        raise WireRefusal(400, "`max_tokens` and `max_completion_tokens` mean the same: give one.", param="max_tokens")
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    return ModelOptions(
        temperature=request.temperature,
        max_tokens=request.max_tokens or request.max_completion_tokens,
        top_p=request.top_p,
        seed=request.seed,
        stop=stop or None,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        top_k=request.top_k,
        min_p=request.min_p or None,
        repetition_penalty=None if request.repetition_penalty == 1 else request.repetition_penalty,
        logit_bias=request.logit_bias or None,
        verbosity=None if request.verbosity == "medium" else request.verbosity,
        service_tier=None if request.service_tier == "auto" else request.service_tier,
        tool_choice=choice.mode,
        allowed_tools=choice.allowed_tools,
        parallel_tool_calls=request.parallel_tool_calls if request.tools else None,
        schema=_parse_answer_schema(request.response_format),
        thinking=build_thinking(request.reasoning_effort),
    )


def _parse_answer_schema(answer_format: AnswerFormat | None) -> dict[str, Any] | None:
    if answer_format is None or answer_format.type == "text":
        return None
    if answer_format.type == "json_object":
        return {"type": "object"}
    if answer_format.json_schema is None:
        raise WireRefusal(400, "`response_format.json_schema` is missing.", param="response_format")
    # Its name and description tell a model what to answer; in a schema they are called so.
    naming = drop_nulls({"title": answer_format.json_schema.name, "description": answer_format.json_schema.description})
    return {**naming, **answer_format.json_schema.schema}
