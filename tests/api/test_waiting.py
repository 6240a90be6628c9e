"""A waiting request is woken by a message, and does not look in between; only without Redis it polls."""

import asyncio
from typing import Any

import msgspec
import pytest

from api.waiting import StatusWaiter
from domain.shared.jobs import RowChange
from domain.shared.status import TERMINAL_STATUSES
from infra import redis
from infra.redis import Bell
from tests.support.clients import TenantClient


class Row(msgspec.Struct):
    status: str


class Waiter:
    """A waiting request without the request: how often it looked, and what it will see."""

    def __init__(self, bell: Bell, row_id: str) -> None:
        self.bell, self.row_id, self.looked, self.now = bell, row_id, 0, "running"

    async def fetch(self) -> Row:
        self.looked += 1
        return Row(self.now)

    async def wait(self) -> Row:
        with self.bell.watch_row(self.row_id, TERMINAL_STATUSES) as heard:
            store: Any = None
            return await StatusWaiter(store, self.bell).poll_until_final(
                heard, self.fetch, TERMINAL_STATUSES, 30, Row("pending")
            )


async def test_it_looks_once_when_the_end_is_told_and_never_before(resources) -> None:
    while resources.bell.poll_seconds != redis.CONNECTED_POLL_SECONDS:
        await asyncio.sleep(0.01)
    waiter = Waiter(resources.bell, "exec_waiting")
    waiting = asyncio.create_task(waiter.wait())
    for status in ("preparing", "running"):
        await asyncio.sleep(0.6)
        await resources.queue.ring_jobs([], [RowChange(row_id="exec_waiting", status=status)])
    await asyncio.sleep(0.2)
    assert waiter.looked == 0
    waiter.now = "completed"
    await resources.queue.ring_jobs([], [RowChange(row_id="exec_waiting", status="completed")])
    async with asyncio.timeout(5):
        assert (await waiting).status == "completed"
    assert waiter.looked == 1


async def test_without_redis_it_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis, "DISCONNECTED_POLL_SECONDS", 0.02)
    async with Bell("redis://127.0.0.1:1", row_changes=("run",)) as away:
        waiter = Waiter(away, "exec_waiting")
        waiting = asyncio.create_task(waiter.wait())
        while waiter.looked < 3:
            await asyncio.sleep(0.01)
        waiter.now = "completed"
        async with asyncio.timeout(5):
            assert (await waiting).status == "completed"


async def test_many_waiting_clients_share_one_subscription(resources, shared_tenant: TenantClient) -> None:
    async def listeners() -> int:
        (_, count), *_ = await resources.redis.pubsub_numsub("paddock:changed:exec")
        return int(count)

    source = "import time\ndef handle(p):\n    time.sleep(p['for'])\n"
    agent_id = await shared_tenant.deploy_agent(source)
    before = await listeners()
    execution = await shared_tenant.start_execution(agent_id, {"for": 2})
    path, wait = f"/executions/{execution['id']}", {"Prefer": "wait=30"}
    waiting = [asyncio.create_task(shared_tenant.http.get(path, headers=wait)) for _ in range(40)]
    await asyncio.sleep(0.7)
    assert await listeners() == before
    assert {(await answer).json()["status"] for answer in waiting} == {"completed"}
