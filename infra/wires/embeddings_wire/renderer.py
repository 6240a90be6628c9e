"""Render vectors as OpenAI does."""

import base64
import sys
from array import array
from collections.abc import Iterator
from typing import Any

import msgspec

from domain.llms import EmbeddingReply
from infra.wires.embeddings_wire.schema import EmbeddingRequest


def render_pieces(request: EmbeddingRequest, reply: EmbeddingReply) -> Iterator[bytes]:
    """Yield a JSON object in pieces, one for each vector: all of them together may have tens of megabytes."""
    yield b'{"object":"list","model":' + msgspec.json.encode(request.model) + b',"data":['
    for index, vector in enumerate(reply.vectors):
        entry = {"object": "embedding", "index": index, "embedding": _render_vector(vector, request.is_base64)}
        yield (b"," if index else b"") + msgspec.json.encode(entry)
    tokens = (reply.usage.prompt_tokens if reply.usage is not None else None) or 0
    yield b'],"usage":' + msgspec.json.encode({"prompt_tokens": tokens, "total_tokens": tokens}) + b"}"


def _render_vector(vector: "array[float]", is_base64: bool) -> Any:
    """Return the numbers, or the bytes of them with 32 bits each, the lowest byte first."""
    if not is_base64:
        return vector.tolist()
    numbers = array("f", vector)
    if sys.byteorder == "big":
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode("ascii")
