"""Anthropic's messages, read as they come off the connection: numbered blocks of text, thoughts and tool calls."""

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from typing import Any, Final

import httpx2
import msgspec

from domain.llms.messages import FinishReason, ModelCall, ReplyPart, ReportedUsage
from infra.llm import error_parser, model_errors
from infra.llm.answer_builder import Answer
from infra.llm.event_stream import Event, EventStream, read_events
from infra.llm.usage import read_count

_FINISHES: Final[dict[str, FinishReason]] = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
}


async def read(response: httpx2.Response, ask: ModelCall, writer: str) -> AsyncGenerator[ReplyPart, None]:
    """Yield the parts of an answer. Errors: `ModelError`, `TimeoutError`, and those of httpx2."""
    stream = EventStream(response, ask)
    reader = _Reader(ask, writer)
    async with aclosing(read_events(stream, reader)) as parts:
        async for part in parts:
            yield part
    for part in reader.end(stream):
        yield part


class _Reader:
    """One answer, event by event."""

    def __init__(self, ask: ModelCall, writer: str) -> None:
        self._ask = ask
        self._answer = Answer(ask, writer)
        self._blocks: dict[Any, dict[str, Any]] = {}
        self._calls: dict[Any, int] = {}
        self._counts: dict[str, int] = {}
        self._odd: dict[str, Any] | None = None
        self.has_events = False
        self.is_ended = False
        self.stop_reason = ""

    def take(self, event: Event) -> Iterable[ReplyPart]:
        """Read an event. Errors: `ModelError` for one that is an error."""
        data = event.data
        if (error := error_parser.find_error(event.name, data)) is not None:
            raise model_errors.in_stream(self._ask.target, error)
        kind = data.get("type") or event.name
        number = data["index"] if isinstance(data.get("index"), int | str) else None
        match kind:
            case "message_start":
                yield from self._message(data.get("message"))
            case "content_block_start":
                yield from self._begin(number, data.get("content_block"))
            case "content_block_delta":
                yield from self._add(number, data.get("delta"))
            case "content_block_stop":
                yield from self._stop(number)
            case "message_delta":
                self._note_stop(data.get("delta"))
                yield from self._report(data.get("usage"))
            case "message_stop":
                self.is_ended = True
            case "message":
                yield from self._message(data)
                self.is_ended = not self._answer.is_empty
            case _:
                if self._odd is None and error_parser.has_sentence(data):
                    self._odd = data
                return
        self.has_events = True

    def end(self, stream: EventStream) -> Iterable[ReplyPart]:
        """Yield the end of the answer. Errors: `ModelError` if it is missing or broke off."""
        target = self._ask.target
        if not self.stop_reason and not self.is_ended:
            if self._odd is not None:
                raise model_errors.in_stream(target, self._odd)
            if self._answer.is_empty and (shown := stream.shown_body()):
                raise model_errors.malformed(target, shown)
            if stream.unreadable:
                raise model_errors.malformed(target, f"an event of it is no JSON: {stream.unreadable}")
            raise model_errors.unfinished(target) if self.has_events else model_errors.empty(target)
        if stream.unreadable:
            self._answer.note(
                f"An event of the answer was no JSON and is left out: {model_errors.clean(target, stream.unreadable)}"
            )
        for number in list(self._blocks):
            yield from self._stop(number)
        yield from self._answer.finish()
        yield self._answer.reply(_FINISHES.get(self.stop_reason, "stop"))

    def _message(self, message: Any) -> Iterable[ReplyPart]:
        """Read a message: empty where a stream begins, whole from servers that do not stream."""
        if not isinstance(message, Mapping):
            return
        yield from self._report(message.get("usage"))
        self._note_stop(message)
        content = message.get("content")
        for number, block in enumerate(content if isinstance(content, list) else ()):
            yield from self._begin(number, block)
            yield from self._stop(number)
        yield from self._report(message.get("usage"))  # once more: it counts the content that came with it

    def _begin(self, number: Any, block: Any) -> Iterable[ReplyPart]:
        if not isinstance(block, Mapping):
            return
        block = dict(block)
        match block.get("type"):
            case "text" if isinstance(text := block.get("text"), str):
                yield from self._answer.add_text(text)
            case "thinking":
                block = {
                    "type": "thinking",
                    "thinking": _text(block, "thinking"),
                    "signature": _text(block, "signature"),
                }
                self._answer.keep(block)
                yield from self._answer.add_thought(block["thinking"])
            case "redacted_thinking":
                self._answer.keep(block)
            case "tool_use":
                part = self._answer.begin_call(_text(block, "id") or None, _text(block, "name"))
                self._calls[number] = part.index
                yield part
        self._blocks[number] = block

    def _add(self, number: Any, delta: Any) -> Iterable[ReplyPart]:
        if not isinstance(delta, Mapping):
            return
        block = self._blocks.get(number, {})
        # Servers that imitate this wire leave the delta's type out, or the block's beginning.
        if text := _text(delta, "text"):
            yield from self._answer.add_text(text)
        if thinking := _text(delta, "thinking"):
            if block.get("type") == "thinking":
                block["thinking"] += thinking
            yield from self._answer.add_thought(thinking)
        if (signature := _text(delta, "signature")) and block.get("type") == "thinking":
            block["signature"] += signature
        if (arguments := _text(delta, "partial_json")) and number in self._calls:
            block["input"] = None
            yield from self._answer.add_arguments(self._calls[number], arguments)

    def _stop(self, number: Any) -> Iterable[ReplyPart]:
        block = self._blocks.pop(number, {})
        if number in self._calls and (given := block.get("input")):
            # No pieces came: all of it did at once.
            arguments = given if isinstance(given, str) else msgspec.json.encode(given).decode()
            yield from self._answer.add_arguments(self._calls[number], arguments)

    def _note_stop(self, holder: Any) -> None:
        reason = holder.get("stop_reason") if isinstance(holder, Mapping) else None
        if isinstance(reason, str):
            self.stop_reason = reason or self.stop_reason

    def _report(self, usage: Any) -> Iterable[ReportedUsage]:
        if not isinstance(usage, Mapping):
            return
        counts = {name: count for name, value in usage.items() if (count := read_count(value)) is not None}
        self._counts |= counts
        counts = self._counts
        details = usage.get("output_tokens_details")
        thinking = read_count(details.get("thinking_tokens")) if isinstance(details, Mapping) else None
        cached = counts.get("cache_read_input_tokens", 0)
        prompt, completion = counts.get("input_tokens"), counts.get("output_tokens")
        if prompt is not None:
            prompt += cached + counts.get("cache_creation_input_tokens", 0)
        yield from self._answer.report(
            ReportedUsage(
                prompt_tokens=prompt,
                completion_tokens=completion,
                cached_tokens=cached,
                reasoning_tokens=None if thinking is None or completion is None else min(thinking, completion),
            )
        )


def _text(source: Mapping[str, Any], name: str) -> str:
    value = source.get(name)
    return value if isinstance(value, str) else ""
