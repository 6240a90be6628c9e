"""Test two hundred concurrent streams: none is dropped, each is complete and ordered, and memory is bounded."""

import asyncio
import json

from websockets.asyncio.client import connect

from scripts.bench.resources import measure_memory_mib
from scripts.system import System
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider
from tests.support.model_agents import create_model, create_model_agent, generate_name, join_tokens

STREAM_COUNT, TOKEN_COUNT = 200, 500
# MiB by which the memory of a process may grow.
MAX_GROWTH_MIB = 150


async def test_two_hundred_concurrent_streams_are_complete(
    system: System, acme: TenantClient, provider: FakeProvider
) -> None:
    name = await create_model(acme, provider, generate_name(), model=f"tokens-{TOKEN_COUNT}")
    created = await create_model_agent(acme, name)
    url = f"ws://127.0.0.1:{system.port}/api/v1/agents/{created['id']}/stream"
    headers = {"Authorization": acme.http.headers["Authorization"]}

    async def read_stream() -> list[dict]:
        seen: list[dict] = []
        async with connect(url, additional_headers=headers, open_timeout=60) as socket:
            await socket.send(json.dumps({"task": "Go"}))
            async for message in socket:
                seen.append(json.loads(message))
                if seen[-1]["type"] == "complete":
                    return seen
        raise AssertionError("the stream ended without an end")

    await read_stream()
    before = measure_processes(system)
    streams = await asyncio.gather(*(read_stream() for _ in range(STREAM_COUNT)))
    growth = {process: after - before[process] for process, after in measure_processes(system).items()}
    words = [f"w{number}" for number in range(TOKEN_COUNT)]
    for seen in streams:
        assert seen[-1]["status"] == "completed", seen[-1]
        assert [event["seq"] for event in seen[:-1]] == list(range(1, len(seen)))
        others = [event for event in seen if event["type"] != "token"]
        assert join_tokens(seen).split() == words, others
    assert max(growth["llm"], growth["api"]) < MAX_GROWTH_MIB, growth


def measure_processes(system: System) -> dict[str, float]:
    return {process.name: measure_memory_mib(process.pid) for process in system.processes if process.pid is not None}
