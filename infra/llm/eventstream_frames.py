"""Read the frames in which AWS sends the events of an answer, and pass them on as server-sent events.

Source: https://docs.aws.amazon.com/AmazonS3/latest/API/RESTSelectObjectAppendix.html; all streams of AWS are alike.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

import httpx2
import msgspec
from botocore.eventstream import EventStreamBuffer

_FRAMES_TYPE: Final = "application/vnd.amazon.eventstream"


class FramedResponse:
    """Show a response of frames as one of server-sent events. Other bodies pass unchanged."""

    def __init__(self, response: httpx2.Response) -> None:
        self._response = response
        self.headers = response.headers

    async def aiter_bytes(self) -> AsyncGenerator[bytes, None]:
        """Yield the events of each read. Errors: those of httpx2, and botocore's for a frame that is damaged."""
        buffer = EventStreamBuffer() if self.headers.get("content-type", "").startswith(_FRAMES_TYPE) else None
        async with aclosing(self._response.aiter_bytes()) as pieces:
            async for piece in pieces:
                if buffer is None:
                    yield piece
                    continue
                buffer.add_data(piece)
                if events := b"".join(_format_frame(frame) for frame in buffer):
                    yield events


def _format_frame(frame: Any) -> bytes:
    """Write one frame as an event. Failures of the service become events of the name `error`."""
    headers = frame.headers
    # A line feed in JSON is space between its values: those of texts are escaped.
    payload: bytes = frame.payload.replace(b"\n", b" ").replace(b"\r", b" ")
    match headers.get(":message-type"):
        case "event":
            return f"event: {headers.get(':event-type', '')}\ndata: ".encode() + payload + b"\n\n"
        case "exception":
            name, message = headers.get(":exception-type", ""), payload
        case _:
            name, message = headers.get(":error-code", ""), msgspec.json.encode(headers.get(":error-message", ""))
    return b"event: error\ndata: " + msgspec.json.encode({"type": name, **_parse_failure(message)}) + b"\n\n"


def _parse_failure(payload: bytes) -> dict[str, str]:
    try:
        body: Any = msgspec.json.decode(payload)
    except msgspec.DecodeError:
        body = payload.decode("utf-8", "replace")
    message = body.get("message") if isinstance(body, dict) else body
    return {"message": message} if isinstance(message, str) else {}
