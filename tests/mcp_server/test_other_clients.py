"""The client of fastmcp, an agent of Paddock that calls this very server, and two API processes that serve one client."""

import asyncio
import contextlib
import json
from pathlib import Path

import anyio
import pytest

from scripts.system import System
from tests.mcp_server.test_cancellation import deploy_sleeper, find_run
from tests.support.clients import TenantClient, run_second_api
from tests.support.fake_provider import FakeProvider, build_call
from tests.support.mcp_clients import PROTOCOL_MODES, connect_client, expose, post_message, read_text
from tests.support.model_agents import create_model, create_model_agent, generate_name, run_execution, wait_for_status

CLIENTS_PYTHON = Path(__file__).parents[2] / ".clients/bin/python"
COUNTING_SOURCE = """
import pathlib

def handle(payload):
    pathlib.Path("/work/count.txt").write_text("3")
    for number in range(3):
        yield {"number": number}
    return {"count": payload["upto"]}
"""
FASTMCP_CLIENT = """
import asyncio, sys
from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport
from fastmcp.exceptions import ToolError

url, key, mode = sys.argv[1:]
seen = []

async def note_progress(progress, total, message):
    seen.append((progress, total, message))

async def main():
    transport = StreamableHttpTransport(f"{url}/mcp", headers={"Authorization": f"Bearer {key}"})
    async with Client(transport, progress_handler=note_progress, mode=mode) as client:
        names = sorted(tool.name for tool in await client.list_tools())
        assert names == ["counting", "sleeper"], names
        result = await client.call_tool("counting", {"inputs": {"upto": 3}})
        assert result.structured_content["count"] == 3, result
        links = [part for part in result.content if part.type == "resource_link"]
        assert [link.name for link in links] == ["count.txt"], result
        contents = await client.read_resource(links[0].uri)
        assert contents[0].text == "3", contents
        values = [value for value, _, _ in seen]
        assert values and values == sorted(set(values)), seen
        assert any('"number"' in (message or "") for _, _, message in seen), seen
        try:
            await client.call_tool("counting", {})
        except ToolError as error:
            assert "upto" in str(error), error
        else:
            raise AssertionError("it was no error")
        try:
            await client.call_tool("hidden", {})
        except Exception as error:
            assert "hidden" in str(error), error
        else:
            raise AssertionError("it was called")
        assert len(await client.list_resource_templates()) == 5
        assert await client.list_resources()
        call = asyncio.create_task(client.call_tool("sleeper", {}))
        await asyncio.sleep(2)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    try:
        async with Client(StreamableHttpTransport(f"{url}/mcp")) as client:
            await client.list_tools()
    except Exception as error:
        assert "Send an API key" in repr(error), repr(error)
    else:
        raise AssertionError("it needed no key")
    print("works")

asyncio.run(main())
"""


def _has_fastmcp() -> bool:
    return any(CLIENTS_PYTHON.parents[1].glob("lib/python*/site-packages/fastmcp"))


@pytest.mark.skipif(not _has_fastmcp(), reason="fastmcp is not installed: run `make .clients/.ready`")
@pytest.mark.parametrize("mode", PROTOCOL_MODES)
async def test_client_of_fastmcp_works(system: System, acme: TenantClient, tmp_path: Path, mode: str) -> None:
    agent_id = await acme.deploy_agent(COUNTING_SOURCE)
    await acme.http.patch(f"/agents/{agent_id}", json={"name": "counting", "expose": "mcp"})
    sleeper_id = await deploy_sleeper(acme)
    (tmp_path / "client.py").write_text(FASTMCP_CLIENT)
    process = await asyncio.create_subprocess_exec(
        *(str(CLIENTS_PYTHON), str(tmp_path / "client.py"), system.url, await acme.create_key(), mode),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert output.decode().splitlines()[-1] == "works", output.decode()[-4000:]
    items = (await acme.http.get("/executions", params={"agent_id": sleeper_id})).json()["items"]
    assert len(items) == 1
    await wait_for_status(acme, items[0]["id"], "cancelled")


async def test_agent_of_paddock_uses_this_server_as_a_tool(
    system: System, acme: TenantClient, provider: FakeProvider
) -> None:
    hello = await acme.deploy_agent("def handle(payload):\n    return {'greeting': 'Hello, ' + payload['name']}\n")
    await acme.http.patch(f"/agents/{hello}", json={"name": "greeter", "expose": "mcp"})
    key = {"name": "Own Key", "service": "paddock", "key": await acme.create_key()}
    assert (await acme.http.post("/provider-keys", json=key)).status_code == 201
    configuration = {"url": f"{system.url}/mcp", "secrets": {"X-API-Key": "own_key"}}
    tool = {"name": "Our Agents", "description": "Agents", "tool_type": "mcp", "configuration": configuration}
    answer = await acme.http.post("/tools", json=tool)
    assert answer.status_code == 201, answer.text
    name = await create_model(acme, provider, generate_name())
    caller = await create_model_agent(acme, name, tools=["Our Agents"])
    provider.queue_text("", to=name, calls=[build_call("our_agents_greeter", {"inputs": {"name": "Ada"}})])
    provider.queue_text("Greeted", to=name)
    ended = await run_execution(acme, caller["id"], task="Greet Ada", mode="yolo")
    assert ended["status"] == "completed", ended
    assert "Hello, Ada" in json.dumps(provider.requests[-1].messages)


async def test_any_process_serves_any_request(system: System, acme: TenantClient) -> None:
    """Call through one process, cancel through the other, and read through the first."""
    agent_id, key = await deploy_sleeper(acme), await acme.create_key()
    call = {"jsonrpc": "2.0", "id": 9, "method": "tools/call", "params": {"name": "sleeper", "arguments": {}}}
    cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 9}}
    async with run_second_api(system) as second_url:
        sent = asyncio.create_task(post_message(system.url, key, call, **{"Mcp-Session-Id": "mcps_shared"}))
        execution_id = await find_run(acme, agent_id)
        answer = await post_message(second_url, key, cancelled, **{"Mcp-Session-Id": "mcps_shared"})
        assert answer.status_code == 202, answer.text
        assert "cancelled" in (await sent).text
        await wait_for_status(acme, execution_id, "cancelled")
        async with connect_client(second_url, key) as client:
            assert [tool.name for tool in (await client.list_tools()).tools] == ["sleeper"]
            assert (await client.read_resource(f"paddock://executions/{execution_id}")).contents


async def test_process_that_stops_ends_no_run(system: System, acme: TenantClient) -> None:
    """A client that leaves cancels its run, a server that is replaced does not."""
    agent_id, key = await deploy_sleeper(acme), await acme.create_key()
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "sleeper", "arguments": {}}}
    async with anyio.create_task_group() as tasks:
        async with run_second_api(system) as second_url:

            async def call_sleeper() -> None:
                # The connection breaks when the process ends.
                with contextlib.suppress(Exception):
                    await post_message(second_url, key, call)

            tasks.start_soon(call_sleeper)
            execution_id = await find_run(acme, agent_id)
            await wait_for_status(acme, execution_id, "running")
        assert (await acme.http.get(f"/executions/{execution_id}")).json()["status"] == "running"
        assert (await acme.wait_for_end(execution_id))["status"] == "completed"


async def test_exposed_agents_disappear_when_they_are_archived(system: System, acme: TenantClient) -> None:
    agent_id = await acme.deploy_agent("def handle(payload):\n    return 'text'\n")
    await acme.http.patch(f"/agents/{agent_id}", json={"name": "plain"})
    for value in ("mcp", ["mcp"]):
        await expose(acme, f"/agents/{agent_id}", value)
        async with connect_client(system.url, await acme.create_key()) as client:
            result = await client.call_tool("plain", {})
            assert (read_text(result), result.structured_content) == ("text", {"result": "text"})
            await acme.http.patch(f"/agents/{agent_id}", json={"status": "archived"})
            assert (await client.list_tools()).tools == []
            await acme.http.patch(f"/agents/{agent_id}", json={"status": "ready", "expose": []})
            assert (await client.list_tools()).tools == []
    for wrong in ("all", ["mcp", "web"], None, {"mcp": True}):
        answer = await acme.http.patch(f"/agents/{agent_id}", json={"expose": wrong})
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["field"].startswith("expose")
