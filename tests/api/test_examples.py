"""Test that every body of the OpenAPI document has an example and that each example works unchanged."""

import asyncio
import secrets
from typing import Any

import httpx

from api.examples import EXAMPLE_BODIES, find_example
from scripts.system import System

# The names of what the examples create, by path parameter.
NAMES_BY_PARAMETER = {
    "agent_id": "poet",
    "crew_id": "press",
    "workflow_id": "welcome",
    "task_id": "summary",
    "template_id": "greeting",
    "tool_id": "weather",
    "model_id": "fast",
    "provider_key_id": "openai",
    "secret_id": "GITHUB_TOKEN",
    "state_name": "default",
    "schedule_id": "morning",
}
# What has no name, by the example that creates it.
ID_PARAMETERS = {
    "create_key": "key_id",
    "create_budget": "budget_id",
    "create_thread": "thread_id",
    "execute_agent": "execution_id",
}
LAST_OPERATIONS = ("approve_execution", "reject_execution", "update_user")


async def _start_waiting_run(http: httpx.AsyncClient) -> str:
    """Start the workflow and return the run's id once it waits for approval."""
    run = await http.post("/api/v1/workflows/welcome/execute", json=EXAMPLE_BODIES["execute_workflow"])
    for _ in range(600):
        execution = (await http.get(f"/api/v1/executions/{run.json()['id']}")).json()
        if execution["status"] == "waiting":
            return str(execution["id"])
        assert execution["status"] not in ("failed", "completed"), execution
        await asyncio.sleep(0.2)
    raise AssertionError(execution)


async def _build_path_values(http: httpx.AsyncClient, operation_id: str, created: dict[str, str]) -> dict[str, str]:
    values = {**NAMES_BY_PARAMETER, **created}
    if operation_id in ("approve_execution", "reject_execution"):
        values["execution_id"] = await _start_waiting_run(http)
    if operation_id == "put_state":
        # Only an uploaded agent has states.
        await http.post("/api/v1/agents", json={"name": "counter"})
        values["agent_id"] = "counter"
    if operation_id == "execute_tool":
        values["tool_id"] = "filesystem_write"
    if operation_id == "update_user":
        email = f"{secrets.token_hex(6)}@example.com"
        token = (await http.post("/api/v1/users/invites", json={"email": email})).json()["invite_token"]
        me = (await http.get("/api/v1/auth/me")).json()
        body = {"email": email, "password": "long enough", "tenant_id": me["tenant_id"]}
        joined = await http.post("/api/v1/auth/register", json={**body, "invite_token": token}, headers={})
        values["user_id"] = joined.json()["id"]
    return values


async def test_every_example_works_unchanged(system: System) -> None:
    async with httpx.AsyncClient(base_url=system.url, timeout=120) as http:
        document = (await http.get("/openapi.json")).json()
        contents = {
            (operation["operationId"], method.upper(), path): operation["requestBody"]["content"]["application/json"]
            for path, item in document["paths"].items()
            for method, operation in item.items()
            if "application/json" in operation.get("requestBody", {}).get("content", {})
        }
        missing = [key for key, content in contents.items() if "example" not in content]
        assert missing == []
        order = [*(name for name in EXAMPLE_BODIES if name not in LAST_OPERATIONS), *LAST_OPERATIONS]
        created: dict[str, str] = {}
        tested = set()
        for name in order:
            for key, content in contents.items():
                operation_id, method, path = key
                if find_example(operation_id) is not EXAMPLE_BODIES[name] or not operation_id.startswith(name):
                    continue
                body: Any = content["example"]
                if name == "refresh_tokens":
                    # The only example that cannot be known in advance.
                    body = {"refresh_token": created["refresh_token"]}
                url = path.format(**await _build_path_values(http, name, created))
                # Of the routes here, MCP's alone requires a header that says what its client reads.
                headers = {"Accept": "application/json, text/event-stream"}
                answer = await http.request(method, url, json=body, headers=headers)
                assert answer.status_code in (200, 201), (operation_id, url, answer.text)
                tested.add(key)
                if not answer.headers["content-type"].startswith("application/json"):
                    assert name == "serve_mcp", name
                    continue
                result = answer.json()
                if name == "log_in":
                    http.headers["Authorization"] = f"Bearer {result['access_token']}"
                if name in ("log_in", "refresh_tokens"):
                    created["refresh_token"] = result["refresh_token"]
                if name in ID_PARAMETERS:
                    created[ID_PARAMETERS[name]] = result["id"]
        assert tested == set(contents)
