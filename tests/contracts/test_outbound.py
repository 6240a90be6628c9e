"""What `Outbound` lets through. Where something is refused, a real server stands behind it and must not be reached."""

import asyncio
import datetime
import secrets
import socket
import ssl
import tempfile
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
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from infra.http import Outbound, OutboundRefused, find_address_problem, load_tls_context, resolve_host
from infra.settings import SettingsError
from infra.settings import parse_destination as parsed
from tests.support.outbound_servers import (
    PUBLIC_ADDRESS,
    RecordingServer,
    build_reply,
    build_resolver,
    redirect_connections,
    run_server,
)

CLIENTS = ["create_client", "create_httpx2_client"]

DANGEROUS = [
    # this host, its network, and those of clouds
    *("127.0.0.1", "127.0.0.2", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255"),
    *("172.16.0.1", "172.31.255.255", "192.168.0.1", "192.168.255.255", "100.64.0.1", "100.127.255.255"),
    *("169.254.169.254", "169.254.170.2", "169.254.0.1", "100.100.100.200", "192.0.0.192", "168.63.129.16"),
    # what is nobody's
    *("192.0.0.1", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1"),
    *("224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.254", "255.255.255.255"),
    # IPv6
    *("::1", "::", "::2", "fc00::1", "fd00:ec2::254", "fdff::1", "fe80::1", "febf::1", "fec0::1", "ff02::1"),
    *("100::1", "2001:db8::1", "3fff::1", "2001:2::1", "2001:10::1", "5f00::1", "4000::1", "1::1", "64:ff9a::1"),
    # IPv4 inside of IPv6
    *("::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:0.0.0.0"),
    *("0:0:0:0:0:ffff:127.0.0.1", "::127.0.0.1", "::7f00:1", "::8.8.8.8", "::ffff:0:127.0.0.1"),
    *("2002:7f00:1::", "2002:7f00:1::1", "2002:a00:1::1", "2002:a9fe:a9fe::1", "2002:808:808::1"),
    *("2001:0:7f00:1::", "2001::1", "2001:0:4136:e378:8000:63bf:80ff:fffe", "2001:0:4136:e378:8000:63bf:3fff:fdd2"),
    *("64:ff9b::7f00:1", "64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b::192.168.1.1"),
    *("64:ff9b:1::7f00:1", "64:ff9b:1::8.8.8.8", "64:ff9b:1:7f00:0:100::"),
]
# Hosts of URLs that this machine's resolver, or a URL parser, makes 127.0.0.1 or another address of.
UNUSUAL = [
    *("2130706433", "0x7f000001", "0x7F000001", "017700000001", "127.1", "127.0.1", "0x7f.1", "0x7f.0x0.0x0.0x1"),
    *("0177.0.0.1", "0177.1", "127.0.0.01", "127.00.00.01", "0", "0.0", "00000000000000000177.1", "127.0x1"),
    *("127。0。0。1", "127．0．0．1", "127｡0｡0｡1"),
    *("2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518", "3232235777"),
    *("8.8.2056", "134744072", "1.2.3.4.5", "999.1.1.1", "1.2.3.0x", "name.127", "127.0.0.1.", "2130706433.", "127.1."),
]
LOCAL = [
    "localhost",
    "LOCALHOST",
    "LocalHost",
    "localhost.",
    "a.localhost",
    "a.b.LOCALHOST",
    "localhost..",
    "name.test.",
]
SCOPED = ["[fe80::1%25eth0]", "[fe80::1%eth0]", "[::1%25lo]", "[fe80::1%251]", "%6c%6f%63alhost", "%31%32%37.0.0.1"]
ORDINARY = [
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


def bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


@pytest.fixture
async def here() -> AsyncIterator[RecordingServer]:
    async with run_server() as one:
        yield one


async def get(outbound: Outbound, kind: str, url: str, strict: bool = False, timeout: float = 5.0) -> Any:
    async with getattr(outbound, kind)(strict=strict, timeout=timeout) as client:
        return await client.get(url)


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("address", DANGEROUS)
async def test_dangerous_addresses(here: RecordingServer, monkeypatch: pytest.MonkeyPatch, address: str, kind: str):
    """As they stand in a URL, behind a name, and behind a name among good ones."""
    dialled = redirect_connections(monkeypatch, here)
    outbound = Outbound(resolve=build_resolver(inner_test=address, both_test=[PUBLIC_ADDRESS, address, "8.8.8.8"]))
    for host in (bracketed(address), "inner.test", "both.test"):
        for strict in (False, True):
            with pytest.raises(OutboundRefused) as refused:
                await get(outbound, kind, f"http://{host}:{here.port}/", strict)
            assert refused.value.address is not None
    assert (here.connection_count, dialled) == (0, [])
    assert find_address_problem(ip_address(address)) is not None


def test_reasons():
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


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("address", ORDINARY)
async def test_ordinary_addresses(here: RecordingServer, monkeypatch: pytest.MonkeyPatch, address: str, kind: str):
    dialled = redirect_connections(monkeypatch, here)
    outbound = Outbound(resolve=build_resolver(outer_test=address))
    for host in (bracketed(address), "outer.test"):
        assert (await get(outbound, kind, f"http://{host}:81/", strict=True)).text == "hello"
    mapped = IPv6Address(address).ipv4_mapped if ":" in address else None
    assert dialled == [(str(mapped or ip_address(address)), 81)] * 2


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize("host", [*UNUSUAL, *LOCAL, *SCOPED])
async def test_hosts_that_mean_this_host(here: RecordingServer, monkeypatch: pytest.MonkeyPatch, host: str, kind: str):
    """Refused by how they are written, so also when a resolver says that they are elsewhere."""
    with pytest.raises((OutboundRefused, httpx.InvalidURL, httpx2.InvalidURL)):
        await get(Outbound(), kind, f"http://{host}:{here.port}/", strict=True)
    dialled = redirect_connections(monkeypatch, here)
    for outbound in (Outbound(resolve=build_resolver()), Outbound(("127.0.0.0/8", "::1"), build_resolver())):
        if host == "localhost" or not host.isascii():  # the latter become plain 127.0.0.1 while the URL is read
            continue
        with pytest.raises((OutboundRefused, httpx.InvalidURL, httpx2.InvalidURL)):
            await get(outbound, kind, f"http://{host}:{here.port}/")
    assert (here.connection_count, dialled) == (0, [])


@pytest.mark.parametrize("kind", CLIENTS)
async def test_loopback_with_the_real_resolver(here: RecordingServer, kind: str):
    """Nothing is replaced here: without the guard each of these is answered with a hello."""
    outbound = Outbound()
    for host in ("127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "0177.0.0.1", "0", "[::ffff:127.0.0.1]"):
        with pytest.raises((OutboundRefused, httpx.InvalidURL, httpx2.InvalidURL)):
            await get(outbound, kind, f"http://{host}:{here.port}/")
    assert here.connection_count == 0
    assert (await get(Outbound(("127.0.0.1",)), kind, here.url)).text == "hello"


@given(
    st.integers(0, 2**24 - 1),
    st.integers(1, 4),
    st.lists(st.sampled_from(["%d", "%x", "0x%x", "0X%X", "0%o", "000%o"]), min_size=4, max_size=4),
)
def test_whatever_the_system_reads_as_an_address(low: int, resources: int, forms: list[str]):
    """Any spelling of 127/8 that inet_aton takes, and any that it does not."""
    whole = (127 << 24) | low
    numbers = [(whole >> shift) & 255 for shift in (24, 16, 8)[: resources - 1]] + [
        whole & (2 ** (8 * (5 - resources)) - 1)
    ]
    host = ".".join(form % number for form, number in zip(forms, numbers, strict=False))
    try:
        socket.inet_aton(host)
    except OSError:
        return

    async def resolve(host: str, port: int) -> list[str]:
        return [PUBLIC_ADDRESS]

    with pytest.raises(OutboundRefused):
        asyncio.run(Outbound(resolve=resolve).resolve_allowed(host, 80))


@given(st.one_of(st.ip_addresses(), st.integers(0, 2**32 - 1).map(IPv4Address)))
def test_nothing_that_python_calls_private_is_ordinary(address: IPv4Address | IPv6Address):
    if isinstance(address, IPv6Address) and (address.ipv4_mapped or address in IPv6Network("64:ff9b::/96")):
        return  # judged by the address inside, which Python's newer versions do and older ones do not
    if not address.is_global or address.is_multicast or address.is_reserved:
        assert find_address_problem(address) is not None


async def test_the_system_resolver_keeps_the_scope(monkeypatch: pytest.MonkeyPatch):
    async def found(*args: Any, **named: Any) -> list[Any]:
        return [
            (socket.AF_INET6, 1, 6, "", ("2606:4700::1", 80, 0, 3)),
            (socket.AF_INET, 1, 6, "", (PUBLIC_ADDRESS, 80)),
        ]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", found, raising=False)
    assert await resolve_host("name.test", 80) == ["2606:4700::1%3", PUBLIC_ADDRESS]
    with pytest.raises(OutboundRefused) as refused:
        await Outbound().resolve_allowed("name.test", 80)
    assert "one interface" in refused.value.reason


@pytest.mark.parametrize("kind", CLIENTS)
async def test_a_name_that_changes_its_mind(here: RecordingServer, monkeypatch: pytest.MonkeyPatch, kind: str):
    """Public when it is checked, inside when it is connected to: there is one resolution, and it is what is dialled."""
    dialled = redirect_connections(monkeypatch, here)
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
    assert [one.headers["host"] for one in here.requests] == ["turning.test"] * 2


@pytest.mark.parametrize("kind", CLIENTS)
async def test_clients_do_not_follow_and_followed_they_are_checked(
    here: RecordingServer, monkeypatch: pytest.MonkeyPatch, kind: str
):
    here.answer = lambda request: build_reply(status=302, location=f"http://127.0.0.1:{here.port}/inner")
    redirect_connections(monkeypatch, here)
    async with getattr(Outbound(resolve=build_resolver()), kind)() as client:
        assert (await client.get("http://name.test/")).status_code == 302
        with pytest.raises(OutboundRefused):
            await client.get("http://name.test/", follow_redirects=True)
    assert [one.target for one in here.requests] == ["/", "/"]


@pytest.mark.parametrize("kind", CLIENTS)
async def test_one_of_several_addresses_answers(here: RecordingServer, kind: str):
    """127.0.0.3 refuses connections. The next address gets its turn."""
    outbound = Outbound(("several.test",), build_resolver(several_test=["127.0.0.3", "127.0.0.1"]))
    assert (await get(outbound, kind, f"http://several.test:{here.port}/")).text == "hello"


@pytest.mark.parametrize(("kind", "core"), [("create_client", httpcore), ("create_httpx2_client", httpcore2)])
async def test_an_address_that_swallows_everything(
    here: RecordingServer, monkeypatch: pytest.MonkeyPatch, kind: str, core: Any
):
    redirect_connections(monkeypatch, here)
    turned = core.AnyIOBackend.connect_tcp

    async def swallow(self: Any, host: str, port: int, timeout: float, *args: Any) -> Any:
        if host == PUBLIC_ADDRESS:
            await asyncio.sleep(timeout)
            raise core.ConnectTimeout
        return await turned(self, host, port, timeout, *args)

    monkeypatch.setattr(core.AnyIOBackend, "connect_tcp", swallow)
    outbound = Outbound(resolve=build_resolver(several_test=[PUBLIC_ADDRESS, "8.8.8.8"]))
    began = time.monotonic()
    assert (await get(outbound, kind, "http://several.test/", timeout=1)).text == "hello"
    assert time.monotonic() - began < 0.9


@pytest.mark.parametrize(("kind", "core"), [("create_client", httpx), ("create_httpx2_client", httpx2)])
async def test_names_that_are_not_known_or_take_too_long(kind: str, core: Any):
    async def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror("no")

    async def nothing(host: str, port: int) -> list[str]:
        return []

    async def slow(host: str, port: int) -> list[str]:
        await asyncio.sleep(30)
        return [PUBLIC_ADDRESS]

    for resolve in (unknown, nothing):
        with pytest.raises(core.ConnectError):
            await get(Outbound(resolve=resolve), kind, "http://name.test/")
    began = time.monotonic()
    with pytest.raises(core.ConnectTimeout):
        await get(Outbound(resolve=slow), kind, "http://name.test/", timeout=0.2)
    assert time.monotonic() - began < 2
    for host in ("a" * 70 + ".test", "a..b"):
        with pytest.raises((core.ConnectError, core.InvalidURL, OutboundRefused)):
            await get(Outbound(), kind, f"http://{host}/")


@pytest.mark.parametrize("kind", CLIENTS)
async def test_which_private_hosts_there_are_is_not_told(kind: str):
    """Whoever may name hosts here could list those of the network behind it."""

    async def resolve(host: str, port: int) -> list[str]:
        if host == "there.test":
            return ["10.0.0.7"]
        raise socket.gaierror(socket.EAI_NONAME, "not known")

    told = []
    for host in ("there.test", "away.test"):
        with pytest.raises(OutboundRefused) as refused:
            await get(Outbound(resolve=resolve), kind, f"http://{host}/")
        told.append(str(refused.value).replace(host, "HOST"))
    assert told[0] == told[1] == "Connections to HOST are refused: it is not a known public host."


@pytest.mark.parametrize("kind", CLIENTS)
async def test_no_unix_sockets(kind: str, tmp_path: Path):
    hits = []
    path = str(tmp_path / "socket")
    server = await asyncio.start_unix_server(lambda reader, writer: (hits.append(1), writer.close())[1], path)
    async with server, getattr(Outbound((path.strip("/").split("/")[0],)), kind)() as client:
        with pytest.raises(OutboundRefused):
            await client._transport._pool._network_backend.connect_unix_socket(path)
    assert not hits


@pytest.mark.parametrize("kind", CLIENTS)
async def test_the_environment_has_no_say(
    here: RecordingServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str
):
    """Neither proxies, which would resolve names in our place, nor passwords of whoever runs this."""
    (tmp_path / "netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    async with run_server() as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        assert (await get(Outbound(("127.0.0.1",)), kind, here.url)).text == "hello"
        assert proxy.connection_count == 0
    assert "authorization" not in here.requests[0].headers


@pytest.mark.parametrize("kind", CLIENTS)
async def test_tls_is_spoken_with_the_name(monkeypatch: pytest.MonkeyPatch, kind: str):
    """Dialled by address, the certificate is checked for the name, and the server is told the name."""
    server, pem = certificate("name.test")
    async with run_server(tls=server) as there:
        dialled = redirect_connections(monkeypatch, there)
        outbound = Outbound(resolve=build_resolver())
        with pytest.raises((httpx.ConnectError, httpx2.ConnectError)):
            await get(outbound, kind, "https://name.test/")
        load_tls_context().load_verify_locations(cadata=pem)
        assert (await get(outbound, kind, "https://name.test/")).text == "hello"
        with pytest.raises((httpx.ConnectError, httpx2.ConnectError)):
            await get(outbound, kind, "https://other.test/")
    assert set(dialled) == {(PUBLIC_ADDRESS, 443)}
    assert there.server_names == ["name.test", "name.test", "other.test"]
    assert there.requests[-1].headers["host"] == "name.test"


def certificate(name: str) -> tuple[ssl.SSLContext, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, secrets.token_hex(8))])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM).decode()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile("w") as file:
        file.write(pem + private)
        file.flush()
        context.load_cert_chain(file.name)
    return context, pem


ALLOWED = [
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


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.parametrize(("entry", "host", "through"), ALLOWED)
async def test_what_is_let_through(here: RecordingServer, kind: str, entry: str, host: str, through: bool):
    resolve = build_resolver(
        inner_test="127.0.0.1", inner_TEST="127.0.0.1", a_inner_test="127.0.0.1", other_test="127.0.0.1",
        localhost="127.0.0.1", both_test=["127.0.0.1", "10.0.0.1"],
    )  # fmt: skip
    outbound = Outbound((entry.replace("PORT", str(here.port)),), resolve)
    url = f"http://{host}:{here.port}/"
    if through:
        assert (await get(outbound, kind, url)).text == "hello"
    else:
        with pytest.raises(OutboundRefused):
            await get(outbound, kind, url)
    with pytest.raises(OutboundRefused):
        await get(outbound, kind, url, strict=True)
    assert here.connection_count == through


async def test_entries_for_ipv6():
    outbound = Outbound(("[::1]:8080", "fd00::7", "fd01::/16", "[fd02::/16]:1"))
    for host, port, through in [
        *[("::1", 8080, True), ("::1", 80, False), ("fd00::7", 1, True), ("fd00::8", 1, False)],
        *[("fd01::9", 5, True), ("fd02::9", 1, True), ("fd02::9", 2, False), ("fd03::9", 1, False)],
    ]:
        if through:
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
def test_bad_entries_are_named_at_the_start(entry: str):
    with pytest.raises(SettingsError) as told:
        Outbound(("good.test", entry))
    assert repr(entry) in str(told.value)
    assert "PADDOCK_PRIVATE_HOSTS" in str(told.value)


def test_entries_are_read():
    assert parsed(" Ollama:11434 ") == ("ollama", None, 11434)
    assert str(parsed("10.1.0.0/16:80").network) == "10.1.0.0/16"


async def test_each_refusal_is_logged(here: RecordingServer):
    outbound = Outbound(resolve=build_resolver(inner_test="10.0.0.9"))
    with capture_logs() as lines:
        for url in ("http://inner.test:81/", "http://127.1/", "http://localhost/"):
            with pytest.raises(OutboundRefused):
                await get(outbound, "create_httpx2_client", url)
    assert [(line["event"], line["log_level"], line["host"], line["address"]) for line in lines] == [
        ("outbound refused", "warning", "inner.test", "10.0.0.9"),
        ("outbound refused", "warning", "127.1", None),
        ("outbound refused", "warning", "localhost", None),
    ]
    assert lines[0]["reason"] == "it leads to a private address"
    assert lines[0]["port"] == 81


async def test_what_is_said_does_not_hold_the_address():
    with pytest.raises(OutboundRefused) as refused:
        await Outbound(resolve=build_resolver(inner_test="10.0.0.9")).resolve_allowed("inner.test", 80)
    assert "10.0.0.9" not in str(refused.value)
    assert (refused.value.host, refused.value.address) == ("inner.test", "10.0.0.9")


@pytest.mark.parametrize(("kind", "core"), [("create_client", httpcore), ("create_httpx2_client", httpcore2)])
async def test_the_guard_is_where_connections_are_made(kind: str, core: Any):
    """The pool's field is httpx's own affair: this says what broke should it be called something else."""
    async with getattr(Outbound(), kind)() as client:
        assert isinstance(client._transport._pool._network_backend, core.AsyncNetworkBackend)
        assert type(client._transport._pool._network_backend).__name__ == "_GuardedBackend"
        assert not client._mounts
