"""Measure how soon the first output of a generator is seen after its start, over a WebSocket.

`python -m scripts.bench.outputs` starts a system of its own and prints the row that `make bench` prints. Nothing is
asserted but that each output comes.
"""

import asyncio
import json
import statistics
import time
from typing import Final

import uvloop
from websockets.asyncio.client import ClientConnection, connect

from scripts.bench.environment import run_bench_system
from scripts.bench.figures import BenchRow, print_rows, time_interpreter
from scripts.bench.soak import BenchClient, pack_agent
from scripts.system import System

OUTPUT_RUNS: Final = 100
WARM_UP_RUNS: Final = 10
PAUSE_SECONDS: Final = 0.03
# The run goes on after its first output, so that this is not seen with its end.
_GENERATOR_SOURCE: Final = "import time\ndef handle(payload):\n    yield 1\n    time.sleep(0.2)\n    yield 2\n"


async def measure_first_output(system: System, client: BenchClient) -> BenchRow:
    """Measure the time from a start to the first output event, against the start of an interpreter."""
    agent_id = await client.deploy_agent("first-output", pack_agent(_GENERATOR_SOURCE))
    url = f"ws://127.0.0.1:{system.port}/api/v1/agents/{agent_id}/stream"
    took, floor = list[float](), list[float]()
    async with connect(url, additional_headers={"X-API-Key": system.admin_key}, open_timeout=60) as socket:
        for number in range(WARM_UP_RUNS + OUTPUT_RUNS):
            duration = await _time_first_output(socket)
            await asyncio.sleep(PAUSE_SECONDS)
            if number >= WARM_UP_RUNS:
                took.append(duration)
                floor.append(await asyncio.to_thread(time_interpreter))
    p50 = statistics.median(took)
    comparison = f"python -I -S -c pass ({p50:.1f} ms)"
    return "first output of a generator after start, p50", f"{p50 / statistics.median(floor):.2f}", comparison


async def _time_first_output(socket: ClientConnection) -> float:
    """Run the generator, and return the milliseconds until its first output came."""
    began, seen = time.perf_counter(), None
    await socket.send(json.dumps({"payload": {}}))
    async for message in socket:
        event = json.loads(message)
        if event["type"] == "output" and seen is None:
            seen = (time.perf_counter() - began) * 1000
        if event["type"] == "complete":
            break
    if seen is None:
        raise SystemExit(f"a run has no output: {event}")
    return seen


async def main() -> None:
    """Measure and print."""
    async with run_bench_system() as system, BenchClient(system.url, {"X-API-Key": system.admin_key}) as client:
        print_rows([await measure_first_output(system, client)])


if __name__ == "__main__":
    uvloop.run(main())
