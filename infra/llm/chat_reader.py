"""OpenAI's chat completions, as OpenAI and everybody else write them, read as they come off the connection.

pydantic-ai makes the request and knows the providers' habits. Its events, over the objects of OpenAI's library, cost
some 240 µs of CPU a token: two hundred streams of fifty tokens a second would want two cores and a half.

The envelope is read leniently, field by field. A field that cannot be read is dropped, not the answer.
"""

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from typing import Any, Final

import httpx2

from domain.llms import FinishReason, ModelCall, ReplyPart
from infra.llm import error_parser, model_errors
from infra.llm.answer_builder import AnswerBuilder
from infra.llm.event_stream import EventStream, ServerSentEvent
from infra.llm.think_tags import ThinkTagParser
from infra.llm.tool_calls import ToolCallReader
from infra.llm.usage import read_usage

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


async def read_chat(response: httpx2.Response, ask: ModelCall, writer: str) -> AsyncGenerator[ReplyPart, None]:
    """Yield the parts of an answer. Errors: `ModelError`, `TimeoutError`, and those of httpx2."""
    stream = EventStream(response, ask)
    reader = ChatReader(ask, writer)
    async with aclosing(stream.read_batches()) as batches:
        async for batch in batches:
            for event in batch:
                for part in reader.read_event(event):
                    yield part
    if not reader.has_events:
        for data in stream.parse_body():
            for part in reader.read_event(ServerSentEvent("", data)):
                yield part
        reader.is_body = reader.has_events
    if stream.is_body:
        reader.is_body = reader.has_events
    elif not stream.is_done and not reader.finish:
        # What followed the events may say why they ended.
        for data in stream.parse_body():
            if error := error_parser.find_error("", data):
                raise model_errors.build_stream_error(ask.target, error)
    for part in reader.finish_answer(stream):
        yield part


class ChatReader:
    """One answer, event by event."""

    def __init__(self, ask: ModelCall, writer: str) -> None:
        self._ask = ask
        self._answer = AnswerBuilder(ask, writer)
        self._tags = ThinkTagParser()
        self._calls = ToolCallReader(self._answer, ask)
        self._raw: list[str] = []  # the text as it came, with its tags
        self._reasoning: list[str] = []
        self._details: list[Any] = []
        self._odd: dict[str, Any] | None = None  # what was neither answer nor error, and speaks
        self._has_pieces = False  # messages come as pieces, not as all of the answer so far
        self.has_events = False
        self.is_body = False
        self.finish = ""

    @property
    def is_ended(self) -> bool:
        """Return False: `[DONE]` ends such a stream, which its reader looks for itself."""
        return False

    def read_event(self, event: ServerSentEvent) -> Iterable[ReplyPart]:
        """Read an event. Errors: `ModelError` for one that is an error, after the usage it may report."""
        data = event.data
        choice = _get_choice(data)
        reports = [data.get("usage"), choice.get("usage"), _get_mapping(data, "x_groq").get("usage")]
        reports += [data] if "eval_count" in data else []
        for usage in reports:
            yield from self._answer.report_usage(read_usage(usage))
        yield from self._read_choice(event, choice)
        for usage in reports:  # once more: it counts the text that came with it
            yield from self._answer.report_usage(read_usage(usage))

    def _read_choice(self, event: ServerSentEvent, choice: Mapping[str, Any]) -> Iterable[ReplyPart]:
        data = event.data
        for place in (data, choice):
            if (error := error_parser.find_error(event.name if place is data else "", place)) is not None:
                raise model_errors.build_stream_error(self._ask.target, error)
        if not choice:
            if self._odd is None and error_parser.has_message(data):
                self._odd = data
            self.has_events = self.has_events or bool(data)
            return
        self.has_events = True
        delta = choice.get("delta")
        if isinstance(delta, str):
            yield from self._add_text(delta)
        elif isinstance(delta, Mapping):
            yield from self._read_message(delta)
        if not delta and isinstance(message := choice.get("message"), Mapping):
            # Ollama's own messages are pieces.
            yield from self._read_message(message) if "done" in choice else self._read_whole_message(message)
        if isinstance(choice.get("text"), str) and not delta:
            yield from self._add_text(choice["text"])
        self.finish = _parse_finish_reason(choice) or self.finish

    def finish_answer(self, stream: EventStream) -> Iterable[ReplyPart]:
        """Yield the end of the answer. Errors: `ModelError` if it is missing, broke off, or is an error."""
        target, answer = self._ask.target, self._answer
        for is_thought, text in self._tags.flush_text():
            yield from answer.add_thought(text) if is_thought else answer.add_text(text)
        if any(word in self.finish for word in _ERROR_WORDS):
            raise model_errors.build_stream_error(target, self._odd or "it broke off")
        if self.is_body and not answer.is_empty:
            self.finish = self.finish or "stop"
        if not self.finish and not (stream.is_done and not answer.is_empty):
            raise self._explain_missing_answer(stream)
        if not self.finish:
            answer.add_notice("The answer ended without a reason (`finish_reason`); it is taken for whole.")
        if stream.unreadable:
            answer.add_notice(
                f"An event was no JSON and is left out: {model_errors.clean_text(target, stream.unreadable)}"
            )
        if not self._calls.is_empty:
            self._keep_reasoning()
        yield from answer.flush_parts()
        yield answer.build_reply(_classify_finish(self.finish))

    def _explain_missing_answer(self, stream: EventStream) -> Exception:
        target = self._ask.target
        if self._odd is not None:
            return model_errors.build_stream_error(target, self._odd)
        if self._answer.is_empty and (shown := stream.describe_body()):
            return model_errors.build_malformed_error(target, shown)
        if stream.unreadable:
            return model_errors.build_malformed_error(target, f"an event of it is no JSON: {stream.unreadable}")
        if not self.has_events or stream.is_done:
            return model_errors.build_empty_error(target)
        return model_errors.build_unfinished_error(target)

    def _read_message(self, message: Mapping[str, Any]) -> Iterable[ReplyPart]:
        """Read what deltas and whole messages have in common."""
        if content := message.get("content"):
            for is_thought, text in _collect_texts(content):
                yield from self._thought(text) if is_thought else self._add_text(text)
        if (reasoning := message.get("reasoning_content")) and isinstance(reasoning, str):
            self._reasoning.append(reasoning)
        if isinstance(details := message.get("reasoning_details"), list):
            self._details += details
        for field in ("reasoning_content", "reasoning", "thinking", "reasoning_details"):
            if thought := "".join(text for _, text in _collect_texts(message.get(field))):
                yield from self._thought(thought)
                break
        if isinstance(refusal := message.get("refusal"), str) and refusal:
            self._answer.is_refused = True
            yield from self._add_text(refusal)
        yield from self._calls.read_calls(message.get("tool_calls"))
        if isinstance(function := message.get("function_call"), Mapping):  # before there were tool calls
            yield from self._calls.read_calls({"function": dict(function)})

    def _read_whole_message(self, message: Mapping[str, Any]) -> Iterable[ReplyPart]:
        """Read a message in place of a delta: a piece, all of the answer, or all of it so far."""
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
            message.pop("tool_calls", None)  # without ids, nothing tells them from those that came
            message.pop("function_call", None)
        yield from self._read_message(message)

    def _add_text(self, piece: str) -> Iterable[ReplyPart]:
        self._raw.append(piece)
        for is_thought, text in self._tags.split_piece(piece):
            yield from self._answer.add_thought(text) if is_thought else self._answer.add_text(text)

    def _thought(self, piece: str) -> Iterable[ReplyPart]:
        return self._answer.add_thought(piece)

    def _keep_reasoning(self) -> None:
        """Keep what DeepSeek and others want back with the results of tools."""
        fields: dict[str, Any] = {}
        if self._reasoning:
            fields["reasoning_content"] = "".join(self._reasoning)
        if self._details:
            fields["reasoning_details"] = self._details
        if fields:
            self._answer.keep_item(fields)


def _get_choice(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the first choice; Ollama's own answers are one by themselves."""
    choices = data.get("choices")
    if isinstance(choices, Mapping):
        choices = [choices]
    if isinstance(choices, list):
        found = [choice for choice in choices if isinstance(choice, Mapping)]
        return next((choice for choice in found if choice.get("index") in (0, None)), found[0] if found else {})
    return data if isinstance(data.get("message"), Mapping) or isinstance(data.get("delta"), Mapping) else {}


def _get_mapping(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = data.get(name)
    return found if isinstance(found, Mapping) else {}


def _collect_texts(content: Any) -> list[tuple[bool, str]]:
    """Return the texts of some content, be it text, a part or a list of parts, each as (is a thought, text)."""
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
    """Return the reason why an answer ended, as a word; empty if it did not."""
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
