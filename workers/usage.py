"""What comes of one call of a model: counted, and fit to be kept, whatever a server puts into its answer."""

import time
from typing import Final

import msgspec

from domain.llms.messages import (
    CallPart,
    ErrorKind,
    Message,
    Notice,
    Part,
    Reply,
    ReportedUsage,
    Text,
    Thought,
    ToolCall,
    ToolSpec,
    Usage,
)
from domain.shared.unicode_text import mend_text

# What a server may say that one call used, in tokens: more is made up.
MOST_TOKENS: Final = 10**9
# Errors after which a provider has worked on the prompt, or may have: a refusal costs nothing, silence may.
_WORKED: Final[frozenset[ErrorKind]] = frozenset({"timeout", "cut_off", "malformed"})


class Meter:
    """What has come of one call so far."""

    def __init__(self, messages: tuple[Message, ...], tools: tuple[ToolSpec, ...]) -> None:
        self.prompt_bytes = sum(_size(message) for message in messages) + sum(_tool_size(tool) for tool in tools)
        self.answer_bytes = self.parts = 0
        self.begun = time.monotonic()
        self.first: float | None = None
        self._is_sent = False
        self._reported: ReportedUsage | None = None
        self._reported_at = 0  # bytes of the answer when it was reported

    def note_sent(self) -> None:
        """Note that the request has gone out: its prompt is owed, whatever becomes of the answer."""
        self._is_sent = True

    def take(self, part: Part) -> None:
        """Count a part of the answer."""
        self._is_sent = True
        if isinstance(part, ReportedUsage):
            self._reported, self._reported_at = part, self.answer_bytes
            return
        if isinstance(part, Reply):
            if part.usage is not None and self._reported is None:
                self._reported, self._reported_at = _reported(part.usage), self.answer_bytes
            return
        self.parts += 1
        if self.first is None:
            self.first = time.monotonic()
        if isinstance(part, Text | Thought):
            self.answer_bytes += len(part.text.encode())
        elif isinstance(part, CallPart):
            # A call that came without arguments is given `{}` when the answer has ended: the model wrote none of it.
            arguments = "" if part.arguments == "{}" else part.arguments
            self.answer_bytes += len(arguments.encode()) + len((part.name or "").encode())

    @property
    def most_prompt(self) -> int:
        """Tokens of the prompt, rather too many: half as many as bytes."""
        return self.prompt_bytes // 2 + 16

    def owed(self, error: ErrorKind | None = None) -> tuple[Usage, bool]:
        """Return the tokens to bill, and whether any of them are estimated: a token is four bytes.

        What was reported counts, also when the call failed afterwards, with what came since. A report of nothing for
        what was there is none.
        """
        reported = self._reported
        if reported is None and (not self._is_sent or (error not in (None, *_WORKED) and self.first is None)):
            return Usage(), False
        told = reported or ReportedUsage()
        prompt, completion = _plausible(told.prompt_tokens), _plausible(told.completion_tokens)
        if completion == 0 and self.answer_bytes:
            completion = None
        since = self.answer_bytes - (self._reported_at if completion is not None else 0)
        guessed = -(-since // 4)
        is_estimated = not prompt or guessed > 0
        prompt = prompt or self.prompt_bytes // 4 + 1
        completion = (completion or 0) + guessed
        usage = Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            cached_tokens=min(_plausible(told.cached_tokens) or 0, prompt),
            reasoning_tokens=min(_plausible(told.reasoning_tokens) or 0, completion),
        )
        return usage, is_estimated


def _reported(usage: Usage) -> ReportedUsage:
    return ReportedUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        reasoning_tokens=usage.reasoning_tokens,
    )


def _plausible(tokens: int | None) -> int | None:
    return tokens if tokens is not None and 0 <= tokens <= MOST_TOKENS else None


def plain(text: str) -> str:
    """Text that columns of text can hold: without U+0000 as well."""
    return mend_text(text).replace("\0", "\ufffd")


def sound(part: Part) -> Part:
    """A part whose texts can be kept, whatever a server put into them."""
    if isinstance(part, Text):
        return part if part.text.isascii() else Text(mend_text(part.text))
    if isinstance(part, Thought):
        return part if part.text.isascii() else Thought(mend_text(part.text))
    if isinstance(part, Notice):
        return Notice(plain(part.message))
    if isinstance(part, ReportedUsage):
        return part
    if isinstance(part, CallPart):
        if part.id is None and part.name is None and part.arguments.isascii():
            return part
        name = None if part.name is None else plain(part.name)
        given = None if part.id is None else plain(part.id)
        return CallPart(index=part.index, id=given, name=name, arguments=mend_text(part.arguments))
    calls = tuple(
        ToolCall(id=plain(call.id), name=plain(call.name), arguments=mend_text(call.arguments))
        for call in part.message.tool_calls
    )
    message = msgspec.structs.replace(part.message, content=mend_text(part.message.content), tool_calls=calls)
    return msgspec.structs.replace(part, message=message)


def _size(message: Message) -> int:
    calls = sum(len(call.name.encode()) + len(call.arguments.encode()) for call in message.tool_calls)
    return len(message.content.encode()) + calls + 16


def _tool_size(tool: ToolSpec) -> int:
    return len(tool.description.encode()) + len(str(tool.parameters).encode()) + len(tool.name) + 32
