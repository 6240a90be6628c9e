"""Every example of seeds/agentops.md from the first evaluation on, under /api/v1, and what evaluations promise."""

import asyncio
import csv
import io
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pyarrow.parquet
import pytest

from scripts.system import System
from tests.support.clients import TenantClient

SENT: dict[str, Any] = {
    "prompt": "What is the capital of France?",
    "response": "Paris is the capital of France.",
    "semantic_drift": 0.12,
    "uncertainty": 0.0,
    "factual_support": 0.95,
    "hallucination_probability": 0.08,
    "hallucinated": False,
    "latency_sec": 0.42,
    "throughput_qps": 2.38,
    "mode": "self-check",
    "model_name": "gpt-4o-mini",
    "agent_name": "qa_assistant",
}
METRICS = ("semantic_drift", "uncertainty", "factual_support", "hallucination_probability", "hallucinated")
BARE = {"prompt": SENT["prompt"], "response": SENT["response"]}


async def evaluate(owner: TenantClient, **fields: Any) -> dict[str, Any]:
    answer = await owner.http.post("/evaluations", json={**SENT, **fields})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def got(owner: TenantClient, path: str) -> Any:
    answer = await owner.http.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def soon(look: Callable[[], Awaitable[Any]]) -> Any:
    """What `look` finds once it finds something."""
    for _ in range(600):
        if found := await look():
            return found
        await asyncio.sleep(0.05)
    raise AssertionError("it never came true")


async def judged(owner: TenantClient, evaluation_id: str) -> dict[str, Any]:
    """The evaluation once nothing of it is pending."""

    async def look() -> Any:
        found = await got(owner, f"/evaluations/{evaluation_id}")
        return found if found["metrics"] != "pending" else None

    return dict(await soon(look))


async def test_the_whole_document(system: System) -> None:
    async with httpx.AsyncClient(base_url=f"{system.url}/api/v1") as web:
        person = {"email": "evals@example.com", "password": "securepassword123", "full_name": "John Doe"}
        assert (await web.post("/auth/register", json=person)).status_code == 201
        login = await web.post("/auth/login", json={"email": person["email"], "password": person["password"]})
        bearer = {"Authorization": f"Bearer {login.json()['access_token']}"}
        made = await web.post("/auth/api-keys", headers=bearer, json={"name": "My Production Key"})
        assert made.status_code == 201
        web.headers["X-API-Key"] = made.json()["key"]

        answer = await web.post("/evaluations/", json=SENT)
        assert answer.status_code == 201
        first = answer.json()
        assert {name: first[name] for name in SENT} == SENT
        assert (first["metrics"], first["computed"]) == ("sent", [])
        assert (await web.get(f"/evaluations/{first['id']}")).json() == first
        worse = {**SENT, "hallucinated": True, "latency_sec": 0.58, "throughput_qps": 1.0, "semantic_drift": 0.5,
                 "uncertainty": 0.5, "factual_support": 0.15, "agent_name": "other"}  # fmt: skip
        second = (await web.post("/evaluations/", json=worse)).json()
        third = (await web.post("/evaluations/", json={**SENT, "latency_sec": None, "model_name": "other"})).json()

        stats = (await web.get("/evaluations/stats?days=7")).json()
        documented = {
            "total_evaluations": 3,
            "total_hallucinations": 1,
            "hallucination_rate": 1 / 3,
            "avg_latency": (0.42 + 0.58) / 2,
            "avg_throughput": (2.38 + 1.0 + 2.38) / 3,
            "avg_semantic_drift": (0.12 + 0.5 + 0.12) / 3,
            "avg_uncertainty": 0.5 / 3,
            "avg_factual_support": (0.95 + 0.15 + 0.95) / 3,
        }
        assert {name: stats[name] for name in documented} == pytest.approx(documented)
        assert stats["by_model"] == {"gpt-4o-mini": 2, "other": 1}
        assert stats["by_agent"] == {"qa_assistant": 2, "other": 1}
        assert stats["by_mode"] == {"self-check": 3}
        assert stats["p50_latency"] == pytest.approx(0.50, rel=0.011)
        narrowed = (await web.get("/evaluations/stats?days=7&agent_name=other")).json()
        assert (narrowed["total_evaluations"], narrowed["hallucination_rate"]) == (1, 1.0)
        assert narrowed["p99_latency"] == pytest.approx(0.58, rel=0.011)

        listed = (await web.get("/evaluations/?limit=10&hallucinated=true")).json()
        assert listed == {"items": [second], "total": 1, "limit": 10, "offset": 0, "has_more": False}
        page = (await web.get("/evaluations/?limit=2")).json()
        assert ([one["id"] for one in page["items"]], page["total"]) == ([third["id"], second["id"]], 3)
        assert page["has_more"] is True

        assert (await web.delete(f"/evaluations/{second['id']}")).status_code == 204
        assert (await web.get(f"/evaluations/{second['id']}")).status_code == 404
        assert (await web.delete(f"/evaluations/{second['id']}")).status_code == 404
        stats = (await web.get("/evaluations/stats?days=7")).json()
        assert (stats["total_evaluations"], stats["total_hallucinations"], stats["avg_latency"]) == (2, 0, 0.42)
        assert stats["by_agent"] == {"qa_assistant": 2}


async def test_metrics_left_out_are_computed_in_the_background(acme: TenantClient) -> None:
    docs = ["Paris is the capital and largest city of France."]
    made = await acme.http.post("/evaluations", json={**BARE, "retrieved_docs": docs})
    assert made.status_code == 201
    assert made.json()["metrics"] == "pending"
    told = await judged(acme, made.json()["id"])
    assert told["metrics"] == "computed"
    assert set(told["computed"]) == set(METRICS)
    drift, factual, unsure = told["semantic_drift"], told["factual_support"], told["uncertainty"]
    assert told["hallucination_probability"] == pytest.approx(
        0.4 * (1 - factual) + 0.4 * drift + 0.2 * unsure, abs=1e-5
    )
    assert told["hallucinated"] is (told["hallucination_probability"] > 0.45)
    assert (told["retrieved_docs"], told["latency_sec"]) == (docs, None)

    wild = {"prompt": BARE["prompt"], "response": "Perhaps my bicycle might possibly enjoy jazz, I am not sure."}
    off = await judged(acme, (await acme.http.post("/evaluations", json={**wild, "retrieved_docs": docs})).json()["id"])
    assert off["hallucinated"] is True
    assert off["semantic_drift"] > drift
    assert off["factual_support"] < factual
    assert off["uncertainty"] > unsure
    stats = await got(acme, "/evaluations/stats")
    assert (stats["total_evaluations"], stats["total_hallucinations"]) == (2, 1 + told["hallucinated"])
    assert stats["avg_semantic_drift"] == pytest.approx((drift + off["semantic_drift"]) / 2)
    hallucinated = (await got(acme, "/evaluations?hallucinated=true"))["items"]
    assert off["id"] in [one["id"] for one in hallucinated]


async def test_metrics_that_were_sent_stay_as_they_were_sent(acme: TenantClient) -> None:
    partly = {**BARE, "uncertainty": 0.875, "hallucinated": True, "semantic_drift": 0.0}
    told = await judged(acme, (await acme.http.post("/evaluations", json=partly)).json()["id"])
    assert {name: told[name] for name in partly} == partly
    assert set(told["computed"]) == {"factual_support", "hallucination_probability"}
    whole = await evaluate(acme, hallucination_probability=0.99)
    assert (whole["metrics"], whole["hallucinated"]) == ("sent", False)


async def test_a_batch_is_stored_in_its_order(acme: TenantClient) -> None:
    rows = [{**SENT, "session_id": f"s{number % 2}", "latency_sec": float(number)} for number in range(1000)]
    answer = await acme.http.post("/evaluations/batch", json={"evaluations": rows})
    assert answer.status_code == 201, answer.text
    assert (answer.json()["created"], len(set(answer.json()["ids"]))) == (1000, 1000)
    for number in (0, 999):
        assert (await got(acme, f"/evaluations/{answer.json()['ids'][number]}"))["latency_sec"] == number
    one = await acme.http.post("/evaluations/batch", json=[SENT])
    assert one.json()["created"] == 1
    stats = await got(acme, "/evaluations/stats")
    assert stats["total_evaluations"] == 1001
    assert stats["p95_latency"] == pytest.approx(950, rel=0.02)
    assert (await got(acme, "/evaluations?session_id=s1&limit=1"))["total"] == 500


async def test_exports_hold_what_the_list_holds(acme: TenantClient) -> None:
    text = 'He said "no",\r\nthen; =left\t✓'
    await evaluate(
        acme, response=text, metadata={"a": [1, {"b": None}]}, retrieved_docs=["x", "y, z"], session_id="one"
    )
    for number in range(3):
        await evaluate(acme, latency_sec=number / 3, hallucinated=number == 1, session_id="one", mode=None)
    await evaluate(acme, session_id="two", model_name="other")
    assert len((await got(acme, "/evaluations"))["items"]) == 5
    for query, count in (("", 5), ("session_id=one", 4), ("hallucinated=true", 1), ("model_name=none", 0)):
        listed = (await got(acme, f"/evaluations?{query}"))["items"]
        assert len(listed) == count
        files = {}
        for form, media in (
            ("csv", "text/csv"),
            ("jsonl", "application/x-ndjson"),
            ("parquet", "application/vnd.apache.parquet"),
        ):
            answer = await acme.http.get(f"/evaluations/export?format={form}&{query}")
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith(media)
            assert f'filename="evaluations.{form}"' in answer.headers["content-disposition"]
            files[form] = answer.content
        assert [json.loads(line) for line in files["jsonl"].splitlines()] == listed
        rows = list(csv.DictReader(io.StringIO(files["csv"].decode(), newline="")))
        table = pyarrow.parquet.read_table(io.BytesIO(files["parquet"])).to_pylist()
        assert len(rows) == len(table) == count
        for one, row, cells in zip(listed, table, rows, strict=True):
            assert row.keys() == one.keys() == cells.keys()
            assert row == {**one, "created_at": row["created_at"], "metadata": row["metadata"]}
            assert row["created_at"] == datetime.fromisoformat(one["created_at"])
            assert json.loads(row["metadata"] or "null") == one["metadata"]
            for name, value in one.items():
                shown = cells[name] if value is None or isinstance(value, str) else json.loads(cells[name])
                assert shown == ("" if value is None else value), name
    assert (await acme.http.get("/evaluations/export")).headers["content-type"].startswith("text/csv")


async def test_exports_go_on_beyond_a_page(acme: TenantClient) -> None:
    rows = [{**SENT, "session_id": str(number)} for number in range(700)]
    for _ in range(2):
        assert (await acme.http.post("/evaluations/batch", json=rows)).status_code == 201
    lines = (await acme.http.get("/evaluations/export?format=jsonl")).content.splitlines()
    found = [json.loads(line) for line in lines]
    assert len({one["id"] for one in found}) == len(found) == 1400
    assert [one["created_at"] for one in found] == sorted((one["created_at"] for one in found), reverse=True)


async def test_artifacts_are_exported_with_the_filters_of_their_list(acme: TenantClient) -> None:
    for name in ("a", "b"):
        body = {"kurral_id": name, "environment": name, "tags": {"team": "x"}, "semantic_buckets": ["s, t", '"u"']}
        assert (await acme.http.post("/artifacts/upload", json=body)).status_code == 201
    (listed,) = (await got(acme, "/artifacts?environment=a"))["items"]
    lines = (await acme.http.get("/artifacts/export?format=jsonl&environment=a")).content.splitlines()
    assert [json.loads(line) for line in lines] == [listed]
    parquet = (await acme.http.get("/artifacts/export?format=parquet&environment=a")).content
    (row,) = pyarrow.parquet.read_table(io.BytesIO(parquet)).to_pylist()
    assert {name: row[name] for name in ("kurral_id", "tags", "semantic_buckets", "size_bytes")} == {
        name: listed[name] for name in ("kurral_id", "tags", "semantic_buckets", "size_bytes")
    }
    rows = (await acme.http.get("/artifacts/export?environment=a")).content.decode()
    (cells,) = csv.DictReader(io.StringIO(rows, newline=""))
    assert (cells["kurral_id"], json.loads(cells["semantic_buckets"])) == ("a", listed["semantic_buckets"])


async def test_a_tenant_sees_and_counts_its_own_alone(acme: TenantClient, other_tenant: TenantClient) -> None:
    mine, theirs = await evaluate(acme), await evaluate(other_tenant, hallucinated=True)
    assert [one["id"] for one in (await got(acme, "/evaluations"))["items"]] == [mine["id"]]
    for path in (f"/evaluations/{theirs['id']}",):
        assert (await acme.http.get(path)).status_code == 404
        assert (await acme.http.delete(path)).status_code == 404
    assert (await got(acme, "/evaluations/stats"))["total_hallucinations"] == 0
    assert sum(one["count"] for one in (await got(acme, "/evaluations/timeseries"))["items"]) == 1
    exported = (await acme.http.get("/evaluations/export?format=jsonl")).content.splitlines()
    assert [json.loads(line)["id"] for line in exported] == [mine["id"]]
    assert (await got(other_tenant, f"/evaluations/{theirs['id']}"))["tenant_id"] == other_tenant.tenant_id
    await other_tenant.http.post("/artifacts/upload", json={"kurral_id": "theirs"})
    refused = await acme.http.post("/evaluations", json={**SENT, "artifact_id": "theirs"})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "artifact_id")


async def test_an_evaluation_is_linked_to_its_execution_and_artifact(shared_tenant: TenantClient) -> None:
    run = await shared_tenant.run_agent("hello", {"name": "Ada"})
    assert (await shared_tenant.http.post("/artifacts/upload", json={"kurral_id": "linked"})).status_code in (201, 409)
    both = await evaluate(shared_tenant, execution_id=run["id"], artifact_id="linked")
    assert (both["execution_id"], both["artifact_id"]) == (run["id"], "linked")
    (found,) = (await got(shared_tenant, f"/evaluations?execution_id={run['id']}"))["items"]
    assert found == both
    assert both["id"] in [one["id"] for one in (await got(shared_tenant, "/evaluations?artifact_id=linked"))["items"]]
    assert (await got(shared_tenant, f"/evaluations/stats?execution_id={run['id']}"))["total_evaluations"] == 1
    before = (await got(shared_tenant, "/evaluations/stats"))["total_evaluations"]
    for field, value in (
        ("execution_id", "exec_01k00000000000000000000000"),
        ("execution_id", "nonsense"),
        ("execution_id", run["agent_id"]),
        ("artifact_id", "nothing"),
    ):
        refused = await shared_tenant.http.post("/evaluations", json={**SENT, field: value})
        assert refused.status_code == 422, refused.text
        assert [one["field"] for one in refused.json()["errors"]] == [field]
        rows = [SENT, {**SENT, field: value}]
        refused = await shared_tenant.http.post("/evaluations/batch", json=rows)
        assert [one["field"] for one in refused.json()["errors"]] == [f"evaluations[1].{field}"]
    assert (await got(shared_tenant, "/evaluations/stats"))["total_evaluations"] == before


async def test_the_series_counts_late_records_where_they_belong(acme: TenantClient) -> None:
    now = datetime.now(UTC)
    for days, latency in ((0, 1.0), (2, 3.0), (2, 5.0), (40, 7.0)):
        await evaluate(acme, created_at=(now - timedelta(days=days)).isoformat(), latency_sec=latency)
    series = (await got(acme, "/evaluations/timeseries?days=90"))["items"]
    assert len(series) == 90
    found = {one["date"][:10]: (one["count"], one["avg_latency"]) for one in series if one["count"]}
    days = [(now - timedelta(days=ago)).date().isoformat() for ago in (0, 2, 40)]
    assert found == dict(zip(days, ((1, 1.0), (2, 4.0), (1, 7.0)), strict=True))
    assert [one["avg_latency"] for one in series if not one["count"]] == [None] * 87
    assert sum(one["count"] for one in (await got(acme, "/evaluations/timeseries"))["items"]) == 3
    hours = (await got(acme, "/evaluations/timeseries?days=3&bucket=hour"))["data"]
    assert (len(hours), sum(one["count"] for one in hours)) == (72, 3)
    assert (await got(acme, "/evaluations/stats?days=7"))["total_evaluations"] == 3
    assert (await got(acme, "/evaluations/stats"))["total_evaluations"] == 4


async def test_a_series_is_narrowed_by_times_as_well(acme: TenantClient) -> None:
    """A parameter that is taken does something."""
    now = datetime.now(UTC)
    for days in (0, 2):
        made = now - timedelta(days=days)
        await evaluate(acme, created_at=made.isoformat())
        body = {"created_at": made.isoformat()}
        assert (await acme.http.post("/artifacts/upload", json=body)).status_code == 201
    day_ago = (now - timedelta(days=1)).isoformat().replace("+00:00", "Z")
    for path, name in (("/evaluations/timeseries", "until"), ("/stats/timeseries", "end_date")):
        answer = await acme.http.get(f"{path}?{name}={day_ago}")
        # Refusing it would do as well.
        assert answer.status_code == 422 or sum(one["count"] for one in answer.json()["items"]) == 1, path


async def test_what_agentops_client_sends_is_stored(system: System, acme: TenantClient) -> None:
    # As `agentops-client` 0.2.2 posts it, whatever of the two its `api_url` is.
    sent = {**SENT, "retrieved_docs": ["Paris is in France."], "session_id": None}
    headers = {"X-API-Key": await acme.create_key()}
    async with httpx.AsyncClient(timeout=5.0) as client:
        for number, api_url in enumerate((system.url, f"{system.url}/api/v1"), 1):
            answer = await client.post(f"{api_url}/metrics", json=sent, headers=headers)
            assert answer.status_code == 201, answer.text
            stored = await got(acme, f"/evaluations/{answer.json()['id']}")
            assert {name: stored[name] for name in SENT} == SENT
            assert stored["retrieved_docs"] == sent["retrieved_docs"]
            assert (await got(acme, "/evaluations/stats"))["total_evaluations"] == number
            assert (await client.post(f"{api_url}/metrics", json=sent)).status_code == 401
            assert "x-ratelimit-limit" in answer.headers
        assert "paddock_requests" in (await client.get(f"{system.url}/metrics")).text
