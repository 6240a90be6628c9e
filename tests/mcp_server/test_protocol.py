"""Authentication, scopes, tenants, paging and messages that no client should send."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolRequest, CallToolRequestParams, CallToolResult

from domain.mcp.service import TOOLS_PER_PAGE
from domain.shared import ids
from infra.wiring import Resources
from scripts.system import System
from tests.mcp_server.test_cancellation import deploy_sleeper, find_run
from tests.support.clients import TenantClient
from tests.support.mcp_clients import PROTOCOL_MODES, connect_client, post_message, read_answer, read_text

LIST_TOOLS = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
}


async def create_exposed_workflow(acme: TenantClient, name: str, **more: Any) -> str:
    steps = [{"id": "files", "tool": "filesystem_list", "inputs": {}}]
    answer = await acme.http.post("/workflows", json={"name": name, "steps": steps, "expose": "mcp", **more})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def test_callers_without_a_valid_key_are_refused(system: System, acme: TenantClient) -> None:
    for key in (None, "pdk_unknown", "not a key"):
        answer = await post_message(system.url, key, LIST_TOOLS)
        assert answer.status_code == 401, answer.text
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.json()["error"]["data"]["error"] == "unauthenticated"
    created = (await acme.http.post("/api-keys", json={"name": "revoked"})).json()
    assert (await post_message(system.url, created["key"], LIST_TOOLS)).status_code == 200
    await acme.http.post(f"/api-keys/{created['id']}/revoke")
    assert (await post_message(system.url, created["key"], LIST_TOOLS)).status_code == 401


@pytest.mark.parametrize("mode", PROTOCOL_MODES)
async def test_each_method_takes_its_scope(system: System, acme: TenantClient, mode: str) -> None:
    await create_exposed_workflow(acme, "scoped")
    all_scopes = ["read:agents", "run:agents", "read:executions", "read:artifacts"]

    call_scoped = CallToolRequest(params=CallToolRequestParams(name="scoped", arguments={}))

    async def find_refused(*scopes: str) -> set[str]:
        refused = set()
        async with connect_client(system.url, await acme.create_key(scopes=list(scopes)), mode) as client:
            calls = {
                "list": lambda: client.list_tools(),
                # The client itself would list the tools after the call.
                "call": lambda: client.session.send_request(call_scoped, CallToolResult),
                "resources": lambda: client.list_resources(),
                "execution": lambda: client.read_resource("paddock://executions/exec_unknown"),
                "artifact": lambda: client.read_resource("paddock://artifacts/unknown"),
            }
            for name, call in calls.items():
                try:
                    await call()
                except MCPError as error:
                    if (error.data or {}).get("error") == "missing_scope":
                        refused.add(name)
            assert (await client.list_resource_templates()).resource_templates
        return refused

    assert await find_refused() == {"list", "call", "resources", "execution", "artifact"}
    assert await find_refused("read:agents") == {"call", "resources", "execution", "artifact"}
    assert await find_refused("run:agents") == {"list", "resources", "execution", "artifact"}
    assert await find_refused("read:executions") == {"list", "call", "artifact"}
    assert await find_refused("read:artifacts") == {"list", "call", "execution"}
    assert await find_refused(*all_scopes) == set()


async def test_tenants_see_their_own_tools_and_runs_alone(
    system: System, acme: TenantClient, other_tenant: TenantClient
) -> None:
    await create_exposed_workflow(acme, "private")
    async with connect_client(system.url, await acme.create_key()) as client:
        result = await client.call_tool("private", {})
        execution_id = (result.meta or {})["paddock/execution_id"]
        assert (await client.read_resource(f"paddock://executions/{execution_id}")).contents
    async with connect_client(system.url, await other_tenant.create_key()) as client:
        assert (await client.list_tools()).tools == []
        assert (await client.list_resources()).resources == []
        with pytest.raises(MCPError, match="private"):
            await client.call_tool("private", {})
        for path in ("", "/logs", "/files", "/files/report.txt"):
            with pytest.raises(MCPError) as refused:
                await client.read_resource(f"paddock://executions/{execution_id}{path}")
            assert refused.value.data["error"] == "not_found"
            assert refused.value.code == -32002


@pytest.mark.parametrize("mode", PROTOCOL_MODES)
async def test_thousands_of_tools_are_listed_in_pages(
    system: System, acme: TenantClient, resources: Resources, mode: str
) -> None:
    await create_exposed_workflow(acme, "Report")
    await create_exposed_workflow(acme, "report!")
    async with resources.store.tenant_transaction(acme.tenant_id) as tx:
        for number in range(2 * TOOLS_PER_PAGE):
            workflow = await tx.workflows.find("Report")
            assert workflow is not None
            workflow.id, workflow.name = ids.generate_id("wf"), f"tool {number}"
            assert await tx.workflows.add(workflow)
    async with connect_client(system.url, await acme.create_key(), mode) as client:
        names: list[str] = []
        cursor, pages = None, 0
        while cursor is not None or not pages:
            page = await client.list_tools(cursor=cursor)
            names += [tool.name for tool in page.tools]
            cursor, pages = page.next_cursor, pages + 1
        assert pages == 3
        assert len(set(names)) == len(names) == 2 * TOOLS_PER_PAGE + 2
        (other,) = [name for name in names if name.startswith("report_")]
        assert read_text(await client.call_tool("report", {})) == read_text(await client.call_tool(other, {}))
        for wrong in ("x", "agent_x", "exec_01k3v9rt0hf7btqeqn5j8x2a4c", "\0", "9" * 500):
            with pytest.raises(MCPError, match="cursor"):
                await client.list_tools(cursor=wrong)


async def test_requests_need_no_handshake_and_no_session(system: System, acme: TenantClient) -> None:
    key = await acme.create_key()
    opened = await post_message(system.url, key, INITIALIZE)
    assert read_answer(opened)["result"]["protocolVersion"] == "2025-06-18"
    session = opened.headers["mcp-session-id"]
    other = await post_message(system.url, key, INITIALIZE)
    assert other.headers["mcp-session-id"] != session
    for headers in ({}, {"Mcp-Session-Id": session}, {"Mcp-Session-Id": "of another server"}):
        answer = await post_message(system.url, key, LIST_TOOLS, **headers)
        assert read_answer(answer)["result"]["tools"] == []
        answer = await post_message(system.url, key, {"jsonrpc": "2.0", "id": "a", "method": "ping"}, **headers)
        assert read_answer(answer) == {"jsonrpc": "2.0", "id": "a", "result": {}}
    initialized = {"jsonrpc": "2.0", "method": "notifications/initialized"}
    assert (await post_message(system.url, key, initialized)).status_code == 202
    unknown = {**INITIALIZE, "params": {**INITIALIZE["params"], "protocolVersion": "1999-01-01"}}
    assert read_answer(await post_message(system.url, key, unknown))["result"]["protocolVersion"] == "2025-11-25"


INVALID_BODIES: list[tuple[Any, int]] = [
    (b"", -32700),
    (b"{", -32700),
    (b"\xff\xfe", -32700),
    (b"[" * 600 + b"]" * 600, -32700),
    (b"null", -32600),
    (b"17", -32600),
    ([], -32600),
    ([LIST_TOOLS, LIST_TOOLS], -32600),
    ({**LIST_TOOLS, "jsonrpc": "1.0"}, -32600),
    ({**LIST_TOOLS, "id": None}, -32600),
    ({**LIST_TOOLS, "id": 1.5}, -32600),
    ({**LIST_TOOLS, "id": True}, -32600),
    ({**LIST_TOOLS, "id": {"a": 1}}, -32600),
    ({**LIST_TOOLS, "id": "x" * 1000}, -32600),
    ({**LIST_TOOLS, "method": 5}, -32600),
    ({**LIST_TOOLS, "params": []}, -32600),
    ({"id": 1, "method": "ping"}, -32600),
]


async def test_bodies_that_are_no_message_are_refused(system: System, acme: TenantClient) -> None:
    key = await acme.create_key()
    for headers in ({}, {"MCP-Protocol-Version": "2026-07-28"}):
        for body, code in INVALID_BODIES:
            answer = await post_message(system.url, key, body, **headers)
            assert answer.status_code == 400, (body, answer.text)
            assert answer.json()["error"]["code"] == code, (body, answer.text)
            assert "pydantic" not in answer.text
    wrong_params: list[tuple[str, dict[str, Any]]] = [
        ("tools/call", {}),
        ("tools/call", {"name": 5}),
        ("tools/call", {"name": "x", "arguments": []}),
        ("tools/call", {"name": "x" * 100_000}),
        ("tools/call", {"name": "\0"}),
        ("tools/list", {"cursor": 5}),
        ("resources/read", {"uri": "file:///etc/passwd"}),
        ("resources/read", {"uri": "paddock://executions/../keys"}),
        ("resources/read", {"uri": "paddock://executions/\0"}),
        ("resources/read", {"uri": "paddock://executions/exec_1/files/..%2f..%2fx"}),
        ("resources/read", {"uri": "paddock://" + "x" * 10_000}),
        ("no/such/method", {}),
        ("initialize", {"protocolVersion": 5}),
    ]
    for method, params in wrong_params:
        answer = await post_message(system.url, key, {"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        assert answer.status_code == 200, (method, params, answer.text)
        assert "error" in read_answer(answer), (method, params, answer.text)
        assert read_answer(answer)["error"]["code"] != -32603, (method, params, answer.text)
    # Notifications that mean nothing here, and answers to requests that were never sent.
    for message in (
        {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": {}}},
        {"jsonrpc": "2.0", "method": "notifications/cancelled"},
        {"jsonrpc": "2.0", "method": "notifications/unknown", "params": {}},
        {"jsonrpc": "2.0", "id": 5, "result": {}},
    ):
        assert (await post_message(system.url, key, message)).status_code == 202, message


async def test_requests_that_are_no_exchange_of_mcp_are_refused(system: System, acme: TenantClient) -> None:
    key = await acme.create_key()
    async with httpx.AsyncClient(headers={"X-API-Key": key}) as http:
        for method in ("GET", "DELETE", "PUT"):
            answer = await http.request(method, f"{system.url}/mcp", headers={"Accept": "text/event-stream"})
            assert answer.status_code == 405, method
            assert "POST" in answer.headers["allow"]
    assert (await post_message(system.url, key, LIST_TOOLS, Accept="text/html")).status_code == 406
    assert (await post_message(system.url, key, LIST_TOOLS, **{"Content-Type": "text/plain"})).status_code == 400
    huge = json.dumps({**LIST_TOOLS, "params": {"filler": "x" * (system.settings.body_max_bytes + 10)}}).encode()
    assert (await post_message(system.url, key, huge)).status_code == 413
    assert (await post_message(system.url, key, LIST_TOOLS, **{"Mcp-Session-Id": "x" * 1000})).status_code == 422
    for origin, status in (
        ("https://evil.example", 403),
        (system.url.replace("127.0.0.1", "evil.example"), 403),
        ("http://localhost:6274", 200),
        (system.settings.cors_origins[0], 200),
    ):
        assert (await post_message(system.url, key, LIST_TOOLS, Origin=origin)).status_code == status, origin


@pytest.mark.parametrize("has_progress", [False, True])
async def test_call_of_a_key_that_is_revoked_ends_without_its_run(
    system: System, acme: TenantClient, has_progress: bool
) -> None:
    agent_id = await deploy_sleeper(acme)
    created = (await acme.http.post("/api-keys", json={"name": "short"})).json()
    params: dict[str, Any] = {"name": "sleeper", "arguments": {}}
    if has_progress:
        params["_meta"] = {"progressToken": 1}
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    sent = asyncio.create_task(post_message(system.url, created["key"], call))
    execution_id = await find_run(acme, agent_id)
    await acme.http.post(f"/api-keys/{created['id']}/revoke")
    assert read_answer(await sent)["error"]["data"]["error"] == "unauthenticated"
    assert (await acme.http.get(f"/executions/{execution_id}")).json()["status"] != "cancelled"
    await acme.http.post(f"/executions/{execution_id}/cancel")
