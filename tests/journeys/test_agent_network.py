"""Uploaded code with hosts and secrets on a live worker: what it reaches is on record, and what changes takes effect."""

import asyncio
import contextlib
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from infra.embedded.ports import find_port_range
from scripts.system import System
from tests.conftest import run_system
from tests.support.agent_sources import CONNECTING_SOURCE
from tests.support.clients import TenantClient, register_tenant
from tests.support.model_agents import stream_events

# Names that a resolver of this machine leads to this machine are the machine's own.
NAME = socket.gethostname().lower()
CALLER = CONNECTING_SOURCE + "def handle(p):\n    return [attempt(*place) for place in p['places']]\n"
WAITER = "import time\ndef handle(p):\n    time.sleep(p['seconds'])\n    return 'waited'\n"
TOKEN_AGENT = "import os\nAT_IMPORT = os.environ['TOKEN']\ndef handle(p):\n    return AT_IMPORT[-8:]\n"


def find_own_address() -> str | None:
    try:
        return str(socket.getaddrinfo(NAME, 80, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return None


@pytest.fixture(scope="module")
async def system() -> AsyncIterator[System]:
    async with run_system(
        PADDOCK_WORKER_PORT=str(find_port_range(8)),
        PADDOCK_PRIVATE_HOSTS=f"127.0.0.1,{NAME}",
        PADDOCK_LEASE_SECONDS="5",
    ) as separate_system:
        yield separate_system


@pytest.fixture
async def owner(system: System) -> AsyncIterator[TenantClient]:
    async with register_tenant(system.url) as tenant:
        yield tenant


async def read_events(owner: TenantClient, execution_id: str, kind: str) -> list[dict[str, Any]]:
    return [event for event in await stream_events(owner, execution_id) if event["type"] == kind]


async def read_egress_metrics(system: System) -> dict[str, float]:
    index = [process.name for process in system.processes].index("run")
    async with httpx.AsyncClient(timeout=30) as client:
        text = (await client.get(f"http://127.0.0.1:{system.settings.worker_port + index}/metrics")).text
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {
        "".join([*sample.labels.values()]): sample.value
        for sample in samples
        if sample.name in ("paddock_worker_egress_connections_total", "paddock_worker_egress_bytes_total")
    }


async def wait_until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while True:
            result = condition()
            if await result if isinstance(result, Awaitable) else result:
                return
            await asyncio.sleep(0.2)


@pytest.mark.skipif(find_own_address() is None, reason="the name of this host has no address")
async def test_connections_of_a_run_are_events_and_counted(system: System, owner: TenantClient) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(b"seen " + await reader.read(100))
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "0.0.0.0", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        manifest = f"name: caller\nentrypoint: agent:handle\negress: ['{NAME}:{port}', 'nowhere.invalid:7']\n"
        agent_id = await owner.deploy_agent(CALLER, manifest)
        places = [[NAME, port], ["nowhere.invalid", 7], ["example.com", 443], ["127.0.0.1", port]]
        for _ in range(2):
            ended = await owner.run_agent(agent_id, {"places": places})
            assert ended["status"] == "completed", ended
            assert ended["output_data"][0] == "seen hello"
            assert ended["output_data"][1:3] == ["ConnectionResetError", "gaierror"]
            assert ended["output_data"][3] != "seen hello"
            reached, refused = await read_events(owner, ended["id"], "egress")
            assert (reached["host"], reached["port"], reached["outcome"]) == (NAME, port, "closed")
            assert (reached["sent_bytes"], reached["received_bytes"]) == (5, 10)
            assert reached["duration_ms"] >= 0
            assert (refused["host"], refused["port"]) == ("nowhere.invalid", 7)
            assert refused["outcome"] in ("refused", "unreachable")
            assert refused["reason"]
    counts = await read_egress_metrics(system)
    assert counts["closed"] == 2
    assert counts[refused["outcome"]] == 2
    assert (counts["sent"], counts["received"]) == (10, 20)


async def test_policy_that_changes_before_the_attempt_fails_it(owner: TenantClient) -> None:
    manifest = "name: waiter\nentrypoint: agent:handle\negress: [nowhere.invalid]\n"
    agent_id = await owner.deploy_agent(WAITER, manifest)
    assert (await owner.http.patch(f"/agents/{agent_id}", json={"max_concurrency": 1})).status_code == 200
    first = await owner.start_execution(agent_id, {"seconds": 3})
    second = await owner.start_execution(agent_id, {"seconds": 0})
    assert (await owner.http.patch("/tenant", json={"egress": "off"})).status_code == 200
    assert (await owner.wait_for_end(first["id"]))["status"] == "completed"
    ended = await owner.wait_for_end(second["id"])
    assert (ended["status"], ended["error_type"]) == ("failed", "egress_not_allowed"), ended
    assert "nowhere.invalid" in ended["error_message"]


def find_holders(value: str) -> list[int]:
    """Return the processes of sandboxes whose memory holds a value."""
    holders = []
    own_namespace = os.readlink("/proc/self/ns/pid")
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            if os.readlink(folder / "ns/pid") == own_namespace or not _has_memory_with(folder, value.encode()):
                continue
            holders.append(int(folder.name))
    return holders


def _has_memory_with(process: Path, value: bytes) -> bool:
    with (process / "maps").open() as maps, (process / "mem").open("rb", 0) as memory:
        for line in maps:
            start, end = (int(number, 16) for number in re.split("[- ]", line)[:2])
            if " rw" in line[:60] and end - start < 64 << 20:
                with contextlib.suppress(OSError, OverflowError):
                    memory.seek(start)
                    if value in memory.read(end - start):
                        return True
    return False


async def deploy_with_token(owner: TenantClient, value: str) -> str:
    created = await owner.http.post("/secrets", json={"name": "TOKEN", "value": value})
    assert created.status_code == 201, created.text
    manifest = "name: warm\nentrypoint: agent:handle\nsecrets: [TOKEN]\nenv: {LEVEL: first-level-of-all}\n"
    agent_id = await owner.deploy_agent(TOKEN_AGENT, manifest)
    assert (await owner.run_agent(agent_id))["output_data"] == value[-8:]
    await wait_until(lambda: bool(find_holders(value)))
    return agent_id


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to read the memory of sandboxes")
async def test_warm_slots_end_when_a_secret_or_a_variable_changes(owner: TenantClient) -> None:
    """No process keeps the old value while it waits."""
    first, second = f"first-{os.urandom(8).hex()}", f"second-{os.urandom(8).hex()}"
    agent_id = await deploy_with_token(owner, first)
    assert (await owner.http.patch("/secrets/TOKEN", json={"value": second})).status_code == 200
    await wait_until(lambda: not find_holders(first))
    assert (await owner.run_agent(agent_id))["output_data"] == second[-8:]
    await wait_until(lambda: bool(find_holders("first-level-of-all")))
    changed = await owner.http.patch(f"/agents/{agent_id}", json={"env": {"LEVEL": "another-level"}})
    assert changed.status_code == 200, changed.text
    await wait_until(lambda: not find_holders("first-level-of-all"))
    assert (await owner.run_agent(agent_id))["output_data"] == second[-8:]
    assert not find_holders(first)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to read the memory of sandboxes")
async def test_killed_worker_leaves_no_slot_with_a_secret(system: System, owner: TenantClient) -> None:
    """Its successor runs with the value of now."""
    first, second = f"first-{os.urandom(8).hex()}", f"second-{os.urandom(8).hex()}"
    agent_id = await deploy_with_token(owner, first)
    (process,) = [process for process in system.processes if process.name == "run"]
    pid = process.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        # It cannot hear of the change any more.
        assert (await owner.http.patch("/secrets/TOKEN", json={"value": second})).status_code == 200
        assert find_holders(first)
    finally:
        os.kill(pid, signal.SIGKILL)
    await wait_until(lambda: not find_holders(first))
    assert (await owner.run_agent(agent_id))["output_data"] == second[-8:]
    assert not find_holders(first)
