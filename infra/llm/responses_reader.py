"""Read OpenAI's Responses as they arrive: the items of an output, each begun, extended and done."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from domain.llms import ModelCall, ReplyPart
from infra.llm import error_parser, model_errors
from infra.llm.answer_reader import AnswerReader
from infra.llm.event_stream import EventStream, ServerSentEvent
from infra.llm.usage import read_usage

_THOUGHT_EVENTS: Final = ("response.reasoning_summary_text.delta", "response.reasoning_text.delta")


class _OutputItem:
    """Track one item of the output. `length` counts the characters of its text or arguments so far."""

    def __init__(self) -> None:
        self.length = 0
        self.call: int | None = None
        self.is_thought_of = False
        self.kept: dict[str, Any] | None = None


class ResponsesReader(AnswerReader):
    """Build one answer from the events of OpenAI's Responses."""

    def __init__(self, ask: ModelCall, writer: str) -> None:
        super().__init__(ask, writer)
        self._items: dict[Any, _OutputItem] = {}
        self._numbers: dict[str, Any] = {}  # keys of items by their ids
        self.status = ""
        self.reason = ""

    @property
    def is_ended(self) -> bool:
        """Tell whether the response has reported how it ended."""
        return bool(self.status)

    def read_event(self, event: ServerSentEvent) -> Iterable[ReplyPart]:
        """Yield the parts that an event adds. Errors: `ModelError` if it reports an error, after its usage."""
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
            self._note_odd_event(data)
            return
        self.has_events = True

    def finish_answer(self, stream: EventStream) -> Iterable[ReplyPart]:
        """Yield the last parts of the answer. Errors: `ModelError` if the answer is missing or incomplete."""
        if not self.status and not (stream.is_done and not self._answer.is_empty):
            raise self._explain_missing_answer(stream)
        self._note_unreadable_event(stream)
        yield from self._answer.flush_parts()
        if "filter" in self.reason:
            yield self._answer.build_reply("content_filter")
        else:
            yield self._answer.build_reply("length" if self.status == "incomplete" else "stop")

    def _read_response(self, response: Mapping[str, Any], kind: str) -> Iterable[ReplyPart]:
        """Read the response object, which comes at the beginning, and at the end with all of its items."""
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
        yield from self._answer.report_usage(read_usage(response.get("usage")))  # again, as it counts the items above
        details = response.get("incomplete_details")
        self.reason = str(details.get("reason") or "") if isinstance(details, Mapping) else ""
        self.status = "incomplete" if self.reason else ends

    def _read_item(self, number: Any, item: Mapping[str, Any], is_done: bool) -> Iterable[ReplyPart]:
        """Read the current state of an item. Pieces of it may have come before."""
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
                # Only the final state is sealed, so that state is kept.
                if is_done:
                    is_known = bool(at.kept)
                    at.kept.update({name: value for name, value in item.items() if value is not None})
                    if not is_known:
                        yield self._answer.show_item(at.kept)

    def _add_arguments(self, at: _OutputItem, piece: str) -> Iterable[ReplyPart]:
        if at.call is not None:
            at.length += len(piece)
            yield from self._answer.add_arguments(at.call, piece)

    def _add_missing_arguments(self, at: _OutputItem, arguments: Any) -> Iterable[ReplyPart]:
        if isinstance(arguments, str) and at.length == 0:
            yield from self._add_arguments(at, arguments)

    def _get_item_key(self, data: Mapping[str, Any], item: Mapping[str, Any]) -> Any:
        """Return the key of an item: the one that its id has, else its position."""
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
