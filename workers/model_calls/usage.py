"""Count what one call of a model uses, and clean its answer of what cannot be stored."""

import time
from typing import Final

import msgspec

from domain.llms import (
    ChatMessage,
    ModelErrorKind,
    ModelReply,
    ModelToolCall,
    ModelUsage,
    ReasoningDelta,
    ReasoningItem,
    ReplyNotice,
    ReplyPart,
    ReportedUsage,
    TextDelta,
    ToolCallDelta,
    ToolSpec,
    measure_message,
)
from domain.shared.unicode_text import repair_text

# Tokens that a server may report for one call: a higher figure is not a real one.
MAX_CALL_TOKENS: Final = 10**9
# Errors after which a provider may have worked on the prompt. A refusal costs nothing.
_BILLED_ERRORS: Final[frozenset[ModelErrorKind]] = frozenset({"timeout", "cut_off", "malformed"})


class UsageMeter:
    """Count what one call has used so far."""

    def __init__(self, messages: tuple[ChatMessage, ...], tools: tuple[ToolSpec, ...]) -> None:
        self.prompt_bytes = sum(measure_message(message) for message in messages) + sum(
            _measure_tool(tool) for tool in tools
        )
        self.answer_bytes = self.part_count = 0
        self.started_at = time.monotonic()
        self.first_part_at: float | None = None
        self._is_sent = False
        self._reported: ReportedUsage | None = None
        self._reported_at = 0  # bytes of the answer when it was reported

    def note_sent(self) -> None:
        """Note that the request was sent: its prompt is billed, even without an answer."""
        self._is_sent = True

    def count_part(self, part: ReplyPart) -> None:
        """Count a part of the answer."""
        self._is_sent = True
        if isinstance(part, ReportedUsage):
            self._reported, self._reported_at = part, self.answer_bytes
            return
        if isinstance(part, ModelReply):
            if part.usage is not None and self._reported is None:
                self._reported, self._reported_at = _build_reported_usage(part.usage), self.answer_bytes
            return
        self.part_count += 1
        if self.first_part_at is None:
            self.first_part_at = time.monotonic()
        if isinstance(part, TextDelta | ReasoningDelta):
            self.answer_bytes += len(part.text.encode())
        elif isinstance(part, ToolCallDelta):
            # A call without arguments gets `{}` when the answer ends: the model wrote none of it.
            arguments = "" if part.arguments == "{}" else part.arguments
            self.answer_bytes += len(arguments.encode()) + len((part.name or "").encode())

    @property
    def max_prompt_tokens(self) -> int:
        """The most tokens that the prompt may have: half as many as bytes."""
        return self.prompt_bytes // 2 + 16

    def measure_usage(self, error: ModelErrorKind | None = None) -> tuple[ModelUsage, bool]:
        """Return the tokens to bill, and whether any of them are estimated: a token is four bytes.

        The server's report counts, also when the call failed afterwards, with an estimate of what came since. A report
        of no tokens for an answer that has text is ignored.
        """
        reported = self._reported
        if reported is None and (
            not self._is_sent or (error not in (None, *_BILLED_ERRORS) and self.first_part_at is None)
        ):
            return ModelUsage(), False
        report = reported or ReportedUsage()
        prompt, completion = _check_token_count(report.prompt_tokens), _check_token_count(report.completion_tokens)
        if completion == 0 and self.answer_bytes:
            completion = None
        since = self.answer_bytes - (self._reported_at if completion is not None else 0)
        estimated = -(-since // 4)
        is_estimated = not prompt or estimated > 0
        prompt = prompt or self.prompt_bytes // 4 + 1
        completion = (completion or 0) + estimated
        usage = ModelUsage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            cached_tokens=min(_check_token_count(report.cached_tokens) or 0, prompt),
            reasoning_tokens=min(_check_token_count(report.reasoning_tokens) or 0, completion),
        )
        return usage, is_estimated


def _build_reported_usage(usage: ModelUsage) -> ReportedUsage:
    return ReportedUsage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
        reasoning_tokens=usage.reasoning_tokens,
    )


def _check_token_count(tokens: int | None) -> int | None:
    return tokens if tokens is not None and 0 <= tokens <= MAX_CALL_TOKENS else None


def clean_text(text: str) -> str:
    """Return text that a database column can hold: well-formed, and without U+0000."""
    return repair_text(text).replace("\0", "\ufffd")


def clean_part(part: ReplyPart) -> ReplyPart:
    """Return a part whose texts can be stored, even if a server sent malformed ones."""
    if isinstance(part, TextDelta):
        return part if part.text.isascii() else TextDelta(repair_text(part.text))
    if isinstance(part, ReasoningDelta):
        return part if part.text.isascii() else ReasoningDelta(repair_text(part.text))
    if isinstance(part, ReplyNotice):
        return ReplyNotice(clean_text(part.message))
    if isinstance(part, ReportedUsage | ReasoningItem):
        return part
    if isinstance(part, ToolCallDelta):
        if part.id is None and part.name is None and part.arguments.isascii():
            return part
        name = None if part.name is None else clean_text(part.name)
        call_id = None if part.id is None else clean_text(part.id)
        return ToolCallDelta(index=part.index, id=call_id, name=name, arguments=repair_text(part.arguments))
    calls = tuple(
        ModelToolCall(id=clean_text(call.id), name=clean_text(call.name), arguments=repair_text(call.arguments))
        for call in part.message.tool_calls
    )
    message = msgspec.structs.replace(part.message, content=repair_text(part.message.content), tool_calls=calls)
    return msgspec.structs.replace(part, message=message)


def _measure_tool(tool: ToolSpec) -> int:
    return len(tool.description.encode()) + len(str(tool.parameters).encode()) + len(tool.name) + 32
