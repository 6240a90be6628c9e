"""A claimer takes work at once when its bell rings, several rows with one statement, and never more than its slots."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from domain.shared.errors import DomainError
from infra.group_commit import GroupCommit
from workers import claimer
from workers.claimer import Claimer


class FakeRunner:
    """A runner whose queue is a list. `claims` holds how many slots each claim asked for, and how many rows it got."""

    def __init__(self, pending: int = 0) -> None:
        self.pending, self.claims = pending, list[tuple[int, int]]()
        self.running = self.most_running = self.done = self.handed_over = 0
        self.release = asyncio.Event()
        self.may_claim: asyncio.Event | None = None
        self.failures_left, self.may_have_pending = 0, False
        # True if the waiting work was submitted after the settlement that would have reported it.
        self.hides_pending = False

    async def claim_executions(self, slots: int) -> list[Any]:
        if self.may_claim is not None:
            await self.may_claim.wait()
        if self.failures_left:
            self.failures_left -= 1
            raise DomainError("unavailable", "The database is unavailable.")
        claimed_count = min(slots, self.pending)
        self.pending -= claimed_count
        self.claims.append((slots, claimed_count))
        return [object()] * claimed_count

    async def run_claimed(self, _: object) -> None:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self.release.wait()
            self.done += 1
            self.may_have_pending = self.pending > 0 and not self.hides_pending
        finally:
            self.running -= 1

    async def hand_over_execution(self, _: object) -> None:
        self.handed_over += 1


@asynccontextmanager
async def run_claimer(work: Any, slots: int, rung: asyncio.Event) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(Claimer(work, slots, rung).run())
    await asyncio.sleep(0.01)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def _no_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claimer, "CLAIM_POLL_SECONDS", 3600.0)


async def test_claimer_wakes_only_when_the_bell_rings() -> None:
    work, rung = FakeRunner(), asyncio.Event()
    async with run_claimer(work, 4, rung):
        await asyncio.sleep(0.2)
        assert work.claims == [(4, 0)]
        work.pending = 1
        rung.set()
        await _wait_until(lambda: work.running == 1)
        assert work.claims[1] == (4, 1)


async def test_one_claim_takes_as_many_rows_as_there_are_free_slots() -> None:
    work, rung = FakeRunner(pending=20), asyncio.Event()
    async with run_claimer(work, 8, rung):
        await _wait_until(lambda: work.running == 8)
        assert work.claims == [(8, 8)]
        work.release.set()
        await _wait_until(lambda: work.done == 20)
        assert work.most_running == 8
        assert len(work.claims) < 20


async def test_freed_slot_claims_only_if_work_may_wait() -> None:
    work, rung = FakeRunner(pending=1), asyncio.Event()
    async with run_claimer(work, 2, rung):
        await _wait_until(lambda: work.running == 1)
        work.release.set()
        await _wait_until(lambda: work.done == 1)
        await asyncio.sleep(0.05)
        assert work.claims == [(2, 1)]


async def test_ring_while_all_slots_are_busy_is_remembered() -> None:
    work, rung = FakeRunner(pending=1), asyncio.Event()
    async with run_claimer(work, 1, rung):
        await _wait_until(lambda: work.running == 1)
        work.hides_pending, work.pending = True, 1
        rung.set()
        await asyncio.sleep(0.01)
        work.release.set()
        await _wait_until(lambda: work.done == 2)


async def test_missed_ring_is_found_by_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claimer, "CLAIM_POLL_SECONDS", 0.05)
    work, rung = FakeRunner(), asyncio.Event()
    async with run_claimer(work, 2, rung):
        work.pending = 1
        await _wait_until(lambda: work.running == 1)


async def test_claimer_waits_out_an_outage() -> None:
    work, rung = FakeRunner(pending=1), asyncio.Event()
    work.failures_left = 2
    async with run_claimer(work, 2, rung):
        await _wait_until(lambda: work.running == 1)


async def test_rows_claimed_while_stopping_are_handed_over() -> None:
    work, rung = FakeRunner(pending=3), asyncio.Event()
    work.may_claim = asyncio.Event()
    async with run_claimer(work, 3, rung) as task:
        task.cancel()
        await asyncio.sleep(0.01)
        work.may_claim.set()
        await asyncio.gather(task, return_exceptions=True)
    assert (work.handed_over, work.running) == (3, 0)


async def test_batch_collects_items_while_another_is_written() -> None:
    gate, written = asyncio.Event(), list[list[int]]()

    async def write(items: list[int]) -> list[int]:
        written.append(items)
        await gate.wait()
        return [item * 10 for item in items]

    group_commit = GroupCommit(write, max_items=4)
    additions = [asyncio.create_task(group_commit.add(number)) for number in range(6)]
    await asyncio.sleep(0.01)
    additions += [asyncio.create_task(group_commit.add(number)) for number in range(6, 8)]
    await asyncio.sleep(0.01)
    gate.set()
    assert await asyncio.gather(*additions) == [number * 10 for number in range(8)]
    assert written == [[0, 1, 2, 3], [4, 5, 6, 7]]


async def test_bad_item_fails_alone() -> None:
    async def write(items: list[int]) -> list[int]:
        if 3 in items:
            raise ValueError("three")
        return items

    group_commit = GroupCommit(write)
    results = await asyncio.gather(*(group_commit.add(number) for number in range(5)), return_exceptions=True)
    assert [number for number in results if isinstance(number, int)] == [0, 1, 2, 4]
    assert isinstance(results[3], ValueError)


async def test_outage_fails_the_whole_batch_at_once() -> None:
    calls = 0

    async def write(items: list[int]) -> list[int]:
        nonlocal calls
        calls += 1
        raise DomainError("unavailable", "The database is unavailable.")

    group_commit = GroupCommit(write)
    results = await asyncio.gather(*(group_commit.add(number) for number in range(5)), return_exceptions=True)
    assert all(isinstance(result, DomainError) for result in results)
    assert calls == 1
