"""Test that a waiting request is woken by a message without polling, and polls only while Redis is unavailable."""

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


class StatusRow(msgspec.Struct):
    status: str


class WaitingRequest:
    """Wait like a request does; count the queries and set the status that the next one returns."""

    def __init__(self, bell: Bell, row_id: str) -> None:
        self.bell, self.row_id, self.query_count, self.current_status = bell, row_id, 0, "running"

    async def fetch(self) -> StatusRow:
        self.query_count += 1
        return StatusRow(self.current_status)

    async def wait_for_end(self) -> StatusRow:
        with self.bell.watch_row(self.row_id, TERMINAL_STATUSES) as row_changes:
            store: Any = None
            return await StatusWaiter(store, self.bell).poll_until_final(
                row_changes, self.fetch, TERMINAL_STATUSES, 30, StatusRow("pending")
            )


async def test_waiting_request_queries_once_when_notified(resources) -> None:
    while resources.bell.poll_seconds != redis.CONNECTED_POLL_SECONDS:
        await asyncio.sleep(0.01)
    request = WaitingRequest(resources.bell, "exec_waiting")
    waiting_task = asyncio.create_task(request.wait_for_end())
    for status in ("preparing", "running"):
        await asyncio.sleep(0.6)
        await resources.queue.ring_jobs([], [RowChange(row_id="exec_waiting", status=status)])
    await asyncio.sleep(0.2)
    assert request.query_count == 0
    request.current_status = "completed"
    await resources.queue.ring_jobs([], [RowChange(row_id="exec_waiting", status="completed")])
    async with asyncio.timeout(5):
        assert (await waiting_task).status == "completed"
    assert request.query_count == 1


async def test_waiting_request_polls_without_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis, "DISCONNECTED_POLL_SECONDS", 0.02)
    async with Bell("redis://127.0.0.1:1", row_changes=("run",)) as bell:
        request = WaitingRequest(bell, "exec_waiting")
        waiting_task = asyncio.create_task(request.wait_for_end())
        while request.query_count < 3:
            await asyncio.sleep(0.01)
        request.current_status = "completed"
        async with asyncio.timeout(5):
            assert (await waiting_task).status == "completed"


async def test_many_waiting_clients_share_one_subscription(resources, shared_tenant: TenantClient) -> None:
    async def count_subscribers() -> int:
        (_, count), *_ = await resources.redis.pubsub_numsub("paddock:changed:exec")
        return int(count)

    source = "import time\ndef handle(p):\n    time.sleep(p['for'])\n"
    agent_id = await shared_tenant.deploy_agent(source)
    before = await count_subscribers()
    execution = await shared_tenant.start_execution(agent_id, {"for": 2})
    path, wait = f"/executions/{execution['id']}", {"Prefer": "wait=30"}
    requests = [asyncio.create_task(shared_tenant.http.get(path, headers=wait)) for _ in range(40)]
    await asyncio.sleep(0.7)
    assert await count_subscribers() == before
    assert {(await answer).json()["status"] for answer in requests} == {"completed"}
