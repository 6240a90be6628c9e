"""Many executions of many tenants on a running system, and what became of every one of them."""

import asyncio
import contextlib
import io
import secrets
import tarfile
import time
from typing import Any, Final

import aiohttp
import msgspec

from scripts.bench.resources import memory
from scripts.system import System

SOURCE: Final = "def handle(payload):\n    print('run', payload['n'])\n    return {'n': payload['n']}\n"
MANIFEST: Final = "name: soak\nentrypoint: agent:handle\n"
_WAIT: Final = {"Prefer": "wait=60"}
_PATIENCE: Final = 300.0


class Soaked(msgspec.Struct, kw_only=True):
    """What a soak found. `took` in milliseconds from submit to result, as its clients saw it.

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


def packed(source: str = SOURCE, manifest: str = MANIFEST, **files: str) -> bytes:
    """An agent of one module as a `.tar.gz`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, text in {"agent.yaml": manifest, "agent.py": source, **files}.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return buffer.getvalue()


class Client:
    """One tenant's client of the API, over a few kept connections; a lost one is made anew."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self._http = aiohttp.ClientSession(
            base_url=f"{url}/api/v1/", headers=headers, timeout=aiohttp.ClientTimeout(total=90)
        )

    async def __aenter__(self) -> "Client":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close()

    async def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """The answer's JSON. Errors: `RuntimeError` for any status of 400 and above but 503."""
        data = None if body is None else msgspec.json.encode(body)
        sent = {"Content-Type": "application/json", **headers} if data is not None else headers
        return await self._answered(method, path, data, sent)

    async def upload(self, agent_id: str, archive: bytes) -> Any:
        """Upload and wait for the build; the version."""
        form = aiohttp.FormData()
        form.add_field("file", archive, filename="agent.tar.gz")
        async with self._http.post(f"uploads/agent/{agent_id}", data=form, headers=_WAIT) as answer:
            version = await answer.json()
        while version["status"] not in ("ready", "failed"):
            version = await self.call("GET", f"agents/{agent_id}/versions/{version['id']}", **_WAIT)
        if version["status"] != "ready":
            raise RuntimeError(f"the build failed: {version['build_log']}")
        return version

    async def deploy(self, name: str, archive: bytes) -> str:
        """An agent, built and ready; its id."""
        agent = await self.call("POST", "agents", {"name": name})
        await self.upload(agent["id"], archive)
        return str(agent["id"])

    async def run(self, agent_id: str, payload: Any) -> Any:
        """Submit and wait for the end, over again with the same key while the API cannot be reached."""
        key = secrets.token_hex(12)
        while True:
            ended = await self.call(
                "POST", f"agents/{agent_id}/execute", {"payload": payload}, **_WAIT, **{"Idempotency-Key": key}
            )
            if ended["status"] in ("completed", "failed", "cancelled"):
                return ended

    async def _answered(self, method: str, path: str, data: bytes | None, headers: dict[str, str]) -> Any:
        deadline = time.monotonic() + _PATIENCE
        while True:
            with contextlib.suppress(aiohttp.ClientConnectionError, TimeoutError):
                async with self._http.request(method, path, data=data, headers=headers) as answer:
                    body = await answer.read()
                    if answer.status < 400:
                        return msgspec.json.decode(body)
                    if answer.status != 503:
                        raise RuntimeError(f"{method} {path}: {answer.status} {body.decode()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{method} {path}: nobody answered for {_PATIENCE:.0f} s")
            await asyncio.sleep(0.1)


async def register(url: str) -> Client:
    """A new tenant's client, with a key."""
    name = secrets.token_hex(6)
    async with Client(url, {}) as nobody:
        body = {"email": f"{name}@example.com", "password": secrets.token_hex(8), "tenant_id": f"soak-{name}"}
        token = (await nobody.call("POST", "auth/register", body))["access_token"]
    async with Client(url, {"Authorization": f"Bearer {token}"}) as admin:
        key = (await admin.call("POST", "api-keys", {"name": "soak"}))["key"]
    return Client(url, {"X-API-Key": key})


async def soak(system: System, tenants: int, executions: int, in_flight: int, during: Any = None) -> Soaked:
    """Run `executions` of `tenants`, so many in flight in all, while `during()` does its worst; then look at each."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(await register(system.url)) for _ in range(tenants)]
        archive = packed()
        agents = await asyncio.gather(*(client.deploy("soak", archive) for client in clients))
        for client, agent_id in zip(clients, agents, strict=True):
            await client.run(agent_id, {"n": -1})
        before, took, ended = memory(system), list[float](), list[tuple[Client, Any]]()
        numbers = iter(range(executions))

        async def work() -> None:
            for number in numbers:
                client, agent_id = clients[number % tenants], agents[number % tenants]
                began = time.perf_counter()
                execution = await client.run(agent_id, {"n": number})
                took.append((time.perf_counter() - began) * 1000)
                execution["right"] = execution["output_data"] == {"n": number}
                ended.append((client, execution))

        began = time.perf_counter()
        disturbing = asyncio.create_task(during()) if during is not None else None
        await asyncio.gather(*(work() for _ in range(in_flight)))
        seconds = time.perf_counter() - began
        if disturbing is not None:
            await disturbing
        after = memory(system)
        twice = await _twice(ended)
        return Soaked(
            seconds=seconds,
            took=sorted(took),
            lost=[one["id"] for _, one in ended if one["status"] != "completed" or not one["right"]],
            twice=twice,
            retried=sum(one["attempt"] > 1 for _, one in ended),
            memory={name: (before.get(name, 0.0), now) for name, now in after.items()},
        )


async def _twice(ended: list[tuple[Client, Any]]) -> list[str]:
    """Executions whose log shows more than one end, something after it, or a gap; and ids that came twice."""
    found, seen, left = list[str](), set[str](), iter(ended)

    async def look() -> None:
        for client, one in left:
            entries = (await client.call("GET", f"execution-logs/{one['id']}?limit=1000"))["items"]
            told = [entry["metadata"] for entry in entries]
            ends = [entry["seq"] for entry in told if entry.get("status") in ("completed", "failed", "cancelled")]
            begun = sum(entry.get("status") == "running" for entry in told)
            in_order = [entry["seq"] for entry in told] == list(range(1, len(told) + 1))
            if ends != [len(told)] or not in_order or begun != one["attempt"] or one["id"] in seen:
                found.append(one["id"])
            seen.add(one["id"])

    await asyncio.gather(*(look() for _ in range(8)))
    return found
