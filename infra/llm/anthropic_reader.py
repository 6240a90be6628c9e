"""Anthropic's messages, read as they come off the connection: numbered blocks of text, thoughts and tool calls."""

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from typing import Any, Final

import httpx2
import msgspec

from domain.llms import FinishReason, ModelCall, ReplyPart, ReportedUsage
from infra.llm import error_parser, model_errors
from infra.llm.answer_builder import AnswerBuilder
from infra.llm.event_stream import EventStream, ServerSentEvent, read_events
from infra.llm.usage import read_count

_FINISH_BY_REASON: Final[dict[str, FinishReason]] = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
}


async def read_anthropic(response: httpx2.Response, ask: ModelCall, writer: str) -> AsyncGenerator[ReplyPart, None]:
    """Yield the parts of an answer. Errors: `ModelError`, `TimeoutError`, and those of httpx2."""
    stream = EventStream(response, ask)
    reader = AnthropicReader(ask, writer)
    async with aclosing(read_events(stream, reader)) as parts:
        async for part in parts:
            yield part
    for part in reader.finish_answer(stream):
        yield part


class AnthropicReader:
    """One answer, event by event."""

    def __init__(self, ask: ModelCall, writer: str) -> None:
        self._ask = ask
        self._answer = AnswerBuilder(ask, writer)
        self._blocks: dict[Any, dict[str, Any]] = {}
        self._calls: dict[Any, int] = {}
        self._counts: dict[str, int] = {}
        self._odd: dict[str, Any] | None = None
        self.has_events = False
        self.is_ended = False
        self.stop_reason = ""

    def read_event(self, event: ServerSentEvent) -> Iterable[ReplyPart]:
        """Read an event. Errors: `ModelError` for one that is an error."""
        data = event.data
        if (error := error_parser.find_error(event.name, data)) is not None:
            raise model_errors.build_stream_error(self._ask.target, error)
        kind = data.get("type") or event.name
        number = data["index"] if isinstance(data.get("index"), int | str) else None
        match kind:
            case "message_start":
                yield from self._read_message(data.get("message"))
            case "content_block_start":
                yield from self._begin_block(number, data.get("content_block"))
            case "content_block_delta":
                yield from self._add_delta(number, data.get("delta"))
            case "content_block_stop":
                yield from self._end_block(number)
            case "message_delta":
                self._set_stop_reason(data.get("delta"))
                yield from self._report_usage(data.get("usage"))
            case "message_stop":
                self.is_ended = True
            case "message":
                yield from self._read_message(data)
                self.is_ended = not self._answer.is_empty
            case _:
                if self._odd is None and error_parser.has_message(data):
                    self._odd = data
                return
        self.has_events = True

    def finish_answer(self, stream: EventStream) -> Iterable[ReplyPart]:
        """Yield the end of the answer. Errors: `ModelError` if it is missing or broke off."""
        target = self._ask.target
        if not self.stop_reason and not self.is_ended:
            if self._odd is not None:
                raise model_errors.build_stream_error(target, self._odd)
            if self._answer.is_empty and (shown := stream.describe_body()):
                raise model_errors.build_malformed_error(target, shown)
            if stream.unreadable:
                raise model_errors.build_malformed_error(target, f"an event of it is no JSON: {stream.unreadable}")
            raise (
                model_errors.build_unfinished_error(target)
                if self.has_events
                else model_errors.build_empty_error(target)
            )
        if stream.unreadable:
            self._answer.add_notice(
                f"An event was no JSON and is left out: {model_errors.clean_text(target, stream.unreadable)}"
            )
        for number in list(self._blocks):
            yield from self._end_block(number)
        yield from self._answer.flush_parts()
        yield self._answer.build_reply(_FINISH_BY_REASON.get(self.stop_reason, "stop"))

    def _read_message(self, message: Any) -> Iterable[ReplyPart]:
        """Read a message: empty where a stream begins, whole from servers that do not stream."""
        if not isinstance(message, Mapping):
            return
        yield from self._report_usage(message.get("usage"))
        self._set_stop_reason(message)
        content = message.get("content")
        for number, block in enumerate(content if isinstance(content, list) else ()):
            yield from self._begin_block(number, block)
            yield from self._end_block(number)
        yield from self._report_usage(message.get("usage"))  # once more: it counts the content that came with it

    def _begin_block(self, number: Any, block: Any) -> Iterable[ReplyPart]:
        if not isinstance(block, Mapping):
            return
        block = dict(block)
        match block.get("type"):
            case "text" if isinstance(text := block.get("text"), str):
                yield from self._answer.add_text(text)
            case "thinking":
                block = {
                    "type": "thinking",
                    "thinking": _get_text(block, "thinking"),
                    "signature": _get_text(block, "signature"),
                }
                self._answer.keep_item(block)
                yield from self._answer.add_thought(block["thinking"])
            case "redacted_thinking":
                self._answer.keep_item(block)
            case "tool_use":
                part = self._answer.begin_call(_get_text(block, "id") or None, _get_text(block, "name"))
                self._calls[number] = part.index
                yield part
        self._blocks[number] = block

    def _add_delta(self, number: Any, delta: Any) -> Iterable[ReplyPart]:
        if not isinstance(delta, Mapping):
            return
        block = self._blocks.get(number, {})
        # Servers that imitate this wire leave the delta's type out, or the block's beginning.
        if text := _get_text(delta, "text"):
            yield from self._answer.add_text(text)
        if thinking := _get_text(delta, "thinking"):
            if block.get("type") == "thinking":
                block["thinking"] += thinking
            yield from self._answer.add_thought(thinking)
        if (signature := _get_text(delta, "signature")) and block.get("type") == "thinking":
            block["signature"] += signature
        if (arguments := _get_text(delta, "partial_json")) and number in self._calls:
            block["input"] = None
            yield from self._answer.add_arguments(self._calls[number], arguments)

    def _end_block(self, number: Any) -> Iterable[ReplyPart]:
        block = self._blocks.pop(number, {})
        if number in self._calls and (given := block.get("input")):
            # No pieces came: all of it did at once.
            arguments = given if isinstance(given, str) else msgspec.json.encode(given).decode()
            yield from self._answer.add_arguments(self._calls[number], arguments)

    def _set_stop_reason(self, holder: Any) -> None:
        reason = holder.get("stop_reason") if isinstance(holder, Mapping) else None
        if isinstance(reason, str):
            self.stop_reason = reason or self.stop_reason

    def _report_usage(self, usage: Any) -> Iterable[ReportedUsage]:
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
        yield from self._answer.report_usage(
            ReportedUsage(
                prompt_tokens=prompt,
                completion_tokens=completion,
                cached_tokens=cached,
                reasoning_tokens=None if thinking is None or completion is None else min(thinking, completion),
            )
        )


def _get_text(source: Mapping[str, Any], name: str) -> str:
    value = source.get(name)
    return value if isinstance(value, str) else ""
