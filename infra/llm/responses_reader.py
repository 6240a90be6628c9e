"""OpenAI's Responses, read as they come off the connection: items of an output, each begun, grown and done."""

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from typing import Any, Final

import httpx2

from domain.llms import ModelCall, ReplyPart
from infra.llm import error_parser, model_errors
from infra.llm.answer_builder import AnswerBuilder
from infra.llm.event_stream import EventStream, ServerSentEvent, read_events
from infra.llm.usage import read_usage

_THOUGHT_EVENTS: Final = ("response.reasoning_summary_text.delta", "response.reasoning_text.delta")


async def read_responses(response: httpx2.Response, ask: ModelCall, writer: str) -> AsyncGenerator[ReplyPart, None]:
    """Yield the parts of an answer. Errors: `ModelError`, `TimeoutError`, and those of httpx2."""
    stream = EventStream(response, ask)
    reader = ResponsesReader(ask, writer)
    async with aclosing(read_events(stream, reader)) as parts:
        async for part in parts:
            yield part
    for part in reader.finish_answer(stream):
        yield part


class _OutputItem:
    """One item of the output. `length` is how much of its text or its arguments has come."""

    def __init__(self) -> None:
        self.length = 0
        self.call: int | None = None
        self.is_thought_of = False
        self.kept: dict[str, Any] | None = None


class ResponsesReader:
    """One answer, event by event."""

    def __init__(self, ask: ModelCall, writer: str) -> None:
        self._ask = ask
        self._answer = AnswerBuilder(ask, writer)
        self._items: dict[Any, _OutputItem] = {}
        self._numbers: dict[str, Any] = {}  # of items, by their ids
        self._odd: dict[str, Any] | None = None
        self.has_events = False
        self.status = ""
        self.reason = ""

    @property
    def is_ended(self) -> bool:
        """Tell whether the response has said how it ended."""
        return bool(self.status)

    def read_event(self, event: ServerSentEvent) -> Iterable[ReplyPart]:
        """Read an event. Errors: `ModelError` for one that is an error, after the usage it may report."""
        data = event.data
        kind = data.get("type") if isinstance(data.get("type"), str) else event.name
        response = data if data.get("object") == "response" else data.get("response")
        if isinstance(response, Mapping):
            self.has_events = True
            yield from self._read_response(response, str(kind))
            return
        if (error := error_parser.find_error(event.name, data)) is not None:
            raise model_errors.build_stream_error(self._ask.target, error)
        delta, item = data.get("delta"), data.get("item")
        if isinstance(item, Mapping):
            yield from self._read_item(
                self._get_item_key(data, item), item, is_done=kind == "response.output_item.done"
            )
        elif kind == "response.output_text.delta" and isinstance(delta, str):
            self._get_item(data).length += len(delta)
            yield from self._answer.add_text(delta)
        elif kind == "response.refusal.delta" and isinstance(delta, str):
            self._answer.is_refused = True
            self._get_item(data).length += len(delta)
            yield from self._answer.add_text(delta)
        elif kind == "response.function_call_arguments.delta" and isinstance(delta, str):
            yield from self._add_arguments(self._get_item(data), delta)
        elif kind == "response.function_call_arguments.done":
            yield from self._add_missing_arguments(self._get_item(data), data.get("arguments"))
        elif kind in _THOUGHT_EVENTS and isinstance(delta, str):
            self._get_item(data).is_thought_of = True
            yield from self._answer.add_thought(delta)
        elif kind == "response.reasoning_summary_part.added" and self._get_item(data).is_thought_of:
            yield from self._answer.add_thought("\n\n")
        elif not str(kind).startswith("response."):
            if self._odd is None and error_parser.has_message(data):
                self._odd = data
            return
        self.has_events = True

    def finish_answer(self, stream: EventStream) -> Iterable[ReplyPart]:
        """Yield the end of the answer. Errors: `ModelError` if it is missing or broke off."""
        target = self._ask.target
        if not self.status and not (stream.is_done and not self._answer.is_empty):
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
        yield from self._answer.flush_parts()
        if "filter" in self.reason:
            yield self._answer.build_reply("content_filter")
        else:
            yield self._answer.build_reply("length" if self.status == "incomplete" else "stop")

    def _read_response(self, response: Mapping[str, Any], kind: str) -> Iterable[ReplyPart]:
        """Read what is told of the answer as a whole, at its beginning, and at its end with all of its items."""
        yield from self._answer.report_usage(read_usage(response.get("usage")))
        status = response.get("status")
        last = kind.rpartition(".")[2]
        if isinstance(error := response.get("error"), Mapping) and any(error.values()):
            raise model_errors.build_stream_error(self._ask.target, dict(error))
        if "failed" in (status, last) or "cancelled" in (status, last):
            raise model_errors.build_stream_error(self._ask.target, "it broke off")
        ends = next((word for word in ("completed", "incomplete") if word in (status, last)), "")
        if not ends:
            return
        output = response.get("output")
        for number, item in enumerate(output if isinstance(output, list) else ()):
            if isinstance(item, Mapping):
                yield from self._read_item(self._get_item_key({"output_index": number}, item), item, is_done=True)
        yield from self._answer.report_usage(
            read_usage(response.get("usage"))
        )  # once more: it counts the items beside it
        details = response.get("incomplete_details")
        self.reason = str(details.get("reason") or "") if isinstance(details, Mapping) else ""
        self.status = "incomplete" if self.reason else ends

    def _read_item(self, number: Any, item: Mapping[str, Any], is_done: bool) -> Iterable[ReplyPart]:
        """Read an item as it is now, of which pieces may have come already."""
        at = self._items.setdefault(number, _OutputItem())
        match item.get("type"):
            case "function_call":
                if at.call is None and isinstance(name := item.get("name"), str) and name:
                    id_ = item.get("call_id") or item.get("id")
                    part = self._answer.begin_call(id_ if isinstance(id_, str) else None, name)
                    at.call = part.index
                    yield part
                if is_done:
                    yield from self._add_missing_arguments(at, item.get("arguments"))
            case "message" if is_done and at.length == 0:
                content = item.get("content")
                for piece in content if isinstance(content, list) else [{"text": content}]:
                    if not isinstance(piece, Mapping):
                        continue
                    self._answer.is_refused |= piece.get("type") == "refusal"
                    text = piece.get("text") or piece.get("refusal")
                    if isinstance(text, str):
                        at.length += len(text)
                        yield from self._answer.add_text(text)
            case "reasoning":
                if at.kept is None:
                    at.kept = {}
                    self._answer.keep_item(at.kept)
                # As it is in the end: that is when it is sealed.
                at.kept.update({name: value for name, value in item.items() if value is not None} if is_done else {})

    def _add_arguments(self, at: _OutputItem, piece: str) -> Iterable[ReplyPart]:
        if at.call is not None:
            at.length += len(piece)
            yield from self._answer.add_arguments(at.call, piece)

    def _add_missing_arguments(self, at: _OutputItem, arguments: Any) -> Iterable[ReplyPart]:
        if isinstance(arguments, str) and at.length == 0:
            yield from self._add_arguments(at, arguments)

    def _get_item_key(self, data: Mapping[str, Any], item: Mapping[str, Any]) -> Any:
        """Return the key of an item: its id if that is known, else its number."""
        id_ = item.get("id")
        number = self._numbers.get(id_) if isinstance(id_, str) else None
        if number is None:
            number = data.get("output_index")
            number = number if isinstance(number, int) else id_ if isinstance(id_, str) else len(self._items)
            if isinstance(id_, str):
                self._numbers[id_] = number
        return number

    def _get_item(self, data: Mapping[str, Any]) -> _OutputItem:
        return self._items.setdefault(self._get_item_key(data, {"id": data.get("item_id")}), _OutputItem())
