"""Runs of a thread go one after another, and those of a key as many at a time as it allows."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from domain.shared import ids
from domain.shared.errors import DomainError
from tests.support.gate_environment import GateEnvironment, open_gate_environment


@pytest.fixture
async def environment(system) -> AsyncIterator[GateEnvironment]:
    async with open_gate_environment(system) as opened:
        yield opened


def create_thread() -> str:
    return ids.generate_id("thread")


async def test_runs_of_a_thread_go_one_after_another(environment: GateEnvironment) -> None:
    thread = create_thread()
    first, second, third = [await environment.start(thread_id=thread) for _ in range(3)]
    assert [first.blocked, second.blocked, third.blocked] == [None, "busy", "busy"]
    claimed = await environment.claim()
    assert [execution.id for execution in claimed] == [first.id]
    await environment.settle(*claimed)
    assert (await environment.get(second.id)).blocked is None
    await environment.cancel(second.id)
    assert await environment.claim_ids() == [third.id]


async def test_a_key_admits_as_many_as_its_limit(environment: GateEnvironment) -> None:
    steered = {"concurrency_key": "customer-1", "concurrency_limit": 2}
    started = [await environment.start(**steered) for _ in range(4)]
    other = await environment.start(concurrency_key="customer-2")
    claimed = await environment.claim()
    assert [execution.id for execution in claimed] == [started[0].id, started[1].id, other.id]
    await environment.settle(claimed[1])
    assert await environment.claim_ids() == [started[2].id]


async def test_a_delayed_run_is_claimed_when_it_is_due(environment: GateEnvironment) -> None:
    delayed = await environment.start(delay_seconds=60)
    await environment.keep_gates()
    assert await environment.claim_ids() == []
    environment.now += timedelta(seconds=60)
    await environment.keep_gates()
    assert await environment.claim_ids() == [delayed.id]


async def test_an_expired_run_is_never_claimed_and_then_cancelled(environment: GateEnvironment) -> None:
    expiring = await environment.start(expires_in=60)
    environment.now += timedelta(seconds=60)
    assert await environment.claim_ids() == []
    await environment.keep_gates()
    ended = await environment.get(expiring.id)
    assert (ended.status, ended.error_type) == ("cancelled", "expired")
    assert ended.error_message == "It had not begun by 2030-01-01T00:01:00Z, when it expired."


async def test_a_busy_thread_refuses_or_is_cleared(environment: GateEnvironment) -> None:
    thread = create_thread()
    first, second = [await environment.start(thread_id=thread) for _ in range(2)]
    with pytest.raises(DomainError) as caught:
        await environment.start(thread_id=thread, if_busy="reject")
    assert caught.value.code == "thread_busy"
    assert first.id in caught.value.detail
    replacing = await environment.start(thread_id=thread, if_busy="cancel")
    assert replacing.blocked is None
    assert {(await environment.get(execution.id)).status for execution in (first, second)} == {"cancelled"}
    assert await environment.claim_ids() == [replacing.id]


async def test_upkeep_admits_after_a_process_was_killed_at_the_end_of_a_run(environment: GateEnvironment) -> None:
    steered = {"thread_id": create_thread(), "concurrency_key": "k"}
    first, second, third = [await environment.start(**steered) for _ in range(3)]
    environment.store.is_killed = True
    await environment.settle(*await environment.claim())
    assert (await environment.get(first.id)).status == "completed"
    assert await environment.claim_ids() == []
    await environment.keep_gates()
    assert await environment.claim_ids() == [second.id]
    await environment.cancel(second.id)
    await environment.keep_gates()
    assert await environment.claim_ids() == [third.id]


@pytest.mark.parametrize("steered", [{"thread_id": True}, {"concurrency_key": "k"}])
async def test_one_of_many_starts_at_once_is_admitted(environment: GateEnvironment, steered: dict[str, object]) -> None:
    for _ in range(5):
        fields = {**steered, **({"thread_id": create_thread()} if "thread_id" in steered else {})}
        await asyncio.gather(*(environment.start(**fields) for _ in range(8)))
        claimed = await environment.claim()
        assert len(claimed) == 1
        while claimed:
            await environment.settle(*claimed)
            claimed = await environment.claim()
            assert len(claimed) <= 1
