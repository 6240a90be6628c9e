"""Run what a benchmark measures: a system of its own, and servers to compare it with."""

import asyncio
import contextlib
import os
import sys
import tempfile
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator
from pathlib import Path

from infra.embedded import find_free_ports, is_listening
from scripts.system import System

_POLL_SECONDS = 0.05
_START_SECONDS = 60


@contextlib.asynccontextmanager
async def run_bench_system() -> AsyncIterator[System]:
    """Run a system with one worker per lane on a free port, and remove its data afterwards."""
    os.environ.setdefault("PADDOCK_LOG_LEVEL", "WARNING")
    with tempfile.TemporaryDirectory(prefix="paddock-bench-") as folder:
        system = System(Path(folder) / "data", find_free_ports(1)[0], 1, lambda _: None)
        async with system.run():
            yield system


@contextlib.asynccontextmanager
async def run_server(port: int, *arguments: str) -> AsyncIterator[None]:
    """Run Python with these arguments in a process of its own, which listens on the port. Errors: `RuntimeError`."""
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=DEVNULL)
    try:
        for _ in range(round(_START_SECONDS / _POLL_SECONDS)):
            if is_listening(port):
                break
            await asyncio.sleep(_POLL_SECONDS)
        else:
            raise RuntimeError(f"{' '.join(arguments)} does not listen on port {port}")
        yield
    finally:
        process.terminate()
        await process.wait()
