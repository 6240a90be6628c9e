"""Use MCP servers: the library's own under uvicorn, and servers that break the protocol."""

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
async def server() -> AsyncIterator[RecordingServer]:
    async with run_server() as server:
        yield server


def build_mcp_server() -> MCPServer:
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
    def explain() -> str:
        raise ToolError(f"not {SECRET}")

    @server.tool(name="with.dots")
    def dots() -> str:
        return "dotted"

    return server


@asynccontextmanager
async def run_mcp_server(**options: Any) -> AsyncIterator[tuple[str, list[dict[str, str]], list[str]]]:
    """Run the library's own server under uvicorn; yields its URL, and the headers and methods of its requests."""
    request_headers: list[dict[str, str]] = []
    methods: list[str] = []
    mcp_app = build_mcp_server().streamable_http_app(**options)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            request_headers.append({name.decode(): value.decode() for name, value in scope["headers"]})
            methods.append(scope["method"])
        await mcp_app(scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", ws="none", timeout_graceful_shutdown=1))
    running = asyncio.create_task(server.serve())
    try:
        while not server.started:
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}/mcp", request_headers, methods
    finally:
        server.should_exit = True
        await running


@pytest.fixture(scope="module")
async def mcp_server() -> AsyncIterator[tuple[str, list[dict[str, str]], list[str]]]:
    async with run_mcp_server() as mcp_server:
        yield mcp_server


def build_configuration(url: str, **more: Any) -> dict[str, Any]:
    return check_mcp_configuration({"url": url, "timeout": 10, **more})


OUTBOUND = Outbound(("127.0.0.1",))


async def test_tools_of_a_server_are_listed(mcp_server: Any):
    tools = {tool.name: tool for tool in await list_mcp_tools(OUTBOUND, build_configuration(mcp_server[0]), {})}
    assert set(tools) == {"add", "several", "fail", "big", "slow", "repeat", "explain", "with.dots"}
    assert tools["add"].description == "Adds numbers"
    assert set(tools["add"].parameters["properties"]) == {"a", "b"}
    assert tools["add"].parameters["type"] == "object"


async def test_tools_are_called(mcp_server: Any):
    configuration = build_configuration(mcp_server[0])
    assert await call_mcp_tool(OUTBOUND, configuration, {}, "add", {"a": 1, "b": 2}) == {
        "content": "3", "structured_content": {"result": 3},
    }  # fmt: skip
    assert (await call_mcp_tool(OUTBOUND, configuration, {}, "several", {}))["content"] == "one\n[image/png]\ntwo"
    assert (await call_mcp_tool(OUTBOUND, configuration, {}, "with.dots", {}))["content"] == "dotted"


@pytest.mark.parametrize(
    "options", [{"json_response": True}, {"stateless_http": True}, {"json_response": True, "stateless_http": True}]
)
async def test_every_transport_option_works(options: dict[str, Any]):
    async with run_mcp_server(**options) as (url, _, _):
        assert len(await list_mcp_tools(OUTBOUND, build_configuration(url), {})) == 8
        assert (await call_mcp_tool(OUTBOUND, build_configuration(url), {}, "add", {"a": 1, "b": 2}))["content"] == "3"


async def test_failing_tools_are_reported(mcp_server: Any):
    for name, args, message in [
        ("fail", {}, "it broke"),
        ("add", {"a": "x"}, "add"),
        ("nothing", {}, "nothing"),
    ]:
        with pytest.raises(ToolFailed, match=message):
            await call_mcp_tool(OUTBOUND, build_configuration(mcp_server[0]), {}, name, args)


async def test_long_answers_are_truncated(mcp_server: Any):
    result = await call_mcp_tool(OUTBOUND, build_configuration(mcp_server[0]), {}, "big", {"size": 300_000})
    assert (len(result["content"]), result["truncated"]) == (256 * 1024, True)
    assert "structured_content" not in result
    with pytest.raises(ToolFailed):
        await call_mcp_tool(OUTBOUND, build_configuration(mcp_server[0]), {}, "big", {"size": 8_000_000})


async def test_headers_and_secrets_are_sent_and_masked(mcp_server: Any, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    url, request_headers, _ = mcp_server
    request_headers.clear()
    configuration = build_configuration(url, headers={"X-Plain": "1"}, secrets={"X-Key": "one", "Authorization": "two"})
    secrets = {"X-Key": SECRET, "Authorization": "abcdefgh-token"}
    assert (await call_mcp_tool(OUTBOUND, configuration, secrets, "repeat", {}))["structured_content"] == {
        "***": "x *** y"
    }
    with pytest.raises(ToolFailed) as error:
        await call_mcp_tool(OUTBOUND, configuration, secrets, "explain", {})
    assert SECRET not in str(error.value)
    assert "***" in str(error.value)
    assert "knows ***" in {tool.description for tool in await list_mcp_tools(OUTBOUND, configuration, secrets)}
    assert request_headers
    for headers in request_headers:
        assert (headers["x-plain"], headers["x-key"], headers["authorization"]) == (
            "1",
            SECRET,
            "Bearer abcdefgh-token",
        )
    assert SECRET not in caplog.text
    with pytest.raises(ToolFailed, match="X-Key"):
        await call_mcp_tool(OUTBOUND, configuration, {}, "repeat", {})


async def test_mcp_server_respects_the_outbound_guard(server: RecordingServer):
    for outbound in (Outbound(), Outbound(("127.0.0.1:1",)), Outbound(resolve=build_resolver(inner_test="127.0.0.1"))):
        host = "inner.test" if outbound._resolve.__name__ == "resolve" else "127.0.0.1"
        for work in (list_mcp_tools, lambda *arguments: call_mcp_tool(*arguments, "add", {})):
            start = time.monotonic()
            with pytest.raises(ToolFailed, match="refused"):
                await work(outbound, build_configuration(f"http://{host}:{server.port}/mcp"), {})
            assert time.monotonic() - start < 5
    assert server.connection_count == 0


async def test_redirect_to_another_host_is_not_followed(server: RecordingServer):
    async with run_server() as other_server:
        server.answer = lambda request: build_reply(status=307, location=f"{other_server.url}/mcp")
        with pytest.raises(ToolFailed):
            await list_mcp_tools(OUTBOUND, build_configuration(server.url, secrets={"X-Key": "a"}), {"X-Key": SECRET})
        assert other_server.connection_count == 0


async def send_nothing(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def send_keep_alives(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
    while not writer.is_closing():
        writer.write(b": still here\n\n")
        await writer.drain()
        await asyncio.sleep(0.05)


def build_flood(kind: bytes, piece: bytes) -> Callable[[asyncio.StreamWriter], Any]:
    async def send_flood(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: " + kind + b"\r\n\r\n")
        while not writer.is_closing():
            writer.write(piece * 1000)
            await writer.drain()

    return send_flood


NOTIFICATION_EVENT = b'event: message\ndata: {"jsonrpc":"2.0","method":"notifications/message","params":{}}\n\n'


@pytest.mark.parametrize(
    "answer",
    [
        send_nothing,
        send_keep_alives,
        build_flood(b"application/json", b"          "),
        build_flood(b"text/event-stream", NOTIFICATION_EVENT),
        build_flood(b"text/event-stream", b"data: aaaaaaaaaaaaaaaaaa"),
        build_flood(b"text/event-stream", b"id: 1\nretry: 1\ndata:\n\n"),
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
async def test_misbehaving_servers_fail_the_call(server: RecordingServer, answer: Any):
    """End each call in `ToolFailed` within the timeout, with every connection closed."""
    server.answer = lambda request: answer
    start = time.monotonic()
    with pytest.raises(ToolFailed):
        await call_mcp_tool(OUTBOUND, build_configuration(server.url, timeout=1.5), {}, "add", {})
    assert time.monotonic() - start < 3
    await server.wait_until_closed()


def answer_as_server(server: RecordingServer, results: Callable[[str, dict[str, Any]], Any]) -> None:
    """Answer as a server of the older protocol with `results(method, params)`; bytes are sent unchanged."""

    def answer(request: Any) -> Any:
        if request.method != "POST":
            return results(request.method, {}) or build_reply(b"", 405)
        message = json.loads(request.body)
        if "id" not in message:
            return build_reply(b"", 202)
        if message["method"] == "initialize":
            result: Any = {
                "protocolVersion": message["params"]["protocolVersion"], "capabilities": {"tools": {}},
                "serverInfo": {"name": "x", "version": "1"},
            }  # fmt: skip
        else:
            result = results(message["method"], message.get("params") or {})
        if result is None:
            error = {"jsonrpc": "2.0", "id": message["id"], "error": {"code": -32601, "message": f"no {SECRET}"}}
            return build_reply(json.dumps(error).encode(), content_type="application/json")
        if not isinstance(result, dict):
            return result
        body = json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode()
        return build_reply(body, content_type="application/json", mcp_session_id="s1")

    server.answer = answer


def build_page(params: dict[str, Any], size: int = 30, last: int = 10**9) -> dict[str, Any]:
    page_number = int(params.get("cursor") or 0)
    tools = [{"name": f"t{page_number}-{n}", "inputSchema": {"type": "object"}} for n in range(size)]
    return {"tools": tools, **({"nextCursor": str(page_number + 1)} if page_number < last else {})}


async def test_pages_of_tools_are_read_up_to_a_limit(server: RecordingServer):
    answer_as_server(server, lambda method, params: build_page(params, last=2) if method == "tools/list" else None)
    assert len(await list_mcp_tools(OUTBOUND, build_configuration(server.url), {})) == 90
    answer_as_server(server, lambda method, params: build_page(params) if method == "tools/list" else None)
    server.requests.clear()
    assert len(await list_mcp_tools(OUTBOUND, build_configuration(server.url), {})) == 200
    assert sum(b"tools/list" in request.body for request in server.requests) == 7
    server.requests.clear()
    answer_as_server(server, lambda method, params: build_page(params, size=0) if method == "tools/list" else None)
    assert await list_mcp_tools(OUTBOUND, build_configuration(server.url), {}) == []
    assert len(server.requests) < 110


async def test_invalid_tool_entry_is_skipped_alone(server: RecordingServer):
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
        # These are accepted.
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
    warnings: list[tuple[str, str]] = []
    answer_as_server(
        server, lambda method, params: {"tools": tools, "_meta": 5, "nextCursor": 5} if method == "tools/list" else None
    )
    tool_by_name = {
        tool.name: tool
        for tool in await list_mcp_tools(
            OUTBOUND, build_configuration(server.url), {}, lambda *warning: warnings.append(warning)
        )
    }
    assert list(tool_by_name) == [
        "twice", "leads-out", "odd", "bare", "empty", "none", "upper", "refers", "half", "good"
    ]  # fmt: skip
    assert all(tool.parameters["type"] == "object" for tool in tool_by_name.values())
    assert (tool_by_name["good"].description, tool_by_name["good"].parameters) == ("a\ufffd", plain)
    assert (tool_by_name["half"].description, tool_by_name["half"].parameters["title"]) == ("half \ufffd", "😀")
    assert tool_by_name["leads-out"].parameters == {**plain, "properties": {"a": {}}}
    assert tool_by_name["bare"].parameters["properties"] == {"a": {"type": "string"}}
    skipped = {name for name, message in warnings if "left out" in message}
    assert skipped == {
        "number 1",
        repr("a" * 128),
        "'a\\nb'",
        "'text'",
        "'listed'",
        "number 6",
        "number 7",
        "number 8",
    }
    assert {name for name, _ in warnings} - skipped == {"'twice'", "'bare'", "'empty'", "'none'", "'refers'"}
    answer_as_server(server, lambda method, params: {"tools": [5] * 500} if method == "tools/list" else None)
    warnings.clear()
    assert (
        await list_mcp_tools(OUTBOUND, build_configuration(server.url), {}, lambda *warning: warnings.append(warning))
        == []
    )
    assert 0 < len(warnings) <= 20


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
async def test_unusual_content_is_accepted(server: RecordingServer, result: dict[str, Any], content: str):
    answer_as_server(server, lambda method, params: result if method == "tools/call" else None)
    assert (await call_mcp_tool(OUTBOUND, build_configuration(server.url), {}, "t", {}))["content"] == content


async def test_unpaired_surrogates_in_streams_are_replaced(server: RecordingServer):
    """Replace them as escapes and as bytes, in an event stream that arrives in pieces."""
    body = (
        b'{"jsonrpc":"2.0","id":%d,"result":{"content":[{"type":"text","text":"\\ud83d \xed\xa0\xbd \\ud83d\\ude00"}]}}'
    )

    def results(method: str, params: Any) -> Any:
        if method != "tools/call":
            return None
        number = json.loads(server.requests[-1].body)["id"]

        async def send_pieces(writer: asyncio.StreamWriter) -> None:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
            data = b"event: message\ndata: " + body % number + b"\n\n"
            for at in range(0, len(data), 7):
                writer.write(data[at : at + 7])
                await writer.drain()
                await asyncio.sleep(0)
            writer.close()

        return send_pieces

    answer_as_server(server, results)
    assert (await call_mcp_tool(OUTBOUND, build_configuration(server.url), {}, "t", {}))[
        "content"
    ] == "\ufffd \ufffd 😀"


@pytest.mark.parametrize(
    "body",
    [
        b'{"jsonrpc":"2.0","id":1,"result":5}',
        b'{"jsonrpc":"2.0"}',
        # The client waits 20 seconds for an answer with the id of its request.
        pytest.param(b'{"jsonrpc":"2.0","id":2,"result":{"tools":{"a":1}}}', marks=pytest.mark.slow),
        b"nothing",
        b"\xff\xfe",
        b"[" * 5000,
    ],
)
async def test_errors_hide_the_library(server: RecordingServer, body: bytes):
    def results(method: str, params: Any) -> Any:
        return build_reply(body, content_type="application/json") if method.startswith("tools/") else None

    answer_as_server(server, results)
    for work in (
        list_mcp_tools(OUTBOUND, build_configuration(server.url), {}),
        call_mcp_tool(OUTBOUND, build_configuration(server.url), {}, "t", {}),
    ):
        with pytest.raises(ToolFailed) as error:
            await work
        assert not any(word in str(error.value) for word in ("pydantic", "validation error", "union["))


@pytest.mark.parametrize("value", [b"[" * 200 + b"]" * 200, b"[" + b"0," * 400_000 + b"0]"])
@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
async def test_answers_that_would_block_the_reader_are_refused(server: RecordingServer, value: bytes, kind: str):
    def results(method: str, params: Any) -> Any:
        if method != "tools/call":
            return None
        number = json.loads(server.requests[-1].body)["id"]
        body = b'{"jsonrpc":"2.0","id":%d,"result":{"content":[],"structuredContent":{"a":%s}}}' % (number, value)
        return build_reply(body if kind.endswith("json") else b"data: " + body + b"\n\n", content_type=kind)

    answer_as_server(server, results)
    with pytest.raises(ToolFailed, match="sends too much"):
        await call_mcp_tool(OUTBOUND, build_configuration(server.url), {}, "t", {})


async def test_errors_of_servers_are_shortened(server: RecordingServer):
    error_text = (
        "1 validation error for addArguments\na\n  Input should be a number\n    For further information visit "
    )
    error_text += "https://errors.pydantic.dev/2.11/v/int_parsing"
    failing = {"content": [{"type": "text", "text": error_text}], "isError": True}
    answer_as_server(server, lambda method, params: failing if method == "tools/call" else None)
    with pytest.raises(ToolFailed, match="Input should be a number$"):
        await call_mcp_tool(OUTBOUND, build_configuration(server.url), {}, "t", {})


async def test_compressed_answers_are_refused(server: RecordingServer):
    """Refuse them, as they were not requested and their decompressed size is not counted."""
    answer_as_server(server, lambda method, params: {**build_page(params, last=0), "padding": "a" * 64_000_000})
    answer_plainly = server.answer

    def answer_compressed(request: Any) -> Any:
        answer = answer_plainly(request)
        if isinstance(answer, bytes) and b"padding" in answer:
            return build_reply(
                gzip.compress(answer.split(b"\r\n\r\n", 1)[1], 1),
                200,
                content_type="application/json",
                content_encoding="gzip",
            )
        return answer

    server.answer = answer_compressed
    with pytest.raises(ToolFailed):
        await list_mcp_tools(OUTBOUND, build_configuration(server.url), {})


async def test_output_schemas_are_not_checked(server: RecordingServer):
    """Skip a pattern that takes hours on this text, as both are from the server."""
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}}
    tool = {"name": "evil", "inputSchema": {"type": "object"}, "outputSchema": schema}
    answers = {
        "tools/list": {"tools": [tool]},
        "tools/call": {"content": [], "structuredContent": {"a": "a" * 24 + "!"}},
    }
    answer_as_server(server, lambda method, params: answers.get(method))
    start = time.monotonic()
    result = await call_mcp_tool(OUTBOUND, build_configuration(server.url), {}, "evil", {})
    assert result["structured_content"] == {"a": "a" * 24 + "!"}
    assert time.monotonic() - start < 1


async def test_errors_of_servers_do_not_show_secrets(server: RecordingServer):
    answer_as_server(server, lambda method, params: None)
    with pytest.raises(ToolFailed, match=r"no \*\*\*"):
        await call_mcp_tool(
            OUTBOUND, build_configuration(server.url, secrets={"X-Key": "a"}), {"X-Key": SECRET}, "t", {}
        )


async def test_server_that_ignores_the_end_of_a_session(server: RecordingServer):
    """Return the answer that arrived before the session ended."""
    results = {
        "tools/call": {"content": [{"type": "text", "text": "here"}]},
        "DELETE": send_nothing,
        "GET": send_nothing,
    }
    answer_as_server(server, lambda method, params: results.get(method))
    start = time.monotonic()
    assert (await call_mcp_tool(OUTBOUND, build_configuration(server.url), {}, "t", {}))["content"] == "here"
    assert (await call_mcp_tool(OUTBOUND, build_configuration(server.url, timeout=1), {}, "t", {}))["content"] == "here"
    assert time.monotonic() - start < 5
    assert "DELETE" in {request.method for request in server.requests}
    await server.wait_until_closed()


async def test_sessions_are_ended(mcp_server: Any):
    url, _, methods = mcp_server
    methods.clear()
    await list_mcp_tools(OUTBOUND, build_configuration(url), {})
    assert "POST" in methods
    assert ("DELETE" in methods) == ("GET" in methods)  # servers of the newest protocol have no sessions


async def test_cancelled_call_hangs_up(server: RecordingServer):
    results = {"tools/call": send_nothing, "GET": send_nothing, "DELETE": send_nothing}
    answer_as_server(server, lambda method, params: results.get(method))
    task = asyncio.create_task(call_mcp_tool(OUTBOUND, build_configuration(server.url, timeout=20), {}, "t", {}))
    while not any(b"tools/call" in request.body for request in server.requests):
        await asyncio.sleep(0.01)
    start = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - start < 3
    await server.wait_until_closed()


async def test_slow_call_times_out(mcp_server: Any):
    start = time.monotonic()
    with pytest.raises(ToolFailed, match=r"0\.8 seconds"):
        await call_mcp_tool(OUTBOUND, build_configuration(mcp_server[0], timeout=0.8), {}, "slow", {"seconds": 20})
    assert time.monotonic() - start < 2


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
def test_invalid_configurations_are_refused(change: dict[str, Any], field: str):
    configuration = {"url": "https://a.test/mcp", **change}
    with pytest.raises(DomainError) as error:
        check_mcp_configuration({name: value for name, value in configuration.items() if value is not None})
    assert error.value.errors[0].field == field
