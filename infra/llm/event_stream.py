"""Read a provider's response as server-sent events, or as the plain body that some servers send instead.

An unreadable event is skipped and remembered. It matters only if the answer turns out to be missing.
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final, NamedTuple

import httpx2
import msgspec

from domain.llms import ModelCall
from domain.shared.json_limits import JsonLimits, JsonTooLarge, check_json
from infra.llm import model_errors

# A server that a tenant chose may send without end. The limit holds for the bytes of a line and the text of an answer.
MAX_ANSWER_BYTES: Final = 8 << 20
# Limit for a whole decompressed response: names, signatures and sealed items are kept until its end.
MAX_RESPONSE_BYTES: Final = 128 << 20
# A server has this long to end the response after its answer is complete.
LINGER_SECONDS: Final = 0.5
# After this many bytes, other tasks get a turn.
_CHUNK_BYTES: Final = 64 * 1024
# Limits for one event. Deep values and long numbers cost no more than their size.
_EVENT_LIMITS: Final = JsonLimits(depth=MAX_ANSWER_BYTES, number_characters=None)
# An unreadable body is quoted up to this length.
_MAX_QUOTED_CHARACTERS: Final = 200
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_NOT_JSON: Final = object()


class ServerSentEvent(NamedTuple):
    """Hold an event whose data is a JSON object. The name may be empty."""

    name: str
    data: dict[str, Any]


class EventStream:
    """Parse the events of one response."""

    def __init__(self, response: httpx2.Response, ask: ModelCall) -> None:
        self._response, self._ask = response, ask
        self.is_done = False  # `[DONE]` has come
        self.unreadable = ""  # the first event that is not JSON
        self._ended = False
        self._begun = False
        self._rest = b""
        self._skips_newline = False
        self._name = ""
        self._pending: list[bytes] = []
        self._pending_size = 0
        self._body = bytearray()  # lines that belong to no event
        # True if the response was read as a body, because it held no event of an answer.
        self.is_body = False

    def mark_complete(self) -> None:
        """Note that the answer is complete, so that the server should end the body soon."""
        self._ended = True

    async def read_batches(self) -> AsyncGenerator[list[ServerSentEvent], None]:
        """Yield the events of each read. The call's timeout bounds the wait for the next event.

        Comments, which servers send to keep the connection open, do not extend the wait. After the last event the body
        is read to its end, so that the connection can be used again.
        Errors: `ModelError`, `TimeoutError`, those of httpx2.
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
                    # A compressed piece may hold megabytes: give other tasks a turn.
                    await asyncio.sleep(0)
        if not ended and (batch := self._parse_events(b"\n\n" if self._rest or self._pending else b"")):
            yield batch

    def parse_body(self) -> list[dict[str, Any]]:
        """Return the JSON objects of a body without events: one object, a list of them, or one per line."""
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
        return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, dict)]

    def describe_body(self) -> str:
        """Describe a body without events for people. Returns an empty text if the body is empty."""
        text = self._body.decode("utf-8", "replace").strip()
        if not text:
            return ""
        kind = self._response.headers.get("content-type", "").partition(";")[0].strip()[:100]
        return f"it is {kind or 'of no type'}, not an answer of a model: {text[:_MAX_QUOTED_CHARACTERS]}"

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
        """Read a line of data as soon as it is JSON: many servers put no blank line between events."""
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
            # The standard says to join the data lines of an event.
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


def _decode_json(value: bytes) -> Any:
    """Return the JSON value, or `_NOT_JSON` if the text is not JSON or has too many values to read at once.

    Halves of characters stay in texts, and `TextMender` joins them.
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
