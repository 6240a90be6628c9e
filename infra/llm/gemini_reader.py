"""Read answers of Gemini's own API as they arrive: chunks with parts of text, thoughts and calls."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from domain.llms import FinishReason, ModelCall, ReplyPart, ReportedUsage
from infra.llm import error_parser, model_errors
from infra.llm.answer_reader import AnswerReader
from infra.llm.event_stream import EventStream, ServerSentEvent
from infra.llm.usage import read_counts

_FILTER_WORDS: Final = ("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED", "SPII", "MODEL_ARMOR")
# The model wrote something that Gemini itself could not read: the next answer may be better.
_FAULT_WORDS: Final = ("MALFORMED", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS", "MISSING_THOUGHT_SIGNATURE")


class GeminiReader(AnswerReader):
    """Build one answer from the chunks of `streamGenerateContent`."""

    def __init__(self, ask: ModelCall, writer: str) -> None:
        super().__init__(ask, writer)
        self.finish = ""
        self._finish_message = ""

    @property
    def is_ended(self) -> bool:
        """Return False: the body ends with the answer, and every chunk of older models has a reason to finish."""
        return False

    def read_event(self, event: ServerSentEvent) -> Iterable[ReplyPart]:
        """Yield the parts that a chunk adds. Errors: `ModelError` if it reports an error, after its usage."""
        usage = event.data.get("usageMetadata")
        yield from self._report_usage(usage)
        yield from self._read_chunk(event)
        yield from self._report_usage(usage)  # again, as it counts the parts above

    def _read_chunk(self, event: ServerSentEvent) -> Iterable[ReplyPart]:
        data = event.data
        if (error := error_parser.find_error(event.name, data)) is not None:
            raise model_errors.build_stream_error(self._ask.target, error)
        feedback, candidates = data.get("promptFeedback"), data.get("candidates")
        if isinstance(feedback, Mapping) and isinstance(reason := feedback.get("blockReason"), str):
            self._answer.is_refused, self.finish, self.has_events = True, reason, True
        candidate = candidates[0] if isinstance(candidates, list) and candidates else None
        if not isinstance(candidate, Mapping):
            if "usageMetadata" not in data:
                self._note_odd_event(data)
            return
        self.has_events = True
        content = candidate.get("content")
        parts = content.get("parts") if isinstance(content, Mapping) else None
        for part in parts if isinstance(parts, list) else ():
            if isinstance(part, Mapping):
                yield from self._read_part(part)
        if isinstance(reason := candidate.get("finishReason"), str):
            self.finish = reason.upper()
        if isinstance(message := candidate.get("finishMessage"), str):
            self._finish_message = message

    def _read_part(self, part: Mapping[str, Any]) -> Iterable[ReplyPart]:
        text, call, signature = part.get("text"), part.get("functionCall"), part.get("thoughtSignature")
        if isinstance(call, Mapping):
            id_, name = call.get("id"), call.get("name")
            begun = self._answer.begin_call(
                id_ if isinstance(id_, str) else None, name if isinstance(name, str) else ""
            )
            yield begun
            if arguments := call.get("args"):
                yield from self._answer.add_arguments(begun.index, msgspec.json.encode(arguments).decode())
            if isinstance(signature, str):
                self._answer.keep_call_fields(begun.index, thought_signature=signature)
            return
        if isinstance(text, str) and text:
            yield from self._answer.add_thought(text) if part.get("thought") else self._answer.add_text(text)
        if isinstance(signature, str) and not part.get("thought"):
            self._answer.keep_item({"type": "signature", "thought_signature": signature})

    def finish_answer(self, stream: EventStream) -> Iterable[ReplyPart]:
        """Yield the last parts of the answer. Errors: `ModelError` if the answer is missing, incomplete or a fault."""
        if not self.finish:
            raise self._explain_missing_answer(stream)
        if any(word in self.finish for word in _FAULT_WORDS):
            why = f"{self.finish}: {self._finish_message}" if self._finish_message else self.finish
            raise model_errors.build_malformed_error(self._ask.target, why)
        self._note_unreadable_event(stream)
        yield from self._answer.flush_parts()
        yield self._answer.build_reply(self._classify_finish())

    def _classify_finish(self) -> FinishReason:
        if any(word in self.finish for word in _FILTER_WORDS):
            return "content_filter"
        return "length" if self.finish == "MAX_TOKENS" else "stop"

    def _report_usage(self, usage: Any) -> Iterable[ReportedUsage]:
        """Report the tokens so far. Gemini counts thoughts beside the answer, and cached tokens within the prompt."""
        if not isinstance(usage, Mapping):
            return
        counts = read_counts(usage)
        prompt = counts.get("promptTokenCount")
        thoughts, answer = counts.get("thoughtsTokenCount"), counts.get("candidatesTokenCount")
        if prompt is not None:
            prompt += counts.get("toolUsePromptTokenCount", 0)
        completion = None if answer is None and thoughts is None else (answer or 0) + (thoughts or 0)
        total = counts.get("totalTokenCount")
        if total is not None and prompt is not None and total >= prompt:
            completion = max(completion or 0, total - prompt)
        yield from self._answer.report_usage(
            ReportedUsage(
                prompt_tokens=prompt,
                completion_tokens=completion,
                cached_tokens=counts.get("cachedContentTokenCount"),
                reasoning_tokens=thoughts,
            )
        )
