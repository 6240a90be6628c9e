"""Room for large bodies: how much of them this process holds in memory at a time."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from api.requests import HttpRequest

# A body is held up to three times over: as it came, as it is kept, and compressed.
ROOM: Final = 48 * 1024 * 1024


class Room:
    """Lets requests in one after the other, as long as their bodies fit. Others wait before they are read."""

    def __init__(self, size: int = ROOM) -> None:
        self._size = self._free = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def room(self, request: HttpRequest) -> AsyncIterator[None]:
        """Hold room for a request's body. One that does not tell its length takes all there is."""
        length = request.headers.get("content-length", "")
        needed = min(int(length), self._size) if length.isdecimal() and len(length) < 20 else self._size
        if self._waiting or needed > self._free:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((needed, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._give(needed)
                else:
                    self._waiting = deque(one for one in self._waiting if one[1] is not turn)
                    self._give(0)
                raise
        else:
            self._free -= needed
        try:
            yield
        finally:
            self._give(needed)

    def _give(self, size: int) -> None:
        self._free += size
        while self._waiting and self._waiting[0][0] <= self._free:
            needed, turn = self._waiting.popleft()
            if not turn.done():
                self._free -= needed
                turn.set_result(None)
