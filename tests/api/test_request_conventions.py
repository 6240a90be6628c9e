"""Test the conventions of every route: errors, ids, idempotency, waiting, headers, sessions and keys."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from domain.shared.idempotency import IdempotentRequest
from tests.support.clients import TenantClient


@pytest.mark.parametrize(
    ("method", "path", "kwargs", "status", "code", "field"),
    [
        ("GET", "/nothing/here", {}, 404, "not_found", None),
        ("DELETE", "/agents", {}, 405, "method_not_allowed", None),
        (
            "POST",
            "/agents",
            {"content": "{bad", "headers": {"content-type": "application/json"}},
            400,
            "malformed_request",
            None,
        ),
        ("POST", "/agents", {"content": b'{"name": "\xff"}'}, 400, "malformed_request", None),
        ("POST", "/agents", {"content": "[" * 20000 + "]" * 20000}, 400, "malformed_request", None),
        ("POST", "/agents", {"content": ""}, 400, "malformed_request", None),
        ("POST", "/agents", {"json": []}, 422, "invalid_field", "body"),
        ("POST", "/agents", {"json": {}}, 422, "invalid_field", "name"),
        ("POST", "/agents", {"json": {"name": "x", "colour": "red"}}, 422, "invalid_field", "colour"),
        ("POST", "/agents", {"json": {"name": 3}}, 422, "invalid_field", "name"),
        ("POST", "/agents", {"json": {"name": ""}}, 422, "invalid_field", "name"),
        ("POST", "/agents", {"json": {"name": "a\0b"}}, 422, "invalid_field", "name"),
        ("POST", "/agents", {"json": {"name": ".."}}, 422, "invalid_field", "name"),
        ("POST", "/agents", {"json": {"name": "x", "description": "a\0b"}}, 422, "invalid_field", "description"),
        ("GET", "/agents?limit=0", {}, 422, "invalid_field", "limit"),
        ("GET", "/agents?limit=x", {}, 422, "invalid_field", "limit"),
        ("GET", "/agents?colour=red", {}, 422, "invalid_field", "colour"),
        ("GET", "/executions?status=odd", {}, 422, "invalid_field", "status"),
        ("GET", "/executions?since=0001-01-01T00:00:00%2B14:00", {}, 422, "invalid_field", "since"),
        ("GET", "/executions?until=9999-12-31T23:59:59-14:00", {}, 422, "invalid_field", "until"),
        ("GET", "/executions?since=yesterday", {}, 422, "invalid_field", "since"),
        ("GET", "/executions?offset=99999999999999999999", {}, 422, "invalid_field", "offset"),
        ("GET", "/agents/a%00b", {}, 404, "not_found", None),
        ("GET", "/uploads/a%00b", {}, 404, "not_found", None),
        ("GET", "/executions/exec_zzzz", {}, 404, "not_found", None),
        (
            "GET",
            "/executions/exec_01k00000000000000000000000",
            {"headers": {"Prefer": "wait=61"}},
            422,
            "invalid_field",
            "Prefer",
        ),
        (
            "POST",
            "/agents",
            {"json": {"name": "x"}, "headers": {"Idempotency-Key": "x" * 256}},
            422,
            "invalid_field",
            "Idempotency-Key",
        ),
        ("POST", "/auth/login", {"json": {"username": "a\0b", "password": "x"}}, 422, "invalid_field", "username"),
        ("POST", "/auth/login", {"json": {"password": "x"}}, 422, "invalid_field", "username"),
        ("POST", "/auth/register", {"json": {"email": "no", "password": "long enough"}}, 422, "invalid_field", "email"),
        ("POST", "/auth/register", {"json": {"email": "a@b", "password": "short"}}, 422, "invalid_field", "password"),
        (
            "POST",
            "/auth/register",
            {"json": {"email": "a@b", "password": "long enough", "tenant_id": "No!"}},
            422,
            "invalid_field",
            "tenant_id",
        ),
        (
            "POST",
            "/auth/register",
            {"json": {"email": "a@b", "password": "long enough", "tenant_id": "default"}},
            403,
            "invitation_required",
            None,
        ),
        ("POST", "/auth/refresh", {"json": {"refresh_token": "x"}}, 401, "unauthenticated", None),
        ("POST", "/api-keys", {"json": {"name": "x", "scopes": ["fly"]}}, 422, "invalid_field", "scopes"),
        (
            "POST",
            "/api-keys",
            {"json": {"name": "x", "expires_at": "2001-01-01T00:00:00Z"}},
            422,
            "invalid_field",
            "expires_at",
        ),
        (
            "POST",
            "/api-keys",
            {"json": {"name": "x", "expires_at": "9999-12-31T23:59:59-14:00"}},
            422,
            "invalid_field",
            "expires_at",
        ),
    ],
)
async def test_invalid_request_gets_its_problem(acme: TenantClient, method, path, kwargs, status, code, field) -> None:
    answer = await acme.http.request(method, path, **kwargs)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert (body["error"], body["status"]) == (code, status)
    assert body["type"] == f"urn:paddock:error:{code}"
    assert body["detail"]
    assert body["title"]
    assert body["request_id"] == answer.headers["x-request-id"]
    assert body["instance"] == answer.request.url.path.split("%")[0] or "%" in str(answer.request.url)
    if field is not None:
        assert field in [error["field"] for error in body["errors"]], body


async def test_body_over_100_mib_is_too_large(acme: TenantClient) -> None:
    answer = await acme.http.post("/executions", content=b"{" + b" " * (100 << 20))
    assert answer.status_code == 413
    assert answer.json()["error"] == "body_too_large"


async def test_archive_over_the_limit_is_refused_while_streaming(acme: TenantClient) -> None:
    agent = await acme.create_agent()
    answer = await acme.upload_archive(agent["id"], b"\x1f\x8b" + b"x" * (100 << 20))
    assert answer.status_code == 413
    assert answer.json()["error"] == "archive_too_large"
    assert (await acme.http.get(f"/agents/{agent['id']}/versions")).json()["total"] == 0


async def test_invalid_start_is_refused_by_field(shared_tenant: TenantClient) -> None:
    deep: Any = {}
    for _ in range(200):
        deep = {"a": deep}
    for body, field in (
        ({"payload": deep}, "payload"),
        ({"payload": [1]}, "payload"),
        ({"payload": {}, "inputs": {}}, "inputs"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": 999_999}, "timeout"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"agent_version_id": "ver_x"}, "agent_version_id"),
        ({"mode": "safe"}, "mode"),
    ):
        answer = await shared_tenant.http.post("/agents/hello/execute", json=body)
        assert answer.status_code == 422, answer.text
        assert answer.json()["errors"][0]["field"] == field


async def test_every_field_of_a_start_has_an_effect(shared_tenant: TenantClient) -> None:
    echo = await shared_tenant.deploy_agent(
        "def handle(p): return p\n", "name: e\nentrypoint: agent:handle\ntimeout: 7\n"
    )
    assert (await shared_tenant.run_agent(echo))["timeout"] == 7
    answer = await shared_tenant.http.post(
        f"/agents/{echo}/execute", json={"task": "t", "inputs": {"a": 1}, "timeout": 9, "max_attempts": 2}
    )
    started = answer.json()
    assert (started["timeout"], started["max_attempts"], started["input_data"]) == (9, 2, {"a": 1, "task": "t"})
    second_run = (await shared_tenant.http.post("/executions", json={"agent_id": echo, "payload": {"b": 2}})).json()
    assert (await shared_tenant.wait_for_end(second_run["id"]))["result"] == {"b": 2}
    retried = await shared_tenant.http.post(f"/executions/{second_run['id']}/retry", headers={"Prefer": "wait=30"})
    assert retried.status_code == 201
    assert (retried.json()["retry_of"], retried.json()["output_data"]) == (second_run["id"], {"b": 2})


async def test_versions_can_be_selected_and_activated(shared_tenant: TenantClient) -> None:
    from tests.support.clients import pack_archive

    agent_id = await shared_tenant.deploy_agent("def handle(p): return 1\n")
    second = await shared_tenant.build_version(agent_id, pack_archive({"agent.py": "def handle(p): return 2\n"}))
    assert (await shared_tenant.run_agent(agent_id))["output_data"] == 2
    versions = (await shared_tenant.http.get(f"/agents/{agent_id}/versions")).json()["items"]
    assert [version["version"] for version in versions] == ["v2", "v1"]
    run = await shared_tenant.run_agent(agent_id, agent_version_id=versions[1]["id"])
    assert run["output_data"] == 1
    assert (await shared_tenant.http.post(f"/agents/{agent_id}/versions/v1/activate")).json()["version"] == "v1"
    assert (await shared_tenant.run_agent(agent_id))["output_data"] == 1
    assert (await shared_tenant.http.get(f"/agents/{agent_id}/versions/2")).json()["id"] == second["id"]


async def test_deleting_an_agent_cancels_its_executions_and_frees_its_name(shared_tenant: TenantClient) -> None:
    agent_id = await shared_tenant.deploy_agent("import time\ndef handle(p): time.sleep(60)\n")
    execution = await shared_tenant.start_execution(agent_id)
    name = (await shared_tenant.http.get(f"/agents/{agent_id}")).json()["name"]
    assert (await shared_tenant.http.delete(f"/agents/{agent_id}")).status_code == 204
    assert (await shared_tenant.wait_for_end(execution["id"]))["error_message"] == "The agent was deleted."
    assert (await shared_tenant.http.post("/agents", json={"name": name})).status_code == 201


async def test_cancel_kills_the_process_tree(shared_tenant: TenantClient) -> None:
    agent_id = await shared_tenant.deploy_agent(
        "import time, os, ctypes\ndef handle(p):\n    os.fork()\n    ctypes.CDLL(None).prctl(15, b'pdk-cancel-me')\n    time.sleep(60)\n"
    )
    execution = await shared_tenant.start_execution(agent_id, timeout=90)

    def list_alive_processes() -> list[str]:
        process_ids = []
        for path in Path("/proc").glob("[0-9]*/comm"):
            try:
                if path.read_text().strip() == "pdk-cancel-me":
                    process_ids.append(path.parent.name)
            except OSError:
                continue
        return process_ids

    for _ in range(100):
        if len(list_alive_processes()) == 2:
            break
        await asyncio.sleep(0.05)
    assert len(list_alive_processes()) == 2
    assert (await shared_tenant.http.post(f"/executions/{execution['id']}/cancel")).status_code == 200
    loop = asyncio.get_running_loop()
    began = loop.time()
    while list_alive_processes():
        assert loop.time() - began < 10
        await asyncio.sleep(0.02)
    repeated = await shared_tenant.http.post(f"/executions/{execution['id']}/cancel")
    assert (repeated.status_code, repeated.json()["status"]) == (200, "cancelled")


async def test_idempotency_key_starts_one_execution(shared_tenant: TenantClient) -> None:
    key = {"Idempotency-Key": "once"}
    body = {"payload": {"name": "once"}}
    answers = await asyncio.gather(
        *(shared_tenant.http.post("/agents/hello/execute", json=body, headers=key) for _ in range(8))
    )
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum(answer.headers.get("Idempotency-Replayed") == "true" for answer in answers) == 7
    conflict = await shared_tenant.http.post("/agents/hello/execute", json={"payload": {"name": "two"}}, headers=key)
    assert (conflict.status_code, conflict.json()["error"]) == (409, "idempotency_conflict")
    waited = await shared_tenant.http.post("/agents/hello/execute", json=body, headers={**key, "Prefer": "wait=30"})
    assert waited.headers["Idempotency-Replayed"] == "true"
    assert waited.json()["status"] == "completed"


async def test_failed_request_does_not_use_up_its_idempotency_key(acme: TenantClient) -> None:
    key = {"Idempotency-Key": "later"}
    assert (await acme.http.post("/executions", json={"agent_id": "later"}, headers=key)).status_code == 404
    assert (await acme.http.post("/agents", json={"name": "later"}, headers=key)).status_code == 201


async def test_key_creation_and_uploads_are_idempotent(acme: TenantClient, resources) -> None:
    first = await acme.http.post("/api-keys", json={"name": "k"}, headers={"Idempotency-Key": "k1"})
    second = await acme.http.post("/api-keys", json={"name": "k"}, headers={"Idempotency-Key": "k1"})
    assert first.json()["key"] == second.json()["key"]
    async with resources.store.tenant_transaction(acme.tenant_id) as tx:
        claim = IdempotentRequest(owner=acme.account["id"], key="k1", fingerprint=b"")
        (stored_answer,) = (await tx.idempotency.claim_keys([claim], tx.now)).values()
    assert first.json()["key"].encode() not in stored_answer.body
    agent = await acme.create_agent()
    from scripts.demo import pack_example

    files = {"file": ("a.tar.gz", pack_example("hello"))}
    path = f"/uploads/agent/{agent['id']}"
    uploads = [await acme.http.post(path, files=files, headers={"Idempotency-Key": "u1"}) for _ in range(2)]
    assert uploads[0].json()["id"] == uploads[1].json()["id"]
    objects = [blob.key async for blob in resources.blobs.list_objects(f"uploads/{acme.tenant_id}/")]
    assert objects == [uploads[0].json()["tarball_path"]]


async def test_refresh_tokens_rotate_and_reuse_ends_the_session(acme: TenantClient) -> None:
    async with httpx.AsyncClient(base_url=acme.http.base_url) as web:
        login = {"email": acme.account["email"], "password": acme.password}
        tokens = (await web.post("/auth/login", json=login)).json()
        second = (await web.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]})).json()
        assert second["refresh_token"] != tokens["refresh_token"]
        bearer = {"Authorization": f"Bearer {second['access_token']}"}
        assert (await web.get("/auth/me", headers=bearer)).status_code == 200
        reused = await web.post("/auth/refresh", json={"refresh_token": tokens["refresh_token"]})
        assert (reused.status_code, reused.json()["error"]) == (401, "refresh_token_reused")
        assert (await web.get("/auth/me", headers=bearer)).status_code == 401
        assert (await web.post("/auth/refresh", json={"refresh_token": second["refresh_token"]})).status_code == 401
        # Another session of the same user is untouched, until it logs out.
        assert (await acme.http.get("/auth/me")).status_code == 200
        assert (await acme.http.post("/auth/logout")).status_code == 204
        assert (await acme.http.get("/auth/me")).status_code == 401


async def test_changing_the_password_requires_the_old_one(acme: TenantClient) -> None:
    wrong = await acme.http.patch("/users/me", json={"password": "another long one", "current_password": "no"})
    assert wrong.json()["errors"][0]["field"] == "current_password"
    right = await acme.http.patch("/users/me", json={"password": "another long one", "current_password": acme.password})
    assert right.status_code == 200
    async with httpx.AsyncClient(base_url=acme.http.base_url) as web:
        old = await web.post("/auth/login", json={"email": acme.account["email"], "password": acme.password})
        assert old.status_code == 401
        new = await web.post("/auth/login", json={"email": acme.account["email"], "password": "another long one"})
        assert new.status_code == 200


async def test_key_usage_is_counted(acme: TenantClient) -> None:
    created = (await acme.http.post("/api-keys", json={"name": "counted"})).json()
    async with acme.open_client(created["key"]) as client:
        for _ in range(5):
            await client.get("/agents")
    for _ in range(100):
        key = (await acme.http.get(f"/api-keys/{created['id']}")).json()
        if key["usage_count"] == 5:
            break
        await asyncio.sleep(0.1)
    assert key["usage_count"] == 5
    assert key["last_used_at"] is not None


async def test_rate_limit_of_a_key_is_enforced(acme: TenantClient) -> None:
    async with acme.open_client(await acme.create_key(rate_limit_per_minute=3)) as client:
        answers = [await client.get("/agents") for _ in range(8)]
        refused = [answer for answer in answers if answer.status_code == 429]
        # Eight requests fall into at most two minutes.
        assert 2 <= len(refused) <= 5
        assert refused[0].json()["error"] == "rate_limit_exceeded"
        assert refused[0].json()["retry_after"] >= 1
        assert refused[0].headers["X-RateLimit-Limit"] == "3"
        assert refused[0].headers["Retry-After"]


async def test_every_answer_has_request_id_and_rate_limit_headers(acme: TenantClient) -> None:
    for path in ("/agents", "/nothing", "/agents/none"):
        answer = await acme.http.get(path, headers={"X-Request-ID": "mine-1"})
        assert answer.headers["x-request-id"] == "mine-1"
        for name in ("limit", "remaining", "reset"):
            assert answer.headers[f"x-ratelimit-{name}"].isdigit()
    odd = await acme.http.get("/agents", headers={"X-Request-ID": "x" * 500})
    assert odd.headers["x-request-id"].startswith("req_")


async def test_cors_head_and_options_requests(acme: TenantClient) -> None:
    origin = {"Origin": "http://localhost:3000"}
    preflight = await acme.http.options("/agents", headers={**origin, "Access-Control-Request-Method": "POST"})
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == origin["Origin"]
    refused = await acme.http.get("/agents/none", headers=origin)
    assert refused.headers["access-control-allow-origin"] == origin["Origin"]
    assert (
        "access-control-allow-origin"
        not in (await acme.http.get("/agents", headers={"Origin": "http://evil.test"})).headers
    )
    head = await acme.http.head("/agents")
    assert (head.status_code, head.content) == (200, b"")
    assert (await acme.http.options("/agents")).status_code == 204


async def test_list_pages_need_a_constant_number_of_statements(resources, shared_tenant: TenantClient) -> None:
    """Ensure that the number of statements of a list does not depend on its rows."""
    from sqlalchemy import event

    engine, counts = resources.store._engine.sync_engine, []

    def count_statement(*_: Any) -> None:
        counts.append(1)

    from domain.agents import AgentFilter
    from domain.executions import ExecutionFilter
    from domain.shared import ids
    from domain.shared.pages import Page

    event.listen(engine, "before_cursor_execute", count_statement)
    try:
        for limit in (1, 5):
            counts.clear()
            async with resources.store.tenant_transaction(shared_tenant.tenant_id) as tx:
                await tx.executions.list_page(ExecutionFilter(), Page(limit=limit))
                await tx.agents.list_page(Page(limit=limit), AgentFilter())
                await tx.schedules.list_page(Page(limit=limit), None)
                await tx.schedules.list_runs(ids.generate_id("sched"), Page(limit=limit), None)
            assert len(counts) <= 1 + 2 + 2 + 2 + 2
    finally:
        event.remove(engine, "before_cursor_execute", count_statement)
