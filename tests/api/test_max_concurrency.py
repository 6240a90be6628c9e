"""Test `max_concurrency` of agents and tenants, and the policies for executions beyond it."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.clients import TenantClient

SLEEPING_AGENT = "import time\ndef handle(p):\n    time.sleep(p['for'])\n    return p\n"


async def _deploy_limited_agent(owner: TenantClient, policy: str, max_concurrency: int = 1) -> str:
    agent_id = await owner.deploy_agent(SLEEPING_AGENT)
    answer = await owner.http.patch(
        f"/agents/{agent_id}", json={"max_concurrency": max_concurrency, "concurrency_policy": policy}
    )
    assert answer.status_code == 200, answer.text
    assert (answer.json()["max_concurrency"], answer.json()["concurrency_policy"]) == (max_concurrency, policy)
    return agent_id


async def _list_statuses(owner: TenantClient, *ids: str) -> list[str]:
    return [(await owner.http.get(f"/executions/{execution_id}")).json()["status"] for execution_id in ids]


async def _wait_until_running(owner: TenantClient, execution_id: str) -> None:
    for _ in range(200):
        if await _list_statuses(owner, execution_id) == ["running"]:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the execution did not start")


def _has_overlap(first: dict, second: dict) -> bool:
    return first["started_at"] < second["completed_at"] and second["started_at"] < first["completed_at"]


async def test_queue_policy_makes_further_executions_wait(acme: TenantClient) -> None:
    agent_id = await _deploy_limited_agent(acme, "queue")
    started = [await acme.start_execution(agent_id, {"for": 0.2}) for _ in range(3)]
    ended = [await acme.wait_for_end(execution["id"]) for execution in started]
    assert [execution["status"] for execution in ended] == ["completed"] * 3
    assert not any(_has_overlap(a, b) for n, a in enumerate(ended) for b in ended[n + 1 :])


async def test_executions_overlap_without_a_limit(acme: TenantClient) -> None:
    agent_id = await acme.deploy_agent(SLEEPING_AGENT)
    started = [await acme.start_execution(agent_id, {"for": 0.5}) for _ in range(2)]
    first, second = [await acme.wait_for_end(execution["id"]) for execution in started]
    assert _has_overlap(first, second)


async def test_reject_policy_refuses_further_executions(acme: TenantClient) -> None:
    agent_id = await _deploy_limited_agent(acme, "reject")
    first = await acme.start_execution(agent_id, {"for": 30})
    for path in (f"/agents/{agent_id}/execute", f"/runtime/{agent_id}/execute"):
        refused = await acme.http.post(path, json={"payload": {"for": 0}})
        assert refused.status_code == 409
        assert refused.json()["error"] == "concurrency_limit"
        assert "1 executions" in refused.json()["detail"]
    await acme.http.post(f"/executions/{first['id']}/cancel")
    assert (await acme.run_agent(agent_id, {"for": 0}))["status"] == "completed"


async def test_retry_counts_against_the_limit(acme: TenantClient) -> None:
    agent_id = await _deploy_limited_agent(acme, "reject")
    first = await acme.run_agent(agent_id, {"for": 0})
    running = await acme.start_execution(agent_id, {"for": 30})
    refused = await acme.http.post(f"/executions/{first['id']}/retry")
    assert (refused.status_code, refused.json()["error"]) == (409, "concurrency_limit")
    await acme.http.post(f"/executions/{running['id']}/cancel")


async def test_concurrent_starts_never_exceed_the_limit(acme: TenantClient) -> None:
    agent_id = await _deploy_limited_agent(acme, "reject", max_concurrency=3)
    answers = await asyncio.gather(
        *(acme.http.post(f"/agents/{agent_id}/execute", json={"payload": {"for": 30}}) for _ in range(12))
    )
    assert sorted(answer.status_code for answer in answers) == [201] * 3 + [409] * 9
    await acme.http.delete(f"/agents/{agent_id}")


async def test_replace_policy_cancels_the_oldest_execution(acme: TenantClient) -> None:
    agent_id = await _deploy_limited_agent(acme, "replace", max_concurrency=2)
    first, second = [await acme.start_execution(agent_id, {"for": 30}) for _ in range(2)]
    await _wait_until_running(acme, first["id"])
    third = await acme.start_execution(agent_id, {"for": 0.1})
    ended = await acme.wait_for_end(first["id"])
    assert (ended["status"], ended["error_message"]) == ("cancelled", "Replaced by a newer execution.")
    assert (await acme.wait_for_end(third["id"]))["status"] == "completed"
    assert await _list_statuses(acme, second["id"]) == ["running"]
    await acme.http.post(f"/executions/{second['id']}/cancel")


async def test_tenant_limit_covers_all_its_agents(acme: TenantClient) -> None:
    assert (await acme.http.get("/tenant")).json()["max_concurrency"] is None
    changed = await acme.http.patch("/tenant", json={"max_concurrency": 1})
    assert (changed.status_code, changed.json()["max_concurrency"]) == (200, 1)
    agents = [await acme.deploy_agent(SLEEPING_AGENT) for _ in range(2)]
    started = [await acme.start_execution(agent_id, {"for": 0.2}) for agent_id in agents]
    first, second = [await acme.wait_for_end(execution["id"]) for execution in started]
    assert not _has_overlap(first, second)
    assert (await acme.http.patch("/tenant", json={"max_concurrency": None})).json()["max_concurrency"] is None


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/agents", {"name": "x", "max_concurrency": 0}, "max_concurrency"),
        ("/agents", {"name": "x", "max_concurrency": "many"}, "max_concurrency"),
        ("/agents", {"name": "x", "concurrency_policy": "drop"}, "concurrency_policy"),
        ("/tenant", {"max_concurrency": -1}, "max_concurrency"),
        ("/tenant", {"plan": "premium"}, "plan"),
    ],
)
async def test_invalid_limits_are_refused_by_field(acme: TenantClient, path: str, body: dict, field: str) -> None:
    method = "PATCH" if path == "/tenant" else "POST"
    answer = await acme.http.request(method, path, json=body)
    assert answer.status_code == 422
    assert field in answer.text


async def test_member_may_read_but_not_change_the_tenant(acme: TenantClient) -> None:
    key = await acme.create_key(scopes=["read:agents"])
    async with acme.open_client(key) as http:
        assert (await http.get("/tenant")).json()["id"] == acme.tenant_id
        assert (await http.patch("/tenant", json={"max_concurrency": 1})).status_code == 403


async def test_cancelling_starts_a_waiting_execution_immediately(acme: TenantClient) -> None:
    """Start the waiting execution when the running one is cancelled, not at the next poll."""
    agent_id = await _deploy_limited_agent(acme, "queue")
    first = await acme.start_execution(agent_id, {"for": 30})
    await _wait_until_running(acme, first["id"])
    second = await acme.start_execution(agent_id, {"for": 0})
    await asyncio.sleep(0.3)
    assert await _list_statuses(acme, second["id"]) == ["pending"]
    cancelled = (await acme.http.post(f"/executions/{first['id']}/cancel")).json()
    begun = (await acme.wait_for_end(second["id"]))["started_at"]
    waited = datetime.fromisoformat(begun) - datetime.fromisoformat(cancelled["completed_at"])
    # Sooner than upkeep rings for executions that have waited long.
    assert waited < timedelta(seconds=1.5)


async def test_raising_the_limit_starts_a_waiting_execution_immediately(acme: TenantClient) -> None:
    agent_id = await _deploy_limited_agent(acme, "queue")
    first = await acme.start_execution(agent_id, {"for": 30})
    await _wait_until_running(acme, first["id"])
    second = await acme.start_execution(agent_id, {"for": 0})
    changed = datetime.now(UTC)
    await acme.http.patch(f"/agents/{agent_id}", json={"max_concurrency": 2})
    begun = (await acme.wait_for_end(second["id"]))["started_at"]
    assert datetime.fromisoformat(begun) - changed < timedelta(seconds=1.5)
    await acme.http.post(f"/executions/{first['id']}/cancel")
