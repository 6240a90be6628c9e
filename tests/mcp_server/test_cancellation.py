"""Cancel calls: by a notification, by leaving, and from another process than the one that serves the call."""

import asyncio
import json
from typing import Any

import anyio
import httpx
import pytest

from scripts.system import System
from tests.support.clients import TenantClient
from tests.support.mcp_clients import PROTOCOL_MODES, connect_client, post_message
from tests.support.model_agents import wait_for_status

SLEEPING_SOURCE = """
import time

def handle(payload):
    print("asleep", flush=True)
    time.sleep(25)
    return "awake"
"""


async def deploy_sleeper(acme: TenantClient) -> str:
    agent_id = await acme.deploy_agent(SLEEPING_SOURCE)
    answer = await acme.http.patch(f"/agents/{agent_id}", json={"name": "sleeper", "expose": "mcp"})
    assert answer.status_code == 200, answer.text
    return agent_id


async def find_run(acme: TenantClient, agent_id: str) -> str:
    """Return the id of the agent's newest execution, once there is one that has not ended."""
    for _ in range(600):
        items = (await acme.http.get("/executions", params={"agent_id": agent_id, "limit": 1})).json()["items"]
        if items and items[0]["status"] not in ("completed", "failed", "cancelled"):
            return str(items[0]["id"])
        await asyncio.sleep(0.05)
    raise AssertionError("the call has started nothing")


@pytest.mark.parametrize("mode", PROTOCOL_MODES)
async def test_cancelled_call_cancels_its_run(system: System, acme: TenantClient, mode: str) -> None:
    agent_id = await deploy_sleeper(acme)
    async with connect_client(system.url, await acme.create_key(), mode) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.call_tool, "sleeper", {})
            execution_id = await find_run(acme, agent_id)
            tasks.cancel_scope.cancel()
        ended = await wait_for_status(acme, execution_id, "cancelled")
        assert "MCP" in ended["error_message"]
        # The session goes on.
        assert (await client.list_tools()).tools


async def test_notification_cancels_the_call_of_its_session_alone(system: System, acme: TenantClient) -> None:
    agent_id, key = await deploy_sleeper(acme), await acme.create_key()
    call = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "sleeper", "arguments": {}}}

    def cancel(request_id: Any) -> dict[str, Any]:
        return {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": request_id}}

    sent = asyncio.create_task(post_message(system.url, key, call, **{"Mcp-Session-Id": "mcps_one"}))
    execution_id = await find_run(acme, agent_id)
    other_key = await acme.create_key()
    for request_id, session, used_key in ((7, "mcps_two", key), ("7", "mcps_one", key), (7, "mcps_one", other_key)):
        answer = await post_message(system.url, used_key, cancel(request_id), **{"Mcp-Session-Id": session})
        assert answer.status_code == 202, answer.text
    assert (await acme.http.get(f"/executions/{execution_id}")).json()["status"] != "cancelled"
    answer = await post_message(system.url, key, cancel(7), **{"Mcp-Session-Id": "mcps_one"})
    assert answer.status_code == 202, answer.text
    await wait_for_status(acme, execution_id, "cancelled")
    result = json.loads((await sent).text.split("data: ")[-1])["result"]
    assert result["isError"]
    assert "cancelled" in result["content"][0]["text"]


async def test_client_that_leaves_cancels_its_run(system: System, acme: TenantClient) -> None:
    agent_id, key = await deploy_sleeper(acme), await acme.create_key()
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "sleeper", "arguments": {}}}
    headers = {"Accept": "application/json, text/event-stream", "X-API-Key": key}
    async with (
        httpx.AsyncClient(timeout=90) as http,
        http.stream("POST", f"{system.url}/mcp", json=call, headers=headers) as answer,
    ):
        assert answer.status_code == 200
        execution_id = await find_run(acme, agent_id)
    await wait_for_status(acme, execution_id, "cancelled")
