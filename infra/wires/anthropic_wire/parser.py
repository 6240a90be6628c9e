"""Parse the body of a request for a message."""

from typing import Any

from domain.llms import ModelOptions, ReasoningEffort, ThinkingOptions, ToolSpec
from infra.wires.anthropic_wire import fields as field_tables
from infra.wires.anthropic_wire.content import ContentReader, read_system
from infra.wires.anthropic_wire.schema import (
    InputTool,
    MessageBody,
    MessageRequest,
    OutputConfig,
    OutputFormat,
    ThinkingConfig,
)
from infra.wires.common import (
    ReasoningSeal,
    ToolChoice,
    WireRefusal,
    choose_tools,
    convert_fields,
    decode_body,
    drop_notes,
    drop_nulls,
    read_part_mark,
)


def parse_request(body: bytes, seal: ReasoningSeal) -> MessageRequest:
    """Return what a request's body asks for. Errors: `WireRefusal`."""
    fields = field_tables.FIELD_RULES.drop_ignored_fields(decode_body(body))
    if isinstance(messages := fields.get("messages"), list):
        fields["messages"] = [drop_notes(message, field_tables.MESSAGE_NOTES) for message in messages]
    for name in ("thinking", "output_config", "output_format"):
        if isinstance(setting := fields.get(name), dict):
            fields[name] = drop_nulls(setting)
    request = convert_fields(fields, MessageBody)
    tool_choice, parallel = _split_choice(request.tool_choice)
    tools = _parse_tools(request.tools)
    return MessageRequest(
        model=request.model,
        messages=(*read_system(request.system), *ContentReader(seal).read_messages(request.messages)),
        tools=tools,
        options=_build_options(request, choose_tools(tool_choice, tools), parallel if request.tools else None),
        stream=request.stream,
        shows_thinking=request.thinking is not None and request.thinking.type != "disabled",
    )


def _build_options(request: MessageBody, choice: ToolChoice, parallel: bool | None) -> ModelOptions:
    config = request.output_config or OutputConfig()
    return ModelOptions(
        temperature=request.temperature,
        max_tokens=request.max_tokens,
        top_p=request.top_p,
        top_k=request.top_k,
        stop=tuple(request.stop_sequences) or None,
        service_tier=None if request.service_tier == "auto" else request.service_tier,
        tool_choice=choice.mode,
        allowed_tools=choice.allowed_tools,
        parallel_tool_calls=parallel,
        schema=_get_schema(config.format, request.output_format),
        thinking=_parse_thinking(request.thinking, config.effort, request.max_tokens),
        cache=read_part_mark(request.cache_control, ""),
    )


def _split_choice(choice: Any) -> tuple[Any, bool | None]:
    """Return a choice, and whether the model may call several tools at once."""
    if not isinstance(choice, dict) or "disable_parallel_tool_use" not in choice:
        return choice, None
    rest = {name: value for name, value in choice.items() if name != "disable_parallel_tool_use"}
    is_disabled = choice["disable_parallel_tool_use"]
    if not isinstance(is_disabled, bool | None):
        where = "tool_choice.disable_parallel_tool_use"
        raise WireRefusal(400, f"`{where}` must be true or false.", param=where)
    return rest, False if is_disabled else None


def _parse_tools(tools: list[Any]) -> tuple[ToolSpec, ...]:
    specs: list[ToolSpec] = []
    for number, sent in enumerate(tools):
        where = f"tools[{number}]"
        kind = sent.get("type", "custom") if isinstance(sent, dict) else None
        if kind not in ("custom", None) or not isinstance(sent, dict):
            message = f"`{where}` is of type {str(kind)[:64]!r}: tools with an `input_schema` alone are taken here."
            raise WireRefusal(400, message, param=where)
        tool = convert_fields(_clean_tool(sent), InputTool, where)
        types = tool.input_schema.get("type", "object")
        if "object" not in (types if isinstance(types, list) else [types]):
            message = f"`{where}.input_schema` must be a JSON Schema of type object."
            raise WireRefusal(400, message, param=f"{where}.input_schema")
        if tool.name in {spec.name for spec in specs}:
            raise WireRefusal(400, f"`{where}.name` is the name of two tools.", param=f"{where}.name")
        schema = {"properties": {}, **tool.input_schema, "type": "object"}
        cache = read_part_mark(tool.cache_control, where)
        specs.append(ToolSpec(name=tool.name, description=tool.description, parameters=schema, cache=cache))
    return tuple(specs)


def _clean_tool(tool: dict[str, Any]) -> Any:
    """Drop what asks for nothing: callers that are the model itself, and loading at once."""
    fields = drop_notes(tool, field_tables.TOOL_NOTES)
    if fields.get("allowed_callers") == ["direct"]:
        del fields["allowed_callers"]
    if fields.get("defer_loading") is False:
        del fields["defer_loading"]
    return fields


def _get_schema(*formats: OutputFormat | None) -> dict[str, Any] | None:
    present = [answer_format for answer_format in formats if answer_format is not None]
    if len(present) > 1:
        message = "`output_format` and `output_config.format` mean the same: give one."
        raise WireRefusal(400, message, param="output_format")
    return present[0].schema if present else None


def _parse_thinking(
    thinking: ThinkingConfig | None, effort: ReasoningEffort | None, max_tokens: int
) -> ThinkingOptions | None:
    if thinking is None:
        return None if effort is None else ThinkingOptions(effort=effort)
    if (thinking.budget_tokens is None) == (thinking.type == "enabled"):
        where = "thinking.budget_tokens"
        message = f"`{where}` is required for thinking of type enabled, and for no other."
        raise WireRefusal(400, message, param=where)
    if thinking.budget_tokens is not None and thinking.budget_tokens >= max_tokens:
        message = "`thinking.budget_tokens` must be less than `max_tokens`."
        raise WireRefusal(400, message, param="thinking.budget_tokens")
    return ThinkingOptions(
        mode=thinking.type, max_tokens=thinking.budget_tokens, display=thinking.display, effort=effort
    )
