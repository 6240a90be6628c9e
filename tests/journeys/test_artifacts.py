"""Test artifacts: every example of seeds/kurral.md, Kurral's own client, search, bodies and deletion."""

import json
import re
from collections import Counter
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest

from domain.artifacts import service
from domain.shared.errors import DomainError
from infra.compression import decompress_stream
from infra.wiring import Resources
from scripts.system import System
from tests.support.clients import TenantClient, wait_for_result

KURRAL_ARTIFACT: dict[str, Any] = json.loads((Path(__file__).parent / "kurral_artifact.json").read_bytes())
_TIME_PATTERN = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z?")
TEMPERATURE_ONLY = {"temperature": 0.7}


def build_artifact(**changes: Any) -> dict[str, Any]:
    """Return Kurral's artifact with a new id, created now; times have no offset, as Kurral writes them."""
    now = datetime.now(UTC).replace(tzinfo=None).isoformat()
    fields = {**KURRAL_ARTIFACT, "kurral_id": str(uuid4()), "created_at": now, **changes}
    return {name: value for name, value in fields.items() if value is not ...}


def normalize_times(value: Any) -> Any:
    """Return a value with all times in one spelling."""
    if isinstance(value, dict):
        return {name: normalize_times(item) for name, item in value.items()}
    if isinstance(value, list):
        return [normalize_times(item) for item in value]
    if isinstance(value, str) and _TIME_PATTERN.fullmatch(value):
        return value.rstrip("Z").rstrip("0").rstrip(".")
    return value


async def upload_artifact(owner: TenantClient, body: Any) -> dict[str, Any]:
    answer = await owner.http.post("/artifacts/upload", json=body)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def list_artifact_ids(owner: httpx.AsyncClient, query: str) -> list[str]:
    answer = await owner.get(f"/artifacts?{query}")
    assert answer.status_code == 200, answer.text
    assert answer.json()["total"] == len(answer.json()["items"])
    return [item["kurral_id"] for item in answer.json()["items"]]


async def wait_for_storage_key(resources: Resources, owner: TenantClient, kurral_id: str) -> str:
    """Return the storage key of the body once it has left Postgres."""

    async def find_key() -> str | None:
        async with resources.store.tenant_transaction(owner.tenant_id) as tx:
            body = await service.get_artifact_body(tx, kurral_id)
        return body.key if body.packed_body is None else None

    return str(await wait_for_result(find_key))


async def read_object(resources: Resources, key: str) -> bytes | None:
    try:
        return b"".join([chunk async for chunk in decompress_stream(await resources.blobs.read_object(key))])
    except DomainError as error:
        assert error.code == "not_found"
        return None


async def test_artifacts_as_kurral_shows_them(acme: TenantClient) -> None:
    key = await acme.create_key(name="Production Key", scopes=["read:artifacts", "write:artifacts"])
    bodies = [
        build_artifact(environment="production", semantic_buckets=["payment_processing", "refunds"]),
        build_artifact(environment="production", semantic_buckets=["support"], deterministic=False, replay_level="B",
                 llm_config={"model_name": "claude", "provider": "anthropic"}, duration_ms=99, cost_usd=0.5,
                 error={"type": "Boom", "message": "it broke", "stack": "at line 1"}),
        build_artifact(environment="staging", semantic_buckets=["payment_processing"], deterministic=False),
    ]  # fmt: skip
    async with acme.open_client(key) as cli:
        for body in bodies:
            answer = await cli.post("/artifacts/upload", content=json.dumps(body))
            assert answer.status_code == 201
            assert answer.json()["kurral_id"] == body["kurral_id"]
            assert answer.json()["tenant_id"] == acme.tenant_id
        first, second, third = (body["kurral_id"] for body in bodies)

        listed = (await cli.get("/artifacts?page=1&page_size=50&environment=production")).json()
        assert [item["kurral_id"] for item in listed["items"]] == [second, first]
        assert (listed["total"], listed["limit"], listed["offset"], listed["has_more"]) == (2, 50, 0, False)
        assert await list_artifact_ids(cli, "semantic_bucket=payment_processing&deterministic=true") == [first]
        assert await list_artifact_ids(cli, "semantic_bucket=payment_processing") == [third, first]
        paged = (await cli.get("/artifacts/?page=2&page_size=2")).json()
        assert ([item["kurral_id"] for item in paged["items"]], paged["has_more"]) == ([first], False)

        whole = await cli.get(f"/artifacts/{first}")
        assert whole.headers["content-type"].startswith("application/json")
        assert normalize_times({name: whole.json()[name] for name in bodies[0]}) == normalize_times(bodies[0])
        metadata = (await cli.get(f"/artifacts/{first}/metadata")).json()
        assert metadata == listed["items"][1]
        assert (metadata["model_name"], metadata["total_tokens"], metadata["tool_calls"]) == ("gpt-4-0613", 150, 2)
        assert metadata["tags"] == ["team:support"]
        assert metadata["size_bytes"] == len(whole.content)
        assert not metadata.keys() & {"inputs", "outputs", "resolved_prompt"}

        buckets = (await cli.get("/artifacts/semantic-buckets/list")).json()
        assert {bucket["semantic_bucket"]: bucket["count"] for bucket in buckets["items"]} == {
            "payment_processing": 2, "refunds": 1, "support": 1,
        }  # fmt: skip
        sizes = [len((await cli.get(f"/artifacts/{body['kurral_id']}")).content) for body in bodies]
        refused = await cli.get("/stats")
        assert (refused.status_code, refused.json()["error"]) == (403, "missing_scope")

    async with acme.open_client(await acme.create_key(scopes=["read:stats"])) as cli:
        stats = (await cli.get("/stats")).json()
        assert (stats["total_artifacts"], stats["total_tokens"]) == (3, 450)
        assert stats["total_size_gb"] == pytest.approx(sum(sizes) / 1e9)
        assert stats["total_cost_usd"] == pytest.approx(0.5042)
        assert stats["by_environment"] == {"production": 2, "staging": 1}
        assert stats["by_replay_level"] == {"A": 2, "B": 1}
        assert stats["by_semantic_bucket"] == {"payment_processing": 2, "refunds": 1, "support": 1}
        assert stats["by_model"] == {"gpt-4-0613": 2, "claude": 1}
        assert stats["avg_duration_ms"] == pytest.approx((1234 * 2 + 99) / 3)
        assert [stats[name] for name in ("p50", "p95", "p99")] == pytest.approx([1234] * 3, rel=0.011)
        assert [stats[name] for name in ("error_rate", "deterministic_rate")] == pytest.approx([100 / 3] * 2)
        filtered = (await cli.get("/stats?environment=production&semantic_bucket=support")).json()
        assert (filtered["total_artifacts"], filtered["error_rate"], filtered["total_cost_usd"]) == (1, 100.0, 0.5)

        series = (await cli.get("/stats/timeseries?days=7")).json()
        days = series["data"]
        assert (series["items"], series["days"], series["start_date"]) == (days, 7, days[0]["date"])
        assert series["end_date"] > days[-1]["date"]
        assert len(days) == 7
        assert [bucket["date"] for bucket in days] == sorted(bucket["date"] for bucket in days)
        names = ("count", "total_tokens", "errors", "deterministic")
        assert [sum(bucket[name] for bucket in days) for name in names] == [3, 450, 1, 1]
        assert sum(bucket["total_cost"] for bucket in days) == pytest.approx(0.5042)
        hours = (await cli.get("/stats/timeseries?days=7&bucket=hour&environment=staging")).json()["data"]
        assert (len(hours), sum(bucket["count"] for bucket in hours)) == (7 * 24, 1)
        assert (await cli.delete(f"/artifacts/{first}")).status_code == 403

    async with acme.open_client(key) as cli:
        assert (await cli.delete(f"/artifacts/{first}")).status_code == 204
        for method in ("GET", "DELETE"):
            assert (await cli.request(method, f"/artifacts/{first}")).status_code == 404


class KurralClient:
    """Send and read like `KurralAPIClient` of kurral 0.1.1 (`storage/api.py`)."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def save_artifact(self, body: dict[str, Any]) -> dict[str, Any]:
        answer = await self.http.post("/api/v1/artifacts/upload", json={"artifact_data": body})
        answer.raise_for_status()
        return dict(answer.json())

    async def load_artifact(self, kurral_id: str, tenant_id: str) -> dict[str, Any]:
        answer = await self.http.get(f"/api/v1/artifacts/{kurral_id}", params={"tenant_id": tenant_id})
        if answer.status_code == 404:
            raise FileNotFoundError(kurral_id)
        answer.raise_for_status()
        return dict(json.loads(answer.text))

    async def list_artifacts(self, **params: Any) -> list[str]:
        query = {"limit": 100}
        for name, value in params.items():
            query[name] = value.isoformat() if isinstance(value, datetime) else value
        answer = await self.http.get("/api/v1/artifacts", params=query)
        answer.raise_for_status()
        return [item["kurral_id"] for item in answer.json()["items"]]

    async def delete_artifact(self, kurral_id: str, tenant_id: str) -> None:
        answer = await self.http.delete(f"/api/v1/artifacts/{kurral_id}", params={"tenant_id": tenant_id})
        if answer.status_code != 404:
            answer.raise_for_status()

    async def check_health(self) -> bool:
        return (await self.http.get("/health")).status_code == 200


@asynccontextmanager
async def open_kurral_client(api_url: str, key: str) -> Any:
    headers = {"kurral": key, "Content-Type": "application/json"}
    async with httpx.AsyncClient(base_url=api_url.rstrip("/"), headers=headers, timeout=30) as http:
        yield KurralClient(http)


# The document's `api_url` ends with the prefix that the client adds to every path; its default does not.
@pytest.mark.parametrize("prefix", ["/api/v1", ""])
async def test_kurral_client_works(system: System, acme: TenantClient, other_tenant: TenantClient, prefix: str) -> None:
    key = await acme.create_key(scopes=["read:artifacts", "write:artifacts"])
    body, other = build_artifact(tenant_id="default"), build_artifact(tenant_id="elsewhere", environment="production")
    kurral_id = body["kurral_id"]
    async with open_kurral_client(f"{system.url}{prefix}", key) as client:
        for saved_body in (body, other):
            await client.save_artifact(saved_body)
        saved_again = await client.save_artifact(body)
        assert saved_again["kurral_id"] == kurral_id
        loaded = await client.load_artifact(kurral_id, "default")
        assert normalize_times({name: loaded[name] for name in body}) == normalize_times(body)
        assert loaded["tenant_id"] == "default"
        assert await client.load_artifact(kurral_id, acme.tenant_id) == loaded
        with pytest.raises(FileNotFoundError):
            await client.load_artifact(kurral_id, "elsewhere")

        assert await client.list_artifacts() == [other["kurral_id"], kurral_id]
        assert await client.list_artifacts(tenant_id="default") == [kurral_id]
        assert await client.list_artifacts(semantic_bucket="refunds", environment="staging") == [kurral_id]
        now = datetime.now(UTC).replace(tzinfo=None)
        time_range = {"start_date": now - timedelta(hours=1), "end_date": now + timedelta(hours=1)}
        assert await client.list_artifacts(**time_range) == [other["kurral_id"], kurral_id]
        assert await client.list_artifacts(start_date=now + timedelta(hours=1)) == []
        assert await client.list_artifacts(end_date=now - timedelta(hours=1)) == []

        async with open_kurral_client(f"{system.url}{prefix}", await other_tenant.create_key()) as foreign_client:
            assert await foreign_client.list_artifacts(tenant_id="default") == []
            await foreign_client.delete_artifact(kurral_id, "default")
        await client.delete_artifact(kurral_id, "elsewhere")
        assert kurral_id in await client.list_artifacts()
        await client.delete_artifact(kurral_id, "default")
        await client.delete_artifact(kurral_id, "default")
        with pytest.raises(FileNotFoundError):
            await client.load_artifact(kurral_id, "default")
        assert await client.list_artifacts() == [other["kurral_id"]]
    async with open_kurral_client(f"{system.url}{prefix}", "pdk_wrong") as invalid_client:
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            await invalid_client.save_artifact(body)


@pytest.mark.parametrize("prefix", ["/api/v1", ""])
async def test_kurral_client_health_check_succeeds(system: System, prefix: str) -> None:
    async with open_kurral_client(f"{system.url}{prefix}", "") as client:
        assert await client.check_health()


async def test_tool_calls_form_a_tree_by_parent(acme: TenantClient) -> None:
    calls = [
        {"id": "leaf", "parent_id": "branch", "tool_name": "t3"},
        {"id": "root", "tool_name": "t1", "start_time": "2026-01-01T00:00:00Z", "end_time": "2026-01-01T00:00:01Z"},
        {"id": "branch", "parent_id": "root", "tool_name": "t2", "input": {"a": [1, None]}},
        {"tool_name": "alone", "status": "timeout"},
    ]
    created = await upload_artifact(acme, {"tool_calls": calls})
    assert (created["tool_calls"], created["tool_errors"]) == (4, 1)
    tree = (await acme.http.get(f"/artifacts/{created['kurral_id']}/tool-calls")).json()["items"]
    assert [node["call"]["tool_name"] for node in tree] == ["t1", "alone"]
    assert tree[0]["call"]["latency_ms"] == 1000
    assert [node["call"]["id"] for node in tree[0]["children"]] == ["branch"]
    assert tree[0]["children"][0]["call"]["input"] == {"a": [1, None]}
    assert [node["call"]["id"] for node in tree[0]["children"][0]["children"]] == ["leaf"]
    kurral_created = await upload_artifact(acme, build_artifact())
    (root,) = (await acme.http.get(f"/artifacts/{kurral_created['kurral_id']}/tool-calls")).json()["items"]
    assert (root["call"]["output"]["naïve"], root["children"][0]["call"]["tool_name"]) == ("✓", "refund")
    assert (await acme.http.get("/artifacts/none/tool-calls")).status_code == 404


async def test_errors_can_be_searched_by_text(acme: TenantClient) -> None:
    stack = 'File "ledger.py", line 3, in settle\nKeyError: balance'
    failed = await upload_artifact(
        acme, {"error": {"type": "PaymentDeclined", "message": "card was declined", "stack": stack}}
    )
    failed_call = await upload_artifact(
        acme,
        {"tool_calls": [{"tool_name": "http", "error_type": "ReadTimeout", "error_text": "gateway silent", "stack": "at gateway.py"}]},
    )  # fmt: skip
    succeeded = await upload_artifact(acme, {"outputs": {"note": "declined nothing"}})
    assert (failed["status"], failed["error_type"]) == ("error", "PaymentDeclined")
    assert (failed_call["status"], failed_call["tool_errors"], succeeded["status"]) == ("ok", 1, "ok")
    for query, expected in (
        ("error_type=PaymentDeclined", [failed]),
        ("search=declined", [failed]),
        ("search=balance", [failed]),
        ("search=settle ledger.py", [failed]),
        ("search=gateway", [failed_call]),
        ("search=ReadTimeout", [failed_call]),
        ("search=PaymentDeclined OR silent", [failed_call, failed]),
        ("search=nothing", []),
        ("status=error", [failed]),
        ("status=ok", [succeeded, failed_call]),
    ):
        assert await list_artifact_ids(acme.http, query) == [artifact["kurral_id"] for artifact in expected], query
    whole = (await acme.http.get(f"/artifacts/{failed['id']}")).json()
    assert [*whole["error"].values()] == ["PaymentDeclined", "card was declined", stack]
    assert (await acme.http.get("/stats?search=declined")).json()["total_artifacts"] == 1


async def test_missing_determinism_and_level_are_computed(acme: TenantClient) -> None:
    left_out = {"determinism_report": ..., "replay_level": ..., "deterministic": ...}
    best = await upload_artifact(acme, build_artifact(**left_out))
    middle = await upload_artifact(
        acme, build_artifact(**left_out, llm_config={**KURRAL_ARTIFACT["llm_config"], "parameters": TEMPERATURE_ONLY})
    )
    least = await upload_artifact(acme, {"inputs": {}})
    assert [artifact["replay_level"] for artifact in (best, middle, least)] == ["A", "B", "C"]
    assert [artifact["deterministic"] for artifact in (best, middle, least)] == [True, False, False]
    report = (await acme.http.get(f"/artifacts/{middle['kurral_id']}")).json()["determinism_report"]
    assert report["overall_score"] == middle["determinism_score"]
    assert report["missing_fields"] == ["random_seed"]
    # model_version 1, seed 0, prompt 1, tool cache 1, environment 1, parameters: top_p and two penalties.
    assert middle["determinism_score"] == pytest.approx(0.25 + 0.20 + 0.15 + 0.10 + 0.10 * 0.5)
    sent_level = await upload_artifact(acme, build_artifact(replay_level="C", deterministic=True))
    assert (sent_level["replay_level"], sent_level["deterministic"], sent_level["determinism_score"]) == (
        "C",
        True,
        1.0,
    )
    assert (await acme.http.get("/stats")).json()["by_replay_level"] == Counter("ABCC")
    assert await list_artifact_ids(acme.http, "replay_level=B") == [middle["kurral_id"]]


async def test_body_is_readable_from_upload_until_deletion(resources: Resources, acme: TenantClient) -> None:
    other, body = await upload_artifact(acme, build_artifact()), build_artifact()
    created = await upload_artifact(acme, body)
    first_answer = await acme.http.get(f"/artifacts/{body['kurral_id']}")
    assert first_answer.status_code == 200
    key = await wait_for_storage_key(resources, acme, body["kurral_id"])
    assert key.split("/")[-4:-3] + key.split("/")[-1:] == [acme.tenant_id, created["id"]]
    assert await read_object(resources, key) == first_answer.content
    second_answer = await acme.http.get(f"/artifacts/{created['id']}")
    assert (second_answer.status_code, second_answer.content) == (200, first_answer.content)

    assert (await acme.http.delete(f"/artifacts/{body['kurral_id']}")).status_code == 204
    for path in (f"/artifacts/{body['kurral_id']}", f"/artifacts/{created['id']}/metadata"):
        assert (await acme.http.get(path)).status_code == 404
    assert await list_artifact_ids(acme.http, "") == [other["kurral_id"]]
    assert (await acme.http.get("/stats")).json()["total_tokens"] == 150

    async def is_deleted() -> bool:
        return await read_object(resources, key) is None

    await wait_for_result(is_deleted)
    # The id can be used again, even for another body.
    created_again = await upload_artifact(acme, {**body, "environment": "other"})
    assert created_again["id"] != created["id"]
    assert (await acme.http.get(f"/artifacts/{body['kurral_id']}")).json()["environment"] == "other"


@pytest.mark.parametrize("kurral_id", ["a b", "ä✓", "a%2Fb", "a?b#c", "a/b", "export", "upload"])
async def test_accepted_ids_can_be_read_back(acme: TenantClient, kurral_id: str) -> None:
    if (await acme.http.post("/artifacts/upload", json={"kurral_id": kurral_id})).status_code == 201:
        path = f"/artifacts/{quote(kurral_id, safe='')}"
        for read_path in (path, f"{path}/metadata"):
            assert f'"kurral_id":"{kurral_id}"' in (await acme.http.get(read_path)).text, read_path


async def test_execution_with_the_deepest_payload_gets_an_artifact(shared_tenant: TenantClient) -> None:
    deep: Any = {}
    for _ in range(127):
        deep = {"a": deep}
    run = await shared_tenant.run_agent(await shared_tenant.deploy_agent("def handle(p): return p\n"), {"b": deep})
    assert run["output_data"] == {"b": deep}

    async def find_artifact() -> bool:
        return (await shared_tenant.http.get(f"/artifacts/{run['id']}")).status_code == 200

    await wait_for_result(find_artifact)


async def test_every_execution_writes_its_artifact(shared_tenant: TenantClient) -> None:
    fails = await shared_tenant.deploy_agent("def handle(p):\n    raise ValueError('no such order: ' + p['order'])\n")
    sleeps = await shared_tenant.deploy_agent("import time\ndef handle(p): time.sleep(60)\n")
    completed = await shared_tenant.run_agent("hello", {"name": "Ada"})
    failed = await shared_tenant.run_agent(fails, {"order": "zebra"})
    cancelled = await shared_tenant.start_execution(sleeps)
    assert (await shared_tenant.http.post(f"/executions/{cancelled['id']}/cancel")).status_code == 200
    bodies = {}
    for run, status in ((completed, "ok"), (failed, "error"), (cancelled, None)):

        async def find_artifact(path: str = f"/artifacts/{run['id']}") -> Any:
            answer = await shared_tenant.http.get(path)
            return answer.json() if answer.status_code == 200 else None

        body = bodies[run["id"]] = await wait_for_result(find_artifact)
        (metadata,) = (await shared_tenant.http.get(f"/artifacts?execution_id={run['id']}")).json()["items"]
        assert metadata["kurral_id"] == metadata["execution_id"] == run["id"]
        assert status is None or metadata["status"] == status
        assert (await shared_tenant.http.get(f"/stats?execution_id={run['id']}")).json()["total_artifacts"] == 1
        assert body["inputs"] == run["input_data"]
        assert body["metadata"]["agent_id"] == run["agent_id"]
    assert bodies[completed["id"]]["outputs"] == completed["output_data"]
    assert bodies[completed["id"]]["tags"] == ["agent:hello"]
    error = bodies[failed["id"]]["error"]
    assert (error["type"], error["message"]) == (failed["error_type"], failed["error_message"])
    assert "line 2, in handle" in error["stack"]
    assert "no such order: zebra" in error["stack"]
    assert failed["id"] in await list_artifact_ids(shared_tenant.http, "search=zebra")
    assert bodies[cancelled["id"]]["metadata"]["status"] == "cancelled"
    # Clients cannot upload an artifact under an execution's id.
    refused = await shared_tenant.http.post("/artifacts/upload", json={"kurral_id": cancelled["id"]})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "kurral_id")
