"""Turn the input of a request into the messages of a conversation.

A response is a sequence of items: reasoning, text, calls. Those that follow each other are one message of the
assistant, as the model wrote them.
"""

from typing import Any, Final

import msgspec

from domain.llms import ChatMessage, ModelToolCall
from infra.wires.common import (
    AssistantBuilder,
    ReasoningSeal,
    WireRefusal,
    build_message,
    convert_fields,
    drop_notes,
    find_last_mark,
)
from infra.wires.responses_wire.content import join_texts, read_parts
from infra.wires.responses_wire.fields import CALL_NOTES, MESSAGE_NOTES, OUTPUT_NOTES, REASONING_NOTES
from infra.wires.responses_wire.schema import FunctionCallItem, FunctionOutputItem, MessageItem, ReasoningInputItem

_TAKEN_TYPES: Final = "'message', 'function_call', 'function_call_output' and 'reasoning'"


class InputReader:
    """Read the input of one request. `earlier` are the messages of the response that it continues from."""

    def __init__(self, seal: ReasoningSeal, earlier: tuple[ChatMessage, ...]) -> None:
        self._seal = seal
        self._names = {call.id: call.name for message in earlier for call in message.tool_calls}
        self._messages: list[ChatMessage] = []
        self._answer = AssistantBuilder()

    def read_input(self, value: str | list[Any]) -> tuple[ChatMessage, ...]:
        """Return the messages of an input. Errors: `WireRefusal` names the item at fault."""
        if isinstance(value, str):
            return (ChatMessage(role="user", content=value),)
        for number, item in enumerate(value):
            self._read_item(item, f"input[{number}]")
        self._end_answer()
        return tuple(self._messages)

    def _read_item(self, item: Any, where: str) -> None:
        if not isinstance(item, dict):
            raise WireRefusal(400, f"`{where}` must be an object.", param=where)
        kind = item.get("type", "message" if "role" in item else None)
        match kind:
            case "message":
                self._read_message(convert_fields(drop_notes(item, MESSAGE_NOTES), MessageItem, where), where)
            case "function_call":
                self._read_call(convert_fields(_drop_caller(item, CALL_NOTES), FunctionCallItem, where))
            case "function_call_output":
                output = convert_fields(_drop_caller(item, OUTPUT_NOTES), FunctionOutputItem, where)
                self._read_output(output, where)
            case "reasoning":
                self._read_reasoning(convert_fields(drop_notes(item, REASONING_NOTES), ReasoningInputItem, where))
            case _:
                message = f"`{where}` is of type {str(kind)[:64]!r}; {_TAKEN_TYPES} alone are taken here."
                raise WireRefusal(400, message, param=where)

    def _read_message(self, message: MessageItem, where: str) -> None:
        is_user = message.role == "user"
        parts = read_parts(message.content, f"{where}.content", takes_images=is_user)
        if message.role == "assistant":
            self._answer.add_text(join_texts(parts, ""))
            return
        self._end_answer()
        if is_user:
            self._messages.append(build_message("user", parts))
        else:
            content = join_texts(parts, "\n")
            self._messages.append(ChatMessage(role="system", content=content, cache=find_last_mark(parts)))

    def _read_call(self, call: FunctionCallItem) -> None:
        arguments = call.arguments if isinstance(call.arguments, str) else msgspec.json.encode(call.arguments).decode()
        self._answer.add_call(ModelToolCall(id=call.call_id, name=call.name, arguments=arguments))
        self._names[call.call_id] = call.name

    def _read_output(self, output: FunctionOutputItem, where: str) -> None:
        self._end_answer()
        if (name := self._names.get(output.call_id)) is None:
            message = f"`{where}.call_id` must be the `call_id` of a function call in an item before."
            raise WireRefusal(400, message, param=f"{where}.call_id")
        parts = read_parts(output.output, f"{where}.output", takes_images=True)
        self._messages.append(build_message("tool", parts, tool_call_id=output.call_id, name=name))

    def _read_reasoning(self, reasoning: ReasoningInputItem) -> None:
        # Reasoning from elsewhere is left out: its provider is not known, and another one would refuse it.
        if reasoning.encrypted_content and (item := self._seal.open_reasoning(reasoning.encrypted_content)):
            self._answer.add_reasoning(item)

    def _end_answer(self) -> None:
        if not self._answer.is_empty:
            self._messages.append(self._answer.build_message())
            self._answer = AssistantBuilder()


def _drop_caller(item: dict[str, Any], notes: frozenset[str]) -> Any:
    """Drop the notes of a call, and its caller unless that is a program at the provider."""
    fields = drop_notes(item, notes)
    if fields.get("caller") == {"type": "direct"}:
        del fields["caller"]
    if fields.get("async") is False:
        del fields["async"]
    return fields
