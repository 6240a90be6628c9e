"""Read Anthropic's messages as they arrive: numbered blocks of text, thinking and tool calls."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from domain.llms import FinishReason, ModelCall, ReplyPart, ReportedUsage
from infra.llm import error_parser, model_errors
from infra.llm.answer_reader import AnswerReader
from infra.llm.event_stream import EventStream, ServerSentEvent
from infra.llm.usage import read_count, read_counts

_FINISH_BY_REASON: Final[dict[str, FinishReason]] = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "content_filter",
}


class AnthropicReader(AnswerReader):
    """Build one answer from the events of Anthropic's messages."""

    def __init__(self, ask: ModelCall, writer: str) -> None:
        super().__init__(ask, writer)
        self._blocks: dict[Any, dict[str, Any]] = {}
        self._calls: dict[Any, int] = {}
        self._counts: dict[str, int] = {}
        self._is_stopped = False
        self.stop_reason = ""
        self._stop_sequence: Any = None

    @property
    def is_ended(self) -> bool:
        """Tell whether the message has stopped."""
        return self._is_stopped

    def read_event(self, event: ServerSentEvent) -> Iterable[ReplyPart]:
        """Yield the parts that an event adds. Errors: `ModelError` if the event reports an error."""
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
                self._is_stopped = True
            case "message":
                yield from self._read_message(data)
                self._is_stopped = not self._answer.is_empty
            case _:
                self._note_odd_event(data)
                return
        self.has_events = True

    def finish_answer(self, stream: EventStream) -> Iterable[ReplyPart]:
        """Yield the last parts of the answer. Errors: `ModelError` if the answer is missing or incomplete."""
        if not self.stop_reason and not self.is_ended:
            raise self._explain_missing_answer(stream)
        self._note_unreadable_event(stream)
        for number in list(self._blocks):
            yield from self._end_block(number)
        yield from self._answer.flush_parts()
        yield self._answer.build_reply(_FINISH_BY_REASON.get(self.stop_reason, "stop"), self._stop_sequence)

    def _read_message(self, message: Any) -> Iterable[ReplyPart]:
        """Read a message. It is empty at the beginning of a stream, and complete from servers that do not stream."""
        if not isinstance(message, Mapping):
            return
        yield from self._report_usage(message.get("usage"))
        self._set_stop_reason(message)
        content = message.get("content")
        for number, block in enumerate(content if isinstance(content, list) else ()):
            yield from self._begin_block(number, block)
            yield from self._end_block(number)
        yield from self._report_usage(message.get("usage"))  # again, as it counts the content above

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
        # Servers that imitate this wire may leave out the delta's type or the block's start event.
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
        if block.get("type") == "redacted_thinking" or (block.get("type") == "thinking" and block["signature"]):
            yield self._answer.show_item(block)
        if number in self._calls and (block_input := block.get("input")):
            # There were no pieces: the arguments came whole.
            is_text = isinstance(block_input, str)
            arguments = block_input if is_text else msgspec.json.encode(block_input).decode()
            yield from self._answer.add_arguments(self._calls[number], arguments)

    def _set_stop_reason(self, holder: Any) -> None:
        reason = holder.get("stop_reason") if isinstance(holder, Mapping) else None
        if isinstance(reason, str):
            self.stop_reason = reason or self.stop_reason
            self._stop_sequence = holder.get("stop_sequence") or self._stop_sequence

    def _report_usage(self, usage: Any) -> Iterable[ReportedUsage]:
        if not isinstance(usage, Mapping):
            return
        counts = read_counts(usage)
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
