"""Every body of the OpenAPI document has an example, and each works as it stands."""

import asyncio
from typing import Any

import httpx

from api.examples import EXAMPLE_BODIES, find_example
from tests.conftest import run_system

# What the examples make, by the parameter of a path that names it.
NAMED = {
    "agent_id": "poet",
    "crew_id": "press",
    "workflow_id": "welcome",
    "task_id": "summary",
    "template_id": "greeting",
    "tool_id": "weather",
    "model_id": "fast",
    "provider_key_id": "openai",
    "schedule_id": "morning",
}
LAST = ("approve_execution", "reject_execution", "update_user")


async def _waiting(http: httpx.AsyncClient) -> str:
    """A new run of the workflow once it waits for its approval."""
    run = await http.post("/api/v1/workflows/welcome/execute", json=EXAMPLE_BODIES["execute_workflow"])
    for _ in range(600):
        found = (await http.get(f"/api/v1/executions/{run.json()['id']}")).json()
        if found["status"] == "waiting":
            return str(found["id"])
        assert found["status"] not in ("failed", "completed"), found
        await asyncio.sleep(0.2)
    raise AssertionError(found)


async def _values(http: httpx.AsyncClient, operation_id: str, made: dict[str, str]) -> dict[str, str]:
    values = {**NAMED, **made}
    if operation_id in ("approve_execution", "reject_execution"):
        values["execution_id"] = await _waiting(http)
    if operation_id == "execute_tool":
        values["tool_id"] = "filesystem_write"
    if operation_id == "update_user":
        token = (await http.post("/api/v1/users/invites", json={"email": "other@example.com"})).json()["invite_token"]
        me = (await http.get("/api/v1/auth/me")).json()
        body = {"email": "other@example.com", "password": "long enough", "tenant_id": me["tenant_id"]}
        joined = await http.post("/api/v1/auth/register", json={**body, "invite_token": token}, headers={})
        values["user_id"] = joined.json()["id"]
    return values


async def test_every_example_works_as_it_stands() -> None:
    async with run_system() as system, httpx.AsyncClient(base_url=system.url, timeout=120) as http:
        document = (await http.get("/openapi.json")).json()
        wanted = {
            (operation["operationId"], method.upper(), path): operation["requestBody"]["content"]["application/json"]
            for path, item in document["paths"].items()
            for method, operation in item.items()
            if "application/json" in operation.get("requestBody", {}).get("content", {})
        }
        missing = [key for key, content in wanted.items() if "example" not in content]
        assert missing == []
        order = [*(name for name in EXAMPLE_BODIES if name not in LAST), *LAST]
        made: dict[str, str] = {}
        sent = set()
        for name in order:
            for key, content in wanted.items():
                operation_id, method, path = key
                if find_example(operation_id) is not EXAMPLE_BODIES[name] or not operation_id.startswith(name):
                    continue
                body: Any = content["example"]
                if name == "refresh_tokens":
                    # The one example that nobody can know beforehand.
                    body = {"refresh_token": made["refresh_token"]}
                url = path.format(**await _values(http, name, made))
                answer = await http.request(method, url, json=body)
                assert answer.status_code in (200, 201), (operation_id, url, answer.text)
                sent.add(key)
                found = answer.json()
                if name == "log_in":
                    http.headers["Authorization"] = f"Bearer {found['access_token']}"
                if name in ("log_in", "refresh_tokens"):
                    made["refresh_token"] = found["refresh_token"]
                if name in ("create_key", "create_budget"):
                    made[{"create_key": "key_id", "create_budget": "budget_id"}[name]] = found["id"]
        assert sent == set(wanted)
