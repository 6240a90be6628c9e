"""Render what a run does as text: for its model, for its log, and for its steps on record."""

from typing import Any

import msgspec

from domain.llms import ChatMessage, ModelToolCall, ToolFailed
from domain.shared.json_limits import JsonTooLarge, check_json
from domain.shared.unicode_text import repair_json_text
from workers.agent.schema import MAX_SHOWN_CHARACTERS


def render_tool_result(call: ModelToolCall, answer: dict[str, Any] | None) -> ChatMessage:
    """Return the message that gives a model the result of a tool call, or its error, cut if it is long."""
    fields = answer or {}
    content = {"error": fields["error"]} if "error" in fields else fields.get("result")
    text = msgspec.json.encode(content).decode()
    if len(text) > MAX_SHOWN_CHARACTERS:
        text = text[:MAX_SHOWN_CHARACTERS] + " … (cut)"
    return ChatMessage(role="tool", content=text, tool_call_id=call.id, name=call.name)


def limit_result(result: dict[str, Any]) -> dict[str, Any]:
    """Return a result as it goes on record: of one that is too large or too deep, the beginning of its text.

    Errors: `ToolFailed` for what JSON cannot hold, for example halves of surrogate pairs or endless nesting.
    """
    try:
        text = msgspec.json.encode(result).decode()
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError, TypeError) as error:
        raise ToolFailed(f"the answer cannot be kept as JSON: {error}"[:500]) from error
    if len(text) > 4 * MAX_SHOWN_CHARACTERS or not _is_within_limits(text):
        return {"text": text[:MAX_SHOWN_CHARACTERS], "truncated": True}
    return result


def render_arguments(arguments: str) -> Any:
    """Return the arguments of a call for people to read: as JSON where they are JSON, cut if they are long."""
    if len(arguments) > 4 * MAX_SHOWN_CHARACTERS or not _is_within_limits(arguments):
        return arguments[:MAX_SHOWN_CHARACTERS]
    try:
        return msgspec.json.decode(repair_json_text(arguments or "{}"))
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        return arguments[:MAX_SHOWN_CHARACTERS]


def _is_within_limits(text: str) -> bool:
    try:
        check_json(text.encode("utf-8", "surrogatepass"))
    except JsonTooLarge:
        return False
    return True


def render_transcript(messages: tuple[ChatMessage, ...]) -> str:
    """Return messages as text for people to read."""
    return "\n".join(f"[{message.role}] {message.content}" for message in messages)
