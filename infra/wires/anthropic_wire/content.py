"""Turn the messages of a request into those of a conversation: blocks of text, calls, results and thinking."""

from typing import Any, Final

import msgspec

from domain.llms import ChatMessage, MessagePart, MessageText, ModelToolCall
from infra.wires.anthropic_wire import fields as field_tables
from infra.wires.anthropic_wire.schema import InputMessage, ThinkingBlock, ToolResultBlock, ToolUseBlock
from infra.wires.common import (
    IMAGE_KINDS,
    AssistantBuilder,
    ReasoningSeal,
    WireRefusal,
    build_message,
    convert_fields,
    drop_notes,
    read_image,
    read_part_mark,
    read_text,
)

_TAKEN_BLOCKS: Final = "'text', 'image', 'tool_use', 'tool_result', 'thinking' and 'redacted_thinking'"


class ContentReader:
    """Read the messages of one request."""

    def __init__(self, seal: ReasoningSeal) -> None:
        self._seal = seal
        self._names: dict[str, str] = {}
        self._messages: list[ChatMessage] = []

    def read_messages(self, messages: list[InputMessage]) -> tuple[ChatMessage, ...]:
        """Return the messages of a conversation. Errors: `WireRefusal` names the block at fault."""
        for number, message in enumerate(messages):
            where = f"messages[{number}].content"
            if message.role == "assistant":
                self._read_answer(message.content, where)
            elif message.role == "system":
                self._messages += read_system(message.content, where)
            else:
                self._read_user(message.content, where)
        return tuple(self._messages)

    def _read_answer(self, content: str | list[Any], where: str) -> None:
        answer = AssistantBuilder()
        for block, kind, place in _list_blocks(content, where):
            match kind:
                case "text":
                    text = _read_text(block, place)
                    answer.add_text(text.text)
                    answer.add_mark(text.cache)
                case "tool_use":
                    use = convert_fields(_drop_caller(block), ToolUseBlock, place)
                    arguments = msgspec.json.encode(use.input).decode()
                    answer.add_call(ModelToolCall(id=use.id, name=use.name, arguments=arguments))
                    answer.add_mark(read_part_mark(use.cache_control, place))
                    self._names[use.id] = use.name
                case "thinking" | "redacted_thinking":
                    thinking = convert_fields(drop_notes(block, field_tables.THINKING_NOTES), ThinkingBlock, place)
                    # Thinking from elsewhere is left out: its provider is not known, and another one would refuse it.
                    if item := self._seal.open_reasoning(thinking.signature or thinking.data):
                        answer.add_reasoning(item)
                case _:
                    raise _refuse_block(kind, place)
        if not answer.is_empty:
            self._messages.append(answer.build_message())

    def _read_user(self, content: str | list[Any], where: str) -> None:
        parts: list[MessagePart] = []
        for block, kind, place in _list_blocks(content, where):
            if kind == "tool_result":
                self._end_parts(parts)
                result = convert_fields(drop_notes(block, field_tables.BLOCK_NOTES), ToolResultBlock, place)
                self._read_result(result, place)
            else:
                parts.append(_read_part(block, kind, place))
        self._end_parts(parts)

    def _end_parts(self, parts: list[MessagePart]) -> None:
        if parts:
            self._messages.append(build_message("user", parts))
            parts.clear()

    def _read_result(self, result: ToolResultBlock, where: str) -> None:
        if (name := self._names.get(result.tool_use_id)) is None:
            message = f"`{where}.tool_use_id` must be the `id` of a `tool_use` block in a message before."
            raise WireRefusal(400, message, param=f"{where}.tool_use_id")
        blocks = _list_blocks(result.content, f"{where}.content")
        message_of_tool = build_message(
            "tool",
            [_read_part(block, kind, place) for block, kind, place in blocks],
            tool_call_id=result.tool_use_id,
            name=name,
            is_error=result.is_error,
        )
        cache = read_part_mark(result.cache_control, where) or message_of_tool.cache
        self._messages.append(msgspec.structs.replace(message_of_tool, cache=cache))


def read_system(content: str | list[Any], where: str = "system") -> tuple[ChatMessage, ...]:
    """Return a system prompt as a message for each of its blocks. Errors: `WireRefusal`."""
    texts: list[MessageText] = []
    for block, kind, place in _list_blocks(content, where):
        if kind != "text":
            raise _refuse_block(kind, place)
        texts.append(_read_text(block, place))
    return tuple(ChatMessage(role="system", content=text.text, cache=text.cache) for text in texts if text.text)


def _list_blocks(content: str | list[Any], where: str) -> list[tuple[dict[str, Any], str, str]]:
    """Return each block with its type and its place. A text alone is a block of text."""
    if isinstance(content, str):
        return [({"type": "text", "text": content}, "text", where)] if content else []
    blocks: list[tuple[dict[str, Any], str, str]] = []
    for number, block in enumerate(content):
        place = f"{where}[{number}]"
        if isinstance(block, str):
            block = {"type": "text", "text": block}
        if not isinstance(block, dict) or not isinstance(kind := block.get("type"), str):
            raise WireRefusal(400, f"`{place}` must be an object with a `type`.", param=place)
        blocks.append((block, kind, place))
    return blocks


def _read_part(block: dict[str, Any], kind: str, where: str) -> MessagePart:
    if kind == "text":
        return _read_text(block, where)
    if kind not in IMAGE_KINDS:
        raise _refuse_block(kind, where)
    return read_image(kind, drop_notes(block, field_tables.BLOCK_NOTES), where)


def _read_text(block: dict[str, Any], where: str) -> MessageText:
    return read_text(drop_notes(block, field_tables.TEXT_NOTES), "text", where)


def _drop_caller(block: dict[str, Any]) -> Any:
    """Drop the notes of a call, and its caller unless that is a program at the provider."""
    fields = drop_notes(block, field_tables.BLOCK_NOTES)
    if fields.get("caller") == {"type": "direct"}:
        del fields["caller"]
    return fields


def _refuse_block(kind: str, where: str) -> WireRefusal:
    message = (
        f"`{where}` is of type {kind[:64]!r}, which is not taken here. Taken are {_TAKEN_BLOCKS}, each in its role."
    )
    return WireRefusal(400, message, param=where)
