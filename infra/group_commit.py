"""Write the items of several tasks in batches: while one batch is written, the next one gathers."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from domain.shared.errors import DomainError

T = TypeVar("T")
R = TypeVar("R")


class GroupCommit(Generic[T, R]):
    """Gather items for `write`, which takes many and returns a result for each, in order.

    No item waits for a batch to fill: an idle writer writes at once. A batch has up to `max_items` items of up to
    `max_weight` together; a heavier item is written alone.
    """

    def __init__(
        self,
        write: Callable[[list[T]], Awaitable[list[R]]],
        max_items: int = 256,
        weigh: Callable[[T], int] = lambda item: 0,
        max_weight: int = 0,
    ) -> None:
        self._write, self._most, self._weigh, self._heaviest = write, max_items, weigh, max_weight
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._writer: asyncio.Task[None] | None = None

    @property
    def is_idle(self) -> bool:
        """Return whether no item waits or is being written."""
        return self._writer is None

    async def add(self, item: T) -> R:
        """Write one item. Errors: those of `write`; an item that makes a batch fail fails alone."""
        result: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, result))
        if self._writer is None:
            self._writer = asyncio.create_task(self._drain())
        return await result

    async def _drain(self) -> None:
        try:
            while self._waiting:
                await self._gather_items()
                size = self._measure_batch()
                batch, self._waiting = self._waiting[:size], self._waiting[size:]
                await self._write_batch(batch)
        finally:
            self._writer = None

    async def _gather_items(self) -> None:
        """Wait while ready tasks add their items: a turn of the event loop costs less than another batch."""
        before = -1
        while before != len(self._waiting) < self._most:
            before = len(self._waiting)
            await asyncio.sleep(0)

    def _measure_batch(self) -> int:
        weight = 0
        for size, (item, _) in enumerate(self._waiting[: self._most]):
            weight += self._weigh(item)
            if weight > self._heaviest:
                return max(size, 1)
        return min(len(self._waiting), self._most)

    async def _write_batch(self, batch: list[tuple[T, asyncio.Future[R]]]) -> None:
        try:
            results = await self._write([item for item, _ in batch])
        except Exception as error:
            is_outage = isinstance(error, DomainError)
            if len(batch) > 1 and not is_outage:
                for entry in batch:
                    await self._write_batch([entry])
                return
            for _, waiting in batch:
                if not waiting.done():
                    waiting.set_exception(error)
        else:
            for (_, waiting), result in zip(batch, results, strict=True):
                if not waiting.done():
                    waiting.set_result(result)
