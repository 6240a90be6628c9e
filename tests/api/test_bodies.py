"""What bodies may hold, what is said of all that is wrong with them, and what every answer carries."""

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

JSON = {"Content-Type": "application/json"}
DOORS = (
    "/agents/hello/execute",
    "/executions",
    "/evaluations",
    "/evaluations/batch",
    "/workflows",
    "/tools",
    "/api-keys",
)


@pytest.mark.parametrize("name", ["empty lists", "keys", "nested", "an integer"])
async def test_a_body_of_small_values_is_refused_at_every_door(shared_tenant: TenantClient, name: str) -> None:
    content = ADVERSARIAL_JSON[name][0][: (4 << 20) - 100]
    for path in DOORS:
        for body in (content, b'{"payload": ' + content + b"}"):
            answer = await shared_tenant.http.post(path, content=body, headers=JSON)
            # A batch may hold more, and says which of its fields is none; workflows have a bound of their own.
            refused = {"/evaluations/batch": {400, 422}, "/workflows": {413}}.get(path, {400})
            assert answer.status_code in refused, (path, answer.text)


async def test_a_message_of_small_values_is_refused_over_a_websocket(shared_tenant: TenantClient) -> None:
    token = shared_tenant.http.headers["Authorization"].removeprefix("Bearer ")
    url = str(shared_tenant.http.base_url).replace("http://", "ws://") + f"agents/hello/stream?access_token={token}"
    async with websockets.connect(url, max_size=None) as socket:
        await socket.send('{"payload": {"a": [' + "[]," * 400_000 + "1]}}")
        told = json.loads(await socket.recv())
        assert (told["type"], told["error"]) == ("error", "invalid_field")
        assert "250000 values" in told["detail"]


async def test_large_bodies_are_read_beside_the_loop_and_one_at_a_time() -> None:
    threads: list[str] = []

    def read() -> str:
        threads.append(threading.current_thread().name)
        return "read"

    assert await bodies.run_off_loop(64 * 1024, read) == "read"
    here = threading.current_thread().name
    assert await asyncio.gather(*(bodies.run_off_loop(64 * 1024 + 1, read) for _ in range(8))) == ["read"] * 8
    assert threads[0] == here
    assert {name.rpartition("_")[0] for name in threads[1:]} == {"bodies"}
    assert len(set(threads[1:])) == 1


async def test_a_large_body_is_taken(shared_tenant: TenantClient) -> None:
    payload = {"name": "x", "numbers": list(range(100_000)), "text": "[{:," * 100_000}
    answer = await shared_tenant.http.post("/agents/hello/execute", json={"payload": payload})
    assert answer.status_code == 201, answer.text
    assert answer.json()["input_data"] == payload


async def test_a_result_of_small_values_is_none(shared_tenant: TenantClient) -> None:
    many = await shared_tenant.deploy_agent("def handle(p): return [[] for _ in range(260_000)]\n")
    run = await shared_tenant.run_agent(many)
    assert (run["status"], run["error_type"]) == ("failed", "result_not_json")
    assert "250000 values" in run["error_message"]


async def test_all_wrong_fields_are_named_at_once(shared_tenant: TenantClient) -> None:
    body = {"input": {}, "timeout": "soon", "max_attempts": 99, "modle": "x", "mode": "wild", "payload": []}
    answer = await shared_tenant.http.post("/agents/hello/execute", json=body)
    assert answer.status_code == 422
    told = {one["field"]: one["message"] for one in answer.json()["errors"]}
    assert set(told) == set(body)
    assert told["input"] == "is not a field here; did you mean `payload`?"
    assert told["mode"] == "must be one of 'safe', 'sandbox', 'yolo', not 'wild'."
    assert told["modle"] == "is not a field here; did you mean `mode`?"
    for one in told:
        assert one in answer.json()["detail"]
    nested = {"name": "f", "steps": [{"id": "a", "agent": 1, "retry": {"at_most": 9}}, {"name": "b"}], "status": "odd"}
    answer = await shared_tenant.http.post("/workflows", json=nested)
    told = {one["field"]: one["message"] for one in answer.json()["errors"]}
    assert {"steps[0].agent", "steps[1].id", "status"} <= set(told)
    assert "must be one of" in told["status"]
    answer = await shared_tenant.http.post(
        "/evaluations/batch", json=[{"prompt": 1}, {"prompt": "p", "response": 2, "x": 3}]
    )
    told = {one["field"] for one in answer.json()["errors"]}
    assert told == {"evaluations[0].prompt", "evaluations[0].response", "evaluations[1].response", "evaluations[1].x"}


async def test_a_query_s_word_names_the_words_there_are(shared_tenant: TenantClient) -> None:
    answer = await shared_tenant.http.get("/executions", params={"status": "done", "kind": "robot"})
    told = {one["field"]: one["message"] for one in answer.json()["errors"]}
    assert "'completed'" in told["status"]
    assert "not 'done'" in told["status"]
    assert "'crew'" in told["kind"]


def test_bodies_are_decoded_as_their_type() -> None:
    assert bodies.decode_body(b'{"timeout": "30"}', ExecutionStart).timeout == 30
    for body, code, why in (
        (b"[1]", "invalid_field", "Expected `object`"),
        (b"null", "malformed_request", "must be a JSON object"),
        (b"{", "malformed_request", "is not JSON"),
        (b"", "malformed_request", "is not JSON"),
        (b'{"payload": ' + b"9" * 5000 + b"}", "malformed_request", "cannot be read"),
        (b"[" * 600 + b"]" * 600, "malformed_request", "nests deeper"),
        (b"[" * 400 + b"]" * 400, "invalid_field", "Expected `object`"),
    ):
        with pytest.raises(DomainError, match=why) as error:
            bodies.decode_body(body, ExecutionStart)
        assert error.value.code == code, body[:20]


async def test_json_ends_in_a_line_break_on_a_terminal(acme: TenantClient, system) -> None:
    for path in ("/auth/me", "/agents", "/agents/nobody"):
        plain = await acme.http.get(path)
        shown = await acme.http.get(path, headers={"User-Agent": "curl/8.5.0"})
        assert not plain.content.endswith(b"\n")
        assert shown.content.endswith(b"}\n")
        assert int(shown.headers["content-length"]) == len(shown.content)
        head = await acme.http.head(path, headers={"User-Agent": "curl/8.5.0"})
        assert head.content == b""
    made = await acme.http.post("/agents", json={"name": "x"}, headers={"User-Agent": "curl/8.5.0"})
    assert made.status_code == 201
    gone = await acme.http.delete(f"/agents/{made.json()['id']}", headers={"User-Agent": "curl/8.5.0"})
    assert (gone.status_code, gone.content) == (204, b"")
    async with httpx.AsyncClient(base_url=system.url, headers={"User-Agent": "curl/8.5.0"}) as client:
        assert (await client.get("/docs")).text.endswith("</html>\n")
        assert (await client.get("/metrics")).status_code == 200


async def test_every_answer_has_a_policy_and_one_charset_at_most(acme: TenantClient, system) -> None:
    async with httpx.AsyncClient(base_url=system.url, headers=acme.http.headers) as client:
        for path in (
            *("/", "/docs", "/redoc", "/openapi.json", "/docs/assets/docs.js", "/health", "/metrics", "/nowhere"),
            *("/api/v1/auth/me", "/api/v1/agents/nobody", "/api/v1/evaluations/export", "/api/v1/artifacts/export"),
            "/api/v1/evaluations/export?format=jsonl",
        ):
            answer = await client.get(path)
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"], path
            assert answer.headers.get_list("content-security-policy", split_commas=False).__len__() == 1, path
            assert answer.headers["x-content-type-options"] == "nosniff", path
            assert answer.headers["content-type"].count("charset") <= 1, (path, answer.headers["content-type"])


async def test_websockets_that_end_well_are_no_errors_in_the_metrics(shared_tenant: TenantClient, system) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    async def counted() -> dict[str, float]:
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
    before = await counted()
    async with websockets.connect(f"{base}execution-logs/{run['id']}/stream?access_token={token}") as socket:
        async for message in socket:
            last: dict[str, Any] = msgspec.json.decode(message)
    assert last["status"] == "completed"
    # One that its client leaves, once it has what it wants.
    async with websockets.connect(f"{base}agents/hello/stream?access_token={token}") as socket:
        await socket.send('{"payload": {"name": "Ada"}}')
        while msgspec.json.decode(await socket.recv())["type"] != "complete":
            pass
    for _ in range(200):
        after = await counted()
        if after.get("1000", 0) - before.get("1000", 0) >= 2:
            break
        await asyncio.sleep(0.05)
    assert after.get("1000", 0) - before.get("1000", 0) >= 2, (before, after)
    assert after.get("500") == before.get("500")


def test_files_of_json_stay_as_they_are_on_a_terminal() -> None:
    shown = [(b"content-type", b"application/json"), (b"content-length", b"2")]
    file = [*shown, (b"Content-Disposition", b"attachment"), (b"ETag", b'"x"')]
    assert not middleware._reserve_line_end(file)
    assert file[1] == (b"content-length", b"2")
    assert middleware._reserve_line_end(shown)
    assert shown[1] == (b"content-length", b"3")
