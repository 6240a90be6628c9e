"""Test the limits on memory for bodies, the locks by key, and the limits on batches."""

import asyncio

import pytest

from api.body_memory import BodyMemoryLimiter
from api.keyed_locks import KeyedLocks
from infra.group_commit import GroupCommit


async def test_large_bodies_wait_in_order_for_memory() -> None:
    limiter, reserved_bytes, log = BodyMemoryLimiter(100), 0, []

    async def reserve_and_log(name: str, length: int) -> None:
        nonlocal reserved_bytes
        weight = min(length, 100)
        async with limiter.reserve_memory(length):
            reserved_bytes += weight
            assert reserved_bytes <= 100
            log.append(name)
            await asyncio.sleep(0.01)
            reserved_bytes -= weight

    sizes = [60, 60, 10, 30, 500, 0, 1, 99, 100]
    await asyncio.gather(*(reserve_and_log(str(number), size) for number, size in enumerate(sizes)))
    assert log == [str(number) for number in range(len(sizes))]
    assert limiter.free_bytes == 100


async def test_locks_are_separate_by_key_and_removed_when_free() -> None:
    locks = KeyedLocks()
    async with locks.get_lock("a"):
        assert locks.get_lock("a").locked()
        async with locks.get_lock("b"):
            pass
    assert not locks.get_lock("a").locked()
    assert not len(locks)


async def test_cancelled_waiter_does_not_block_the_queue() -> None:
    limiter = BodyMemoryLimiter(100)
    async with limiter.reserve_memory(80):
        waiting_tasks = [asyncio.create_task(reserve_briefly(limiter, size)) for size in (50, 20, 10)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting_tasks)
        waiting_tasks[0].cancel()
        # The two waiters behind it fit beside the body that holds memory.
        await asyncio.wait_for(asyncio.gather(*waiting_tasks[1:]), 1)
    assert limiter.free_bytes == 100
    with pytest.raises(asyncio.CancelledError):
        await waiting_tasks[0]


async def reserve_briefly(limiter: BodyMemoryLimiter, size: int) -> None:
    async with limiter.reserve_memory(size):
        await asyncio.sleep(0)


async def test_batches_stay_below_max_items_and_max_weight() -> None:
    batches: list[list[int]] = []

    async def write_batch(items: list[int]) -> list[int]:
        batches.append(items)
        await asyncio.sleep(0)
        return items

    commit = GroupCommit(write_batch, max_items=4, weigh=lambda item: item, max_weight=10)
    sent = [1, 5, 5, 5, 50, 1, 1, 1, 1, 1]
    assert await asyncio.gather(*(commit.add(item) for item in sent)) == sent
    assert [item for batch in batches for item in batch] == sent
    assert all(len(batch) <= 4 and (sum(batch) <= 10 or len(batch) == 1) for batch in batches)
    assert commit.is_idle
