"""Read and show the messages of a conversation in the form of OpenAI's chat completions.

What `GET /threads/{id}/messages` shows can be sent back as `messages` of a start.
"""

import base64
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from domain.llms.content import (
    COUNTED_IMAGE_BYTES,
    MAX_IMAGES,
    ImageDetail,
    MessageImage,
    MessagePart,
    MessageText,
    join_text,
)
from domain.llms.image_urls import BadImage, read_image_url
from domain.llms.messages import ChatMessage, MessageRole, ModelToolCall
from domain.shared.errors import InvalidField

# Messages and bytes of JSON that one request may bring along.
MAX_SENT_MESSAGES: Final = 2000
MAX_SENT_BYTES: Final = 8 * 1024 * 1024
MAX_TOOL_CALLS: Final = 128
BYTES_PER_TOKEN: Final = 4

LongText = Annotated[str, Meta(max_length=1_000_000)]
CallId = Annotated[str, Meta(min_length=1, max_length=200)]


class ConversationFunction(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Name the function that a model calls. `arguments` is JSON as text."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    arguments: Annotated[str, Meta(max_length=1_000_000)] = "{}"


class ConversationToolCall(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Describe a tool call of an assistant's message."""

    id: CallId
    type: Literal["function"] = "function"
    function: ConversationFunction


class ImageLink(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Name an image: an https URL, or a data: URL with the image itself."""

    url: str
    detail: ImageDetail | None = None


class ContentPart(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Hold a part of a message: a `text`, or an `image_url`."""

    type: Literal["text", "image_url"]
    text: LongText | None = None
    image_url: ImageLink | None = None


class ConversationMessage(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Describe a message. `content` is text, or a list of texts and images in messages of users and tools.

    A message of the role `tool` has the `tool_call_id` of the call that it answers, which an earlier message of the
    assistant has in its `tool_calls`. `name` is the tool's name.
    """

    role: MessageRole
    content: LongText | Annotated[list[ContentPart], Meta(max_length=1000)] | None = None
    tool_calls: Annotated[list[ConversationToolCall], Meta(max_length=MAX_TOOL_CALLS)] | None = None
    tool_call_id: CallId | None = None
    name: Annotated[str, Meta(max_length=256)] | None = None


def read_conversation(
    messages: Sequence[ConversationMessage], field: str = "messages", open_calls: Iterable[str] = ()
) -> list[ChatMessage]:
    """Return the messages as models read them. `open_calls` are calls before them that have no result yet.

    Errors: `invalid_field` naming the message: `messages[3].tool_call_id`.
    """
    if not 0 < len(messages) <= MAX_SENT_MESSAGES:
        raise InvalidField(field, f"must be 1 to {MAX_SENT_MESSAGES} messages.")
    if (size := len(msgspec.json.encode(messages))) > MAX_SENT_BYTES:
        raise InvalidField(field, f"have {size} bytes of JSON; at most {MAX_SENT_BYTES} are allowed.")
    chat = [_read_message(message, f"{field}[{place}]") for place, message in enumerate(messages)]
    if sum(isinstance(part, MessageImage) for message in chat for part in message.parts) > MAX_IMAGES:
        raise InvalidField(field, f"have too many images; at most {MAX_IMAGES} are allowed.")
    _check_results(chat, field, list(open_calls))
    return chat


def _read_message(message: ConversationMessage, field: str) -> ChatMessage:
    """Return one message. Errors: `invalid_field`."""
    role, is_tool = message.role, message.role == "tool"
    if message.tool_calls and role != "assistant":
        raise InvalidField(f"{field}.tool_calls", f"belong to the role assistant; this message has the role {role}.")
    if is_tool and message.tool_call_id is None:
        raise InvalidField(f"{field}.tool_call_id", "is required: name the call that this message answers.")
    if not is_tool and message.tool_call_id is not None:
        raise InvalidField(f"{field}.tool_call_id", f"belongs to the role tool; this message has the role {role}.")
    parts = _read_parts(message, field)
    calls = tuple(
        ModelToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
        for call in message.tool_calls or []
    )
    if not parts and not calls and not is_tool:
        raise InvalidField(f"{field}.content", "is required.")
    has_images = any(isinstance(part, MessageImage) for part in parts)
    if has_images and role not in ("user", "tool"):
        raise InvalidField(f"{field}.content", f"must be text in a message of the role {role}.")
    return ChatMessage(
        role=role,
        content=join_text(parts),
        parts=parts if has_images else (),
        tool_calls=calls,
        tool_call_id=message.tool_call_id,
        name=message.name,
    )


def _read_parts(message: ConversationMessage, field: str) -> tuple[MessagePart, ...]:
    if message.content is None:
        return ()
    if isinstance(message.content, str):
        return (MessageText(text=message.content),) if message.content else ()
    parts: list[MessagePart] = []
    for place, part in enumerate(message.content):
        here = f"{field}.content[{place}]"
        value = part.text if part.type == "text" else part.image_url
        if value is None or (part.text is not None and part.image_url is not None):
            raise InvalidField(here, f"must have {part.type!r} and nothing else beside its type.")
        if isinstance(value, str):
            parts.append(MessageText(text=value))
            continue
        try:
            parts.append(msgspec.structs.replace(read_image_url(value.url), detail=value.detail))
        except BadImage as error:
            raise InvalidField(f"{here}.image_url.url", error.reason) from None
    return tuple(parts)


def _check_results(messages: list[ChatMessage], field: str, waiting: list[str]) -> None:
    """Check that each result follows the message with its call, and each call has one. Errors: `invalid_field`."""
    caller = ""
    for place, message in enumerate(messages):
        if message.role == "tool":
            if message.tool_call_id not in waiting:
                reason = "answers no call of the message of the assistant before it, or one that has a result."
                raise InvalidField(f"{field}[{place}].tool_call_id", f"{message.tool_call_id!r} {reason}")
            waiting.remove(message.tool_call_id)
            continue
        if waiting and caller:
            break
        waiting = [call.id for call in message.tool_calls]
        caller = f"{field}[{place}].tool_calls" if waiting else ""
    if waiting and caller:
        reason = "has no result. A message with the role tool and this tool_call_id must follow."
        raise InvalidField(caller, f"the call {waiting[0]!r} {reason}")


def show_message(message: ChatMessage) -> ConversationMessage:
    """Return a message in the form in which it can be sent. What its provider alone can read is left out."""
    content: str | list[ContentPart] | None = message.content
    if message.parts:
        content = [_show_part(part) for part in message.parts]
    elif not message.content and message.tool_calls:
        content = None
    calls = [
        ConversationToolCall(id=call.id, function=ConversationFunction(name=call.name, arguments=call.arguments))
        for call in message.tool_calls
    ]
    return ConversationMessage(
        role=message.role,
        content=content,
        tool_calls=calls or None,
        tool_call_id=message.tool_call_id,
        name=message.name,
    )


def _show_part(part: MessagePart) -> ContentPart:
    if isinstance(part, MessageText):
        return ContentPart(type="text", text=part.text)
    url = part.url or f"data:{part.media_type};base64,{base64.b64encode(part.data).decode()}"
    return ContentPart(type="image_url", image_url=ImageLink(url=url, detail=part.detail))


def message_to_json(message: ConversationMessage) -> dict[str, Any]:
    """Return a message as JSON, without the fields that it does not have."""
    fields: dict[str, Any] = msgspec.to_builtins(message)
    return {name: value for name, value in fields.items() if value is not None or name == "content"}


def measure_message(message: ChatMessage) -> int:
    """Return the bytes that a message counts for in a prompt."""
    calls = sum(len(call.name.encode()) + len(call.arguments.encode()) for call in message.tool_calls)
    images = sum(isinstance(part, MessageImage) for part in message.parts)
    return len(message.content.encode()) + calls + 16 + images * COUNTED_IMAGE_BYTES


def estimate_tokens(message: ChatMessage) -> int:
    """Return about how many tokens a message has: one for four bytes, and at least one."""
    return max(1, measure_message(message) // BYTES_PER_TOKEN)


def list_open_calls(messages: Sequence[ChatMessage]) -> list[str]:
    """Return the ids of the calls at the end of a conversation that have no result yet."""
    waiting: list[str] = []
    for message in messages:
        if message.role != "tool":
            waiting = [call.id for call in message.tool_calls]
        elif message.tool_call_id in waiting:
            waiting.remove(message.tool_call_id)
    return waiting
