"""Bodies in zstd (RFC 8878)."""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import zstandard

from domain.errors import DomainError

LEVEL: Final = 3
# What takes longer than a few milliseconds is done in a thread.
LARGE: Final = 256 * 1024
CHUNK: Final = 256 * 1024


def pack(body: bytes) -> bytes:
    """Compress a body. Its size is in the frame's header."""
    return zstandard.ZstdCompressor(level=LEVEL).compress(body)


async def packed(body: bytes) -> bytes:
    """Compress a body without holding up the loop."""
    return pack(body) if len(body) < LARGE else await asyncio.to_thread(pack, body)


async def once(body: bytes) -> AsyncIterator[bytes]:
    """A body as the only one of its chunks."""
    yield body


async def unpacked(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Decompress a stream, a chunk at a time. Errors: `internal_error` for what is no whole frame."""
    reading = zstandard.ZstdDecompressor().decompressobj(write_size=CHUNK)
    try:
        async for chunk in chunks:
            for start in range(0, len(chunk), CHUNK):
                if part := reading.decompress(chunk[start : start + CHUNK]):
                    yield part
    except zstandard.ZstdError as error:
        raise DomainError("internal_error", f"A stored body cannot be read: {error}.") from error
    if not reading.eof:
        raise DomainError("internal_error", "A stored body ends too soon.")
