"""Convert our messages and tools to those of pydantic-ai."""

from collections.abc import Sequence
from typing import Any, Final, Literal, cast

import msgspec
from pydantic_ai.messages import (
    BinaryContent,
    CachePoint,
    ImageUrl,
    ModelMessage,
    ModelRequest,
    ModelRequestPart,
    ModelResponse,
    ModelResponsePart,
    SystemPromptPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserContent,
    UserPromptPart,
)
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.output import OutputObjectDefinition
from pydantic_ai.tools import ToolDefinition

from domain.llms import CacheTtl, ChatMessage, MessageText, ModelCall, ModelTarget, ToolSpec
from infra.llm.call_ids import map_call_ids
from infra.llm.wire_models import CACHE_METADATA, MarkedSystemPrompt

_PROVIDERS_WITH_SHOWN_TOOLS: Final = frozenset({"anthropic", "bedrock"})


def build_history(
    messages: Sequence[ChatMessage], target: ModelTarget, writer: str, model: Model[Any]
) -> list[ModelMessage]:
    """Build the conversation: answers become responses, and the messages between two answers become one request.

    Empty answers are left out. `writer` gets the provider parts of its own answers back, but not those of others.
    Marks for the cache are kept for models that know them.
    """
    history: list[ModelMessage] = []
    request_parts: list[ModelRequestPart] = []
    tools: dict[str, str] = {}
    takes_marks = isinstance(model, AnthropicModel) or any(
        model.profile.get(name)
        for name in ("openai_supports_prompt_cache_breakpoints", "bedrock_supports_prompt_caching")
    )
    for message in map_call_ids(messages, target, isinstance(model, OpenAIChatModel)):
        if message.role != "assistant":
            request_parts += _build_request_parts(message, tools, takes_marks)
            continue
        tools.update({call.id: call.name for call in message.tool_calls})
        if response := _build_response(message, writer):
            if request_parts:
                history.append(ModelRequest(parts=request_parts))
                request_parts = []
            history.append(response)
            if takes_marks and message.cache is not None:
                request_parts.append(_build_mark(message.cache))
    if request_parts:
        history.append(ModelRequest(parts=request_parts))
    return history


def _build_response(message: ChatMessage, writer: str) -> ModelResponse | None:
    # Arguments that are not a JSON object go back as {"INVALID_JSON": "…"}: servers that read them would refuse.
    calls = [ToolCallPart(call.name, call.arguments, tool_call_id=call.id) for call in message.tool_calls]
    stored = message.provider_parts
    if stored is None or stored.writer != writer:
        texts: list[ModelResponsePart] = [TextPart(message.content)] if message.content else []
        return ModelResponse(parts=[*texts, *calls]) if texts or calls else None
    parts: list[ModelResponsePart] = []
    fields: dict[str, Any] = {}
    for part in stored.parts:
        if "text" in part:
            parts.append(TextPart(part["text"]))
        elif "call" in part:
            calls[part["call"]].provider_details = part.get("extra")
            parts.append(calls[part["call"]])
        elif (item := part["item"]).get("type") == "thinking":
            if item["signature"]:
                parts.append(_build_thinking_part(item["thinking"], item["signature"]))
        elif item.get("type") == "redacted_thinking":
            parts.append(_build_thinking_part("", item.get("data"), id_="redacted_thinking"))
        elif item.get("type") == "signature":
            # Gemini signs the text before it, or an empty one.
            last = parts[-1] if parts and isinstance(parts[-1], TextPart) else TextPart("")
            parts += [] if parts and last is parts[-1] else [last]
            last.provider_details = {"thought_signature": item.get("thought_signature")}
        elif item.get("type") == "reasoning":
            parts.append(ThinkingPart("", provider_details={"item": {"summary": [], **item}}))
        else:
            fields |= item
    return ModelResponse(parts=parts, provider_details={"fields": fields})


def _build_thinking_part(text: str, signature: str | None, id_: str | None = None) -> ThinkingPart:
    return ThinkingPart(text, id=id_, signature=signature, provider_name="anthropic")


def _build_request_parts(message: ChatMessage, tools: dict[str, str], takes_marks: bool) -> list[ModelRequestPart]:
    mark = message.cache if takes_marks else None
    part: ModelRequestPart
    match message.role:
        case "system":
            return [MarkedSystemPrompt(message.content, cache=mark) if mark else SystemPromptPart(message.content)]
        case "tool":
            id_ = message.tool_call_id or ""
            name = message.name or tools.get(id_, "tool")
            # Where a provider has no flag for errors, the result becomes {"error": …}.
            outcome: Literal["success", "failed"] = "failed" if message.is_error else "success"
            content: Any = _build_content(message, False) if message.parts else message.content
            part = ToolReturnPart(name, content, tool_call_id=id_, outcome=outcome)
        case _:
            part = UserPromptPart(_build_content(message, takes_marks) if message.parts else message.content)
    return [part] if mark is None else [part, _build_mark(mark)]


def _build_mark(ttl: CacheTtl) -> UserPromptPart:
    """Build the mark that ends what stands before it in the request."""
    return UserPromptPart([CachePoint(ttl=ttl)])


def _build_content(message: ChatMessage, takes_marks: bool) -> list[UserContent]:
    content: list[UserContent] = []
    for part in message.parts:
        if isinstance(part, MessageText):
            content.append(part.text)
        else:
            details = None if part.detail is None else {"detail": part.detail}
            if part.url is not None:
                content.append(ImageUrl(part.url, vendor_metadata=details))
            else:
                content.append(BinaryContent(part.data, media_type=part.media_type, vendor_metadata=details))
        if takes_marks and part.cache is not None:
            content.append(CachePoint(ttl=part.cache))
    return content


def build_parameters(ask: ModelCall, model: Model[Any]) -> ModelRequestParameters:
    """Build tools and the answer's schema: by the provider's own means if it has them, else as words of the prompt."""
    tools = [
        # Not strict: a strict tool's schema is rewritten, and an object that may hold anything may then hold nothing.
        ToolDefinition(
            name=tool.name,
            description=tool.description,
            parameters_json_schema=tool.parameters,
            strict=False,
            metadata=None if tool.cache is None else {CACHE_METADATA: tool.cache},
        )
        for tool in ask.tools or _list_called_tools(ask)
    ]
    if (schema := ask.options.schema) is None:
        return ModelRequestParameters(function_tools=tools)
    name = schema.get("title")
    fits = isinstance(name, str) and name.isascii() and name.isidentifier() and len(name) <= 64
    return ModelRequestParameters(
        function_tools=tools,
        output_mode="native" if model.profile.get("supports_json_schema_output", False) else "prompted",
        output_object=OutputObjectDefinition(
            json_schema=_copy_schema(schema), name=name if fits else "answer", strict=_choose_strict(schema, model)
        ),
    )


def _list_called_tools(ask: ModelCall) -> list[ToolSpec]:
    """Return the tools that a conversation has called, for a call without tools of its own.

    Anthropic and Bedrock refuse a conversation with calls of tools that they are not shown.
    """
    if ask.target.provider not in _PROVIDERS_WITH_SHOWN_TOOLS:
        return []
    names = dict.fromkeys(call.name for message in ask.messages for call in message.tool_calls)
    description = "No longer available: do not call it."
    return [ToolSpec(name=name, description=description, parameters={"type": "object"}) for name in names]


def _choose_strict(schema: dict[str, Any], model: Model[Any]) -> bool | None:
    """Return None, the strictest choice, for a schema that keeps its meaning when it is strict, else False."""
    transformer = model.profile.get("json_schema_transformer")
    if transformer is None or not isinstance(
        model, OpenAIChatModel | OpenAIResponsesModel
    ):  # Anthropic's are always strict
        return None
    walk = transformer(_copy_schema(schema), strict=None)
    walk.walk()
    return None if walk.is_strict_compatible else False


def _copy_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a copy that may be changed."""
    return cast(dict[str, Any], msgspec.json.decode(msgspec.json.encode(schema)))
