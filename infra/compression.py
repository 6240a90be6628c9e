"""Bodies in zstd (RFC 8878)."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Final

import zstandard

from domain.shared.errors import DomainError

ZSTD_LEVEL: Final = 3
# What takes longer than a few milliseconds is done in a thread.
MAX_INLINE_BYTES: Final = 256 * 1024
CHUNK_BYTES: Final = 256 * 1024
# What is no larger than this is decompressed in one go: it costs less than a file and a thread.
MAX_BUFFERED_BYTES: Final = 1024 * 1024
# The longest that a frame's header can be.
_HEADER: Final = 18


def compress_body(body: bytes) -> bytes:
    """Compress a body. Its size is in the frame's header."""
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(body)


async def compress_in_thread(body: bytes) -> bytes:
    """Compress a body without holding up the loop."""
    return compress_body(body) if len(body) < MAX_INLINE_BYTES else await asyncio.to_thread(compress_body, body)


async def stream_once(body: bytes) -> AsyncIterator[bytes]:
    """A body as the only one of its chunks."""
    yield body


async def decompress_stream(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Decompress a stream, a chunk at a time. Errors: `internal_error` for what is no whole frame.

    The stream is taken in and closed before the first chunk is given out: whoever reads slowly then holds a file and
    one chunk, and no connection that others wait for.
    """
    with tempfile.SpooledTemporaryFile(max_size=MAX_INLINE_BYTES) as file:
        taken = await _spool(chunks, file)
        with _readable():
            size = zstandard.frame_content_size(file.read(_HEADER))
            file.seek(0)
            small = (
                zstandard.ZstdDecompressor().decompress(file.read())
                if taken <= MAX_INLINE_BYTES and size <= MAX_BUFFERED_BYTES
                else None
            )
        if small is not None:
            yield small
            return
        # A frame that does not say its size could end anywhere.
        if size < 0:
            raise DomainError("internal_error", "A stored body cannot be read: its size is unknown.")
        reading = zstandard.ZstdDecompressor().stream_reader(file, closefd=False)
        while size > 0:
            with _readable():
                chunk = await asyncio.to_thread(reading.read, CHUNK_BYTES)
            # The reader takes the end of a file for the end of a frame.
            if not chunk:
                raise DomainError("internal_error", "A stored body ends too soon.")
            size -= len(chunk)
            yield chunk


async def prefetch_first_chunk(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A stream whose first chunk is there, so that what goes wrong before it is raised here."""
    return _resumed(await anext(chunks, b""), chunks)


async def _resumed(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        yield first
        # Else it would be held until the last one is read.
        del first
        async for chunk in chunks:
            yield chunk
    finally:
        await _close(chunks)


async def _spool(chunks: AsyncIterator[bytes], file: tempfile.SpooledTemporaryFile[bytes]) -> int:
    size = 0
    try:
        async for chunk in chunks:
            size += len(chunk)
            if size <= MAX_INLINE_BYTES:
                file.write(chunk)
            else:
                await asyncio.to_thread(file.write, chunk)
    finally:
        await _close(chunks)
    file.seek(0)
    return size


async def _close(chunks: AsyncIterator[bytes]) -> None:
    if isinstance(chunks, AsyncGenerator):
        await chunks.aclose()


@contextlib.contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except zstandard.ZstdError as error:
        raise DomainError("internal_error", f"A stored body cannot be read: {error}.") from error
