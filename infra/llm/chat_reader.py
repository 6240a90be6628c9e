"""Read chat completions as they arrive, as OpenAI and the many servers that copy it write them.

pydantic-ai makes the request and knows the providers' habits. Its events, over the objects of OpenAI's library, cost
some 240 µs of CPU a token: two hundred streams of fifty tokens a second would need two and a half cores.

The envelope is read leniently, field by field. A field that cannot be read is dropped, not the answer.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from domain.llms import FinishReason, ModelCall, ReplyPart
from infra.llm import error_parser, model_errors
from infra.llm.answer_reader import AnswerReader
from infra.llm.event_stream import EventStream, ServerSentEvent
from infra.llm.think_tags import ThinkTagParser
from infra.llm.tool_calls import ToolCallReader
from infra.llm.usage import read_usage
from infra.llm.wire_models import MISTRAL_THOUGHTS

_LENGTH_WORDS: Final = (
    "length",
    "max_token",
    "maxtoken",
    "max_output",
    "max_length",
    "model_length",
    "token_limit",
    "context",
)
_FILTER_WORDS: Final = (
    "filter",
    "safety",
    "recitation",
    "refus",
    "blocklist",
    "prohibited",
    "sensitive",
    "spii",
    "moderat",
)
_ERROR_WORDS: Final = ("error", "abort", "insufficient_system_resource", "cancel", "fail")


class ChatReader(AnswerReader):
    """Build one answer from the chunks of a chat completion."""

    def __init__(self, ask: ModelCall, writer: str) -> None:
        super().__init__(ask, writer)
        self._tags = ThinkTagParser()
        self._calls = ToolCallReader(self._answer, ask)
        self._raw: list[str] = []  # the text as it came, with its tags
        self._reasoning: list[str] = []
        self._details: list[Any] = []
        self._chunks: list[str] = []  # thoughts that came as parts of the content
        self._has_pieces = False  # messages come as pieces, not as all of the answer so far
        self.is_body = False
        self.finish = ""
        self._stop_sequence: Any = None

    @property
    def is_ended(self) -> bool:
        """Return False: `[DONE]` ends a stream of chunks, and `EventStream` looks for it."""
        return False

    def read_event(self, event: ServerSentEvent) -> Iterable[ReplyPart]:
        """Yield the parts that a chunk adds. Errors: `ModelError` if it reports an error, after its usage."""
        data = event.data
        choice = _get_choice(data)
        reports = [data.get("usage"), choice.get("usage"), _get_mapping(data, "x_groq").get("usage")]
        reports += [data] if "eval_count" in data else []
        for usage in reports:
            yield from self._answer.report_usage(read_usage(usage))
        yield from self._read_choice(event, choice)
        for usage in reports:  # again, as it counts the text above
            yield from self._answer.report_usage(read_usage(usage))

    def _read_choice(self, event: ServerSentEvent, choice: Mapping[str, Any]) -> Iterable[ReplyPart]:
        data = event.data
        for place in (data, choice):
            if (error := error_parser.find_error(event.name if place is data else "", place)) is not None:
                raise model_errors.build_stream_error(self._ask.target, error)
        if not choice:
            self._note_odd_event(data)
            self.has_events = self.has_events or bool(data)
            return
        self.has_events = True
        delta = choice.get("delta")
        if isinstance(delta, str):
            yield from self._add_text(delta)
        elif isinstance(delta, Mapping):
            yield from self._read_message(delta)
        if not delta and isinstance(message := choice.get("message"), Mapping):
            # In Ollama's own format, messages are pieces.
            yield from self._read_message(message) if "done" in choice else self._read_whole_message(message)
        if isinstance(choice.get("text"), str) and not delta:
            yield from self._add_text(choice["text"])
        self.finish = _parse_finish_reason(choice) or self.finish
        # vLLM and SGLang name the stop sequence.
        self._stop_sequence = choice.get("stop_reason") or choice.get("matched_stop") or self._stop_sequence

    def finish_answer(self, stream: EventStream) -> Iterable[ReplyPart]:
        """Yield the last parts of the answer. Errors: `ModelError` if the answer is missing, incomplete or an error."""
        answer = self._answer
        self._check_body(stream)
        for is_thought, text in self._tags.flush_text():
            yield from answer.add_thought(text) if is_thought else answer.add_text(text)
        if any(word in self.finish for word in _ERROR_WORDS):
            raise model_errors.build_stream_error(self._ask.target, self._odd_event or "it broke off")
        if self.is_body and not answer.is_empty:
            self.finish = self.finish or "stop"
        if not self.finish and not (stream.is_done and not answer.is_empty):
            raise self._explain_missing_answer(stream)
        if not self.finish:
            answer.add_notice("The answer ended without a `finish_reason`; it is taken to be complete.")
        self._note_unreadable_event(stream)
        if not self._calls.is_empty:
            self._keep_reasoning()
        yield from answer.flush_parts()
        yield answer.build_reply(_classify_finish(self.finish), self._stop_sequence)

    def _check_body(self, stream: EventStream) -> None:
        if stream.is_body:
            self.is_body = self.has_events
        elif not stream.is_done and not self.finish:
            # Text after the events may say why they ended.
            for data in stream.parse_body():
                if error := error_parser.find_error("", data):
                    raise model_errors.build_stream_error(self._ask.target, error)

    def _has_said_nothing(self, stream: EventStream) -> bool:
        return not self.has_events or stream.is_done

    def _read_message(self, message: Mapping[str, Any]) -> Iterable[ReplyPart]:
        """Read the fields that deltas and whole messages share."""
        if content := message.get("content"):
            for is_thought, text in _collect_texts(content):
                if is_thought:
                    self._chunks.append(text)
                yield from self._answer.add_thought(text) if is_thought else self._add_text(text)
        if (reasoning := message.get("reasoning_content")) and isinstance(reasoning, str):
            self._reasoning.append(reasoning)
        if isinstance(details := message.get("reasoning_details"), list):
            self._details += details
        for field in ("reasoning_content", "reasoning", "thinking", "reasoning_details"):
            if thought := "".join(text for _, text in _collect_texts(message.get(field))):
                yield from self._answer.add_thought(thought)
                break
        if isinstance(refusal := message.get("refusal"), str) and refusal:
            self._answer.is_refused = True
            yield from self._add_text(refusal)
        yield from self._calls.read_calls(message.get("tool_calls"))
        if isinstance(function := message.get("function_call"), Mapping):  # the predecessor of tool calls
            yield from self._calls.read_calls({"function": dict(function)})

    def _read_whole_message(self, message: Mapping[str, Any]) -> Iterable[ReplyPart]:
        """Read a message in place of a delta: a piece, the whole answer, or the whole answer so far."""
        message = dict(message)
        if isinstance(content := message.get("content"), str) and self._raw and not self._has_pieces:
            so_far = "".join(self._raw)
            self._has_pieces = not content.startswith(so_far)
            message["content"] = content.removeprefix(so_far)
        if self._reasoning and not self._has_pieces:
            message.pop("reasoning_content", None)
        if not self._calls.is_empty and not any(
            isinstance(call, Mapping) and call.get("id") for call in message.get("tool_calls") or ()
        ):
            message.pop("tool_calls", None)  # without ids they cannot be distinguished from earlier ones
            message.pop("function_call", None)
        yield from self._read_message(message)

    def _add_text(self, piece: str) -> Iterable[ReplyPart]:
        self._raw.append(piece)
        for is_thought, text in self._tags.split_piece(piece):
            yield from self._answer.add_thought(text) if is_thought else self._answer.add_text(text)

    def _keep_reasoning(self) -> None:
        """Keep the reasoning that DeepSeek and others want back with the results of tools."""
        fields: dict[str, Any] = {}
        if self._reasoning:
            fields["reasoning_content"] = "".join(self._reasoning)
        if self._details:
            fields["reasoning_details"] = self._details
        if self._chunks and self._ask.target.provider == "mistral":
            fields[MISTRAL_THOUGHTS] = "".join(self._chunks)
        if fields:
            self._answer.keep_item(fields)


def _get_choice(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the first choice. In Ollama's own format, the whole chunk is the choice."""
    choices = data.get("choices")
    if isinstance(choices, Mapping):
        choices = [choices]
    if isinstance(choices, list):
        mappings = [choice for choice in choices if isinstance(choice, Mapping)]
        first = mappings[0] if mappings else {}
        return next((choice for choice in mappings if choice.get("index") in (0, None)), first)
    return data if isinstance(data.get("message"), Mapping) or isinstance(data.get("delta"), Mapping) else {}


def _get_mapping(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = data.get(name)
    return value if isinstance(value, Mapping) else {}


def _collect_texts(content: Any) -> list[tuple[bool, str]]:
    """Return the texts of a content, which is a text, a part or a list of parts, each as (is a thought, text)."""
    if isinstance(content, str):
        return [(False, content)]
    if isinstance(content, list):
        return [text for part in content for text in _collect_texts(part)]
    if not isinstance(content, Mapping):
        return []
    is_thought = content.get("type") in ("thinking", "reasoning")
    inner = next((content[name] for name in ("text", "thinking", "content", "summary") if content.get(name)), None)
    return [(is_thought or within, text) for within, text in _collect_texts(inner)]


def _parse_finish_reason(choice: Mapping[str, Any]) -> str:
    """Return the reason why an answer ended in lower case, or an empty text if it did not end."""
    reason = choice.get("finish_reason") or choice.get("done_reason") or (choice.get("done") is True and "stop")
    if isinstance(reason, Mapping):
        reason = reason.get("type") or reason.get("reason")
    return reason.strip().lower() if isinstance(reason, str) and reason.strip().lower() != "null" else ""


def _classify_finish(finish: str) -> FinishReason:
    if any(word in finish for word in _FILTER_WORDS):
        return "content_filter"
    if any(word in finish for word in _LENGTH_WORDS):
        return "length"
    return "stop"
