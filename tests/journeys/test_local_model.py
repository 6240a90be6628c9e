"""Test the local model under `paddock up` without configuration, and as a separate process."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx

from domain.shared.secrets import Secret
from infra.embedded.ports import find_free_ports
from infra.llm.local_model import LocalModelClient
from tests.support.clients import TenantClient
from tests.support.model_agents import create_model_agent, join_tokens, run_execution, stream_events

ROOT = Path(__file__).resolve().parents[2]
# `paddock up`, and a worker that keeps the model loaded.
UP_PROGRAM = """
import asyncio, sys
from pathlib import Path
from infra.llm.local_model import LocalModelClient
from scripts.system import System

async def main():
    async with System(Path(sys.argv[1]), int(sys.argv[2]), 1, lambda line: None).run() as system:
        print("asleep", system.model_broker.server.child, flush=True)
        async with LocalModelClient(system.settings.local_model_door, None).acquire_server():
            print("pid", system.model_broker.server.child.process.pid, flush=True)
            await asyncio.sleep(600)

asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def _run_python(*arguments: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *arguments),
        cwd=ROOT,
        env={**{name: value for name, value in os.environ.items() if not name.startswith("R2_")}, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _read_line(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(60):
        return (await process.stdout.readline()).decode().rstrip()


async def test_agent_answers_without_configuration(system, acme: TenantClient) -> None:
    created = await create_model_agent(
        acme, "smollm2", instructions="Answer in one sentence.", max_tokens=30, temperature=0
    )
    ended = await run_execution(acme, created["id"], task="What is the capital of France?")
    assert ended["status"] == "completed", ended
    assert ended["result"]["content"].strip()
    assert ended["total_cost"] == 0
    events = await stream_events(acme, ended["id"])
    assert join_tokens(events) == ended["result"]["content"]
    (cost,) = [event for event in events if event["type"] == "cost"]
    assert cost["prompt_tokens"] > 10
    assert cost["completion_tokens"] > 0
    assert system.model_broker.server.is_alive()


async def test_killed_up_ends_the_model_process(tmp_path: Path) -> None:
    async with _run_python("-c", UP_PROGRAM, str(tmp_path / "data"), str(find_free_ports(1)[0])) as process:
        assert await _read_line(process) == "asleep None"
        word, pid = (await _read_line(process)).split()
        assert word == "pid"
        assert Path(f"/proc/{pid}/cwd").readlink() == tmp_path / "data" / "model"
        process.send_signal(signal.SIGKILL)
        await process.wait()
        for _ in range(100):
            if not Path(f"/proc/{pid}").exists() or ") Z " in Path(f"/proc/{pid}/stat").read_text():
                break
            await asyncio.sleep(0.02)
        else:
            raise AssertionError("the model outlived `paddock up`")


async def test_separate_model_process_requires_its_key() -> None:
    port, key = find_free_ports(1)[0], "a-key-that-both-know"
    command = ("-m", "scripts.cli", "model", "--port", str(port))
    async with _run_python(*command, PADDOCK_LOCAL_MODEL_KEY=key) as process:
        assert await _read_line(process) == f"serving at http://127.0.0.1:{port}/v1"
        async with LocalModelClient(None, f"http://127.0.0.1:{port}/v1", Secret(key)).acquire_server() as served:
            assert served.api_key is not None
            async with httpx.AsyncClient(base_url=served.base_url, timeout=60) as web:
                body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
                assert (await web.post("/chat/completions", json=body)).status_code == 401
                headers = {"Authorization": f"Bearer {served.api_key.reveal()}"}
                answer = await web.post("/chat/completions", json=body, headers=headers)
                assert answer.json()["usage"]["completion_tokens"] == 3
        # The port is in use: the second process reports it.
        async with _run_python(*command, PADDOCK_LOCAL_MODEL_KEY=key) as second:
            output, _ = await asyncio.wait_for(second.communicate(), 60)
            assert second.returncode != 0
            assert str(port) in output.decode()
        process.send_signal(signal.SIGTERM)
        await asyncio.wait_for(process.wait(), 2)


async def test_separate_model_process_does_not_start_without_a_key() -> None:
    async with _run_python("-m", "scripts.cli", "model", PADDOCK_LOCAL_MODEL_KEY="") as process:
        output, _ = await process.communicate()
    assert process.returncode == 1
    assert "PADDOCK_LOCAL_MODEL_KEY is not set" in output.decode()
