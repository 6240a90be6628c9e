"""Test server-sent events and WebSockets: live, ordered, resumable, and always with an end."""

import asyncio
import json
from typing import Any

import httpx
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from tests.support.clients import TenantClient

LOGGING_AGENT = "import time\ndef handle(p):\n    for n in range(p.get('lines', 5)):\n        print('line', n, flush=True)\n        time.sleep(p.get('pause', 0.05))\n    return 'done'\n"


async def _read_sse(http: httpx.AsyncClient, execution_id: str, last: int | None = None) -> list[dict[str, Any]]:
    events, event = [], {}
    headers = {} if last is None else {"Last-Event-ID": str(last)}
    async with http.stream("GET", f"/executions/{execution_id}/events", headers=headers) as answer:
        if answer.status_code == 204:
            return []
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        async for line in answer.aiter_lines():
            if line.startswith("id: "):
                event["id"] = int(line[4:])
            elif line.startswith("event: "):
                event["event"] = line[7:]
            elif line.startswith("data: "):
                event["data"] = json.loads(line[6:])
            elif not line and event:
                events.append(event)
                event = {}
    return events


async def test_sse_stream_is_live_ordered_and_ends(shared_tenant: TenantClient) -> None:
    agent_id = await shared_tenant.deploy_agent(LOGGING_AGENT)
    execution = await shared_tenant.start_execution(agent_id)
    streamed = await _read_sse(shared_tenant.http, execution["id"])
    assert [event["id"] for event in streamed] == list(range(1, len(streamed) + 1))
    assert [event["data"]["message"] for event in streamed if event["event"] == "log"] == [
        f"line {n}" for n in range(5)
    ]
    assert streamed[-1]["data"]["status"] == "completed"
    assert await _read_sse(shared_tenant.http, execution["id"], 3) == streamed[3:]
    assert await _read_sse(shared_tenant.http, execution["id"], streamed[-1]["id"]) == []
    beyond = await shared_tenant.http.get(f"/executions/{execution['id']}/events", headers={"Last-Event-ID": "999"})
    assert beyond.json()["errors"][0]["field"] == "Last-Event-ID"
    nonsense = await shared_tenant.http.get(f"/executions/{execution['id']}/events", headers={"Last-Event-ID": "x"})
    assert nonsense.status_code == 422


async def test_streams_racing_with_the_end_never_miss_it(shared_tenant: TenantClient) -> None:
    hello = (await shared_tenant.http.get("/agents/hello")).json()["id"]
    executions = [await shared_tenant.start_execution(hello) for _ in range(12)]
    streams = await asyncio.gather(*(_read_sse(shared_tenant.http, execution["id"]) for execution in executions))
    assert [stream[-1]["data"]["status"] for stream in streams] == ["completed"] * 12


def _build_websocket_url(system, path: str) -> str:
    return f"ws://127.0.0.1:{system.port}/api/v1{path}"


async def test_log_is_streamed_over_a_websocket(shared_tenant: TenantClient, system) -> None:
    agent_id = await shared_tenant.deploy_agent(LOGGING_AGENT)
    execution = await shared_tenant.start_execution(agent_id)
    key = await shared_tenant.create_key()
    async with connect(
        _build_websocket_url(system, f"/execution-logs/{execution['id']}/stream"), additional_headers={"X-API-Key": key}
    ) as ws:
        events = [json.loads(message) async for message in ws]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["status"] == "completed"
    async with connect(
        _build_websocket_url(system, f"/execution-logs/{execution['id']}/stream?after=2&access_token={key}")
    ) as ws:
        assert [json.loads(message) async for message in ws] == events[2:]


async def test_agent_websocket_runs_each_message(shared_tenant: TenantClient, system) -> None:
    agent_id = await shared_tenant.deploy_agent(LOGGING_AGENT)
    headers = {"X-API-Key": await shared_tenant.create_key()}
    async with connect(_build_websocket_url(system, f"/agents/{agent_id}/stream"), additional_headers=headers) as ws:
        for lines in (1, 2):
            await ws.send(json.dumps({"payload": {"lines": lines}}))
            seen = []
            async for message in ws:
                seen.append(json.loads(message))
                if seen[-1]["type"] == "complete":
                    break
            assert sum(event["type"] == "log" for event in seen) == lines
            assert (seen[-1]["result"], seen[-1]["cost"], seen[-1]["status"]) == ("done", 0.0, "completed")
        await ws.send("[" * 5000)
        assert json.loads(await ws.recv())["error"] == "invalid_field"
        try:
            await ws.recv()
        except ConnectionClosed as closed:
            assert closed.rcvd is not None
            assert closed.rcvd.code == 1008


async def test_revoked_key_cannot_run_on_an_open_websocket(shared_tenant: TenantClient, system) -> None:
    created_key = (await shared_tenant.http.post("/api-keys", json={"name": "ws"})).json()
    async with connect(
        _build_websocket_url(system, "/agents/hello/stream"), additional_headers={"X-API-Key": created_key["key"]}
    ) as ws:
        await shared_tenant.http.post(f"/api-keys/{created_key['id']}/revoke")
        await ws.send(json.dumps({"payload": {}}))
        assert json.loads(await ws.recv())["error"] == "unauthenticated"


async def test_streams_of_another_tenant_are_not_found(
    shared_tenant: TenantClient, other_tenant: TenantClient, system
) -> None:
    hello = (await shared_tenant.http.get("/agents/hello")).json()["id"]
    execution = await shared_tenant.start_execution(hello)
    headers = {"X-API-Key": await other_tenant.create_key()}
    async with connect(
        _build_websocket_url(system, f"/execution-logs/{execution['id']}/stream"), additional_headers=headers
    ) as ws:
        assert json.loads(await ws.recv())["error"] == "not_found"
    async with connect(_build_websocket_url(system, f"/agents/{hello}/stream"), additional_headers=headers) as ws:
        await ws.send("{}")
        assert json.loads(await ws.recv())["error"] == "not_found"
    assert (await other_tenant.http.get(f"/executions/{execution['id']}/events")).status_code == 404


async def test_no_secret_is_logged(system, shared_tenant: TenantClient) -> None:
    key = await shared_tenant.create_key()
    hello = (await shared_tenant.http.get("/agents/hello")).json()["id"]
    async with connect(_build_websocket_url(system, f"/agents/{hello}/stream?access_token={key}")) as ws:
        await ws.send("{}")
        await ws.recv()
    await asyncio.sleep(0.3)
    log = "\n".join(system.lines)
    for secret in (key, shared_tenant.password, system.environment["PADDOCK_SECRET_KEY"], "access_token="):
        assert secret not in log
