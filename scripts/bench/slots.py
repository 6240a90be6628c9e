"""Measure what a sandbox costs, for both backends: `python -m scripts.bench.slots`.

Prints medians in milliseconds and as multiples of `python -I -S -c pass`, of the same run. Nothing is asserted.
"""

import asyncio
import functools
import statistics
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

from domain.ports import OutputStream, SandboxProgram
from infra.sandbox import (
    BubblewrapSandbox,
    ForkServerBackend,
    GuestStage,
    ProcessTree,
    SandboxBackend,
    TreeRequest,
    WarmSandbox,
    encode_request,
)
from scripts.bench.figures import measure_rate, time_interpreter

T = TypeVar("T")

STAGE_ROUNDS = 40
TOTAL_RUNS = 400
RUNS_IN_FLIGHT = 8
TIMEOUT_SECONDS = 10.0


async def main() -> None:
    """Measure and print."""
    floor = statistics.median(time_interpreter() for _ in range(STAGE_ROUNDS))
    print(f"{'python -I -S -c pass':<42}{floor:8.2f} ms")
    with tempfile.TemporaryDirectory(prefix="paddock-bench-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "agent.py").write_text("def handle(payload):\n    return payload\n")
        program = SandboxProgram(
            code=Path(folder), environment=None, entrypoint="agent:handle", timeout=TIMEOUT_SECONDS, memory_mb=256
        )
        for name in ("forkserver", "bubblewrap"):
            server = ForkServerBackend() if name == "forkserver" else None
            sandbox = WarmSandbox(BubblewrapSandbox(), server, 512)
            maker: SandboxBackend = server or BubblewrapSandbox()
            try:
                took, held_mib = await _time_stages(maker, program)
                for what, seconds in took.items():
                    middle = statistics.median(seconds) * 1000
                    print(f"{name + ': ' + what:<42}{middle:8.2f} ms {middle / floor:6.2f} x")
                print(f"{name + ': memory of its own, waiting':<42}{statistics.median(held_mib) / 1e6:8.2f} MB")
                run_program = functools.partial(sandbox.run_program, program, b"{}", _ignore_output)
                rate = await measure_rate(run_program, TOTAL_RUNS, RUNS_IN_FLIGHT)
                print(f"{name + f': runs per second, {RUNS_IN_FLIGHT} in flight':<42}{rate:8.0f}")
            finally:
                await sandbox.close()


async def _time_stages(maker: SandboxBackend, program: SandboxProgram) -> tuple[dict[str, list[float]], list[int]]:
    took: dict[str, list[float]] = {}
    held_mib: list[int] = []

    async def time_stage(what: str, work: Awaitable[T]) -> T:
        began = time.perf_counter()
        result = await work
        took.setdefault(what, []).append(time.perf_counter() - began)
        return result

    async def make_tree() -> ProcessTree:
        tree = await maker.start_tree(program)
        if maker.supports_blanks:
            await tree.wait_for_stage(GuestStage.BLANK, TIMEOUT_SECONDS)
        return tree

    async def import_program(tree: ProcessTree) -> None:
        maker.assign_program(tree, program, "run")
        if not await tree.wait_for_stage(GuestStage.IMPORTED, TIMEOUT_SECONDS):
            raise RuntimeError("the import did not end well")

    async def call_program(tree: ProcessTree, since: GuestStage) -> None:
        tree.resume(None)
        request = TreeRequest(
            data=encode_request(b"{}", b"{}"), on_output=_ignore_output, output_stage=since, returns_early=True
        )
        await tree.run(request, TIMEOUT_SECONDS)

    async def run_program(tree: ProcessTree) -> None:
        maker.assign_program(tree, program, "run")
        await call_program(tree, GuestStage.FENCED)

    async def run_cold() -> None:
        await run_program(await maker.start_tree(program))

    await run_cold()
    for _ in range(STAGE_ROUNDS):
        tree = await time_stage("made", make_tree())
        await time_stage("imported", import_program(tree))
        held_mib.append(await tree.pause() or 0)
        await time_stage("payload to result, warm", call_program(tree, GuestStage.PAYLOAD_READ))
        if maker.supports_blanks:
            tree = await make_tree()
            await time_stage("run in a blank slot", run_program(tree))
        await time_stage("run cold", run_cold())
    return took, held_mib


def _ignore_output(_: OutputStream, __: bytes) -> None:
    return None


if __name__ == "__main__":
    asyncio.run(main())
