"""Build an answer from its pieces, for every wire."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final
from uuid import uuid4

import msgspec

from domain.llms import (
    ChatMessage,
    FinishReason,
    ModelCall,
    ModelReply,
    ModelToolCall,
    ModelUsage,
    ProviderParts,
    ReasoningDelta,
    ReasoningItem,
    ReplyNotice,
    ReplyPart,
    ReportedUsage,
    TextDelta,
    ToolCallDelta,
)
from domain.shared.unicode_text import repair_json, repair_text
from infra.llm import model_errors
from infra.llm.event_stream import MAX_ANSWER_BYTES

# Limit for the JSON that one answer stores for its provider.
_MAX_PROVIDER_BYTES: Final = 4 << 20
# Bytes that are not UTF-8, as Python escapes them when it decodes JSON.
_ESCAPED_BYTES: Final = re.compile("(?<![\ud800-\udbff])[\udc80-\udcff]+")
_TRAILING_BYTES: Final = re.compile("(?:^|[^\ud800-\udbff])([\udc80-\udcff]{1,3})$")


class TextMender:
    """Mend text that comes in pieces: join halves of emoji and characters whose bytes were split."""

    def __init__(self) -> None:
        self._held = ""

    def add_piece(self, piece: str) -> str:
        """Return the text that is complete so far."""
        if not self._held and piece.isascii():
            return piece
        text, self._held = self._held + piece, ""
        if "\ud800" <= text[-1:] <= "\udbff":
            self._held = text[-1]
        elif (match := _TRAILING_BYTES.search(text)) and _is_incomplete_character(
            match[1].encode("utf-8", "surrogateescape")
        ):
            self._held = match[1]
        return _mend_escaped_bytes(text.removesuffix(self._held))

    def flush_text(self) -> str:
        """Return the text that was held back."""
        rest, self._held = self._held, ""
        return _mend_escaped_bytes(rest)


def _mend_escaped_bytes(text: str) -> str:
    return repair_text(_ESCAPED_BYTES.sub(_decode_match, text))


def _is_incomplete_character(tail: bytes) -> bool:
    """Tell whether bytes are the beginning of a character."""
    lead = tail[0]
    length = 2 if 0xC2 <= lead <= 0xDF else 3 if 0xE0 <= lead <= 0xEF else 4 if 0xF0 <= lead <= 0xF4 else 0
    return len(tail) < length and all(0x80 <= byte <= 0xBF for byte in tail[1:])


def _decode_match(match: re.Match[str]) -> str:
    return match[0].encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class _GrowingCall:
    """Collect one tool call. `extra` holds the fields that its provider wants back with the call."""

    def __init__(self, id_: str, name: str) -> None:
        self.id, self.name = id_, name
        self.arguments: list[str] = []
        self.mender = TextMender()
        self.extra: dict[str, Any] = {}


class AnswerBuilder:
    """Collect one answer. Each method returns the parts to show, whose texts hold whole characters only."""

    def __init__(self, ask: ModelCall, writer: str) -> None:
        self._ask, self._writer = ask, writer
        self._calls: list[_GrowingCall] = []
        # In order of arrival: pieces of text, indexes of calls, and items that the provider wants back.
        self._order: list[list[str] | int | dict[str, Any]] = []
        self._size = 0
        self._text, self._thought = TextMender(), TextMender()
        self.notices: list[str] = []
        self.usage: ReportedUsage | None = None
        self.is_refused = False

    @property
    def is_empty(self) -> bool:
        """Tell whether neither text nor a tool call has come."""
        return not self._calls and not self.content.strip()

    @property
    def content(self) -> str:
        """Return the text so far."""
        return "".join(piece for pieces in self._order if isinstance(pieces, list) for piece in pieces)

    def add_text(self, piece: str) -> Sequence[ReplyPart]:
        """Add a piece of the text."""
        self._count_characters(piece)
        return self._append_text(self._text.add_piece(piece))

    def add_thought(self, piece: str) -> Sequence[ReplyPart]:
        """Add a piece of the model's thinking, which is shown but is not part of the answer."""
        self._count_characters(piece)
        mended = self._thought.add_piece(piece)
        return (ReasoningDelta(mended),) if mended else ()

    def begin_call(self, id_: str | None, name: str) -> ToolCallDelta:
        """Begin a tool call. A call without an id gets one, as results are matched by id."""
        call = _GrowingCall(id_ or f"call_{uuid4().hex}", name)
        self._order.append(len(self._calls))
        self._calls.append(call)
        return ToolCallDelta(index=len(self._calls) - 1, id=call.id, name=name)

    def add_arguments(self, index: int, piece: str) -> Sequence[ToolCallDelta]:
        """Add a piece of the arguments of call number `index`."""
        self._count_characters(piece)
        call = self._calls[index]
        mended = call.mender.add_piece(piece)
        if not mended:
            return ()
        call.arguments.append(mended)
        return (ToolCallDelta(index=index, arguments=mended),)

    def get_arguments(self, index: int) -> str:
        """Return the arguments of a call so far."""
        return "".join(self._calls[index].arguments)

    def keep_call_fields(self, index: int, **extra: Any) -> None:
        """Keep fields that the provider wants back with a call."""
        self._calls[index].extra.update(extra)

    def keep_item(self, item: dict[str, Any]) -> None:
        """Keep an item that the provider wants back at this position of the answer. The caller may fill it in later."""
        self._order.append(item)

    def show_item(self, item: dict[str, Any]) -> ReasoningItem:
        """Return the part for an item of reasoning that is complete."""
        return ReasoningItem(writer=self._writer, item=dict(item))

    def report_usage(self, usage: ReportedUsage | None) -> Sequence[ReportedUsage]:
        """Add reported token counts. A field that is reported again replaces its earlier count."""
        if usage is None:
            return ()
        before = self.usage or ReportedUsage()
        names = ReportedUsage.__struct_fields__
        reported = {name: getattr(usage, name) for name in names}
        self.usage = ReportedUsage(
            **{name: getattr(before, name) if reported[name] is None else reported[name] for name in names}
        )
        return (self.usage,)

    def add_notice(self, message: str) -> None:
        """Add a notice about the answer, unless it is already there."""
        if message not in self.notices:
            self.notices.append(message)

    def flush_parts(self) -> Iterable[ReplyPart]:
        """Yield the text that was held back, `{}` for calls without arguments, and the notices."""
        yield from self._append_text(self._text.flush_text())
        if thought := self._thought.flush_text():
            yield ReasoningDelta(thought)
        for index, call in enumerate(self._calls):
            if rest := call.mender.flush_text():
                call.arguments.append(rest)
                yield ToolCallDelta(index=index, arguments=rest)
            if not "".join(call.arguments).strip():
                call.arguments.append("{}")
                yield ToolCallDelta(index=index, arguments="{}")
        for notice in self.notices:
            yield ReplyNotice(notice)

    def build_reply(self, finish: FinishReason, stop_sequence: Any = None) -> ModelReply:
        """Return the whole answer. `stop_sequence` is what the provider calls so.

        Errors: `ModelError` if there is neither text nor a tool call.
        """
        calls = tuple(
            ModelToolCall(id=call.id, name=call.name, arguments="".join(call.arguments)) for call in self._calls
        )
        if self.is_refused:
            finish = "content_filter"
        elif finish in ("stop", "tool_calls"):  # some servers confuse the two
            finish = "tool_calls" if calls else "stop"
        # If the caller names stop sequences, the answer may consist of nothing but one of them.
        if finish == "stop" and self.is_empty and not self._ask.options.stop:
            raise model_errors.build_empty_error(self._ask.target)
        message = ChatMessage(
            role="assistant", content=self.content, tool_calls=calls, provider_parts=self._build_provider_parts()
        )
        is_known = isinstance(stop_sequence, str) and stop_sequence in (self._ask.options.stop or ())
        return ModelReply(
            message=message,
            finish=finish,
            usage=self._build_usage(),
            stop_sequence=stop_sequence if is_known and finish == "stop" else None,
        )

    def _build_provider_parts(self) -> ProviderParts | None:
        """Return the answer as its provider wants it back, or None if text and calls are all there is."""
        parts: list[dict[str, Any]] = []
        for entry in self._order:
            if isinstance(entry, list):
                parts.append({"text": "".join(entry)})
            elif isinstance(entry, int):
                extra = self._calls[entry].extra
                parts.append({"call": entry, "extra": extra} if extra else {"call": entry})
            elif entry:
                parts.append({"item": entry})
        if not any("item" in part or "extra" in part for part in parts):
            return None
        try:
            source = msgspec.json.encode(parts)
        except (UnicodeEncodeError, OverflowError):
            source = repair_json(json.dumps(parts).encode())
        if len(source) > _MAX_PROVIDER_BYTES:
            return None
        return ProviderParts(writer=self._writer, parts=msgspec.json.decode(source, type=tuple[dict[str, Any], ...]))

    def _build_usage(self) -> ModelUsage | None:
        reported = self.usage
        if reported is None or reported.prompt_tokens is None or reported.completion_tokens is None:
            return None
        return ModelUsage(
            prompt_tokens=reported.prompt_tokens,
            completion_tokens=reported.completion_tokens,
            cached_tokens=reported.cached_tokens or 0,
            reasoning_tokens=reported.reasoning_tokens or 0,
        )

    def _append_text(self, piece: str) -> Sequence[ReplyPart]:
        if not piece:
            return ()
        if self._order and isinstance(last := self._order[-1], list):
            last.append(piece)
        else:
            self._order.append([piece])
        return (TextDelta(piece),)

    def _count_characters(self, piece: str) -> None:
        self._size += len(piece)
        if self._size > MAX_ANSWER_BYTES:
            raise model_errors.build_malformed_error(self._ask.target, "it is too long.")
