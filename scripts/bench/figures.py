"""Measure what every benchmark compares with, and print its figures."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

# What was measured, the ratio, and what it is a ratio of.
BenchRow = tuple[str, str, str]


def time_interpreter() -> float:
    """Return the milliseconds of one `python -I -S -c pass`."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True)
    return (time.perf_counter() - began) * 1000


async def measure_rate(call: Callable[[], Awaitable[Any]], total: int, width: int) -> float:
    """Return the calls per second of `total` calls, `width` of them at a time."""
    left = iter(range(total))

    async def call_next() -> None:
        for _ in left:
            await call()

    began = time.perf_counter()
    await asyncio.gather(*(call_next() for _ in range(width)))
    return total / (time.perf_counter() - began)


def print_rows(rows: list[BenchRow]) -> None:
    """Print a table of figures."""
    width = max(len(what) for what, _, _ in rows) + 2
    print(f"{'figure':<{width}}{'ratio':>8}   to")
    for what, ratio, to in rows:
        print(f"{what:<{width}}{ratio:>8}   {to}", flush=True)
