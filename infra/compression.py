"""Compress and decompress bodies with zstd (RFC 8878)."""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Final

import zstandard

from domain.shared.errors import DomainError

ZSTD_LEVEL: Final = 3
# Larger bodies take more than a few milliseconds, so a thread handles them.
MAX_INLINE_BYTES: Final = 256 * 1024
CHUNK_BYTES: Final = 256 * 1024
# Smaller bodies are decompressed at once, which costs less than a file and a thread.
MAX_BUFFERED_BYTES: Final = 1024 * 1024
# The maximum size of a frame's header.
_MAX_HEADER_BYTES: Final = 18


def compress_body(body: bytes) -> bytes:
    """Compress a body. The frame's header contains its size."""
    return zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(body)


async def compress_in_thread(body: bytes) -> bytes:
    """Compress a body without blocking the event loop."""
    return compress_body(body) if len(body) < MAX_INLINE_BYTES else await asyncio.to_thread(compress_body, body)


async def stream_once(body: bytes) -> AsyncIterator[bytes]:
    """Yield a body as its only chunk."""
    yield body


async def decompress_stream(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Decompress a stream, a chunk at a time. Errors: `internal_error` for an incomplete or invalid frame.

    The stream is read to its end and closed before the first chunk is returned. A slow reader then occupies a file and
    one chunk, but no connection that others wait for.
    """
    with tempfile.SpooledTemporaryFile(max_size=MAX_INLINE_BYTES) as file:
        stored_bytes = await _spool_stream(chunks, file)
        with _translate_errors():
            size = zstandard.frame_content_size(file.read(_MAX_HEADER_BYTES))
            file.seek(0)
            small = (
                zstandard.ZstdDecompressor().decompress(file.read())
                if stored_bytes <= MAX_INLINE_BYTES and size <= MAX_BUFFERED_BYTES
                else None
            )
        if small is not None:
            yield small
            return
        # The end of a frame without a size cannot be checked.
        if size < 0:
            raise DomainError("internal_error", "A stored body cannot be read: its frame has no size.")
        reader = zstandard.ZstdDecompressor().stream_reader(file, closefd=False)
        while size > 0:
            with _translate_errors():
                chunk = await asyncio.to_thread(reader.read, CHUNK_BYTES)
            # The reader treats the end of the file as the end of the frame.
            if not chunk:
                raise DomainError("internal_error", "A stored body is truncated.")
            size -= len(chunk)
            yield chunk


async def prefetch_first_chunk(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Read the first chunk of a stream ahead, so that errors before it are raised here."""
    return _resume_stream(await anext(chunks, b""), chunks)


async def _resume_stream(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    try:
        yield first
        # Otherwise it would stay in memory until the last chunk is read.
        del first
        async for chunk in chunks:
            yield chunk
    finally:
        await _close_stream(chunks)


async def _spool_stream(chunks: AsyncIterator[bytes], file: tempfile.SpooledTemporaryFile[bytes]) -> int:
    size = 0
    try:
        async for chunk in chunks:
            size += len(chunk)
            if size <= MAX_INLINE_BYTES:
                file.write(chunk)
            else:
                await asyncio.to_thread(file.write, chunk)
    finally:
        await _close_stream(chunks)
    file.seek(0)
    return size


async def _close_stream(chunks: AsyncIterator[bytes]) -> None:
    if isinstance(chunks, AsyncGenerator):
        await chunks.aclose()


@contextlib.contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except zstandard.ZstdError as error:
        raise DomainError("internal_error", f"A stored body cannot be read: {error}.") from error
