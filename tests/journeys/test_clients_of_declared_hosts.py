"""Ten lines with a secret, a declared host, a file in and a file out: with each client that people use, deployed."""

import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from scripts.system import System
from tests.conftest import run_system
from tests.support.certificates import write_certificate
from tests.support.clients import TenantClient, pack_archive, register_tenant
from tests.support.named_hosts import name_hosts
from tests.support.outbound_servers import RecordingServer, ServerRequest, build_reply, run_server

API_HOST, DATABASE_HOST = "api.shop.example", "db.shop.example"
TOKEN = f"token-{secrets.token_hex(8)}"
REQUIREMENTS = "aiohttp>=3.10\nasyncpg>=0.30\nhttpx>=0.28\nrequests>=2.32\n"
SOURCES = {
    "requests": """
import os, requests

def handle(payload):
    text = open("/work/in.txt").read()
    headers = {"Authorization": f"Bearer {os.environ['TOKEN']}"}
    answer = requests.post(os.environ["URL"], data=text, headers=headers, timeout=30)
    open("/work/out.txt", "w").write(answer.text)
    return answer.status_code
""",
    "httpx": """
import os, httpx

async def handle(payload):
    text = open("/work/in.txt").read()
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {os.environ['TOKEN']}"}) as client:
        answer = await client.post(os.environ["URL"], content=text)
    open("/work/out.txt", "w").write(answer.text)
    return answer.status_code
""",
    "aiohttp": """
import os, aiohttp

async def handle(payload):
    text = open("/work/in.txt").read()
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {os.environ['TOKEN']}"}) as session:
        async with session.post(os.environ["URL"], data=text) as answer:
            open("/work/out.txt", "w").write(await answer.text())
            return answer.status
""",
    "urllib": """
import os, urllib.request

def handle(payload):
    text = open("/work/in.txt", "rb").read()
    headers = {"Authorization": f"Bearer {os.environ['TOKEN']}"}
    with urllib.request.urlopen(urllib.request.Request(os.environ["URL"], text, headers), timeout=30) as answer:
        open("/work/out.txt", "wb").write(answer.read())
        return answer.status
""",
    "asyncpg": """
import os, asyncpg

async def handle(payload):
    text = open("/work/in.txt").read()
    database = await asyncpg.connect(os.environ["URL"], password=os.environ["TOKEN"])
    await database.execute("CREATE TEMPORARY TABLE texts (text text)")
    await database.copy_records_to_table("texts", records=[(text,)])
    open("/work/out.txt", "w").write(await database.fetchval("SELECT upper(text) FROM texts"))
    await database.close()
    return 200
""",
}


@pytest.fixture(scope="module")
async def system() -> AsyncIterator[System]:
    """Yield an installation that finds the hosts of these tests by name."""
    with name_hosts(API_HOST, DATABASE_HOST):
        async with run_system() as separate_system:
            yield separate_system


@pytest.fixture(scope="module")
async def owner(system: System) -> AsyncIterator[TenantClient]:
    async with register_tenant(system.url) as tenant:
        secret = {"name": "TOKEN", "value": TOKEN}
        assert (await tenant.http.post("/secrets", json=secret)).status_code == 201
        yield tenant


@pytest.fixture
async def api_server(tmp_path: Path) -> AsyncIterator[RecordingServer]:
    """Answer in capitals over TLS to those who have the token."""

    def answer(request: ServerRequest) -> bytes:
        is_known = request.headers.get("authorization") == f"Bearer {TOKEN}"
        return build_reply(request.body.upper()) if is_known else build_reply(b"who are you?", status=401)

    async with run_server(answer, write_certificate(tmp_path, [API_HOST])) as server:
        yield server


@pytest.fixture(scope="module")
async def database_port(system: System) -> int:
    """Add a user with the token as its password to the Postgres of the installation, and return its port."""
    url = system.settings.database_owner_url.reveal()
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f"CREATE ROLE shop LOGIN PASSWORD '{TOKEN}'")
    finally:
        await connection.close()
    postgres, _, _ = system.services
    assert postgres is not None
    return int(url.rsplit(":", 1)[1].split("/")[0])


async def run_client(owner: TenantClient, name: str, address: str, url: str, authority: str) -> dict[str, Any]:
    """Deploy the agent of one client with one declared host, run it with a file, and return the execution."""
    manifest = f"name: {name}\nentrypoint: agent:handle\nsecrets: [TOKEN]\negress: ['{address}']\ntimeout: 120\n"
    files = {"agent.py": SOURCES[name], "requirements.txt": REQUIREMENTS, "ca.pem": authority}
    created = await owner.create_agent()
    version = await owner.build_version(created["id"], pack_archive(files, manifest))
    assert version["status"] == "ready", version["build_log"]
    env = {"URL": url, "SSL_CERT_FILE": "/agent/ca.pem", "REQUESTS_CA_BUNDLE": "/agent/ca.pem"}
    assert (await owner.http.patch(f"/agents/{created['id']}", json={"env": env})).status_code == 200
    uploaded = await owner.http.post("/files", files={"file": ("in.txt", b"seventeen parcels", "text/plain")})
    return await owner.run_agent(created["id"], files={"in.txt": uploaded.json()["id"]})


@pytest.mark.parametrize("name", SOURCES)
async def test_client_reaches_a_declared_host_with_a_secret_and_files(
    owner: TenantClient, api_server: RecordingServer, database_port: int, tmp_path: Path, name: str
) -> None:
    authority = (tmp_path / "ca.pem").read_text()
    if name == "asyncpg":
        address = f"{DATABASE_HOST}:{database_port}"
        url = f"postgresql://shop@{address}/postgres"
    else:
        address = f"{API_HOST}:{api_server.port}"
        url = f"https://{address}/texts"
    ended = await run_client(owner, name, address, url, authority)
    assert (ended["status"], ended["output_data"]) == ("completed", 200), ended
    written = await owner.http.get(f"/executions/{ended['id']}/files/out.txt")
    assert written.text == "SEVENTEEN PARCELS"
    events = [event["metadata"] for event in await owner.list_events(ended["id"])]
    (connection,) = [event for event in events if event["type"] == "egress"]
    assert (f"{connection['host']}:{connection['port']}", connection["outcome"]) == (address, "closed")
    assert min(connection["sent_bytes"], connection["received_bytes"]) >= len("seventeen parcels")
    if name != "asyncpg":
        assert api_server.server_names == [API_HOST]
