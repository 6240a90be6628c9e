"""Test that every acknowledged record is stored exactly once and readable, even if processes are killed."""

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import httpx
import pytest

from domain.artifacts import service
from domain.shared.errors import DomainError
from infra.embedded.child_process import EmbeddedServiceError
from infra.wiring import Resources
from scripts.supervisor import SupervisedProcess
from scripts.system import System
from tests.conftest import run_system
from tests.support.clients import TenantClient, register_tenant

WRITER_COUNT = 8
SENT_SCORES = {"semantic_drift": 0.5, "uncertainty": 0.25, "factual_support": 0.125, "hallucination_probability": 0.4,
          "hallucinated": True}  # fmt: skip
SCORED_LATER_TEXT = "This answer is scored later, after any crash."


class RecordWriter:
    """Post records until an event is set, and repeat unanswered requests with the same key."""

    def __init__(self, http: httpx.AsyncClient, number: int) -> None:
        self._http, self._number = http, number
        self.evaluations: dict[str, str] = {}
        self.batches: dict[str, list[str]] = {}
        self.artifacts: dict[str, str] = {}
        self.repeat_count = 0

    async def write_until(self, stop: asyncio.Event) -> None:
        count = 0
        while not stop.is_set():
            name = f"{self._number}-{count}"
            count += 1
            row = {"prompt": "p", "response": SCORED_LATER_TEXT, "session_id": name, "latency_sec": count % 7}
            if count % 3:
                row |= SENT_SCORES
            for _ in range(1 + count % 2):
                # Every second evaluation is sent twice, like by a client that got no answer.
                created = await self._post("/evaluations", row, f"{name}-one")
                assert self.evaluations.setdefault(name, created["id"]) == created["id"]
            body = {"kurral_id": name, "inputs": {"n": name * 200}, "duration_ms": count, "environment": str(count % 2)}
            # Half of them without a key, identified by their own id only.
            created = await self._post("/artifacts/upload", body, name if count % 2 else None)
            self.artifacts[name] = created["id"]
            if count % 5 == 0:
                rows = [{**row, "session_id": f"{name}-{n}"} for n in range(20)]
                self.batches[name] = (await self._post("/evaluations/batch", rows, f"{name}-batch"))["ids"]

    async def _post(self, path: str, body: Any, key: str | None) -> dict[str, Any]:
        headers = {} if key is None else {"Idempotency-Key": key}
        for _ in range(1200):
            try:
                answer = await self._http.post(path, json=body, headers=headers)
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code < 500:
                assert answer.status_code == 201, answer.text
                return dict(answer.json())
            assert answer is None or answer.status_code == 503, answer.text
            self.repeat_count += 1
            await asyncio.sleep(0.05)
        raise AssertionError(f"no answer from {path}")


async def _wait_until_healthy(system: System) -> None:
    async with httpx.AsyncClient(timeout=5) as client:
        for _ in range(600):
            try:
                if (await client.get(f"{system.url}/health/db")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)
    raise AssertionError("the system did not recover")


async def _kill_process(system: System, name: str) -> None:
    process: SupervisedProcess = next(process for process in system.processes if process.name == name)
    old = process.pid
    assert old is not None
    os.kill(old, signal.SIGKILL)
    for _ in range(400):
        if process.pid != old:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{name} was not started again")


async def _kill_service(system: System, index: int) -> None:
    service = system.services[index]
    assert service is not None
    assert service.child is not None
    old = service.child.process.pid
    os.kill(old, signal.SIGKILL)
    for _ in range(600):
        if service.child.process.pid != old and service.child.is_alive():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{service.child.name} was not started again")


async def _read_export(owner: TenantClient, path: str) -> list[dict[str, Any]]:
    answer = await owner.http.get(f"{path}/export?format=jsonl")
    assert answer.status_code == 200
    return [json.loads(line) for line in answer.content.splitlines()]


async def _release_claims(system: System) -> None:
    """Release the claims of killed workers, which would take minutes, and wait until all rows are processed."""
    owner = await asyncpg.connect(system.settings.database_owner_url.reveal())
    try:
        # In the order of the worker's own claims, which run concurrently.
        locked = "SELECT id FROM {} ORDER BY id FOR UPDATE"
        for table, which in (("evaluations", "evaluations WHERE metrics = 'pending'"), ("artifact_bodies",) * 2):
            await owner.execute(f"UPDATE {table} SET claimed_until = NULL WHERE id IN ({locked.format(which)})")

        async def is_processed() -> bool:
            pending = await owner.fetchval("SELECT count(*) FROM evaluations WHERE metrics = 'pending'")
            return pending + await owner.fetchval("SELECT count(*) FROM artifact_bodies") == 0

        await _wait_for_result(is_processed)
    finally:
        await owner.close()


async def _wait_for_result(probe: Callable[[], Awaitable[Any]], patience: int = 2400) -> Any:
    for _ in range(patience):
        if result := await probe():
            return result
        await asyncio.sleep(0.05)
    raise AssertionError("no true result in time")


async def test_acknowledged_records_are_stored_exactly_once() -> None:
    async with run_system(PADDOCK_LOG_LEVEL="WARNING") as system, register_tenant(system.url) as owner:
        stop = asyncio.Event()
        writers = [RecordWriter(owner.http, number) for number in range(WRITER_COUNT)]
        writing = [asyncio.create_task(writer.write_until(stop)) for writer in writers]

        async def wait_for_progress() -> None:
            """Wait until every writer has stored more records."""
            before = [len(writer.artifacts) for writer in writers]

            async def has_progress() -> bool:
                for task in writing:
                    if task.done():
                        task.result()
                return all(len(writer.artifacts) > count + 1 for writer, count in zip(writers, before, strict=True))

            await _wait_for_result(has_progress)

        await wait_for_progress()
        for name in ("api", "record", "api"):
            await _kill_process(system, name)
            await _wait_until_healthy(system)
            await wait_for_progress()
        for number in (0, 1, 2):
            await _kill_service(system, number)
            await _wait_until_healthy(system)
            await wait_for_progress()
        stop.set()
        await asyncio.gather(*writing)
        assert sum(writer.repeat_count for writer in writers) > 0, "no request was repeated, so the test shows nothing"
        await _release_claims(system)
        await _check_stored_once(owner, writers)


async def _check_stored_once(owner: TenantClient, writers: list[RecordWriter]) -> None:
    answered = {name: record_id for writer in writers for name, record_id in writer.evaluations.items()}
    for writer in writers:
        for name, ids in writer.batches.items():
            answered |= {f"{name}-{number}": record_id for number, record_id in enumerate(ids)}
    rows = await _read_export(owner, "/evaluations")
    assert len(rows) == len(answered)
    assert {row["session_id"]: row["id"] for row in rows} == answered

    artifacts = {name: record_id for writer in writers for name, record_id in writer.artifacts.items()}
    listed = await _read_export(owner, "/artifacts")
    assert len(listed) == len(artifacts)
    assert {row["kurral_id"]: row["id"] for row in listed} == artifacts

    async def check_artifact(name: str) -> None:
        answer = await owner.http.get(f"/artifacts/{name}")
        assert answer.status_code == 200, answer.text
        assert (answer.json()["kurral_id"], answer.json()["inputs"]) == (name, {"n": name * 200})

    names = list(artifacts)
    for start in range(0, len(names), 32):
        await asyncio.gather(*(check_artifact(name) for name in names[start : start + 32]))

    assert {row["metrics"] for row in rows} == {"sent", "computed"}
    stats = (await owner.http.get("/evaluations/stats")).json()
    assert stats["total_evaluations"] == len(rows)
    assert stats["total_hallucinations"] == sum(row["hallucinated"] for row in rows)
    for name, field in (
        ("avg_latency", "latency_sec"),
        ("avg_semantic_drift", "semantic_drift"),
        ("avg_uncertainty", "uncertainty"),
        ("avg_factual_support", "factual_support"),
    ):
        assert stats[name] == pytest.approx(sum(row[field] for row in rows) / len(rows)), name
    series = (await owner.http.get("/evaluations/timeseries")).json()["items"]
    assert sum(bucket["count"] for bucket in series) == len(rows)
    stats = (await owner.http.get("/stats")).json()
    assert stats["total_artifacts"] == len(listed)
    assert stats["total_size_gb"] == pytest.approx(sum(row["size_bytes"] for row in listed) / 1e9)
    assert stats["avg_duration_ms"] == pytest.approx(sum(row["duration_ms"] for row in listed) / len(listed))
    assert stats["by_environment"] == {
        str(n): sum(row["environment"] == str(n) for row in listed) for n in (0, 1)
    }  # fmt: skip


async def test_slow_uploads_of_one_tenant_do_not_block_others(
    system: System, acme: TenantClient, other_tenant: TenantClient
) -> None:
    key, slow_writers = await acme.create_key(), []
    for _ in range(2):
        _, writer = await asyncio.open_connection("127.0.0.1", system.port)
        slow_writers.append(writer)
        request_head = f"POST /api/v1/artifacts/upload HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\nContent-Length: {32 << 20}\r\n\r\n"
        writer.write(request_head.encode() + b'{"inputs": "')
        await writer.drain()
    try:
        for path, body in (("/artifacts/upload", {}), ("/evaluations/batch", [{"prompt": "p", "response": "r"}])):
            for _ in range(10):
                answer = await other_tenant.http.post(path, json=body, timeout=15)
                assert answer.status_code == 201, answer.text
    finally:
        for writer in slow_writers:
            writer.close()


async def _fetch_body(resources: Resources, owner: TenantClient, name: str) -> service.ArtifactBody:
    async with resources.store.tenant_transaction(owner.tenant_id) as tx:
        return await service.get_artifact_body(tx, name)


@asynccontextmanager
async def _stop_storage(system: System, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Stop object storage, and start it again only at the end."""
    seaweed = system.services[2]
    assert seaweed is not None
    assert seaweed.child is not None

    async def refuse_start() -> None:
        raise EmbeddedServiceError("not yet")

    with monkeypatch.context() as patched:
        patched.setattr(seaweed, "start", refuse_start)
        await seaweed.stop()
        yield
    old = seaweed.child

    async def is_running_again() -> bool:
        return seaweed.child is not old and seaweed.child is not None and seaweed.child.is_alive()

    await _wait_for_result(is_running_again)


async def test_unavailable_storage_loses_no_artifact(
    system: System, resources: Resources, acme: TenantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def upload(name: str) -> None:
        answer = await acme.http.post("/artifacts/upload", json={"kurral_id": name, "inputs": name * 1000})
        assert answer.status_code == 201, answer.text

    async def is_readable(name: str) -> bool:
        answer = await acme.http.get(f"/artifacts/{name}")
        return answer.status_code == 200 and answer.json()["inputs"] == name * 1000

    async def is_packed(name: str) -> bool:
        return (await _fetch_body(resources, acme, name)).packed_body is None

    await upload("before")
    await _wait_for_result(lambda: is_packed("before"))
    stored = await _fetch_body(resources, acme, "before")
    names = [f"while-{number}" for number in range(40)]
    async with _stop_storage(system, monkeypatch):
        await asyncio.gather(*map(upload, names))
        assert all([await is_readable(name) for name in names])
        assert not [name for name in names if await is_packed(name)]
        answer = await acme.http.get("/artifacts/before")
        assert (answer.status_code, answer.json()["error"]) == (503, "storage_unavailable")
        # Deleted artifacts disappear immediately, wherever their bodies are stored.
        for name in ("before", names[0]):
            assert (await acme.http.delete(f"/artifacts/{name}")).status_code == 204
            assert (await acme.http.get(f"/artifacts/{name}")).status_code == 404
        assert (await acme.http.get("/stats")).json()["total_artifacts"] == len(names) - 1
    for name in names[1:]:
        await _wait_for_result(lambda name=name: is_packed(name))  # type: ignore[misc]
        assert await is_readable(name)

    async def is_deleted() -> bool:
        try:
            await resources.blobs.read_object(stored.key)
        except DomainError as error:
            return error.code == "not_found"
        return False

    await _wait_for_result(is_deleted)
