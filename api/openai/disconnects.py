"""Notice that the client of a request has hung up while its answer is still being made."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from api.requests import HttpRequest


@asynccontextmanager
async def watch_disconnect(request: HttpRequest) -> AsyncIterator[asyncio.Event]:
    """Yield an event that is set once the client has hung up. The request's body must have been read."""
    gone = asyncio.Event()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone.set()

    task = asyncio.create_task(watch())
    try:
        yield gone
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
