"""List and call the tools of MCP servers over streamable HTTP.

A connection lives for one call. The answers of a server are limited in time and bytes, and its output schemas are not
used: a regular expression in one could keep this process busy for hours.
"""

import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeVar

import anyio
import httpx2
import mcp_types
import msgspec
import structlog
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from msgspec import UNSET, UnsetType
from pydantic import ValidationError

from domain.llms import ToolFailed, ToolSpec
from domain.shared.json_limits import JsonTooLarge, check_json
from domain.shared.unicode_text import repair_json
from domain.tools import McpServerConfiguration
from infra.http import Outbound, OutboundRefused
from infra.tools.custom import (
    build_headers,
    clean_and_mask,
    clean_json,
    list_secret_texts,
    mask_secrets,
    walk_in_thread,
)
from infra.tools.http_request import MAX_RESPONSE_BYTES, clean_text
from infra.tools.mcp_results import MAX_DESCRIPTION_CHARACTERS, LenientDispatcher, WarnAboutTool
from infra.version import PADDOCK_VERSION

MAX_SERVER_TOOLS: Final = 200
MAX_LIST_PAGES: Final = 100
MAX_SERVER_BYTES: Final = 4 * 1024 * 1024  # of all answers in one call
MAX_ERROR_CHARACTERS: Final = 2000
# A server that does not close its session must not delay the answer.
CLOSE_TIMEOUTS: Final = {"connect": 2.0, "read": 2.0, "write": 2.0, "pool": 2.0}

_PROTOCOL_ERROR: Final = "The server's answer does not follow the MCP protocol."
_LIBRARY_HINT: Final = re.compile(r"\s*For further information visit https://errors\.pydantic\.dev/\S*")

T = TypeVar("T")
_log = structlog.get_logger("paddock.tools")
# These loggers print the answers of servers, which may repeat our secrets.
for _noisy in ("mcp", "client"):
    logging.getLogger(_noisy).setLevel(logging.CRITICAL)


async def list_mcp_tools(
    outbound: Outbound,
    configuration: dict[str, Any],
    secrets: dict[str, str],
    warn: WarnAboutTool | None = None,
) -> list[ToolSpec]:
    """List at most 200 tools of a server, under the server's names of up to 128 characters.

    Model providers may not accept these names, so the caller maps them. `configuration` was checked before; `secrets`
    are the values of its secret headers by name. `warn` is called for entries that are left out or changed.
    Errors: `ToolFailed`.
    """

    async def work(client: Client) -> list[mcp_types.Tool]:
        _read_leniently(client, warn)
        tools: list[mcp_types.Tool] = []
        cursor = None
        for _ in range(MAX_LIST_PAGES):
            page = await client.list_tools(cursor=cursor)
            tools += page.tools
            cursor = page.next_cursor
            if cursor is None or len(tools) >= MAX_SERVER_TOOLS:
                break
        return tools[:MAX_SERVER_TOOLS]

    specs: dict[str, ToolSpec] = {}
    for tool in await _run_session(outbound, configuration, secrets, work):
        if tool.name in specs:
            if warn is not None:
                warn(repr(tool.name), "is listed twice; the first entry is used.")
            continue
        about = clean_text(tool.description or "")[:MAX_DESCRIPTION_CHARACTERS]
        described = mask_secrets(
            clean_json({"description": about, "parameters": tool.input_schema}), list_secret_texts(secrets)
        )
        specs[tool.name] = ToolSpec(name=tool.name, **described)
    return list(specs.values())


def _read_leniently(client: Client, warn: WarnAboutTool | None = None) -> None:
    """Make the client skip only invalid entries. The library has no hook to repair results."""
    client.session._dispatcher = LenientDispatcher(client.session._dispatcher, warn)


async def call_mcp_tool(
    outbound: Outbound, configuration: dict[str, Any], secrets: dict[str, str], name: str, args: dict[str, Any]
) -> dict[str, Any]:
    """Call a tool by the server's name for it; return `{content}`, and `structured_content` if the server sends it.

    The texts of the answer are joined by line breaks and cut after 256 KiB; larger structured content is left out. Both
    set `truncated: true`. Errors: `ToolFailed`, also if the tool reports an error.
    """

    async def work(client: Client) -> mcp_types.CallToolResult:
        _read_leniently(client)
        client.session.validate_tool_result = _skip_result_check  # type: ignore[method-assign,assignment]
        return await client.call_tool(name, args)

    result = await _run_session(outbound, configuration, secrets, work)
    hidden = list_secret_texts(secrets)
    text = mask_secrets(clean_text("\n".join(piece.text for piece in result.content if piece.type == "text")), hidden)
    if result.is_error:
        raise ToolFailed(f"The tool failed: {_strip_hints(text)[:MAX_ERROR_CHARACTERS] or 'no message'}")
    answer: dict[str, Any] = {"content": text[:MAX_RESPONSE_BYTES]}
    truncated = len(text) > MAX_RESPONSE_BYTES
    if result.structured_content is not None:
        size = len(msgspec.json.encode(result.structured_content))
        if size > MAX_RESPONSE_BYTES:
            truncated = True
        else:
            answer["structured_content"] = await walk_in_thread(size, clean_and_mask, result.structured_content, hidden)
    return {**answer, "truncated": True} if truncated else answer


async def _skip_result_check(_name: str, _result: mcp_types.CallToolResult) -> None:
    """Replace the client's check of an answer against a schema of the same server."""


async def _run_session(
    outbound: Outbound,
    configuration: dict[str, Any],
    secrets: dict[str, str],
    work: Callable[[Client], Awaitable[T]],
) -> T:
    server = msgspec.convert(configuration, McpServerConfiguration)
    http = outbound.create_httpx2_client(timeout=server.timeout)
    http.headers.update(build_headers(server.headers, server.secrets, secrets))
    meter = _AnswerMeter()
    # The size of compressed answers could only be counted after decompression.
    http.headers["accept-encoding"] = "identity"
    http.event_hooks = {"request": [_shorten_close], "response": [meter.attach]}
    result: T | UnsetType = UNSET
    try:
        # anyio's timeout also limits the client's work while it closes.
        with anyio.fail_after(server.timeout):
            async with http, _create_client(server, http) as client:
                result = await work(client)
    except Exception as error:  # a client raises many errors for a server that breaks the protocol
        if result is UNSET:
            message = "The server sends too much." if meter.full else _describe_error(error, server.timeout)
            raise ToolFailed(mask_secrets(message, list_secret_texts(secrets))) from None
    if result is UNSET:
        raise ToolFailed("The server closed the connection.")
    return result


def _create_client(server: McpServerConfiguration, http: httpx2.AsyncClient) -> Client:
    return Client(
        streamable_http_client(server.url, http_client=http),
        read_timeout_seconds=server.timeout,
        client_info=mcp_types.Implementation(name="paddock", version=PADDOCK_VERSION),
        cache=None,
    )


def _describe_error(error: BaseException, seconds: float) -> str:
    """Return the error in words for the model. Task groups wrap errors in nested groups."""
    leaves = list(_list_leaves(error))
    for leaf in leaves:
        if isinstance(leaf, OutboundRefused):
            return str(leaf)
        if isinstance(leaf, MCPError):
            if leaf.code == mcp_types.PARSE_ERROR and leaf.message.startswith("Failed to parse"):
                return _PROTOCOL_ERROR  # an error of our own library
            return f"The server answered: {_strip_hints(clean_text(leaf.message))[:MAX_ERROR_CHARACTERS]}"
        if isinstance(leaf, TimeoutError | httpx2.TimeoutException):
            return f"The server did not answer within {seconds:g} seconds."
        if isinstance(leaf, httpx2.ConnectError):
            return "The server cannot be reached."
        if isinstance(leaf, ValidationError):
            return _PROTOCOL_ERROR
    _log.warning("unexpected error of an MCP server", errors=[type(leaf).__name__ for leaf in leaves])
    return "The server's answer is invalid HTTP, does not follow the MCP protocol, or was cut off."


def _list_leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _list_leaves(inner)]
    return [error]


def _strip_hints(text: str) -> str:
    """Return an error message without the library's hints."""
    return _LIBRARY_HINT.sub("", text).strip()


async def _shorten_close(request: httpx2.Request) -> None:
    if request.method == "DELETE":
        request.extensions["timeout"] = CLOSE_TIMEOUTS


class _McpAnswerTooLarge(httpx2.StreamError):
    """Report more than `MAX_SERVER_BYTES`, or a compressed answer although none was requested."""


class _AnswerMeter:
    """Count the bytes of all answers of a server."""

    def __init__(self) -> None:
        self.left, self.full = MAX_SERVER_BYTES, False

    async def attach(self, response: httpx2.Response) -> None:
        """Count an answer's body while it is read. Errors: `_McpAnswerTooLarge`."""
        if response.headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
            raise _McpAnswerTooLarge("packed")
        if isinstance(response.stream, httpx2.AsyncByteStream):
            kind = response.headers.get("content-type", "").lower()
            response.stream = _MeteredStream(response.stream, self, in_lines=kind.startswith("text/event-stream"))

    def count(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            self.full = True
            raise _McpAnswerTooLarge("too much")


class _MeteredStream(httpx2.AsyncByteStream):
    """Count a body, and repair lone surrogates in it, for which the library would refuse the whole body."""

    def __init__(self, stream: httpx2.AsyncByteStream, meter: _AnswerMeter, in_lines: bool) -> None:
        self._stream, self._meter, self._in_lines = stream, meter, in_lines

    async def __aiter__(self) -> AsyncIterator[bytes]:
        rest = b""
        async for part in self._stream:
            self._meter.count(len(part))
            rest += part
            end = max(rest.rfind(b"\n"), rest.rfind(b"\r")) + 1 if self._in_lines else 0
            if end:
                yield self._check(repair_json(rest[:end]))
                rest = rest[end:]
        if rest:
            yield self._check(repair_json(rest))

    def _check(self, whole: bytes) -> bytes:
        """Check whole lines, or a whole answer, which the library decodes on the event loop."""
        try:
            check_json(whole)
        except JsonTooLarge:
            self._meter.full = True
            raise _McpAnswerTooLarge("too many values, or too deep") from None
        return whole

    async def aclose(self) -> None:
        await self._stream.aclose()
