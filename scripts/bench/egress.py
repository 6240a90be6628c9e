"""Measure runs that have a network beside runs that have none, and how fast bytes pass through a declared host.

`python -m scripts.bench.egress` starts a system of its own and prints the rows that `make bench` prints. Nothing is
asserted but that each run completes. The host is this machine by its own name, which the workers must be allowed to
reach (`choose_bench_host`).
"""

import asyncio
import contextlib
import functools
import os
import socket
import statistics
import time
from collections.abc import AsyncIterator
from typing import Any, Final

import uvloop

from infra.embedded import find_free_ports
from scripts.bench.environment import run_bench_system
from scripts.bench.figures import BenchRow, print_rows
from scripts.bench.soak import BenchClient, pack_agent

EGRESS_RUNS: Final = 150
WARM_UP_RUNS: Final = 15
# Seconds between two runs, in which slots are refilled.
PAUSE_SECONDS: Final = 0.05
TRANSFER_COUNT: Final = 5
TRANSFER_BYTES: Final = 256 << 20
_CHUNK_BYTES: Final = bytes(1 << 18)
_NO_OP_SOURCE: Final = "def handle(payload):\n    return payload\n"
# The same code measures the connection of an agent, and one without Paddock.
_TRANSFER_SOURCE: Final = """
import socket, time

def handle(payload):
    began, size = time.perf_counter(), 0
    with socket.create_connection((payload["host"], payload["port"])) as connection:
        while part := connection.recv(1 << 18):
            size += len(part)
    return size / (time.perf_counter() - began)
"""


def choose_bench_host() -> tuple[str, int]:
    """Choose the host and a port for the server of the benchmark, and let the workers that start later reach it."""
    host, port = socket.gethostname(), find_free_ports(1)[0]
    os.environ["PADDOCK_PRIVATE_HOSTS"] = f"{host}:{port}"
    return host, port


async def measure_egress(client: BenchClient, host: str, port: int) -> list[BenchRow]:
    """Measure runs with hosts and with a gateway against runs without, and a host's bytes per second."""
    try:
        address = socket.gethostbyname(host)
    except OSError as error:
        return [("a run with a declared host, p50", "-", f"not measured: {host} does not resolve ({error})")]
    manifests = {
        "none": "",
        "host": f"egress: ['{host}:{port}']\n",
        "gateway": "models: [smollm2]\n",
    }
    agents = {
        name: await client.deploy_agent(f"network-{name}", _pack_agent(_NO_OP_SOURCE, extra))
        for name, extra in manifests.items()
    }
    took = await _time_runs(client, agents)
    p50 = {name: statistics.median(times) for name, times in took.items()}
    comparison = f"a run without a network ({p50['none']:.1f} ms)"
    rows = [
        ("a run with a declared host, p50", f"{p50['host'] / p50['none']:.2f}", comparison),
        ("a run with a gateway, p50", f"{p50['gateway'] / p50['none']:.2f}", comparison),
    ]
    agent_id = await client.deploy_agent("transfer", _pack_agent(_TRANSFER_SOURCE, manifests["host"]))
    async with _serve_bytes(address, port):
        return [*rows, await _measure_transfers(client, agent_id, {"host": host, "port": port})]


def _pack_agent(source: str, extra: str) -> bytes:
    return pack_agent(source, f"name: network\nentrypoint: agent:handle\n{extra}")


async def _time_runs(client: BenchClient, agents: dict[str, str]) -> dict[str, list[float]]:
    """Run the agents in turn, one at a time. Returns the milliseconds of each one's runs."""
    took: dict[str, list[float]] = {name: [] for name in agents}
    for number in range(WARM_UP_RUNS + EGRESS_RUNS):
        for name, agent_id in agents.items():
            began = time.perf_counter()
            await client.complete_agent(agent_id, {})
            if number >= WARM_UP_RUNS:
                took[name].append((time.perf_counter() - began) * 1000)
            await asyncio.sleep(PAUSE_SECONDS)
    return took


async def _measure_transfers(client: BenchClient, agent_id: str, payload: dict[str, Any]) -> BenchRow:
    namespace: dict[str, Any] = {}
    exec(_TRANSFER_SOURCE, namespace)  # noqa: S102 - the agent's own source, to measure the same loop directly
    through, direct = list[float](), list[float]()
    for _ in range(TRANSFER_COUNT):
        through.append((await client.complete_agent(agent_id, payload))["output_data"])
        direct.append(await asyncio.to_thread(functools.partial(namespace["handle"], payload)))
    rate, direct_rate = statistics.median(through), statistics.median(direct)
    comparison = f"a direct connection ({rate / 1e6:.0f} to {direct_rate / 1e6:.0f} MB/s)"
    return "bytes per second through a declared host", f"{rate / direct_rate:.2f}", comparison


@contextlib.asynccontextmanager
async def _serve_bytes(address: str, port: int) -> AsyncIterator[None]:
    """Send `TRANSFER_BYTES` to each connection."""

    async def send_bytes(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            for _number in range(TRANSFER_BYTES // len(_CHUNK_BYTES)):
                writer.write(_CHUNK_BYTES)
                await writer.drain()
        writer.close()

    async with await asyncio.start_server(send_bytes, address, port):
        yield


async def main() -> None:
    """Measure and print."""
    host, port = choose_bench_host()
    async with run_bench_system() as system, BenchClient(system.url, {"X-API-Key": system.admin_key}) as client:
        print_rows(await measure_egress(client, host, port))


if __name__ == "__main__":
    uvloop.run(main())
