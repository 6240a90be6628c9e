"""A provider's response, read as server-sent events, and as whatever else servers send in their place.

What cannot be read is passed over and remembered: only if the answer turns out to be missing does it matter.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import Any, Final, NamedTuple, Protocol

import httpx2
import msgspec

from domain.llms import ModelCall, ReplyPart
from domain.shared.json_limits import JsonLimits, JsonTooLarge, check_json
from infra.llm import model_errors

# A server that a tenant chose may send for ever. Bytes of one line, and characters of one answer.
MAX_ANSWER_BYTES: Final = 8 << 20
# Of a whole response, unpacked: names, signatures and sealed items are kept until its end, whatever they are in.
MAX_RESPONSE_BYTES: Final = 128 << 20
# Seconds that a server has to end its answer after it said that it has.
LINGER_SECONDS: Final = 0.5
# Bytes that are read before others have their turn.
_CHUNK_BYTES: Final = 64 * 1024
# Of one event. Deep ones and long numbers cost no more than their size.
_EVENT_LIMITS: Final = JsonLimits(depth=MAX_ANSWER_BYTES, number_characters=None)
# Characters of an unreadable body that are shown.
_MAX_QUOTED_CHARACTERS: Final = 200
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_NOT_JSON: Final = object()


class ServerSentEvent(NamedTuple):
    """An event whose data is a JSON object. The name is empty where there was none."""

    name: str
    data: dict[str, Any]


class EventStream:
    """The events of one response."""

    def __init__(self, response: httpx2.Response, ask: ModelCall) -> None:
        self._response, self._ask = response, ask
        self.is_done = False  # `[DONE]` came
        self.unreadable = ""  # the first event that was no JSON
        self._ended = False
        self._begun = False
        self._rest = b""
        self._skips_newline = False
        self._name = ""
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._body = bytearray()  # lines that belong to no event
        # Whether it was read as a body, as it held no event of an answer.
        self.is_body = False

    def mark_complete(self) -> None:
        """Expect nothing more: the answer is whole, and the server should end the body soon."""
        self._ended = True

    async def read_batches(self) -> AsyncGenerator[list[ServerSentEvent], None]:
        """Yield the events that one read brought, none waited for longer than the call's timeout.

        Comments, with which servers say that they are alive, count for nothing. After the last event the body is read
        to its end, as the connection can be used again then. Errors: `ModelError`, `TimeoutError`, those of httpx2.
        """
        clock = asyncio.get_running_loop().time
        due = clock() + self._ask.timeout
        ended = False
        room = MAX_RESPONSE_BYTES
        async with aclosing(self._response.aiter_bytes()) as pieces:
            while True:
                try:
                    async with asyncio.timeout_at(due):
                        piece = await anext(pieces)
                except StopAsyncIteration:
                    break
                except TimeoutError:
                    if ended:
                        break
                    raise
                room -= len(piece)
                if room < 0 and not ended:
                    raise model_errors.build_malformed_error(self._ask.target, "it is too long.")
                for begin in range(0, len(piece), _CHUNK_BYTES):
                    if ended:
                        break
                    if batch := self._parse_events(piece[begin : begin + _CHUNK_BYTES]):
                        yield batch
                        due = clock() + self._ask.timeout
                    if self.is_done or self._ended:
                        ended, due = True, clock() + LINGER_SECONDS
                    # What was packed may be megabytes: others have their turn.
                    await asyncio.sleep(0)
        if not ended and (batch := self._parse_events(b"\n\n" if self._rest or self._pending else b"")):
            yield batch

    def parse_body(self) -> list[dict[str, Any]]:
        """Return the JSON objects of a body without events: one, a list, or one a line. Empty if it is none."""
        try:
            check_json(bytes(self._body), _EVENT_LIMITS)
        except JsonTooLarge:
            return []
        value = _decode_json(bytes(self._body)) if self._body.strip() else None
        if value is _NOT_JSON:
            value = []
            for line in filter(None, map(bytes.strip, bytes(self._body).splitlines())):
                if (decoded := _decode_json(line)) is _NOT_JSON:
                    return []
                value.append(decoded)
        return [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, dict)]

    def describe_body(self) -> str:
        """Return what a body without events was, for people; empty if there was nothing in it."""
        text = self._body.decode("utf-8", "replace").strip()
        if not text:
            return ""
        kind = self._response.headers.get("content-type", "").partition(";")[0].strip()[:100]
        return f"it is {kind or 'of no type'}, no answer of a model: {text[:_MAX_QUOTED_CHARACTERS]}"

    def _parse_events(self, piece: bytes) -> list[ServerSentEvent]:
        events: list[ServerSentEvent] = []
        for line in self._split_lines(piece):
            if not line:
                self._finish_event(events)
            elif line.startswith(b"data:"):
                value = line[5:].strip()
                if value == b"[DONE]":
                    self._finish_event(events)
                    self.is_done = True
                    break
                if value:
                    self._add_data(value, events)
            elif line.startswith(b"event:"):
                self._name = line[6:].strip().decode("utf-8", "replace")
            elif not line.startswith((b":", b"id:", b"retry:")) and line not in (b"data", b"event", b"id", b"retry"):
                if len(self._body) + len(line) > MAX_ANSWER_BYTES:
                    raise model_errors.build_malformed_error(self._ask.target, "it is too long.")
                self._body += line + b"\n"
        return events

    def _split_lines(self, piece: bytes) -> list[bytes]:
        if self._skips_newline and piece.startswith(b"\n"):
            piece = piece[1:]
        self._skips_newline = piece.endswith(b"\r")
        text = self._rest + piece
        if not self._begun and len(text) >= len(_BYTE_ORDER_MARK):
            self._begun, text = True, text.removeprefix(_BYTE_ORDER_MARK)
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, self._rest = text.split(b"\n")
        if len(self._rest) > MAX_ANSWER_BYTES:
            raise model_errors.build_malformed_error(self._ask.target, "a line of it is too long.")
        return lines

    def _add_data(self, value: bytes, events: list[ServerSentEvent]) -> None:
        """Read a line of data as soon as it is JSON: servers that put no blank line between events are common."""
        decoded = _decode_json(value)
        if decoded is _NOT_JSON or (self._pending and not (isinstance(decoded, dict) and decoded)):
            self._pending_size += len(value)
            if self._pending_size > MAX_ANSWER_BYTES:
                raise model_errors.build_malformed_error(self._ask.target, "an event of it is too long.")
            self._pending.append(value)
            return
        if self._pending:
            self._note_unreadable(b"\n".join(self._pending))
            self._pending.clear()
            self._pending_size = 0
        self._add_event(decoded, events)

    def _finish_event(self, events: list[ServerSentEvent]) -> None:
        if self._pending:
            # The standard joins the lines of an event.
            joined = b"\n".join(self._pending)
            self._pending.clear()
            self._pending_size = 0
            decoded = _decode_json(joined)
            if decoded is not _NOT_JSON:
                self._add_event(decoded, events)
            elif self._name == "error":
                events.append(ServerSentEvent("error", {"message": joined.decode("utf-8", "replace")}))
            else:
                self._note_unreadable(joined)
        self._name = ""

    def _add_event(self, decoded: Any, events: list[ServerSentEvent]) -> None:
        if isinstance(decoded, list) and len(decoded) == 1:
            decoded = decoded[0]
        if isinstance(decoded, dict):
            events.append(ServerSentEvent(self._name, decoded))
        elif self._name == "error" and isinstance(decoded, str):
            events.append(ServerSentEvent("error", {"message": decoded}))

    def _note_unreadable(self, data: bytes) -> None:
        self.unreadable = self.unreadable or data[:_MAX_QUOTED_CHARACTERS].decode("utf-8", "replace")


class EventReader(Protocol):
    """Makes parts of an answer out of the events of one wire."""

    # Whether anything of an answer has come.
    has_events: bool

    @property
    def is_ended(self) -> bool:
        """Tell whether the answer has said that it is whole."""
        ...

    def read_event(self, event: ServerSentEvent) -> Iterable[ReplyPart]:
        """Read an event. Errors: `ModelError` for one that is an error."""
        ...


async def read_events(stream: EventStream, reader: EventReader) -> AsyncGenerator[ReplyPart, None]:
    """Yield the parts that a reader makes of a stream, or of the body where no events came.

    Errors: those of the reader, `TimeoutError`, and those of httpx2.
    """
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


def _decode_json(value: bytes) -> Any:
    """Return the JSON value; `_NOTHING` if it is none, or of too many values to be read while others wait.

    Halves of characters are left in texts, for those to mend.
    """
    try:
        check_json(value, _EVENT_LIMITS)
        return msgspec.json.decode(value)
    except (RecursionError, JsonTooLarge):
        return _NOT_JSON
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        return json.loads(value.decode("utf-8", "surrogateescape"), strict=False)
    except (ValueError, RecursionError):
        return _NOT_JSON
