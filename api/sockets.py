"""Receive and send the messages of WebSockets."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Final

import msgspec
from litestar import WebSocket
from litestar.exceptions import WebSocketDisconnect
from msgspec import UNSET, Meta

from api.bodies import decode_body, run_off_loop
from domain.events import ExecutionEvent
from domain.executions import ExecutionStart
from domain.shared.errors import DomainError, InvalidField
from domain.shared.json_limits import BODY_JSON_LIMITS, JsonTooLarge, check_json
from domain.shared.unicode_text import repair_json, repair_json_text

# We use none of the three type parameters.
Socket = WebSocket[Any, Any, Any]

MAX_QUEUED_MESSAGES: Final = 16
# RFC 6455 section 7.4: 1000 is a normal end, 1008 a broken policy, 4000 and above are ours.
NORMAL_CLOSE: Final = 1000
_POLICY_CLOSE: Final = 1008
_ERROR_CLOSES: Final = {
    "not_found": 4404,
    "unauthenticated": 4401,
    "forbidden": 4403,
    "missing_scope": 4403,
    "rate_limit_exceeded": 4429,
}


class StreamResume(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Resume reading an execution of this agent after an event."""

    execution_id: str
    after: Annotated[int, Meta(ge=0, lt=10**9)] = 0


class _MessageProbe(msgspec.Struct):
    """Hold the field that distinguishes a `StreamResume` from the start of an execution."""

    execution_id: Any = UNSET


class SocketInbox:
    """Receive the client's messages in the background, so that a disconnect is noticed at once."""

    def __init__(self, socket: Socket) -> None:
        self._socket, self.gone = socket, asyncio.Event()
        self._messages: asyncio.Queue[str | bytes | None] = asyncio.Queue(maxsize=MAX_QUEUED_MESSAGES)
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "SocketInbox":
        self._reader = asyncio.create_task(self._receive_messages())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    async def receive_message(self) -> str | bytes:
        """Return the client's next message. Errors: `WebSocketDisconnect`."""
        message = await self._messages.get()
        if message is None:
            raise WebSocketDisconnect(detail="the client disconnected")
        return message

    async def _receive_messages(self) -> None:
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                self.gone.set()
                await self._messages.put(None)
                return
            await self._messages.put(message.get("text") or message.get("bytes") or "")  # type: ignore[arg-type]


async def decode_message(message: str | bytes) -> StreamResume | ExecutionStart:
    """Decode a message of a client of an agent. Errors: `invalid_field`, `malformed_request`."""
    return await run_off_loop(len(message), functools.partial(_decode_message, message))


def _decode_message(message: str | bytes) -> StreamResume | ExecutionStart:
    source = repair_json_text(message).encode() if isinstance(message, str) else repair_json(message)
    try:
        check_json(source, BODY_JSON_LIMITS)
    except JsonTooLarge as error:
        raise InvalidField("message", error.reason) from None
    is_resume = msgspec.json.decode(source, type=_MessageProbe).execution_id is not UNSET
    decoded: StreamResume | ExecutionStart = decode_body(source, StreamResume if is_resume else ExecutionStart)
    return decoded


@asynccontextmanager
async def close_with_reason(socket: Socket) -> AsyncIterator[None]:
    """Send the client an error that ends its stream, and close the socket, unless the client has disconnected."""
    with contextlib.suppress(WebSocketDisconnect):
        try:
            yield
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            await _send_error(socket, InvalidField("message", f"cannot be read: {error}."))
        except DomainError as error:
            await _send_error(socket, error)


async def _send_error(socket: Socket, error: DomainError) -> None:
    await send_json(socket, error_to_json(error))
    await socket.close(_ERROR_CLOSES.get(error.code, _POLICY_CLOSE), error.code)


async def send_json(socket: Socket, content: dict[str, Any]) -> None:
    """Send one JSON object as a text message."""
    await socket.send_data(encode_text(content), mode="text")


def encode_text(content: dict[str, Any]) -> str:
    """Return an object as JSON text."""
    return msgspec.json.encode(content).decode()


def event_to_json(event: ExecutionEvent) -> dict[str, Any]:
    """Return an event as streams show it: its data beside its number, type and time."""
    return {"seq": event.seq, "type": event.type, "at": event.at, **event.data}


def error_to_json(error: DomainError) -> dict[str, Any]:
    """Return an error as streams show it."""
    return {"type": "error", "error": error.code, "detail": error.detail, "errors": error.errors}
