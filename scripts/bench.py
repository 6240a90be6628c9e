"""The benchmarks: ratios measured in one run, on this machine, with every part on it. Nothing is asserted.

`make bench` starts a system of its own, warms it up, and prints one table.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from litestar import Litestar, get

from infra.embedded.children import free_ports
from scripts.demo import packed
from scripts.up import System

SOLO = 60
MANY = 200
IN_FLIGHT = 16
READS = 2000


def _interpreter() -> list[float]:
    """Milliseconds of `python -I -S -c pass`."""
    took = []
    for _ in range(40):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True)
        took.append((time.perf_counter() - began) * 1000)
    return took


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


async def _agent(http: httpx.AsyncClient) -> str:
    agent = (await http.post("/agents", json={"name": "bench"})).json()
    files = {"file": ("a.tar.gz", packed("hello"))}
    made = await http.post(f"/uploads/agent/{agent['id']}", files=files, headers={"Prefer": "wait=60"})
    if made.json()["status"] != "ready":
        raise SystemExit(f"the build failed: {made.json()['build_log']}")
    return str(agent["id"])


async def _run(http: httpx.AsyncClient, agent_id: str) -> dict[str, Any]:
    answer = await http.post(f"/agents/{agent_id}/execute", json={"payload": {}}, headers={"Prefer": "wait=60"})
    ended = dict(answer.json())
    if ended.get("status") != "completed":
        raise SystemExit(f"a run failed: {ended}")
    return ended


async def _timed(call: Callable[[], Awaitable[Any]]) -> tuple[float, Any]:
    began = time.perf_counter()
    answer = await call()
    return (time.perf_counter() - began) * 1000, answer


async def _in_flight(call: Callable[[], Awaitable[Any]], total: int, width: int) -> float:
    """Calls per second with so many in flight."""
    left = iter(range(total))

    async def work() -> None:
        for _ in left:
            await call()

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(width)))
    return total / (time.perf_counter() - began)


def _seconds(start: str, end: str) -> float:
    from datetime import datetime

    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


def _bare(port: int) -> None:
    """A Litestar handler that does nothing, in a process of its own."""

    @get("/", sync_to_thread=False)
    def nothing() -> dict[str, str]:
        return {"status": "completed"}

    uvicorn.run(
        Litestar([nothing], openapi_config=None, logging_config=None), port=port, log_config=None, access_log=False
    )


async def _bare_rate() -> float:
    port = free_ports(1)[0]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", f"from scripts.bench import _bare; _bare({port})")
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            for _ in range(200):
                try:
                    await http.get("/")
                    break
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
            await _in_flight(lambda: http.get("/"), 200, IN_FLIGHT)
            return await _in_flight(lambda: http.get("/"), READS, IN_FLIGHT)
    finally:
        process.terminate()
        await process.wait()


async def measure() -> list[tuple[str, str, str]]:
    """Every figure: what, the ratio, and what it is a ratio of."""
    rows: list[tuple[str, str, str]] = []
    with tempfile.TemporaryDirectory(prefix="paddock-bench-") as folder:
        system = System(Path(folder) / "data", free_ports(1)[0], 1, lambda _: None)
        async with system.running():
            headers = {"X-API-Key": system.admin_key}
            async with httpx.AsyncClient(base_url=f"{system.url}/api/v1", headers=headers, timeout=90) as http:
                agent_id = await _agent(http)
                for _ in range(10):
                    await _run(http, agent_id)
                floor = await asyncio.to_thread(_interpreter)
                solo = [await _timed(lambda: _run(http, agent_id)) for _ in range(SOLO)]
                took = [one for one, _ in solo]
                waits = [_seconds(run["created_at"], run["started_at"]) * 1000 for _, run in solo]
                base = statistics.median(floor)
                rows.append(("submit to result, p50", f"{statistics.median(took) / base:.2f}", "python -I -S -c pass"))
                rows.append(("submit to result, p95", f"{_quantile(took, 0.95) / base:.2f}", "python -I -S -c pass"))
                rows.append(
                    ("submit to result, p95", f"{_quantile(took, 0.95) / statistics.median(took):.2f}", "its own p50")
                )
                rows.append(
                    (
                        "enqueue to start, idle workers, p50",
                        f"{statistics.median(waits) / base:.2f}",
                        "python -I -S -c pass",
                    )
                )
                rate = await _in_flight(lambda: _run(http, agent_id), MANY, IN_FLIGHT)
                rows.append(
                    (
                        f"completed runs, {IN_FLIGHT} in flight",
                        f"{rate * base / 1000:.2f}",
                        "interpreter starts, one after the other",
                    )
                )
                path = f"/executions/{solo[0][1]['id']}"
                await _in_flight(lambda: http.get(path), 200, IN_FLIGHT)
                reads = await _in_flight(lambda: http.get(path), READS, IN_FLIGHT)
        bare = await _bare_rate()
        rows.append(("GET /executions/{id} per second", f"{reads / bare:.2f}", "a bare Litestar handler"))
    return rows


def main() -> None:
    """Measure and print."""
    os.environ.setdefault("PADDOCK_LOG_LEVEL", "WARNING")
    rows = asyncio.run(measure())
    print(f"{'figure':<42}{'ratio':>8}   to")
    for what, ratio, to in rows:
        print(f"{what:<42}{ratio:>8}   {to}")


if __name__ == "__main__":
    main()
