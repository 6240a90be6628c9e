"""Bound how much of large bodies this process holds in memory at a time."""

import asyncio
import tempfile
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from api.requests import HttpRequest
from domain.shared.unicode_text import repair_json
from infra.compression import MAX_INLINE_BYTES

# A body is held up to three times over: as it came, as it is kept, and compressed.
BODY_MEMORY_BYTES: Final = 48 * 1024 * 1024


class BodyMemoryLimiter:
    """Reserve memory for large bodies: those that do not fit wait for it in their order."""

    def __init__(self, capacity: int = BODY_MEMORY_BYTES) -> None:
        self._capacity = self.free_bytes = capacity
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def read_body(self, request: HttpRequest) -> AsyncIterator[bytes]:
        """Read a request's body. A large one is spooled to a file, so that a slow client occupies no memory."""
        length = request.headers.get("content-length", "")
        if length.isdecimal() and len(length) < 20 and int(length) <= MAX_INLINE_BYTES:
            yield await request.body()
            return
        with tempfile.TemporaryFile() as spool:
            async for chunk in request.stream():
                spool.write(chunk)
            async with self.reserve_memory(spool.tell()):
                spool.seek(0)
                yield await asyncio.to_thread(lambda: repair_json(spool.read()))

    @asynccontextmanager
    async def reserve_memory(self, size: int) -> AsyncIterator[None]:
        """Reserve this many bytes, or the whole capacity for a larger body; requests queue for it in their order."""
        needed = min(size, self._capacity)
        if self._queue or needed > self.free_bytes:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._queue.append((needed, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._release_memory(needed)
                else:
                    self._queue = deque(waiter for waiter in self._queue if waiter[1] is not turn)
                    self._release_memory(0)
                raise
        else:
            self.free_bytes -= needed
        try:
            yield
        finally:
            self._release_memory(needed)

    def _release_memory(self, size: int) -> None:
        self.free_bytes += size
        while self._queue and self._queue[0][0] <= self.free_bytes:
            needed, turn = self._queue.popleft()
            if not turn.done():
                self.free_bytes -= needed
                turn.set_result(None)
