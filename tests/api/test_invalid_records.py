"""Test that every invalid record is refused with its problem, stores nothing, and is never a 500."""

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

_ARTIFACT_FILE = Path(__file__).parents[1] / "journeys" / "kurral_artifact.json"
EXAMPLE_ARTIFACT: dict[str, Any] = json.loads(_ARTIFACT_FILE.read_bytes()) | {"created_at": "2026-01-01T00:00:00Z"}
EXAMPLE_EVALUATION = {"prompt": "p", "response": "r", "semantic_drift": 0.1, "uncertainty": 0.1, "factual_support": 0.9,
        "hallucination_probability": 0.1, "hallucinated": False}  # fmt: skip
JSON_HEADERS = {"Content-Type": "application/json"}
MIB = 1 << 20
UPLOAD, SINGLE, BATCH = "/artifacts/upload", "/evaluations", "/evaluations/batch"
VALID_BODIES = {
    UPLOAD: {"environment": "good"},
    SINGLE: EXAMPLE_EVALUATION,
    BATCH: [EXAMPLE_EVALUATION, EXAMPLE_EVALUATION],
}


@pytest.fixture(scope="module")
async def owner(system: System) -> AsyncIterator[TenantClient]:
    """Yield one tenant for all refused records: they may store nothing."""
    async with register_tenant(system.url) as owner_tenant:
        yield owner_tenant


async def count_records(owner: TenantClient) -> tuple[int, ...]:
    """Return the number of artifacts and of evaluations, by statistics and by rows."""
    totals = []
    for path, name in (("/stats", "total_artifacts"), ("/evaluations/stats", "total_evaluations")):
        totals.append((await owner.http.get(path)).json()[name])
    for path in ("/artifacts", "/evaluations"):
        listed = await owner.http.get(f"{path}?limit=1")
        assert listed.status_code == 200, listed.text
        # `json()` refuses deep metadata that the API accepts.
        totals.append(int(re.findall(r'"total":(\d+)', listed.text)[-1]))
    assert totals[:2] == totals[2:]
    return tuple(totals)


async def send_invalid(owner: TenantClient, path: str, status: int, code: str, **request: Any) -> list[str]:
    """Send a record that must be refused and store nothing; return the invalid fields."""
    before = await count_records(owner)
    answer = await owner.http.post(path, **request)
    assert answer.status_code == status, answer.text[:500]
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["error"] == code
    assert await count_records(owner) == before
    return [error["field"] for error in answer.json().get("errors", [])]


async def export_all_records(owner: TenantClient) -> None:
    """Read every export to its end."""
    for query in ("format=csv", "format=jsonl", "format=parquet"):
        for path in ("/artifacts", "/evaluations"):
            assert (await owner.http.get(f"{path}/export?{query}")).content


def build_nested_lists(depth: int) -> str:
    return "[" * depth + "]" * depth


def build_calls(**fields: Any) -> dict[str, Any]:
    return {"tool_calls": [{"id": "a"}, {"id": "b", **fields}]}


EXTREME_TIMES = ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00", "0001-01-01T00:00:00+14:00",
         "9999-12-31T23:59:59Z", "9999-12-31T23:59:59.999999", "9999-12-31T23:59:59-14:00")  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        (UPLOAD, {"duration_ms": -1}, "duration_ms"),
        (UPLOAD, {"cost_usd": -0.01}, "cost_usd"),
        (UPLOAD, {"token_usage": {"total": -5}}, "token_usage.total"),
        (UPLOAD, {"cost_usd": "NaN"}, "cost_usd"),
        (UPLOAD, build_calls(latency_ms=-1), "tool_calls[1].latency_ms"),
        (UPLOAD, build_calls(parent_id="c"), "tool_calls[1].parent_id"),
        (UPLOAD, build_calls(parent_id="b"), "tool_calls[1].parent_id"),
        (UPLOAD, {"tool_calls": [{"id": "a", "parent_id": "b"}, {"id": "b", "parent_id": "a"}]}, "tool_calls[0].parent_id"),
        (UPLOAD, {"tool_calls": [{"id": "a"}, {"id": "a"}]}, "tool_calls[1].id"),
        (UPLOAD, {"tool_calls": [{"id": str(n), "parent_id": str(n - 1) if n else None} for n in range(101)]}, "tool_calls[100].parent_id"),
        (UPLOAD, build_calls(start_time="2026-01-01T00:00:01Z", end_time="2026-01-01T00:00:00Z"), "tool_calls[1].end_time"),
        (UPLOAD, build_calls(status="odd"), "tool_calls[1].status"),
        (UPLOAD, build_calls(effect_type="odd"), "tool_calls[1].effect_type"),
        (UPLOAD, build_calls(colour="red"), "tool_calls[1].colour"),
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
        (SINGLE, {**EXAMPLE_EVALUATION, "latency_sec": -0.1}, "latency_sec"),
        (SINGLE, {**EXAMPLE_EVALUATION, "throughput_qps": -1}, "throughput_qps"),
        (SINGLE, {**EXAMPLE_EVALUATION, "throughput_qps": 1e10}, "throughput_qps"),
        *((SINGLE, {**EXAMPLE_EVALUATION, "latency_sec": text}, "latency_sec") for text in ("NaN", "nan", "Infinity", "inf", "1e999", "0.5")),
        (SINGLE, {**EXAMPLE_EVALUATION, "semantic_drift": 2.1}, "semantic_drift"),
        (SINGLE, {**EXAMPLE_EVALUATION, "uncertainty": "low"}, "uncertainty"),
        (SINGLE, {**EXAMPLE_EVALUATION, "hallucinated": 1}, "hallucinated"),
        (SINGLE, {**EXAMPLE_EVALUATION, "retrieved_docs": ["x"] * 257}, "retrieved_docs"),
        (SINGLE, {**EXAMPLE_EVALUATION, "metadata": []}, "metadata"),
        (SINGLE, {**EXAMPLE_EVALUATION, "mode": ""}, "mode"),
        (SINGLE, {**EXAMPLE_EVALUATION, "model_name": "x" * 201}, "model_name"),
        (SINGLE, {**EXAMPLE_EVALUATION, "prompt": "x" * 1_000_001}, "prompt"),
        (SINGLE, {**EXAMPLE_EVALUATION, "created_at": "yesterday"}, "created_at"),
        (SINGLE, {**EXAMPLE_EVALUATION, "colour": "red"}, "colour"),
        (SINGLE, {"prompt": "p"}, "response"),
        (BATCH, [], "evaluations"),
        (BATCH, [EXAMPLE_EVALUATION] * 1001, "evaluations"),
        (BATCH, {"evaluations": {}}, "evaluations"),
        (BATCH, {"evaluations": [EXAMPLE_EVALUATION], "colour": "red"}, "evaluations"),
        (BATCH, "text", "evaluations"),
        (BATCH, [EXAMPLE_EVALUATION, EXAMPLE_EVALUATION, {**EXAMPLE_EVALUATION, "latency_sec": -1}], "evaluations[2].latency_sec"),
        (BATCH, [EXAMPLE_EVALUATION, {**EXAMPLE_EVALUATION, "created_at": "9999-12-31T23:59:59-14:00"}], "evaluations[1].created_at"),
        (BATCH, [EXAMPLE_EVALUATION, {**EXAMPLE_EVALUATION, "prompt": "a\0b"}], "evaluations[1].prompt"),
        (BATCH, [EXAMPLE_EVALUATION, {**EXAMPLE_EVALUATION, "colour": "red"}], "evaluations[1]"),
        (BATCH, [EXAMPLE_EVALUATION, None], "evaluations[1]"),
        (BATCH, [*[EXAMPLE_EVALUATION] * 999, {**EXAMPLE_EVALUATION, "artifact_id": "nothing"}], "evaluations[999].artifact_id"),
        (BATCH, [EXAMPLE_EVALUATION, {**EXAMPLE_EVALUATION, "execution_id": "exec_01k00000000000000000000000"}], "evaluations[1].execution_id"),
        (BATCH, [{**EXAMPLE_EVALUATION, "artifact_id": "nothing"}], "evaluations[0].artifact_id"),
        *((UPLOAD, {"created_at": at}, "created_at") for at in EXTREME_TIMES),
        *((SINGLE, {**EXAMPLE_EVALUATION, "created_at": at}, "created_at") for at in EXTREME_TIMES),
        *((UPLOAD, build_calls(start_time=at), "tool_calls[1].start_time") for at in (EXTREME_TIMES[2], EXTREME_TIMES[5])),
        (UPLOAD, build_calls(start_time=EXTREME_TIMES[3], latency_ms=1000), "tool_calls[1].latency_ms"),
    ],
)  # fmt: skip
async def test_invalid_field_is_named(owner: TenantClient, path: str, body: Any, field: str) -> None:
    fields = await send_invalid(owner, path, 422, "invalid_field", json=body)
    assert any(name == field or name.startswith(f"{field}.") for name in fields), fields


@pytest.mark.parametrize("path", [UPLOAD, SINGLE, BATCH])
@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "null", "7", "{", "{]", '{"a"', '{"prompt": "p", "response": "r"} trailing', "[" * 20_000, build_nested_lists(20_000)),
        *(f'{{"environment": {value}, "prompt": "p", "response": "r"}}' for value in ("NaN", "Infinity", "-Infinity")),
        *(f'{{"duration_ms": {value}, "latency_sec": {value}}}' for value in ("NaN", "Infinity", "1e999", "-1e999")),
        *(f'{{"metadata": {{"a": {value}}}, "prompt": "p", "response": "r"}}' for value in ("NaN", "Infinity", build_nested_lists(20_000))),
        b'{"environment": "\xff", "prompt": "\xff", "response": "r"}',
        b'{"metadata": {"a": "\xc3\x28"}, "prompt": "p", "response": "r"}',
        gzip.compress(b'{"prompt": "p", "response": "r"}', mtime=0),
    ],
)  # fmt: skip
async def test_invalid_json_is_refused(owner: TenantClient, path: str, text: str | bytes) -> None:
    before = await count_records(owner)
    content = text.encode() if isinstance(text, str) else text
    for sent in (content, b"[" + content + b"]") if path == BATCH else (content,):
        answer = await owner.http.post(path, content=sent, headers=JSON_HEADERS)
        assert answer.status_code in (400, 422), answer.text
    assert await count_records(owner) == before


async def test_other_content_types_store_nothing_when_refused(acme: TenantClient) -> None:
    for path, body in VALID_BODIES.items():
        for media_type in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data",
            "application/msgpack",
        ):
            for content in (json.dumps(body).encode(), b"a=b", b"\x80"):
                before = await count_records(acme)
                answer = await acme.http.post(path, content=content, headers={"Content-Type": media_type})
                assert answer.status_code in (201, 400, 415, 422), (path, media_type, content, answer.text)
                assert (await count_records(acme) == before) is (answer.status_code != 201)
        compressed = gzip.compress(json.dumps(body).encode())
        answer = await acme.http.post(path, content=compressed, headers={**JSON_HEADERS, "Content-Encoding": "gzip"})
        assert answer.status_code in (400, 415), path


async def test_kurral_id_identifies_one_body(acme: TenantClient, other_tenant: TenantClient) -> None:
    body = {"kurral_id": "same", "environment": "one"}
    first = await acme.http.post(UPLOAD, json=body)
    repeated = await acme.http.post(UPLOAD, json={"artifact_data": body})
    assert (repeated.status_code, repeated.json()) == (201, first.json())
    assert await send_invalid(acme, UPLOAD, 409, "conflict", json={**body, "environment": "two"}) == []
    assert (await acme.http.get("/artifacts/same")).json()["environment"] == "one"
    assert (await other_tenant.http.post(UPLOAD, json={**body, "environment": "two"})).status_code == 201
    bodies = [{"kurral_id": "raced", "environment": str(n)} for n in range(2)]
    answers = await asyncio.gather(*(acme.http.post(UPLOAD, json=bodies[n % 2]) for n in range(40)))
    assert sorted(answer.status_code for answer in answers) == [201] * 20 + [409] * 20
    assert len({answer.json()["id"] for answer in answers if answer.status_code == 201}) == 1
    assert (await count_records(acme))[0] == 2


def build_padded_body(size: int, before: bytes = b'{"inputs": "', after: bytes = b'"}') -> bytes:
    return before + b"x" * (size - len(before) - len(after)) + after


async def test_body_limit_is_exactly_32_mib(acme: TenantClient) -> None:
    answer = await acme.http.post(UPLOAD, content=build_padded_body(32 * MIB), headers=JSON_HEADERS)
    assert answer.status_code == 201, answer.text
    artifact = await acme.http.get(f"/artifacts/{answer.json()['kurral_id']}")
    assert len(artifact.json()["inputs"]) == 32 * MIB - 14
    wrapped = build_padded_body(32 * MIB, b'{"artifact_data": {"kurral_id": "w", "inputs": "', b'"}}')
    assert (await acme.http.post(UPLOAD, content=wrapped, headers=JSON_HEADERS)).status_code == 201

    async def iterate_chunks(data: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(data), MIB):
            yield data[start : start + MIB]

    for path in (UPLOAD, BATCH):
        too_large = build_padded_body(32 * MIB + 1)
        await send_invalid(acme, path, 413, "body_too_large", content=too_large, headers=JSON_HEADERS)
        await send_invalid(acme, path, 413, "body_too_large", content=iterate_chunks(too_large), headers=JSON_HEADERS)
    await send_invalid(acme, SINGLE, 413, "body_too_large", content=build_padded_body(101 * MIB), headers=JSON_HEADERS)


async def test_ten_thousand_tool_calls_are_accepted(acme: TenantClient) -> None:
    calls = [{"tool_name": "t", "id": str(n), "parent_id": str(n // 100) if n else None} for n in range(10_000)]
    answer = await acme.http.post(UPLOAD, json={"kurral_id": "many", "tool_calls": calls})
    assert answer.json()["tool_calls"] == 10_000, answer.text
    tree = (await acme.http.get("/artifacts/many/tool-calls")).json()["items"]
    assert len(tree[0]["children"]) == 99


def iterate_text_paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every text in a body."""
    if isinstance(value, str):
        yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from iterate_text_paths(item, (*path, key))


def replace_value(body: Any, path: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(body)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


async def test_nul_in_any_text_is_refused_or_returned_unchanged(acme: TenantClient) -> None:
    full = {**EXAMPLE_ARTIFACT, "error": {"type": "t", "message": "m", "stack": "s"}, "metadata": {"k": "v"}}
    full["tool_calls"][1] |= {"error_type": "t", "error_text": "x", "stack": "s", "status": "error"}
    evaluation = {**EXAMPLE_EVALUATION, "mode": "m", "model_name": "m", "agent_name": "a", "session_id": "s", "execution_id": "e",
                  "artifact_id": "a", "retrieved_docs": ["d"], "metadata": {"k": ["v"]}}  # fmt: skip
    stored_count = 0
    for path, body in ((UPLOAD, full), (SINGLE, evaluation)):
        for text_path in iterate_text_paths(body):
            sent = replace_value(body, text_path, "a\0b")
            if path == UPLOAD and text_path != ("kurral_id",):
                sent["kurral_id"] = secrets.token_hex(8)
            # These two must refer to a record or be left out.
            sent = {
                name: sent[name] for name in sent if name not in ("execution_id", "artifact_id") or name in text_path
            }
            answer = await acme.http.post(path, json=sent)
            if answer.status_code == 201:
                stored_count += 1
                identity = answer.json().get("kurral_id", answer.json()["id"])
                record = await acme.http.get(f"{path.removesuffix('/upload')}/{identity}")
                value: Any = record.json()
                for key in text_path:
                    value = value[key]
                assert value == "a\0b", text_path
            else:
                assert answer.status_code == 422, (text_path, answer.text)
                assert answer.json()["errors"][0]["field"].startswith(str(text_path[0])), text_path
    assert stored_count > 20
    assert sum((await count_records(acme))[:2]) == stored_count
    for path in ("/artifacts", "/evaluations"):
        assert (await acme.http.get(f"{path}?limit=1000")).status_code == 200
    await export_all_records(acme)


async def test_deep_and_huge_metadata_is_refused_or_stays_readable(acme: TenantClient) -> None:
    """Ensure that a record answered with 201 can be read by the API and the workers."""
    texts = [
        build_nested_lists(depth)
        for depth in (1, 100, 127, 128, 129, 500, 900, 940, 960, *range(965, 1002, 2), 2000, 6000)
    ]
    texts += ["1" + "0" * 400, "-" + "9" * 30, "1e-400", "1e308", '"' + "x" * 900_000 + '"', r'"\u0000"', r'"\ud800"']
    stored = []
    for text in texts:
        for path, body in (
            (SINGLE, f'{{"prompt": "p", "response": "r", "metadata": {{"a": {text}}}}}'),
            (BATCH, f'[{{"prompt": "p", "response": "r", "metadata": {{"a": {text}}}}}]'),
            (UPLOAD, f'{{"metadata": {{"a": {text}}}}}'),
        ):
            before = await count_records(acme)
            answer = await acme.http.post(path, content=body, headers=JSON_HEADERS)
            assert answer.status_code in (201, 400, 422), (path, text[:20], len(text), answer.text[:200])
            if answer.status_code != 201:
                assert await count_records(acme) == before, (path, text[:20], len(text))
            else:
                record_ids = re.findall(r'"kurral_id":"([^"]+)|(eval_\w+)', answer.text)[0]
                stored.append(f"/artifacts/{record_ids[0]}" if record_ids[0] else f"/evaluations/{record_ids[1]}")
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
    await export_all_records(acme)


@pytest.fixture(scope="module")
async def parameters(system: System) -> list[tuple[str, str, dict[str, Any]]]:
    """Return path, name and schema of every query parameter of the records' routes in the OpenAPI document."""
    async with httpx.AsyncClient() as client:
        document = (await client.get(f"{system.url}/openapi.json")).json()
    query_parameters = []
    for path, item in document["paths"].items():
        if any(part in path for part in ("/artifacts", "/evaluations", "/stats")):
            for parameter in item.get("get", {}).get("parameters", []):
                if parameter["in"] == "query":
                    example_path = re.sub(r"{\w+}", "x", path.removeprefix("/api/v1"))
                    query_parameters.append((example_path, parameter["name"], parameter["schema"]))
    assert {"search", "tag", "until", "days", "page_size"} <= {name for _, name, _ in query_parameters}
    return query_parameters


async def test_odd_parameter_values_never_cause_a_server_error(owner: TenantClient, parameters: Any) -> None:
    odd_values = ("a%00b", "%ff", "%ed%a0%80", "", "x" * 5000, "-1", "99999999999999999999", "1e999", "NaN", "'\"\\&|!:*()", "{}",
           *map(quote, EXTREME_TIMES))  # fmt: skip
    broken = []
    for path, name, schema in parameters:
        for value in odd_values:
            try:
                status = (await owner.http.get(f"{path}?{name}={value}")).status_code
            except httpx.RemoteProtocolError:
                status = 0
            if status not in (200, 400, 404, 422):
                broken.append((path, name, value, status))
        is_typed = (
            "string" not in json.dumps(schema) or "date-time" in json.dumps(schema) or "enum" in json.dumps(schema)
        )
        if is_typed and "/x" not in path:
            answer = await owner.http.get(f"{path}?{name}=odd")
            assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, name), path
    for path in {path for path, *_ in parameters}:
        answer = await owner.http.get(f"{path}?colour=red")
        assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "colour"), path
    for path in ("/artifacts/a%00b", "/artifacts/a%00b/tool-calls", "/artifacts/%ff", "/evaluations/a%00b"):
        assert (await owner.http.get(path)).status_code in (400, 404), path
        assert (await owner.http.delete(path)).status_code in (400, 404, 405), path
    assert broken == []


async def test_extreme_times_are_valid_filters(acme: TenantClient) -> None:
    for path, body in VALID_BODIES.items():
        assert (await acme.http.post(path, json=body)).status_code == 201
    names = {"/artifacts": ("start_date", "end_date", 1), "/evaluations": ("since", "until", 3)}
    for path in ("/artifacts", "/stats", "/evaluations", "/evaluations/stats"):
        since, until, total = names.get(path.removesuffix("/stats") or "/artifacts", (0, 0, 0))
        queries = (({since: EXTREME_TIMES[0]}, total), ({until: EXTREME_TIMES[0]}, 0), ({since: EXTREME_TIMES[3]}, 0), ({until: EXTREME_TIMES[3]}, total),
                 ({since: EXTREME_TIMES[0], until: EXTREME_TIMES[3]}, total))  # fmt: skip
        for query, expected in queries:
            answer = await acme.http.get(path, params=query)
            assert answer.status_code == 200, answer.text
            listing = answer.json()
            assert listing[next(name for name in listing if name.startswith("total"))] == expected, (path, query)
        for name, value in ((since, EXTREME_TIMES[2]), (until, EXTREME_TIMES[5])):
            answer = await acme.http.get(path, params={name: value})
            assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, name)
        backwards = await acme.http.get(path, params={since: EXTREME_TIMES[3], until: EXTREME_TIMES[0]})
        assert (backwards.status_code, backwards.json()["errors"][0]["field"]) == (422, until)


@pytest.mark.parametrize("path", [UPLOAD, SINGLE, BATCH])
async def test_idempotency_key_stores_a_record_once(acme: TenantClient, path: str) -> None:
    key, race_key, failed_key = ({"Idempotency-Key": secrets.token_hex(8)} for _ in range(3))
    answers = await asyncio.gather(*(acme.http.post(path, json=VALID_BODIES[path], headers=key) for _ in range(32)))
    assert {answer.status_code for answer in answers} == {201}, [answer.text for answer in answers]
    assert len({answer.text for answer in answers}) == 1
    assert sorted("Idempotency-Replayed" in answer.headers for answer in answers) == [False] + [True] * 31
    assert sum((await count_records(acme))[:2]) == (2 if path == BATCH else 1)
    later = await acme.http.post(path, json=VALID_BODIES[path], headers=key)
    assert (later.text, later.headers["Idempotency-Replayed"]) == (answers[0].text, "true")
    other = {UPLOAD: {"environment": "x"}, SINGLE: {**EXAMPLE_EVALUATION, "prompt": "x"}, BATCH: [EXAMPLE_EVALUATION]}[
        path
    ]
    await send_invalid(acme, path, 409, "idempotency_conflict", json=other, headers=key)
    bodies = (VALID_BODIES[path], other)
    race_answers = await asyncio.gather(
        *(acme.http.post(path, json=bodies[n % 2], headers=race_key) for n in range(20))
    )
    assert sorted(answer.status_code for answer in race_answers) == [201] * 10 + [409] * 10
    # A key whose request was refused can be used again.
    dangling_evaluation = {**EXAMPLE_EVALUATION, "artifact_id": "no"}
    invalid_body = {
        UPLOAD: {"duration_ms": -1},
        SINGLE: dangling_evaluation,
        BATCH: [EXAMPLE_EVALUATION, dangling_evaluation],
    }[path]
    await send_invalid(acme, path, 422, "invalid_field", json=invalid_body, headers=failed_key)
    assert (await acme.http.post(path, json=VALID_BODIES[path], headers=failed_key)).status_code == 201
    await send_invalid(
        acme, path, 422, "invalid_field", json=VALID_BODIES[path], headers={"Idempotency-Key": "x" * 256}
    )


async def test_unix_seconds_are_accepted_as_a_time(acme: TenantClient) -> None:
    for path, body in (
        (UPLOAD, {"created_at": 1_700_000_000}),
        (SINGLE, {**EXAMPLE_EVALUATION, "created_at": 1_700_000_000}),
    ):
        answer = await acme.http.post(path, json=body)
        assert answer.status_code == 201, answer.text
        assert answer.json()["created_at"] == "2023-11-14T22:13:20Z"


async def test_half_a_surrogate_pair_in_a_body_is_repaired(acme: TenantClient) -> None:
    body = b'{"metadata": {"\xed\xa0\x80": 1}, "prompt": "p", "response": "r"}'
    answer = await acme.http.post(SINGLE, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 201, answer.text
    assert set("".join(answer.json()["metadata"])) == {"\ufffd"}
