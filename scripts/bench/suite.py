"""Run the benchmarks: ratios measured in one run, on this machine, with every part on it. Nothing is asserted.

`make bench` starts a system of its own, warms it up, prints one table, soaks the system and prints another.
"""

import asyncio
import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import aiohttp

from infra.embedded import find_free_ports
from scripts.bench import egress, outputs, plans, records, search, streams
from scripts.bench.environment import run_bench_system
from scripts.bench.figures import BenchRow, measure_rate, print_rows, time_interpreter
from scripts.bench.load import run_bare_handlers
from scripts.bench.resources import measure_cpu_seconds, measure_memory_mib
from scripts.bench.soak import BenchClient, SoakResult, pack_agent, run_soak
from scripts.system import System

SINGLE_RUNS = 200
# Seconds between one measurement and the next, in which slots are refilled.
PAUSE_SECONDS = 0.03
SETTLE_SECONDS, IDLE_SECONDS = 30, 60
FRESH_AGENTS = 12
CONCURRENT_RUNS = 1500
RUNS_IN_FLIGHT = 16
TIMED_READS = 2000
SOAK_TENANTS = 20
SOAK_EXECUTIONS = 5000
NO_OP_SOURCE = "def handle(payload):\n    return payload\n"
NUMPY_SOURCE = "import numpy\ndef handle(payload):\n    return {'sum': int(numpy.arange(10).sum())}\n"


def compute_quantile(values: list[float], share: float) -> float:
    """Return the value that `share` of them do not exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


async def _time_call(call: Callable[[], Awaitable[Any]]) -> tuple[float, Any]:
    began = time.perf_counter()
    answer = await call()
    return (time.perf_counter() - began) * 1000, answer


def _count_seconds(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


async def _measure_bare_rate() -> float:
    async with run_bare_handlers() as port, aiohttp.ClientSession() as http:

        async def call_handler() -> None:
            async with http.get(f"http://127.0.0.1:{port}/") as answer:
                await answer.read()

        await measure_rate(call_handler, 200, RUNS_IN_FLIGHT)
        return await measure_rate(call_handler, TIMED_READS, RUNS_IN_FLIGHT)


async def _time_single_runs(
    client: BenchClient, agent_id: str, count: int, pause: float = PAUSE_SECONDS
) -> tuple[list[float], list[float], list[Any]]:
    """Time runs and interpreter starts in turn, one at a time. Returns the times of both, and the runs."""
    for _ in range(20):
        await client.complete_agent(agent_id, {"n": 1})
    took, floor, runs = list[float](), list[float](), list[Any]()
    for _ in range(count):
        await asyncio.sleep(pause)
        duration, ended = await _time_call(functools.partial(client.complete_agent, agent_id, {"n": 1}))
        took.append(duration)
        runs.append(ended)
        await asyncio.sleep(pause)
        floor.append(await asyncio.to_thread(time_interpreter))
    return took, floor, runs


async def _measure_latency(client: BenchClient, agent_id: str) -> tuple[list[BenchRow], float, float, str]:
    took, floor, runs = await _time_single_runs(client, agent_id, SINGLE_RUNS)
    base, p50, p95 = statistics.median(floor), statistics.median(took), compute_quantile(took, 0.95)
    waits = [_count_seconds(run["created_at"], run["started_at"]) * 1000 for run in runs]
    chained = [
        (await _time_call(functools.partial(client.complete_agent, agent_id, {"n": 1})))[0] for _ in range(SINGLE_RUNS)
    ]
    next_p50 = statistics.median(chained)
    start = "python -I -S -c pass"
    return (
        [
            ("hot no-op, submit to result, p50", f"{p50 / base:.2f}", start),
            ("hot no-op, submit to result, p95", f"{p95 / base:.2f}", start),
            ("hot no-op, submit to result, p95", f"{p95 / p50:.2f}", "its own p50"),
            ("the same, the next at once, p50", f"{next_p50 / base:.2f}", start),
            (
                "the same, the next at once, p95",
                f"{compute_quantile(chained, 0.95) / statistics.median(chained):.2f}",
                "its p50",
            ),
            ("hot no-op, enqueue to start, p50", f"{statistics.median(waits) / base:.2f}", start),
        ],
        base,
        p50,
        str(runs[0]["id"]),
    )


async def _measure_numpy_agent(client: BenchClient, no_op: float) -> BenchRow:
    name = "hot agent that imports numpy, p50"
    try:
        agent_id = await client.deploy_agent("numpy", pack_agent(NUMPY_SOURCE, **{"requirements.txt": "numpy\n"}))
    except RuntimeError as error:
        return name, "-", f"not measured: {str(error)[:60]}"
    # Its slots take longer to refill: hot is who finds one.
    took, floor, _ = await _time_single_runs(client, agent_id, SINGLE_RUNS // 4, PAUSE_SECONDS * 8)
    return name, f"{statistics.median(took) / statistics.median(floor) / no_op:.2f}", "the no-op's p50"


async def _measure_first_runs(client: BenchClient, base: float) -> BenchRow:
    """Measure the first run of a new version."""
    agents = [await client.deploy_agent(f"fresh-{number}", pack_agent(NO_OP_SOURCE)) for number in range(FRESH_AGENTS)]
    await asyncio.sleep(1)
    took = [(await _time_call(functools.partial(client.complete_agent, agent_id, {"n": 1})))[0] for agent_id in agents]
    return "first run of a version, p50", f"{statistics.median(took) / base:.2f}", "python -I -S -c pass"


async def measure_system(system: System) -> tuple[list[BenchRow], float]:
    """Return every figure: what, the ratio, and what it is a ratio of; and milliseconds of an interpreter's start."""
    async with BenchClient(system.url, {"X-API-Key": system.admin_key}) as client:
        agent_id = await client.deploy_agent("no-op", pack_agent(NO_OP_SOURCE))
        rows, base, p50, memory_before = await _measure_latency(client, agent_id)
        rows.append(await _measure_numpy_agent(client, p50 / base))
        rows.append(await _measure_first_runs(client, base))
        rows.append(await outputs.measure_first_output(system, client))
        await measure_rate(lambda: client.complete_agent(agent_id, {"n": 1}), 200, RUNS_IN_FLIGHT)
        rate = await measure_rate(lambda: client.complete_agent(agent_id, {"n": 1}), CONCURRENT_RUNS, RUNS_IN_FLIGHT)
        rows.append(_format_rate(f"completed runs, {RUNS_IN_FLIGHT} in flight", rate, base))
        await measure_rate(lambda: client.call_api("GET", f"executions/{memory_before}"), 200, RUNS_IN_FLIGHT)
        reads = await measure_rate(
            lambda: client.call_api("GET", f"executions/{memory_before}"), TIMED_READS, RUNS_IN_FLIGHT
        )
    rows.append(
        ("GET /executions/{id} per second", f"{reads / await _measure_bare_rate():.2f}", "a bare Litestar handler")
    )
    return rows, base


def _format_rate(what: str, rate: float, base: float) -> BenchRow:
    return what, f"{rate * base / 1000:.2f}", f"interpreter starts, one after the other ({rate:.0f} runs/s)"


def _format_soak(result: SoakResult, base: float) -> list[BenchRow]:
    start = "python -I -S -c pass"
    p50 = compute_quantile(result.took, 0.5)
    rows = [
        _format_rate(f"completed runs, {len(result.took)} of {SOAK_TENANTS} tenants", result.rate, base),
        ("submit to result, p50", f"{p50 / base:.2f}", start),
        ("submit to result, p95", f"{compute_quantile(result.took, 0.95) / p50:.2f}", "its p50"),
        ("submit to result, p99", f"{compute_quantile(result.took, 0.99) / p50:.2f}", "its p50"),
        ("lost", f"{len(result.lost)}", "executions"),
        ("settled twice, or run after their end", f"{len(result.twice)}", "executions"),
        ("run anew after a lost worker", f"{result.retried}", "executions"),
    ]
    for name, (before, after) in result.memory.items():
        rows.append((f"memory of {name}, after", f"{after / max(before, 1):.2f}", f"before ({before:.0f} MiB)"))
    return rows


async def _measure_idle() -> list[BenchRow]:
    """Measure what an idle `paddock up` takes, beginning some time after its start."""
    with tempfile.TemporaryDirectory(prefix="paddock-bench-") as folder:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "scripts.cli", "up", "--data", folder, "--port", str(find_free_ports(1)[0])),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            async for line in process.stdout:
                if line.startswith(b"ready"):
                    break
            await asyncio.sleep(SETTLE_SECONDS)
            before = measure_cpu_seconds(process.pid)
            await asyncio.sleep(IDLE_SECONDS)
            share, memory = (measure_cpu_seconds(process.pid) - before) / IDLE_SECONDS, measure_memory_mib(process.pid)
        finally:
            process.terminate()
            await process.wait()
    return [
        (f"`paddock up`, idle for {IDLE_SECONDS} s", f"{share * 100:.2f}", "per cent of one core, all processes"),
        ("its memory, shared pages counted once", f"{memory / 700:.2f}", f"700 MiB ({memory:.0f} MiB)"),
    ]


async def main() -> None:
    """Measure, soak and print."""
    idle = await _measure_idle()
    host, port = egress.choose_bench_host()
    async with run_bench_system() as system:
        rows, base = await measure_system(system)
        async with BenchClient(system.url, {"X-API-Key": system.admin_key}) as client:
            rows += await egress.measure_egress(client, host, port)
        print_rows([*idle, *rows])
        print(f"\nsoak: {SOAK_EXECUTIONS} executions of {SOAK_TENANTS} tenants, {RUNS_IN_FLIGHT} in flight")
        print_rows(_format_soak(await run_soak(system, SOAK_TENANTS, SOAK_EXECUTIONS, RUNS_IN_FLIGHT), base))
    print("\nplans")
    await plans.main()
    print("\nstreams of models")
    await streams.main()
    print("\nrecords")
    await records.main(records.FULL_SIZES)
    print("\nsearch")
    await search.main()
