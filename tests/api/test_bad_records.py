"""Every record that is wrong is refused with its problem, leaves nothing behind, and never is a 500."""

import asyncio
import copy
import gzip
import json
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from scripts.system import System
from tests.support.clients import TenantClient, register_tenant

_FILE = Path(__file__).parents[1] / "journeys" / "kurral_artifact.json"
ARTIFACT: dict[str, Any] = json.loads(_FILE.read_bytes()) | {"created_at": "2026-01-01T00:00:00Z"}
SENT = {"prompt": "p", "response": "r", "semantic_drift": 0.1, "uncertainty": 0.1, "factual_support": 0.9,
        "hallucination_probability": 0.1, "hallucinated": False}  # fmt: skip
JSON = {"Content-Type": "application/json"}
MIB = 1 << 20
UPLOAD, ONE, BATCH = "/artifacts/upload", "/evaluations", "/evaluations/batch"
GOOD = {UPLOAD: {"environment": "good"}, ONE: SENT, BATCH: [SENT, SENT]}


@pytest.fixture(scope="module")
async def owner(system: System) -> AsyncIterator[TenantClient]:
    """One tenant for all that is refused: nothing may be left in it."""
    async with register_tenant(system.url) as made:
        yield made


async def counts(owner: TenantClient) -> tuple[int, ...]:
    """How many artifacts and evaluations there are, by statistics and by rows."""
    found = []
    for path, name in (("/stats", "total_artifacts"), ("/evaluations/stats", "total_evaluations")):
        found.append((await owner.http.get(path)).json()[name])
    for path in ("/artifacts", "/evaluations"):
        listed = await owner.http.get(f"{path}?limit=1")
        assert listed.status_code == 200, listed.text
        # Not by `json()`, which gives up on deep metadata sooner than we do.
        found.append(int(re.findall(r'"total":(\d+)', listed.text)[-1]))
    assert found[:2] == found[2:]
    return tuple(found)


async def refused(owner: TenantClient, path: str, status: int, code: str, **sent: Any) -> list[str]:
    """Send what is to be refused; the fields at fault."""
    before = await counts(owner)
    answer = await owner.http.post(path, **sent)
    assert answer.status_code == status, answer.text[:500]
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["error"] == code
    assert await counts(owner) == before
    return [one["field"] for one in answer.json().get("errors", [])]


async def exported(owner: TenantClient) -> None:
    """Every record goes through every export, to its end."""
    for query in ("format=csv", "format=jsonl", "format=parquet"):
        for path in ("/artifacts", "/evaluations"):
            assert (await owner.http.get(f"{path}/export?{query}")).content


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def call(**fields: Any) -> dict[str, Any]:
    return {"tool_calls": [{"id": "a"}, {"id": "b", **fields}]}


TIMES = ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00", "0001-01-01T00:00:00+14:00",
         "9999-12-31T23:59:59Z", "9999-12-31T23:59:59.999999", "9999-12-31T23:59:59-14:00")  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (UPLOAD, {"duration_ms": -1}, "duration_ms"),
        (UPLOAD, {"cost_usd": -0.01}, "cost_usd"),
        (UPLOAD, {"token_usage": {"total": -5}}, "token_usage.total"),
        (UPLOAD, {"cost_usd": "NaN"}, "cost_usd"),
        (UPLOAD, call(latency_ms=-1), "tool_calls[1].latency_ms"),
        (UPLOAD, call(parent_id="c"), "tool_calls[1].parent_id"),
        (UPLOAD, call(parent_id="b"), "tool_calls[1].parent_id"),
        (UPLOAD, {"tool_calls": [{"id": "a", "parent_id": "b"}, {"id": "b", "parent_id": "a"}]}, "tool_calls[0].parent_id"),
        (UPLOAD, {"tool_calls": [{"id": "a"}, {"id": "a"}]}, "tool_calls[1].id"),
        (UPLOAD, {"tool_calls": [{"id": str(n), "parent_id": str(n - 1) if n else None} for n in range(101)]}, "tool_calls[100].parent_id"),
        (UPLOAD, call(start_time="2026-01-01T00:00:01Z", end_time="2026-01-01T00:00:00Z"), "tool_calls[1].end_time"),
        (UPLOAD, call(status="odd"), "tool_calls[1].status"),
        (UPLOAD, call(effect_type="odd"), "tool_calls[1].effect_type"),
        (UPLOAD, call(colour="red"), "tool_calls[1].colour"),
        (UPLOAD, {"tool_calls": [{}] * 100_000}, "tool_calls"),
        (UPLOAD, {"replay_level": "D"}, "replay_level"),
        (UPLOAD, {"deterministic": "yes"}, "deterministic"),
        (UPLOAD, {"determinism_report": {"overall_score": 1.1}}, "determinism_report.overall_score"),
        (UPLOAD, {"colour": "red"}, "colour"),
        (UPLOAD, {"artifact_data": {"colour": "red"}}, "colour"),
        (UPLOAD, {"artifact_data": {}, "environment": "x"}, "environment"),
        (UPLOAD, {"kurral_id": ""}, "kurral_id"),
        (UPLOAD, {"kurral_id": "x" * 129}, "kurral_id"),
        (UPLOAD, {"kurral_id": 7}, "kurral_id"),
        (UPLOAD, {"environment": "x" * 201}, "environment"),
        (UPLOAD, {"semantic_buckets": ["a"] * 33}, "semantic_buckets"),
        (UPLOAD, {"tags": [str(n) for n in range(65)]}, "tags"),
        (UPLOAD, {"tags": {"a": {"b": "c"}}}, "tags[...]"),
        (UPLOAD, {"created_at": "yesterday"}, "created_at"),
        (ONE, {**SENT, "latency_sec": -0.1}, "latency_sec"),
        (ONE, {**SENT, "throughput_qps": -1}, "throughput_qps"),
        (ONE, {**SENT, "throughput_qps": 1e10}, "throughput_qps"),
        *((ONE, {**SENT, "latency_sec": text}, "latency_sec") for text in ("NaN", "nan", "Infinity", "inf", "1e999", "0.5")),
        (ONE, {**SENT, "semantic_drift": 2.1}, "semantic_drift"),
        (ONE, {**SENT, "uncertainty": "low"}, "uncertainty"),
        (ONE, {**SENT, "hallucinated": 1}, "hallucinated"),
        (ONE, {**SENT, "retrieved_docs": ["x"] * 257}, "retrieved_docs"),
        (ONE, {**SENT, "metadata": []}, "metadata"),
        (ONE, {**SENT, "mode": ""}, "mode"),
        (ONE, {**SENT, "model_name": "x" * 201}, "model_name"),
        (ONE, {**SENT, "prompt": "x" * 1_000_001}, "prompt"),
        (ONE, {**SENT, "created_at": "yesterday"}, "created_at"),
        (ONE, {**SENT, "colour": "red"}, "colour"),
        (ONE, {"prompt": "p"}, "response"),
        (BATCH, [], "evaluations"),
        (BATCH, [SENT] * 1001, "evaluations"),
        (BATCH, {"evaluations": {}}, "evaluations"),
        (BATCH, {"evaluations": [SENT], "colour": "red"}, "evaluations"),
        (BATCH, "text", "evaluations"),
        (BATCH, [SENT, SENT, {**SENT, "latency_sec": -1}], "evaluations[2].latency_sec"),
        (BATCH, [SENT, {**SENT, "created_at": "9999-12-31T23:59:59-14:00"}], "evaluations[1].created_at"),
        (BATCH, [SENT, {**SENT, "prompt": "a\0b"}], "evaluations[1].prompt"),
        (BATCH, [SENT, {**SENT, "colour": "red"}], "evaluations[1]"),
        (BATCH, [SENT, None], "evaluations[1]"),
        (BATCH, [*[SENT] * 999, {**SENT, "artifact_id": "nothing"}], "evaluations[999].artifact_id"),
        (BATCH, [SENT, {**SENT, "execution_id": "exec_01k00000000000000000000000"}], "evaluations[1].execution_id"),
        (BATCH, [{**SENT, "artifact_id": "nothing"}], "evaluations[0].artifact_id"),
        *((UPLOAD, {"created_at": at}, "created_at") for at in TIMES),
        *((ONE, {**SENT, "created_at": at}, "created_at") for at in TIMES),
        *((UPLOAD, call(start_time=at), "tool_calls[1].start_time") for at in (TIMES[2], TIMES[5])),
        (UPLOAD, call(start_time=TIMES[3], latency_ms=1000), "tool_calls[1].latency_ms"),
    ],
)  # fmt: skip
async def test_a_bad_field_is_named(owner: TenantClient, path: str, body: Any, field: str) -> None:
    found = await refused(owner, path, 422, "invalid_field", json=body)
    assert any(one == field or one.startswith(f"{field}.") for one in found), found


@pytest.mark.parametrize("path", [UPLOAD, ONE, BATCH])
@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "null", "7", "{", "{]", '{"a"', '{"prompt": "p", "response": "r"} trailing', "[" * 20_000, nested(20_000)),
        *(f'{{"environment": {value}, "prompt": "p", "response": "r"}}' for value in ("NaN", "Infinity", "-Infinity")),
        *(f'{{"duration_ms": {value}, "latency_sec": {value}}}' for value in ("NaN", "Infinity", "1e999", "-1e999")),
        *(f'{{"metadata": {{"a": {value}}}, "prompt": "p", "response": "r"}}' for value in ("NaN", "Infinity", nested(20_000))),
        b'{"environment": "\xff", "prompt": "\xff", "response": "r"}',
        b'{"metadata": {"a": "\xc3\x28"}, "prompt": "p", "response": "r"}',
        gzip.compress(b'{"prompt": "p", "response": "r"}', mtime=0),
    ],
)  # fmt: skip
async def test_what_is_no_json_is_refused(owner: TenantClient, path: str, text: str | bytes) -> None:
    before = await counts(owner)
    content = text.encode() if isinstance(text, str) else text
    for sent in (content, b"[" + content + b"]") if path == BATCH else (content,):
        answer = await owner.http.post(path, content=sent, headers=JSON)
        assert answer.status_code in (400, 422), answer.text
    assert await counts(owner) == before


async def test_content_types_other_than_json_change_nothing(acme: TenantClient) -> None:
    for path, good in GOOD.items():
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/msgpack"):
            for content in (json.dumps(good).encode(), b"a=b", b"\x80"):
                before = await counts(acme)
                answer = await acme.http.post(path, content=content, headers={"Content-Type": kind})
                assert answer.status_code in (201, 400, 415, 422), (path, kind, content, answer.text)
                assert (await counts(acme) == before) is (answer.status_code != 201)
        packed = gzip.compress(json.dumps(good).encode())
        answer = await acme.http.post(path, content=packed, headers={**JSON, "Content-Encoding": "gzip"})
        assert answer.status_code in (400, 415), path


async def test_a_kurral_id_belongs_to_one_body(acme: TenantClient, other_tenant: TenantClient) -> None:
    body = {"kurral_id": "same", "environment": "one"}
    first = await acme.http.post(UPLOAD, json=body)
    again = await acme.http.post(UPLOAD, json={"artifact_data": body})
    assert (again.status_code, again.json()) == (201, first.json())
    assert await refused(acme, UPLOAD, 409, "conflict", json={**body, "environment": "two"}) == []
    assert (await acme.http.get("/artifacts/same")).json()["environment"] == "one"
    assert (await other_tenant.http.post(UPLOAD, json={**body, "environment": "two"})).status_code == 201
    bodies = [{"kurral_id": "raced", "environment": str(n)} for n in range(2)]
    many = await asyncio.gather(*(acme.http.post(UPLOAD, json=bodies[n % 2]) for n in range(40)))
    assert sorted(answer.status_code for answer in many) == [201] * 20 + [409] * 20
    assert len({answer.json()["id"] for answer in many if answer.status_code == 201}) == 1
    assert (await counts(acme))[0] == 2


def padded(size: int, before: bytes = b'{"inputs": "', after: bytes = b'"}') -> bytes:
    return before + b"x" * (size - len(before) - len(after)) + after


async def test_32_mib_and_not_a_byte_more(acme: TenantClient) -> None:
    made = await acme.http.post(UPLOAD, content=padded(32 * MIB), headers=JSON)
    assert made.status_code == 201, made.text
    whole = await acme.http.get(f"/artifacts/{made.json()['kurral_id']}")
    assert len(whole.json()["inputs"]) == 32 * MIB - 14
    wrapped = padded(32 * MIB, b'{"artifact_data": {"kurral_id": "w", "inputs": "', b'"}}')
    assert (await acme.http.post(UPLOAD, content=wrapped, headers=JSON)).status_code == 201

    async def chunks(data: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(data), MIB):
            yield data[start : start + MIB]

    for path in (UPLOAD, BATCH):
        over = padded(32 * MIB + 1)
        await refused(acme, path, 413, "body_too_large", content=over, headers=JSON)
        await refused(acme, path, 413, "body_too_large", content=chunks(over), headers=JSON)
    await refused(acme, ONE, 413, "body_too_large", content=padded(101 * MIB), headers=JSON)


async def test_ten_thousand_tool_calls_are_taken(acme: TenantClient) -> None:
    calls = [{"tool_name": "t", "id": str(n), "parent_id": str(n // 100) if n else None} for n in range(10_000)]
    made = await acme.http.post(UPLOAD, json={"kurral_id": "many", "tool_calls": calls})
    assert made.json()["tool_calls"] == 10_000, made.text
    tree = (await acme.http.get("/artifacts/many/tool-calls")).json()["items"]
    assert len(tree[0]["children"]) == 99


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where texts stand in a body."""
    if isinstance(value, str):
        yield path
    for key, one in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(one, (*path, key))


def put(body: Any, path: tuple[Any, ...], value: Any) -> Any:
    made = copy.deepcopy(body)
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return made


async def test_nul_in_any_text_is_refused_or_given_back_whole(acme: TenantClient) -> None:
    full = {**ARTIFACT, "error": {"type": "t", "message": "m", "stack": "s"}, "metadata": {"k": "v"}}
    full["tool_calls"][1] |= {"error_type": "t", "error_text": "x", "stack": "s", "status": "error"}
    evaluation = {**SENT, "mode": "m", "model_name": "m", "agent_name": "a", "session_id": "s", "execution_id": "e",
                  "artifact_id": "a", "retrieved_docs": ["d"], "metadata": {"k": ["v"]}}  # fmt: skip
    stored = 0
    for path, body in ((UPLOAD, full), (ONE, evaluation)):
        for place in places(body):
            sent = put(body, place, "a\0b")
            if path == UPLOAD and place != ("kurral_id",):
                sent["kurral_id"] = secrets.token_hex(8)
            # These two must lead somewhere, or not be sent.
            sent = {name: sent[name] for name in sent if name not in ("execution_id", "artifact_id") or name in place}
            answer = await acme.http.post(path, json=sent)
            if answer.status_code == 201:
                stored += 1
                identity = answer.json().get("kurral_id", answer.json()["id"])
                whole = await acme.http.get(f"{path.removesuffix('/upload')}/{identity}")
                found: Any = whole.json()
                for key in place:
                    found = found[key]
                assert found == "a\0b", place
            else:
                assert answer.status_code == 422, (place, answer.text)
                assert answer.json()["errors"][0]["field"].startswith(str(place[0])), place
    assert stored > 20
    assert sum((await counts(acme))[:2]) == stored
    for path in ("/artifacts", "/evaluations"):
        assert (await acme.http.get(f"{path}?limit=1000")).status_code == 200
    await exported(acme)


async def test_deep_and_huge_metadata_is_refused_or_given_back_whole(acme: TenantClient) -> None:
    """What is answered with 201 must be readable ever after, by us and by the workers."""
    texts = [nested(depth) for depth in (1, 100, 127, 128, 129, 500, 900, 940, 960, *range(965, 1002, 2), 2000, 6000)]
    texts += ["1" + "0" * 400, "-" + "9" * 30, "1e-400", "1e308", '"' + "x" * 900_000 + '"', r'"\u0000"', r'"\ud800"']
    stored = []
    for text in texts:
        for path, body in (
            (ONE, f'{{"prompt": "p", "response": "r", "metadata": {{"a": {text}}}}}'),
            (BATCH, f'[{{"prompt": "p", "response": "r", "metadata": {{"a": {text}}}}}]'),
            (UPLOAD, f'{{"metadata": {{"a": {text}}}}}'),
        ):
            before = await counts(acme)
            answer = await acme.http.post(path, content=body, headers=JSON)
            assert answer.status_code in (201, 400, 422), (path, text[:20], len(text), answer.text[:200])
            if answer.status_code != 201:
                assert await counts(acme) == before, (path, text[:20], len(text))
            else:
                kept = re.findall(r'"kurral_id":"([^"]+)|(eval_\w+)', answer.text)[0]
                stored.append(f"/artifacts/{kept[0]}" if kept[0] else f"/evaluations/{kept[1]}")
    assert len(stored) > 8, stored
    for path in stored:
        assert (await acme.http.get(path)).status_code == 200
    for _ in range(600):
        listed = await acme.http.get("/evaluations?limit=1000")
        assert listed.status_code == 200
        if set(re.findall(r'"metrics":"(\w+)"', listed.text)) == {"computed"}:
            break
        await asyncio.sleep(0.05)
    assert set(re.findall(r'"metrics":"(\w+)"', listed.text)) == {"computed"}
    await exported(acme)


@pytest.fixture(scope="module")
async def parameters(system: System) -> list[tuple[str, str, dict[str, Any]]]:
    """Path, name and schema of every query parameter over records, as the document has them."""
    async with httpx.AsyncClient() as client:
        document = (await client.get(f"{system.url}/openapi.json")).json()
    found = []
    for path, item in document["paths"].items():
        if any(part in path for part in ("/artifacts", "/evaluations", "/stats")):
            for one in item.get("get", {}).get("parameters", []):
                if one["in"] == "query":
                    shown = re.sub(r"{\w+}", "x", path.removeprefix("/api/v1"))
                    found.append((shown, one["name"], one["schema"]))
    assert {"search", "tag", "until", "days", "page_size"} <= {name for _, name, _ in found}
    return found


async def test_odd_values_of_every_parameter(owner: TenantClient, parameters: Any) -> None:
    odd = ("a%00b", "%ff", "%ed%a0%80", "", "x" * 5000, "-1", "99999999999999999999", "1e999", "NaN", "'\"\\&|!:*()", "{}",
           *map(quote, TIMES))  # fmt: skip
    broken = []
    for path, name, schema in parameters:
        for value in odd:
            try:
                status = (await owner.http.get(f"{path}?{name}={value}")).status_code
            except httpx.RemoteProtocolError:
                status = 0
            if status not in (200, 400, 404, 422):
                broken.append((path, name, value, status))
        typed = "string" not in json.dumps(schema) or "date-time" in json.dumps(schema) or "enum" in json.dumps(schema)
        if typed and "/x" not in path:
            answer = await owner.http.get(f"{path}?{name}=odd")
            assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, name), path
    for path in {path for path, *_ in parameters}:
        answer = await owner.http.get(f"{path}?colour=red")
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "colour"), path
    for path in ("/artifacts/a%00b", "/artifacts/a%00b/tool-calls", "/artifacts/%ff", "/evaluations/a%00b"):
        assert (await owner.http.get(path)).status_code in (400, 404), path
        assert (await owner.http.delete(path)).status_code in (400, 404, 405), path
    assert broken == []


async def test_times_at_the_ends_of_time_are_filters(acme: TenantClient) -> None:
    for path, body in GOOD.items():
        assert (await acme.http.post(path, json=body)).status_code == 201
    names = {"/artifacts": ("start_date", "end_date", 1), "/evaluations": ("since", "until", 3)}
    for path in ("/artifacts", "/stats", "/evaluations", "/evaluations/stats"):
        since, until, total = names.get(path.removesuffix("/stats") or "/artifacts", (0, 0, 0))
        asked = (({since: TIMES[0]}, total), ({until: TIMES[0]}, 0), ({since: TIMES[3]}, 0), ({until: TIMES[3]}, total),
                 ({since: TIMES[0], until: TIMES[3]}, total))  # fmt: skip
        for query, wanted in asked:
            answer = await acme.http.get(path, params=query)
            assert answer.status_code == 200, answer.text
            told = answer.json()
            assert told[next(name for name in told if name.startswith("total"))] == wanted, (path, query)
        for name, value in ((since, TIMES[2]), (until, TIMES[5])):
            answer = await acme.http.get(path, params={name: value})
            assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, name)
        backwards = await acme.http.get(path, params={since: TIMES[3], until: TIMES[0]})
        assert (backwards.status_code, backwards.json()["errors"][0]["field"]) == (422, until)


@pytest.mark.parametrize("path", [UPLOAD, ONE, BATCH])
async def test_an_idempotency_key_stores_once(acme: TenantClient, path: str) -> None:
    key, raced, failed = ({"Idempotency-Key": secrets.token_hex(8)} for _ in range(3))
    answers = await asyncio.gather(*(acme.http.post(path, json=GOOD[path], headers=key) for _ in range(32)))
    assert {answer.status_code for answer in answers} == {201}, [answer.text for answer in answers]
    assert len({answer.text for answer in answers}) == 1
    assert sorted("Idempotency-Replayed" in answer.headers for answer in answers) == [False] + [True] * 31
    assert sum((await counts(acme))[:2]) == (2 if path == BATCH else 1)
    later = await acme.http.post(path, json=GOOD[path], headers=key)
    assert (later.text, later.headers["Idempotency-Replayed"]) == (answers[0].text, "true")
    other = {UPLOAD: {"environment": "x"}, ONE: {**SENT, "prompt": "x"}, BATCH: [SENT]}[path]
    await refused(acme, path, 409, "idempotency_conflict", json=other, headers=key)
    bodies = (GOOD[path], other)
    many = await asyncio.gather(*(acme.http.post(path, json=bodies[n % 2], headers=raced) for n in range(20)))
    assert sorted(answer.status_code for answer in many) == [201] * 10 + [409] * 10
    # A key whose request was refused was used for nothing.
    dangling = {**SENT, "artifact_id": "no"}
    bad = {UPLOAD: {"duration_ms": -1}, ONE: dangling, BATCH: [SENT, dangling]}[path]
    await refused(acme, path, 422, "invalid_field", json=bad, headers=failed)
    assert (await acme.http.post(path, json=GOOD[path], headers=failed)).status_code == 201
    await refused(acme, path, 422, "invalid_field", json=GOOD[path], headers={"Idempotency-Key": "x" * 256})


async def test_seconds_since_1970_are_a_time(acme: TenantClient) -> None:
    for path, body in ((UPLOAD, {"created_at": 1_700_000_000}), (ONE, {**SENT, "created_at": 1_700_000_000})):
        made = await acme.http.post(path, json=body)
        assert made.status_code == 201, made.text
        assert made.json()["created_at"] == "2023-11-14T22:13:20Z"


async def test_half_a_character_in_a_body_is_mended(acme: TenantClient) -> None:
    body = b'{"metadata": {"\xed\xa0\x80": 1}, "prompt": "p", "response": "r"}'
    made = await acme.http.post(ONE, content=body, headers={"Content-Type": "application/json"})
    assert made.status_code == 201, made.text
    assert set("".join(made.json()["metadata"])) == {"\ufffd"}
