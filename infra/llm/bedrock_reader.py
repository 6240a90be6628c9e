"""Read answers of Bedrock's Converse as they arrive: numbered blocks of text, reasoning and tool calls."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from domain.llms import FinishReason, ModelCall, ReplyPart, ReportedUsage
from infra.llm import error_parser, model_errors
from infra.llm.answer_reader import AnswerReader
from infra.llm.event_stream import EventStream, ServerSentEvent
from infra.llm.usage import read_counts

_FINISH_BY_REASON: Final[dict[str, FinishReason]] = {
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "guardrail_intervened": "content_filter",
    "content_filtered": "content_filter",
}
# The model wrote something that Bedrock itself could not read: the next answer may be better.
_FAULT_REASONS: Final = frozenset({"malformed_model_output", "malformed_tool_use"})


class BedrockReader(AnswerReader):
    """Build one answer from the events of `ConverseStream`."""

    def __init__(self, ask: ModelCall, writer: str) -> None:
        super().__init__(ask, writer)
        self._calls: dict[Any, int] = {}
        self._reasoning: dict[Any, dict[str, Any]] = {}
        self._has_usage = False
        self.stop_reason = ""

    @property
    def is_ended(self) -> bool:
        """Tell whether the answer has stopped and its usage has come."""
        return bool(self.stop_reason) and self._has_usage

    def read_event(self, event: ServerSentEvent) -> Iterable[ReplyPart]:
        """Yield the parts that an event adds. Errors: `ModelError` if the event reports an error."""
        data = event.data
        if (error := error_parser.find_error(event.name, data)) is not None:
            raise model_errors.build_stream_error(self._ask.target, error)
        number = data.get("contentBlockIndex")
        match event.name:
            case "messageStart":
                pass
            case "contentBlockStart":
                yield from self._begin_call(number, data.get("start"))
            case "contentBlockDelta":
                yield from self._add_delta(number, data.get("delta"))
            case "contentBlockStop":
                yield from self._end_reasoning(number)
            case "messageStop":
                self.stop_reason = reason if isinstance(reason := data.get("stopReason"), str) else "end_turn"
            case "metadata":
                self._has_usage = True
                yield from self._report_usage(data.get("usage"))
            case _:
                self._note_odd_event(data)
                return
        self.has_events = True

    def finish_answer(self, stream: EventStream) -> Iterable[ReplyPart]:
        """Yield the last parts of the answer. Errors: `ModelError` if the answer is missing, incomplete or a fault."""
        if not self.stop_reason:
            raise self._explain_missing_answer(stream)
        if self.stop_reason in _FAULT_REASONS:
            raise model_errors.build_malformed_error(self._ask.target, self.stop_reason)
        self._note_unreadable_event(stream)
        for number in list(self._reasoning):
            yield from self._end_reasoning(number)
        yield from self._answer.flush_parts()
        yield self._answer.build_reply(_FINISH_BY_REASON.get(self.stop_reason, "stop"))

    def _begin_call(self, number: Any, start: Any) -> Iterable[ReplyPart]:
        use = start.get("toolUse") if isinstance(start, Mapping) else None
        if isinstance(use, Mapping):
            part = self._answer.begin_call(_get_text(use, "toolUseId") or None, _get_text(use, "name"))
            self._calls[number] = part.index
            yield part

    def _add_delta(self, number: Any, delta: Any) -> Iterable[ReplyPart]:
        if not isinstance(delta, Mapping):
            return
        if text := _get_text(delta, "text"):
            yield from self._answer.add_text(text)
        use, reasoning = delta.get("toolUse"), delta.get("reasoningContent")
        if isinstance(use, Mapping) and number in self._calls:
            yield from self._answer.add_arguments(self._calls[number], _get_text(use, "input"))
        if isinstance(reasoning, Mapping):
            yield from self._add_reasoning(number, reasoning)

    def _add_reasoning(self, number: Any, reasoning: Mapping[str, Any]) -> Iterable[ReplyPart]:
        if (item := self._reasoning.get(number)) is None:
            item = self._reasoning[number] = {"type": "thinking", "thinking": "", "signature": ""}
            self._answer.keep_item(item)
        if redacted := _get_text(reasoning, "redactedContent"):
            item.pop("thinking", None)
            item.pop("signature", None)
            item |= {"type": "redacted_thinking", "data": item.get("data", "") + redacted}
        if text := _get_text(reasoning, "text"):
            item["thinking"] = item.get("thinking", "") + text
            yield from self._answer.add_thought(text)
        if signature := _get_text(reasoning, "signature"):
            item["signature"] = item.get("signature", "") + signature

    def _end_reasoning(self, number: Any) -> Iterable[ReplyPart]:
        item = self._reasoning.pop(number, None)
        if item is not None and (item.get("signature") or item.get("data")):
            yield self._answer.show_item(item)

    def _report_usage(self, usage: Any) -> Iterable[ReportedUsage]:
        """Report the tokens. Bedrock counts cached ones beside those of the prompt."""
        if not isinstance(usage, Mapping):
            return
        counts = read_counts(usage)
        cached, prompt = counts.get("cacheReadInputTokens", 0), counts.get("inputTokens")
        if prompt is not None:
            prompt += cached + counts.get("cacheWriteInputTokens", 0)
        yield from self._answer.report_usage(
            ReportedUsage(prompt_tokens=prompt, completion_tokens=counts.get("outputTokens"), cached_tokens=cached)
        )


def _get_text(source: Mapping[str, Any], name: str) -> str:
    value = source.get(name)
    return value if isinstance(value, str) else ""
