"""Every example of seeds/kurral.md from the upload of an artifact on, Kurral's own client, and what artifacts promise."""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable
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
from tests.support.clients import TenantClient

ARTIFACT: dict[str, Any] = json.loads((Path(__file__).parent / "kurral_artifact.json").read_bytes())
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z?")
TEMPERED = {"temperature": 0.7}


def artifact(**changes: Any) -> dict[str, Any]:
    """Kurral's artifact under an id of its own, made now; times without an offset, as Kurral writes them."""
    now = datetime.now(UTC).replace(tzinfo=None).isoformat()
    made = {**ARTIFACT, "kurral_id": str(uuid4()), "created_at": now, **changes}
    return {name: value for name, value in made.items() if value is not ...}


def told(value: Any) -> Any:
    """A value with its times written alike."""
    if isinstance(value, dict):
        return {name: told(one) for name, one in value.items()}
    if isinstance(value, list):
        return [told(one) for one in value]
    if isinstance(value, str) and _TIME.fullmatch(value):
        return value.rstrip("Z").rstrip("0").rstrip(".")
    return value


async def soon(look: Callable[[], Awaitable[Any]]) -> Any:
    """What `look` finds once it finds something."""
    for _ in range(600):
        if found := await look():
            return found
        await asyncio.sleep(0.05)
    raise AssertionError("it never came true")


async def upload(owner: TenantClient, body: Any) -> dict[str, Any]:
    answer = await owner.http.post("/artifacts/upload", json=body)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def ids_of(owner: httpx.AsyncClient, query: str) -> list[str]:
    answer = await owner.get(f"/artifacts?{query}")
    assert answer.status_code == 200, answer.text
    assert answer.json()["total"] == len(answer.json()["items"])
    return [one["kurral_id"] for one in answer.json()["items"]]


async def key_in_storage(resources: Resources, owner: TenantClient, kurral_id: str) -> str:
    """Where the body lies in object storage, once it has left Postgres."""

    async def look() -> str | None:
        async with resources.store.tenant_transaction(owner.tenant_id) as tx:
            found = await service.get_artifact_body(tx, kurral_id)
        return found.key if found.packed_body is None else None

    return str(await soon(look))


async def object_at(resources: Resources, key: str) -> bytes | None:
    try:
        return b"".join([chunk async for chunk in decompress_stream(await resources.blobs.read_object(key))])
    except DomainError as error:
        assert error.code == "not_found"
        return None


async def test_the_whole_document(acme: TenantClient) -> None:
    key = await acme.create_key(name="Production Key", scopes=["read:artifacts", "write:artifacts"])
    sent = [
        artifact(environment="production", semantic_buckets=["payment_processing", "refunds"]),
        artifact(environment="production", semantic_buckets=["support"], deterministic=False, replay_level="B",
                 llm_config={"model_name": "claude", "provider": "anthropic"}, duration_ms=99, cost_usd=0.5,
                 error={"type": "Boom", "message": "it broke", "stack": "at line 1"}),
        artifact(environment="staging", semantic_buckets=["payment_processing"], deterministic=False),
    ]  # fmt: skip
    async with acme.open_client(key) as cli:
        for one in sent:
            answer = await cli.post("/artifacts/upload", content=json.dumps(one))
            assert answer.status_code == 201
            assert answer.json()["kurral_id"] == one["kurral_id"]
            assert answer.json()["tenant_id"] == acme.tenant_id
        first, second, third = (one["kurral_id"] for one in sent)

        listed = (await cli.get("/artifacts?page=1&page_size=50&environment=production")).json()
        assert [one["kurral_id"] for one in listed["items"]] == [second, first]
        assert (listed["total"], listed["limit"], listed["offset"], listed["has_more"]) == (2, 50, 0, False)
        assert await ids_of(cli, "semantic_bucket=payment_processing&deterministic=true") == [first]
        assert await ids_of(cli, "semantic_bucket=payment_processing") == [third, first]
        paged = (await cli.get("/artifacts/?page=2&page_size=2")).json()
        assert ([one["kurral_id"] for one in paged["items"]], paged["has_more"]) == ([first], False)

        whole = await cli.get(f"/artifacts/{first}")
        assert whole.headers["content-type"].startswith("application/json")
        assert told({name: whole.json()[name] for name in sent[0]}) == told(sent[0])
        metadata = (await cli.get(f"/artifacts/{first}/metadata")).json()
        assert metadata == listed["items"][1]
        assert (metadata["model_name"], metadata["total_tokens"], metadata["tool_calls"]) == ("gpt-4-0613", 150, 2)
        assert metadata["tags"] == ["team:support"]
        assert metadata["size_bytes"] == len(whole.content)
        assert not metadata.keys() & {"inputs", "outputs", "resolved_prompt"}

        buckets = (await cli.get("/artifacts/semantic-buckets/list")).json()
        assert {one["semantic_bucket"]: one["count"] for one in buckets["items"]} == {
            "payment_processing": 2, "refunds": 1, "support": 1,
        }  # fmt: skip
        sizes = [len((await cli.get(f"/artifacts/{one['kurral_id']}")).content) for one in sent]
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
        narrowed = (await cli.get("/stats?environment=production&semantic_bucket=support")).json()
        assert (narrowed["total_artifacts"], narrowed["error_rate"], narrowed["total_cost_usd"]) == (1, 100.0, 0.5)

        series = (await cli.get("/stats/timeseries?days=7")).json()
        days = series["data"]
        assert (series["items"], series["days"], series["start_date"]) == (days, 7, days[0]["date"])
        assert series["end_date"] > days[-1]["date"]
        assert len(days) == 7
        assert [one["date"] for one in days] == sorted(one["date"] for one in days)
        names = ("count", "total_tokens", "errors", "deterministic")
        assert [sum(one[name] for one in days) for name in names] == [3, 450, 1, 1]
        assert sum(one["total_cost"] for one in days) == pytest.approx(0.5042)
        hours = (await cli.get("/stats/timeseries?days=7&bucket=hour&environment=staging")).json()["data"]
        assert (len(hours), sum(one["count"] for one in hours)) == (7 * 24, 1)
        assert (await cli.delete(f"/artifacts/{first}")).status_code == 403

    async with acme.open_client(key) as cli:
        assert (await cli.delete(f"/artifacts/{first}")).status_code == 204
        for method in ("GET", "DELETE"):
            assert (await cli.request(method, f"/artifacts/{first}")).status_code == 404


class KurralClient:
    """What `KurralAPIClient` of kurral 0.1.1 (`storage/api.py`) sends, and how it takes the answers."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def save(self, body: dict[str, Any]) -> dict[str, Any]:
        answer = await self.http.post("/api/v1/artifacts/upload", json={"artifact_data": body})
        answer.raise_for_status()
        return dict(answer.json())

    async def load(self, kurral_id: str, tenant_id: str) -> dict[str, Any]:
        answer = await self.http.get(f"/api/v1/artifacts/{kurral_id}", params={"tenant_id": tenant_id})
        if answer.status_code == 404:
            raise FileNotFoundError(kurral_id)
        answer.raise_for_status()
        return dict(json.loads(answer.text))

    async def list_artifacts(self, **params: Any) -> list[str]:
        sent = {"limit": 100}
        for name, value in params.items():
            sent[name] = value.isoformat() if isinstance(value, datetime) else value
        answer = await self.http.get("/api/v1/artifacts", params=sent)
        answer.raise_for_status()
        return [one["kurral_id"] for one in answer.json()["items"]]

    async def delete(self, kurral_id: str, tenant_id: str) -> None:
        answer = await self.http.delete(f"/api/v1/artifacts/{kurral_id}", params={"tenant_id": tenant_id})
        if answer.status_code != 404:
            answer.raise_for_status()

    async def health_check(self) -> bool:
        return (await self.http.get("/health")).status_code == 200


@asynccontextmanager
async def kurral(api_url: str, key: str) -> Any:
    headers = {"kurral": key, "Content-Type": "application/json"}
    async with httpx.AsyncClient(base_url=api_url.rstrip("/"), headers=headers, timeout=30) as http:
        yield KurralClient(http)


# The document's `api_url` ends in the prefix that the client puts before every path; its default does not.
@pytest.mark.parametrize("prefix", ["/api/v1", ""])
async def test_kurral_s_own_client(system: System, acme: TenantClient, other_tenant: TenantClient, prefix: str) -> None:
    key = await acme.create_key(scopes=["read:artifacts", "write:artifacts"])
    body, other = artifact(tenant_id="default"), artifact(tenant_id="elsewhere", environment="production")
    kurral_id = body["kurral_id"]
    async with kurral(f"{system.url}{prefix}", key) as client:
        for one in (body, other):
            await client.save(one)
        again = await client.save(body)
        assert again["kurral_id"] == kurral_id
        loaded = await client.load(kurral_id, "default")
        assert told({name: loaded[name] for name in body}) == told(body)
        assert loaded["tenant_id"] == "default"
        assert await client.load(kurral_id, acme.tenant_id) == loaded
        with pytest.raises(FileNotFoundError):
            await client.load(kurral_id, "elsewhere")

        assert await client.list_artifacts() == [other["kurral_id"], kurral_id]
        assert await client.list_artifacts(tenant_id="default") == [kurral_id]
        assert await client.list_artifacts(semantic_bucket="refunds", environment="staging") == [kurral_id]
        now = datetime.now(UTC).replace(tzinfo=None)
        around = {"start_date": now - timedelta(hours=1), "end_date": now + timedelta(hours=1)}
        assert await client.list_artifacts(**around) == [other["kurral_id"], kurral_id]
        assert await client.list_artifacts(start_date=now + timedelta(hours=1)) == []
        assert await client.list_artifacts(end_date=now - timedelta(hours=1)) == []

        async with kurral(f"{system.url}{prefix}", await other_tenant.create_key()) as stranger:
            assert await stranger.list_artifacts(tenant_id="default") == []
            await stranger.delete(kurral_id, "default")
        await client.delete(kurral_id, "elsewhere")
        assert kurral_id in await client.list_artifacts()
        await client.delete(kurral_id, "default")
        await client.delete(kurral_id, "default")
        with pytest.raises(FileNotFoundError):
            await client.load(kurral_id, "default")
        assert await client.list_artifacts() == [other["kurral_id"]]
    async with kurral(f"{system.url}{prefix}", "pdk_wrong") as nobody:
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            await nobody.save(body)


@pytest.mark.parametrize("prefix", ["/api/v1", ""])
async def test_kurral_s_client_finds_us_healthy(system: System, prefix: str) -> None:
    async with kurral(f"{system.url}{prefix}", "") as client:
        assert await client.health_check()


async def test_tool_calls_are_a_tree_by_their_parents(acme: TenantClient) -> None:
    calls = [
        {"id": "leaf", "parent_id": "branch", "tool_name": "t3"},
        {"id": "root", "tool_name": "t1", "start_time": "2026-01-01T00:00:00Z", "end_time": "2026-01-01T00:00:01Z"},
        {"id": "branch", "parent_id": "root", "tool_name": "t2", "input": {"a": [1, None]}},
        {"tool_name": "alone", "status": "timeout"},
    ]
    made = await upload(acme, {"tool_calls": calls})
    assert (made["tool_calls"], made["tool_errors"]) == (4, 1)
    tree = (await acme.http.get(f"/artifacts/{made['kurral_id']}/tool-calls")).json()["items"]
    assert [node["call"]["tool_name"] for node in tree] == ["t1", "alone"]
    assert tree[0]["call"]["latency_ms"] == 1000
    assert [node["call"]["id"] for node in tree[0]["children"]] == ["branch"]
    assert tree[0]["children"][0]["call"]["input"] == {"a": [1, None]}
    assert [node["call"]["id"] for node in tree[0]["children"][0]["children"]] == ["leaf"]
    kept = await upload(acme, artifact())
    (root,) = (await acme.http.get(f"/artifacts/{kept['kurral_id']}/tool-calls")).json()["items"]
    assert (root["call"]["output"]["naïve"], root["children"][0]["call"]["tool_name"]) == ("✓", "refund")
    assert (await acme.http.get("/artifacts/none/tool-calls")).status_code == 404


async def test_errors_can_be_found_by_what_they_say(acme: TenantClient) -> None:
    stack = 'File "ledger.py", line 3, in settle\nKeyError: balance'
    failed = await upload(acme, {"error": {"type": "PaymentDeclined", "message": "card was declined", "stack": stack}})
    in_call = await upload(
        acme,
        {"tool_calls": [{"tool_name": "http", "error_type": "ReadTimeout", "error_text": "gateway silent", "stack": "at gateway.py"}]},
    )  # fmt: skip
    fine = await upload(acme, {"outputs": {"note": "declined nothing"}})
    assert (failed["status"], failed["error_type"]) == ("error", "PaymentDeclined")
    assert (in_call["status"], in_call["tool_errors"], fine["status"]) == ("ok", 1, "ok")
    for query, wanted in (
        ("error_type=PaymentDeclined", [failed]),
        ("search=declined", [failed]),
        ("search=balance", [failed]),
        ("search=settle ledger.py", [failed]),
        ("search=gateway", [in_call]),
        ("search=ReadTimeout", [in_call]),
        ("search=PaymentDeclined OR silent", [in_call, failed]),
        ("search=nothing", []),
        ("status=error", [failed]),
        ("status=ok", [fine, in_call]),
    ):
        assert await ids_of(acme.http, query) == [one["kurral_id"] for one in wanted], query
    whole = (await acme.http.get(f"/artifacts/{failed['id']}")).json()
    assert [*whole["error"].values()] == ["PaymentDeclined", "card was declined", stack]
    assert (await acme.http.get("/stats?search=declined")).json()["total_artifacts"] == 1


async def test_determinism_and_level_are_computed_when_left_out(acme: TenantClient) -> None:
    left_out = {"determinism_report": ..., "replay_level": ..., "deterministic": ...}
    best = await upload(acme, artifact(**left_out))
    middle = await upload(acme, artifact(**left_out, llm_config={**ARTIFACT["llm_config"], "parameters": TEMPERED}))
    least = await upload(acme, {"inputs": {}})
    assert [one["replay_level"] for one in (best, middle, least)] == ["A", "B", "C"]
    assert [one["deterministic"] for one in (best, middle, least)] == [True, False, False]
    report = (await acme.http.get(f"/artifacts/{middle['kurral_id']}")).json()["determinism_report"]
    assert report["overall_score"] == middle["determinism_score"]
    assert report["missing_fields"] == ["random_seed"]
    # model_version 1, seed 0, prompt 1, tool cache 1, environment 1, parameters: top_p and two penalties.
    assert middle["determinism_score"] == pytest.approx(0.25 + 0.20 + 0.15 + 0.10 + 0.10 * 0.5)
    kept = await upload(acme, artifact(replay_level="C", deterministic=True))
    assert (kept["replay_level"], kept["deterministic"], kept["determinism_score"]) == ("C", True, 1.0)
    assert (await acme.http.get("/stats")).json()["by_replay_level"] == Counter("ABCC")
    assert await ids_of(acme.http, "replay_level=B") == [middle["kurral_id"]]


async def test_a_body_is_readable_from_the_first_instant_until_it_is_deleted(
    resources: Resources, acme: TenantClient
) -> None:
    kept, sent = await upload(acme, artifact()), artifact()
    made = await upload(acme, sent)
    at_once = await acme.http.get(f"/artifacts/{sent['kurral_id']}")
    assert at_once.status_code == 200
    key = await key_in_storage(resources, acme, sent["kurral_id"])
    assert key.split("/")[-4:-3] + key.split("/")[-1:] == [acme.tenant_id, made["id"]]
    assert await object_at(resources, key) == at_once.content
    later = await acme.http.get(f"/artifacts/{made['id']}")
    assert (later.status_code, later.content) == (200, at_once.content)

    assert (await acme.http.delete(f"/artifacts/{sent['kurral_id']}")).status_code == 204
    for path in (f"/artifacts/{sent['kurral_id']}", f"/artifacts/{made['id']}/metadata"):
        assert (await acme.http.get(path)).status_code == 404
    assert await ids_of(acme.http, "") == [kept["kurral_id"]]
    assert (await acme.http.get("/stats")).json()["total_tokens"] == 150

    async def gone() -> bool:
        return await object_at(resources, key) is None

    await soon(gone)
    # Its id is free again, also for another body.
    again = await upload(acme, {**sent, "environment": "other"})
    assert again["id"] != made["id"]
    assert (await acme.http.get(f"/artifacts/{sent['kurral_id']}")).json()["environment"] == "other"


@pytest.mark.parametrize("kurral_id", ["a b", "ä✓", "a%2Fb", "a?b#c", "a/b", "export", "upload"])
async def test_an_id_that_is_taken_can_be_asked_for(acme: TenantClient, kurral_id: str) -> None:
    if (await acme.http.post("/artifacts/upload", json={"kurral_id": kurral_id})).status_code == 201:
        path = f"/artifacts/{quote(kurral_id, safe='')}"
        for one in (path, f"{path}/metadata"):
            assert f'"kurral_id":"{kurral_id}"' in (await acme.http.get(one)).text, one


async def test_the_deepest_payload_is_in_its_artifact(shared_tenant: TenantClient) -> None:
    deep: Any = {}
    for _ in range(127):
        deep = {"a": deep}
    run = await shared_tenant.run_agent(await shared_tenant.deploy_agent("def handle(p): return p\n"), {"b": deep})
    assert run["output_data"] == {"b": deep}

    async def look() -> bool:
        return (await shared_tenant.http.get(f"/artifacts/{run['id']}")).status_code == 200

    await soon(look)


async def test_every_execution_writes_its_own_artifact(shared_tenant: TenantClient) -> None:
    fails = await shared_tenant.deploy_agent("def handle(p):\n    raise ValueError('no such order: ' + p['order'])\n")
    sleeps = await shared_tenant.deploy_agent("import time\ndef handle(p): time.sleep(60)\n")
    completed = await shared_tenant.run_agent("hello", {"name": "Ada"})
    failed = await shared_tenant.run_agent(fails, {"order": "zebra"})
    cancelled = await shared_tenant.start_execution(sleeps)
    assert (await shared_tenant.http.post(f"/executions/{cancelled['id']}/cancel")).status_code == 200
    found = {}
    for run, status in ((completed, "ok"), (failed, "error"), (cancelled, None)):

        async def look(path: str = f"/artifacts/{run['id']}") -> Any:
            answer = await shared_tenant.http.get(path)
            return answer.json() if answer.status_code == 200 else None

        body = found[run["id"]] = await soon(look)
        (metadata,) = (await shared_tenant.http.get(f"/artifacts?execution_id={run['id']}")).json()["items"]
        assert metadata["kurral_id"] == metadata["execution_id"] == run["id"]
        assert status is None or metadata["status"] == status
        assert (await shared_tenant.http.get(f"/stats?execution_id={run['id']}")).json()["total_artifacts"] == 1
        assert body["inputs"] == run["input_data"]
        assert body["metadata"]["agent_id"] == run["agent_id"]
    assert found[completed["id"]]["outputs"] == completed["output_data"]
    assert found[completed["id"]]["tags"] == ["agent:hello"]
    error = found[failed["id"]]["error"]
    assert (error["type"], error["message"]) == (failed["error_type"], failed["error_message"])
    assert "line 2, in handle" in error["stack"]
    assert "no such order: zebra" in error["stack"]
    assert failed["id"] in await ids_of(shared_tenant.http, "search=zebra")
    assert found[cancelled["id"]]["metadata"]["status"] == "cancelled"
    # Nobody else may write in an execution's name.
    refused = await shared_tenant.http.post("/artifacts/upload", json={"kurral_id": cancelled["id"]})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "kurral_id")
