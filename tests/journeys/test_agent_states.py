"""Show that runs of an agent keep a state for each other, and how people read, replace and delete it."""

import asyncio
from typing import Any

import pytest

from tests.support.clients import TenantClient

COUNTER = """
import time

def handle(payload, context):
    state = context.state
    time.sleep(payload.get("pause", 0))
    state["count"] = state.get("count", 0) + 1
    if payload.get("fails"):
        raise RuntimeError("after the change")
    return state
"""


@pytest.fixture(scope="module")
async def counter(shared_tenant: TenantClient) -> str:
    return await shared_tenant.deploy_agent(COUNTER)


async def test_a_state_is_kept_by_name_and_only_by_completed_runs(shared_tenant: TenantClient, counter: str) -> None:
    for count in (1, 2):
        assert (await shared_tenant.run_agent(counter))["result"] == {"count": count}
    assert (await shared_tenant.run_agent(counter, {"fails": True}))["error_type"] == "RuntimeError"
    assert (await shared_tenant.run_agent(counter))["result"] == {"count": 3}
    own = await shared_tenant.run_agent(counter, state="slack:C024/é".replace("/", "-"))
    assert (own["result"], own["state"]) == ({"count": 1}, "slack:C024-é")
    again = (await shared_tenant.http.post(f"/executions/{own['id']}/retry")).json()
    assert (await shared_tenant.wait_for_end(again["id"]))["result"] == {"count": 2}
    items = (await shared_tenant.http.get(f"/agents/{counter}/states")).json()["items"]
    assert [item["name"] for item in items] == ["default", "slack:C024-é"]
    path = f"/agents/{counter}/states/default"
    state = (await shared_tenant.http.get(path)).json()
    assert (state["value"], state["size_bytes"]) == ({"count": 3}, len('{"count":3}'))
    put = await shared_tenant.http.put(path, json={"value": {"count": 40}, "revision": state["revision"]})
    assert put.status_code == 200, put.text
    stale = await shared_tenant.http.put(path, json={"value": {}, "revision": state["revision"]})
    assert (stale.status_code, stale.json()["error"]) == (409, "state_conflict")
    assert (await shared_tenant.run_agent(counter))["result"] == {"count": 41}
    assert (await shared_tenant.http.delete(path)).status_code == 204
    assert (await shared_tenant.http.get(path)).status_code == 404
    assert (await shared_tenant.http.delete(path)).status_code == 404
    assert (await shared_tenant.run_agent(counter))["result"] == {"count": 1}


async def test_the_loser_of_two_runs_says_what_to_do(shared_tenant: TenantClient, counter: str) -> None:
    started = [await shared_tenant.start_execution(counter, {"pause": 2}, state="raced") for _ in range(2)]
    ended = await asyncio.gather(*(shared_tenant.wait_for_end(execution["id"]) for execution in started))
    by_status = {execution["status"]: execution for execution in ended}
    assert set(by_status) == {"completed", "failed"}, ended
    loser = by_status["failed"]
    assert (loser["error_type"], loser["result"]) == ("state_conflict", None)
    assert "max_concurrency: 1" in loser["error_message"]
    state = (await shared_tenant.http.get(f"/agents/{counter}/states/raced")).json()
    assert state["value"] == {"count": 1} == by_status["completed"]["result"]


async def test_a_step_of_a_workflow_uses_the_state_of_its_start(shared_tenant: TenantClient, counter: str) -> None:
    steps = [{"id": "first", "agent": counter}, {"id": "second", "agent": counter, "depends_on": ["first"]}]
    answer = await shared_tenant.http.post("/workflows", json={"name": "counts-twice", "steps": steps})
    assert answer.status_code == 201, answer.text
    run = (await shared_tenant.http.post("/workflows/counts-twice/execute", json={"state": "of-plan"})).json()
    ended = await shared_tenant.wait_for_end(run["id"])
    assert ended["status"] == "completed", ended
    state = (await shared_tenant.http.get(f"/agents/{counter}/states/of-plan")).json()
    assert state["value"] == {"count": 2}


@pytest.mark.parametrize("name", ["", ".", "..", " a", "a ", "a/b", "a\\b", "a\nb", "a\0b", "x" * 129])
async def test_a_bad_name_is_refused(shared_tenant: TenantClient, counter: str, name: str) -> None:
    answer = await shared_tenant.http.post(f"/agents/{counter}/execute", json={"state": name})
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["field"] == "state"


async def test_bad_states_from_outside_are_refused(shared_tenant: TenantClient, counter: str) -> None:
    path = f"/agents/{counter}/states/outside"
    too_large: Any = "x" * (1024 * 1024 - 1)
    nested: Any = 1
    for _ in range(200):
        nested = [nested]
    for body, field in (
        ({}, "value"),
        ({"value": too_large}, "value"),
        ({"value": nested}, "value"),
        ({"value": 1, "revision": -1}, "revision"),
        ({"value": 1, "other": 1}, "other"),
    ):
        answer = await shared_tenant.http.put(path, json=body)
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["field"] == field
    assert (await shared_tenant.http.put(path, json={"value": too_large[1:]})).status_code == 200
    long_name = await shared_tenant.http.put(f"/agents/{counter}/states/{'x' * 129}", json={"value": 1})
    assert long_name.json()["errors"][0]["field"] == "state_name"
    await shared_tenant.http.post("/agents", json={"name": "a-model-agent", "model": "smollm2"})
    refused = await shared_tenant.http.put("/agents/a-model-agent/states/x", json={"value": 1})
    assert refused.status_code == 409
    refused = await shared_tenant.http.post("/agents/a-model-agent/execute", json={"task": "x", "state": "x"})
    assert refused.json()["errors"][0]["field"] == "state"


async def test_scopes_of_states(shared_tenant: TenantClient, counter: str) -> None:
    await shared_tenant.http.put(f"/agents/{counter}/states/scoped", json={"value": 1})
    path = f"/agents/{counter}/states/scoped"
    async with shared_tenant.open_client(await shared_tenant.create_key(scopes=["read:executions"])) as http:
        assert (await http.get(path)).status_code == 200
        assert (await http.put(path, json={"value": 2})).status_code == 403
        assert (await http.delete(path)).status_code == 403
    async with shared_tenant.open_client(await shared_tenant.create_key(scopes=["write:executions"])) as http:
        assert (await http.get(path)).status_code == 403
        assert (await http.put(path, json={"value": 2})).status_code == 200
        assert (await http.delete(path)).status_code == 204
