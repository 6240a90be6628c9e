"""Our messages and tools in pydantic-ai's words."""

from collections.abc import Sequence
from typing import Any, cast

import msgspec
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    ModelResponsePart,
    SystemPromptPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.output import OutputObjectDefinition
from pydantic_ai.tools import ToolDefinition

from domain.chat import Ask, Message


def history(messages: Sequence[Message]) -> list[ModelMessage]:
    """A conversation: what assistants said are responses, between two is one request. Empty answers are left out."""
    said: list[ModelMessage] = []
    asked: list[ModelRequestPart] = []
    tools: dict[str, str] = {}
    for message in messages:
        if message.role != "assistant":
            asked.append(_request_part(message, tools))
            continue
        parts: list[ModelResponsePart] = [TextPart(message.content)] if message.content else []
        for call in message.tool_calls:
            tools[call.id] = call.name
            # Arguments that are no JSON object go back as {"INVALID_JSON": "…"}: servers that read them would refuse.
            parts.append(ToolCallPart(call.name, call.arguments, tool_call_id=call.id))
        if parts:
            if asked:
                said.append(ModelRequest(parts=asked))
                asked = []
            said.append(ModelResponse(parts=parts))
    if asked:
        said.append(ModelRequest(parts=asked))
    return said


def _request_part(message: Message, tools: dict[str, str]) -> ModelRequestPart:
    match message.role:
        case "system":
            return SystemPromptPart(message.content)
        case "tool":
            id_ = message.tool_call_id or ""
            return ToolReturnPart(message.name or tools.get(id_, "tool"), message.content, tool_call_id=id_)
        case _:
            return UserPromptPart(message.content)


def parameters(ask: Ask, model: Model[Any]) -> ModelRequestParameters:
    """Tools and the form of the answer: by the provider's own means where it has them, else asked for in words."""
    tools = [
        # Not strict: a strict tool's schema is rewritten, and an object that may hold anything may then hold nothing.
        ToolDefinition(
            name=tool.name, description=tool.description, parameters_json_schema=tool.parameters, strict=False
        )
        for tool in ask.tools
    ]
    if (schema := ask.options.schema) is None:
        return ModelRequestParameters(function_tools=tools)
    name = schema.get("title")
    fits = isinstance(name, str) and name.isascii() and name.isidentifier() and len(name) <= 64
    return ModelRequestParameters(
        function_tools=tools,
        output_mode="native" if model.profile.get("supports_json_schema_output", False) else "prompted",
        output_object=OutputObjectDefinition(
            json_schema=_copy(schema), name=name if fits else "answer", strict=_strict(schema, model)
        ),
    )


def _strict(schema: dict[str, Any], model: Model[Any]) -> bool | None:
    """None, which is as strict as can be, for a schema that says the same when it is strict; else False."""
    transformer = model.profile.get("json_schema_transformer")
    if transformer is None or not isinstance(model, OpenAIChatModel):  # Anthropic's are always strict
        return None
    walk = transformer(_copy(schema), strict=None)
    walk.walk()
    return None if walk.is_strict_compatible else False


def _copy(schema: dict[str, Any]) -> dict[str, Any]:
    """One that may be rewritten."""
    return cast(dict[str, Any], msgspec.json.decode(msgspec.json.encode(schema)))
