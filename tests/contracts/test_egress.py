"""Uploaded code reaches the hosts that it declares by name, with every client, and nothing else."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest

from domain import egress
from domain.ports import ProgramHooks, SandboxOutcome, SandboxProgram
from infra.http import Outbound
from infra.sandbox.warm_sandbox import WarmSandbox
from tests.support.agent_sources import CONNECTING_SOURCE
from tests.support.certificates import write_certificate
from tests.support.sandbox_runs import SANDBOX_BACKENDS, ignore_output, open_sandbox
from workers.run.egress import (
    EgressAccess,
    EgressConnection,
    EgressLimits,
    EgressRecord,
    TenantLookups,
    serve_egress,
)

PACKAGES = Path(openai.__file__).parents[1]
NAME, WILD = "api.shop.example", "eu.cloud.example"


@pytest.fixture(params=SANDBOX_BACKENDS)
async def sandbox(request: pytest.FixtureRequest) -> AsyncIterator[WarmSandbox]:
    async with open_sandbox(request.param, warm_mb=512) as sandbox:
        yield sandbox


@contextlib.asynccontextmanager
async def run_https_server(context: ssl.SSLContext | None) -> AsyncIterator[int]:
    """Answer every request with the token that it carries, on a port of this host."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            token = next(
                line.split(" ", 1)[1] for line in head.splitlines() if line.lower().startswith("authorization")
            )
            writer.write(
                f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(token)}\r\n\r\n{token}".encode()
            )
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


class Network:
    """What the worker knows of the hosts outside: their addresses here, and which of them are private but allowed."""

    def __init__(self, allowed: tuple[str, ...] = (NAME, WILD), **limits: Any) -> None:
        self.addresses: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.closed: list[EgressConnection] = []
        outbound = Outbound(allowed, self._resolve)
        self._access = EgressAccess(
            lookups=TenantLookups(outbound), limits=EgressLimits(**limits), on_closed=self.closed.append
        )

    async def _resolve(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        return self.addresses.get(host, ["127.0.0.1"])

    async def run(
        self, sandbox: WarmSandbox, code: Path, source: str, declared: list[str], **more: Any
    ) -> SandboxOutcome:
        (code / "agent.py").write_text(source)
        entries = egress.parse_entries(declared)
        program = SandboxProgram(
            **{
                "code": code,
                "environment": None,
                "entrypoint": "agent:handle",
                "timeout": 60,
                "memory_mb": 512,
                "network": egress.build_network(entries, has_gateway=False),
                **more,
            }
        )
        record = EgressRecord(self.events.append, self._access.limits.max_events)
        serve = serve_egress(self._access, "acme", entries, record)
        return await sandbox.run_program(program, b"{}", ignore_output, ProgramHooks(serve=serve))


CLIENTS = {
    "requests": "import requests\ndef ask(url, h): return requests.get(url, headers=h, verify='/agent/ca.pem').text\n",
    "httpx": (
        "import httpx, ssl\ndef ask(url, h):\n"
        "    return httpx.get(url, headers=h, verify=ssl.create_default_context(cafile='/agent/ca.pem')).text\n"
    ),
    "aiohttp": (
        "import aiohttp, asyncio, ssl\ndef ask(url, h):\n"
        "    async def get():\n"
        "        tls = ssl.create_default_context(cafile='/agent/ca.pem')\n"
        "        async with aiohttp.ClientSession(trust_env=True) as s, s.get(url, headers=h, ssl=tls) as answer:\n"
        "            return await answer.text()\n"
        "    return asyncio.run(get())\n"
    ),
    "urllib": (
        "import ssl, urllib.request\ndef ask(url, h):\n"
        "    tls = ssl.create_default_context(cafile='/agent/ca.pem')\n"
        "    return urllib.request.urlopen(urllib.request.Request(url, headers=h), context=tls).read().decode()\n"
    ),
}


@pytest.mark.parametrize("client", CLIENTS)
async def test_every_client_reaches_a_declared_host_and_a_proxied_one(
    sandbox, readable_folder: Path, client: str
) -> None:
    network = Network()
    async with run_https_server(write_certificate(readable_folder, [NAME, WILD])) as port:
        source = CLIENTS[client] + (
            f"def handle(p):\n    h = {{'Authorization': 'Bearer token-1'}}\n"
            f"    return [ask('https://{NAME}:{port}/a', h), ask('https://{WILD}:{port}/b', h)]\n"
        )
        declared = [f"{NAME}:{port}", f"*.cloud.example:{port}"]
        outcome = await network.run(sandbox, readable_folder, source, declared, environment=PACKAGES)
    assert outcome.output is not None, outcome
    assert msgspec.json.decode(outcome.output) == ["Bearer token-1"] * 2
    direct, proxied = network.events
    assert (direct["host"], direct["port"], direct["outcome"], "via" in direct) == (NAME, port, "closed", False)
    assert (proxied["host"], proxied["port"], proxied["outcome"], proxied["via"]) == (WILD, port, "closed", "proxy")
    assert min(direct["sent_bytes"], direct["received_bytes"], proxied["sent_bytes"], proxied["received_bytes"]) > 100
    assert [connection.host for connection in network.closed] == [NAME, WILD]


async def test_an_address_is_admitted_anew_at_each_connection(sandbox, readable_folder: Path) -> None:
    """A name that is public first and then leads to this host is refused from then on."""
    network = Network(allowed=())
    network.addresses = {
        "first.example": ["127.0.0.1"],
        "meta.example": ["169.254.169.254"],
        "both.example": ["8.8.8.8", "10.0.0.1"],
    }
    source = (
        CONNECTING_SOURCE
        + "def handle(p): return [attempt(f'{n}.example', 7777) for n in ('first', 'meta', 'both', 'none')]\n"
    )
    declared = [f"{name}.example:7777" for name in ("first", "meta", "both")]
    outcome = await network.run(sandbox, readable_folder, source, declared)
    assert msgspec.json.decode(outcome.output or b"") == ["ConnectionResetError"] * 3 + ["gaierror"]
    assert [event["outcome"] for event in network.events] == ["refused"] * 3
    # The owner of the run does not learn which private addresses exist.
    assert {event["reason"].split(" refused: ")[1] for event in network.events} == {"it is not a known public host."}
    assert network.asked == ["first.example", "meta.example", "both.example"]


async def test_a_name_that_is_bound_anew_is_refused(sandbox, readable_folder: Path) -> None:
    async with run_https_server(None) as port:
        network = Network(allowed=(f"127.0.0.1:{port}",))
        answers = iter([["127.0.0.1"], ["127.0.0.2"], ["127.0.0.1"]])

        async def resolve(host: str, at: int) -> list[str]:
            return next(answers)

        network._access.lookups._outbound._resolve = resolve
        source = CONNECTING_SOURCE.replace('b"hello"', "b'GET / HTTP/1.1\\r\\nAuthorization: yes\\r\\n\\r\\n'")
        source += f"def handle(p): return [attempt('{NAME}', {port})[-3:] for _ in range(3)]\n"
        outcome = await network.run(sandbox, readable_folder, source, [f"{NAME}:{port}"])
    assert msgspec.json.decode(outcome.output or b"") == ["yes", "ror", "yes"], outcome
    assert [event["outcome"] for event in network.events] == [
        "broken" if False else e for e in ["closed", "refused", "closed"]
    ]


async def test_what_is_open_at_the_end_is_closed_and_recorded(sandbox, readable_folder: Path) -> None:
    connected = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read(100)
        writer.write(b"seen")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        source = f"import socket\ndef handle(p):\n    global s\n    s = socket.create_connection(('{NAME}', {port}))\n"
        source += "    s.sendall(b'x' * 10)\n    return s.recv(10).decode()\n"
        network = Network()
        outcome = await network.run(sandbox, readable_folder, source, [f"{NAME}:{port}"])
    assert outcome.output == b'"seen"', outcome
    (event,) = network.events
    assert (event["sent_bytes"], event["received_bytes"]) == (10, 4)
    assert event["outcome"] in ("run_ended", "closed", "broken")
    assert ip_address("127.77.0.1").is_loopback


async def test_the_largest_network_starts_and_each_of_its_hosts_is_reached(sandbox, readable_folder: Path) -> None:
    """64 entries with two ports each, of the longest names, and a gateway beside them."""
    filler = ".".join(["x" * 60] * 3)
    names = [f"h{number}.{filler}.example" for number in range(63)]
    network = Network(allowed=())
    source = CONNECTING_SOURCE + (
        "def handle(p):\n"
        "    names = [line.split()[1] for line in open('/etc/hosts').read().splitlines() if line.startswith('127.77.')]\n"
        "    found = [attempt(name, port) for name in names for port in (80, 443)]\n"
        "    return len(names), sorted(set(found))\n"
    )
    entries = egress.parse_entries([*names, "*.cloud.example"])
    program_network = egress.build_network(entries, has_gateway=True)
    for _ in range(2):
        outcome = await network.run(
            sandbox, readable_folder, source, [*names, "*.cloud.example"], network=program_network
        )
        assert outcome.output is not None, outcome
        assert msgspec.json.decode(outcome.output) == [63, ["ConnectionResetError"]]
    assert len(network.closed) == 2 * 126
