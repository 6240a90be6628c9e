"""Our messages and tools in pydantic-ai's words."""

import json
from collections.abc import Sequence
from typing import Any

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
        ToolDefinition(name=tool.name, description=tool.description, parameters_json_schema=tool.parameters)
        for tool in ask.tools
    ]
    if (schema := ask.options.schema) is None:
        return ModelRequestParameters(function_tools=tools)
    name = schema.get("title")
    fits = isinstance(name, str) and name.isascii() and name.isidentifier() and len(name) <= 64
    return ModelRequestParameters(
        function_tools=tools,
        output_mode="native" if model.profile.get("supports_json_schema_output", False) else "prompted",
        # A copy: it is rewritten for the provider on the way.
        output_object=OutputObjectDefinition(
            json_schema=json.loads(json.dumps(schema)), name=name if fits else "answer"
        ),
    )
