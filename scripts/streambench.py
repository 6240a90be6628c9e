"""What streaming a model's answer through Paddock costs, against reading the same provider directly; ratios of one run.

`python -m scripts.streambench` starts a system of its own and the tests' provider in a process of its own, and reads 200
answers of 500 tokens at the same time: through model agents over WebSockets, and straight from the provider. Nothing is
asserted but that every token came, in order.
"""

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import uvloop
from websockets.asyncio.client import connect

from infra.embedded.children import free_ports
from scripts.resources import held
from scripts.up import System

STREAMS, TOKENS = 200, 500
# Milliseconds between two tokens, as a model of that size makes them; and none, for the most that goes through.
PACES = (40, 0)
WARM = 20

Row = tuple[str, str, str]


class Read(msgspec.Struct):
    """What one reader saw: when it asked, and for each token when it came, in seconds."""

    asked: float
    came: list[float]


@asynccontextmanager
async def provider() -> AsyncIterator[str]:
    """The scripted provider, in a process of its own; its URL."""
    port = free_ports(1)[0]
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.wire", str(port))
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient() as client:
            for _ in range(200):
                try:
                    await client.get(f"{url}/v1/models")
                    break
                except httpx.TransportError:
                    await asyncio.sleep(0.05)
        yield f"{url}/v1"
    finally:
        process.terminate()
        await process.wait()


async def direct(url: str, model: str) -> Read:
    """One answer, straight from the provider."""
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "Go"}]}
    seen = Read(asked=time.monotonic(), came=[])
    words = ""
    async with (
        httpx.AsyncClient(timeout=120) as client,
        client.stream("POST", f"{url}/chat/completions", json=body) as answer,
    ):
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                words += _delta(msgspec.json.decode(line[6:]))
                _count(seen, words)
    _whole(words)
    return seen


async def through(system: System, agent: str) -> Read:
    """One answer, through a model agent over its WebSocket."""
    url = f"ws://127.0.0.1:{system.port}/api/v1/agents/{agent}/stream"
    words, seqs = "", list[int]()
    async with connect(url, additional_headers={"X-API-Key": system.admin_key}, open_timeout=60) as socket:
        seen = Read(asked=time.monotonic(), came=[])
        await socket.send(json.dumps({"task": "Go"}))
        async for message in socket:
            event = msgspec.json.decode(message)
            if event["type"] == "complete":
                if event["status"] != "completed":
                    raise SystemExit(f"a run {event['status']}: {event['error_message']}")
                break
            seqs.append(event["seq"])
            if event["type"] == "token":
                words += event["content"]
                _count(seen, words)
    _whole(words)
    if seqs != list(range(1, len(seqs) + 1)):
        raise SystemExit("events were lost, doubled or out of order")
    return seen


def _delta(chunk: dict[str, Any]) -> str:
    choices = chunk.get("choices") or [{}]
    return (choices[0].get("delta") or {}).get("content") or ""


def _count(seen: Read, words: str) -> None:
    """Note the time of every token that has come since."""
    now, count = time.monotonic(), words.count("w")
    seen.came += [now] * (count - len(seen.came))


def _whole(words: str) -> None:
    if words.split() != [f"w{number}" for number in range(TOKENS)]:
        raise SystemExit("an answer was not complete and in order")


async def _all(read: Callable[[], Coroutine[Any, Any, Read]], count: int = STREAMS) -> list[Read]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(read()) for _ in range(count)]
    return [task.result() for task in tasks]


def _rate(reads: list[Read]) -> float:
    """Tokens per second of all together."""
    took = max(one.came[-1] for one in reads) - min(one.asked for one in reads)
    return len(reads) * TOKENS / took


def _delay(mine: list[Read], theirs: list[Read]) -> list[float]:
    """Milliseconds by which each token comes later than if one asks the provider, over the tokens of an answer."""
    return [
        1000
        * (
            statistics.median(one.came[place] - one.asked for one in mine)
            - statistics.median(one.came[place] - one.asked for one in theirs)
        )
        for place in range(TOKENS)
    ]


async def measure(system: System, url: str) -> list[Row]:
    """Both ways at each pace."""
    rows: list[Row] = []
    headers = {"X-API-Key": system.admin_key}
    async with httpx.AsyncClient(base_url=f"{system.url}/api/v1", headers=headers, timeout=60) as client:
        for pace in PACES:
            name = f"tokens-{TOKENS}" + (f"-delay-{pace}" if pace else "")
            body = {"name": f"bench-{pace}", "provider": "openai_compatible", "model": name, "base_url": url}
            (await client.post("/models", json=body)).raise_for_status()
            made = {"name": f"bench-{pace}", "model": f"bench-{pace}"}
            (await client.post("/agents", json=made)).raise_for_status()
            await _all(lambda pace=pace: through(system, f"bench-{pace}"), WARM if not pace else 2)  # type: ignore[misc]
            before = _memory(system)
            theirs = await _all(lambda name=name: direct(url, name))  # type: ignore[misc]
            mine = await _all(lambda pace=pace: through(system, f"bench-{pace}"))  # type: ignore[misc]
            after = _memory(system)
            label = f"{STREAMS} streams of {TOKENS} tokens, " + (f"one per {pace} ms" if pace else "as fast as they come")
            rate, base = _rate(mine), _rate(theirs)
            rows.append((f"{label}, tokens per second", f"{rate / base:.2f}", f"direct ({rate:.0f} to {base:.0f}/s)"))
            if pace:
                added = _delay(mine, theirs)
                later = statistics.median(added)
                told = f"the pause between two tokens (p50 {later:.0f} ms, p95 {sorted(added)[int(TOKENS * 0.95)]:.0f})"
                rows.append((f"{label}, delay added per token", f"{later / pace:.2f}", told))
            for process in ("llm", "api"):
                told = f"before ({before[process]} to {after[process]} MiB)"
                rows.append((f"{label}, memory of {process}", f"{after[process] / before[process]:.2f}", told))
    return rows


def _memory(system: System) -> dict[str, int]:
    return {one.name: round(held(one.pid)) for one in system.processes if one.pid is not None}


async def main() -> None:
    """Measure and print."""
    os.environ["PADDOCK_PRIVATE_HOSTS"] = "127.0.0.1"
    with tempfile.TemporaryDirectory(prefix="paddock-bench-") as folder:
        system = System(Path(folder) / "data", free_ports(1)[0], 1, lambda line: print(line) if " error " in line or "Traceback" in line else None)
        async with system.running(), provider() as url:
            rows = await measure(system, url)
    print(f"{'figure':<76}{'ratio':>7}   to")
    for what, ratio, to in rows:
        print(f"{what:<76}{ratio:>7}   {to}", flush=True)


if __name__ == "__main__":
    uvloop.run(main())
