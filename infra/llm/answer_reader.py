"""Read an answer from a provider's response: the steps that all wires have in common."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any

import httpx2

from domain.llms import ModelCall, ModelError, ReplyPart
from infra.llm import error_parser, model_errors
from infra.llm.answer_builder import AnswerBuilder
from infra.llm.event_stream import EventStream, ServerSentEvent


class AnswerReader(ABC):
    """Build one answer from the events of a response. Each wire has a subclass, which knows its events.

    `has_events` is true once something of an answer has come.
    """

    def __init__(self, ask: ModelCall, writer: str) -> None:
        self._ask = ask
        self._answer = AnswerBuilder(ask, writer)
        # The first event that is neither part of an answer nor an error, but holds a message for people.
        self._odd_event: dict[str, Any] | None = None
        self.has_events = False

    @property
    @abstractmethod
    def is_ended(self) -> bool:
        """Tell whether an event has said that the answer is complete."""

    @abstractmethod
    def read_event(self, event: ServerSentEvent) -> Iterable[ReplyPart]:
        """Yield the parts that an event adds. Errors: `ModelError` if the event reports an error."""

    @abstractmethod
    def finish_answer(self, stream: EventStream) -> Iterable[ReplyPart]:
        """Yield the last parts of the answer. Errors: `ModelError` if the answer is missing or incomplete."""

    def _note_odd_event(self, data: dict[str, Any]) -> None:
        if self._odd_event is None and error_parser.has_message(data):
            self._odd_event = data

    def _note_unreadable_event(self, stream: EventStream) -> None:
        if stream.unreadable:
            quote = model_errors.clean_text(self._ask.target, stream.unreadable)
            self._answer.add_notice(f"An event of the answer is not JSON and was left out: {quote}")

    def _explain_missing_answer(self, stream: EventStream) -> ModelError:
        """Return the error for a response that ended before its answer was complete."""
        target = self._ask.target
        if self._odd_event is not None:
            return model_errors.build_stream_error(target, self._odd_event)
        if self._answer.is_empty and (body := stream.describe_body()):
            return model_errors.build_malformed_error(target, body)
        if stream.unreadable:
            return model_errors.build_malformed_error(target, f"an event is not JSON: {stream.unreadable}")
        if self._has_said_nothing(stream):
            return model_errors.build_empty_error(target)
        return model_errors.build_unfinished_error(target)

    def _has_said_nothing(self, stream: EventStream) -> bool:
        return not self.has_events


async def read_answer(
    response: httpx2.Response, ask: ModelCall, reader: AnswerReader
) -> AsyncGenerator[ReplyPart, None]:
    """Yield the parts of an answer, which come as events, or in the body if there are no events.

    Errors: `ModelError`, `TimeoutError`, and those of httpx2.
    """
    stream = EventStream(response, ask)
    async with aclosing(stream.read_batches()) as batches:
        async for batch in batches:
            for event in batch:
                for part in reader.read_event(event):
                    yield part
            if reader.is_ended:
                stream.mark_complete()
    if not reader.has_events:
        stream.is_body = True
        for data in stream.parse_body():
            for part in reader.read_event(ServerSentEvent("", data)):
                yield part
    for part in reader.finish_answer(stream):
        yield part
