"""What a sandbox costs, for both ways of making one: `python -m scripts.bench.slots`.

Prints medians in milliseconds and as multiples of `python -I -S -c pass`, of the same run. Nothing is asserted.
"""

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

from domain.ports import Program, Stream
from infra.sandbox.backend import SandboxBackend
from infra.sandbox.bubblewrap import BubblewrapSandbox
from infra.sandbox.exit_report import GuestStage
from infra.sandbox.forkserver.client import ForkServerBackend
from infra.sandbox.guest_protocol import encode_frame
from infra.sandbox.process_tree import ProcessTree
from infra.sandbox.warm import WarmSandbox

T = TypeVar("T")

ROUNDS = 40
RUNS = 400
IN_FLIGHT = 8
SECONDS = 10.0


async def main() -> None:
    """Measure and print."""
    floor = _interpreter()
    print(f"{'python -I -S -c pass':<42}{floor:8.2f} ms")
    with tempfile.TemporaryDirectory(prefix="paddock-bench-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "agent.py").write_text("def handle(payload):\n    return payload\n")
        program = Program(
            code=Path(folder), environment=None, entrypoint="agent:handle", timeout=SECONDS, memory_mb=256
        )
        for name in ("forkserver", "bubblewrap"):
            server = ForkServerBackend() if name == "forkserver" else None
            sandbox = WarmSandbox(BubblewrapSandbox(), server, 512)
            maker: SandboxBackend = server or BubblewrapSandbox()
            try:
                took, held = await _stages(maker, program)
                for what, seconds in took.items():
                    middle = statistics.median(seconds) * 1000
                    print(f"{name + ': ' + what:<42}{middle:8.2f} ms {middle / floor:6.2f} x")
                print(f"{name + ': memory of its own, waiting':<42}{statistics.median(held) / 1e6:8.2f} MB")
                print(f"{name + f': runs per second, {IN_FLIGHT} in flight':<42}{await _rate(sandbox, program):8.0f}")
            finally:
                await sandbox.close()


def _interpreter() -> float:
    took = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True)
        took.append((time.perf_counter() - began) * 1000)
    return statistics.median(took)


async def _stages(maker: SandboxBackend, program: Program) -> tuple[dict[str, list[float]], list[int]]:
    took: dict[str, list[float]] = {}
    held: list[int] = []

    async def timed(what: str, work: Awaitable[T]) -> T:
        began = time.perf_counter()
        result = await work
        took.setdefault(what, []).append(time.perf_counter() - began)
        return result

    async def fresh() -> ProcessTree:
        tree = await maker.start_tree(program)
        if maker.supports_blanks:
            await tree.wait_for_stage(GuestStage.BLANK, SECONDS)
        return tree

    async def imported(tree: ProcessTree) -> None:
        maker.assign_program(tree, program, "run")
        if not await tree.wait_for_stage(GuestStage.IMPORTED, SECONDS):
            raise RuntimeError("the import did not end well")

    async def called(tree: ProcessTree, since: GuestStage) -> None:
        tree.resume(None)
        await tree.run(encode_frame(b"{}"), SECONDS, _ignore, since, returns_early=True)

    async def at_once(tree: ProcessTree) -> None:
        maker.assign_program(tree, program, "run")
        await called(tree, GuestStage.FENCED)

    async def cold() -> None:
        await at_once(await maker.start_tree(program))

    await cold()
    for _ in range(ROUNDS):
        tree = await timed("made", fresh())
        await timed("imported", imported(tree))
        held.append(await tree.pause() or 0)
        await timed("payload to result, warm", called(tree, GuestStage.PAYLOAD_READ))
        if maker.supports_blanks:
            tree = await fresh()
            await timed("run in a blank slot", at_once(tree))
        await timed("run cold", cold())
    return took, held


async def _rate(sandbox: WarmSandbox, program: Program) -> float:
    async def several() -> None:
        for _ in range(RUNS // IN_FLIGHT):
            await sandbox.run(program, b"{}", _ignore)

    began = time.perf_counter()
    await asyncio.gather(*(several() for _ in range(IN_FLIGHT)))
    return RUNS / (time.perf_counter() - began)


def _ignore(_: Stream, __: bytes) -> None:
    return None


if __name__ == "__main__":
    asyncio.run(main())
