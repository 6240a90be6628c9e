"""Whatever dies while records come in: every answered one is there once, none is there twice, and all can be read."""

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

WRITERS = 8
SCORES = {"semantic_drift": 0.5, "uncertainty": 0.25, "factual_support": 0.125, "hallucination_probability": 0.4,
          "hallucinated": True}  # fmt: skip
DEAD = "Whatever dies, this one is judged later."


class Writer:
    """A client that posts until it is told to stop, and repeats what was not answered under the same name."""

    def __init__(self, http: httpx.AsyncClient, number: int) -> None:
        self._http, self._number = http, number
        self.evaluations: dict[str, str] = {}
        self.batches: dict[str, list[str]] = {}
        self.artifacts: dict[str, str] = {}
        self.repeated = 0

    async def write(self, told: asyncio.Event) -> None:
        count = 0
        while not told.is_set():
            name = f"{self._number}-{count}"
            count += 1
            row = {"prompt": "p", "response": DEAD, "session_id": name, "latency_sec": count % 7}
            if count % 3:
                row |= SCORES
            for _ in range(1 + count % 2):
                # Every other one is sent twice, as a client does that did not get the answer.
                made = await self._post("/evaluations", row, f"{name}-one")
                assert self.evaluations.setdefault(name, made["id"]) == made["id"]
            body = {"kurral_id": name, "inputs": {"n": name * 200}, "duration_ms": count, "environment": str(count % 2)}
            # Half of them with nothing but their own id to be known by.
            made = await self._post("/artifacts/upload", body, name if count % 2 else None)
            self.artifacts[name] = made["id"]
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
            self.repeated += 1
            await asyncio.sleep(0.05)
        raise AssertionError(f"nobody answers {path}")


async def _answering(system: System) -> None:
    async with httpx.AsyncClient(timeout=5) as client:
        for _ in range(600):
            try:
                if (await client.get(f"{system.url}/health/db")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)
    raise AssertionError("the system does not come back")


async def _kill_process(system: System, name: str) -> None:
    process: SupervisedProcess = next(one for one in system.processes if one.name == name)
    old = process.pid
    assert old is not None
    os.kill(old, signal.SIGKILL)
    for _ in range(400):
        if process.pid != old:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{name} was not started again")


async def _kill_part(system: System, number: int) -> None:
    part = system.services[number]
    assert part is not None
    assert part.child is not None
    old = part.child.process.pid
    os.kill(old, signal.SIGKILL)
    for _ in range(600):
        if part.child.process.pid != old and part.child.is_alive():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{part.child.name} was not started again")


async def _lines(owner: TenantClient, path: str) -> list[dict[str, Any]]:
    answer = await owner.http.get(f"{path}/export?format=jsonl")
    assert answer.status_code == 200
    return [json.loads(line) for line in answer.content.splitlines()]


async def _let_go(system: System) -> None:
    """What a killed worker had claimed is free again, which else takes minutes; wait until all of it is done."""
    owner = await asyncpg.connect(system.settings.database_owner_url.reveal())
    try:
        # In the order in which the worker claims them, beside which this runs.
        locked = "SELECT id FROM {} ORDER BY id FOR UPDATE"
        for table, which in (("evaluations", "evaluations WHERE metrics = 'pending'"), ("artifact_bodies",) * 2):
            await owner.execute(f"UPDATE {table} SET claimed_until = NULL WHERE id IN ({locked.format(which)})")

        async def done() -> bool:
            pending = await owner.fetchval("SELECT count(*) FROM evaluations WHERE metrics = 'pending'")
            return pending + await owner.fetchval("SELECT count(*) FROM artifact_bodies") == 0

        await _soon(done)
    finally:
        await owner.close()


async def _soon(look: Callable[[], Awaitable[Any]], patience: int = 2400) -> Any:
    for _ in range(patience):
        if found := await look():
            return found
        await asyncio.sleep(0.05)
    raise AssertionError("it never came true")


async def test_nothing_answered_is_lost_and_nothing_is_stored_twice() -> None:
    async with run_system(PADDOCK_LOG_LEVEL="WARNING") as system, register_tenant(system.url) as owner:
        told = asyncio.Event()
        writers = [Writer(owner.http, number) for number in range(WRITERS)]
        writing = [asyncio.create_task(one.write(told)) for one in writers]

        async def go_on() -> None:
            """Until everybody has written anew."""
            before = [len(one.artifacts) for one in writers]

            async def all_wrote() -> bool:
                for task in writing:
                    if task.done():
                        task.result()
                return all(len(one.artifacts) > was + 1 for one, was in zip(writers, before, strict=True))

            await _soon(all_wrote)

        await go_on()
        for name in ("api", "record", "api"):
            await _kill_process(system, name)
            await _answering(system)
            await go_on()
        for number in (0, 1, 2):
            await _kill_part(system, number)
            await _answering(system)
            await go_on()
        told.set()
        await asyncio.gather(*writing)
        assert sum(one.repeated for one in writers) > 0, "nobody noticed any death: this showed nothing"
        await _let_go(system)
        await _all_there_once(owner, writers)


async def _all_there_once(owner: TenantClient, writers: list[Writer]) -> None:
    answered = {name: one for writer in writers for name, one in writer.evaluations.items()}
    for writer in writers:
        for name, ids in writer.batches.items():
            answered |= {f"{name}-{number}": one for number, one in enumerate(ids)}
    rows = await _lines(owner, "/evaluations")
    assert len(rows) == len(answered)
    assert {row["session_id"]: row["id"] for row in rows} == answered

    artifacts = {name: one for writer in writers for name, one in writer.artifacts.items()}
    kept = await _lines(owner, "/artifacts")
    assert len(kept) == len(artifacts)
    assert {row["kurral_id"]: row["id"] for row in kept} == artifacts

    async def read(name: str) -> None:
        answer = await owner.http.get(f"/artifacts/{name}")
        assert answer.status_code == 200, answer.text
        assert (answer.json()["kurral_id"], answer.json()["inputs"]) == (name, {"n": name * 200})

    names = list(artifacts)
    for start in range(0, len(names), 32):
        await asyncio.gather(*(read(name) for name in names[start : start + 32]))

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
    assert sum(one["count"] for one in series) == len(rows)
    stats = (await owner.http.get("/stats")).json()
    assert stats["total_artifacts"] == len(kept)
    assert stats["total_size_gb"] == pytest.approx(sum(row["size_bytes"] for row in kept) / 1e9)
    assert stats["avg_duration_ms"] == pytest.approx(sum(row["duration_ms"] for row in kept) / len(kept))
    assert stats["by_environment"] == {
        str(n): sum(row["environment"] == str(n) for row in kept) for n in (0, 1)
    }  # fmt: skip


async def test_two_slow_uploads_hold_up_nobody_else(
    system: System, acme: TenantClient, other_tenant: TenantClient
) -> None:
    key, slow = await acme.create_key(), []
    for _ in range(2):
        _, writer = await asyncio.open_connection("127.0.0.1", system.port)
        slow.append(writer)
        head = f"POST /api/v1/artifacts/upload HTTP/1.1\r\nHost: x\r\nX-API-Key: {key}\r\nContent-Length: {32 << 20}\r\n\r\n"
        writer.write(head.encode() + b'{"inputs": "')
        await writer.drain()
    try:
        for path, body in (("/artifacts/upload", {}), ("/evaluations/batch", [{"prompt": "p", "response": "r"}])):
            for _ in range(10):
                answer = await other_tenant.http.post(path, json=body, timeout=15)
                assert answer.status_code == 201, answer.text
    finally:
        for writer in slow:
            writer.close()


async def _place(resources: Resources, owner: TenantClient, name: str) -> service.ArtifactBody:
    async with resources.store.tenant_transaction(owner.tenant_id) as tx:
        return await service.get_artifact_body(tx, name)


@asynccontextmanager
async def _away(system: System, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Object storage gone, and not started again before the end."""
    seaweed = system.services[2]
    assert seaweed is not None
    assert seaweed.child is not None

    async def refuse() -> None:
        raise EmbeddedServiceError("not yet")

    with monkeypatch.context() as patched:
        patched.setattr(seaweed, "start", refuse)
        await seaweed.stop()
        yield
    old = seaweed.child

    async def back() -> bool:
        return seaweed.child is not old and seaweed.child is not None and seaweed.child.is_alive()

    await _soon(back)


async def test_storage_away_loses_no_artifact(
    system: System, resources: Resources, acme: TenantClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def upload(name: str) -> None:
        answer = await acme.http.post("/artifacts/upload", json={"kurral_id": name, "inputs": name * 1000})
        assert answer.status_code == 201, answer.text

    async def readable(name: str) -> bool:
        answer = await acme.http.get(f"/artifacts/{name}")
        return answer.status_code == 200 and answer.json()["inputs"] == name * 1000

    async def moved(name: str) -> bool:
        return (await _place(resources, acme, name)).packed_body is None

    await upload("before")
    await _soon(lambda: moved("before"))
    stored = await _place(resources, acme, "before")
    names = [f"while-{number}" for number in range(40)]
    async with _away(system, monkeypatch):
        await asyncio.gather(*map(upload, names))
        assert all([await readable(name) for name in names])
        assert not [name for name in names if await moved(name)]
        answer = await acme.http.get("/artifacts/before")
        assert (answer.status_code, answer.json()["error"]) == (503, "storage_unavailable")
        # What is deleted meanwhile is gone at once, wherever its body lies.
        for name in ("before", names[0]):
            assert (await acme.http.delete(f"/artifacts/{name}")).status_code == 204
            assert (await acme.http.get(f"/artifacts/{name}")).status_code == 404
        assert (await acme.http.get("/stats")).json()["total_artifacts"] == len(names) - 1
    for name in names[1:]:
        await _soon(lambda name=name: moved(name))  # type: ignore[misc]
        assert await readable(name)

    async def gone() -> bool:
        try:
            await resources.blobs.read_object(stored.key)
        except DomainError as error:
            return error.code == "not_found"
        return False

    await _soon(gone)
