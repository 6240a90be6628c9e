"""What comes of one call of a model: counted, and fit to be kept, whatever a server puts into its answer."""

import time
from typing import Final

import msgspec

from domain.chat import CallPart, Message, Part, Text, Thought, ToolCall, ToolSpec, Usage

# What a server may say that one call used, in tokens: more is made up.
MOST_TOKENS: Final = 10**9


class Meter:
    """What has come of one call so far."""

    def __init__(self, messages: tuple[Message, ...], tools: tuple[ToolSpec, ...]) -> None:
        self.prompt_bytes = sum(_size(message) for message in messages) + sum(_tool_size(tool) for tool in tools)
        self.answer_bytes = self.parts = 0
        self.begun = time.monotonic()
        self.first: float | None = None

    def take(self, part: Part) -> None:
        """Count a part of the answer."""
        self.parts += 1
        if self.first is None:
            self.first = time.monotonic()
        if isinstance(part, Text | Thought):
            self.answer_bytes += len(part.text.encode())
        elif isinstance(part, CallPart):
            self.answer_bytes += len(part.arguments.encode()) + len((part.name or "").encode())

    @property
    def most_prompt(self) -> int:
        """Tokens of the prompt, rather too many: half as many as bytes."""
        return self.prompt_bytes // 2 + 16

    def guess(self) -> Usage:
        """Tokens by rule of thumb, for providers that do not tell: a token is four bytes."""
        answered = self.first is not None
        return Usage(
            prompt_tokens=self.prompt_bytes // 4 + 1 if answered else 0, completion_tokens=-(-self.answer_bytes // 4)
        )


def kept_text(text: str) -> str:
    """Text that can be kept: halves of surrogate pairs that came alone are no characters."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def plain(text: str) -> str:
    """Text that columns of text can hold: without U+0000 as well."""
    return kept_text(text).replace("\0", "\ufffd")


def believed(usage: Usage | None) -> Usage | None:
    """What a server says was used, unless it cannot be."""
    if usage is None:
        return None
    numbers = (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.reasoning_tokens)
    return usage if all(0 <= number <= MOST_TOKENS for number in numbers) else None


def sound(part: Part) -> Part:
    """A part whose texts can be kept, whatever a server put into them."""
    if isinstance(part, Text):
        return part if part.text.isascii() else Text(kept_text(part.text))
    if isinstance(part, Thought):
        return part if part.text.isascii() else Thought(kept_text(part.text))
    if isinstance(part, CallPart):
        if part.id is None and part.name is None and part.arguments.isascii():
            return part
        name = None if part.name is None else plain(part.name)
        given = None if part.id is None else plain(part.id)
        return CallPart(index=part.index, id=given, name=name, arguments=kept_text(part.arguments))
    calls = tuple(
        ToolCall(id=plain(call.id), name=plain(call.name), arguments=kept_text(call.arguments))
        for call in part.message.tool_calls
    )
    message = msgspec.structs.replace(part.message, content=kept_text(part.message.content), tool_calls=calls)
    return msgspec.structs.replace(part, message=message)


def _size(message: Message) -> int:
    calls = sum(len(call.name.encode()) + len(call.arguments.encode()) for call in message.tool_calls)
    return len(message.content.encode()) + calls + 16


def _tool_size(tool: ToolSpec) -> int:
    return len(tool.description.encode()) + len(str(tool.parameters).encode()) + len(tool.name) + 32
