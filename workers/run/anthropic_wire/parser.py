"""Parse the body of a request for a message."""

from typing import Any, Final

from domain.llms import ModelOptions, ThinkingOptions, ToolSpec
from workers.run.anthropic_wire.content import ContentReader, read_system
from workers.run.anthropic_wire.schema import (
    InputTool,
    MessageBody,
    MessageRequest,
    OutputFormat,
    ThinkingConfig,
)
from workers.run.wire import (
    FieldRules,
    GatewayRefusal,
    ReasoningSeal,
    choose_tools,
    convert_fields,
    decode_body,
    drop_notes,
    drop_nulls,
)

# Ignored are fields about identity, caching and charges.
_FIELD_RULES: Final = FieldRules(
    ignored=frozenset({"metadata", "service_tier", "cache_control", "user_profile_id", "workspace_id"}),
    neutral_values={
        "container": lambda _: False,
        "context_management": lambda value: value == {},
        "diagnostics": lambda value: value == {},
        "inference_geo": lambda _: False,
        "mcp_servers": lambda value: value == [],
        "speed": lambda value: value == "standard",
    },
    alternatives={"mcp_servers": "call their tools in the agent, and offer them as `tools`"},
)
_MESSAGE_NOTES: Final = frozenset(
    {"id", "type", "model", "stop_reason", "stop_sequence", "stop_details", "usage", "container", "diagnostics"}
)
_TOOL_NOTES: Final = frozenset({"type", "cache_control", "eager_input_streaming", "input_examples"})


def parse_request(body: bytes, seal: ReasoningSeal) -> MessageRequest:
    """Return what a request's body asks for. Errors: `GatewayRefusal`."""
    fields = _FIELD_RULES.drop_ignored_fields(decode_body(body))
    if isinstance(messages := fields.get("messages"), list):
        fields["messages"] = [drop_notes(message, _MESSAGE_NOTES) for message in messages]
    for name in ("thinking", "output_config", "output_format"):
        if isinstance(setting := fields.get(name), dict):
            fields[name] = drop_nulls(setting)
    request = convert_fields(fields, MessageBody)
    tool_choice, parallel = _split_choice(request.tool_choice)
    tools, choice = choose_tools(tool_choice, _parse_tools(request.tools))
    config_format = request.output_config.format if request.output_config is not None else None
    return MessageRequest(
        model=request.model,
        messages=(*read_system(request.system), *ContentReader(seal).read_messages(request.messages)),
        tools=tools,
        options=ModelOptions(
            temperature=request.temperature,
            max_tokens=request.max_tokens,
            top_p=request.top_p,
            stop=tuple(request.stop_sequences) or None,
            tool_choice=choice,
            parallel_tool_calls=parallel if request.tools else None,
            schema=_get_schema(config_format, request.output_format),
            thinking=_parse_thinking(request.thinking, request.max_tokens),
        ),
        stream=request.stream,
        shows_thinking=request.thinking is not None and request.thinking.type != "disabled",
    )


def _split_choice(choice: Any) -> tuple[Any, bool | None]:
    """Return a choice, and whether the model may call several tools at once."""
    if not isinstance(choice, dict) or "disable_parallel_tool_use" not in choice:
        return choice, None
    rest = {name: value for name, value in choice.items() if name != "disable_parallel_tool_use"}
    is_disabled = choice["disable_parallel_tool_use"]
    if not isinstance(is_disabled, bool | None):
        where = "tool_choice.disable_parallel_tool_use"
        raise GatewayRefusal(400, f"`{where}` must be true or false.", param=where)
    return rest, False if is_disabled else None


def _parse_tools(tools: list[Any]) -> tuple[ToolSpec, ...]:
    specs: list[ToolSpec] = []
    for number, sent in enumerate(tools):
        where = f"tools[{number}]"
        kind = sent.get("type", "custom") if isinstance(sent, dict) else None
        if kind not in ("custom", None) or not isinstance(sent, dict):
            message = f"`{where}` is of type {str(kind)[:64]!r}: tools with an `input_schema` alone are taken here."
            raise GatewayRefusal(400, message, param=where)
        tool = convert_fields(_clean_tool(sent), InputTool, where)
        types = tool.input_schema.get("type", "object")
        if "object" not in (types if isinstance(types, list) else [types]):
            message = f"`{where}.input_schema` must be a JSON Schema of type object."
            raise GatewayRefusal(400, message, param=f"{where}.input_schema")
        if tool.name in {spec.name for spec in specs}:
            raise GatewayRefusal(400, f"`{where}.name` is the name of two tools.", param=f"{where}.name")
        schema = {"properties": {}, **tool.input_schema, "type": "object"}
        specs.append(ToolSpec(name=tool.name, description=tool.description, parameters=schema))
    return tuple(specs)


def _clean_tool(tool: dict[str, Any]) -> Any:
    """Drop what asks for nothing: callers that are the model itself, and loading at once."""
    fields = drop_notes(tool, _TOOL_NOTES)
    if fields.get("allowed_callers") == ["direct"]:
        del fields["allowed_callers"]
    if fields.get("defer_loading") is False:
        del fields["defer_loading"]
    return fields


def _get_schema(*formats: OutputFormat | None) -> dict[str, Any] | None:
    present = [answer_format for answer_format in formats if answer_format is not None]
    if len(present) > 1:
        message = "`output_format` and `output_config.format` mean the same: give one."
        raise GatewayRefusal(400, message, param="output_format")
    return present[0].schema if present else None


def _parse_thinking(thinking: ThinkingConfig | None, max_tokens: int) -> ThinkingOptions | None:
    if thinking is None:
        return None
    if (thinking.budget_tokens is None) == (thinking.type == "enabled"):
        where = "thinking.budget_tokens"
        message = f"`{where}` is required for thinking of type enabled, and for no other."
        raise GatewayRefusal(400, message, param=where)
    if thinking.budget_tokens is not None and thinking.budget_tokens >= max_tokens:
        message = "`thinking.budget_tokens` must be less than `max_tokens`."
        raise GatewayRefusal(400, message, param="thinking.budget_tokens")
    return ThinkingOptions(mode=thinking.type, max_tokens=thinking.budget_tokens, display=thinking.display)
