"""Room for large bodies, and batches by weight: both bound what is held at a time."""

import asyncio

import pytest

from api.body_memory import BodyMemoryLimiter
from api.keyed_locks import KeyedLocks
from infra.group_commit import GroupCommit


async def test_bodies_that_do_not_fit_wait_in_turn() -> None:
    room, inside, log = BodyMemoryLimiter(100), 0, []

    async def hold(name: str, length: int) -> None:
        nonlocal inside
        weight = min(length, 100)
        async with room.reserve_memory(length):
            inside += weight
            assert inside <= 100
            log.append(name)
            await asyncio.sleep(0.01)
            inside -= weight

    sizes = [60, 60, 10, 30, 500, 0, 1, 99, 100]
    await asyncio.gather(*(hold(str(number), size) for number, size in enumerate(sizes)))
    assert log == [str(number) for number in range(len(sizes))]
    assert room.free_bytes == 100


async def test_turns_are_of_one_tenant_and_forgotten() -> None:
    turns = KeyedLocks()
    async with turns.get_lock("a"):
        assert turns.get_lock("a").locked()
        async with turns.get_lock("b"):
            pass
    assert not turns.get_lock("a").locked()
    assert not len(turns)


async def test_whoever_stops_waiting_leaves_no_gap() -> None:
    room = BodyMemoryLimiter(100)
    async with room.reserve_memory(80):
        waiting = [asyncio.create_task(_hold(room, size)) for size in (50, 20, 10)]
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        waiting[0].cancel()
        # The two behind it fit beside the one that is in.
        await asyncio.wait_for(asyncio.gather(*waiting[1:]), 1)
    assert room.free_bytes == 100
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]


async def _hold(room: BodyMemoryLimiter, size: int) -> None:
    async with room.reserve_memory(size):
        await asyncio.sleep(0)


async def test_a_batch_is_not_heavier_than_allowed() -> None:
    batches: list[list[int]] = []

    async def write(items: list[int]) -> list[int]:
        batches.append(items)
        await asyncio.sleep(0)
        return items

    one = GroupCommit(write, max_items=4, weigh=lambda item: item, max_weight=10)
    sent = [1, 5, 5, 5, 50, 1, 1, 1, 1, 1]
    assert await asyncio.gather(*(one.add(item) for item in sent)) == sent
    assert [item for batch in batches for item in batch] == sent
    assert all(len(batch) <= 4 and (sum(batch) <= 10 or len(batch) == 1) for batch in batches)
    assert one.is_idle
