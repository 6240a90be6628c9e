"""MCP servers over streamable HTTP: what tools they have, and calling one.

A connection lives for one call. What a server sends is bounded in time and in bytes, and nothing it says runs here: its
output schemas are not checked against, as a regular expression in one could keep this process busy for hours.
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
MAX_SERVER_BYTES: Final = 4 * 1024 * 1024  # of all that a server says in one call of ours
MAX_ERROR_CHARACTERS: Final = 2000
# A server that does not take our goodbye must not keep the answer from its caller.
CLOSE_TIMEOUTS: Final = {"connect": 2.0, "read": 2.0, "write": 2.0, "pool": 2.0}

_UNREADABLE: Final = "The server's answer is not what MCP says."
_ADVICE: Final = re.compile(r"\s*For further information visit https://errors\.pydantic\.dev/\S*")

T = TypeVar("T")
_log = structlog.get_logger("paddock.tools")
# They print what servers say, and with it what a server repeats of our secrets.
for _noisy in ("mcp", "client"):
    logging.getLogger(_noisy).setLevel(logging.CRITICAL)


async def list_mcp_tools(
    outbound: Outbound,
    configuration: dict[str, Any],
    secrets: dict[str, str],
    warn: WarnAboutTool | None = None,
) -> list[ToolSpec]:
    """The tools of a server, 200 at most, under the server's own names of up to 128 characters.

    Those names need not fit what model providers take: who shows them to a model maps them. `configuration` is as
    `domain.tools.configuration.check_mcp_configuration` passed it, `secrets` the values of its secret headers by name.
    `warn` is told of
    entries that are left out or taken otherwise than they stand. Errors: `ToolFailed`.
    """

    async def work(client: Client) -> list[mcp_types.Tool]:
        _read_leniently(client, warn)
        found: list[mcp_types.Tool] = []
        cursor = None
        for _ in range(MAX_LIST_PAGES):
            page = await client.list_tools(cursor=cursor)
            found += page.tools
            cursor = page.next_cursor
            if cursor is None or len(found) >= MAX_SERVER_TOOLS:
                break
        return found[:MAX_SERVER_TOOLS]

    specs: dict[str, ToolSpec] = {}
    for tool in await _talk(outbound, configuration, secrets, work):
        if tool.name in specs:
            if warn is not None:
                warn(repr(tool.name), "is listed twice; the first one is taken.")
            continue
        about = clean_text(tool.description or "")[:MAX_DESCRIPTION_CHARACTERS]
        told = mask_secrets(
            clean_json({"description": about, "parameters": tool.input_schema}), list_secret_texts(secrets)
        )
        specs[tool.name] = ToolSpec(name=tool.name, **told)
    return list(specs.values())


def _read_leniently(client: Client, warn: WarnAboutTool | None = None) -> None:
    """Let a bad entry cost that entry. The library has no place of its own where results can be mended."""
    client.session._dispatcher = LenientDispatcher(client.session._dispatcher, warn)


async def call_mcp_tool(
    outbound: Outbound, configuration: dict[str, Any], secrets: dict[str, str], name: str, args: dict[str, Any]
) -> dict[str, Any]:
    """Call a tool by the server's own name for it; back comes `{content}`, and `structured_content` if there is one.

    The texts of the answer are joined by lines and cut after 256 KiB, structured content larger than that is left out;
    either is told by `truncated: true`. Errors: `ToolFailed`, also when the tool says that it failed.
    """

    async def work(client: Client) -> mcp_types.CallToolResult:
        _read_leniently(client)
        client.session.validate_tool_result = _believed  # type: ignore[method-assign,assignment]
        return await client.call_tool(name, args)

    result = await _talk(outbound, configuration, secrets, work)
    hidden = list_secret_texts(secrets)
    text = mask_secrets(clean_text("\n".join(piece.text for piece in result.content if piece.type == "text")), hidden)
    if result.is_error:
        raise ToolFailed(f"The tool failed: {_plain(text)[:MAX_ERROR_CHARACTERS] or 'it does not say why'}")
    answer: dict[str, Any] = {"content": text[:MAX_RESPONSE_BYTES]}
    truncated = len(text) > MAX_RESPONSE_BYTES
    if result.structured_content is not None:
        size = len(msgspec.json.encode(result.structured_content))
        if size > MAX_RESPONSE_BYTES:
            truncated = True
        else:
            answer["structured_content"] = await walk_in_thread(size, clean_and_mask, result.structured_content, hidden)
    return {**answer, "truncated": True} if truncated else answer


async def _believed(_name: str, _result: mcp_types.CallToolResult) -> None:
    """Instead of the client's check of an answer against the schema that the same server gave."""


async def _talk(
    outbound: Outbound,
    configuration: dict[str, Any],
    secrets: dict[str, str],
    work: Callable[[Client], Awaitable[T]],
) -> T:
    told = msgspec.convert(configuration, McpServerConfiguration)
    http = outbound.create_httpx2_client(timeout=told.timeout)
    http.headers.update(build_headers(told.headers, told.secrets, secrets))
    meter = _Meter()
    # Packed answers would have to be unpacked before anybody can count them.
    http.headers["accept-encoding"] = "identity"
    http.event_hooks = {"request": [_short_goodbye], "response": [meter.attach]}
    result: T | UnsetType = UNSET
    try:
        # anyio's, as what the client does while it closes is bounded by it as well.
        with anyio.fail_after(told.timeout):
            async with http, _client(told, http) as client:
                result = await work(client)
    except Exception as error:  # whatever a client makes of a server that does not keep to the protocol
        if result is UNSET:
            found = "The server sends too much." if meter.full else _words(error, told.timeout)
            raise ToolFailed(mask_secrets(found, list_secret_texts(secrets))) from None
    if result is UNSET:
        raise ToolFailed("The server hung up.")
    return result


def _client(told: McpServerConfiguration, http: httpx2.AsyncClient) -> Client:
    return Client(
        streamable_http_client(told.url, http_client=http),
        read_timeout_seconds=told.timeout,
        client_info=mcp_types.Implementation(name="paddock", version=PADDOCK_VERSION),
        cache=None,
    )


def _words(error: BaseException, seconds: float) -> str:
    """What went wrong, for the model that asked. Task groups wrap errors in groups of groups."""
    leaves = list(_leaves(error))
    for leaf in leaves:
        if isinstance(leaf, OutboundRefused):
            return str(leaf)
        if isinstance(leaf, MCPError):
            if leaf.code == mcp_types.PARSE_ERROR and leaf.message.startswith("Failed to parse"):
                return _UNREADABLE  # what our own library made of an answer
            return f"The server answered: {_plain(clean_text(leaf.message))[:MAX_ERROR_CHARACTERS]}"
        if isinstance(leaf, TimeoutError | httpx2.TimeoutException):
            return f"There was no answer within {seconds:g} seconds."
        if isinstance(leaf, httpx2.ConnectError):
            return "The server cannot be reached."
        if isinstance(leaf, ValidationError):
            return _UNREADABLE
    _log.warning("an MCP server was not understood", errors=[type(leaf).__name__ for leaf in leaves])
    return "The server's answer is not proper HTTP or not what MCP says, or was cut off."


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for one in error.exceptions for leaf in _leaves(one)]
    return [error]


def _plain(text: str) -> str:
    """Words of an error without the advertisements of the library that made it."""
    return _ADVICE.sub("", text).strip()


async def _short_goodbye(request: httpx2.Request) -> None:
    if request.method == "DELETE":
        request.extensions["timeout"] = CLOSE_TIMEOUTS


class _TooMuch(httpx2.StreamError):
    """More than `MAX_BYTES`, or packed though we asked for it plain."""


class _Meter:
    """Counts what a server sends, in all its answers together."""

    def __init__(self) -> None:
        self.left, self.full = MAX_SERVER_BYTES, False

    async def attach(self, response: httpx2.Response) -> None:
        """Count an answer's body while it is read. Errors: `_TooMuch`."""
        if response.headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
            raise _TooMuch("packed")
        if isinstance(response.stream, httpx2.AsyncByteStream):
            kind = response.headers.get("content-type", "").lower()
            response.stream = _Counted(response.stream, self, in_lines=kind.startswith("text/event-stream"))

    def count(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            self.full = True
            raise _TooMuch("too much")


class _Counted(httpx2.AsyncByteStream):
    """A body, counted, whose texts hold no half of a character: the library's reader would refuse all of it."""

    def __init__(self, stream: httpx2.AsyncByteStream, meter: _Meter, in_lines: bool) -> None:
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
        """Whole lines, or a whole answer, which the library decodes where everything else waits for it."""
        try:
            check_json(whole)
        except JsonTooLarge:
            self._meter.full = True
            raise _TooMuch("too many values, or too deep") from None
        return whole

    async def aclose(self) -> None:
        await self._stream.aclose()
