"""Test upload, build and run with every example of seeds/anymind.md, with the paths and bodies it shows."""

import httpx

from scripts.demo import pack_example
from scripts.system import System

HELLO_ARCHIVE = pack_example("hello")


async def test_upload_build_and_run_as_anymind_shows_them(system: System) -> None:
    async with httpx.AsyncClient(base_url=f"{system.url}/api/v1", timeout=90) as web:
        registered = await web.post(
            "/auth/register",
            json={
                "email": "anymind@example.com",
                "username": "anymind",
                "password": "password",
                "full_name": "Full Name",
            },
        )
        assert registered.status_code == 201
        user = registered.json()
        assert user["email"] == "anymind@example.com"
        assert (user["username"], user["full_name"], user["is_active"]) == ("anymind", "Full Name", True)

        login = await web.post("/auth/login", json={"username": "anymind", "password": "password"})
        assert login.status_code == 200
        assert login.json()["token_type"] == "bearer"
        web.headers["Authorization"] = f"Bearer {login.json()['access_token']}"

        me = await web.get("/auth/me")
        assert me.status_code == 200
        assert me.json()["id"] == user["id"]

        created = await web.post("/api-keys", json={"name": "My CLI Key"})
        assert created.status_code == 201
        key = created.json()
        assert key["key"].startswith(key["key_prefix"])
        assert len(key["key_prefix"]) == 12
        assert key["name"] == "My CLI Key"

        listed = (await web.get("/api-keys")).json()["items"]
        assert [key_item["id"] for key_item in listed] == [key["id"]]
        assert "key" not in listed[0]
        assert listed[0]["is_active"] is True

        async with httpx.AsyncClient(base_url=web.base_url, headers={"X-API-Key": key["key"]}, timeout=90) as cli:
            await _check_agents(cli, user)
            await _check_runs(cli, user)

        assert (await web.delete(f"/api-keys/{key['id']}")).status_code == 204
        refused = await web.get("/agents", headers={"X-API-Key": key["key"]})
        assert refused.status_code == 401
        assert refused.json()["error"] == "unauthenticated"


async def _check_agents(cli: httpx.AsyncClient, user: dict[str, object]) -> None:
    created = await cli.post("/agents", json={"name": "my-agent", "description": "My AI agent"})
    assert created.status_code == 201
    agent = created.json()
    assert (agent["status"], agent["current_version_id"], agent["user_id"]) == ("draft", None, user["id"])

    listed = (await cli.get("/agents?skip=0&limit=100")).json()
    assert [agent_item["id"] for agent_item in listed["items"]] == [agent["id"]]
    assert (listed["total"], listed["has_more"]) == (1, False)
    assert (await cli.get(f"/agents/{agent['id']}")).json() == agent

    changed = await cli.patch(
        f"/agents/{agent['id']}",
        json={"name": "updated-name", "description": "Updated description", "status": "archived"},
    )
    assert changed.status_code == 200
    assert (changed.json()["name"], changed.json()["status"]) == ("updated-name", "archived")
    refused = await cli.post(f"/uploads/agent/{agent['id']}", files={"file": ("a.tar.gz", HELLO_ARCHIVE)})
    assert refused.json()["error"] == "agent_archived"

    assert (await cli.delete(f"/agents/{agent['id']}")).status_code == 204
    assert (await cli.get(f"/agents/{agent['id']}")).status_code == 404


async def _check_runs(cli: httpx.AsyncClient, user: dict[str, object]) -> None:
    agent = (await cli.post("/agents", json={"name": "runner"})).json()
    uploaded = await cli.post(f"/uploads/agent/{agent['id']}", files={"file": ("agent.tar.gz", HELLO_ARCHIVE)})
    assert uploaded.status_code == 201
    version = uploaded.json()
    assert (version["agent_id"], version["version"], version["status"]) == (agent["id"], "v1", "queued")
    assert (version["build_log"], version["entrypoint"], version["config"]) == (None, None, None)

    built = await cli.get(f"/agents/{agent['id']}/versions/v1", headers={"Prefer": "wait=60"})
    assert built.json()["status"] == "ready"
    assert built.json()["entrypoint"] == "hello.main:handle"
    assert "entrypoint: hello.main:handle" in built.json()["config"]
    # The document polls the agent itself until it is ready.
    ready = (await cli.get(f"/agents/{agent['id']}")).json()
    assert (ready["status"], ready["current_version_id"]) == ("ready", version["id"])

    downloaded = await cli.get(f"/uploads/{version['tarball_path']}")
    assert downloaded.content == HELLO_ARCHIVE

    started = await cli.post(
        f"/runtime/{agent['id']}/execute",
        json={"payload": {"input": "Hello, world!"}},
        headers={"Prefer": "wait=30"},
    )
    assert started.status_code == 201
    execution = started.json()
    assert execution["status"] == "completed"
    assert execution["agent_version_id"] == version["id"]
    assert execution["user_id"] == user["id"]
    assert execution["input_data"] == {"input": "Hello, world!"}
    assert execution["output_data"] == {"result": "Hello, Hello, world!!"}
    assert execution["error_message"] is None

    listed = await cli.get(f"/runtime/executions?agent_version_id={version['id']}&skip=0&limit=100")
    assert [execution_item["id"] for execution_item in listed.json()["items"]] == [execution["id"]]
    assert (await cli.get(f"/runtime/executions/{execution['id']}")).json()["output_data"] == execution["output_data"]

    ended = await cli.post(f"/runtime/executions/{execution['id']}/cancel")
    assert ended.status_code == 409

    logs = (await cli.get(f"/logs/{agent['id']}")).json()["items"]
    assert {(entry["source"], entry["level"]) for entry in logs} == {("build", "INFO"), ("runtime", "INFO")}
    build = next(entry for entry in logs if entry["source"] == "build")
    assert build["message"] == "Build completed successfully"
    assert build["metadata"] == {"version_id": version["id"], "version": "v1", "status": "ready"}
    runtime = next(entry for entry in logs if entry["source"] == "runtime")
    assert runtime["metadata"]["execution_id"] == execution["id"]

    lines = (await cli.get(f"/logs/executions/{execution['id']}/logs")).json()["items"]
    assert [entry["metadata"]["status"] for entry in lines][0] == "pending"
    assert [entry["metadata"]["status"] for entry in lines][-1] == "completed"


async def test_cancelling_a_running_execution_returns_cancelled(shared_tenant, system) -> None:
    agent_id = await shared_tenant.deploy_agent("import time\ndef handle(p):\n    time.sleep(30)\n")
    execution = await shared_tenant.start_execution(agent_id)
    cancelled = await shared_tenant.http.post(f"/runtime/executions/{execution['id']}/cancel")
    assert cancelled.status_code == 200
    assert cancelled.json()["status"] == "cancelled"


async def test_health_is_reported_as_anymind_shows_it(system: System) -> None:
    async with httpx.AsyncClient(base_url=system.url) as client:
        answer = await client.get("/health")
    assert answer.status_code == 200
    assert answer.json()["status"] == "healthy"


async def test_common_errors_have_a_detail(acme) -> None:
    missing = await acme.http.get("/agents/agent_01k00000000000000000000000")
    assert missing.status_code == 404
    assert "agent" in missing.json()["detail"]
    agent = await acme.create_agent()
    refused = await acme.upload_archive(agent["id"], b"this is no archive")
    assert refused.status_code == 400
    assert "File must be a .tar.gz archive" in refused.json()["detail"]
    async with httpx.AsyncClient(base_url=acme.http.base_url) as anonymous:
        unauthenticated = await anonymous.get("/agents", headers={"X-API-Key": "pdk_wrong"})
    assert unauthenticated.status_code == 401
    assert unauthenticated.headers["content-type"] == "application/problem+json"
