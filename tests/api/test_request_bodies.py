"""Test the limits and errors of request bodies, and the headers of every answer."""

import asyncio
import json
import threading
from typing import Any

import httpx
import msgspec
import pytest
import websockets

from api import bodies, middleware
from domain.executions import ExecutionStart
from domain.shared.errors import DomainError
from tests.domain.test_json_limits import ADVERSARIAL_JSON
from tests.support.clients import TenantClient

JSON_HEADERS = {"Content-Type": "application/json"}
BODY_ROUTES = (
    "/agents/hello/execute",
    "/executions",
    "/evaluations",
    "/evaluations/batch",
    "/workflows",
    "/tools",
    "/api-keys",
)


@pytest.mark.parametrize("name", ["empty lists", "keys", "nested", "an integer"])
async def test_body_with_too_many_values_is_refused_on_every_route(shared_tenant: TenantClient, name: str) -> None:
    content = ADVERSARIAL_JSON[name][0][: (4 << 20) - 100]
    for path in BODY_ROUTES:
        for body in (content, b'{"payload": ' + content + b"}"):
            answer = await shared_tenant.http.post(path, content=body, headers=JSON_HEADERS)
            # A batch may hold more and names its invalid field; workflows have their own limit.
            refused = {"/evaluations/batch": {400, 422}, "/workflows": {413}}.get(path, {400})
            assert answer.status_code in refused, (path, answer.text)


async def test_websocket_message_with_too_many_values_is_refused(shared_tenant: TenantClient) -> None:
    token = shared_tenant.http.headers["Authorization"].removeprefix("Bearer ")
    url = str(shared_tenant.http.base_url).replace("http://", "ws://") + f"agents/hello/stream?access_token={token}"
    async with websockets.connect(url, max_size=None) as socket:
        await socket.send('{"payload": {"a": [' + "[]," * 400_000 + "1]}}")
        message = json.loads(await socket.recv())
        assert (message["type"], message["error"]) == ("error", "invalid_field")
        assert "250000 values" in message["detail"]


async def test_large_bodies_are_decoded_in_one_background_thread() -> None:
    threads: list[str] = []

    def read_body() -> str:
        threads.append(threading.current_thread().name)
        return "read"

    assert await bodies.run_off_loop(64 * 1024, read_body) == "read"
    own_thread = threading.current_thread().name
    assert await asyncio.gather(*(bodies.run_off_loop(64 * 1024 + 1, read_body) for _ in range(8))) == ["read"] * 8
    assert threads[0] == own_thread
    assert {name.rpartition("_")[0] for name in threads[1:]} == {"bodies"}
    assert len(set(threads[1:])) == 1


async def test_large_body_is_accepted(shared_tenant: TenantClient) -> None:
    payload = {"name": "x", "numbers": list(range(100_000)), "text": "[{:," * 100_000}
    answer = await shared_tenant.http.post("/agents/hello/execute", json={"payload": payload})
    assert answer.status_code == 201, answer.text
    assert answer.json()["input_data"] == payload


async def test_result_with_too_many_values_is_an_error(shared_tenant: TenantClient) -> None:
    agent_id = await shared_tenant.deploy_agent("def handle(p): return [[] for _ in range(260_000)]\n")
    run = await shared_tenant.run_agent(agent_id)
    assert (run["status"], run["error_type"]) == ("failed", "result_not_json")
    assert "250000 values" in run["error_message"]


async def test_all_invalid_fields_are_reported_together(shared_tenant: TenantClient) -> None:
    body = {"input": {}, "timeout": "soon", "max_attempts": 99, "modle": "x", "mode": "wild", "payload": [], "ttl": 5}
    answer = await shared_tenant.http.post("/agents/hello/execute", json=body)
    assert answer.status_code == 422
    messages = {name["field"]: name["message"] for name in answer.json()["errors"]}
    assert set(messages) == set(body)
    assert messages["input"] == "is not a field here; did you mean `payload`?"
    assert messages["ttl"] == "is not a field here; did you mean `expires_in`?"
    assert messages["mode"] == "must be one of 'safe', 'sandbox', 'yolo', not 'wild'."
    assert messages["modle"] == "is not a field here; did you mean `mode`?"
    for name in messages:
        assert name in answer.json()["detail"]
    workflow = {
        "name": "f",
        "steps": [{"id": "a", "agent": 1, "retry": {"at_most": 9}}, {"name": "b"}],
        "status": "odd",
    }
    answer = await shared_tenant.http.post("/workflows", json=workflow)
    messages = {name["field"]: name["message"] for name in answer.json()["errors"]}
    assert {"steps[0].agent", "steps[1].id", "status"} <= set(messages)
    assert "must be one of" in messages["status"]
    answer = await shared_tenant.http.post(
        "/evaluations/batch", json=[{"prompt": 1}, {"prompt": "p", "response": 2, "x": 3}]
    )
    messages = {name["field"] for name in answer.json()["errors"]}
    assert messages == {
        "evaluations[0].prompt",
        "evaluations[0].response",
        "evaluations[1].response",
        "evaluations[1].x",
    }


async def test_invalid_query_value_lists_the_allowed_values(shared_tenant: TenantClient) -> None:
    answer = await shared_tenant.http.get("/executions", params={"status": "done", "kind": "robot"})
    messages = {error["field"]: error["message"] for error in answer.json()["errors"]}
    assert "'completed'" in messages["status"]
    assert "not 'done'" in messages["status"]
    assert "'crew'" in messages["kind"]


def test_bodies_are_decoded_by_type() -> None:
    assert bodies.decode_body(b'{"timeout": "30"}', ExecutionStart).timeout == 30
    for body, code, message in (
        (b"[1]", "invalid_field", "Expected `object`"),
        (b"null", "malformed_request", "must be a JSON object"),
        (b"{", "malformed_request", "is not JSON"),
        (b"", "malformed_request", "is not JSON"),
        (b'{"payload": ' + b"9" * 5000 + b"}", "malformed_request", "cannot be read"),
        (b"[" * 600 + b"]" * 600, "malformed_request", "nests deeper"),
        (b"[" * 400 + b"]" * 400, "invalid_field", "Expected `object`"),
    ):
        with pytest.raises(DomainError, match=message) as error:
            bodies.decode_body(body, ExecutionStart)
        assert error.value.code == code, body[:20]


async def test_json_ends_with_a_line_break_for_curl(acme: TenantClient, system) -> None:
    for path in ("/auth/me", "/agents", "/agents/unknown"):
        plain = await acme.http.get(path)
        curl_answer = await acme.http.get(path, headers={"User-Agent": "curl/8.5.0"})
        assert not plain.content.endswith(b"\n")
        assert curl_answer.content.endswith(b"}\n")
        assert int(curl_answer.headers["content-length"]) == len(curl_answer.content)
        head = await acme.http.head(path, headers={"User-Agent": "curl/8.5.0"})
        assert head.content == b""
    created = await acme.http.post("/agents", json={"name": "x"}, headers={"User-Agent": "curl/8.5.0"})
    assert created.status_code == 201
    deleted = await acme.http.delete(f"/agents/{created.json()['id']}", headers={"User-Agent": "curl/8.5.0"})
    assert (deleted.status_code, deleted.content) == (204, b"")
    async with httpx.AsyncClient(base_url=system.url, headers={"User-Agent": "curl/8.5.0"}) as client:
        assert (await client.get("/docs")).text.endswith("</html>\n")
        assert (await client.get("/metrics")).status_code == 200


async def test_every_answer_has_a_security_policy_and_at_most_one_charset(acme: TenantClient, system) -> None:
    async with httpx.AsyncClient(base_url=system.url, headers=acme.http.headers) as client:
        for path in (
            *("/", "/docs", "/redoc", "/openapi.json", "/docs/assets/docs.js", "/health", "/metrics", "/nowhere"),
            *("/api/v1/auth/me", "/api/v1/agents/unknown", "/api/v1/evaluations/export", "/api/v1/artifacts/export"),
            "/api/v1/evaluations/export?format=jsonl",
        ):
            answer = await client.get(path)
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"], path
            assert answer.headers.get_list("content-security-policy", split_commas=False).__len__() == 1, path
            assert answer.headers["x-content-type-options"] == "nosniff", path
            assert answer.headers["content-type"].count("charset") <= 1, (path, answer.headers["content-type"])


async def test_closed_websockets_are_not_counted_as_errors(shared_tenant: TenantClient, system) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    async def count_websockets() -> dict[str, float]:
        async with httpx.AsyncClient(base_url=system.url) as client:
            text = (await client.get("/metrics")).text
        counts: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == "paddock_requests_total" and sample.labels["method"] == "WS":
                    counts[sample.labels["status"]] = counts.get(sample.labels["status"], 0) + sample.value
        return counts

    run = await shared_tenant.run_agent("hello", {"name": "Ada"})
    token = shared_tenant.http.headers["Authorization"].removeprefix("Bearer ")
    base = str(shared_tenant.http.base_url).replace("http://", "ws://")
    before = await count_websockets()
    async with websockets.connect(f"{base}execution-logs/{run['id']}/stream?access_token={token}") as socket:
        async for message in socket:
            last: dict[str, Any] = msgspec.json.decode(message)
    assert last["status"] == "completed"
    # The client closes this one after it received the result.
    async with websockets.connect(f"{base}agents/hello/stream?access_token={token}") as socket:
        await socket.send('{"payload": {"name": "Ada"}}')
        while msgspec.json.decode(await socket.recv())["type"] != "complete":
            pass
    for _ in range(200):
        after = await count_websockets()
        if after.get("1000", 0) - before.get("1000", 0) >= 2:
            break
        await asyncio.sleep(0.05)
    assert after.get("1000", 0) - before.get("1000", 0) >= 2, (before, after)
    assert after.get("500") == before.get("500")


def test_json_files_get_no_line_break() -> None:
    page_headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
    file_headers = [*page_headers, (b"Content-Disposition", b"attachment"), (b"ETag", b'"x"')]
    assert not middleware._reserve_line_end(file_headers)
    assert file_headers[1] == (b"content-length", b"2")
    assert middleware._reserve_line_end(page_headers)
    assert page_headers[1] == (b"content-length", b"3")
