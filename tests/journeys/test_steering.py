"""Show what steers when a run begins: its time, its expiry, its priority, its key, and how busy its thread is."""

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.journeys.test_workflow_runs import ECHO_SOURCE, create_workflow, list_children, start_workflow
from tests.support.clients import TenantClient
from tests.support.model_agents import generate_name, wait_for_status


@pytest.fixture(scope="module")
async def agent(shared_tenant: TenantClient) -> str:
    return await shared_tenant.deploy_agent(ECHO_SOURCE)


async def open_thread(acme: TenantClient) -> str:
    answer = await acme.http.post("/threads", json={})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def test_a_run_begins_when_its_time_has_come(shared_tenant: TenantClient, agent: str) -> None:
    acme = shared_tenant
    run_at = datetime.now(UTC) + timedelta(seconds=1)
    waiting = [
        await acme.start_execution(agent, run_at=run_at.isoformat()),
        await acme.start_execution(agent, delay_seconds=1),
    ]
    flow = await create_workflow(acme, {"id": "only", "agent": agent})
    waiting.append(await start_workflow(acme, flow, delay_seconds=1))
    for execution in waiting:
        assert (execution["status"], execution["blocked"]) == ("pending", "delayed")
        ended = await acme.wait_for_end(execution["id"])
        assert (ended["status"], ended["blocked"]) == ("completed", None), ended
        assert ended["started_at"] >= ended["run_at"] > ended["created_at"]


async def test_a_run_that_has_not_begun_in_time_is_cancelled(shared_tenant: TenantClient, agent: str) -> None:
    acme, key = shared_tenant, generate_name("key")
    holding = await acme.start_execution(agent, {"sleep": 20}, concurrency_key=key)
    expiring = await acme.start_execution(agent, concurrency_key=key, expires_in=0.5)
    flow = await create_workflow(acme, {"id": "only", "agent": agent})
    plan = await start_workflow(acme, flow, concurrency_key=key, expires_in=0.5)
    for execution in (expiring, plan):
        assert execution["blocked"] == "busy"
        ended = await acme.wait_for_end(execution["id"])
        assert (ended["status"], ended["error_type"], ended["started_at"]) == ("cancelled", "expired", None)
        assert ended["error_message"].startswith(f"It had not begun by {ended['expires_at'][:19]}")
    assert await list_children(acme, plan["id"]) == {}
    await acme.http.post(f"/executions/{holding['id']}/cancel")


async def test_runs_of_a_key_and_plans_with_it_go_one_after_another(shared_tenant: TenantClient, agent: str) -> None:
    acme, key = shared_tenant, generate_name("key")
    flow = await create_workflow(acme, {"id": "only", "agent": agent, "inputs": {"sleep": 0.2}})
    started = [
        await start_workflow(acme, flow, concurrency_key=key),
        await acme.start_execution(agent, {"sleep": 0.2}, concurrency_key=key),
        await start_workflow(acme, flow, concurrency_key=key),
    ]
    assert [execution["blocked"] for execution in started] == [None, "busy", "busy"]
    ended = [await acme.wait_for_end(execution["id"]) for execution in started]
    assert {execution["status"] for execution in ended} == {"completed"}
    for earlier, later in itertools.pairwise(ended):
        assert earlier["completed_at"] <= later["started_at"]
    wide = [await acme.start_execution(agent, concurrency_key=f"{key}-2", concurrency_limit=2) for _ in range(3)]
    assert [execution["blocked"] for execution in wide[:2]] == [None, None]
    assert wide[0]["concurrency_limit"] == 2
    retried = (await acme.http.post(f"/executions/{ended[1]['id']}/retry")).json()
    assert (retried["concurrency_key"], retried["concurrency_limit"]) == (key, 1)


async def test_a_busy_thread_queues_refuses_or_is_cleared(shared_tenant: TenantClient, agent: str) -> None:
    acme = shared_tenant
    thread_id = await open_thread(acme)
    first = await acme.start_execution(agent, {"sleep": 20}, thread_id=thread_id)
    queued = await acme.start_execution(agent, thread_id=thread_id, if_busy="queue")
    assert queued["blocked"] == "busy"
    refused = await acme.http.post(f"/agents/{agent}/execute", json={"thread_id": thread_id, "if_busy": "reject"})
    assert (refused.status_code, refused.json()["error"]) == (409, "thread_busy")
    assert first["id"] in refused.json()["detail"]
    delayed = await acme.start_execution(agent, thread_id=thread_id, delay_seconds=1000)
    replacing = await acme.start_execution(agent, {"n": 1}, thread_id=thread_id, if_busy="cancel")
    assert (await acme.wait_for_end(replacing["id"]))["status"] == "completed"
    for execution, status in ((first, "cancelled"), (queued, "cancelled"), (delayed, "pending")):
        assert (await acme.http.get(f"/executions/{execution['id']}")).json()["status"] == status
    await acme.http.post(f"/executions/{delayed['id']}/cancel")


async def test_a_run_that_waits_for_an_approval_keeps_its_thread(shared_tenant: TenantClient, agent: str) -> None:
    acme = shared_tenant
    thread_id = await open_thread(acme)
    flow = await create_workflow(acme, {"id": "only", "agent": agent, "requires_approval": True})
    asking = await start_workflow(acme, flow, thread_id=thread_id)
    await wait_for_status(acme, asking["id"], "waiting")
    queued = await acme.start_execution(agent, thread_id=thread_id)
    assert queued["blocked"] == "busy"
    answer = await acme.http.post(f"/executions/{asking['id']}/approve", json={})
    assert answer.status_code == 200, answer.text
    ended = await acme.wait_for_end(queued["id"])
    assert ended["started_at"] >= (await acme.wait_for_end(asking["id"]))["completed_at"]


async def test_schedules_steer_their_runs(shared_tenant: TenantClient, agent: str) -> None:
    acme = shared_tenant
    steering = {"priority": -3, "concurrency_key": "nightly", "concurrency_limit": 2, "expires_in": 600.0}
    body = {"name": generate_name("nightly"), "cron_expression": "@yearly", "agent_id": agent}
    answer = await acme.http.post("/scheduler/schedules", json={**body, **steering})
    assert answer.status_code == 201, answer.text
    schedule = answer.json()
    assert {field: schedule[field] for field in steering} == steering
    started = (await acme.http.post(f"/scheduler/schedules/{schedule['id']}/run")).json()
    assert {field: started.get(field) for field in ("priority", "concurrency_key", "concurrency_limit")} == {
        field: steering[field] for field in ("priority", "concurrency_key", "concurrency_limit")
    }
    assert started["expires_at"] is not None
    answer = await acme.http.patch(f"/scheduler/schedules/{schedule['id']}", json={"concurrency_key": None})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "concurrency_limit"


FAR = "9999-12-31T23:59:59-14:00"
INVALID_STARTS: list[tuple[dict[str, Any], str]] = [
    ({"run_at": "2020-01-01T00:00:00Z"}, "run_at"),
    ({"run_at": FAR}, "run_at"),
    ({"run_at": "9999-01-01T00:00:00Z"}, "run_at"),
    ({"run_at": "tomorrow"}, "run_at"),
    ({"run_at": "2100-01-01T00:00:00Z", "delay_seconds": 5}, "delay_seconds"),
    ({"delay_seconds": -1}, "delay_seconds"),
    ({"delay_seconds": 1e300}, "delay_seconds"),
    ({"expires_in": 0}, "expires_in"),
    ({"expires_in": -5}, "expires_in"),
    ({"expires_in": 10, "delay_seconds": 10}, "expires_in"),
    ({"priority": 11}, "priority"),
    ({"priority": -11}, "priority"),
    ({"priority": 0.5}, "priority"),
    ({"concurrency_key": "k" * 300}, "concurrency_key"),
    ({"concurrency_key": ""}, "concurrency_key"),
    ({"concurrency_key": "a\u0000b"}, "concurrency_key"),
    ({"concurrency_limit": 2}, "concurrency_limit"),
    ({"concurrency_key": "k", "concurrency_limit": 0}, "concurrency_limit"),
    ({"concurrency_key": "k", "concurrency_limit": 10**9}, "concurrency_limit"),
    ({"if_busy": "reject"}, "if_busy"),
    ({"if_busy": "cancel", "thread": True}, "if_busy"),
    ({"if_busy": "queue"}, "if_busy"),
    ({"if_busy": "wait"}, "if_busy"),
]


@pytest.mark.parametrize(("fields", "field"), INVALID_STARTS)
async def test_contradictions_are_refused_by_field(
    shared_tenant: TenantClient, agent: str, fields: dict[str, Any], field: str
) -> None:
    answer = await shared_tenant.http.post(f"/agents/{agent}/execute", json=fields)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] == field, answer.text


async def test_a_decision_on_a_busy_thread_cannot_be_put_off(shared_tenant: TenantClient, agent: str) -> None:
    body = {"thread_id": await open_thread(shared_tenant), "if_busy": "reject", "delay_seconds": 5}
    answer = await shared_tenant.http.post(f"/agents/{agent}/execute", json=body)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "if_busy"
    raw = await shared_tenant.http.post(f"/agents/{agent}/execute", content=b'{"delay_seconds": NaN}')
    assert raw.status_code in (400, 422)
