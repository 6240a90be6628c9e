"""Test external tools of a model agent: custom HTTP calls with secrets, MCP servers, and refused addresses."""

import asyncio
import json

import pytest

from scripts.system import System
from tests.contracts.test_mcp_tools import run_mcp_server
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider, build_call
from tests.support.model_agents import create_model, create_model_agent, generate_name, run_execution, stream_events
from tests.support.outbound_servers import build_reply, run_server

SECRET_KEY = "sk-never-to-be-seen-0123456789"


async def test_custom_tool_sends_its_secret_without_showing_it(
    system: System, acme: TenantClient, provider: FakeProvider
) -> None:
    name = await create_model(acme, provider, generate_name())
    key = {"name": "Search Key", "service": "search", "key": SECRET_KEY}
    assert (await acme.http.post("/provider-keys", json=key)).status_code == 201
    async with run_server(
        lambda request: build_reply(json.dumps({"echo": request.headers["x-key"]}).encode())
    ) as server:
        tool = {
            "name": "Custom Search Tool",
            "description": "A tool for searching specific databases",
            "tool_type": "custom",
            "configuration": {
                "api_endpoint": server.url + "/search/{topic}",
                "parameters": {"topic": {"type": "string"}, "most": {"type": "integer"}},
                "secrets": {"X-Key": "search_key"},
            },
            "enabled": True,
        }
        assert (await acme.http.post("/tools", json=tool)).status_code == 201
        created = await create_model_agent(acme, name, tools=["Custom Search Tool"])
        provider.queue_text("", to=name, calls=[build_call("custom_search_tool", {"topic": "a b/c", "most": "three"})])
        provider.queue_text("", to=name, calls=[build_call("custom_search_tool", {"topic": "a b/c", "most": 3})])
        provider.queue_text("Found", to=name)
        ended = await run_execution(acme, created["id"], task="Search", mode="yolo")
        assert ended["status"] == "completed", ended
        (request,) = server.requests
        assert request.target == "/search/a%20b%2Fc"
        assert json.loads(request.body) == {"most": 3}
        assert request.headers["x-key"] == SECRET_KEY
    results = [event for event in await stream_events(acme, ended["id"]) if event["type"] == "tool_result"]
    assert "most" in results[0]["error"]
    assert results[1]["result"]["status"] == 200
    visible_text = json.dumps([results, provider.requests[-1].body, system.lines])  # type: ignore[attr-defined]
    visible_text += (await acme.http.get(f"/executions/{ended['id']}")).text + (await acme.http.get("/tools")).text
    for _ in range(100):
        artifact = await acme.http.get(f"/artifacts/{ended['id']}")
        if artifact.status_code == 200:
            break
        await asyncio.sleep(0.1)
    assert SECRET_KEY not in visible_text + artifact.text


async def test_tools_of_an_mcp_server_are_called(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    async with run_mcp_server() as (url, _, _):
        tool = {"name": "Things", "tool_type": "mcp", "configuration": {"url": url}}
        assert (await acme.http.post("/tools", json=tool)).status_code == 201
        created = await create_model_agent(acme, name, tools=["things/add"])
        provider.queue_text("", to=name, calls=[build_call("things_add", {"a": 2, "b": 40})])
        provider.queue_text("42", to=name)
        ended = await run_execution(acme, created["id"], task="Add", mode="yolo")
        assert ended["result"] == {"content": "42"}, ended
        requests = [request for request in provider.requests if request.model == name]
        assert [tool["function"]["name"] for tool in requests[0].body["tools"]] == ["things_add"]
        assert "42" in requests[1].get_last_text("tool")
        single_call = await acme.http.post("/tools/things/execute", json={"tool": "add", "args": {"a": 1, "b": 1}})
        assert (single_call.status_code, single_call.json()["status"]) == (200, "completed"), single_call.text
        assert "2" in json.dumps(single_call.json()["result"])


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/",
        "http://localhost:{port}/",
        "http://2130706433:{port}/",
        "http://0x7f.1:{port}/",
        "http://[::1]:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://10.0.0.1/",
        "http://192.168.1.1/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[fd00:ec2::254]/",
        "http://0.0.0.0:{port}/",
        "file:///etc/passwd",
    ],
)
async def test_http_tool_cannot_reach_private_addresses(system: System, acme: TenantClient, url: str) -> None:
    async with run_server() as server:
        arguments = {"args": {"url": url.format(port=server.port)}}
        answer = await acme.http.post("/tools/http_request/execute", json=arguments)
        assert (answer.status_code, answer.json()["error"]) == (422, "tool_failed"), answer.text
        assert server.connection_count == 0
    if not url.startswith("file"):
        assert any("outbound refused" in line for line in system.lines)  # type: ignore[attr-defined]


async def test_search_tool_finds_only_runs_of_the_tenant(
    acme: TenantClient, other_tenant: TenantClient, provider: FakeProvider
) -> None:
    name = await create_model(acme, provider, generate_name())
    created = await create_model_agent(acme, name)
    provider.queue_failure(400, message="the flux capacitor is broken", to=name)
    failed = await run_execution(acme, created["id"], task="Go")
    assert failed["status"] == "failed"
    arguments = {"args": {"query": "capacitor", "status": "error"}}
    for _ in range(100):
        search_answer = (await acme.http.post("/tools/search_artifacts/execute", json=arguments)).json()
        if search_answer["result"]["total"]:
            break
        await asyncio.sleep(0.1)
    assert [artifact["kurral_id"] for artifact in search_answer["result"]["artifacts"]] == [failed["id"]]
    foreign_answer = (await other_tenant.http.post("/tools/search_artifacts/execute", json=arguments)).json()
    assert foreign_answer["result"]["total"] == 0
