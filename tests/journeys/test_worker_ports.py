"""Test the health and metrics ports of workers; one worker also exports metrics of the whole system."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from infra.embedded.ports import find_free_ports, find_port_range
from scripts.system import System
from tests.conftest import run_system
from tests.support.clients import TenantClient, register_tenant
from tests.support.fake_provider import FakeProvider
from tests.support.model_agents import create_model, create_model_agent, generate_name, run_execution

SYSTEM_METRICS = {"paddock_queue_depth", "paddock_queue_oldest_seconds", "paddock_runs", "paddock_ingest_lag_seconds"}


@pytest.fixture(scope="module")
async def system() -> AsyncIterator[System]:
    """Yield a separate system with ports for its workers."""
    async with run_system(PADDOCK_WORKER_PORT=str(find_port_range(8)), PADDOCK_LEASE_SECONDS="30") as separate_system:
        yield separate_system


@pytest.fixture
async def owner(system: System) -> AsyncIterator[TenantClient]:
    async with register_tenant(system.url) as tenant:
        yield tenant


def _build_url(system: System, name: str) -> str:
    index = [process.name for process in system.processes].index(name)
    return f"http://127.0.0.1:{system.settings.worker_port + index}"


async def _read_metrics(url: str) -> dict[tuple[str, ...], float]:
    async with httpx.AsyncClient(timeout=30) as client:
        answer = await client.get(f"{url}/metrics")
    assert answer.status_code == 200
    families = text_string_to_metric_families(answer.text)
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


async def test_every_worker_reports_health_on_its_own_port(system: System) -> None:
    names = [process.name for process in system.processes if process.name != "api"]
    assert sorted(names) == ["build", "llm", "plan", "record", "run", "upkeep"]
    async with httpx.AsyncClient(timeout=30) as client:
        for name in names:
            for path in ("live", "ready"):
                answer = await client.get(f"{_build_url(system, name)}/health/{path}")
                assert (answer.status_code, answer.json()["lane"]) == (200, name), answer.text
                assert answer.json()["problems"] == {}


async def test_worker_metrics_cover_its_own_process(
    system: System, owner: TenantClient, provider: FakeProvider
) -> None:
    sleeper = await owner.deploy_agent("def handle(p):\n    return 1 / p['n']\n")
    for n in (1, 0, 1):
        await owner.run_agent(sleeper, {"n": n})
    name = await create_model(owner, provider, generate_name())
    created = await create_model_agent(owner, name)
    provider.queue_text("Done", to=name)
    await run_execution(owner, created["id"], task="Go")
    runs = await _read_metrics(_build_url(system, "run"))
    assert runs["paddock_worker_rows_total", "run", "ok"] == 2
    assert runs["paddock_worker_rows_total", "run", "failed"] == 1
    assert runs["paddock_worker_slots",] == system.settings.run_slots
    assert runs["paddock_worker_busy",] == 0
    assert runs["paddock_worker_turns_total", "claim", "worked"] >= 1
    assert ("paddock_worker_sandboxes", "warm") in runs
    assert runs["process_resident_memory_bytes",] > 1024 * 1024
    llm = await _read_metrics(_build_url(system, "llm"))
    assert llm["paddock_worker_model_calls_total", "openai_compatible", "ok"] == 1
    assert llm["paddock_worker_model_tokens_total", "completion", "openai_compatible"] >= 1
    assert (await _read_metrics(_build_url(system, "build")))["paddock_worker_rows_total", "build", "ok"] == 1
    # Metrics of one process do not appear at another.
    assert ("paddock_worker_model_calls_total", "openai_compatible", "ok") not in runs
    for lane, loop in (("plan", "plans"), ("record", "fold"), ("upkeep", "schedules")):
        metrics = await _read_metrics(_build_url(system, lane))
        assert any(key[:2] == ("paddock_worker_turns_total", loop) for key in metrics), lane


async def test_one_worker_exports_system_metrics(system: System) -> None:
    exporting = [
        process.name
        for process in system.processes
        if process.name != "api"
        and {key[0] for key in await _read_metrics(_build_url(system, process.name))} >= SYSTEM_METRICS
    ]
    assert exporting == ["upkeep"]
    api = {key[0] for key in await _read_metrics(system.url)}
    assert "paddock_requests_total" in api
    assert not api & SYSTEM_METRICS
    # With a second upkeep worker still only one exports them.
    (port,) = find_free_ports(1)
    second = _start_worker(system, "upkeep", PADDOCK_WORKER_PORT=str(port))
    try:
        await _wait_until_ready(f"http://127.0.0.1:{port}/health/ready")
        # Heartbeats arrive every few seconds; the older worker leads.
        assert not {key[0] for key in await _read_metrics(f"http://127.0.0.1:{port}")} & SYSTEM_METRICS
        assert {key[0] for key in await _read_metrics(_build_url(system, "upkeep"))} >= SYSTEM_METRICS
    finally:
        second.terminate()
        assert second.wait(60) == 0


async def test_draining_worker_is_live_but_not_ready(system: System, owner: TenantClient) -> None:
    sleeper = await owner.deploy_agent("import time\ndef handle(p):\n    time.sleep(p['for'])\n    return p\n")
    (port,) = find_free_ports(1)
    url = f"http://127.0.0.1:{port}"
    process = next(system_process for system_process in system.processes if system_process.name == "run")
    await owner.run_agent(sleeper, {"for": 0})
    assert process.pid is not None
    # Then only the extra worker claims executions.
    os.kill(process.pid, signal.SIGSTOP)
    extra = _start_worker(system, "run", PADDOCK_WORKER_PORT=str(port), PADDOCK_DRAIN_SECONDS="60")
    try:
        await _wait_until_ready(f"{url}/health/ready")
        execution = await owner.start_execution(sleeper, {"for": 8})
        async with asyncio.timeout(60):
            while (await _read_metrics(url))["paddock_worker_busy",] == 0:
                await asyncio.sleep(0.05)
        extra.send_signal(signal.SIGTERM)
        async with httpx.AsyncClient(timeout=30) as client, asyncio.timeout(60):
            while (ready := await client.get(f"{url}/health/ready")).status_code == 200:
                await asyncio.sleep(0.05)
            assert list(ready.json()["problems"]) == ["drain"]
            assert (await client.get(f"{url}/health/live")).status_code == 200
            assert (await _read_metrics(url))["paddock_worker_draining",] == 1
        assert await asyncio.to_thread(extra.wait, 90) == 0
        ended = await owner.wait_for_end(execution["id"])
        assert (ended["status"], ended["attempt"]) == ("completed", 1)
    finally:
        os.kill(process.pid, signal.SIGCONT)
        extra.kill()
        extra.wait()


async def test_used_worker_port_is_named(system: System) -> None:
    worker = _start_worker(system, "plan", stderr=subprocess.PIPE)
    _, errors = await asyncio.to_thread(worker.communicate, timeout=90)
    assert worker.returncode == 1
    assert f"PADDOCK_WORKER_PORT {system.settings.worker_port} cannot be listened on".encode() in errors


async def test_unavailable_redis_makes_workers_unready_but_live(system: System) -> None:
    valkey = system.services[1]
    assert valkey is not None
    assert valkey.child is not None
    os.kill(valkey.child.process.pid, signal.SIGSTOP)
    try:
        async with httpx.AsyncClient(timeout=30) as client:
            ready = await client.get(f"{_build_url(system, 'run')}/health/ready")
            assert ready.status_code == 503
            assert list(ready.json()["problems"]) == ["redis"]
            assert (await client.get(f"{_build_url(system, 'run')}/health/live")).status_code == 200
    finally:
        os.kill(valkey.child.process.pid, signal.SIGCONT)
    await _wait_until_ready(f"{_build_url(system, 'run')}/health/ready")


async def test_idle_worker_ends_with_once_idle(system: System, owner: TenantClient) -> None:
    sleeper = await owner.deploy_agent("import time\ndef handle(p):\n    time.sleep(p['for'])\n    return p\n")
    process = next(system_process for system_process in system.processes if system_process.name == "run")
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    try:
        # Longer than the idle timeout: a running execution is not idleness.
        execution = await owner.start_execution(sleeper, {"for": 4})
        workers = [
            _start_worker(system, lane, "--once-idle", "2") for lane in ("run", "llm", "plan", "build", "record")
        ]
        assert [await asyncio.to_thread(worker.wait, 120) for worker in workers] == [0] * 5
        ended = (await owner.http.get(f"/executions/{execution['id']}")).json()
        assert (ended["status"], ended["attempt"]) == ("completed", 1)
    finally:
        os.kill(process.pid, signal.SIGCONT)


def test_once_idle_is_validated() -> None:
    for arguments, message in (
        (["upkeep", "--once-idle", "5"], "start it without --once-idle"),
        (["run", "--once-idle", "soon"], "must be a number of seconds above 0, not 'soon'"),
        (["run", "--once-idle", "0"], "must be a number of seconds above 0, not '0'"),
    ):
        ended = subprocess.run(
            [sys.executable, "-m", "scripts.cli", "worker", *arguments], capture_output=True, text=True, timeout=120
        )
        assert ended.returncode != 0
        assert message in ended.stderr


def _start_worker(system: System, lane: str, *arguments: str, stderr: int | None = None, **environment: str):
    """Start a worker as in production, beside the workers of the system."""
    own_variables = {"PADDOCK_WORKER_PORT": str(system.settings.worker_port) if stderr else "0", **environment}
    return subprocess.Popen(
        [sys.executable, "-m", "scripts.cli", "worker", lane, *arguments],
        env={**system.environment, **own_variables},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.DEVNULL,
        stderr=stderr or subprocess.DEVNULL,
    )


async def _wait_until_ready(url: str) -> None:
    async with httpx.AsyncClient(timeout=30) as client, asyncio.timeout(90):
        while True:
            try:
                if (await client.get(url)).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.1)
