"""Connections that `Outbound` allows and refuses. Behind each refused address a real server must not be reached."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import Any

import httpcore
import httpcore2
import httpx
import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from infra.http import Outbound, OutboundRefused, find_address_problem, load_tls_context, resolve_host
from infra.settings import SettingsError
from infra.settings import parse_destination as parse_destination
from tests.support.certificates import write_certificate
from tests.support.outbound_servers import (
    PUBLIC_ADDRESS,
    RecordingServer,
    build_reply,
    build_resolver,
    redirect_connections,
    run_server,
)

CLIENT_FACTORIES = ["create_client", "create_httpx2_client"]

DANGEROUS_ADDRESSES = [
    # this host, its network, and those of clouds
    *("127.0.0.1", "127.0.0.2", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255"),
    *("172.16.0.1", "172.31.255.255", "192.168.0.1", "192.168.255.255", "100.64.0.1", "100.127.255.255"),
    *("169.254.169.254", "169.254.170.2", "169.254.0.1", "100.100.100.200", "192.0.0.192", "168.63.129.16"),
    # addresses that belong to no host
    *("192.0.0.1", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1"),
    *("224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.254", "255.255.255.255"),
    # IPv6
    *("::1", "::", "::2", "fc00::1", "fd00:ec2::254", "fdff::1", "fe80::1", "febf::1", "fec0::1", "ff02::1"),
    *("100::1", "2001:db8::1", "3fff::1", "2001:2::1", "2001:10::1", "5f00::1", "4000::1", "1::1", "64:ff9a::1"),
    # IPv4 inside IPv6
    *("::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:0.0.0.0"),
    *("0:0:0:0:0:ffff:127.0.0.1", "::127.0.0.1", "::7f00:1", "::8.8.8.8", "::ffff:0:127.0.0.1"),
    *("2002:7f00:1::", "2002:7f00:1::1", "2002:a00:1::1", "2002:a9fe:a9fe::1", "2002:808:808::1"),
    *("2001:0:7f00:1::", "2001::1", "2001:0:4136:e378:8000:63bf:80ff:fffe", "2001:0:4136:e378:8000:63bf:3fff:fdd2"),
    *("64:ff9b::7f00:1", "64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b::192.168.1.1"),
    *("64:ff9b:1::7f00:1", "64:ff9b:1::8.8.8.8", "64:ff9b:1:7f00:0:100::"),
]
# Hosts of URLs that a resolver or a URL parser turns into 127.0.0.1 or another address.
UNUSUAL_HOSTS = [
    *("2130706433", "0x7f000001", "0x7F000001", "017700000001", "127.1", "127.0.1", "0x7f.1", "0x7f.0x0.0x0.0x1"),
    *("0177.0.0.1", "0177.1", "127.0.0.01", "127.00.00.01", "0", "0.0", "00000000000000000177.1", "127.0x1"),
    *("127。0。0。1", "127．0．0．1", "127｡0｡0｡1"),
    *("2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518", "3232235777"),
    *("8.8.2056", "134744072", "1.2.3.4.5", "999.1.1.1", "1.2.3.0x", "name.127", "127.0.0.1.", "2130706433.", "127.1."),
]
LOCAL_HOSTS = [
    "localhost",
    "LOCALHOST",
    "LocalHost",
    "localhost.",
    "a.localhost",
    "a.b.LOCALHOST",
    "localhost..",
    "name.test.",
]
SCOPED_HOSTS = [
    "[fe80::1%25eth0]",
    "[fe80::1%eth0]",
    "[::1%25lo]",
    "[fe80::1%251]",
    "%6c%6f%63alhost",
    "%31%32%37.0.0.1",
]
ORDINARY_ADDRESSES = [
    *(
        "8.8.8.8",
        "1.1.1.1",
        PUBLIC_ADDRESS,
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
    ),
    *("128.0.0.0", "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "192.167.255.255", "192.169.0.0"),
    *("198.17.255.255", "198.20.0.0", "223.255.255.255", "192.0.1.1", "168.63.129.15"),
    *("2606:4700::1111", "2a00:1450::1", "2001:4860:4860::8888", "2003::1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"),
]


def format_url_host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@pytest.fixture
async def server() -> AsyncIterator[RecordingServer]:
    async with run_server() as server:
        yield server


async def fetch_url(outbound: Outbound, kind: str, url: str, strict: bool = False, timeout: float = 5.0) -> Any:
    async with getattr(outbound, kind)(strict=strict, timeout=timeout) as client:
        return await client.get(url)


@pytest.mark.parametrize("kind", CLIENT_FACTORIES)
@pytest.mark.parametrize("address", DANGEROUS_ADDRESSES)
async def test_dangerous_addresses_are_refused(
    server: RecordingServer, monkeypatch: pytest.MonkeyPatch, address: str, kind: str
):
    """Refuse them in a URL, behind a name, and behind a name among ordinary ones."""
    dialled = redirect_connections(monkeypatch, server)
    outbound = Outbound(resolve=build_resolver(inner_test=address, both_test=[PUBLIC_ADDRESS, address, "8.8.8.8"]))
    for host in (format_url_host(address), "inner.test", "both.test"):
        for strict in (False, True):
            with pytest.raises(OutboundRefused) as error:
                await fetch_url(outbound, kind, f"http://{host}:{server.port}/", strict)
            assert error.value.address is not None
    assert (server.connection_count, dialled) == (0, [])
    assert find_address_problem(ip_address(address)) is not None


def test_reasons_name_the_kind_of_address():
    for address, reason in [
        *[("10.0.0.1", "private"), ("127.0.0.1", "loopback"), ("169.254.169.254", "link-local"), ("0.0.0.0", "unspec")],
        *[
            ("224.0.0.1", "multicast"),
            ("255.255.255.255", "broadcast"),
            ("240.0.0.1", "reserved"),
            ("100.64.0.1", "NAT"),
        ],
        *[("::1", "loopback"), ("fd00:ec2::254", "private"), ("fe80::1", "link-local"), ("ff02::1", "multicast")],
        *[("2001::1", "Teredo"), ("2002::1", "6to4"), ("::ffff:10.0.0.1", "private"), ("64:ff9b::7f00:1", "loopback")],
    ]:
        assert reason in str(find_address_problem(ip_address(address)))


@pytest.mark.parametrize("kind", CLIENT_FACTORIES)
@pytest.mark.parametrize("address", ORDINARY_ADDRESSES)
async def test_ordinary_addresses_are_allowed(
    server: RecordingServer, monkeypatch: pytest.MonkeyPatch, address: str, kind: str
):
    dialled = redirect_connections(monkeypatch, server)
    outbound = Outbound(resolve=build_resolver(outer_test=address))
    for host in (format_url_host(address), "outer.test"):
        assert (await fetch_url(outbound, kind, f"http://{host}:81/", strict=True)).text == "hello"
    mapped = IPv6Address(address).ipv4_mapped if ":" in address else None
    assert dialled == [(str(mapped or ip_address(address)), 81)] * 2


@pytest.mark.parametrize("kind", CLIENT_FACTORIES)
@pytest.mark.parametrize("host", [*UNUSUAL_HOSTS, *LOCAL_HOSTS, *SCOPED_HOSTS])
async def test_unusual_spellings_of_this_host_are_refused(
    server: RecordingServer, monkeypatch: pytest.MonkeyPatch, host: str, kind: str
):
    """Refuse them by their spelling, also when a resolver returns a public address."""
    with pytest.raises((OutboundRefused, httpx.InvalidURL, httpx2.InvalidURL)):
        await fetch_url(Outbound(), kind, f"http://{host}:{server.port}/", strict=True)
    dialled = redirect_connections(monkeypatch, server)
    for outbound in (Outbound(resolve=build_resolver()), Outbound(("127.0.0.0/8", "::1"), build_resolver())):
        if host == "localhost" or not host.isascii():  # the latter become plain 127.0.0.1 while the URL is read
            continue
        with pytest.raises((OutboundRefused, httpx.InvalidURL, httpx2.InvalidURL)):
            await fetch_url(outbound, kind, f"http://{host}:{server.port}/")
    assert (server.connection_count, dialled) == (0, [])


@pytest.mark.parametrize("kind", CLIENT_FACTORIES)
async def test_loopback_is_refused_with_the_real_resolver(server: RecordingServer, kind: str):
    """Connect without any replacement: without the guard the server would answer."""
    outbound = Outbound()
    for host in ("127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "0", "[::ffff:127.0.0.1]"):
        with pytest.raises((OutboundRefused, httpx.InvalidURL, httpx2.InvalidURL)):
            await fetch_url(outbound, kind, f"http://{host}:{server.port}/")
    assert server.connection_count == 0
    assert (await fetch_url(Outbound(("127.0.0.1",)), kind, server.url)).text == "hello"


@given(
    st.integers(0, 2**24 - 1),
    st.integers(1, 4),
    st.lists(st.sampled_from(["%d", "%x", "0x%x", "0X%X", "0%o", "000%o"]), min_size=4, max_size=4),
)
def test_any_spelling_of_a_loopback_address_is_refused(low_bits: int, part_count: int, forms: list[str]):
    """Refuse any spelling of 127/8 that inet_aton accepts."""
    address = (127 << 24) | low_bits
    numbers = [(address >> shift) & 255 for shift in (24, 16, 8)[: part_count - 1]] + [
        address & (2 ** (8 * (5 - part_count)) - 1)
    ]
    host = ".".join(number_format % number for number_format, number in zip(forms, numbers, strict=False))
    try:
        socket.inet_aton(host)
    except OSError:
        return

    async def resolve(host: str, port: int) -> list[str]:
        return [PUBLIC_ADDRESS]

    with pytest.raises(OutboundRefused):
        asyncio.run(Outbound(resolve=resolve).resolve_allowed(host, 80))


@given(st.one_of(st.ip_addresses(), st.integers(0, 2**32 - 1).map(IPv4Address)))
def test_addresses_python_calls_private_are_refused(address: IPv4Address | IPv6Address):
    if isinstance(address, IPv6Address) and (address.ipv4_mapped or address in IPv6Network("64:ff9b::/96")):
        return  # decided by the address inside, which newer versions of Python do and older ones do not
    if not address.is_global or address.is_multicast or address.is_reserved:
        assert find_address_problem(address) is not None


async def test_system_resolver_keeps_the_scope(monkeypatch: pytest.MonkeyPatch):
    async def return_addresses(*args: Any, **named: Any) -> list[Any]:
        return [
            (socket.AF_INET6, 1, 6, "", ("2606:4700::1", 80, 0, 3)),
            (socket.AF_INET, 1, 6, "", (PUBLIC_ADDRESS, 80)),
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", return_addresses, raising=False)
    assert await resolve_host("name.test", 80) == ["2606:4700::1%3", PUBLIC_ADDRESS]
    with pytest.raises(OutboundRefused) as error:
        await Outbound().resolve_allowed("name.test", 80)
    assert "one interface" in error.value.reason


@pytest.mark.parametrize("kind", CLIENT_FACTORIES)
async def test_name_is_resolved_once_per_connection(
    server: RecordingServer, monkeypatch: pytest.MonkeyPatch, kind: str
):
    """Connect to the address that was checked, when the name leads to a private one a moment later."""
    dialled = redirect_connections(monkeypatch, server)
    answers = iter([[PUBLIC_ADDRESS], ["127.0.0.1"], ["8.8.8.8"], ["169.254.169.254"]])

    async def resolve(host: str, port: int) -> list[str]:
        return next(answers)

    outbound = Outbound(resolve=resolve)
    async with getattr(outbound, kind)() as client:
        assert (await client.get("http://turning.test/")).text == "hello"
        with pytest.raises(OutboundRefused):
            await client.get("http://turning.test/")
        assert (await client.get("http://turning.test/")).text == "hello"
        with pytest.raises(OutboundRefused):
            await client.get("http://turning.test/")
    assert dialled == [(PUBLIC_ADDRESS, 80), ("8.8.8.8", 80)]
    assert [request.headers["host"] for request in server.requests] == ["turning.test"] * 2


@pytest.mark.parametrize("kind", CLIENT_FACTORIES)
async def test_redirects_are_not_followed_by_default_and_always_checked(
    server: RecordingServer, monkeypatch: pytest.MonkeyPatch, kind: str
):
    server.answer = lambda request: build_reply(status=302, location=f"http://127.0.0.1:{server.port}/inner")
    redirect_connections(monkeypatch, server)
    async with getattr(Outbound(resolve=build_resolver()), kind)() as client:
        assert (await client.get("http://name.test/")).status_code == 302
        with pytest.raises(OutboundRefused):
            await client.get("http://name.test/", follow_redirects=True)
    assert [request.target for request in server.requests] == ["/", "/"]


@pytest.mark.parametrize("kind", CLIENT_FACTORIES)
async def test_next_address_is_tried_when_one_refuses(server: RecordingServer, kind: str):
    """Try the next address, as 127.0.0.3 refuses connections."""
    outbound = Outbound(("several.test",), build_resolver(several_test=["127.0.0.3", "127.0.0.1"]))
    assert (await fetch_url(outbound, kind, f"http://several.test:{server.port}/")).text == "hello"


@pytest.mark.parametrize(("kind", "core"), [("create_client", httpcore), ("create_httpx2_client", httpcore2)])
async def test_next_address_is_tried_when_one_does_not_answer(
    server: RecordingServer, monkeypatch: pytest.MonkeyPatch, kind: str, core: Any
):
    redirect_connections(monkeypatch, server)
    connect = core.AnyIOBackend.connect_tcp

    async def connect_or_wait(self: Any, host: str, port: int, timeout: float, *args: Any) -> Any:
        if host == PUBLIC_ADDRESS:
            await asyncio.sleep(timeout)
            raise core.ConnectTimeout
        return await connect(self, host, port, timeout, *args)

    monkeypatch.setattr(core.AnyIOBackend, "connect_tcp", connect_or_wait)
    outbound = Outbound(resolve=build_resolver(several_test=[PUBLIC_ADDRESS, "8.8.8.8"]))
    start = time.monotonic()
    assert (await fetch_url(outbound, kind, "http://several.test/", timeout=1)).text == "hello"
    assert time.monotonic() - start < 0.9


@pytest.mark.parametrize(("kind", "core"), [("create_client", httpx), ("create_httpx2_client", httpx2)])
async def test_unknown_and_slow_names_fail(kind: str, core: Any):
    async def fail_to_resolve(host: str, port: int) -> list[str]:
        raise socket.gaierror("no")

    async def resolve_to_nothing(host: str, port: int) -> list[str]:
        return []

    async def resolve_slowly(host: str, port: int) -> list[str]:
        await asyncio.sleep(30)
        return [PUBLIC_ADDRESS]

    for resolve in (fail_to_resolve, resolve_to_nothing):
        with pytest.raises(core.ConnectError):
            await fetch_url(Outbound(resolve=resolve), kind, "http://name.test/")
    start = time.monotonic()
    with pytest.raises(core.ConnectTimeout):
        await fetch_url(Outbound(resolve=resolve_slowly), kind, "http://name.test/", timeout=0.2)
    assert time.monotonic() - start < 2
    for host in ("a" * 70 + ".test", "a..b"):
        with pytest.raises((core.ConnectError, core.InvalidURL, OutboundRefused)):
            await fetch_url(Outbound(), kind, f"http://{host}/")


@pytest.mark.parametrize("kind", CLIENT_FACTORIES)
async def test_refusal_does_not_reveal_private_hosts(kind: str):
    """Give the same message for existing and missing names, so that the private network cannot be listed."""

    async def resolve(host: str, port: int) -> list[str]:
        if host == "there.test":
            return ["10.0.0.7"]
        raise socket.gaierror(socket.EAI_NONAME, "not known")

    messages = []
    for host in ("there.test", "away.test"):
        with pytest.raises(OutboundRefused) as error:
            await fetch_url(Outbound(resolve=resolve), kind, f"http://{host}/")
        messages.append(str(error.value).replace(host, "HOST"))
    assert messages[0] == messages[1] == "Connections to HOST are refused: it is not a known public host."


@pytest.mark.parametrize("kind", CLIENT_FACTORIES)
async def test_unix_sockets_are_refused(kind: str, tmp_path: Path):
    hits = []
    path = str(tmp_path / "socket")
    server = await asyncio.start_unix_server(lambda reader, writer: (hits.append(1), writer.close())[1], path)
    async with server, getattr(Outbound((path.strip("/").split("/")[0],)), kind)() as client:
        with pytest.raises(OutboundRefused):
            await client._transport._pool._network_backend.connect_unix_socket(path)
    assert not hits


@pytest.mark.parametrize("kind", CLIENT_FACTORIES)
async def test_environment_variables_are_ignored(
    server: RecordingServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
):
    """Ignore proxies, which would resolve names themselves, and passwords in `.netrc`."""
    (tmp_path / "netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    async with run_server() as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        assert (await fetch_url(Outbound(("127.0.0.1",)), kind, server.url)).text == "hello"
        assert proxy.connection_count == 0
    assert "authorization" not in server.requests[0].headers


@pytest.mark.parametrize("kind", CLIENT_FACTORIES)
async def test_certificate_is_checked_for_the_name(monkeypatch: pytest.MonkeyPatch, kind: str, tmp_path: Path):
    """Connect by address, and use the name for the certificate and for SNI."""
    async with run_server(tls=write_certificate(tmp_path, ["name.test"])) as tls_server:
        dialled = redirect_connections(monkeypatch, tls_server)
        outbound = Outbound(resolve=build_resolver())
        with pytest.raises((httpx.ConnectError, httpx2.ConnectError)):
            await fetch_url(outbound, kind, "https://name.test/")
        load_tls_context().load_verify_locations(tmp_path / "ca.pem")
        assert (await fetch_url(outbound, kind, "https://name.test/")).text == "hello"
        with pytest.raises((httpx.ConnectError, httpx2.ConnectError)):
            await fetch_url(outbound, kind, "https://other.test/")
    assert set(dialled) == {(PUBLIC_ADDRESS, 443)}
    assert tls_server.server_names == ["name.test", "name.test", "other.test"]
    assert tls_server.requests[-1].headers["host"] == "name.test"


ALLOWED_HOSTS = [
    # entry with PORT for the server's own, host in the URL, let through
    ("127.0.0.1", "127.0.0.1", True),
    ("127.0.0.1:PORT", "127.0.0.1", True),
    ("127.0.0.1:1", "127.0.0.1", False),
    ("127.0.0.2", "127.0.0.1", False),
    ("127.0.0.0/8", "127.0.0.1", True),
    ("127.0.0.0/8:PORT", "127.0.0.1", True),
    ("127.0.0.0/8:1", "127.0.0.1", False),
    ("10.0.0.0/8", "127.0.0.1", False),
    ("127.0.0.1", "inner.test", True),
    ("127.0.0.1", "[::ffff:127.0.0.1]", True),
    ("inner.test", "inner.test", True),
    ("INNER.test", "inner.TEST", True),
    ("inner.test:PORT", "inner.test", True),
    ("inner.test:1", "inner.test", False),
    ("inner.test", "127.0.0.1", False),
    ("inner.test", "other.test", False),
    ("test", "inner.test", False),
    ("inner.test", "a.inner.test", False),
    ("localhost:PORT", "localhost", True),
    ("localhost:1", "localhost", False),
    ("127.0.0.1", "both.test", False),  # leads to 10.0.0.1 as well
    ("127.0.0.1", "127.1", False),
    ("::/0", "127.0.0.1", False),
]


@pytest.mark.parametrize("kind", CLIENT_FACTORIES)
@pytest.mark.parametrize(("entry", "host", "is_allowed"), ALLOWED_HOSTS)
async def test_private_hosts_setting_allows_hosts_and_ports(
    server: RecordingServer, kind: str, entry: str, host: str, is_allowed: bool
):
    resolve = build_resolver(
        inner_test="127.0.0.1", inner_TEST="127.0.0.1", a_inner_test="127.0.0.1", other_test="127.0.0.1",
        localhost="127.0.0.1", both_test=["127.0.0.1", "10.0.0.1"],
    )  # fmt: skip
    outbound = Outbound((entry.replace("PORT", str(server.port)),), resolve)
    url = f"http://{host}:{server.port}/"
    if is_allowed:
        assert (await fetch_url(outbound, kind, url)).text == "hello"
    else:
        with pytest.raises(OutboundRefused):
            await fetch_url(outbound, kind, url)
    with pytest.raises(OutboundRefused):
        await fetch_url(outbound, kind, url, strict=True)
    assert server.connection_count == is_allowed


async def test_private_hosts_setting_for_ipv6():
    outbound = Outbound(("[::1]:8080", "fd00::7", "fd01::/16", "[fd02::/16]:1"))
    for host, port, is_allowed in [
        *[("::1", 8080, True), ("::1", 80, False), ("fd00::7", 1, True), ("fd00::8", 1, False)],
        *[("fd01::9", 5, True), ("fd02::9", 1, True), ("fd02::9", 2, False), ("fd03::9", 1, False)],
    ]:
        if is_allowed:
            assert await outbound.resolve_allowed(host, port) == [host]
        else:
            with pytest.raises(OutboundRefused):
                await outbound.resolve_allowed(host, port)


@pytest.mark.parametrize(
    "entry",
    [
        *["", "a b", "*.test", "http://a", "a/b", "a:", "a:x", "a:0", "a:65536", "a:-1", "a:1:2", ":80", "[::1", "[a]"],
        *["[::1]:", "[::1]:x", "::1%eth0", "10.0.0.5/8", "10.0.0.0/33", "127.1", "0x7f.1", "300.1.1.1", "a.", "-", "ü"],
        "a:" + "9" * 5000,
    ],
)
def test_invalid_entries_are_named_at_startup(entry: str):
    with pytest.raises(SettingsError) as error:
        Outbound(("good.test", entry))
    assert repr(entry) in str(error.value)
    assert "PADDOCK_PRIVATE_HOSTS" in str(error.value)


def test_entries_are_parsed():
    assert parse_destination(" Ollama:11434 ") == ("ollama", None, 11434)
    assert str(parse_destination("10.1.0.0/16:80").network) == "10.1.0.0/16"


async def test_each_refusal_is_logged(server: RecordingServer):
    outbound = Outbound(resolve=build_resolver(inner_test="10.0.0.9"))
    with capture_logs() as lines:
        for url in ("http://inner.test:81/", "http://127.1/", "http://localhost/"):
            with pytest.raises(OutboundRefused):
                await fetch_url(outbound, "create_httpx2_client", url)
    assert [(line["event"], line["log_level"], line["host"], line["address"]) for line in lines] == [
        ("outbound refused", "warning", "inner.test", "10.0.0.9"),
        ("outbound refused", "warning", "127.1", None),
        ("outbound refused", "warning", "localhost", None),
    ]
    assert lines[0]["reason"] == "it leads to a private address"
    assert lines[0]["port"] == 81


async def test_message_does_not_contain_the_address():
    with pytest.raises(OutboundRefused) as error:
        await Outbound(resolve=build_resolver(inner_test="10.0.0.9")).resolve_allowed("inner.test", 80)
    assert "10.0.0.9" not in str(error.value)
    assert (error.value.host, error.value.address) == ("inner.test", "10.0.0.9")


@pytest.mark.parametrize(("kind", "core"), [("create_client", httpcore), ("create_httpx2_client", httpcore2)])
async def test_guard_is_installed_in_the_connection_pool(kind: str, core: Any):
    """Check a private field of httpx, so that a rename there is noticed."""
    async with getattr(Outbound(), kind)() as client:
        assert isinstance(client._transport._pool._network_backend, core.AsyncNetworkBackend)
        assert type(client._transport._pool._network_backend).__name__ == "_GuardedBackend"
        assert not client._mounts
