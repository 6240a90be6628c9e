"""Test evaluations: every example of seeds/agentops.md under /api/v1, computed metrics, exports and series."""

import csv
import io
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pyarrow.parquet
import pytest

from scripts.system import System
from tests.support.clients import TenantClient, wait_for_result

EVALUATION_BODY: dict[str, Any] = {
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
COMPUTED_METRICS = ("semantic_drift", "uncertainty", "factual_support", "hallucination_probability", "hallucinated")
BARE_EVALUATION = {"prompt": EVALUATION_BODY["prompt"], "response": EVALUATION_BODY["response"]}


async def create_evaluation(owner: TenantClient, **fields: Any) -> dict[str, Any]:
    answer = await owner.http.post("/evaluations", json={**EVALUATION_BODY, **fields})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


async def read_json(owner: TenantClient, path: str) -> Any:
    answer = await owner.http.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def wait_for_metrics(owner: TenantClient, evaluation_id: str) -> dict[str, Any]:
    """Return the evaluation once its metrics are no longer pending."""

    async def find_computed() -> Any:
        evaluation = await read_json(owner, f"/evaluations/{evaluation_id}")
        return evaluation if evaluation["metrics"] != "pending" else None

    return dict(await wait_for_result(find_computed))


async def test_evaluations_as_agentops_shows_them(system: System) -> None:
    async with httpx.AsyncClient(base_url=f"{system.url}/api/v1") as web:
        person = {"email": "evals@example.com", "password": "securepassword123", "full_name": "John Doe"}
        assert (await web.post("/auth/register", json=person)).status_code == 201
        login = await web.post("/auth/login", json={"email": person["email"], "password": person["password"]})
        bearer = {"Authorization": f"Bearer {login.json()['access_token']}"}
        created_key = await web.post("/auth/api-keys", headers=bearer, json={"name": "My Production Key"})
        assert created_key.status_code == 201
        web.headers["X-API-Key"] = created_key.json()["key"]

        answer = await web.post("/evaluations/", json=EVALUATION_BODY)
        assert answer.status_code == 201
        first = answer.json()
        assert {name: first[name] for name in EVALUATION_BODY} == EVALUATION_BODY
        assert (first["metrics"], first["computed"]) == ("sent", [])
        assert (await web.get(f"/evaluations/{first['id']}")).json() == first
        hallucinated_body = {**EVALUATION_BODY, "hallucinated": True, "latency_sec": 0.58, "throughput_qps": 1.0, "semantic_drift": 0.5,
                 "uncertainty": 0.5, "factual_support": 0.15, "agent_name": "other"}  # fmt: skip
        second = (await web.post("/evaluations/", json=hallucinated_body)).json()
        third = (
            await web.post("/evaluations/", json={**EVALUATION_BODY, "latency_sec": None, "model_name": "other"})
        ).json()

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
        filtered = (await web.get("/evaluations/stats?days=7&agent_name=other")).json()
        assert (filtered["total_evaluations"], filtered["hallucination_rate"]) == (1, 1.0)
        assert filtered["p99_latency"] == pytest.approx(0.58, rel=0.011)

        listed = (await web.get("/evaluations/?limit=10&hallucinated=true")).json()
        assert listed == {"items": [second], "total": 1, "limit": 10, "offset": 0, "has_more": False}
        page = (await web.get("/evaluations/?limit=2")).json()
        assert ([evaluation["id"] for evaluation in page["items"]], page["total"]) == ([third["id"], second["id"]], 3)
        assert page["has_more"] is True

        assert (await web.delete(f"/evaluations/{second['id']}")).status_code == 204
        assert (await web.get(f"/evaluations/{second['id']}")).status_code == 404
        assert (await web.delete(f"/evaluations/{second['id']}")).status_code == 404
        stats = (await web.get("/evaluations/stats?days=7")).json()
        assert (stats["total_evaluations"], stats["total_hallucinations"], stats["avg_latency"]) == (2, 0, 0.42)
        assert stats["by_agent"] == {"qa_assistant": 2}


async def test_missing_metrics_are_computed_in_the_background(acme: TenantClient) -> None:
    docs = ["Paris is the capital and largest city of France."]
    created = await acme.http.post("/evaluations", json={**BARE_EVALUATION, "retrieved_docs": docs})
    assert created.status_code == 201
    assert created.json()["metrics"] == "pending"
    computed = await wait_for_metrics(acme, created.json()["id"])
    assert computed["metrics"] == "computed"
    assert set(computed["computed"]) == set(COMPUTED_METRICS)
    drift, factual, uncertainty = computed["semantic_drift"], computed["factual_support"], computed["uncertainty"]
    assert computed["hallucination_probability"] == pytest.approx(
        0.4 * (1 - factual) + 0.4 * drift + 0.2 * uncertainty, abs=1e-5
    )
    assert computed["hallucinated"] is (computed["hallucination_probability"] > 0.45)
    assert (computed["retrieved_docs"], computed["latency_sec"]) == (docs, None)

    unsupported_body = {
        "prompt": BARE_EVALUATION["prompt"],
        "response": "Perhaps my bicycle might possibly enjoy jazz, I am not sure.",
    }
    unsupported = await wait_for_metrics(
        acme, (await acme.http.post("/evaluations", json={**unsupported_body, "retrieved_docs": docs})).json()["id"]
    )
    assert unsupported["hallucinated"] is True
    assert unsupported["semantic_drift"] > drift
    assert unsupported["factual_support"] < factual
    assert unsupported["uncertainty"] > uncertainty
    stats = await read_json(acme, "/evaluations/stats")
    assert (stats["total_evaluations"], stats["total_hallucinations"]) == (2, 1 + computed["hallucinated"])
    assert stats["avg_semantic_drift"] == pytest.approx((drift + unsupported["semantic_drift"]) / 2)
    hallucinated = (await read_json(acme, "/evaluations?hallucinated=true"))["items"]
    assert unsupported["id"] in [evaluation["id"] for evaluation in hallucinated]


async def test_sent_metrics_are_kept(acme: TenantClient) -> None:
    partial_body = {**BARE_EVALUATION, "uncertainty": 0.875, "hallucinated": True, "semantic_drift": 0.0}
    computed = await wait_for_metrics(acme, (await acme.http.post("/evaluations", json=partial_body)).json()["id"])
    assert {name: computed[name] for name in partial_body} == partial_body
    assert set(computed["computed"]) == {"factual_support", "hallucination_probability"}
    whole = await create_evaluation(acme, hallucination_probability=0.99)
    assert (whole["metrics"], whole["hallucinated"]) == ("sent", False)


async def test_batch_is_stored_in_order(acme: TenantClient) -> None:
    rows = [{**EVALUATION_BODY, "session_id": f"s{number % 2}", "latency_sec": float(number)} for number in range(1000)]
    answer = await acme.http.post("/evaluations/batch", json={"evaluations": rows})
    assert answer.status_code == 201, answer.text
    assert (answer.json()["created"], len(set(answer.json()["ids"]))) == (1000, 1000)
    for number in (0, 999):
        assert (await read_json(acme, f"/evaluations/{answer.json()['ids'][number]}"))["latency_sec"] == number
    single_answer = await acme.http.post("/evaluations/batch", json=[EVALUATION_BODY])
    assert single_answer.json()["created"] == 1
    stats = await read_json(acme, "/evaluations/stats")
    assert stats["total_evaluations"] == 1001
    assert stats["p95_latency"] == pytest.approx(950, rel=0.02)
    assert (await read_json(acme, "/evaluations?session_id=s1&limit=1"))["total"] == 500


async def test_exports_contain_the_listed_evaluations(acme: TenantClient) -> None:
    text = 'He said "no",\r\nthen; =left\t✓'
    await create_evaluation(
        acme, response=text, metadata={"a": [1, {"b": None}]}, retrieved_docs=["x", "y, z"], session_id="one"
    )
    for number in range(3):
        await create_evaluation(acme, latency_sec=number / 3, hallucinated=number == 1, session_id="one", mode=None)
    await create_evaluation(acme, session_id="two", model_name="other")
    assert len((await read_json(acme, "/evaluations"))["items"]) == 5
    for query, count in (("", 5), ("session_id=one", 4), ("hallucinated=true", 1), ("model_name=none", 0)):
        listed = (await read_json(acme, f"/evaluations?{query}"))["items"]
        assert len(listed) == count
        files = {}
        for file_format, media_type in (
            ("csv", "text/csv"),
            ("jsonl", "application/x-ndjson"),
            ("parquet", "application/vnd.apache.parquet"),
        ):
            answer = await acme.http.get(f"/evaluations/export?format={file_format}&{query}")
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith(media_type)
            assert f'filename="evaluations.{file_format}"' in answer.headers["content-disposition"]
            files[file_format] = answer.content
        assert [json.loads(line) for line in files["jsonl"].splitlines()] == listed
        rows = list(csv.DictReader(io.StringIO(files["csv"].decode(), newline="")))
        table = pyarrow.parquet.read_table(io.BytesIO(files["parquet"])).to_pylist()
        assert len(rows) == len(table) == count
        for evaluation, row, cells in zip(listed, table, rows, strict=True):
            assert row.keys() == evaluation.keys() == cells.keys()
            assert row == {**evaluation, "created_at": row["created_at"], "metadata": row["metadata"]}
            assert row["created_at"] == datetime.fromisoformat(evaluation["created_at"])
            assert json.loads(row["metadata"] or "null") == evaluation["metadata"]
            for name, value in evaluation.items():
                cell = cells[name] if value is None or isinstance(value, str) else json.loads(cells[name])
                assert cell == ("" if value is None else value), name
    assert (await acme.http.get("/evaluations/export")).headers["content-type"].startswith("text/csv")


async def test_exports_continue_beyond_one_page(acme: TenantClient) -> None:
    rows = [{**EVALUATION_BODY, "session_id": str(number)} for number in range(700)]
    for _ in range(2):
        assert (await acme.http.post("/evaluations/batch", json=rows)).status_code == 201
    lines = (await acme.http.get("/evaluations/export?format=jsonl")).content.splitlines()
    exported = [json.loads(line) for line in lines]
    assert len({evaluation["id"] for evaluation in exported}) == len(exported) == 1400
    assert [evaluation["created_at"] for evaluation in exported] == sorted(
        (evaluation["created_at"] for evaluation in exported), reverse=True
    )


async def test_artifact_exports_accept_the_filters_of_the_list(acme: TenantClient) -> None:
    for name in ("a", "b"):
        body = {"kurral_id": name, "environment": name, "tags": {"team": "x"}, "semantic_buckets": ["s, t", '"u"']}
        assert (await acme.http.post("/artifacts/upload", json=body)).status_code == 201
    (listed,) = (await read_json(acme, "/artifacts?environment=a"))["items"]
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


async def test_tenant_sees_and_counts_only_its_own_evaluations(acme: TenantClient, other_tenant: TenantClient) -> None:
    own, foreign = await create_evaluation(acme), await create_evaluation(other_tenant, hallucinated=True)
    assert [evaluation["id"] for evaluation in (await read_json(acme, "/evaluations"))["items"]] == [own["id"]]
    for path in (f"/evaluations/{foreign['id']}",):
        assert (await acme.http.get(path)).status_code == 404
        assert (await acme.http.delete(path)).status_code == 404
    assert (await read_json(acme, "/evaluations/stats"))["total_hallucinations"] == 0
    assert sum(bucket["count"] for bucket in (await read_json(acme, "/evaluations/timeseries"))["items"]) == 1
    exported = (await acme.http.get("/evaluations/export?format=jsonl")).content.splitlines()
    assert [json.loads(line)["id"] for line in exported] == [own["id"]]
    assert (await read_json(other_tenant, f"/evaluations/{foreign['id']}"))["tenant_id"] == other_tenant.tenant_id
    await other_tenant.http.post("/artifacts/upload", json={"kurral_id": "theirs"})
    refused = await acme.http.post("/evaluations", json={**EVALUATION_BODY, "artifact_id": "theirs"})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "artifact_id")


async def test_evaluation_is_linked_to_its_execution_and_artifact(shared_tenant: TenantClient) -> None:
    run = await shared_tenant.run_agent("hello", {"name": "Ada"})
    assert (await shared_tenant.http.post("/artifacts/upload", json={"kurral_id": "linked"})).status_code in (201, 409)
    linked = await create_evaluation(shared_tenant, execution_id=run["id"], artifact_id="linked")
    assert (linked["execution_id"], linked["artifact_id"]) == (run["id"], "linked")
    (listed,) = (await read_json(shared_tenant, f"/evaluations?execution_id={run['id']}"))["items"]
    assert listed == linked
    assert linked["id"] in [
        evaluation["id"] for evaluation in (await read_json(shared_tenant, "/evaluations?artifact_id=linked"))["items"]
    ]
    assert (await read_json(shared_tenant, f"/evaluations/stats?execution_id={run['id']}"))["total_evaluations"] == 1
    before = (await read_json(shared_tenant, "/evaluations/stats"))["total_evaluations"]
    for field, value in (
        ("execution_id", "exec_01k00000000000000000000000"),
        ("execution_id", "nonsense"),
        ("execution_id", run["agent_id"]),
        ("artifact_id", "nothing"),
    ):
        refused = await shared_tenant.http.post("/evaluations", json={**EVALUATION_BODY, field: value})
        assert refused.status_code == 422, refused.text
        assert [error["field"] for error in refused.json()["errors"]] == [field]
        rows = [EVALUATION_BODY, {**EVALUATION_BODY, field: value}]
        refused = await shared_tenant.http.post("/evaluations/batch", json=rows)
        assert [error["field"] for error in refused.json()["errors"]] == [f"evaluations[1].{field}"]
    assert (await read_json(shared_tenant, "/evaluations/stats"))["total_evaluations"] == before


async def test_series_counts_late_records_in_their_own_bucket(acme: TenantClient) -> None:
    now = datetime.now(UTC)
    for days, latency in ((0, 1.0), (2, 3.0), (2, 5.0), (40, 7.0)):
        await create_evaluation(acme, created_at=(now - timedelta(days=days)).isoformat(), latency_sec=latency)
    series = (await read_json(acme, "/evaluations/timeseries?days=90"))["items"]
    assert len(series) == 90
    counts_by_day = {
        bucket["date"][:10]: (bucket["count"], bucket["avg_latency"]) for bucket in series if bucket["count"]
    }
    days = [(now - timedelta(days=ago)).date().isoformat() for ago in (0, 2, 40)]
    assert counts_by_day == dict(zip(days, ((1, 1.0), (2, 4.0), (1, 7.0)), strict=True))
    assert [bucket["avg_latency"] for bucket in series if not bucket["count"]] == [None] * 87
    assert sum(bucket["count"] for bucket in (await read_json(acme, "/evaluations/timeseries"))["items"]) == 3
    hours = (await read_json(acme, "/evaluations/timeseries?days=3&bucket=hour"))["data"]
    assert (len(hours), sum(bucket["count"] for bucket in hours)) == (72, 3)
    assert (await read_json(acme, "/evaluations/stats?days=7"))["total_evaluations"] == 3
    assert (await read_json(acme, "/evaluations/stats"))["total_evaluations"] == 4


async def test_series_is_filtered_by_times(acme: TenantClient) -> None:
    """Ensure that an accepted parameter has an effect."""
    now = datetime.now(UTC)
    for days in (0, 2):
        created_at = now - timedelta(days=days)
        await create_evaluation(acme, created_at=created_at.isoformat())
        body = {"created_at": created_at.isoformat()}
        assert (await acme.http.post("/artifacts/upload", json=body)).status_code == 201
    day_ago = (now - timedelta(days=1)).isoformat().replace("+00:00", "Z")
    for path, name in (("/evaluations/timeseries", "until"), ("/stats/timeseries", "end_date")):
        answer = await acme.http.get(f"{path}?{name}={day_ago}")
        # A refusal would be correct as well.
        assert answer.status_code == 422 or sum(item["count"] for item in answer.json()["items"]) == 1, path


async def test_evaluations_of_the_agentops_client_are_stored(system: System, acme: TenantClient) -> None:
    # As `agentops-client` 0.2.2 posts it, with either form of its `api_url`.
    sent = {**EVALUATION_BODY, "retrieved_docs": ["Paris is in France."], "session_id": None}
    headers = {"X-API-Key": await acme.create_key()}
    async with httpx.AsyncClient(timeout=5.0) as client:
        for number, api_url in enumerate((system.url, f"{system.url}/api/v1"), 1):
            answer = await client.post(f"{api_url}/metrics", json=sent, headers=headers)
            assert answer.status_code == 201, answer.text
            stored = await read_json(acme, f"/evaluations/{answer.json()['id']}")
            assert {name: stored[name] for name in EVALUATION_BODY} == EVALUATION_BODY
            assert stored["retrieved_docs"] == sent["retrieved_docs"]
            assert (await read_json(acme, "/evaluations/stats"))["total_evaluations"] == number
            assert (await client.post(f"{api_url}/metrics", json=sent)).status_code == 401
            assert "x-ratelimit-limit" in answer.headers
        assert "paddock_requests" in (await client.get(f"{system.url}/metrics")).text
