"""Run many executions of many tenants on a running system, and check the result of each."""

import asyncio
import contextlib
import io
import itertools
import secrets
import tarfile
import time
from typing import Any, Final

import aiohttp
import msgspec

from scripts.bench.resources import measure_system_memory
from scripts.system import System

SOAK_SOURCE: Final = "def handle(payload):\n    print('run', payload['n'])\n    return {'n': payload['n']}\n"
SOAK_MANIFEST: Final = "name: soak\nentrypoint: agent:handle\n"
_WAIT_HEADERS: Final = {"Prefer": "wait=60"}
_RETRY_SECONDS: Final = 300.0


class SoakResult(msgspec.Struct, kw_only=True):
    """Hold the result of a soak. `took` in milliseconds from submit to result, as its clients saw it.

    `lost` are executions that did not complete or answered wrongly, `twice` those with more than one
    end, or anything after it; `retried` lost a worker on the way and were run anew. `memory` in MiB by
    process, shared pages counted once, before and after.
    """

    seconds: float
    took: list[float]
    lost: list[str]
    twice: list[str]
    retried: int
    memory: dict[str, tuple[float, float]]

    @property
    def rate(self) -> float:
        """Completed executions per second."""
        return (len(self.took) - len(self.lost)) / self.seconds


def pack_agent(source: str = SOAK_SOURCE, manifest: str = SOAK_MANIFEST, **files: str) -> bytes:
    """Pack an agent of one module as a `.tar.gz`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in {"agent.yaml": manifest, "agent.py": source, **files}.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


class BenchClient:
    """Call the API as one tenant over a few persistent connections, which are reopened when lost."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self._http = aiohttp.ClientSession(
            base_url=f"{url}/api/v1/", headers=headers, timeout=aiohttp.ClientTimeout(total=90)
        )

    async def __aenter__(self) -> "BenchClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def call_api(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """Return the JSON of the answer. Errors: `RuntimeError` for any status of 400 and above but 503."""
        data = None if body is None else msgspec.json.encode(body)
        sent = {"Content-Type": "application/json", **headers} if data is not None else headers
        return await self._send_until_answered(method, path, data, sent)

    async def upload_version(self, agent_id: str, archive: bytes) -> Any:
        """Upload a version and wait for its build. Returns the version."""
        form = aiohttp.FormData()
        form.add_field("file", archive, filename="agent.tar.gz")
        async with self._http.post(f"uploads/agent/{agent_id}", data=form, headers=_WAIT_HEADERS) as answer:
            version = await answer.json()
        while version["status"] not in ("ready", "failed"):
            version = await self.call_api("GET", f"agents/{agent_id}/versions/{version['id']}", **_WAIT_HEADERS)
        if version["status"] != "ready":
            raise RuntimeError(f"the build failed: {version['build_log']}")
        return version

    async def deploy_agent(self, name: str, archive: bytes) -> str:
        """Create an agent and build a version. Returns the agent's id."""
        agent = await self.call_api("POST", "agents", {"name": name})
        await self.upload_version(agent["id"], archive)
        return str(agent["id"])

    async def run_agent(self, agent_id: str, payload: Any) -> Any:
        """Submit and wait for the end, over again with the same key while the API cannot be reached."""
        key = secrets.token_hex(12)
        while True:
            ended = await self.call_api(
                "POST", f"agents/{agent_id}/execute", {"payload": payload}, **_WAIT_HEADERS, **{"Idempotency-Key": key}
            )
            if ended["status"] in ("completed", "failed", "cancelled"):
                return ended

    async def complete_agent(self, agent_id: str, payload: Any) -> Any:
        """Run an agent and return the completed run. Errors: `SystemExit` if it ends otherwise."""
        ended = await self.run_agent(agent_id, payload)
        if ended["status"] != "completed":
            raise SystemExit(f"a run failed: {ended}")
        return ended

    async def _send_until_answered(self, method: str, path: str, data: bytes | None, headers: dict[str, str]) -> Any:
        deadline = time.monotonic() + _RETRY_SECONDS
        while True:
            with contextlib.suppress(aiohttp.ClientConnectionError, TimeoutError):
                async with self._http.request(method, path, data=data, headers=headers) as answer:
                    body = await answer.read()
                    if answer.status < 400:
                        return msgspec.json.decode(body)
                    if answer.status != 503:
                        raise RuntimeError(f"{method} {path}: {answer.status} {body.decode()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{method} {path}: no answer for {_RETRY_SECONDS:.0f} s")
            await asyncio.sleep(0.1)


async def register_tenant(url: str) -> tuple[str, str]:
    """Register a tenant. Returns its id, and an API key."""
    name = secrets.token_hex(6)
    async with BenchClient(url, {}) as anonymous:
        body = {"email": f"{name}@example.com", "password": secrets.token_hex(8), "tenant_id": f"bench-{name}"}
        token = (await anonymous.call_api("POST", "auth/register", body))["access_token"]
    async with BenchClient(url, {"Authorization": f"Bearer {token}"}) as admin:
        key = await admin.call_api("POST", "api-keys", {"name": "bench"})
    return key["tenant_id"], key["key"]


async def run_soak(system: System, tenants: int, executions: int, in_flight: int, during: Any = None) -> SoakResult:
    """Run `executions` of `tenants`, so many in flight in all, while `during()` does its worst; then look at each."""
    async with contextlib.AsyncExitStack() as stack:
        keys = [(await register_tenant(system.url))[1] for _ in range(tenants)]
        clients = [await stack.enter_async_context(BenchClient(system.url, {"X-API-Key": key})) for key in keys]
        archive = pack_agent()
        agents = await asyncio.gather(*(client.deploy_agent("soak", archive) for client in clients))
        for client, agent_id in zip(clients, agents, strict=True):
            await client.run_agent(agent_id, {"n": -1})
        before, took, ended = measure_system_memory(system), list[float](), list[tuple[BenchClient, Any]]()
        numbers = iter(range(executions))

        async def run_next() -> None:
            for number in numbers:
                client, agent_id = clients[number % tenants], agents[number % tenants]
                began = time.perf_counter()
                execution = await client.run_agent(agent_id, {"n": number})
                took.append((time.perf_counter() - began) * 1000)
                execution["right"] = execution["output_data"] == {"n": number}
                ended.append((client, execution))

        began = time.perf_counter()
        disturbing = asyncio.create_task(during()) if during is not None else None
        await asyncio.gather(*(run_next() for _ in range(in_flight)))
        seconds = time.perf_counter() - began
        if disturbing is not None:
            await disturbing
        after = measure_system_memory(system)
        twice = await find_repeated_ends(ended)
        return SoakResult(
            seconds=seconds,
            took=sorted(took),
            lost=[
                execution["id"]
                for _, execution in ended
                if execution["status"] != "completed" or not execution["right"]
            ],
            twice=twice,
            retried=sum(execution["attempt"] > 1 for _, execution in ended),
            memory={name: (before.get(name, 0.0), now) for name, now in after.items()},
        )


async def find_repeated_ends(ended: list[tuple[BenchClient, Any]]) -> list[str]:
    """Return executions whose log shows more than one end, something after it, or a gap; and ids that came twice."""
    repeated_ids, seen, left = list[str](), set[str](), iter(ended)

    async def check_next() -> None:
        for client, execution in left:
            entries = (await client.call_api("GET", f"execution-logs/{execution['id']}?limit=1000"))["items"]
            statuses = [entry["metadata"] for entry in entries]
            ends = [entry["seq"] for entry in statuses if entry.get("status") in ("completed", "failed", "cancelled")]
            # An attempt may end with its worker while its version is prepared, before it is running.
            claimed = [entry["attempt"] for entry in statuses if entry.get("status") in ("preparing", "running")]
            attempts = [attempt for attempt, _ in itertools.groupby(claimed)]
            is_each_attempt_begun = attempts == list(range(1, execution["attempt"] + 1))
            in_order = [entry["seq"] for entry in statuses] == list(range(1, len(statuses) + 1))
            has_ended_once = ends == [len(statuses)] and execution["id"] not in seen
            if not (has_ended_once and in_order and is_each_attempt_begun):
                repeated_ids.append(execution["id"])
            seen.add(execution["id"])

    await asyncio.gather(*(check_next() for _ in range(8)))
    return repeated_ids
