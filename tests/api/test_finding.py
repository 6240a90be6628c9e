"""Find executions and agents by tags, metadata and words."""

import json
import secrets
from typing import Any

import pytest
from websockets.asyncio.client import connect

from tests.support.clients import TenantClient, wait_for_result

ECHO_SOURCE = """
def handle(payload):
    if payload.get("fail"):
        raise ValueError("the pump leaks")
    return {"answer": payload.get("answer", "plain")}
"""


async def list_ids(tenant: TenantClient, **parameters: Any) -> list[str]:
    answer = await tenant.http.get("/executions", params=parameters)
    assert answer.status_code == 200, answer.text
    return [item["id"] for item in answer.json()["items"]]


async def find_by_words(tenant: TenantClient, search: str, *expected: str) -> bool:
    """Wait until a search finds these executions."""

    async def probe() -> bool:
        return sorted(await list_ids(tenant, search=search)) == sorted(expected)

    return bool(await wait_for_result(probe))


async def test_runs_are_found_by_all_of_their_tags_and_metadata(shared_tenant: TenantClient) -> None:
    mark = secrets.token_hex(4)
    labels: dict[str, Any] = {"tags": [mark, "nightly"], "metadata": {"customer": 7, "batch": mark, "live": True}}
    first = await shared_tenant.run_agent("hello", {}, **labels)
    second = await shared_tenant.run_agent("hello", {}, tags=[mark, "daily"], metadata={"customer": "8", "batch": mark})
    assert (first["tags"], first["metadata"]) == (labels["tags"], labels["metadata"])
    assert await list_ids(shared_tenant, tag=mark) == [second["id"], first["id"]]
    assert await list_ids(shared_tenant, tag=[mark, "nightly"]) == [first["id"]]
    assert await list_ids(shared_tenant, tag=[mark, "weekly"]) == []
    assert await list_ids(shared_tenant, metadata=f"batch:{mark}") == [second["id"], first["id"]]
    assert await list_ids(shared_tenant, metadata=[f"batch:{mark}", "customer:7"]) == [first["id"]]
    assert await list_ids(shared_tenant, tag=mark, metadata=["live:true", "customer:7"]) == [first["id"]]
    assert await list_ids(shared_tenant, tag=mark, metadata="customer:9") == []
    # Other filters and paging hold as well.
    assert await list_ids(shared_tenant, tag=mark, agent_id="hello", limit=1) == [second["id"]]
    assert await list_ids(shared_tenant, tag=mark, agent_id="summarizer") == []
    page = (await shared_tenant.http.get("/executions", params={"tag": mark, "limit": 1, "offset": 1})).json()
    assert (page["total"], page["has_more"], [item["id"] for item in page["items"]]) == (2, False, [first["id"]])


async def test_runs_are_found_by_words_of_name_input_output_and_error(acme: TenantClient) -> None:
    agent = await acme.deploy_agent(ECHO_SOURCE)
    failed = await acme.run_agent(agent, {"fail": True, "order": 4711}, run_name="Straße check")
    done = await acme.run_agent(agent, {"answer": "Blue Zebra", "order": 4712})
    assert await find_by_words(acme, "strasse", failed["id"])
    assert await find_by_words(acme, "4711", failed["id"])
    assert await find_by_words(acme, "pump LEAKS", failed["id"])
    assert await find_by_words(acme, '"blue zebra"', done["id"])
    assert await find_by_words(acme, "order", failed["id"], done["id"])
    assert await find_by_words(acme, "order -zebra", failed["id"])
    assert await find_by_words(acme, "blue pump")
    assert await list_ids(acme, search="order", status="completed") == [done["id"]]
    assert await list_ids(acme, search="order", until="2001-01-01") == []


async def test_another_tenant_finds_nothing(acme: TenantClient, other_tenant: TenantClient) -> None:
    agent = await acme.deploy_agent(ECHO_SOURCE)
    execution = await acme.run_agent(agent, {"answer": "quokka"}, tags=["quokka"], metadata={"animal": "quokka"})
    assert await find_by_words(acme, "quokka", execution["id"])
    assert await list_ids(other_tenant, search="quokka") == []
    assert await list_ids(other_tenant, tag="quokka") == []
    assert await list_ids(other_tenant, metadata="animal:quokka") == []
    assert await list_ids(other_tenant, tag="quokka", agent_id=agent) == []


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"tag": [f"t{number}" for number in range(100)]}, "tag[32]"),
        ({"tag": "a\0"}, "tag[0]"),
        ({"tag": ""}, "tag[0]"),
        ({"metadata": "customer"}, "metadata[0]"),
        ({"metadata": ["a:1", ":1"]}, "metadata[1]"),
        ({"metadata": "a:\0"}, "metadata[0]"),
        ({"metadata": [f"k{number}:1" for number in range(17)]}, "metadata"),
        ({"search": ""}, "search"),
        ({"search": "-only"}, "search"),
        ({"search": "\0 ..."}, "search"),
        ({"search": "x" * 1001}, "search"),
        ({"search": " ".join(f"w{number}" for number in range(33))}, "search"),
        ({"search": '"' + ",".join(f"w{number}" for number in range(33)) + '"'}, "search"),
        ({"search": "x", "parent_id": "exec_01k3v9rt0hf7btqeqn5j8x2a4c"}, "parent_id"),
    ],
)
async def test_bad_filters_are_named(shared_tenant: TenantClient, parameters: dict[str, Any], field: str) -> None:
    answer = await shared_tenant.http.get("/executions", params=parameters)
    assert (answer.status_code, [error["field"] for error in answer.json()["errors"]]) == (422, [field]), answer.text


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"tags": [f"t{number}" for number in range(100)]}, "tags[32]"),
        ({"tags": ["a\0"]}, "tags[0]"),
        ({"tags": "nightly"}, "tags"),
        ({"metadata": {"k" * 300: 1}}, f"metadata.{'k' * 40}"),
        ({"metadata": {"a": "\0"}}, "metadata.a"),
        ({"metadata": {"a": "x" * 20_000}}, "metadata"),
        ({"metadata": []}, "metadata"),
    ],
)
@pytest.mark.parametrize("path", ["/agents/hello/execute", "/agents"])
async def test_bad_labels_are_named(shared_tenant: TenantClient, path: str, body: dict[str, Any], field: str) -> None:
    named = {"name": "labelled"} if path == "/agents" else {}
    answer = await shared_tenant.http.post(path, json={**named, **body})
    assert (answer.status_code, [error["field"] for error in answer.json()["errors"]]) == (422, [field]), answer.text


async def test_plans_and_schedules_pass_labels_on(acme: TenantClient) -> None:
    labels: dict[str, Any] = {"tags": ["weekly", "weekly"], "metadata": {"region": "eu"}}
    steps = [{"id": "files", "tool": "filesystem_list"}]
    workflow = (await acme.http.post("/workflows", json={"name": "list", "steps": steps})).json()
    answer = await acme.http.post(f"/workflows/{workflow['id']}/execute", json=labels)
    assert answer.status_code == 201, answer.text
    ended = await acme.wait_for_end(answer.json()["id"])
    assert await list_ids(acme, tag="weekly") == [ended["id"]]
    retried = (await acme.http.post(f"/executions/{ended['id']}/retry")).json()
    assert (retried["tags"], retried["metadata"]) == (["weekly"], labels["metadata"])
    body = {"name": "nightly", "cron_expression": "@daily", "workflow_id": workflow["id"], **labels}
    schedule = (await acme.http.post("/scheduler/schedules", json=body)).json()
    assert schedule["metadata"] == labels["metadata"]
    fired = (await acme.http.post(f"/scheduler/schedules/{schedule['id']}/run")).json()
    assert (fired["tags"], fired["metadata"]) == (["weekly"], labels["metadata"])
    assert await list_ids(acme, metadata="region:eu", schedule_id="nightly") == [fired["id"]]
    changed = await acme.http.patch(f"/scheduler/schedules/{schedule['id']}", json={"tags": ["x"] * 20, "metadata": {}})
    assert changed.status_code == 200, changed.text
    refused = await acme.http.patch(f"/scheduler/schedules/{schedule['id']}", json={"tags": ["x\n"]})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "tags[0]")


async def test_runs_over_a_websocket_have_labels(shared_tenant: TenantClient, system) -> None:
    mark = secrets.token_hex(4)
    url = f"{system.url}/api/v1/agents/hello/stream".replace("http", "ws", 1)
    headers = {"Authorization": shared_tenant.http.headers["Authorization"]}
    async with connect(url, additional_headers=headers) as socket:
        await socket.send(json.dumps({"payload": {}, "tags": [mark], "metadata": {"mark": mark}}))
        await socket.recv()
        found_ids = await list_ids(shared_tenant, tag=mark, metadata=f"mark:{mark}")
    assert len(found_ids) == 1
    assert (await shared_tenant.wait_for_end(found_ids[0]))["status"] == "completed"


async def test_agents_are_listed_by_tags_and_metadata(acme: TenantClient) -> None:
    bodies: list[dict[str, Any]] = [
        {"name": "one", "tags": ["eu", "prod"], "metadata": {"team": "red", "tier": 1}},
        {"name": "two", "tags": ["eu"], "metadata": {"team": "blue"}},
        {"name": "three"},
    ]
    for body in bodies:
        answer = await acme.http.post("/agents", json=body)
        assert answer.status_code == 201, answer.text

    async def list_names(**parameters: Any) -> list[str]:
        answer = await acme.http.get("/agents", params=parameters)
        assert answer.status_code == 200, answer.text
        return [item["name"] for item in answer.json()["items"]]

    assert await list_names(tag="eu") == ["two", "one"]
    assert await list_names(tag=["eu", "prod"]) == ["one"]
    assert await list_names(metadata="team:blue") == ["two"]
    assert await list_names(metadata=["team:red", "tier:1"], tag="prod") == ["one"]
    assert await list_names(metadata="team:green") == []
    changed = await acme.http.patch("/agents/two", json={"tags": ["us"], "metadata": None})
    assert (changed.json()["tags"], changed.json()["metadata"]) == (["us"], None)
    assert await list_names(tag="us") == ["two"]
    for parameters, field in (({"tag": "a\0"}, "tag[0]"), ({"metadata": "x"}, "metadata[0]")):
        answer = await acme.http.get("/agents", params=parameters)
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, field), answer.text
