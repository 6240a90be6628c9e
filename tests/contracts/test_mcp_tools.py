"""MCP servers: the package's own under uvicorn, and those that do not keep to the protocol."""

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

from domain.llms import ToolFailed
from domain.shared.errors import DomainError
from domain.tools import check_mcp_configuration
from infra.http import Outbound
from infra.tools.mcp import call_mcp_tool, list_mcp_tools
from tests.support.outbound_servers import RecordingServer, build_reply, build_resolver, run_server

SECRET = "sk-very-secret-0123456789"


@pytest.fixture
async def here() -> AsyncIterator[RecordingServer]:
    async with run_server() as one:
        yield one


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
    return check_mcp_configuration({"url": url, "timeout": 10, **more})


LET = Outbound(("127.0.0.1",))


async def test_tools_of_a_server(things: Any):
    tools = {tool.name: tool for tool in await list_mcp_tools(LET, mcp(things[0]), {})}
    assert set(tools) == {"add", "several", "fail", "big", "slow", "repeat", "told", "with.dots"}
    assert tools["add"].description == "Adds numbers"
    assert set(tools["add"].parameters["properties"]) == {"a", "b"}
    assert tools["add"].parameters["type"] == "object"


async def test_calls(things: Any):
    configuration = mcp(things[0])
    assert await call_mcp_tool(LET, configuration, {}, "add", {"a": 1, "b": 2}) == {
        "content": "3", "structured_content": {"result": 3},
    }  # fmt: skip
    assert (await call_mcp_tool(LET, configuration, {}, "several", {}))["content"] == "one\n[image/png]\ntwo"
    assert (await call_mcp_tool(LET, configuration, {}, "with.dots", {}))["content"] == "dotted"


@pytest.mark.parametrize(
    "how", [{"json_response": True}, {"stateless_http": True}, {"json_response": True, "stateless_http": True}]
)
async def test_servers_of_every_kind(how: dict[str, Any]):
    async with mcp_server(**how) as (url, _, _):
        assert len(await list_mcp_tools(LET, mcp(url), {})) == 8
        assert (await call_mcp_tool(LET, mcp(url), {}, "add", {"a": 1, "b": 2}))["content"] == "3"


async def test_failures_of_tools(things: Any):
    for name, args, says in [
        ("fail", {}, "it broke"),
        ("add", {"a": "x"}, "add"),
        ("nothing", {}, "nothing"),
    ]:
        with pytest.raises(ToolFailed, match=says):
            await call_mcp_tool(LET, mcp(things[0]), {}, name, args)


async def test_long_answers_of_tools_are_cut(things: Any):
    told = await call_mcp_tool(LET, mcp(things[0]), {}, "big", {"size": 300_000})
    assert (len(told["content"]), told["truncated"]) == (256 * 1024, True)
    assert "structured_content" not in told
    with pytest.raises(ToolFailed):
        await call_mcp_tool(LET, mcp(things[0]), {}, "big", {"size": 8_000_000})


async def test_headers_and_secrets(things: Any, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    url, heard, _ = things
    heard.clear()
    configuration = mcp(url, headers={"X-Plain": "1"}, secrets={"X-Key": "one", "Authorization": "two"})
    secrets = {"X-Key": SECRET, "Authorization": "abcdefgh-token"}
    assert (await call_mcp_tool(LET, configuration, secrets, "repeat", {}))["structured_content"] == {"***": "x *** y"}
    with pytest.raises(ToolFailed) as failed:
        await call_mcp_tool(LET, configuration, secrets, "told", {})
    assert SECRET not in str(failed.value)
    assert "***" in str(failed.value)
    assert "knows ***" in {tool.description for tool in await list_mcp_tools(LET, configuration, secrets)}
    assert heard
    for one in heard:
        assert (one["x-plain"], one["x-key"], one["authorization"]) == ("1", SECRET, "Bearer abcdefgh-token")
    assert SECRET not in caplog.text
    with pytest.raises(ToolFailed, match="X-Key"):
        await call_mcp_tool(LET, configuration, {}, "repeat", {})


async def test_an_mcp_server_is_guarded(here: RecordingServer):
    for outbound in (Outbound(), Outbound(("127.0.0.1:1",)), Outbound(resolve=build_resolver(inner_test="127.0.0.1"))):
        host = "inner.test" if outbound._resolve.__name__ == "resolve" else "127.0.0.1"
        for work in (list_mcp_tools, lambda *given: call_mcp_tool(*given, "add", {})):
            began = time.monotonic()
            with pytest.raises(ToolFailed, match="refused"):
                await work(outbound, mcp(f"http://{host}:{here.port}/mcp"), {})
            assert time.monotonic() - began < 5
    assert here.connection_count == 0


async def test_a_redirect_to_elsewhere_is_not_followed(here: RecordingServer):
    async with run_server() as other:
        here.answer = lambda request: build_reply(status=307, location=f"{other.url}/mcp")
        with pytest.raises(ToolFailed):
            await list_mcp_tools(LET, mcp(here.url, secrets={"X-Key": "a"}), {"X-Key": SECRET})
        assert other.connection_count == 0


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
        build_reply(b"not json", content_type="application/json"),
        build_reply(b"[]", content_type="application/json"),
        build_reply(b'{"jsonrpc":"2.0","id":1,"result":{}}', content_type="application/json"),
        build_reply(b'{"jsonrpc":"2.0","id":99,"result":{}}', content_type="application/json"),
        build_reply(b"<html>", content_type="text/html"),
        build_reply(b"", 202),
        build_reply(b"", 404),
        build_reply(b"", 500),
        build_reply(b"", 401, www_authenticate="Bearer"),
        build_reply(b"id: 1\nretry: 1\ndata:\n\n", content_type="text/event-stream"),
        build_reply(gzip.compress(bytes(64 * 1024 * 1024)), content_type="application/json", content_encoding="gzip"),
    ],
)
async def test_servers_that_misbehave(here: RecordingServer, answer: Any):
    """Each ends in `ToolFailed` within the timeout, and with every connection closed."""
    here.answer = lambda request: answer
    began = time.monotonic()
    with pytest.raises(ToolFailed):
        await call_mcp_tool(LET, mcp(here.url, timeout=1.5), {}, "add", {})
    assert time.monotonic() - began < 3
    await here.wait_until_closed()


def scripted(here: RecordingServer, results: Callable[[str, dict[str, Any]], Any]) -> None:
    """A legacy server written by hand: `results(method, params)`; bytes are sent as they are."""

    def answer(request: Any) -> Any:
        if request.method != "POST":
            return results(request.method, {}) or build_reply(b"", 405)
        asked = json.loads(request.body)
        if "id" not in asked:
            return build_reply(b"", 202)
        if asked["method"] == "initialize":
            told: Any = {
                "protocolVersion": asked["params"]["protocolVersion"], "capabilities": {"tools": {}},
                "serverInfo": {"name": "x", "version": "1"},
            }  # fmt: skip
        else:
            told = results(asked["method"], asked.get("params") or {})
        if told is None:
            error = {"jsonrpc": "2.0", "id": asked["id"], "error": {"code": -32601, "message": f"no {SECRET}"}}
            return build_reply(json.dumps(error).encode(), content_type="application/json")
        if not isinstance(told, dict):
            return told
        body = json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": told}).encode()
        return build_reply(body, content_type="application/json", mcp_session_id="s1")

    here.answer = answer


def page(params: dict[str, Any], size: int = 30, last: int = 10**9) -> dict[str, Any]:
    at = int(params.get("cursor") or 0)
    tools = [{"name": f"t{at}-{n}", "inputSchema": {"type": "object"}} for n in range(size)]
    return {"tools": tools, **({"nextCursor": str(at + 1)} if at < last else {})}


async def test_pages_of_tools(here: RecordingServer):
    scripted(here, lambda method, params: page(params, last=2) if method == "tools/list" else None)
    assert len(await list_mcp_tools(LET, mcp(here.url), {})) == 90
    scripted(here, lambda method, params: page(params) if method == "tools/list" else None)
    here.requests.clear()
    assert len(await list_mcp_tools(LET, mcp(here.url), {})) == 200
    assert sum(b"tools/list" in one.body for one in here.requests) == 7
    here.requests.clear()
    scripted(here, lambda method, params: page(params, size=0) if method == "tools/list" else None)
    assert await list_mcp_tools(LET, mcp(here.url), {}) == []
    assert len(here.requests) < 110


async def test_a_bad_entry_costs_that_entry(here: RecordingServer):
    plain = {"type": "object"}
    tools = [
        {"name": "", "inputSchema": plain},
        {"name": "a" * 129, "inputSchema": plain},
        {"name": "a\nb", "inputSchema": plain},
        {"name": "text", "inputSchema": "object"},
        {"name": "listed", "inputSchema": {"type": "array"}},
        {"inputSchema": plain},
        "tool",
        None,
        {"name": "twice", "inputSchema": plain},
        {"name": "twice", "inputSchema": plain},
        # These are taken.
        {"name": "leads-out", "inputSchema": {**plain, "properties": {"a": {"$ref": "http://127.0.0.1/"}}}},
        {"name": "odd", "description": 5, "outputSchema": "x", "annotations": [], "icons": 1, "inputSchema": plain},
        {"name": "bare", "inputSchema": {"properties": {"a": {"type": "string"}}}},
        {"name": "empty", "inputSchema": {}},
        {"name": "none"},
        {"name": "upper", "inputSchema": {"type": "OBJECT"}},
        {"name": "refers", "inputSchema": {"$ref": "#/$defs/a", "$defs": {"a": plain}}},
        {"name": "half", "description": "half \ud83d", "inputSchema": {**plain, "title": "\ud83d\ude00"}},
        {"name": "good", "description": "a\x00", "inputSchema": plain},
    ]
    told: list[tuple[str, str]] = []
    scripted(
        here, lambda method, params: {"tools": tools, "_meta": 5, "nextCursor": 5} if method == "tools/list" else None
    )
    found = {tool.name: tool for tool in await list_mcp_tools(LET, mcp(here.url), {}, lambda *one: told.append(one))}
    assert list(found) == [
        "twice", "leads-out", "odd", "bare", "empty", "none", "upper", "refers", "half", "good"
    ]  # fmt: skip
    assert all(tool.parameters["type"] == "object" for tool in found.values())
    assert (found["good"].description, found["good"].parameters) == ("a\ufffd", plain)
    assert (found["half"].description, found["half"].parameters["title"]) == ("half \ufffd", "😀")
    assert found["leads-out"].parameters == {**plain, "properties": {"a": {}}}
    assert found["bare"].parameters["properties"] == {"a": {"type": "string"}}
    left_out = {name for name, message in told if "left out" in message}
    assert left_out == {
        "number 1",
        repr("a" * 128),
        "'a\\nb'",
        "'text'",
        "'listed'",
        "number 6",
        "number 7",
        "number 8",
    }
    assert {name for name, _ in told} - left_out == {"'twice'", "'bare'", "'empty'", "'none'", "'refers'"}
    scripted(here, lambda method, params: {"tools": [5] * 500} if method == "tools/list" else None)
    told.clear()
    assert await list_mcp_tools(LET, mcp(here.url), {}, lambda *one: told.append(one)) == []
    assert 0 < len(told) <= 20


@pytest.mark.parametrize(
    ("result", "content"),
    [
        ({"content": [{"type": "text", "text": "half \ud83d"}]}, "half \ufffd"),
        ({"content": [{"type": "text", "text": "\ud83d\ude00"}]}, "😀"),
        ({"content": [{"type": "text", "text": 5}, {"type": "text"}, None, "plain"]}, "5\n\nnull\nplain"),
        ({"content": {"type": "text", "text": "alone"}}, "alone"),
        ({"content": "plain"}, "plain"),
        ({"content": None}, ""),
        ({"content": [{"type": "video", "data": 5}, {"type": "image"}, {"type": 5}]}, '[video]\n[image]\n{"type":5}'),
        ({"content": [{"type": "resource", "resource": {"text": "t"}}, {"type": "resource"}]}, "t\n[resource]"),
        ({"content": [], "structuredContent": [1, 2]}, "[1,2]"),
        ({"content": [{"type": "text", "text": "a"}], "isError": None, "_meta": 5}, "a"),
    ],
)
async def test_odd_content_costs_no_answer(here: RecordingServer, result: dict[str, Any], content: str):
    scripted(here, lambda method, params: result if method == "tools/call" else None)
    assert (await call_mcp_tool(LET, mcp(here.url), {}, "t", {}))["content"] == content


async def test_halves_of_characters_in_streams(here: RecordingServer):
    """As escapes and as bytes, in an event stream that comes in pieces."""
    body = (
        b'{"jsonrpc":"2.0","id":%d,"result":{"content":[{"type":"text","text":"\\ud83d \xed\xa0\xbd \\ud83d\\ude00"}]}}'
    )

    def results(method: str, params: Any) -> Any:
        if method != "tools/call":
            return None
        number = json.loads(here.requests[-1].body)["id"]

        async def pieces(writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
            data = b"event: message\ndata: " + body % number + b"\n\n"
            for at in range(0, len(data), 7):
                writer.write(data[at : at + 7])
                await writer.drain()
                await asyncio.sleep(0)
            writer.close()

        return pieces

    scripted(here, results)
    assert (await call_mcp_tool(LET, mcp(here.url), {}, "t", {}))["content"] == "\ufffd \ufffd 😀"


@pytest.mark.parametrize(
    "body",
    [
        b'{"jsonrpc":"2.0","id":1,"result":5}',
        b'{"jsonrpc":"2.0"}',
        b'{"jsonrpc":"2.0","id":2,"result":{"tools":{"a":1}}}',
        b"nothing",
        b"\xff\xfe",
        b"[" * 5000,
    ],
)
async def test_failures_tell_nothing_of_the_library(here: RecordingServer, body: bytes):
    def results(method: str, params: Any) -> Any:
        return build_reply(body, content_type="application/json") if method.startswith("tools/") else None

    scripted(here, results)
    for work in (list_mcp_tools(LET, mcp(here.url), {}), call_mcp_tool(LET, mcp(here.url), {}, "t", {})):
        with pytest.raises(ToolFailed) as failed:
            await work
        assert not any(word in str(failed.value) for word in ("pydantic", "validation error", "union["))


@pytest.mark.parametrize("value", [b"[" * 200 + b"]" * 200, b"[" + b"0," * 400_000 + b"0]"])
@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
async def test_answers_that_would_keep_their_reader_busy(here: RecordingServer, value: bytes, kind: str):
    def results(method: str, params: Any) -> Any:
        if method != "tools/call":
            return None
        number = json.loads(here.requests[-1].body)["id"]
        body = b'{"jsonrpc":"2.0","id":%d,"result":{"content":[],"structuredContent":{"a":%s}}}' % (number, value)
        return build_reply(body if kind.endswith("json") else b"data: " + body + b"\n\n", content_type=kind)

    scripted(here, results)
    with pytest.raises(ToolFailed, match="sends too much"):
        await call_mcp_tool(LET, mcp(here.url), {}, "t", {})


async def test_failures_of_servers_come_without_advertisements(here: RecordingServer):
    told = "1 validation error for addArguments\na\n  Input should be a number\n    For further information visit "
    told += "https://errors.pydantic.dev/2.11/v/int_parsing"
    failing = {"content": [{"type": "text", "text": told}], "isError": True}
    scripted(here, lambda method, params: failing if method == "tools/call" else None)
    with pytest.raises(ToolFailed, match="Input should be a number$"):
        await call_mcp_tool(LET, mcp(here.url), {}, "t", {})


async def test_packed_answers_are_not_unpacked(here: RecordingServer):
    """Nobody asked for them, and what comes out of them is not counted."""
    scripted(here, lambda method, params: {**page(params, last=0), "padding": "a" * 64_000_000})
    plain = here.answer

    def packed(request: Any) -> Any:
        told = plain(request)
        if isinstance(told, bytes) and b"padding" in told:
            return build_reply(
                gzip.compress(told.split(b"\r\n\r\n", 1)[1], 1),
                200,
                content_type="application/json",
                content_encoding="gzip",
            )
        return told

    here.answer = packed
    with pytest.raises(ToolFailed):
        await list_mcp_tools(LET, mcp(here.url), {})


async def test_output_schemas_are_not_run(here: RecordingServer):
    """A pattern that takes hours on this text, from the server whose text it is."""
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}
    tool = {"name": "evil", "inputSchema": {"type": "object"}, "outputSchema": schema}
    answers = {
        "tools/list": {"tools": [tool]},
        "tools/call": {"content": [], "structuredContent": {"a": "a" * 24 + "!"}},
    }
    scripted(here, lambda method, params: answers.get(method))
    began = time.monotonic()
    told = await call_mcp_tool(LET, mcp(here.url), {}, "evil", {})
    assert told["structured_content"] == {"a": "a" * 24 + "!"}
    assert time.monotonic() - began < 1


async def test_errors_of_servers_do_not_show_secrets(here: RecordingServer):
    scripted(here, lambda method, params: None)
    with pytest.raises(ToolFailed, match=r"no \*\*\*"):
        await call_mcp_tool(LET, mcp(here.url, secrets={"X-Key": "a"}), {"X-Key": SECRET}, "t", {})


async def test_a_server_that_does_not_take_a_goodbye(here: RecordingServer):
    """The answer is there before the session ends, and is what counts."""
    results = {"tools/call": {"content": [{"type": "text", "text": "here"}]}, "DELETE": silent, "GET": silent}
    scripted(here, lambda method, params: results.get(method))
    began = time.monotonic()
    assert (await call_mcp_tool(LET, mcp(here.url), {}, "t", {}))["content"] == "here"
    assert (await call_mcp_tool(LET, mcp(here.url, timeout=1), {}, "t", {}))["content"] == "here"
    assert time.monotonic() - began < 5
    assert "DELETE" in {one.method for one in here.requests}
    await here.wait_until_closed()


async def test_sessions_are_ended(things: Any):
    url, _, methods = things
    methods.clear()
    await list_mcp_tools(LET, mcp(url), {})
    assert "POST" in methods
    assert ("DELETE" in methods) == ("GET" in methods)  # servers of the newest protocol have no sessions


async def test_cancelling_a_call_hangs_up(here: RecordingServer):
    results = {"tools/call": silent, "GET": silent, "DELETE": silent}
    scripted(here, lambda method, params: results.get(method))
    task = asyncio.create_task(call_mcp_tool(LET, mcp(here.url, timeout=20), {}, "t", {}))
    while not any(b"tools/call" in one.body for one in here.requests):
        await asyncio.sleep(0.01)
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < 3
    await here.wait_until_closed()


async def test_a_call_that_takes_too_long(things: Any):
    began = time.monotonic()
    with pytest.raises(ToolFailed, match=r"0\.8 seconds"):
        await call_mcp_tool(LET, mcp(things[0], timeout=0.8), {}, "slow", {"seconds": 20})
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
        ({"secrets": {"X-A": ""}}, "configuration.secrets.X-A"),
        ({"timeout": 301}, "configuration.timeout"),
    ],
)
def test_bad_configurations_of_mcp(change: dict[str, Any], field: str):
    sent = {"url": "https://a.test/mcp", **change}
    with pytest.raises(DomainError) as error:
        check_mcp_configuration({name: value for name, value in sent.items() if value is not None})
    assert error.value.errors[0].field == field
