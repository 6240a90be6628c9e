"""Connect MCP clients to the server of a running system."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, TextContent

from tests.support.clients import TenantClient

# With the handshake of older versions of the protocol, and without.
PROTOCOL_MODES: Final = ("legacy", "2026-07-28")


@asynccontextmanager
async def connect_client(url: str, key: str, mode: str = "legacy") -> AsyncIterator[Client]:
    """Connect the client of the package `mcp`."""
    async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=90) as http:
        transport = streamable_http_client(f"{url}/mcp", http_client=http)
        async with Client(transport, mode=mode, cache=None) as client:
            yield client


async def post_message(url: str, key: str | None, message: Any, **headers: str) -> httpx.Response:
    """Post a body to the server as a client of the protocol's older versions does."""
    sent = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}
    if key is not None:
        sent["Authorization"] = f"Bearer {key}"
    content = message if isinstance(message, bytes) else json.dumps(message).encode()
    async with httpx.AsyncClient(timeout=90) as http:
        return await http.post(f"{url}/mcp", content=content, headers={**sent, **headers})


def read_answer(response: httpx.Response) -> dict[str, Any]:
    """Return the answer of a request, from JSON or from the last event of a stream."""
    if response.headers["content-type"].startswith("text/event-stream"):
        lines = [line for line in response.text.splitlines() if line.startswith("data:")]
        return dict(json.loads(lines[-1][5:]))
    return dict(response.json())


def read_text(result: CallToolResult) -> str:
    """Return the first text of a result."""
    return next(part.text for part in result.content if isinstance(part, TextContent))


async def expose(tenant: TenantClient, path: str, value: Any = "mcp") -> None:
    """Make what a path names a tool."""
    answer = await tenant.http.patch(path, json={"expose": value})
    assert answer.status_code == 200, answer.text
