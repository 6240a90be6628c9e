"""Build answers of Bedrock's Converse, in the frames of AWS."""

import struct
from binascii import crc32
from typing import Any, Final

import msgspec

FRAMES_TYPE: Final = "application/vnd.amazon.eventstream"


def build_frame(payload: Any, **headers: str) -> bytes:
    """Build a frame as AWS does: lengths and their checksum, headers, payload, and the checksum of all."""
    head = b"".join(
        bytes([len(name)]) + name.encode() + b"\x07" + struct.pack("!H", len(value)) + value.encode()
        for name, value in headers.items()
    )
    body = payload if isinstance(payload, bytes) else msgspec.json.encode(payload)
    prelude = struct.pack("!II", len(head) + len(body) + 16, len(head))
    message = prelude + struct.pack("!I", crc32(prelude)) + head + body
    return message + struct.pack("!I", crc32(message))


def build_event(kind: str, **payload: Any) -> bytes:
    """Build an event. AWS pads events with letters, so that their length tells nothing."""
    padded = {**payload, "p": "abcdefghijklmn"}
    return build_frame(padded, **{":event-type": kind, ":content-type": "application/json", ":message-type": "event"})


def build_delta(number: int, **delta: Any) -> bytes:
    """Build an event that adds to a block."""
    return build_event("contentBlockDelta", contentBlockIndex=number, delta=delta)


def build_ending(reason: str = "end_turn", **usage: int) -> bytes:
    """Build the events that end an answer."""
    metrics = {"latencyMs": 2333}
    return build_event("messageStop", stopReason=reason) + build_event("metadata", metrics=metrics, usage=usage)
