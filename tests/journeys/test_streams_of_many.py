"""Two hundred answers at the same time: none dropped, each complete and in order, memory bounded."""

import asyncio
import json

from websockets.asyncio.client import connect

from scripts.bench.resources import measure_memory_mib
from scripts.system import System
from tests.support.clients import TenantClient
from tests.support.fake_provider import FakeProvider
from tests.support.model_agents import create_model, create_model_agent, generate_name, join_tokens

STREAMS, TOKENS = 200, 500
# MiB that a process may come to hold more than before.
ROOM = 150


async def test_two_hundred_streams_at_once(system: System, acme: TenantClient, provider: FakeProvider) -> None:
    name = await create_model(acme, provider, generate_name(), model=f"tokens-{TOKENS}")
    made = await create_model_agent(acme, name)
    url = f"ws://127.0.0.1:{system.port}/api/v1/agents/{made['id']}/stream"
    headers = {"Authorization": acme.http.headers["Authorization"]}

    async def stream() -> list[dict]:
        seen: list[dict] = []
        async with connect(url, additional_headers=headers, open_timeout=60) as socket:
            await socket.send(json.dumps({"task": "Go"}))
            async for message in socket:
                seen.append(json.loads(message))
                if seen[-1]["type"] == "complete":
                    return seen
        raise AssertionError("the stream ended without an end")

    await stream()
    before = memory(system)
    streams = await asyncio.gather(*(stream() for _ in range(STREAMS)))
    grown = {process: after - before[process] for process, after in memory(system).items()}
    words = [f"w{number}" for number in range(TOKENS)]
    for seen in streams:
        assert seen[-1]["status"] == "completed", seen[-1]
        assert [one["seq"] for one in seen[:-1]] == list(range(1, len(seen)))
        assert join_tokens(seen).split() == words
    assert max(grown["llm"], grown["api"]) < ROOM, grown


def memory(system: System) -> dict[str, float]:
    return {one.name: measure_memory_mib(one.pid) for one in system.processes if one.pid is not None}
