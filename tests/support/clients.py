"""Call a running system from outside, as users do."""

import asyncio
import io
import secrets
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx
import msgspec

from domain import accounts
from domain.accounts import Registration
from domain.events import EventQuery, ExecutionEvent
from domain.executions import Execution
from domain.ports import Tx
from infra.credentials import AccessTokens, generate_token, hash_token
from infra.embedded.ports import find_free_ports
from infra.wiring import Resources
from scripts.demo import pack_example
from scripts.supervisor import SupervisedProcess

DEFAULT_MANIFEST = "name: test\nentrypoint: agent:handle\n"


def pack_archive(files: dict[str, str | bytes], manifest: str | None = DEFAULT_MANIFEST) -> bytes:
    """Return a `.tar.gz` of files, with a manifest unless it is None."""
    if manifest is not None:
        files = {"agent.yaml": manifest, **files}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as packing:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            packing.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


class TenantClient:
    """Call the API as a tenant's admin. `http` sends its bearer token."""

    def __init__(self, http: httpx.AsyncClient, account: dict[str, Any], password: str) -> None:
        self.http, self.account, self.password = http, account, password
        self.tenant_id: str = account["tenant_id"]

    async def create_key(self, **fields: Any) -> str:
        answer = await self.http.post("/api-keys", json={"name": "test", **fields})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["key"])

    def open_client(self, key: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url=self.http.base_url, headers={"X-API-Key": key}, timeout=90)

    async def create_agent(self, name: str | None = None) -> dict[str, Any]:
        answer = await self.http.post("/agents", json={"name": name or f"agent-{secrets.token_hex(4)}"})
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    async def upload_archive(self, agent_id: str, data: bytes) -> httpx.Response:
        return await self.http.post(f"/uploads/agent/{agent_id}", files={"file": ("agent.tar.gz", data)})

    async def build_version(self, agent_id: str, data: bytes) -> dict[str, Any]:
        """Upload an archive, wait for the build, and return the version."""
        answer = await self.upload_archive(agent_id, data)
        assert answer.status_code == 201, answer.text
        path = f"/agents/{agent_id}/versions/{answer.json()['id']}"
        for _ in range(3):
            version = (await self.http.get(path, headers={"Prefer": "wait=60"})).json()
            if version["status"] in ("ready", "failed"):
                break
        return dict(version)

    async def deploy_agent(self, source: str, manifest: str = DEFAULT_MANIFEST, **files: str) -> str:
        """Build an agent of one module and return its id."""
        agent = await self.create_agent()
        version = await self.build_version(agent["id"], pack_archive({"agent.py": source, **files}, manifest))
        assert version["status"] == "ready", version["build_log"]
        return str(agent["id"])

    async def deploy_example(self, name: str) -> str:
        agent = await self.create_agent(name)
        version = await self.build_version(agent["id"], pack_example(name))
        assert version["status"] == "ready", version["build_log"]
        return str(agent["id"])

    async def start_execution(self, agent_id: str, payload: Any = None, **fields: Any) -> dict[str, Any]:
        answer = await self.http.post(f"/agents/{agent_id}/execute", json={"payload": payload or {}, **fields})
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    async def run_agent(self, agent_id: str, payload: Any = None, **fields: Any) -> dict[str, Any]:
        """Start an execution and return it after its end."""
        return await self.wait_for_end((await self.start_execution(agent_id, payload, **fields))["id"])

    async def wait_for_end(self, execution_id: str, patience: int = 90) -> dict[str, Any]:
        for _ in range(max(1, patience // 30)):
            try:
                got = await self.http.get(f"/executions/{execution_id}", headers={"Prefer": "wait=30"})
            except httpx.TransportError:
                continue
            if got.status_code == 200 and got.json()["status"] in ("completed", "failed", "cancelled"):
                return dict(got.json())
        raise AssertionError(f"{execution_id} has not ended: {got.text}")

    async def list_events(self, execution_id: str) -> list[dict[str, Any]]:
        items = (await self.http.get(f"/execution-logs/{execution_id}?limit=1000")).json()["items"]
        return list(items)


@asynccontextmanager
async def register_tenant(url: str) -> AsyncIterator[TenantClient]:
    """Register a tenant; yields its admin."""
    name, password = secrets.token_hex(6), secrets.token_urlsafe(12)
    async with httpx.AsyncClient(base_url=f"{url}/api/v1", timeout=90) as http:
        body = {"email": f"{name}@example.com", "password": password, "tenant_id": f"tenant-{name}"}
        answer = await http.post("/auth/register", json=body)
        assert answer.status_code == 201, answer.text
        http.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
        yield TenantClient(http, answer.json(), password)


@asynccontextmanager
async def add_tenant(
    resources: Resources, url: str, credentials: tuple[str, str], lifetime: timedelta = timedelta(minutes=30)
) -> AsyncIterator[TenantClient]:
    """Add a tenant and its admin straight to the database, with a password whose slow hash exists already.

    `credentials` are the password and its hash. It is what `POST /auth/register` does, without the time of hashing.
    """
    password, password_hash = credentials
    name, refresh = secrets.token_hex(6), generate_token("pdr_")
    data = Registration(email=f"{name}@example.com", password=password, tenant_id=f"tenant-{name}")
    async with resources.store.tenant_transaction(f"tenant-{name}") as tx:
        user = await accounts.register_user(tx, f"tenant-{name}", data, password_hash, hash_token(""))
        session_id = await accounts.open_session(tx, user.id, hash_token(refresh), timedelta(days=1))
    tokens = AccessTokens(resources.settings.secret_key.reveal(), lifetime, resources.settings.jwt_algorithm)
    access_token = tokens.issue_token(user.id, session_id, resources.clock())
    account = {"access_token": access_token, "refresh_token": refresh, "token_type": "bearer"}
    async with httpx.AsyncClient(base_url=f"{url}/api/v1", timeout=90) as http:
        http.headers["Authorization"] = f"Bearer {access_token}"
        yield TenantClient(http, {**msgspec.to_builtins(user), **account}, password)


async def wait_for_result(probe: Callable[[], Awaitable[Any]]) -> Any:
    """Return the first true result of repeated calls of a function."""
    for _ in range(600):
        if result := await probe():
            return result
        await asyncio.sleep(0.05)
    raise AssertionError("no true result within 30 seconds")


async def wait_for_server(url: str) -> None:
    """Return once a process that has just been started answers at a URL, or after half a minute in any case."""
    async with httpx.AsyncClient() as client:
        for _ in range(600):
            try:
                await client.get(url)
                return
            except httpx.TransportError:
                await asyncio.sleep(0.05)


@asynccontextmanager
async def run_second_api(system: Any, **environment: str) -> AsyncIterator[str]:
    """Run another API process of the system with other settings; yields its address."""
    port = str(find_free_ports(1)[0])
    process = SupervisedProcess(
        "beside", "api", {**system.environment, "PADDOCK_PORT": port, **environment}, lambda _: None
    )
    running = asyncio.create_task(process.run())
    url = f"http://127.0.0.1:{port}"
    try:
        await wait_for_server(f"{url}/health/live")
        yield url
    finally:
        await process.stop()
        await running


async def fetch_events(tx: Tx, execution: Execution, seq: int = 0) -> list[ExecutionEvent]:
    """Return the log of an execution after an event."""
    query = EventQuery(tenant_id=execution.tenant_id, execution_id=execution.id, seq=seq)
    (event_slice,) = await tx.events.find_slices([query], 1000)
    assert event_slice is not None
    return event_slice.events
