"""Every route of the OpenAPI document, called by another tenant and by keys that lack the scope.

A new route is covered without anyone remembering: it is walked because it is in the document.
"""

import json
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.support.clients import TenantClient, pack_archive

SECRET = "belongs-to-acme-alone"
UNAUTHENTICATED = {"register_user", "log_in", "refresh_tokens"}
OWN = {
    "get_me",
    "get_me_users",
    "log_out",
    "update_me",
    "create_key",
    "create_key_auth",
    "invite_user",
    "update_tenant",
}
# What creates something in the caller's own tenant, whatever it is sent.
CREATES = {"create_agent", "upload_artifact", "create_evaluation", "upload_metrics", "create_evaluation_batch"}
CREATES |= {"create_model", "create_provider_key", "create_tool", "create_budget", "create_template"}
CREATES |= {"create_crew", "create_task", "create_workflow"}
# Is refused, as it names what only another tenant has.
REFERS = {"create_schedule"}
# Says what is wrong with what it is sent.
OWN |= {"check_crew", "generate_agent", "generate_task", "generate_crew", "generate_name"}
CREW = {"agents_yaml": "a: {role: Reader}", "tasks_yaml": "t: {description: Read, agent: a}"}
RECORD = {"prompt": "What?", "response": SECRET}


@pytest.fixture(scope="module")
async def document(system) -> dict[str, Any]:
    async with httpx.AsyncClient() as client:
        return dict((await client.get(f"{system.url}/openapi.json")).json())


@pytest.fixture
async def belongings(acme: TenantClient) -> dict[str, str]:
    """One of everything, all of it acme's."""
    source = f"def handle(p):\n    print('{SECRET}')\n    return '{SECRET}'\n"
    agent = await acme.create_agent(SECRET)
    version = await acme.build_version(agent["id"], pack_archive({"agent.py": source}))
    execution = await acme.run_agent(agent["id"], {"secret": SECRET})
    artifact = (await acme.http.post("/artifacts/upload", json={"kurral_id": SECRET, "inputs": {"is": SECRET}})).json()
    evaluation = (await acme.http.post("/evaluations", json=RECORD)).json()
    key = (await acme.http.post("/api-keys", json={"name": SECRET})).json()
    wanted = {"scope": "agent", "subject": agent["id"], "limit_usd": 4321.5, "period": "month"}
    budget = (await acme.http.post("/budgets", json=wanted)).json()
    provider_key = await _made(acme, "/provider-keys", service="openai", key=f"sk-{SECRET}")
    model = await _made(acme, "/models", provider="openai", model="gpt-4", api_key_name=SECRET)
    tool = await _made(acme, "/tools", configuration={"api_endpoint": "https://x.example.com", "parameters": {}})
    template = await _made(acme, "/templates", template="Text.")
    task = await _made(acme, "/tasks", description=SECRET)
    crew = await _made(acme, "/crews", description=SECRET, **CREW)
    workflow = await _made(acme, "/workflows", steps=[{"id": "files", "tool": "filesystem_list"}], description=SECRET)
    when = {"cron_expression": "* * * * *", "enabled": False}
    schedule = await _made(acme, "/scheduler/schedules", agent_id=agent["id"], inputs={"a": SECRET}, **when)
    return {
        "agent_id": agent["id"],
        "version": version["id"],
        "execution_id": execution["id"],
        "key_id": key["id"],
        "user_id": acme.account["id"],
        "path": version["tarball_path"],
        "name": SECRET,
        "kurral_id": artifact["id"],
        "evaluation_id": evaluation["id"],
        "budget_id": budget["id"],
        "provider_key_id": provider_key["id"],
        "model_id": model["id"],
        "tool_id": tool["id"],
        "tool_name": SECRET,
        "template_id": template["id"],
        "task_id": task["id"],
        "crew_id": crew["id"],
        "workflow_id": workflow["id"],
        "schedule_id": schedule["id"],
    }


async def _made(acme: TenantClient, path: str, **body: Any) -> dict[str, Any]:
    made = await acme.http.post(path, json={"name": SECRET, **body})
    assert made.status_code == 201, made.text
    return dict(made.json())


def _body(document: dict[str, Any], operation: dict[str, Any], belongings: dict[str, str]) -> Any:
    content = operation.get("requestBody", {}).get("content", {})
    if "multipart/form-data" in content:
        return {"files": {"file": ("a.tar.gz", pack_archive({"agent.py": ""}))}}
    if operation["operationId"] == "upload_artifact":
        return {"json": {"kurral_id": "the-rival-s-own"}}
    if operation["operationId"] in ("create_evaluation", "upload_metrics", "create_evaluation_batch"):
        rival = {"prompt": "a", "response": "b"}
        return {"json": [rival] if operation["operationId"] == "create_evaluation_batch" else rival}
    if "application/json" not in content:
        return {}
    told = content["application/json"]["schema"]
    # A body that may be left out is one of nothing and its schema.
    named = [one for one in told.get("oneOf", [told]) if "$ref" in one][0]
    name = named["$ref"].rsplit("/", 1)[-1]
    schema = document["components"]["schemas"][name]
    body: dict[str, Any] = {}
    for field in schema.get("required", []):
        told = schema["properties"][field]
        body[field] = (
            belongings.get(field) or (told.get("examples") or ["x@example.com" if field == "email" else "x"])[0]
        )
    if name in (
        "NewAgent",
        "NewModel",
        "NewProviderKey",
        "NewTool",
        "NewTemplate",
        "NewTask",
        "NewCrew",
        "NewWorkflow",
    ):
        body["name"] = "the-rival-s-own"
    if name in ("TargetedExecutionStart", "NewSchedule"):
        body["agent_id"] = belongings["agent_id"]
    if name == "NewCrew":
        body |= CREW
    if name == "NewTask":
        body["description"] = "Read"
    if name == "PatchBudget":
        body["limit_usd"] = 1
    elif name.startswith("Patch") and name not in ("PatchUser",):
        body["name"] = "taken-over"
    return {"json": body}


def _routes(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method.upper(), path, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if path.startswith("/api/v1") and "x-websocket" not in operation
    ]


async def test_no_route_shows_or_changes_another_tenant_s(
    document, belongings, acme: TenantClient, other_tenant: TenantClient
) -> None:
    walked = 0
    for method, path, operation in _routes(document):
        for by in ("id", "name"):
            values = dict(belongings)
            if by == "name":
                values["agent_id"] = values["kurral_id"] = SECRET
                values["provider_key_id"] = values["model_id"] = values["tool_id"] = SECRET
                values["template_id"] = values["task_id"] = values["crew_id"] = values["workflow_id"] = SECRET
                values["schedule_id"] = SECRET
            url = path.removeprefix("/api/v1")
            for parameter, value in values.items():
                url = url.replace("{" + parameter + "}", value)
            assert "{" not in url, f"{path} has a parameter that this test does not know; add it to `belongings`"
            if operation["operationId"] in OWN | UNAUTHENTICATED:
                continue
            answer = await other_tenant.http.request(method, url, **_body(document, operation, values))
            walked += 1
            own_list = "{" not in path and method == "GET"
            creates = operation["operationId"] in CREATES
            refers = operation["operationId"] in REFERS
            expected = (200,) if own_list else (201, 409) if creates else (422,) if refers else (404,)
            assert answer.status_code in expected, (method, url, answer.status_code, answer.text)
            shown = answer.text.replace(url, "").replace(json.dumps(values["name"]), "")
            if not creates and answer.status_code == 200:
                assert SECRET not in shown
            for mine in (belongings["key_id"], belongings["version"], acme.tenant_id, acme.account["email"]):
                # What was asked for may be named in the refusal; what was not, may not.
                assert mine in url or mine not in answer.text, (method, url, answer.text)
    assert walked > 90
    # Nothing of it changed.
    assert (await acme.http.get(f"/agents/{belongings['agent_id']}")).json()["name"] == SECRET
    assert (await acme.http.get(f"/api-keys/{belongings['key_id']}")).json()["is_active"] is True
    assert (await acme.http.get(f"/executions/{belongings['execution_id']}")).json()["status"] == "completed"
    assert (await acme.http.get(f"/artifacts/{SECRET}")).json()["inputs"] == {"is": SECRET}
    assert (await acme.http.get(f"/evaluations/{belongings['evaluation_id']}")).json()["response"] == SECRET
    assert (await acme.http.get(f"/budgets/{belongings['budget_id']}")).json()["limit_usd"] == 4321.5
    for path in ("provider-keys", "models", "tools", "templates", "tasks", "crews", "workflows", "scheduler/schedules"):
        assert (await acme.http.get(f"/{path}/{SECRET}")).json()["name"] == SECRET
    assert (await acme.http.get(f"/tools/{SECRET}")).json()["enabled"] is True


async def test_no_websocket_shows_another_tenant_s(
    document, belongings, acme: TenantClient, other_tenant: TenantClient
) -> None:
    walked = 0
    for path, item in document["paths"].items():
        if "x-websocket" not in item.get("get", {}):
            continue
        walked += 1
        url = f"{other_tenant.http.base_url}".replace("http", "ws", 1).removesuffix("/api/v1/") + path.format(
            **belongings
        )
        for headers, code in (
            ({"Authorization": other_tenant.http.headers["Authorization"]}, 4404),
            ({"X-API-Key": await acme.create_key(scopes=[])}, 4403),
            ({}, 4401),
        ):
            with pytest.raises((ConnectionClosed, InvalidStatus)) as caught:
                async with connect(url, additional_headers=headers) as socket:
                    await socket.send(json.dumps({"payload": {}}))
                    while True:
                        assert SECRET not in await socket.recv()
            error = caught.value
            if isinstance(error, InvalidStatus):
                # Refused before it was a WebSocket, for which ASGI has one status.
                assert error.response.status_code == 403
            else:
                assert error.rcvd is not None
                assert error.rcvd.code == code
    assert walked == 2


async def test_references_in_bodies_do_not_reach_across(belongings, other_tenant: TenantClient) -> None:
    mine = await other_tenant.deploy_agent("def handle(p): return 1\n")
    for body in ({"agent_id": belongings["agent_id"]}, {"agent_id": SECRET}):
        assert (await other_tenant.http.post("/executions", json=body)).status_code == 404
    stolen = await other_tenant.http.post(f"/agents/{mine}/execute", json={"agent_version_id": belongings["version"]})
    assert stolen.status_code == 422
    model = {"name": "mine", "provider": "openai", "model": "gpt-4"}
    tool = {"name": "mine", "configuration": {"api_endpoint": "https://x.example.com", "parameters": {}}}
    for reference in (belongings["provider_key_id"], SECRET):
        assert (await other_tenant.http.post("/models", json={**model, "api_key_name": reference})).status_code == 422
        secret = {**tool["configuration"], "secrets": {"X-Key": reference}}
        assert (await other_tenant.http.post("/tools", json={**tool, "configuration": secret})).status_code == 422
    for agent_id, task_id in ((belongings["agent_id"], belongings["task_id"]), (SECRET, SECRET)):
        crew = {"name": "mine", "tasks_yaml": f"t: {{description: D, agent: {agent_id}}}"}
        for stolen in ({}, {"agents": [agent_id]}, {"tasks": [task_id]}):
            assert (await other_tenant.http.post("/crews", json={**crew, **stolen})).status_code == 422
        for stolen in ({"agent": agent_id}, {"context": [task_id]}):
            assert (
                await other_tenant.http.post("/tasks", json={"name": "mine", "description": "D", **stolen})
            ).status_code == 422
    for reference, kind in ((belongings["workflow_id"], "workflow"), (SECRET, "workflow"), (SECRET, "agent")):
        flow = {"name": "mine", "steps": [{"id": "a", kind: reference}]}
        assert (await other_tenant.http.post("/workflows", json=flow)).status_code == 422
        body = {"scope": "workflow", "subject": reference, "limit_usd": 1, "period": "day"}
        assert (await other_tenant.http.post("/budgets", json=body)).status_code == 422
    assert (await other_tenant.http.get(f"/executions?workflow_id={belongings['workflow_id']}")).json()["items"] == []
    for query in (f"agent_id={belongings['agent_id']}", f"agent_version_id={belongings['version']}"):
        assert (await other_tenant.http.get(f"/executions?{query}")).json()["items"] == []


async def test_a_tenant_filter_reaches_no_other_tenant(
    belongings, acme: TenantClient, other_tenant: TenantClient
) -> None:
    for name in ("tenant_id", "group_id"):
        assert (await other_tenant.http.get(f"/executions?{name}={acme.tenant_id}")).json()["items"] == []
        assert (await acme.http.get(f"/executions?{name}={acme.tenant_id}")).json()["total"] == 1


async def test_every_route_asks_for_credentials(document, belongings, acme: TenantClient) -> None:
    async with httpx.AsyncClient(base_url=acme.http.base_url) as nobody:
        for method, path, operation in _routes(document):
            if operation["operationId"] in UNAUTHENTICATED:
                continue
            url = path.removeprefix("/api/v1")
            for parameter, value in belongings.items():
                url = url.replace("{" + parameter + "}", value)
            for headers in ({}, {"Authorization": "Bearer nonsense"}, {"X-API-Key": "pdk_nonsense"}):
                answer = await nobody.request(method, url, headers=headers, **_body(document, operation, belongings))
                assert answer.status_code == 401, (method, url, headers, answer.text)
                assert answer.json()["error"] == "unauthenticated"


async def test_every_route_asks_for_its_scope(document, belongings, acme: TenantClient) -> None:
    """A key that may do nothing we have is refused everywhere, but at what is its own user's."""
    powerless = acme.open_client(await acme.create_key(scopes=[]))
    async with powerless:
        for method, path, operation in _routes(document):
            if operation["operationId"] in UNAUTHENTICATED | {"get_me", "get_me_users", "log_out"}:
                continue
            url = path.removeprefix("/api/v1")
            for parameter, value in belongings.items():
                url = url.replace("{" + parameter + "}", value)
            answer = await powerless.request(method, url, **_body(document, operation, belongings))
            assert answer.status_code == 403, (method, url, answer.status_code, answer.text)
            assert answer.json()["error"] == "missing_scope"


async def test_reading_keys_read_and_no_more(belongings, acme: TenantClient) -> None:
    async with acme.open_client(await acme.create_key(scopes=["read:agents"])) as reader:
        assert (await reader.get("/agents")).status_code == 200
        assert (await reader.post("/agents", json={"name": "x"})).status_code == 403
        assert (await reader.get("/executions")).status_code == 403
        assert (await reader.get(f"/logs/{belongings['agent_id']}")).status_code == 403


async def test_a_key_shrinks_with_its_owner_s_role(acme: TenantClient, system) -> None:
    invite = (await acme.http.post("/users/invites", json={"email": "shrinking@example.com"})).json()
    async with httpx.AsyncClient(base_url=acme.http.base_url) as web:
        body = {"email": "shrinking@example.com", "password": "long enough", "tenant_id": acme.tenant_id}
        member = (await web.post("/auth/register", json={**body, "invite_token": invite["invite_token"]})).json()
        bearer = {"Authorization": f"Bearer {member['access_token']}"}
        key = (await web.post("/api-keys", json={"name": "k"}, headers=bearer)).json()["key"]
        assert (await web.post("/agents", json={"name": "by-key"}, headers={"X-API-Key": key})).status_code == 201
        assert (await web.get("/users", headers=bearer)).status_code == 403
        changed = await acme.http.patch(f"/users/{member['id']}", json={"role": "viewer"})
        assert changed.json()["role"] == "viewer"
        assert (await web.post("/agents", json={"name": "again"}, headers={"X-API-Key": key})).status_code == 403
        await acme.http.patch(f"/users/{member['id']}", json={"is_active": False})
        for headers in ({"X-API-Key": key}, bearer):
            assert (await web.get("/agents", headers=headers)).status_code == 401
        again = await web.post("/auth/login", json={"email": "shrinking@example.com", "password": "long enough"})
        assert again.json()["error"] == "invalid_credentials"


async def test_the_last_admin_stays(acme: TenantClient) -> None:
    for change in ({"role": "member"}, {"is_active": False}):
        refused = await acme.http.patch(f"/users/{acme.account['id']}", json=change)
        assert refused.status_code == 409


async def test_an_invitation_is_for_one_e_mail_once(acme: TenantClient, other_tenant: TenantClient) -> None:
    token = (await acme.http.post("/users/invites", json={"email": "one@example.com"})).json()["invite_token"]
    async with httpx.AsyncClient(base_url=acme.http.base_url) as web:

        async def join(email: str, tenant: str) -> int:
            body = {"email": email, "password": "long enough", "tenant_id": tenant, "invite_token": token}
            return (await web.post("/auth/register", json=body)).status_code

        assert await join("other@example.com", acme.tenant_id) == 403
        assert await join("one@example.com", other_tenant.tenant_id) == 403
        assert await join("one@example.com", acme.tenant_id) == 201
        assert await join("one@example.com", acme.tenant_id) in (403, 409)
        alone = {"email": "two@example.com", "password": "long enough", "invite_token": token}
        assert (await web.post("/auth/register", json=alone)).json()["errors"][0]["field"] == "tenant_id"


async def test_only_the_operators_see_all_queues(acme: TenantClient, system) -> None:
    assert (await acme.http.get("/queues")).json()["workers"] == []
    async with acme.open_client(system.admin_key) as operator:
        seen = (await operator.get("/queues")).json()
    assert {worker["lane"] for worker in seen["workers"]} == {"build", "run", "llm", "plan", "record", "upkeep"}
    assert {lane["lane"] for lane in seen["queues"]} == {"build", "run", "llm", "plan", "record"}
