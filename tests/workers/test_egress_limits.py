"""Connections of runs to hosts outside: what the proxy makes of nonsense, what each limit ends, where names may lead."""

import asyncio
import contextlib
import inspect
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from domain import egress
from domain.ports import PROXY_LISTENER
from infra.http import Outbound
from workers.run.egress import EgressAccess, EgressConnection, EgressLimits, EgressRecord, TenantLookups, serve_egress
from workers.run.egress import server as egress_server
from workers.run.egress.parser import MAX_HEAD_BYTES

AddressFinder = Callable[[str], list[str] | Awaitable[list[str]]]
HOST, DOMAIN = "db.shop.example", "cloud.example"


class EgressEnvironment:
    """Serve one run's connections on listeners of this host. `port` is that of the host outside, which echoes."""

    def __init__(self, port: int, addresses: AddressFinder, **limits: Any) -> None:
        self.port, self.events, self.closed, self.asked = port, list[Any](), list[EgressConnection](), list[str]()
        self.is_refusing = False

        async def resolve(host: str, at: int) -> list[str]:
            self.asked.append(host)
            result = addresses(host)
            return await result if inspect.isawaitable(result) else result

        access = EgressAccess(
            lookups=TenantLookups(Outbound((f"127.0.0.1:{port}",), resolve)),
            limits=EgressLimits(**limits),
            on_closed=self.closed.append,
        )
        self.record = EgressRecord(self.events.append, access.limits.max_events)
        entries = egress.parse_entries([f"{HOST}:{port}", f"*.{DOMAIN}:{port}"])
        self.serve = serve_egress(access, "acme", entries, self.record)
        self.listeners = {name: open_listener() for name in (PROXY_LISTENER, f"{HOST}:{port}")}
        self.proxy, self.direct = (listener.getsockname() for listener in self.listeners.values())

    @contextlib.asynccontextmanager
    async def connect(self, place: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection(*place)
        try:
            yield reader, writer
        finally:
            writer.close()

    async def ask(self, place: Any, data: bytes, ends: bool = True) -> bytes:
        """Send bytes, and return everything that is answered until the connection ends."""
        async with self.connect(place) as (reader, writer):
            with contextlib.suppress(OSError):
                writer.write(data)
                await writer.drain()
                if ends:
                    writer.write_eof()
            answer = b""
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(20):
                    while part := await reader.read(65536):
                        answer += part
            return answer

    def build_request(self, host: str = f"eu.{DOMAIN}", more: bytes = b"") -> bytes:
        return f"CONNECT {host}:{self.port} HTTP/1.1\r\n".encode() + more + b"\r\n"


def open_listener() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    listener.setblocking(False)
    return listener


@contextlib.asynccontextmanager
async def run_egress(
    addresses: AddressFinder = lambda host: ["127.0.0.1"], **limits: Any
) -> AsyncIterator[EgressEnvironment]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while part := await reader.read(65536):
                writer.write(part)
                await writer.drain()
        writer.close()

    outside = await asyncio.start_server(echo, "127.0.0.1", 0)
    environment = EgressEnvironment(outside.sockets[0].getsockname()[1], addresses, **limits)
    async with outside, environment.serve(environment.listeners):
        yield environment
    for listener in environment.listeners.values():
        listener.close()


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


# What follows a complete request is the client's, and goes to the host.
HEAD_PART = st.sampled_from(
    [
        *(b"CONNECT ", b"GET ", b"eu.cloud.example", b"db.shop.example", b"127.0.0.1", b"[::1]", b":443", b":99999"),
        *(b" HTTP/1.1", b" HTTP/1.0", b" HTTP/2", b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\0", b" ", b"\t", b"Host: a"),
        *(b"Content-Length: 5", b"Transfer-Encoding: chunked", b": x", b"\xff", b"@", b"/", b"%00", b".", b"*", b":0"),
    ]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(parts=st.lists(HEAD_PART | st.binary(max_size=20), max_size=14))
@example(parts=[b"CONNECT db.shop.example:443 HTTP/1.1\r\nCONNECT eu.cloud.example:443 HTTP/1.1\r\n\r\n"])
@example(parts=[b"CONNECT eu.cloud.example:443 HTTP/1.1\r\n folded: x\r\n\r\n"])
@example(parts=[b"CONNECT eu.cloud.example:443@127.0.0.1:80 HTTP/1.1\r\n\r\n"])
def test_nonsense_is_refused_and_reaches_no_host(parts: list[bytes]) -> None:
    async def check() -> None:
        async with run_egress() as environment:
            answer = await environment.ask(environment.proxy, b"".join(parts))
            assert answer == b"" or re.match(rb"HTTP/1\.1 4\d\d [A-Za-z ]+\r\n", answer), answer
            assert environment.asked == [], "no port of the test is declared"
            await wait_until(lambda: len(environment.closed) == 1)
            assert environment.closed[0].outcome in ("refused", "broken")
            # It serves on.
            request = environment.build_request() + b"hello"
            assert (await environment.ask(environment.proxy, request)).endswith(b"\r\n\r\nhello")

    asyncio.run(check())


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.binary(max_size=300), sizes=st.lists(st.integers(1, 40), max_size=8))
def test_bytes_behind_a_request_are_the_host_s_as_they_are(data: bytes, sizes: list[int]) -> None:
    """A second request in them is not one of the proxy, however the client cuts them."""

    async def check() -> None:
        async with run_egress() as environment:
            second = environment.build_request("other.example")
            request = environment.build_request(more=b"Content-Length: 3\r\nHost: other.example\r\n") + data + second
            async with environment.connect(environment.proxy) as (reader, writer):
                for size in [*sizes, len(request)]:
                    piece, request = request[:size], request[size:]
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
                writer.write_eof()
                assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"
                assert await reader.read() == data + second
            assert environment.asked == [f"eu.{DOMAIN}"]

    asyncio.run(check())


async def test_heads_are_limited_in_size_and_time() -> None:
    async with run_egress(head_seconds=0.3) as environment:
        long = environment.build_request(more=b"A: " + b"x" * MAX_HEAD_BYTES + b"\r\n")
        assert (await environment.ask(environment.proxy, long, ends=False)).startswith(b"HTTP/1.1 431 ")
        endless = b"CONNECT " + b"x" * 1_000_000
        assert (await environment.ask(environment.proxy, endless, ends=False))[:13] in (b"", b"HTTP/1.1 431 ")
        half = environment.build_request()[:-2]
        assert (await environment.ask(environment.proxy, half, ends=False)).startswith(b"HTTP/1.1 408 ")
        assert (await environment.ask(environment.proxy, half)).startswith(b"HTTP/1.1 400 ")
        assert environment.asked == []


async def test_many_slow_clients_wait_for_each_other_and_end() -> None:
    """Each takes its place for so long; those beyond the limit wait, and are served then."""
    async with run_egress(head_seconds=0.3, max_open=4) as environment:
        slow = [await asyncio.open_connection(*environment.proxy) for _ in range(12)]
        for number, (_, writer) in enumerate(slow):
            writer.write(b"CONNECT eu"[: number % 10])
        assert (await environment.ask(environment.direct, b"hello")) == b"hello"
        await wait_until(lambda: len(environment.closed) >= 13)
        assert {connection.outcome for connection in environment.closed} == {"refused", "closed"}
        for _, writer in slow:
            writer.close()


async def test_connections_of_a_run_are_limited() -> None:
    async with run_egress(max_connections=3) as environment:
        answers = [await environment.ask(environment.direct, b"hello") for _ in range(5)]
        assert answers == [b"hello"] * 3 + [b""] * 2
        refused = await environment.ask(environment.proxy, environment.build_request())
        assert refused.startswith(b"HTTP/1.1 429 ")
        assert [event["outcome"] for event in environment.events] == ["closed"] * 3 + ["limit"] * 3
        assert environment.events[-1]["reason"] == "A run may make 3 connections."


async def test_bytes_of_a_run_are_limited_in_each_direction() -> None:
    async with run_egress(max_bytes=100_000) as environment:
        assert await environment.ask(environment.direct, b"x" * 60_000) == b"x" * 60_000
        assert len(await environment.ask(environment.direct, b"x" * 60_000)) <= 40_000
        # The sum is the run's, not a connection's.
        assert await environment.ask(environment.direct, b"x") == b""
        outcomes = [event["outcome"] for event in environment.events]
        assert outcomes[0] == "closed"
        assert set(outcomes[1:]) == {"limit"}
        assert sum(connection.received_bytes for connection in environment.closed) <= 200_000


@pytest.mark.parametrize("limit", ["idle_seconds", "total_seconds"])
async def test_time_of_a_connection_is_limited(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress_server, "_SWEEP_SECONDS", 0.05)
    async with run_egress(**{limit: 0.2}) as environment:
        async with environment.connect(environment.direct) as (reader, writer):
            writer.write(b"x")
            assert await reader.read(1) == b"x"
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        await wait_until(lambda: len(environment.events) == 1)
        assert environment.events[0]["outcome"] == "limit"
        assert ("idle" if limit == "idle_seconds" else "open for more") in environment.events[0]["reason"]


async def test_events_of_a_run_are_limited_and_the_rest_is_counted() -> None:
    async with run_egress(max_events=3) as environment:
        for _ in range(5):
            await environment.ask(environment.direct, b"hello")
        await wait_until(lambda: len(environment.closed) == 5)
    assert [event.get("host") for event in environment.events] == [HOST] * 3 + [None]
    assert environment.events[-1] == {"left_out": 2, "sent_bytes": 10, "received_bytes": 10}


PRIVATE_ADDRESSES = [
    *("127.0.0.2", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1"),
    *("169.254.169.254", "169.254.170.2", "224.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1"),
    *("::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "::ffff:127.0.0.2", "::ffff:169.254.169.254"),
    *("64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a9fe:a9fe::", "::127.0.0.1", "2001:db8::1"),
]


@pytest.mark.parametrize("address", PRIVATE_ADDRESSES)
async def test_name_that_leads_to_a_private_address_is_refused(address: str) -> None:
    """Also if it leads to an allowed one as well, and through the proxy."""
    answers: dict[str, list[str]] = {HOST: [address], f"eu.{DOMAIN}": ["127.0.0.1", address]}
    async with run_egress(lambda host: answers[host]) as environment:
        assert await environment.ask(environment.direct, b"hello") == b""
        answer = await environment.ask(environment.proxy, environment.build_request())
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert address.encode() not in answer.partition(b"\r\n\r\n")[2], (
            "the agent does not learn what is behind a name"
        )
        assert [event["outcome"] for event in environment.events] == ["refused", "refused"]


async def test_every_connection_looks_its_name_up_anew() -> None:
    answers = iter([["127.0.0.1"], ["169.254.169.254"], ["127.0.0.1"], ["::1"]])
    async with run_egress(lambda host: next(answers)) as environment:
        replies = [await environment.ask(environment.direct, b"hello") for _ in range(4)]
        assert replies == [b"hello", b"", b"hello", b""]
        assert environment.asked == [HOST] * 4


async def test_slow_lookups_end() -> None:
    stuck = asyncio.Event()

    async def find_addresses(host: str) -> list[str]:
        await stuck.wait()
        return ["127.0.0.1"]

    async with run_egress(find_addresses, connect_seconds=0.3) as environment:
        asking = [environment.ask(environment.proxy, environment.build_request()) for _ in range(8)]
        assert {answer[:13] for answer in await asyncio.gather(*asking)} == {b"HTTP/1.1 504 "}
        assert len(environment.asked) <= 4, "the tenant's others wait for those"
        stuck.set()
