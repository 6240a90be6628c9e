"""The built-in tool `http_request`: what it sends, what it brings back, and what it will not do."""

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
async def here() -> AsyncIterator[RecordingServer]:
    async with run_server() as one:
        yield one


@pytest.fixture
def outside(here: RecordingServer, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Where connections were bound for. All arrive at `here`, as if it were public."""
    return redirect_connections(monkeypatch, here)


async def ask(resolve: Any = None, **args: Any) -> dict[str, Any]:
    """`http_request` from this host, as if all it may reach in private were let through: it never is."""
    outbound = Outbound(
        ("0.0.0.0/0", "::/0", "localhost", "inner.test"), resolve or build_resolver(inner_test="127.0.0.1")
    )
    return await send_http_request(outbound, {"url": "http://name.test/", **args})


async def test_a_request_and_its_answer(here: RecordingServer, outside: list[Any]):
    here.answer = lambda request: build_reply(
        "grüße".encode("latin-1"), 201, content_type="text/plain; charset=latin-1", x_a="b"
    )
    told = await ask(url="http://name.test:81/a?b=c#d", headers={"X-Own": "1"})
    assert told["status"] == 201
    assert told["body"] == "grüße"
    assert told["headers"]["x-a"] == "b"
    assert told["url"] == "http://name.test:81/a?b=c#d"
    assert "truncated" not in told
    [asked] = here.requests
    assert (asked.method, asked.target, asked.body) == ("GET", "/a?b=c", b"")
    assert asked.headers["x-own"] == "1"
    assert asked.headers["host"] == "name.test:81"
    assert asked.headers["user-agent"] == "paddock"
    assert outside == [("93.184.216.34", 81)]
    await here.wait_until_closed()


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_bodies(here: RecordingServer, outside: list[Any], method: str):
    await ask(method=method, body="tëxt")
    await ask(method=method, json={"a": [1, None]})
    await ask(method=method, json=None)
    await ask(method=method, json=1, headers={"Content-Type": "application/x-own"})
    assert [one.method for one in here.requests] == [method] * 4
    assert [one.body for one in here.requests] == ["tëxt".encode(), b'{"a":[1,null]}', b"null", b"1"]
    kinds = [one.headers.get("content-type") for one in here.requests]
    assert kinds == [None, "application/json", "application/json", "application/x-own"]


async def test_head(here: RecordingServer, outside: list[Any]):
    here.answer = lambda request: b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\nconnection: close\r\n\r\n"
    told = await ask(method="HEAD")
    assert (told["body"], told["headers"]["content-length"]) == ("", "500")


@pytest.mark.parametrize(
    ("args", "says"),
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
async def test_bad_arguments(here: RecordingServer, outside: list[Any], args: dict[str, Any], says: str):
    with pytest.raises(ToolFailed) as failed:
        await ask(**args)
    assert says in str(failed.value)
    assert here.connection_count == 0


async def test_no_url():
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
async def test_it_is_always_strict(here: RecordingServer, url: str):
    """Whatever PADDOCK_PRIVATE_HOSTS says. Nothing is replaced here: the server would answer."""
    with pytest.raises(ToolFailed, match="refused"):
        await ask(url=url.format(port=here.port))
    assert here.connection_count == 0


async def test_redirects_are_followed_five_times(here: RecordingServer, outside: list[Any]):
    def answer(request: Any) -> bytes:
        left = int(request.target.strip("/"))
        return build_reply(b"there") if left == 0 else build_reply(status=302, location=f"/{left - 1}")

    here.answer = answer
    told = await ask(url="http://name.test/5")
    assert (told["body"], told["url"]) == ("there", "http://name.test/0")
    here.requests.clear()
    with pytest.raises(ToolFailed, match="5 redirects"):
        await ask(url="http://name.test/7")
    assert len(here.requests) == 6
    await here.wait_until_closed()


@pytest.mark.parametrize(
    "location",
    [
        *["http://127.0.0.1:{port}/", "http://inner.test:{port}/", "//127.0.0.1:{port}/", "http://localhost:{port}/"],
        *["http://0x7f.1:{port}/", "http://[::1]:{port}/", "http://10.0.0.1/", "http://169.254.169.254/"],
        *["ftp://name.test/", "file:///etc/passwd", "gopher://127.0.0.1:{port}/", "http://me:you@name.test/"],
        *["http://[::1", "http://name.test:99999/", "javascript:1", "http://a\\@127.0.0.1/"],
    ],
)
async def test_redirects_are_checked_as_the_first_was(here: RecordingServer, outside: list[Any], location: str):
    here.answer = lambda request: build_reply(status=302, location=location.format(port=here.port))
    with pytest.raises(ToolFailed):
        await ask()
    assert len(here.requests) == 1


async def test_a_name_that_changes_between_redirects(here: RecordingServer, outside: list[Any]):
    answers = iter([["93.184.216.34"], ["127.0.0.1"]])

    async def resolve(host: str, port: int) -> list[str]:
        return next(answers)

    here.answer = lambda request: build_reply(status=302, location="/again")
    with pytest.raises(ToolFailed, match="refused"):
        await ask(resolve)
    assert len(here.requests) == 1


@pytest.mark.parametrize(
    ("status", "method", "then"),
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
async def test_methods_after_redirects(here: RecordingServer, outside: list[Any], status: int, method: str, then: str):
    here.answer = lambda request: (
        build_reply(b"") if request.target == "/to" else build_reply(status=status, location="/to")
    )
    await ask(method=method, **({} if method == "HEAD" else {"json": 1}))
    asked = here.requests[1]
    assert asked.method == then
    kept = then == method != "HEAD"
    assert asked.body == (b"1" if kept else b"")
    assert ("content-type" in asked.headers) == kept


@pytest.mark.parametrize(
    ("to", "kept"),
    [
        ("/to", True),
        ("http://name.test/to", True),
        ("http://NAME.test:80/to", True),
        ("http://other.test/to", False),
        ("http://name.test:81/to", False),
        ("http://a.name.test/to", False),
    ],
)
async def test_secrets_stay_with_their_origin(here: RecordingServer, outside: list[Any], to: str, kept: bool):
    here.answer = lambda request: (
        build_reply(b"") if request.target == "/to" else build_reply(status=307, location=to, set_cookie="own=1")
    )
    headers = {"Authorization": "Bearer a", "Cookie": "b=c", "X-Api-Key": "d", "Accept": "text/plain"}
    await ask(method="POST", body="e", headers=headers)
    asked = here.requests[1]
    for name in ("authorization", "cookie", "x-api-key"):
        assert (name in asked.headers) == kept
    assert asked.headers["accept"] == "text/plain"
    assert asked.body == b"e"


async def test_long_bodies_are_cut(here: RecordingServer, outside: list[Any]):
    here.answer = lambda request: build_reply(b"a" * (256 * 1024 + int(request.target.strip("/"))))
    exact, longer = await ask(url="http://name.test/0"), await ask(url="http://name.test/1")
    assert len(exact["body"]) == len(longer["body"]) == 256 * 1024
    assert (exact.get("truncated"), longer.get("truncated")) == (None, True)


async def test_endless_bodies_end(here: RecordingServer, outside: list[Any]):
    sent = 0

    async def endless(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"a" * 65536)
            sent += 65536
            await writer.drain()

    here.answer = lambda request: endless
    told = await ask()
    assert told["truncated"]
    await here.wait_until_closed()
    assert sent < 64 * 1024 * 1024


@pytest.mark.parametrize("layers", [1, 2, 5])
async def test_bombs_do_not_go_off(here: RecordingServer, outside: list[Any], layers: int):
    """Gigabytes in a few bytes: what is unpacked is what is kept."""
    import tracemalloc

    bomb = gzip.compress(bytes(128 * 1024 * 1024), 6)
    for _ in range(layers - 1):
        bomb = gzip.compress(bomb, 9)
    here.answer = lambda request: build_reply(bomb, content_encoding=", ".join(["gzip"] * layers))
    tracemalloc.start()
    try:
        told = await ask()
        assert tracemalloc.get_traced_memory()[1] < 24 * 1024 * 1024
    finally:
        tracemalloc.stop()
    assert told["truncated"]
    assert len(told["body"]) == 256 * 1024


@pytest.mark.parametrize(
    "says", ["text/plain; charset=punycode", "text/plain; charset=zlib", "a/b; charset=idna", "a/b; charset=utf-7"]
)
async def test_odd_charsets_are_not_believed(here: RecordingServer, outside: list[Any], says: str):
    here.answer = lambda request: build_reply(b"a-" * 100_000, content_type=says)
    began = time.monotonic()
    assert (await ask())["body"].startswith("a-a-")
    assert time.monotonic() - began < 1


async def test_text_can_be_kept(here: RecordingServer, outside: list[Any]):
    here.answer = lambda request: build_reply(b"a\x00b\xff")
    assert (await ask())["body"] == "a\ufffdb\ufffd"


@pytest.mark.parametrize("slow", ["headers", "body", "redirects"])
async def test_the_timeout_is_for_everything_together(here: RecordingServer, outside: list[Any], slow: str):
    async def drip(writer: asyncio.StreamWriter) -> None:
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

    here.answer = lambda request: drip
    began = time.monotonic()
    with pytest.raises(ToolFailed, match=r"0\.5 seconds"):
        await ask(timeout=0.5)
    assert time.monotonic() - began < 2
    await here.wait_until_closed()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 90_000,
    ],
)
async def test_what_is_not_http(here: RecordingServer, outside: list[Any], answer: bytes):
    here.answer = lambda request: answer
    with pytest.raises(ToolFailed, match="not proper HTTP"):
        await ask()


async def test_bodies_that_do_not_unpack(here: RecordingServer, outside: list[Any]):
    here.answer = lambda request: build_reply(b"no gzip", content_encoding="gzip")
    with pytest.raises(ToolFailed, match="decompressed"):
        await ask()


async def test_names_that_nobody_knows():
    async def unknown(host: str, port: int) -> list[str]:
        raise OSError

    with pytest.raises(ToolFailed, match="not a known public host"):
        await ask(unknown)


async def test_cancelling_hangs_up(here: RecordingServer, outside: list[Any]):
    async def nothing(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.05)
        while not writer.is_closing():
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.05)

    here.answer = lambda request: nothing
    task = asyncio.create_task(ask())
    while not here.requests:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await here.wait_until_closed()
