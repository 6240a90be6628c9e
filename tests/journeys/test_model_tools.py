"""Tools of a model agent that are somewhere else: custom HTTP calls with secrets, MCP servers, and what is refused."""

import asyncio
import json

import pytest

from scripts.system import System
from tests.contracts.test_mcp_tools import mcp_server
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider, build_call
from tests.support.model_agents import create_model, create_model_agent, generate_name, run_execution, stream_events
from tests.support.outbound_servers import build_reply, run_server

SECRET = "sk-never-to-be-seen-0123456789"


async def test_a_custom_tool_sends_its_secret_and_nobody_else_sees_it(
    system: System, acme: TenantClient, provider: FakeProvider
) -> None:
    name = await create_model(acme, provider, generate_name())
    key = {"name": "Search Key", "service": "search", "key": SECRET}
    assert (await acme.http.post("/provider-keys", json=key)).status_code == 201
    async with run_server(lambda request: build_reply(json.dumps({"echo": request.headers["x-key"]}).encode())) as here:
        tool = {
            "name": "Custom Search Tool",
            "description": "A tool for searching specific databases",
            "tool_type": "custom",
            "configuration": {
                "api_endpoint": here.url + "/search/{topic}",
                "parameters": {"topic": {"type": "string"}, "most": {"type": "integer"}},
                "secrets": {"X-Key": "search_key"},
            },
            "enabled": True,
        }
        assert (await acme.http.post("/tools", json=tool)).status_code == 201
        made = await create_model_agent(acme, name, tools=["Custom Search Tool"])
        provider.queue_text("", to=name, calls=[build_call("custom_search_tool", {"topic": "a b/c", "most": "three"})])
        provider.queue_text("", to=name, calls=[build_call("custom_search_tool", {"topic": "a b/c", "most": 3})])
        provider.queue_text("Found", to=name)
        ended = await run_execution(acme, made["id"], task="Search", mode="yolo")
        assert ended["status"] == "completed", ended
        (request,) = here.requests
        assert request.target == "/search/a%20b%2Fc"
        assert json.loads(request.body) == {"most": 3}
        assert request.headers["x-key"] == SECRET
    results = [one for one in await stream_events(acme, ended["id"]) if one["type"] == "tool_result"]
    assert "most" in results[0]["error"]
    assert results[1]["result"]["status"] == 200
    seen = json.dumps([results, provider.requests[-1].body, system.lines])  # type: ignore[attr-defined]
    seen += (await acme.http.get(f"/executions/{ended['id']}")).text + (await acme.http.get("/tools")).text
    for _ in range(100):
        artifact = await acme.http.get(f"/artifacts/{ended['id']}")
        if artifact.status_code == 200:
            break
        await asyncio.sleep(0.1)
    assert SECRET not in seen + artifact.text


async def test_the_tools_of_an_mcp_server(acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name())
    async with mcp_server() as (url, _, _):
        tool = {"name": "Things", "tool_type": "mcp", "configuration": {"url": url}}
        assert (await acme.http.post("/tools", json=tool)).status_code == 201
        made = await create_model_agent(acme, name, tools=["things/add"])
        provider.queue_text("", to=name, calls=[build_call("things_add", {"a": 2, "b": 40})])
        provider.queue_text("42", to=name)
        ended = await run_execution(acme, made["id"], task="Add", mode="yolo")
        assert ended["result"] == {"content": "42"}, ended
        told = [one for one in provider.requests if one.model == name]
        assert [one["function"]["name"] for one in told[0].body["tools"]] == ["things_add"]
        assert "42" in told[1].get_last_text("tool")
        alone = await acme.http.post("/tools/things/execute", json={"tool": "add", "args": {"a": 1, "b": 1}})
        assert (alone.status_code, alone.json()["status"]) == (200, "completed"), alone.text
        assert "2" in json.dumps(alone.json()["result"])


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
async def test_a_model_cannot_make_the_worker_look_inside(system: System, acme: TenantClient, url: str) -> None:
    async with run_server() as here:
        asked = {"args": {"url": url.format(port=here.port)}}
        answer = await acme.http.post("/tools/http_request/execute", json=asked)
        assert (answer.status_code, answer.json()["error"]) == (422, "tool_failed"), answer.text
        assert here.connection_count == 0
    if not url.startswith("file"):
        assert any("outbound refused" in line for line in system.lines)  # type: ignore[attr-defined]


async def test_search_finds_the_tenants_own_runs(
    acme: TenantClient, other_tenant: TenantClient, provider: FakeProvider
) -> None:
    name = await create_model(acme, provider, generate_name())
    made = await create_model_agent(acme, name)
    provider.queue_failure(400, message="the flux capacitor is broken", to=name)
    failed = await run_execution(acme, made["id"], task="Go")
    assert failed["status"] == "failed"
    asked = {"args": {"query": "capacitor", "status": "error"}}
    for _ in range(100):
        found = (await acme.http.post("/tools/search_artifacts/execute", json=asked)).json()
        if found["result"]["total"]:
            break
        await asyncio.sleep(0.1)
    assert [one["kurral_id"] for one in found["result"]["artifacts"]] == [failed["id"]]
    theirs = (await other_tenant.http.post("/tools/search_artifacts/execute", json=asked)).json()
    assert theirs["result"]["total"] == 0
