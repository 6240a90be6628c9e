"""What workers do with records when things go wrong: bodies on their way, evaluations that cannot be judged."""

import asyncio
import secrets
from datetime import timedelta

import httpx
import pytest

from domain import evaluations
from domain.shared.errors import DomainError
from tests.support.clients import TenantClient
from workers.record.artifacts import BodyUploader


async def _uploaded(tenant: TenantClient, count: int = 1) -> list[str]:
    made = []
    for _ in range(count):
        answer = await tenant.http.post("/artifacts/upload", json={"inputs": {"is": secrets.token_hex(100)}})
        assert answer.status_code == 201, answer.text
        made.append(str(answer.json()["id"]))
    return made


async def _moved(resources, tenant: TenantClient) -> None:
    """Until no body of the tenant waits any more."""
    while True:
        async with resources.store.tenant_transaction(tenant.tenant_id) as tx:
            if not await tx._raw.fetchval("SELECT count(*) FROM artifact_bodies"):
                return
        await asyncio.sleep(0.05)


async def _readable(tenant: TenantClient, artifacts: list[str]) -> bool:
    answers = [await tenant.http.get(f"/artifacts/{one}") for one in artifacts]
    return all(answer.status_code == 200 for answer in answers)


async def test_bodies_settled_twice_stay(resources, acme: TenantClient) -> None:
    """As when the answer to a commit is lost, or a lease has run out and another worker was quicker."""
    artifacts = await _uploaded(acme, 3)
    await _moved(resources, acme)
    for _ in range(2):
        async with resources.store.system_transaction() as tx:
            assert await tx.artifacts.mark_bodies_stored(artifacts) == set()
    assert await _readable(acme, artifacts)


async def test_of_a_round_only_what_was_deleted_goes_also_if_deleting_fails_at_first(
    resources, acme: TenantClient
) -> None:
    kept, dropped = await _uploaded(acme, 2)
    async with resources.store.tenant_transaction(acme.tenant_id) as tx:
        from infra.postgres.artifacts import get_body_key

        keys = {one: get_body_key(await tx.artifacts.get(one)) for one in (kept, dropped)}
    await _moved(resources, acme)
    failures = [DomainError("storage_unavailable", "Away."), None]

    class Away:
        async def delete(self, keys: list[str]) -> None:
            if (error := failures.pop(0)) is not None:
                raise error
            await resources.blobs.delete(keys)

    assert (await acme.http.delete(f"/artifacts/{dropped}")).status_code == 204
    from domain.artifacts.service import PendingBody
    from infra.polling import retry_through_outage

    storer = BodyUploader(resources.store, Away())  # type: ignore[arg-type]
    round_ = [PendingBody(id=one, key=key, packed_body=b"") for one, key in keys.items()]
    await retry_through_outage(lambda: storer._settle_uploads(round_))
    assert failures == []
    assert await _readable(acme, [kept])
    assert [blob.key async for blob in resources.blobs.list_objects(keys[dropped])] == []


async def test_an_evaluation_whose_workers_die_is_given_up(resources, acme: TenantClient) -> None:
    """Claimed again and again past its lease, as by workers that are killed: three attempts, and no more."""
    async with resources.store.tenant_transaction(acme.tenant_id) as tx:
        made = evaluations.build_evaluations(
            acme.tenant_id,
            acme.account["id"],
            [evaluations.parse_evaluation(b'{"prompt":"a","response":"b"}')],
            tx.now,
            False,
        )
        await tx.evaluations.add(made)
        now = tx.now
        for attempt in range(1, 5):
            now += timedelta(hours=1)
            claimed = await tx.evaluations.claim_pending(10_000, now, now + timedelta(minutes=1))
            mine = [one for one in claimed if one.evaluation.id == made[0].id]
            assert [one.attempt for one in mine] == ([attempt] if attempt <= 3 else [])
        assert (await tx.evaluations.get(made[0].id)).metrics == "failed"


@pytest.mark.parametrize("text", ["~/" * 32_000, "a_" * 32_000, "-" * 64_000, "http://" * 9_000, "e5." * 20_000])
async def test_no_text_of_an_error_is_too_much(acme: TenantClient, text: str) -> None:
    # Six at once took Postgres minutes; the client waits a minute and a half in all.
    sent = [acme.http.post("/artifacts/upload", json={"error": {"type": "Odd", "stack": text}}) for _ in range(6)]
    assert [answer.status_code for answer in await asyncio.gather(*sent)] == [201] * 6
    found = await acme.http.get("/artifacts", params={"search": text[:3000], "error_type": "Odd"})
    assert found.status_code == 200


async def test_search_finds_words_phrases_and_not_others(acme: TenantClient) -> None:
    for number, stack in enumerate(['File "app/pay.py", line 3', "pay by py", "", "naïve über_fluss -5"]):
        error = {"type": "E", "message": "m", "stack": stack}
        body = {"kurral_id": f"s{number}", "error": error}
        assert (await acme.http.post("/artifacts/upload", json=body)).status_code == 201

    async def found(search: str) -> set[str]:
        answer = await acme.http.get("/artifacts", params={"search": search})
        assert answer.status_code == 200, answer.text
        return {item["kurral_id"] for item in answer.json()["items"]}

    assert await found("pay.py") == {"s0"}
    assert await found('"pay by"') == {"s1"}
    assert await found("pay -by") == {"s0"}
    assert await found("line or über_fluss") == {"s0", "s3"}
    assert await found("nothing") == set()
    assert await found("-" * 50) == set()


async def test_more_combinations_than_an_answer_names_are_counted_all(acme: TenantClient) -> None:
    rows = [{"prompt": "a", "response": "b", "model_name": f"m{number}"} for number in range(3000)]
    rows += [{"prompt": "a", "response": "b", "model_name": "often"}] * 3
    for start in range(0, len(rows), 1000):
        assert (await acme.http.post("/evaluations/batch", json=rows[start : start + 1000])).status_code == 201
    figures = (await acme.http.get("/evaluations/stats")).json()
    assert figures["total_evaluations"] == 3003
    assert next(iter(figures["by_model"].items())) == ("often", 3)
    # Judged ones are combinations of their own while the worker is at it.
    assert 0 < len(figures["by_model"]) <= 2000
    assert (await acme.http.get("/evaluations/stats?model_name=m2999")).json()["total_evaluations"] == 1


async def test_lists_show_the_beginning_of_long_texts_and_exports_all(acme: TenantClient) -> None:
    docs = ["d" * 20_000]
    long = {"prompt": "p" * 500_000, "response": "r" * 500_000, "retrieved_docs": docs, "metadata": {"a": "b"}}
    for _ in range(12):
        assert (await acme.http.post("/evaluations", json=long)).status_code == 201
    listed = (await acme.http.get("/evaluations")).json()
    assert (listed["total"], len(listed["items"])) == (12, 12)
    for item in listed["items"]:
        assert (len(item["prompt"]), len(item["response"]), item["retrieved_docs"]) == (4000, 4000, None)
        assert item["metadata"] == {"a": "b"}
    one = (await acme.http.get(f"/evaluations/{listed['items'][0]['id']}")).json()
    assert (one["prompt"], one["response"], one["retrieved_docs"]) == (long["prompt"], long["response"], docs)
    whole: httpx.Response = await acme.http.get("/evaluations/export?format=jsonl")
    lines = whole.text.splitlines()
    assert len(lines) == 12
    assert all(len(line) > 1_000_000 for line in lines)


async def test_metadata_is_an_object_of_a_bounded_size(acme: TenantClient) -> None:
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
    kept = {"a": [1, 2.5, None, {"ü": "\0"}]}
    made = (await acme.http.post("/evaluations", json={**good, "metadata": kept})).json()
    assert made["metadata"] == kept
    assert (await acme.http.get(f"/evaluations/{made['id']}")).json()["metadata"] == kept
    assert (await acme.http.post("/evaluations", json={**good, "metadata": None})).json()["metadata"] is None
