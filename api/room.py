"""Room for large bodies, how much of them this process holds in memory at a time; and turns, one after the other."""

import asyncio
import tempfile
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final
from weakref import WeakValueDictionary

from api.requests import HttpRequest
from domain.shared.unicode_text import mend_json
from infra.compression import LARGE

# A body is held up to three times over: as it came, as it is kept, and compressed.
ROOM: Final = 48 * 1024 * 1024


class Room:
    """Lets large bodies into memory one after the other, as long as they fit."""

    def __init__(self, size: int = ROOM) -> None:
        self._size = self._free = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def body(self, request: HttpRequest) -> AsyncIterator[bytes]:
        """A request's body. A large one comes through a file, so that whoever sends slowly holds no room meanwhile."""
        length = request.headers.get("content-length", "")
        if length.isdecimal() and len(length) < 20 and int(length) <= LARGE:
            yield await request.body()
            return
        with tempfile.TemporaryFile() as file:
            async for chunk in request.stream():
                file.write(chunk)
            async with self.hold(file.tell()):
                file.seek(0)
                yield await asyncio.to_thread(lambda: mend_json(file.read()))

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Hold so much room, or all there is; wait for it in turn."""
        needed = min(size, self._size)
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


class Turns:
    """One at a time for each tenant, so that those who wait for what it has locked hold no connections meanwhile."""

    def __init__(self) -> None:
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def of(self, tenant_id: str) -> asyncio.Lock:
        """The lock to hold while it is the tenant's turn."""
        return self._locks.setdefault(tenant_id, asyncio.Lock())
