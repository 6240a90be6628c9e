"""Workers process records through failures: bodies being stored, evaluations that cannot be scored."""

import asyncio
import secrets
from datetime import timedelta

import httpx
import pytest

from domain import evaluations
from domain.shared.errors import DomainError
from tests.support.clients import TenantClient
from workers.record.artifacts import BodyUploader


async def _upload_artifacts(tenant: TenantClient, count: int = 1) -> list[str]:
    artifact_ids = []
    for _ in range(count):
        answer = await tenant.http.post("/artifacts/upload", json={"inputs": {"is": secrets.token_hex(100)}})
        assert answer.status_code == 201, answer.text
        artifact_ids.append(str(answer.json()["id"]))
    return artifact_ids


async def _wait_until_stored(resources, tenant: TenantClient) -> None:
    """Wait until no body of the tenant is pending."""
    while True:
        async with resources.store.tenant_transaction(tenant.tenant_id) as tx:
            if not await tx._raw.fetchval("SELECT count(*) FROM artifact_bodies"):
                return
        await asyncio.sleep(0.05)


async def _can_read(tenant: TenantClient, artifact_ids: list[str]) -> bool:
    answers = [await tenant.http.get(f"/artifacts/{artifact_id}") for artifact_id in artifact_ids]
    return all(answer.status_code == 200 for answer in answers)


async def test_bodies_marked_stored_twice_stay(resources, acme: TenantClient) -> None:
    """Mark again, as after a lost answer to a commit or an expired lease."""
    artifacts = await _upload_artifacts(acme, 3)
    await _wait_until_stored(resources, acme)
    for _ in range(2):
        async with resources.store.system_transaction() as tx:
            assert await tx.artifacts.mark_bodies_stored(artifacts) == set()
    assert await _can_read(acme, artifacts)


async def test_deleted_artifacts_leave_object_storage_after_a_failed_attempt(resources, acme: TenantClient) -> None:
    kept_id, deleted_id = await _upload_artifacts(acme, 2)
    async with resources.store.tenant_transaction(acme.tenant_id) as tx:
        from infra.postgres.artifacts import get_body_key

        keys = {artifact_id: get_body_key(await tx.artifacts.get(artifact_id)) for artifact_id in (kept_id, deleted_id)}
    await _wait_until_stored(resources, acme)
    failures = [DomainError("storage_unavailable", "Away."), None]

    class FailingBlobs:
        async def delete(self, keys: list[str]) -> None:
            if (error := failures.pop(0)) is not None:
                raise error
            await resources.blobs.delete(keys)

    assert (await acme.http.delete(f"/artifacts/{deleted_id}")).status_code == 204
    from domain.artifacts.service import PendingBody
    from infra.polling import retry_through_outage

    body_uploader = BodyUploader(resources.store, FailingBlobs())  # type: ignore[arg-type]
    pending_bodies = [PendingBody(id=artifact_id, key=key, packed_body=b"") for artifact_id, key in keys.items()]
    await retry_through_outage(lambda: body_uploader._settle_uploads(pending_bodies))
    assert failures == []
    assert await _can_read(acme, [kept_id])
    assert [blob.key async for blob in resources.blobs.list_objects(keys[deleted_id])] == []


async def test_evaluation_whose_workers_die_fails_after_three_attempts(resources, acme: TenantClient) -> None:
    """Claim again and again past the lease, as workers do that are killed."""
    async with resources.store.tenant_transaction(acme.tenant_id) as tx:
        new_evaluations = evaluations.build_evaluations(
            acme.tenant_id,
            acme.account["id"],
            [evaluations.parse_evaluation(b'{"prompt":"a","response":"b"}')],
            tx.now,
            False,
        )
        await tx.evaluations.add(new_evaluations)
        now = tx.now
        for attempt in range(1, 5):
            now += timedelta(hours=1)
            claimed = await tx.evaluations.claim_pending(10_000, now, now + timedelta(minutes=1))
            own_claims = [claim for claim in claimed if claim.evaluation.id == new_evaluations[0].id]
            assert [claim.attempt for claim in own_claims] == ([attempt] if attempt <= 3 else [])
        assert (await tx.evaluations.get(new_evaluations[0].id)).metrics == "failed"


@pytest.mark.parametrize("text", ["~/" * 32_000, "a_" * 32_000, "-" * 64_000, "http://" * 9_000, "e5." * 20_000])
async def test_error_texts_of_any_kind_are_indexed_in_time(acme: TenantClient, text: str) -> None:
    # Six at once took Postgres minutes; the client waits a minute and a half in all.
    uploads = [acme.http.post("/artifacts/upload", json={"error": {"type": "Odd", "stack": text}}) for _ in range(6)]
    assert [answer.status_code for answer in await asyncio.gather(*uploads)] == [201] * 6
    answer = await acme.http.get("/artifacts", params={"search": text[:3000], "error_type": "Odd"})
    assert answer.status_code == 200


async def test_search_finds_words_and_phrases(acme: TenantClient) -> None:
    for number, stack in enumerate(['File "app/pay.py", line 3', "pay by py", "", "naïve über_fluss -5"]):
        error = {"type": "E", "message": "m", "stack": stack}
        body = {"kurral_id": f"s{number}", "error": error}
        assert (await acme.http.post("/artifacts/upload", json=body)).status_code == 201

    async def search_artifacts(search: str) -> set[str]:
        answer = await acme.http.get("/artifacts", params={"search": search})
        assert answer.status_code == 200, answer.text
        return {item["kurral_id"] for item in answer.json()["items"]}

    assert await search_artifacts("pay.py") == {"s0"}
    assert await search_artifacts('"pay by"') == {"s1"}
    assert await search_artifacts("pay -by") == {"s0"}
    assert await search_artifacts("line or über_fluss") == {"s0", "s3"}
    assert await search_artifacts("nothing") == set()
    assert await search_artifacts("-" * 50) == set()


async def test_all_values_are_counted_beyond_those_listed(acme: TenantClient) -> None:
    rows = [{"prompt": "a", "response": "b", "model_name": f"m{number}"} for number in range(3000)]
    rows += [{"prompt": "a", "response": "b", "model_name": "often"}] * 3
    for start in range(0, len(rows), 1000):
        assert (await acme.http.post("/evaluations/batch", json=rows[start : start + 1000])).status_code == 201
    figures = (await acme.http.get("/evaluations/stats")).json()
    assert figures["total_evaluations"] == 3003
    assert next(iter(figures["by_model"].items())) == ("often", 3)
    # Scored rows are groups of their own while the worker is running.
    assert 0 < len(figures["by_model"]) <= 2000
    assert (await acme.http.get("/evaluations/stats?model_name=m2999")).json()["total_evaluations"] == 1


async def test_lists_truncate_long_texts_and_exports_do_not(acme: TenantClient) -> None:
    docs = ["d" * 20_000]
    long = {"prompt": "p" * 500_000, "response": "r" * 500_000, "retrieved_docs": docs, "metadata": {"a": "b"}}
    for _ in range(12):
        assert (await acme.http.post("/evaluations", json=long)).status_code == 201
    listed = (await acme.http.get("/evaluations")).json()
    assert (listed["total"], len(listed["items"])) == (12, 12)
    for item in listed["items"]:
        assert (len(item["prompt"]), len(item["response"]), item["retrieved_docs"]) == (4000, 4000, None)
        assert item["metadata"] == {"a": "b"}
    evaluation = (await acme.http.get(f"/evaluations/{listed['items'][0]['id']}")).json()
    assert (evaluation["prompt"], evaluation["response"], evaluation["retrieved_docs"]) == (
        long["prompt"],
        long["response"],
        docs,
    )
    export: httpx.Response = await acme.http.get("/evaluations/export?format=jsonl")
    lines = export.text.splitlines()
    assert len(lines) == 12
    assert all(len(line) > 1_000_000 for line in lines)


async def test_metadata_is_an_object_of_limited_size(acme: TenantClient) -> None:
    good = {"prompt": "a", "response": "b"}
    for metadata in ([], "x", 1, {"a": "x" * 70_000}):
        refused = await acme.http.post("/evaluations", json={**good, "metadata": metadata})
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "metadata")
        refused = await acme.http.post("/evaluations/batch", json=[good, {**good, "metadata": metadata}])
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "evaluations[1].metadata")
    body = b'{"prompt":"a","response":"b","metadata":%s}'
    assert (await acme.http.post("/evaluations", content=body % b'{"a":"\xff"}')).status_code in (400, 422)
    half = await acme.http.post("/evaluations", content=body % rb'{"a":"\ud800"}')
    assert (half.status_code, half.json()["metadata"]) == (201, {"a": "\ufffd"})
    stored_metadata = {"a": [1, 2.5, None, {"ü": "\0"}]}
    evaluation = (await acme.http.post("/evaluations", json={**good, "metadata": stored_metadata})).json()
    assert evaluation["metadata"] == stored_metadata
    assert (await acme.http.get(f"/evaluations/{evaluation['id']}")).json()["metadata"] == stored_metadata
    assert (await acme.http.post("/evaluations", json={**good, "metadata": None})).json()["metadata"] is None
