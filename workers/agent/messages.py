"""How what a run does is put into words: for its model, for its log, for its steps on record."""

from typing import Any

import msgspec

from domain.llms import ChatMessage, ModelToolCall, ToolFailed
from domain.shared.json_limits import JsonTooLarge, check_json
from domain.shared.unicode_text import repair_json_text
from workers.agent.tools import MAX_SHOWN_CHARACTERS


def render_tool_result(call: ModelToolCall, answer: dict[str, Any] | None) -> ChatMessage:
    """What a model is told of a tool call: its result or what went wrong, and not too much of it."""
    told = {} if answer is None else answer
    told_of = {"error": told["error"]} if "error" in told else told.get("result")
    text = msgspec.json.encode(told_of).decode()
    if len(text) > MAX_SHOWN_CHARACTERS:
        text = text[:MAX_SHOWN_CHARACTERS] + " … (cut)"
    return ChatMessage(role="tool", content=text, tool_call_id=call.id, name=call.name)


def limit_result(result: dict[str, Any]) -> dict[str, Any]:
    """A result as it goes on record: one that is too large or too deep is shown as the beginning of its text.

    Errors: `ToolFailed` for what no JSON can hold, such as halves of surrogate pairs or endless nesting.
    """
    try:
        text = msgspec.json.encode(result).decode()
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError, TypeError) as error:
        raise ToolFailed(f"the answer cannot be kept as JSON: {error}"[:500]) from error
    if len(text) > 4 * MAX_SHOWN_CHARACTERS or not _is_within_limits(text):
        return {"text": text[:MAX_SHOWN_CHARACTERS], "truncated": True}
    return result


def render_arguments(arguments: str) -> Any:
    """Arguments as people read them: JSON if they are, and not too much."""
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
    """Messages as people read them."""
    return "\n".join(f"[{message.role}] {message.content}" for message in messages)
