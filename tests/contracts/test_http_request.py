"""Test the built-in tool `http_request`: what it sends, what it returns, and what it refuses."""

import asyncio
import gzip
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from domain.llms import ToolFailed
from infra.http import Outbound
from infra.tools.http_request import send_http_request
from tests.support.outbound_servers import (
    RecordingServer,
    build_reply,
    build_resolver,
    redirect_connections,
    run_server,
)


@pytest.fixture
async def server() -> AsyncIterator[RecordingServer]:
    async with run_server() as server:
        yield server


@pytest.fixture
def dialled(server: RecordingServer, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Return the addresses connections were made for. All arrive at `server`, as if it were public."""
    return redirect_connections(monkeypatch, server)


async def call_tool(resolve: Any = None, **args: Any) -> dict[str, Any]:
    """Call the tool with every private address allowed by settings, which it ignores."""
    outbound = Outbound(
        ("0.0.0.0/0", "::/0", "localhost", "inner.test"), resolve or build_resolver(inner_test="127.0.0.1")
    )
    return await send_http_request(outbound, {"url": "http://name.test/", **args})


async def test_request_and_answer(server: RecordingServer, dialled: list[Any]):
    server.answer = lambda request: build_reply(
        "grüße".encode("latin-1"), 201, content_type="text/plain; charset=latin-1", x_a="b"
    )
    result = await call_tool(url="http://name.test:81/a?b=c#d", headers={"X-Own": "1"})
    assert result["status"] == 201
    assert result["body"] == "grüße"
    assert result["headers"]["x-a"] == "b"
    assert result["url"] == "http://name.test:81/a?b=c#d"
    assert "truncated" not in result
    [request] = server.requests
    assert (request.method, request.target, request.body) == ("GET", "/a?b=c", b"")
    assert request.headers["x-own"] == "1"
    assert request.headers["host"] == "name.test:81"
    assert request.headers["user-agent"] == "paddock"
    assert dialled == [("93.184.216.34", 81)]
    await server.wait_until_closed()


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_bodies_are_sent_with_their_content_type(server: RecordingServer, dialled: list[Any], method: str):
    await call_tool(method=method, body="tëxt")
    await call_tool(method=method, json={"a": [1, None]})
    await call_tool(method=method, json=None)
    await call_tool(method=method, json=1, headers={"Content-Type": "application/x-own"})
    assert [request.method for request in server.requests] == [method] * 4
    assert [request.body for request in server.requests] == ["tëxt".encode(), b'{"a":[1,null]}', b"null", b"1"]
    kinds = [request.headers.get("content-type") for request in server.requests]
    assert kinds == [None, "application/json", "application/json", "application/x-own"]


async def test_head_returns_no_body(server: RecordingServer, dialled: list[Any]):
    server.answer = lambda request: b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\nconnection: close\r\n\r\n"
    result = await call_tool(method="HEAD")
    assert (result["body"], result["headers"]["content-length"]) == ("", "500")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"url": 5}, "url"),
        ({"url": ""}, "url"),
        ({"url": "name.test"}, "http://"),
        ({"url": "//name.test"}, "http://"),
        ({"url": "ftp://name.test"}, "http://"),
        ({"url": "file:///etc/passwd"}, "http://"),
        ({"url": "gopher://127.0.0.1:6379/_FLUSHALL"}, "http://"),
        ({"url": "ws://name.test"}, "http://"),
        ({"url": "unix:///run/x"}, "http://"),
        ({"url": "http://"}, "URL"),
        ({"url": "http:///a"}, "URL"),
        ({"url": "http://name.test:0/"}, "URL"),
        ({"url": "http://name.test:99999/"}, "URL"),
        ({"url": "http://name.test:x/"}, "URL"),
        ({"url": "http://[::1/"}, "URL"),
        ({"url": "http://me@name.test/"}, "password"),
        ({"url": "http://me:secret@name.test/"}, "password"),
        ({"url": "http://@name.test/"}, "password"),
        ({"url": "http://name.test@127.0.0.1/"}, "password"),
        ({"url": "http://name.test\\@127.0.0.1/"}, "backslashes"),
        ({"url": "http://name.test/ a"}, "spaces"),
        ({"url": "http://name.test/\r\nX-A: b"}, "spaces"),
        ({"url": "http://name.test/\x00"}, "spaces"),
        ({"url": "http://①②⑦.0.0.1/"}, "url"),
        ({"url": "http://name.test/" + "a" * 9000}, "url"),
        ({"method": "TRACE"}, "method"),
        ({"method": "get"}, "method"),
        ({"headers": {"Host": "inner.test"}}, "Host"),
        ({"headers": {"hOST": "inner.test"}}, "hOST"),
        *[({"headers": {name: "1"}}, name) for name in ("Content-Length", "Transfer-Encoding", "Connection", "TE")],
        *[({"headers": {name: "1"}}, name) for name in ("Upgrade", "Trailer", "Keep-Alive", "Proxy-Authorization")],
        ({"headers": {"X-A": "b\r\nX-C: d"}}, "X-A"),
        ({"headers": {"X-A": "b\nX-C: d"}}, "X-A"),
        ({"headers": {"X-A": "b\x00"}}, "X-A"),
        ({"headers": {"X-A": "ü"}}, "X-A"),
        ({"headers": {"X-A\r\nX-B": "c"}}, "not a valid header name"),
        ({"headers": {"X A": "c"}}, "not a valid header name"),
        ({"headers": {"": "c"}}, "not a valid header name"),
        ({"headers": {"X-A": 5}}, "headers"),
        ({"headers": {f"X-{n}": "" for n in range(65)}}, "headers"),
        ({"body": "a"}, "body"),
        ({"json": {}, "method": "HEAD"}, "body"),
        ({"body": "a", "json": {}, "method": "POST"}, "json"),
        ({"body": {"a": 1}, "method": "POST"}, "body"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": 31}, "timeout"),
        ({"timeout": "5"}, "timeout"),
        ({"verify": False}, "verify"),
    ],
)
async def test_invalid_arguments_are_refused(
    server: RecordingServer, dialled: list[Any], args: dict[str, Any], message: str
):
    with pytest.raises(ToolFailed) as error:
        await call_tool(**args)
    assert message in str(error.value)
    assert server.connection_count == 0


async def test_url_is_required():
    with pytest.raises(ToolFailed, match="url: is required"):
        await send_http_request(Outbound(), {})


@pytest.mark.parametrize(
    "url",
    [
        *[
            "http://127.0.0.1:{port}/",
            "http://localhost:{port}/",
            "http://127.1:{port}/",
            "http://[::ffff:7f00:1]:{port}/",
        ],
        *["http://inner.test:{port}/", "http://2130706433:{port}/", "http://169.254.169.254/latest/meta-data/"],
    ],
)
async def test_private_addresses_are_always_refused(server: RecordingServer, url: str):
    """Ignore PADDOCK_PRIVATE_HOSTS. Connections are not redirected here: the server would answer."""
    with pytest.raises(ToolFailed, match="refused"):
        await call_tool(url=url.format(port=server.port))
    assert server.connection_count == 0


async def test_up_to_five_redirects_are_followed(server: RecordingServer, dialled: list[Any]):
    def answer(request: Any) -> bytes:
        remaining = int(request.target.strip("/"))
        return build_reply(b"there") if remaining == 0 else build_reply(status=302, location=f"/{remaining - 1}")

    server.answer = answer
    result = await call_tool(url="http://name.test/5")
    assert (result["body"], result["url"]) == ("there", "http://name.test/0")
    server.requests.clear()
    with pytest.raises(ToolFailed, match="5 redirects"):
        await call_tool(url="http://name.test/7")
    assert len(server.requests) == 6
    await server.wait_until_closed()


@pytest.mark.parametrize(
    "location",
    [
        *["http://127.0.0.1:{port}/", "http://inner.test:{port}/", "//127.0.0.1:{port}/", "http://localhost:{port}/"],
        *["http://0x7f.1:{port}/", "http://[::1]:{port}/", "http://10.0.0.1/", "http://169.254.169.254/"],
        *["ftp://name.test/", "file:///etc/passwd", "gopher://127.0.0.1:{port}/", "http://me:you@name.test/"],
        *["http://[::1", "http://name.test:99999/", "javascript:1", "http://a\\@127.0.0.1/"],
    ],
)
async def test_targets_of_redirects_are_checked(server: RecordingServer, dialled: list[Any], location: str):
    server.answer = lambda request: build_reply(status=302, location=location.format(port=server.port))
    with pytest.raises(ToolFailed):
        await call_tool()
    assert len(server.requests) == 1


async def test_name_is_resolved_again_after_a_redirect(server: RecordingServer, dialled: list[Any]):
    answers = iter([["93.184.216.34"], ["127.0.0.1"]])

    async def resolve(host: str, port: int) -> list[str]:
        return next(answers)

    server.answer = lambda request: build_reply(status=302, location="/again")
    with pytest.raises(ToolFailed, match="refused"):
        await call_tool(resolve)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("status", "method", "method_after"),
    [
        (301, "POST", "GET"),
        (302, "POST", "GET"),
        (303, "POST", "GET"),
        (303, "PUT", "GET"),
        (307, "POST", "POST"),
        (308, "PUT", "PUT"),
        (302, "DELETE", "DELETE"),
        (303, "HEAD", "HEAD"),
    ],
)
async def test_methods_after_redirects(
    server: RecordingServer, dialled: list[Any], status: int, method: str, method_after: str
):
    server.answer = lambda request: (
        build_reply(b"") if request.target == "/to" else build_reply(status=status, location="/to")
    )
    await call_tool(method=method, **({} if method == "HEAD" else {"json": 1}))
    request = server.requests[1]
    assert request.method == method_after
    keeps_body = method_after == method != "HEAD"
    assert request.body == (b"1" if keeps_body else b"")
    assert ("content-type" in request.headers) == keeps_body


@pytest.mark.parametrize(
    ("location", "is_kept"),
    [
        ("/to", True),
        ("http://name.test/to", True),
        ("http://NAME.test:80/to", True),
        ("http://other.test/to", False),
        ("http://name.test:81/to", False),
        ("http://a.name.test/to", False),
    ],
)
async def test_secret_headers_are_not_sent_to_another_origin(
    server: RecordingServer, dialled: list[Any], location: str, is_kept: bool
):
    server.answer = lambda request: (
        build_reply(b"") if request.target == "/to" else build_reply(status=307, location=location, set_cookie="own=1")
    )
    headers = {"Authorization": "Bearer a", "Cookie": "b=c", "X-Api-Key": "d", "Accept": "text/plain"}
    await call_tool(method="POST", body="e", headers=headers)
    request = server.requests[1]
    for name in ("authorization", "cookie", "x-api-key"):
        assert (name in request.headers) == is_kept
    assert request.headers["accept"] == "text/plain"
    assert request.body == b"e"


async def test_long_bodies_are_truncated(server: RecordingServer, dialled: list[Any]):
    server.answer = lambda request: build_reply(b"a" * (256 * 1024 + int(request.target.strip("/"))))
    exact, longer = await call_tool(url="http://name.test/0"), await call_tool(url="http://name.test/1")
    assert len(exact["body"]) == len(longer["body"]) == 256 * 1024
    assert (exact.get("truncated"), longer.get("truncated")) == (None, True)


async def test_endless_bodies_are_stopped(server: RecordingServer, dialled: list[Any]):
    sent_bytes = 0

    async def send_without_end(writer: asyncio.StreamWriter) -> None:
        nonlocal sent_bytes
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"a" * 65536)
            sent_bytes += 65536
            await writer.drain()

    server.answer = lambda request: send_without_end
    result = await call_tool()
    assert result["truncated"]
    await server.wait_until_closed()
    assert sent_bytes < 64 * 1024 * 1024


@pytest.mark.parametrize("layers", [1, 2, 5])
async def test_compression_bombs_are_stopped(server: RecordingServer, dialled: list[Any], layers: int):
    """Decompress only what is returned: gigabytes arrive in a few bytes."""
    import tracemalloc

    bomb = gzip.compress(bytes(128 * 1024 * 1024), 6)
    for _ in range(layers - 1):
        bomb = gzip.compress(bomb, 9)
    server.answer = lambda request: build_reply(bomb, content_encoding=", ".join(["gzip"] * layers))
    tracemalloc.start()
    try:
        result = await call_tool()
        assert tracemalloc.get_traced_memory()[1] < 24 * 1024 * 1024
    finally:
        tracemalloc.stop()
    assert result["truncated"]
    assert len(result["body"]) == 256 * 1024


@pytest.mark.parametrize(
    "content_type",
    ["text/plain; charset=punycode", "text/plain; charset=zlib", "a/b; charset=idna", "a/b; charset=utf-7"],
)
async def test_unusual_charsets_are_ignored(server: RecordingServer, dialled: list[Any], content_type: str):
    server.answer = lambda request: build_reply(b"a-" * 100_000, content_type=content_type)
    start = time.monotonic()
    assert (await call_tool())["body"].startswith("a-a-")
    assert time.monotonic() - start < 1


async def test_text_is_made_storable(server: RecordingServer, dialled: list[Any]):
    server.answer = lambda request: build_reply(b"a\x00b\xff")
    assert (await call_tool())["body"] == "a\ufffdb\ufffd"


@pytest.mark.parametrize("slow", ["headers", "body", "redirects"])
async def test_timeout_covers_redirects_headers_and_body(server: RecordingServer, dialled: list[Any], slow: str):
    async def answer_slowly(writer: asyncio.StreamWriter) -> None:
        if slow == "body":
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        if slow == "redirects":
            await asyncio.sleep(0.15)
            writer.write(build_reply(status=302, location="/again"))
            return
        for _ in range(100):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(0.1)

    server.answer = lambda request: answer_slowly
    start = time.monotonic()
    with pytest.raises(ToolFailed, match=r"0\.5 seconds"):
        await call_tool(timeout=0.5)
    assert time.monotonic() - start < 2
    await server.wait_until_closed()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 90_000,
    ],
)
async def test_invalid_http_is_reported(server: RecordingServer, dialled: list[Any], answer: bytes):
    server.answer = lambda request: answer
    with pytest.raises(ToolFailed, match="not proper HTTP"):
        await call_tool()


async def test_body_that_cannot_be_decompressed_is_reported(server: RecordingServer, dialled: list[Any]):
    server.answer = lambda request: build_reply(b"no gzip", content_encoding="gzip")
    with pytest.raises(ToolFailed, match="decompressed"):
        await call_tool()


async def test_unknown_host_is_reported():
    async def fail_to_resolve(host: str, port: int) -> list[str]:
        raise OSError

    with pytest.raises(ToolFailed, match="not a known public host"):
        await call_tool(fail_to_resolve)


async def test_cancelled_request_hangs_up(server: RecordingServer, dialled: list[Any]):
    async def send_spaces(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.05)
        while not writer.is_closing():
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.05)

    server.answer = lambda request: send_spaces
    task = asyncio.create_task(call_tool())
    while not server.requests:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await server.wait_until_closed()
