"""Measure what streaming an answer through Paddock costs, against reading the same provider directly, in one run.

`python -m scripts.bench.streams` starts a system of its own and the tests' provider in a process of its own, and reads
200 answers of 500 tokens at the same time: through model agents over WebSockets, and straight from the provider.
Nothing is asserted but that every token came, in order.
"""

import asyncio
import functools
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import uvloop
from websockets.asyncio.client import connect

from infra.embedded import find_free_ports
from scripts.bench.environment import run_bench_system, run_server
from scripts.bench.figures import BenchRow, print_rows
from scripts.bench.resources import measure_memory_mib
from scripts.system import System

STREAM_COUNT, TOKENS_PER_STREAM = 200, 500
# Milliseconds between two tokens, as a model of that size makes them; and none, for the most that goes through.
TOKEN_PAUSES_MS = (40, 0)
WARM_UP_STREAMS = 20


class StreamReading(msgspec.Struct):
    """Hold what one reader saw: when it asked and when it had all, in seconds; and how late each token came, in ms."""

    asked: float
    ended: float
    late: list[float]


@asynccontextmanager
async def run_provider() -> AsyncIterator[str]:
    """Run the scripted provider in a process of its own. Yields its URL."""
    port = find_free_ports(1)[0]
    async with run_server(port, "-m", "tests.support.fake_provider", str(port)):
        yield f"http://127.0.0.1:{port}/v1"


async def read_directly(url: str, model: str) -> StreamReading:
    """Read one answer straight from the provider."""
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "Go"}]}
    take = _TokenCollector()
    async with (
        httpx.AsyncClient(timeout=120) as client,
        client.stream("POST", f"{url}/chat/completions", json=body) as answer,
    ):
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                take(_get_content(msgspec.json.decode(line[6:])))
    return take.finish_reading()


async def read_through_paddock(system: System, agent: str) -> StreamReading:
    """Read one answer through a model agent over its WebSocket."""
    url = f"ws://127.0.0.1:{system.port}/api/v1/agents/{agent}/stream"
    seqs = list[int]()
    async with connect(url, additional_headers={"X-API-Key": system.admin_key}, open_timeout=60) as socket:
        take = _TokenCollector()
        await socket.send(json.dumps({"task": "Go"}))
        async for message in socket:
            event = msgspec.json.decode(message)
            if event["type"] == "complete":
                if event["status"] != "completed":
                    raise SystemExit(f"a run {event['status']}: {event['error_message']}")
                break
            seqs.append(event["seq"])
            if event["type"] == "token":
                take(event["content"])
    if seqs != list(range(1, len(seqs) + 1)):
        raise SystemExit("events were lost, doubled or out of order")
    return take.finish_reading()


class _TokenCollector:
    """Takes the pieces of an answer: every token in its order, with the time at which it was sent."""

    def __init__(self) -> None:
        self._read = StreamReading(asked=time.monotonic(), ended=0.0, late=[])
        self._rest = ""

    def __call__(self, piece: str) -> None:
        *words, self._rest = (self._rest + piece).split(" ")
        # The last may be cut by what came with it; a piece of ours ends where a token does.
        self._add_words([*words, self._rest] if piece and piece[-1].isdigit() else words)
        if piece and piece[-1].isdigit():
            self._rest = ""

    def _add_words(self, words: list[str]) -> None:
        now = time.monotonic()
        for word in filter(None, words):
            number, _, sent = word[1:].partition("@")
            if int(number) != len(self._read.late):
                raise SystemExit(f"token {number} came where {len(self._read.late)} was due")
            self._read.late.append(1000 * now - int(sent) / 1000)

    def finish_reading(self) -> StreamReading:
        """Return the reading of a whole answer."""
        if len(self._read.late) != TOKENS_PER_STREAM:
            raise SystemExit(f"{len(self._read.late)} tokens of {TOKENS_PER_STREAM} came")
        self._read.ended = time.monotonic()
        return self._read


def _get_content(chunk: dict[str, Any]) -> str:
    choices = chunk.get("choices") or [{}]
    return (choices[0].get("delta") or {}).get("content") or ""


async def _read_concurrently(
    read: Callable[[], Coroutine[Any, Any, StreamReading]], count: int = STREAM_COUNT
) -> list[StreamReading]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(read()) for _ in range(count)]
    return [task.result() for task in tasks]


def _measure_rate(reads: list[StreamReading]) -> float:
    """Return the tokens per second of all streams together."""
    return len(reads) * TOKENS_PER_STREAM / (max(read.ended for read in reads) - min(read.asked for read in reads))


def _collect_delays(reads: list[StreamReading]) -> list[float]:
    """Return how late tokens came after the provider had sent them, in milliseconds, in rising order."""
    return sorted(late for read in reads for late in read.late)


async def measure_streams(system: System, url: str) -> list[BenchRow]:
    """Measure both ways at each pace."""
    rows: list[BenchRow] = []
    headers = {"X-API-Key": system.admin_key}
    async with httpx.AsyncClient(base_url=f"{system.url}/api/v1", headers=headers, timeout=60) as client:
        for pace in TOKEN_PAUSES_MS:
            name = f"stamped-tokens-{TOKENS_PER_STREAM}" + (f"-delay-{pace}" if pace else "")
            body = {"name": f"bench-{pace}", "provider": "openai_compatible", "model": name, "base_url": url}
            (await client.post("/models", json=body)).raise_for_status()
            body = {"name": f"bench-{pace}", "model": f"bench-{pace}"}
            (await client.post("/agents", json=body)).raise_for_status()
            through = functools.partial(read_through_paddock, system, f"bench-{pace}")
            await _read_concurrently(through, 2 if pace else WARM_UP_STREAMS)
            before = _measure_memory(system)
            theirs = await _read_concurrently(functools.partial(read_directly, url, name))
            mine = await _read_concurrently(through)
            after = _measure_memory(system)
            label = f"{STREAM_COUNT} streams of {TOKENS_PER_STREAM} tokens, " + (
                f"one per {pace} ms" if pace else "as fast as they come"
            )
            rate, base = _measure_rate(mine), _measure_rate(theirs)
            rows.append((f"{label}, tokens per second", f"{rate / base:.2f}", f"direct ({rate:.0f} to {base:.0f}/s)"))
            if pace:
                ours, base_late = _collect_delays(mine), _collect_delays(theirs)
                middle, most = len(ours) // 2, int(len(ours) * 0.95)
                added = ours[middle] - base_late[middle]
                comparison = f"the pause between two (p50 {ours[middle]:.0f} to {base_late[middle]:.0f} ms"
                comparison += f", p95 {ours[most]:.0f} to {base_late[most]:.0f})"
                rows.append((f"{label}, delay added per token", f"{added / pace:.2f}", comparison))
            for process in ("llm", "api"):
                comparison = f"before ({before[process]} to {after[process]} MiB)"
                rows.append((f"{label}, memory of {process}", f"{after[process] / before[process]:.2f}", comparison))
    return rows


def _measure_memory(system: System) -> dict[str, int]:
    return {
        process.name: round(measure_memory_mib(process.pid)) for process in system.processes if process.pid is not None
    }


async def main() -> None:
    """Measure and print."""
    os.environ["PADDOCK_PRIVATE_HOSTS"] = "127.0.0.1"
    async with run_bench_system() as system, run_provider() as url:
        print_rows(await measure_streams(system, url))


if __name__ == "__main__":
    uvloop.run(main())
