"""The tools that answer over the network: what they send, what they bring back, and what they will not do."""

import asyncio
import base64
import gzip
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ImageContent, TextContent

from domain.chat import ToolFailed
from domain.errors import DomainError
from domain.toolconfig import checked_custom, checked_mcp
from infra.http import Outbound
from infra.tools.custom import call_custom
from infra.tools.http_request import http_request
from infra.tools.mcp import call_mcp, list_tools
from tests.contracts.places import Place, detour, names, place, reply

SECRET = "sk-very-secret-0123456789"


@pytest.fixture
async def here() -> AsyncIterator[Place]:
    async with place() as one:
        yield one


@pytest.fixture
def outside(here: Place, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Where connections were bound for. All arrive at `here`, as if it were public."""
    return detour(monkeypatch, here)


async def ask(resolve: Any = None, **args: Any) -> dict[str, Any]:
    """`http_request` from this host, as if all it may reach in private were let through: it never is."""
    outbound = Outbound(("0.0.0.0/0", "::/0", "localhost", "inner.test"), resolve or names(inner_test="127.0.0.1"))
    return await http_request(outbound, {"url": "http://name.test/", **args})


# http_request


async def test_a_request_and_its_answer(here: Place, outside: list[Any]):
    here.answer = lambda request: reply(
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
    await here.until_closed()


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_bodies(here: Place, outside: list[Any], method: str):
    await ask(method=method, body="tëxt")
    await ask(method=method, json={"a": [1, None]})
    await ask(method=method, json=None)
    await ask(method=method, json=1, headers={"Content-Type": "application/x-own"})
    assert [one.method for one in here.requests] == [method] * 4
    assert [one.body for one in here.requests] == ["tëxt".encode(), b'{"a":[1,null]}', b"null", b"1"]
    kinds = [one.headers.get("content-type") for one in here.requests]
    assert kinds == [None, "application/json", "application/json", "application/x-own"]


async def test_head(here: Place, outside: list[Any]):
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
        ({"headers": {"X-A\r\nX-B": "c"}}, "not a name"),
        ({"headers": {"X A": "c"}}, "not a name"),
        ({"headers": {"": "c"}}, "not a name"),
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
async def test_bad_arguments(here: Place, outside: list[Any], args: dict[str, Any], says: str):
    with pytest.raises(ToolFailed) as failed:
        await ask(**args)
    assert says in str(failed.value)
    assert here.connections == 0


async def test_no_url():
    with pytest.raises(ToolFailed, match="url: is required"):
        await http_request(Outbound(), {})


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
async def test_it_is_always_strict(here: Place, url: str):
    """Whatever PADDOCK_PRIVATE_HOSTS says. Nothing is replaced here: the server would answer."""
    with pytest.raises(ToolFailed, match="refused"):
        await ask(url=url.format(port=here.port))
    assert here.connections == 0


async def test_redirects_are_followed_five_times(here: Place, outside: list[Any]):
    def answer(request: Any) -> bytes:
        left = int(request.target.strip("/"))
        return reply(b"there") if left == 0 else reply(status=302, location=f"/{left - 1}")

    here.answer = answer
    told = await ask(url="http://name.test/5")
    assert (told["body"], told["url"]) == ("there", "http://name.test/0")
    here.requests.clear()
    with pytest.raises(ToolFailed, match="5 redirects"):
        await ask(url="http://name.test/7")
    assert len(here.requests) == 6
    await here.until_closed()


@pytest.mark.parametrize(
    "location",
    [
        *["http://127.0.0.1:{port}/", "http://inner.test:{port}/", "//127.0.0.1:{port}/", "http://localhost:{port}/"],
        *["http://0x7f.1:{port}/", "http://[::1]:{port}/", "http://10.0.0.1/", "http://169.254.169.254/"],
        *["ftp://name.test/", "file:///etc/passwd", "gopher://127.0.0.1:{port}/", "http://me:you@name.test/"],
        *["http://[::1", "http://name.test:99999/", "javascript:1", "http://a\\@127.0.0.1/"],
    ],
)
async def test_redirects_are_checked_as_the_first_was(here: Place, outside: list[Any], location: str):
    here.answer = lambda request: reply(status=302, location=location.format(port=here.port))
    with pytest.raises(ToolFailed):
        await ask()
    assert len(here.requests) == 1


async def test_a_name_that_changes_between_redirects(here: Place, outside: list[Any]):
    answers = iter([["93.184.216.34"], ["127.0.0.1"]])

    async def resolve(host: str, port: int) -> list[str]:
        return next(answers)

    here.answer = lambda request: reply(status=302, location="/again")
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
async def test_methods_after_redirects(here: Place, outside: list[Any], status: int, method: str, then: str):
    here.answer = lambda request: reply(b"") if request.target == "/to" else reply(status=status, location="/to")
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
async def test_secrets_stay_with_their_origin(here: Place, outside: list[Any], to: str, kept: bool):
    here.answer = lambda request: (
        reply(b"") if request.target == "/to" else reply(status=307, location=to, set_cookie="own=1")
    )
    headers = {"Authorization": "Bearer a", "Cookie": "b=c", "X-Api-Key": "d", "Accept": "text/plain"}
    await ask(method="POST", body="e", headers=headers)
    asked = here.requests[1]
    for name in ("authorization", "cookie", "x-api-key"):
        assert (name in asked.headers) == kept
    assert asked.headers["accept"] == "text/plain"
    assert asked.body == b"e"


async def test_long_bodies_are_cut(here: Place, outside: list[Any]):
    here.answer = lambda request: reply(b"a" * (256 * 1024 + int(request.target.strip("/"))))
    exact, longer = await ask(url="http://name.test/0"), await ask(url="http://name.test/1")
    assert len(exact["body"]) == len(longer["body"]) == 256 * 1024
    assert (exact.get("truncated"), longer.get("truncated")) == (None, True)


async def test_endless_bodies_end(here: Place, outside: list[Any]):
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
    await here.until_closed()
    assert sent < 64 * 1024 * 1024


@pytest.mark.parametrize("layers", [1, 2, 5])
async def test_bombs_do_not_go_off(here: Place, outside: list[Any], layers: int):
    """Gigabytes in a few bytes: what is unpacked is what is kept."""
    import tracemalloc

    bomb = gzip.compress(bytes(128 * 1024 * 1024), 6)
    for _ in range(layers - 1):
        bomb = gzip.compress(bomb, 9)
    here.answer = lambda request: reply(bomb, content_encoding=", ".join(["gzip"] * layers))
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
async def test_odd_charsets_are_not_believed(here: Place, outside: list[Any], says: str):
    here.answer = lambda request: reply(b"a-" * 100_000, content_type=says)
    began = time.monotonic()
    assert (await ask())["body"].startswith("a-a-")
    assert time.monotonic() - began < 1


async def test_text_can_be_kept(here: Place, outside: list[Any]):
    here.answer = lambda request: reply(b"a\x00b\xff")
    assert (await ask())["body"] == "a\ufffdb\ufffd"


@pytest.mark.parametrize("slow", ["headers", "body", "redirects"])
async def test_the_timeout_is_for_everything_together(here: Place, outside: list[Any], slow: str):
    async def drip(writer: asyncio.StreamWriter) -> None:
        if slow == "body":
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        if slow == "redirects":
            await asyncio.sleep(0.15)
            writer.write(reply(status=302, location="/again"))
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
    await here.until_closed()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 90_000,
    ],
)
async def test_what_is_not_http(here: Place, outside: list[Any], answer: bytes):
    here.answer = lambda request: answer
    with pytest.raises(ToolFailed, match="not proper HTTP"):
        await ask()


async def test_bodies_that_do_not_unpack(here: Place, outside: list[Any]):
    here.answer = lambda request: reply(b"no gzip", content_encoding="gzip")
    with pytest.raises(ToolFailed, match="decompressed"):
        await ask()


async def test_names_that_nobody_knows():
    async def unknown(host: str, port: int) -> list[str]:
        raise OSError

    with pytest.raises(ToolFailed, match="cannot be reached"):
        await ask(unknown)


async def test_cancelling_hangs_up(here: Place, outside: list[Any]):
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
    await here.until_closed()


# Custom HTTP tools

ANY = {"type": "string"}


def custom(here: Place, path: str = "", **more: Any) -> dict[str, Any]:
    return checked_custom({"api_endpoint": f"{here.url}{path}", **more})[0]


async def call(
    configuration: dict[str, Any], args: dict[str, Any], secrets: dict[str, str] | None = None
) -> dict[str, Any]:
    return await call_custom(Outbound(("127.0.0.1",)), configuration, args, secrets or {})


async def test_a_custom_tool(here: Place):
    here.answer = lambda request: reply(b'{"a": [1, "b\\u0000"]}')
    told = await call(custom(here, "/v1", headers={"X-Plain": "1"}), {"q": "x", "n": [1]})
    assert told == {"status": 200, "body": {"a": [1, "b\ufffd"]}}
    [asked] = here.requests
    assert (asked.method, asked.target, asked.body) == ("POST", "/v1", b'{"q":"x","n":[1]}')
    assert (asked.headers["x-plain"], asked.headers["content-type"]) == ("1", "application/json")
    await here.until_closed()


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_arguments_in_the_query(here: Place, method: str):
    configuration = custom(here, "/a/{id}?v=1", method=method, parameters={"id": ANY})
    await call(configuration, {"id": 7, "q": "a&b=c", "l": ["x", 2], "t": True, "n": None, "o": {"k": 1}})
    [asked] = here.requests
    assert asked.target == "/a/7?v=1&q=a%26b%3Dc&l=x&l=2&t=true&o=%7B%22k%22%3A1%7D"
    assert asked.body == b""
    await call(configuration, {"id": 7})
    assert here.requests[1].target == "/a/7?v=1"


@pytest.mark.parametrize("method", ["PUT", "PATCH", "POST"])
async def test_placeholders_and_a_body(here: Place, method: str):
    await call(
        custom(here, "/{a}/{b}?v=1", method=method, parameters={"a": ANY, "b": ANY}), {"a": "x", "b": 1.5, "c": 2}
    )
    [asked] = here.requests
    assert (asked.target, asked.body) == ("/x/1.5?v=1", b'{"c":2}')


@pytest.mark.parametrize(
    ("value", "target"),
    [
        ("a/b", "/x/a%2Fb/y"),
        ("a?b=c", "/x/a%3Fb%3Dc/y"),
        ("a#b", "/x/a%23b/y"),
        ("%2e%2e", "/x/%252e%252e/y"),
        ("%2F", "/x/%252F/y"),
        ("a@b:c", "/x/a%40b%3Ac/y"),
        ("ü ", "/x/%C3%BC%20/y"),
        ("a\r\nHost: b", "/x/a%0D%0AHost%3A%20b/y"),
        ("...", "/x/.../y"),
        ("a..b", "/x/a..b/y"),
        ("{id}", "/x/%7Bid%7D/y"),
        ("//other.test", "/x/%2F%2Fother.test/y"),
        (True, "/x/true/y"),
        (0, "/x/0/y"),
    ],
)
async def test_values_stay_in_their_part_of_the_path(here: Place, value: Any, target: str):
    await call(custom(here, "/x/{id}/y", parameters={"id": ANY}), {"id": value})
    assert here.requests[0].target == target
    assert here.requests[0].headers["host"] == f"127.0.0.1:{here.port}"


@pytest.mark.parametrize(
    "value", ["..", ".", "../admin", "a/../b", "a/..", "..\\a", "a\\..\\b", "a/./b", " ../x", "", None, [1], {}]
)
async def test_values_that_lead_elsewhere(here: Place, value: Any):
    with pytest.raises(ToolFailed, match="id: "):
        await call(custom(here, "/x/{id}/y", parameters={"id": ANY}), {"id": value})
    with pytest.raises(ToolFailed, match="id: "):
        await call(custom(here, "/x/{id}/y", parameters={"id": ANY}), {})
    assert here.connections == 0


async def test_dots_that_several_placeholders_make(here: Place):
    with pytest.raises(ToolFailed):
        await call(custom(here, "/x/.{id}/y", parameters={"id": ANY}), {"id": "."})
    assert here.connections == 0


async def test_secrets_are_sent_and_never_shown(here: Place, caplog: pytest.LogCaptureFixture):
    """An endpoint that repeats everything: as text, in JSON values and keys, escaped, as a number, and in errors."""
    caplog.set_level(logging.DEBUG)
    secrets = {"X-Key": SECRET, "Authorization": "Bearer abcdefgh-token", "X-Number": "12345678"}
    configuration = custom(here, secrets={"X-Key": "one", "Authorization": "two", "X-Number": "three"})
    escaped = "".join(f"\\u{ord(one):04x}" for one in SECRET)
    told = f'{{"{SECRET}": ["Bearer abcdefgh-token", "abcdefgh-token", "x{escaped}y", 12345678]}}'
    for status in (200, 404):
        for body in (told, f"text {SECRET} abcdefgh-token 12345678"):
            here.answer = lambda request, status=status, body=body: reply(body.encode(), status, x_back=SECRET)
            try:
                shown = json.dumps(await call(configuration, {}, secrets))
            except ToolFailed as error:
                shown = f"{error} {error!r} {error.__cause__}"
            assert "***" in shown
            assert not any(one in shown for one in (SECRET, "abcdefgh-token", "12345678", escaped))
    assert here.requests[0].headers["x-key"] == SECRET
    assert here.requests[0].headers["authorization"] == "Bearer abcdefgh-token"
    assert SECRET not in caplog.text


async def test_a_bare_key_is_a_bearer_token(here: Place):
    await call(custom(here, secrets={"Authorization": "one"}), {}, {"Authorization": SECRET})
    assert here.requests[0].headers["authorization"] == f"Bearer {SECRET}"


async def test_a_secret_that_is_cut_does_not_show(here: Place):
    for before in range(0, 30, 3):
        here.answer = lambda request, before=before: reply(
            b"a" * (256 * 1024 - before) + SECRET.encode() + b"b" * 90_000
        )
        told = await call(custom(here, secrets={"X-Key": "one"}), {}, {"X-Key": SECRET})
        assert told["truncated"]
        assert set(told["body"]) <= set("a*b")
    here.answer = lambda request: reply((SECRET * 20_000).encode())
    told = await call(custom(here, secrets={"X-Key": "one"}), {}, {"X-Key": SECRET})
    assert set(told["body"]) == {"*"}


@pytest.mark.parametrize("secret", ["a\r\nX-B: c", "", "ü"])
async def test_secrets_that_are_no_headers(here: Place, secret: str):
    with pytest.raises(ToolFailed, match="X-Key") as failed:
        await call(custom(here, secrets={"X-Key": "one"}), {}, {"X-Key": secret})
    assert not secret or secret not in str(failed.value)
    with pytest.raises(ToolFailed, match="X-Key"):
        await call(custom(here, secrets={"X-Key": "one"}), {}, {})
    assert here.connections == 0


async def test_errors_of_the_endpoint(here: Place):
    here.answer = lambda request: reply(b"no such thing" + b"x" * 5000, 404)
    with pytest.raises(ToolFailed, match="404: no such thing") as failed:
        await call(custom(here), {})
    assert len(str(failed.value)) < 2100


async def test_redirects_of_the_endpoint(here: Place):
    """Not followed: the secrets are for the endpoint that was configured."""
    here.answer = lambda request: reply(status=307, location="/other")
    with pytest.raises(ToolFailed, match="307"):
        await call(custom(here), {})
    assert len(here.requests) == 1


async def test_a_custom_tool_is_guarded(here: Place):
    with pytest.raises(ToolFailed, match="refused"):
        await call_custom(Outbound(("127.0.0.1:1",)), custom(here), {}, {})
    assert here.connections == 0


async def test_the_timeout_of_a_custom_tool(here: Place):
    async def never(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(30)

    here.answer = lambda request: never
    with pytest.raises(ToolFailed, match=r"0\.3 seconds"):
        await call(custom(here, timeout=0.3), {})


async def test_json_nested_without_end_is_text(here: Place):
    here.answer = lambda request: reply(b"[" * 100_000 + b"]" * 100_000)
    assert (await call(custom(here), {}))["body"].startswith("[[")


def test_parameters():
    whole = {"type": "object", "properties": {"a": ANY}, "required": ["a"], "additionalProperties": False}
    url = {"api_endpoint": "https://a.test/x"}
    assert checked_custom({**url, "parameters": whole})[1] == whole
    assert checked_custom({**url, "parameters": {"properties": {"a": ANY}}})[1]["type"] == "object"
    assert checked_custom({**url, "parameters": {"a": ANY, "type": ANY}})[1] == {
        "type": "object", "properties": {"a": ANY, "type": ANY}, "required": [],
    }  # fmt: skip
    assert checked_custom({**url, "parameters": {"properties": ANY}})[1]["properties"] == {"properties": ANY}
    assert checked_custom(url) == (
        {**url, "method": "POST", "parameters": {}, "headers": {}, "secrets": {}, "timeout": 30.0},
        {"type": "object", "properties": {}, "required": []},
    )
    path = {"api_endpoint": "https://a.test/{b}/{a}", "parameters": {**whole, "properties": {"a": ANY, "b": ANY}}}
    assert checked_custom(path)[1]["required"] == ["a", "b"]
    assert path["parameters"]["required"] == ["a"]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"api_endpoint": None}, "configuration.api_endpoint"),
        ({"api_endpoint": "ftp://a.test"}, "configuration.api_endpoint"),
        ({"api_endpoint": "https://me:you@a.test"}, "configuration.api_endpoint"),
        ({"api_endpoint": "https://a.test/#b"}, "configuration.api_endpoint"),
        ({"api_endpoint": "https://a.test:99999/"}, "configuration.api_endpoint"),
        ({"api_endpoint": "https://{a}.test/"}, "configuration.api_endpoint"),
        ({"api_endpoint": "https://a.test:{a}/"}, "configuration.api_endpoint"),
        ({"api_endpoint": "{a}://a.test/"}, "configuration.api_endpoint"),
        ({"api_endpoint": "https://a.test/?b={a}"}, "configuration.api_endpoint"),
        ({"api_endpoint": "https://a.test/{a"}, "configuration.api_endpoint"),
        ({"api_endpoint": "https://a.test/a}"}, "configuration.api_endpoint"),
        ({"api_endpoint": "https://a.test/{}"}, "configuration.api_endpoint"),
        ({"api_endpoint": "https://a.test/{a.b}"}, "configuration.api_endpoint"),
        ({"api_endpoint": "https://a.test/{other}"}, "configuration.api_endpoint"),
        ({"api_endpoint": "https://a.test/{l}", "parameters": {"l": {"type": "array"}}}, "configuration.parameters.l"),
        ({"api_endpoint": "https://a.test/?a=1", "method": "GET"}, "configuration.api_endpoint"),
        ({"method": "HEAD"}, "configuration.method"),
        ({"parameters": {"type": "array"}}, "configuration.parameters.type"),
        ({"parameters": {"type": "object", "properties": []}}, "configuration.parameters.properties"),
        ({"parameters": {"a": "string"}}, "configuration.parameters.a"),
        ({"parameters": {"type": "object", "properties": {}, "required": ["a"]}}, "configuration.parameters.required"),
        ({"parameters": {"a": {"$ref": "http://127.0.0.1/x"}}}, "configuration.parameters"),
        ({"parameters": {"a": {"anyOf": [{"$ref": "file:///etc/passwd"}]}}}, "configuration.parameters"),
        ({"parameters": {"a": {"description": "x" * 70_000}}}, "configuration.parameters"),
        ({"headers": {"Host": "b"}}, "configuration.headers.Host"),
        ({"headers": {"X-A": "b\r\nc"}}, "configuration.headers.X-A"),
        ({"headers": {"X-A": "b", "x-a": "c"}}, "configuration.headers.x-a"),
        ({"secrets": {"Host": "b"}}, "configuration.secrets.Host"),
        ({"headers": {"X-A": "b"}, "secrets": {"x-a": "c"}}, "configuration.secrets.x-a"),
        ({"timeout": 0}, "configuration.timeout"),
        ({"timeout": 301}, "configuration.timeout"),
        ({"verify": False}, "configuration.verify"),
    ],
)
def test_bad_configurations_of_custom_tools(change: dict[str, Any], field: str):
    sent = {"api_endpoint": "https://a.test/", "parameters": {"a": ANY}, **change}
    with pytest.raises(DomainError) as error:
        checked_custom({name: value for name, value in sent.items() if value is not None})
    assert error.value.code == "invalid_field"
    assert error.value.errors[0].field == field


def test_nesting_without_end_is_refused():
    deep: dict[str, Any] = {}
    for _ in range(100):
        deep = {"a": deep}
    with pytest.raises(DomainError, match="nested"):
        checked_custom({"api_endpoint": "https://a.test/", "parameters": {"a": deep}})


# MCP


def offered() -> MCPServer:
    server = MCPServer("things")

    @server.tool(description="Adds numbers")
    def add(a: int, b: int) -> int:
        return a + b

    @server.tool()
    def several() -> list[Any]:
        picture = ImageContent(type="image", data=base64.b64encode(b"x").decode(), mime_type="image/png")
        return [TextContent(type="text", text="one"), picture, TextContent(type="text", text="two")]

    @server.tool()
    def fail() -> str:
        raise ToolError("it broke")

    @server.tool()
    def big(size: int) -> str:
        return "a" * size

    @server.tool()
    async def slow(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "done"

    @server.tool()
    def repeat() -> dict[str, str]:
        return {SECRET: f"x {SECRET} y"}

    @server.tool(description=f"knows {SECRET}")
    def told() -> str:
        raise ToolError(f"not {SECRET}")

    @server.tool(name="with.dots")
    def dots() -> str:
        return "dotted"

    return server


@asynccontextmanager
async def mcp_server(**how: Any) -> AsyncIterator[tuple[str, list[dict[str, str]], list[str]]]:
    """The package's own server under uvicorn: its URL, the headers and the methods it was asked with."""
    heard: list[dict[str, str]] = []
    methods: list[str] = []
    inner = offered().streamable_http_app(**how)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            heard.append({name.decode(): value.decode() for name, value in scope["headers"]})
            methods.append(scope["method"])
        await inner(scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", ws="none", timeout_graceful_shutdown=1))
    running = asyncio.create_task(server.serve())
    try:
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/mcp", heard, methods
    finally:
        server.should_exit = True
        await running


@pytest.fixture(scope="module")
async def things() -> AsyncIterator[tuple[str, list[dict[str, str]], list[str]]]:
    async with mcp_server() as served:
        yield served


def mcp(url: str, **more: Any) -> dict[str, Any]:
    return checked_mcp({"url": url, "timeout": 10, **more})


LET = Outbound(("127.0.0.1",))


async def test_tools_of_a_server(things: Any):
    tools = {tool.name: tool for tool in await list_tools(LET, mcp(things[0]), {})}
    assert set(tools) == {"add", "several", "fail", "big", "slow", "repeat", "told", "with.dots"}
    assert tools["add"].description == "Adds numbers"
    assert set(tools["add"].parameters["properties"]) == {"a", "b"}
    assert tools["add"].parameters["type"] == "object"


async def test_calls(things: Any):
    configuration = mcp(things[0])
    assert await call_mcp(LET, configuration, {}, "add", {"a": 1, "b": 2}) == {
        "content": "3", "structured_content": {"result": 3},
    }  # fmt: skip
    assert (await call_mcp(LET, configuration, {}, "several", {}))["content"] == "one\n[image/png]\ntwo"
    assert (await call_mcp(LET, configuration, {}, "with.dots", {}))["content"] == "dotted"


@pytest.mark.parametrize(
    "how", [{"json_response": True}, {"stateless_http": True}, {"json_response": True, "stateless_http": True}]
)
async def test_servers_of_every_kind(how: dict[str, Any]):
    async with mcp_server(**how) as (url, _, _):
        assert len(await list_tools(LET, mcp(url), {})) == 8
        assert (await call_mcp(LET, mcp(url), {}, "add", {"a": 1, "b": 2}))["content"] == "3"


async def test_failures_of_tools(things: Any):
    for name, args, says in [
        ("fail", {}, "it broke"),
        ("add", {"a": "x"}, "add"),
        ("nothing", {}, "nothing"),
    ]:
        with pytest.raises(ToolFailed, match=says):
            await call_mcp(LET, mcp(things[0]), {}, name, args)


async def test_long_answers_of_tools_are_cut(things: Any):
    told = await call_mcp(LET, mcp(things[0]), {}, "big", {"size": 300_000})
    assert (len(told["content"]), told["truncated"]) == (256 * 1024, True)
    assert "structured_content" not in told
    with pytest.raises(ToolFailed):
        await call_mcp(LET, mcp(things[0]), {}, "big", {"size": 8_000_000})


async def test_headers_and_secrets(things: Any, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    url, heard, _ = things
    heard.clear()
    configuration = mcp(url, headers={"X-Plain": "1"}, secrets={"X-Key": "one", "Authorization": "two"})
    secrets = {"X-Key": SECRET, "Authorization": "abcdefgh-token"}
    assert (await call_mcp(LET, configuration, secrets, "repeat", {}))["structured_content"] == {"***": "x *** y"}
    with pytest.raises(ToolFailed) as failed:
        await call_mcp(LET, configuration, secrets, "told", {})
    assert SECRET not in str(failed.value)
    assert "***" in str(failed.value)
    assert "knows ***" in {tool.description for tool in await list_tools(LET, configuration, secrets)}
    assert heard
    for one in heard:
        assert (one["x-plain"], one["x-key"], one["authorization"]) == ("1", SECRET, "Bearer abcdefgh-token")
    assert SECRET not in caplog.text
    with pytest.raises(ToolFailed, match="X-Key"):
        await call_mcp(LET, configuration, {}, "repeat", {})


async def test_an_mcp_server_is_guarded(here: Place):
    for outbound in (Outbound(), Outbound(("127.0.0.1:1",)), Outbound(resolve=names(inner_test="127.0.0.1"))):
        host = "inner.test" if outbound._resolve.__name__ == "resolve" else "127.0.0.1"
        for work in (list_tools, lambda *given: call_mcp(*given, "add", {})):
            began = time.monotonic()
            with pytest.raises(ToolFailed, match="refused"):
                await work(outbound, mcp(f"http://{host}:{here.port}/mcp"), {})
            assert time.monotonic() - began < 5
    assert here.connections == 0


async def test_a_redirect_to_elsewhere_is_not_followed(here: Place):
    async with place() as other:
        here.answer = lambda request: reply(status=307, location=f"{other.url}/mcp")
        with pytest.raises(ToolFailed):
            await list_tools(LET, mcp(here.url, secrets={"X-Key": "a"}), {"X-Key": SECRET})
        assert other.connections == 0


async def silent(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def dripping(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
    while not writer.is_closing():
        writer.write(b": still here\n\n")
        await writer.drain()
        await asyncio.sleep(0.05)


def flood(kind: bytes, piece: bytes) -> Callable[[asyncio.StreamWriter], Any]:
    async def flooding(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: " + kind + b"\r\n\r\n")
        while not writer.is_closing():
            writer.write(piece * 1000)
            await writer.drain()

    return flooding


EVENT = b'event: message\ndata: {"jsonrpc":"2.0","method":"notifications/message","params":{}}\n\n'


@pytest.mark.parametrize(
    "answer",
    [
        silent,
        dripping,
        flood(b"application/json", b"          "),
        flood(b"text/event-stream", EVENT),
        flood(b"text/event-stream", b"data: aaaaaaaaaaaaaaaaaa"),
        flood(b"text/event-stream", b"id: 1\nretry: 1\ndata:\n\n"),
        b"",
        b"\x00\x01garbage",
        reply(b"not json", content_type="application/json"),
        reply(b"[]", content_type="application/json"),
        reply(b'{"jsonrpc":"2.0","id":1,"result":{}}', content_type="application/json"),
        reply(b'{"jsonrpc":"2.0","id":99,"result":{}}', content_type="application/json"),
        reply(b"<html>", content_type="text/html"),
        reply(b"", 202),
        reply(b"", 404),
        reply(b"", 500),
        reply(b"", 401, www_authenticate="Bearer"),
        reply(b"id: 1\nretry: 1\ndata:\n\n", content_type="text/event-stream"),
        reply(gzip.compress(bytes(64 * 1024 * 1024)), content_type="application/json", content_encoding="gzip"),
    ],
)
async def test_servers_that_misbehave(here: Place, answer: Any):
    """Each ends in `ToolFailed` within the timeout, and with every connection closed."""
    here.answer = lambda request: answer
    began = time.monotonic()
    with pytest.raises(ToolFailed):
        await call_mcp(LET, mcp(here.url, timeout=1.5), {}, "add", {})
    assert time.monotonic() - began < 3
    await here.until_closed()


def scripted(here: Place, results: Callable[[str, dict[str, Any]], Any]) -> None:
    """A legacy server written by hand: `results(method, params)`; bytes are sent as they are."""

    def answer(request: Any) -> Any:
        if request.method != "POST":
            return results(request.method, {}) or reply(b"", 405)
        asked = json.loads(request.body)
        if "id" not in asked:
            return reply(b"", 202)
        if asked["method"] == "initialize":
            told: Any = {
                "protocolVersion": asked["params"]["protocolVersion"], "capabilities": {"tools": {}},
                "serverInfo": {"name": "x", "version": "1"},
            }  # fmt: skip
        else:
            told = results(asked["method"], asked.get("params") or {})
        if told is None:
            error = {"jsonrpc": "2.0", "id": asked["id"], "error": {"code": -32601, "message": f"no {SECRET}"}}
            return reply(json.dumps(error).encode(), content_type="application/json")
        if not isinstance(told, dict):
            return told
        body = json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": told}).encode()
        return reply(body, content_type="application/json", mcp_session_id="s1")

    here.answer = answer


def page(params: dict[str, Any], size: int = 30, last: int = 10**9) -> dict[str, Any]:
    at = int(params.get("cursor") or 0)
    tools = [{"name": f"t{at}-{n}", "inputSchema": {"type": "object"}} for n in range(size)]
    return {"tools": tools, **({"nextCursor": str(at + 1)} if at < last else {})}


async def test_pages_of_tools(here: Place):
    scripted(here, lambda method, params: page(params, last=2) if method == "tools/list" else None)
    assert len(await list_tools(LET, mcp(here.url), {})) == 90
    scripted(here, lambda method, params: page(params) if method == "tools/list" else None)
    here.requests.clear()
    assert len(await list_tools(LET, mcp(here.url), {})) == 200
    assert sum(b"tools/list" in one.body for one in here.requests) == 7
    here.requests.clear()
    scripted(here, lambda method, params: page(params, size=0) if method == "tools/list" else None)
    assert await list_tools(LET, mcp(here.url), {}) == []
    assert len(here.requests) < 110


async def test_tools_that_cannot_be_offered_are_left_out(here: Place):
    tools = [
        {"name": "", "inputSchema": {"type": "object"}},
        {"name": "a" * 129, "inputSchema": {"type": "object"}},
        {"name": "a\nb", "inputSchema": {"type": "object"}},
        {"name": "leads-out", "inputSchema": {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1/"}}}},
        {"name": "good", "description": "a\x00", "inputSchema": {"type": "object"}},
    ]
    scripted(here, lambda method, params: {"tools": tools} if method == "tools/list" else None)
    [good] = await list_tools(LET, mcp(here.url), {})
    assert (good.name, good.description, good.parameters) == ("good", "a\ufffd", {"type": "object"})


async def test_packed_answers_are_not_unpacked(here: Place):
    """Nobody asked for them, and what comes out of them is not counted."""
    scripted(here, lambda method, params: {**page(params, last=0), "padding": "a" * 64_000_000})
    plain = here.answer

    def packed(request: Any) -> Any:
        told = plain(request)
        if isinstance(told, bytes) and b"padding" in told:
            return reply(
                gzip.compress(told.split(b"\r\n\r\n", 1)[1], 1),
                200,
                content_type="application/json",
                content_encoding="gzip",
            )
        return told

    here.answer = packed
    with pytest.raises(ToolFailed):
        await list_tools(LET, mcp(here.url), {})


async def test_output_schemas_are_not_run(here: Place):
    """A pattern that takes hours on this text, from the server whose text it is."""
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}
    tool = {"name": "evil", "inputSchema": {"type": "object"}, "outputSchema": schema}
    answers = {
        "tools/list": {"tools": [tool]},
        "tools/call": {"content": [], "structuredContent": {"a": "a" * 24 + "!"}},
    }
    scripted(here, lambda method, params: answers.get(method))
    began = time.monotonic()
    told = await call_mcp(LET, mcp(here.url), {}, "evil", {})
    assert told["structured_content"] == {"a": "a" * 24 + "!"}
    assert time.monotonic() - began < 1


async def test_errors_of_servers_do_not_show_secrets(here: Place):
    scripted(here, lambda method, params: None)
    with pytest.raises(ToolFailed, match=r"no \*\*\*"):
        await call_mcp(LET, mcp(here.url, secrets={"X-Key": "a"}), {"X-Key": SECRET}, "t", {})


async def test_a_server_that_does_not_take_a_goodbye(here: Place):
    """The answer is there before the session ends, and is what counts."""
    results = {"tools/call": {"content": [{"type": "text", "text": "here"}]}, "DELETE": silent, "GET": silent}
    scripted(here, lambda method, params: results.get(method))
    began = time.monotonic()
    assert (await call_mcp(LET, mcp(here.url), {}, "t", {}))["content"] == "here"
    assert (await call_mcp(LET, mcp(here.url, timeout=1), {}, "t", {}))["content"] == "here"
    assert time.monotonic() - began < 5
    assert "DELETE" in {one.method for one in here.requests}
    await here.until_closed()


async def test_sessions_are_ended(things: Any):
    url, _, methods = things
    methods.clear()
    await list_tools(LET, mcp(url), {})
    assert "POST" in methods
    assert ("DELETE" in methods) == ("GET" in methods)  # servers of the newest protocol have no sessions


async def test_cancelling_a_call_hangs_up(here: Place):
    results = {"tools/call": silent, "GET": silent, "DELETE": silent}
    scripted(here, lambda method, params: results.get(method))
    task = asyncio.create_task(call_mcp(LET, mcp(here.url, timeout=20), {}, "t", {}))
    while not any(b"tools/call" in one.body for one in here.requests):
        await asyncio.sleep(0.01)
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < 3
    await here.until_closed()


async def test_a_call_that_takes_too_long(things: Any):
    began = time.monotonic()
    with pytest.raises(ToolFailed, match=r"0\.8 seconds"):
        await call_mcp(LET, mcp(things[0], timeout=0.8), {}, "slow", {"seconds": 20})
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"url": None}, "configuration.url"),
        ({"url": "stdio:ls"}, "configuration.url"),
        ({"url": "https://a@b.test/"}, "configuration.url"),
        ({"url": "https://b.test/{a}"}, "configuration.url"),
        ({"command": "ls"}, "configuration.command"),
        ({"headers": {"Host": "a"}}, "configuration.headers.Host"),
        ({"secrets": {"X-A": ""}}, "configuration.secrets[...]"),
        ({"timeout": 301}, "configuration.timeout"),
    ],
)
def test_bad_configurations_of_mcp(change: dict[str, Any], field: str):
    sent = {"url": "https://a.test/mcp", **change}
    with pytest.raises(DomainError) as error:
        checked_mcp({name: value for name, value in sent.items() if value is not None})
    assert error.value.errors[0].field == field
