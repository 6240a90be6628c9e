"""Runs are taken at once when rung, several with one statement, and never more than there are slots."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from domain.shared.errors import DomainError
from infra.group_commit import GroupCommit
from workers import claimer
from workers.claimer import Claimer


class Work:
    """A runner whose queue is a list. `claims` are how many slots each claim asked for, and what it got."""

    def __init__(self, pending: int = 0) -> None:
        self.pending, self.claims = pending, list[tuple[int, int]]()
        self.running = self.most = self.done = self.returned = 0
        self.release = asyncio.Event()
        self.claiming: asyncio.Event | None = None
        self.fails, self.may_have_pending = 0, False
        # Whether what waits was submitted after the settle that would have told of it.
        self.blind = False

    async def claim_executions(self, slots: int) -> list[Any]:
        if self.claiming is not None:
            await self.claiming.wait()
        if self.fails:
            self.fails -= 1
            raise DomainError("unavailable", "away")
        taken = min(slots, self.pending)
        self.pending -= taken
        self.claims.append((slots, taken))
        return [object()] * taken

    async def run_claimed(self, _: object) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.release.wait()
            self.done += 1
            self.may_have_pending = self.pending > 0 and not self.blind
        finally:
            self.running -= 1

    async def hand_over_execution(self, _: object) -> None:
        self.returned += 1


@asynccontextmanager
async def dispatching(work: Any, slots: int, rung: asyncio.Event) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(Claimer(work, slots, rung).run())
    await asyncio.sleep(0.01)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _until(true: Any) -> None:
    async with asyncio.timeout(5):
        while not true():
            await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def _no_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claimer, "CLAIM_POLL_SECONDS", 3600.0)


async def test_a_ring_wakes_it_and_nothing_else_does() -> None:
    work, rung = Work(), asyncio.Event()
    async with dispatching(work, 4, rung):
        await asyncio.sleep(0.2)
        assert work.claims == [(4, 0)]
        work.pending = 1
        rung.set()
        await _until(lambda: work.running == 1)
        assert work.claims[1] == (4, 1)


async def test_one_claim_takes_as_many_as_there_are_slots() -> None:
    work, rung = Work(pending=20), asyncio.Event()
    async with dispatching(work, 8, rung):
        await _until(lambda: work.running == 8)
        assert work.claims == [(8, 8)]
        work.release.set()
        await _until(lambda: work.done == 20)
        assert work.most == 8
        assert len(work.claims) < 20


async def test_a_freed_slot_looks_only_if_something_may_wait() -> None:
    work, rung = Work(pending=1), asyncio.Event()
    async with dispatching(work, 2, rung):
        await _until(lambda: work.running == 1)
        work.release.set()
        await _until(lambda: work.done == 1)
        await asyncio.sleep(0.05)
        assert work.claims == [(2, 1)]


async def test_a_ring_while_every_slot_is_taken_is_not_forgotten() -> None:
    work, rung = Work(pending=1), asyncio.Event()
    async with dispatching(work, 1, rung):
        await _until(lambda: work.running == 1)
        work.blind, work.pending = True, 1
        rung.set()
        await asyncio.sleep(0.01)
        work.release.set()
        await _until(lambda: work.done == 2)


async def test_a_missed_ring_is_found_by_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claimer, "CLAIM_POLL_SECONDS", 0.05)
    work, rung = Work(), asyncio.Event()
    async with dispatching(work, 2, rung):
        work.pending = 1
        await _until(lambda: work.running == 1)


async def test_an_outage_is_waited_out() -> None:
    work, rung = Work(pending=1), asyncio.Event()
    work.fails = 2
    async with dispatching(work, 2, rung):
        await _until(lambda: work.running == 1)


async def test_what_is_claimed_while_it_is_told_to_stop_is_given_back() -> None:
    work, rung = Work(pending=3), asyncio.Event()
    work.claiming = asyncio.Event()
    async with dispatching(work, 3, rung) as task:
        task.cancel()
        await asyncio.sleep(0.01)
        work.claiming.set()
        await asyncio.gather(task, return_exceptions=True)
    assert (work.returned, work.running) == (3, 0)


async def test_a_batch_gathers_while_another_is_written() -> None:
    gate, written = asyncio.Event(), list[list[int]]()

    async def write(items: list[int]) -> list[int]:
        written.append(items)
        await gate.wait()
        return [item * 10 for item in items]

    batches = GroupCommit(write, max_items=4)
    adding = [asyncio.create_task(batches.add(number)) for number in range(6)]
    await asyncio.sleep(0.01)
    adding += [asyncio.create_task(batches.add(number)) for number in range(6, 8)]
    await asyncio.sleep(0.01)
    gate.set()
    assert await asyncio.gather(*adding) == [number * 10 for number in range(8)]
    assert written == [[0, 1, 2, 3], [4, 5, 6, 7]]


async def test_an_item_that_spoils_a_batch_fails_alone() -> None:
    async def write(items: list[int]) -> list[int]:
        if 3 in items:
            raise ValueError("three")
        return items

    batches = GroupCommit(write)
    results = await asyncio.gather(*(batches.add(number) for number in range(5)), return_exceptions=True)
    assert [number for number in results if isinstance(number, int)] == [0, 1, 2, 4]
    assert isinstance(results[3], ValueError)


async def test_an_outage_is_told_to_all_of_a_batch_at_once() -> None:
    calls = 0

    async def write(items: list[int]) -> list[int]:
        nonlocal calls
        calls += 1
        raise DomainError("unavailable", "away")

    batches = GroupCommit(write)
    results = await asyncio.gather(*(batches.add(number) for number in range(5)), return_exceptions=True)
    assert all(isinstance(result, DomainError) for result in results)
    assert calls == 1
