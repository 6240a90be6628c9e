"""Measure what a plan adds to its steps: a thousand empty steps, ten wide, against the same runs without a plan."""

import asyncio
import statistics
import time
from datetime import datetime
from typing import Any, Final

from scripts.bench.environment import run_bench_system
from scripts.bench.figures import BenchRow, measure_rate, print_rows
from scripts.bench.soak import BenchClient, pack_agent
from scripts.system import System

PLAN_STEPS: Final = 1000
PLAN_WIDTH: Final = 10
NO_OP_SOURCE: Final = "def handle(payload):\n    return {}\n"
_PAGE_SIZE: Final = 500


def _build_workflow(name: str, after_all: bool) -> dict[str, Any]:
    """Build ten chains of a hundred steps; or a hundred layers of ten, each step `after_all` of the layer before."""
    steps: list[dict[str, Any]] = []
    for layer in range(PLAN_STEPS // PLAN_WIDTH):
        for place in range(PLAN_WIDTH):
            before = range(PLAN_WIDTH) if after_all else (place,)
            above = [f"s{layer - 1}_{other}" for other in before] if layer else []
            steps.append({"id": f"s{layer}_{place}", "agent": "no-op", "depends_on": above})
    return {"name": name, "steps": steps}


async def _time_plan(client: BenchClient, name: str, after_all: bool) -> tuple[float, list[float]]:
    """Return the seconds of one run of a plan, and milliseconds that each of its steps took by itself."""
    await client.call_api("POST", "workflows", _build_workflow(name, after_all))
    began = time.perf_counter()
    ended = await client.call_api("POST", f"workflows/{name}/execute", {}, Prefer="wait=60")
    while ended["status"] not in ("completed", "failed", "cancelled"):
        ended = await client.call_api("GET", f"executions/{ended['id']}", Prefer="wait=60")
    took = time.perf_counter() - began
    if ended["status"] != "completed" or ended["steps_completed"] != PLAN_STEPS:
        raise SystemExit(f"the plan did not complete: {ended['error_message']}")
    alone: list[float] = []
    for offset in range(0, PLAN_STEPS, _PAGE_SIZE):
        path = f"executions?parent_id={ended['id']}&limit={_PAGE_SIZE}&offset={offset}"
        for run in (await client.call_api("GET", path))["items"]:
            times = [datetime.fromisoformat(run[name]) for name in ("started_at", "completed_at")]
            alone.append((times[1] - times[0]).total_seconds() * 1000)
    return took, alone


async def _time_bare_runs(client: BenchClient, agent_id: str) -> float:
    """Return the seconds of as many runs without a plan, as many in flight."""
    return PLAN_STEPS / await measure_rate(lambda: client.run_agent(agent_id, {}), PLAN_STEPS, PLAN_WIDTH)


async def measure_plans(system: System) -> list[BenchRow]:
    """Return every figure: what, the ratio, and what it is a ratio of."""
    rows: list[BenchRow] = []
    async with BenchClient(system.url, {"X-API-Key": system.admin_key}) as client:
        agent_id = await client.deploy_agent("no-op", pack_agent(NO_OP_SOURCE))
        await _time_bare_runs(client, agent_id)
        bare = await _time_bare_runs(client, agent_id)
        for shape, after_all in (("10 chains", False), ("each after all 10 before", True)):
            took, alone = await _time_plan(client, f"bench-{after_all}".lower(), after_all)
            what = f"{PLAN_STEPS} no-op steps, {shape}"
            each = f"{took / PLAN_STEPS * 1000:.1f} to {bare / PLAN_STEPS * 1000:.1f} ms each"
            rows.append(
                (f"{what}: time", f"{took / bare:.2f}", f"the runs by themselves, {PLAN_WIDTH} in flight ({each})")
            )
            layer, median_alone = took / (PLAN_STEPS / PLAN_WIDTH) * 1000, statistics.median(alone)
            rows.append(
                (
                    f"{what}: from step to step",
                    f"{layer / median_alone:.2f}",
                    f"a step itself ({layer:.1f} to {median_alone:.1f} ms)",
                )
            )
    return rows


async def main() -> None:
    """Measure on a system of its own, and print."""
    async with run_bench_system() as system:
        print_rows(await measure_plans(system))


if __name__ == "__main__":
    asyncio.run(main())
