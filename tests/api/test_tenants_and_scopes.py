"""Test every route of the OpenAPI document as another tenant and with keys that lack the scope.

A new route is covered automatically, because it is in the document.
"""

import json
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from api import openai as openai_door
from domain.shared.ids import generate_id
from tests.support.clients import TenantClient, pack_archive

SECRET_TEXT = "belongs-to-acme-alone"
# The name of a secret is that of an environment variable.
SECRET_NAME = "BELONGS_TO_ACME_ALONE"
PUBLIC_OPERATIONS = {"register_user", "log_in", "refresh_tokens"}
OWN_OPERATIONS = {
    "get_me",
    "get_me_users",
    "log_out",
    "update_me",
    "create_key",
    "create_key_auth",
    "invite_user",
    "update_tenant",
}
# Operations that create something in the caller's own tenant for any body.
CREATING_OPERATIONS = {
    "create_agent",
    "upload_artifact",
    "create_evaluation",
    "upload_metrics",
    "create_evaluation_batch",
}
CREATING_OPERATIONS |= {"create_model", "create_provider_key", "create_tool", "create_budget", "create_template"}
CREATING_OPERATIONS |= {
    "create_crew",
    "create_task",
    "create_workflow",
    "create_secret",
    "upload_file",
    "create_thread",
}
# Refused, because the body names an object of another tenant.
REFERRING_OPERATIONS = {"create_schedule", "start_bulk_operation"}
# These only report on the body.
OWN_OPERATIONS |= {"check_crew", "generate_agent", "generate_task", "generate_crew", "generate_name"}
CREW_YAML = {"agents_yaml": "a: {role: Reader}", "tasks_yaml": "t: {description: Read, agent: a}"}
EXAMPLE_EVALUATION = {"prompt": "What?", "response": SECRET_TEXT}


@pytest.fixture(scope="module")
async def document(system) -> dict[str, Any]:
    async with httpx.AsyncClient() as client:
        return dict((await client.get(f"{system.url}/openapi.json")).json())


@pytest.fixture
async def acme_objects(acme: TenantClient) -> dict[str, str]:
    """Create one object of every kind in the tenant acme; return the path parameters that name them."""
    source = f"def handle(p):\n    print('{SECRET_TEXT}')\n    return '{SECRET_TEXT}'\n"
    agent = await acme.create_agent(SECRET_TEXT)
    version = await acme.build_version(agent["id"], pack_archive({"agent.py": source}))
    execution = await acme.run_agent(agent["id"], {"secret": SECRET_TEXT})
    artifact = (
        await acme.http.post("/artifacts/upload", json={"kurral_id": SECRET_TEXT, "inputs": {"is": SECRET_TEXT}})
    ).json()
    evaluation = (await acme.http.post("/evaluations", json=EXAMPLE_EVALUATION)).json()
    key = (await acme.http.post("/api-keys", json={"name": SECRET_TEXT})).json()
    budget_fields = {"scope": "agent", "subject": agent["id"], "limit_usd": 4321.5, "period": "month"}
    budget = (await acme.http.post("/budgets", json=budget_fields)).json()
    provider_key = await _create_object(acme, "/provider-keys", service="openai", key=f"sk-{SECRET_TEXT}")
    model = await _create_object(acme, "/models", provider="openai", model="gpt-4", api_key_name=SECRET_TEXT)
    tool = await _create_object(
        acme, "/tools", configuration={"api_endpoint": "https://x.example.com", "parameters": {}}
    )
    template = await _create_object(acme, "/templates", template="Text.")
    task = await _create_object(acme, "/tasks", description=SECRET_TEXT)
    crew = await _create_object(acme, "/crews", description=SECRET_TEXT, **CREW_YAML)
    workflow = await _create_object(
        acme, "/workflows", steps=[{"id": "files", "tool": "filesystem_list"}], description=SECRET_TEXT
    )
    secret = await _create_object(acme, "/secrets", name=SECRET_NAME, value=SECRET_TEXT)
    schedule_fields = {"cron_expression": "* * * * *", "enabled": False}
    schedule = await _create_object(
        acme, "/scheduler/schedules", agent_id=agent["id"], inputs={"a": SECRET_TEXT}, **schedule_fields
    )
    answer = await acme.http.put(f"/agents/{agent['id']}/states/{SECRET_TEXT}", json={"value": SECRET_TEXT})
    assert answer.status_code == 200, answer.text
    bulk_operation = await acme.http.post("/executions/bulk", json={"action": "cancel", "ids": [execution["id"]]})
    assert bulk_operation.status_code == 201, bulk_operation.text
    file = (await acme.http.post("/files", files={"file": (SECRET_TEXT, SECRET_TEXT.encode())})).json()
    messages = [{"role": "user", "content": SECRET_TEXT}]
    thread = (await acme.http.post("/threads", json={"messages": messages})).json()
    return {
        "thread_id": thread["id"],
        # A memory is made by a run of a model; `tests/journeys/test_crew_knowledge.py` has one.
        "memory_id": generate_id("mem"),
        "state_name": SECRET_TEXT,
        "file_id": file["id"],
        "operation_id": bulk_operation.json()["id"],
        "agent_id": agent["id"],
        "version": version["id"],
        "execution_id": execution["id"],
        "key_id": key["id"],
        "user_id": acme.account["id"],
        "path": version["tarball_path"],
        "name": SECRET_TEXT,
        "kurral_id": artifact["id"],
        "evaluation_id": evaluation["id"],
        "budget_id": budget["id"],
        "provider_key_id": provider_key["id"],
        "model_id": model["id"],
        "tool_id": tool["id"],
        "tool_name": SECRET_TEXT,
        "template_id": template["id"],
        "task_id": task["id"],
        "crew_id": crew["id"],
        "workflow_id": workflow["id"],
        "schedule_id": schedule["id"],
        "secret_id": secret["id"],
    }


async def _create_object(acme: TenantClient, path: str, **body: Any) -> dict[str, Any]:
    answer = await acme.http.post(path, json={"name": SECRET_TEXT, **body})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def _build_body(document: dict[str, Any], operation: dict[str, Any], acme_objects: dict[str, str]) -> Any:
    content = operation.get("requestBody", {}).get("content", {})
    if "multipart/form-data" in content:
        return {"files": {"file": ("a.tar.gz", pack_archive({"agent.py": ""}))}}
    if operation["operationId"] == "upload_artifact":
        return {"json": {"kurral_id": "the-rival-s-own"}}
    if operation["operationId"] in ("create_evaluation", "upload_metrics", "create_evaluation_batch"):
        evaluation = {"prompt": "a", "response": "b"}
        return {"json": [evaluation] if operation["operationId"] == "create_evaluation_batch" else evaluation}
    if "application/json" not in content:
        return {}
    body_schema = content["application/json"]["schema"]
    # An optional body is one of null and its schema.
    reference = [alternative for alternative in body_schema.get("oneOf", [body_schema]) if "$ref" in alternative][0]
    name = reference["$ref"].rsplit("/", 1)[-1]
    schema = document["components"]["schemas"][name]
    body: dict[str, Any] = {}
    for field in schema.get("required", []):
        field_schema = schema["properties"][field]
        body[field] = (
            acme_objects.get(field)
            or (field_schema.get("examples") or ["x@example.com" if field == "email" else "x"])[0]
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
    if name == "NewSecret":
        body["name"] = "THE_RIVAL_S_OWN"
    if name in ("TargetedExecutionStart", "NewSchedule"):
        body["agent_id"] = acme_objects["agent_id"]
    if name == "NewCrew":
        body |= CREW_YAML
    if name == "NewTask":
        body["description"] = "Read"
    if name == "PatchBudget":
        body["limit_usd"] = 1
    elif name == "PatchSecret":
        body["value"] = "taken-over"
    elif name == "PatchThread":
        body["title"] = "taken-over"
    elif name == "PatchExecution":
        body["run_name"] = "taken-over"
    elif name == "NewBulkOperation":
        body |= {"action": "delete", "ids": [acme_objects["execution_id"]]}
    elif name.startswith("Patch") and name not in ("PatchUser",):
        body["name"] = "taken-over"
    return {"json": body}


def _list_routes(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method.upper(), path, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if path.startswith("/api/v1") and "x-websocket" not in operation
    ]


async def test_no_route_shows_or_changes_objects_of_another_tenant(
    document, acme_objects, acme: TenantClient, other_tenant: TenantClient
) -> None:
    route_count = 0
    for method, path, operation in _list_routes(document):
        for reference_kind in ("id", "name"):
            values = dict(acme_objects)
            if reference_kind == "name":
                values["agent_id"] = values["kurral_id"] = SECRET_TEXT
                values["provider_key_id"] = values["model_id"] = values["tool_id"] = SECRET_TEXT
                values["template_id"] = values["task_id"] = values["crew_id"] = values["workflow_id"] = SECRET_TEXT
                values["schedule_id"] = SECRET_TEXT
                values["secret_id"] = SECRET_NAME
            url = path.removeprefix("/api/v1")
            for parameter, value in values.items():
                url = url.replace("{" + parameter + "}", value)
            assert "{" not in url, f"{path} has a parameter that this test does not know; add it to `acme_objects`"
            if operation["operationId"] in OWN_OPERATIONS | PUBLIC_OPERATIONS:
                continue
            answer = await other_tenant.http.request(method, url, **_build_body(document, operation, values))
            route_count += 1
            own_list = "{" not in path and method == "GET"
            creates = operation["operationId"] in CREATING_OPERATIONS
            refers = operation["operationId"] in REFERRING_OPERATIONS
            expected = (200,) if own_list else (201, 409) if creates else (422,) if refers else (404,)
            assert answer.status_code in expected, (method, url, answer.status_code, answer.text)
            visible_text = answer.text.replace(url, "").replace(json.dumps(values["name"]), "")
            if not creates and answer.status_code == 200:
                assert SECRET_TEXT not in visible_text
            for acme_value in (acme_objects["key_id"], acme_objects["version"], acme.tenant_id, acme.account["email"]):
                # A refusal may repeat only values of the request.
                assert acme_value in url or acme_value not in answer.text, (method, url, answer.text)
    assert route_count > 90
    # Nothing has changed.
    assert (await acme.http.get(f"/agents/{acme_objects['agent_id']}")).json()["name"] == SECRET_TEXT
    assert (await acme.http.get(f"/api-keys/{acme_objects['key_id']}")).json()["is_active"] is True
    assert (await acme.http.get(f"/executions/{acme_objects['execution_id']}")).json()["status"] == "completed"
    assert (await acme.http.get(f"/artifacts/{SECRET_TEXT}")).json()["inputs"] == {"is": SECRET_TEXT}
    assert (await acme.http.get(f"/evaluations/{acme_objects['evaluation_id']}")).json()["response"] == SECRET_TEXT
    assert (await acme.http.get(f"/budgets/{acme_objects['budget_id']}")).json()["limit_usd"] == 4321.5
    operation = (await acme.http.get(f"/executions/bulk/{acme_objects['operation_id']}")).json()
    assert operation["errors"][0]["code"] == "conflict", operation
    for path in ("provider-keys", "models", "tools", "templates", "tasks", "crews", "workflows", "scheduler/schedules"):
        assert (await acme.http.get(f"/{path}/{SECRET_TEXT}")).json()["name"] == SECRET_TEXT
    assert (await acme.http.get(f"/tools/{SECRET_TEXT}")).json()["enabled"] is True
    assert (await acme.http.get(f"/agents/{SECRET_TEXT}/states/{SECRET_TEXT}")).json()["value"] == SECRET_TEXT
    assert (await acme.http.get(f"/files/{acme_objects['file_id']}/content")).text == SECRET_TEXT
    thread = (await acme.http.get(f"/threads/{acme_objects['thread_id']}")).json()
    assert (thread["title"], thread["last_seq"]) == (SECRET_TEXT, 1)
    secret = (await acme.http.get(f"/secrets/{SECRET_NAME}")).json()
    assert secret["updated_at"] == secret["created_at"]


async def test_no_websocket_shows_objects_of_another_tenant(
    document, acme_objects, acme: TenantClient, other_tenant: TenantClient
) -> None:
    route_count = 0
    for path, item in document["paths"].items():
        if "x-websocket" not in item.get("get", {}):
            continue
        route_count += 1
        url = f"{other_tenant.http.base_url}".replace("http", "ws", 1).removesuffix("/api/v1/") + path.format(
            **acme_objects
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
                        assert SECRET_TEXT not in await socket.recv()
            error = caught.value
            if isinstance(error, InvalidStatus):
                # Refused before the handshake, for which ASGI has one status.
                assert error.response.status_code == 403
            else:
                assert error.rcvd is not None
                assert error.rcvd.code == code
    assert route_count == 2


async def test_references_in_bodies_reach_no_other_tenant(acme_objects, other_tenant: TenantClient) -> None:
    own_agent = await other_tenant.deploy_agent("def handle(p): return 1\n")
    for body in ({"agent_id": acme_objects["agent_id"]}, {"agent_id": SECRET_TEXT}):
        assert (await other_tenant.http.post("/executions", json=body)).status_code == 404
    answer = await other_tenant.http.post(
        f"/agents/{own_agent}/execute", json={"agent_version_id": acme_objects["version"]}
    )
    assert answer.status_code == 422
    body = {"thread_id": acme_objects["thread_id"]}
    assert (await other_tenant.http.post(f"/agents/{own_agent}/execute", json=body)).status_code == 404
    listed = (await other_tenant.http.get(f"/executions?thread_id={acme_objects['thread_id']}")).json()
    assert listed["items"] == []
    model = {"name": "mine", "provider": "openai", "model": "gpt-4"}
    tool = {"name": "mine", "configuration": {"api_endpoint": "https://x.example.com", "parameters": {}}}
    for reference in (acme_objects["provider_key_id"], SECRET_TEXT):
        assert (await other_tenant.http.post("/models", json={**model, "api_key_name": reference})).status_code == 422
        secret = {**tool["configuration"], "secrets": {"X-Key": reference}}
        assert (await other_tenant.http.post("/tools", json={**tool, "configuration": secret})).status_code == 422
    for agent_id, task_id in ((acme_objects["agent_id"], acme_objects["task_id"]), (SECRET_TEXT, SECRET_TEXT)):
        crew = {"name": "mine", "tasks_yaml": f"t: {{description: D, agent: {agent_id}}}"}
        for answer in ({}, {"agents": [agent_id]}, {"tasks": [task_id]}):
            assert (await other_tenant.http.post("/crews", json={**crew, **answer})).status_code == 422
        for answer in ({"agent": agent_id}, {"context": [task_id]}):
            assert (
                await other_tenant.http.post("/tasks", json={"name": "mine", "description": "D", **answer})
            ).status_code == 422
    for reference, kind in (
        (acme_objects["workflow_id"], "workflow"),
        (SECRET_TEXT, "workflow"),
        (SECRET_TEXT, "agent"),
    ):
        flow = {"name": "mine", "steps": [{"id": "a", kind: reference}]}
        assert (await other_tenant.http.post("/workflows", json=flow)).status_code == 422
        body = {"scope": "workflow", "subject": reference, "limit_usd": 1, "period": "day"}
        assert (await other_tenant.http.post("/budgets", json=body)).status_code == 422
    assert (await other_tenant.http.get(f"/executions?workflow_id={acme_objects['workflow_id']}")).json()["items"] == []
    for query in (f"agent_id={acme_objects['agent_id']}", f"agent_version_id={acme_objects['version']}"):
        assert (await other_tenant.http.get(f"/executions?{query}")).json()["items"] == []


async def test_a_tenant_filter_reaches_no_other_tenant(
    acme_objects, acme: TenantClient, other_tenant: TenantClient
) -> None:
    for name in ("tenant_id", "group_id"):
        assert (await other_tenant.http.get(f"/executions?{name}={acme.tenant_id}")).json()["items"] == []
        assert (await acme.http.get(f"/executions?{name}={acme.tenant_id}")).json()["total"] == 1


async def test_every_route_requires_credentials(document, acme_objects, acme: TenantClient) -> None:
    async with httpx.AsyncClient(base_url=acme.http.base_url) as anonymous:
        for method, path, operation in _list_routes(document):
            if operation["operationId"] in PUBLIC_OPERATIONS:
                continue
            url = path.removeprefix("/api/v1")
            for parameter, value in acme_objects.items():
                url = url.replace("{" + parameter + "}", value)
            for headers in ({}, {"Authorization": "Bearer nonsense"}, {"X-API-Key": "pdk_nonsense"}):
                answer = await anonymous.request(
                    method, url, headers=headers, **_build_body(document, operation, acme_objects)
                )
                assert answer.status_code == 401, (method, url, headers, answer.text)
                assert answer.json()["error"] == "unauthenticated"


async def test_every_route_requires_its_scope(document, acme_objects, acme: TenantClient) -> None:
    """Refuse a key without scopes on every route but those of its own user."""
    powerless = acme.open_client(await acme.create_key(scopes=[]))
    async with powerless:
        for method, path, operation in _list_routes(document):
            if operation["operationId"] in PUBLIC_OPERATIONS | {"get_me", "get_me_users", "log_out"}:
                continue
            url = path.removeprefix("/api/v1")
            for parameter, value in acme_objects.items():
                url = url.replace("{" + parameter + "}", value)
            answer = await powerless.request(method, url, **_build_body(document, operation, acme_objects))
            assert answer.status_code == 403, (method, url, answer.status_code, answer.text)
            assert answer.json()["error"] == "missing_scope"


async def test_key_with_read_scope_cannot_write(acme_objects, acme: TenantClient) -> None:
    async with acme.open_client(await acme.create_key(scopes=["read:agents"])) as reader:
        assert (await reader.get("/agents")).status_code == 200
        assert (await reader.post("/agents", json={"name": "x"})).status_code == 403
        assert (await reader.get("/executions")).status_code == 403
        assert (await reader.get(f"/logs/{acme_objects['agent_id']}")).status_code == 403


async def test_key_loses_scopes_with_its_owners_role(acme: TenantClient, system) -> None:
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
        login = await web.post("/auth/login", json={"email": "shrinking@example.com", "password": "long enough"})
        assert login.json()["error"] == "invalid_credentials"


def _list_openai_requests(acme_objects: dict[str, str]) -> list[tuple[str, str, dict[str, Any]]]:
    """Return a request for every route below `/v1`, which OpenAI's document describes and ours does not."""
    model, response_id = acme_objects["agent_id"], acme_objects["execution_id"].replace("exec_", "resp_")
    bodies: dict[str, dict[str, Any]] = {
        "complete_chat": {"model": model, "messages": [{"role": "user", "content": "Go"}]},
        "create_response": {"model": model, "input": "Go"},
    }
    values = {"model_id": model, "response_id": response_id, "conversation_id": acme_objects["thread_id"]}
    return [
        (method, route.path_format.format(**values), bodies.get(handler.fn.__name__, {}))
        for route in openai_door.router.routes
        for handler in route.route_handlers
        for method in handler.http_methods
        if method != "OPTIONS"
    ]


async def test_every_route_of_openais_wire_is_for_its_tenant_and_scope(
    acme_objects, acme: TenantClient, other_tenant: TenantClient, system
) -> None:
    requests = _list_openai_requests(acme_objects)
    assert len(requests) > 9
    powerless = acme.open_client(await acme.create_key(scopes=[]))
    async with httpx.AsyncClient(base_url=system.url) as anonymous, powerless:
        for method, path, body in requests:
            answer = await other_tenant.http.request(method, f"{system.url}{path}", json=body)
            expected = 200 if path in ("/v1/models", "/v1/conversations") else 404
            assert answer.status_code == expected, (method, path, answer.text)
            assert SECRET_TEXT not in answer.text
            for headers in ({}, {"Authorization": "Bearer nonsense"}, {"X-API-Key": "pdk_nonsense"}):
                answer = await anonymous.request(method, path, json=body, headers=headers)
                assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key"), path
            answer = await powerless.request(method, f"{system.url}{path}", json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "missing_scope"), path
    foreign_response = acme_objects["execution_id"].replace("exec_", "resp_")
    own_agent = await other_tenant.deploy_agent("def handle(p): return 1\n")
    for reference in ({"previous_response_id": foreign_response}, {"conversation": acme_objects["thread_id"]}):
        body = {"model": own_agent, "input": "Go", **reference}
        answer = await other_tenant.http.post(f"{system.url}/v1/responses", json=body)
        assert answer.status_code in (400, 404), answer.text
    assert (await acme.http.get(f"/threads/{acme_objects['thread_id']}")).json()["last_seq"] == 1


async def test_last_admin_cannot_be_removed(acme: TenantClient) -> None:
    for change in ({"role": "member"}, {"is_active": False}):
        refused = await acme.http.patch(f"/users/{acme.account['id']}", json=change)
        assert refused.status_code == 409


async def test_invitation_is_valid_once_for_one_email(acme: TenantClient, other_tenant: TenantClient) -> None:
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


async def test_only_operators_see_all_queues(acme: TenantClient, system) -> None:
    assert (await acme.http.get("/queues")).json()["workers"] == []
    async with acme.open_client(system.admin_key) as operator:
        seen = (await operator.get("/queues")).json()
    assert {worker["lane"] for worker in seen["workers"]} == {"build", "run", "llm", "plan", "record", "upkeep"}
    assert {lane["lane"] for lane in seen["queues"]} == {"build", "run", "llm", "plan", "record"}
