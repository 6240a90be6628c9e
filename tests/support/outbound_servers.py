"""Run servers on 127.0.0.1 for outbound connections: they count connections and send what a test wants."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpcore
import httpcore2
import pytest

PUBLIC_ADDRESS = "93.184.216.34"


@dataclass
class ServerRequest:
    method: str
    target: str
    headers: dict[str, str]
    body: bytes


# A whole answer as bytes, or a function that writes one.
ServerAnswer = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class RecordingServer:
    port: int = 0
    connection_count: int = 0
    open_connections: int = 0
    requests: list[ServerRequest] = field(default_factory=list)
    server_names: list[str | None] = field(default_factory=list)  # by SNI
    answer: Callable[[ServerRequest], ServerAnswer] = lambda request: build_reply(b"hello")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def wait_until_closed(self) -> None:
        async with asyncio.timeout(5):
            while self.open_connections:
                await asyncio.sleep(0.01)


def build_reply(body: bytes = b"", status: int = 200, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} So", f"content-length: {len(body)}", "connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@asynccontextmanager
async def run_server(
    answer: Callable[[ServerRequest], ServerAnswer] | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[RecordingServer]:
    here = RecordingServer()
    if answer is not None:
        here.answer = answer
    if tls is not None:
        tls.sni_callback = lambda socket, name, context: here.server_names.append(name)
    tasks: set[Any] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        here.connection_count += 1
        here.open_connections += 1
        try:
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = dict(line.lower().split(": ", 1)[:1] + line.split(": ", 1)[1:] for line in lines if line)
            method, target, _ = first.split(" ")
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            request = ServerRequest(method, target, headers, body)
            here.requests.append(request)
            answer = here.answer(request)
            if isinstance(answer, bytes):
                writer.write(answer)
            else:
                # A client that hangs up is noticed also while nothing is sent.
                halves = [asyncio.ensure_future(answer(writer)), asyncio.ensure_future(reader.read())]
                try:
                    await asyncio.wait(halves, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for half in halves:
                        half.cancel()
                    await asyncio.gather(*halves, return_exceptions=True)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            here.open_connections -= 1
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    here.port = server.sockets[0].getsockname()[1]
    try:
        yield here
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def redirect_connections(
    monkeypatch: pytest.MonkeyPatch, to: RecordingServer | dict[str, RecordingServer]
) -> list[tuple[str, int]]:
    """Redirect every connection to one of our servers; returns the addresses they were made for.

    A test has no public address, so the function of httpcore and httpcore2 that connects is replaced. It receives each
    connection that an `Outbound` allows, with the address it chose.
    """
    dialled: list[tuple[str, int]] = []
    for core in (httpcore, httpcore2):
        connect = core.AnyIOBackend.connect_tcp

        async def connect_here(
            self: Any, host: str, port: int, *args: Any, _connect: Any = connect, **options: Any
        ) -> Any:
            dialled.append((host, port))
            target = to if isinstance(to, RecordingServer) else to[host]
            return await _connect(self, "127.0.0.1", target.port, *args, **options)

        monkeypatch.setattr(core.AnyIOBackend, "connect_tcp", connect_here)
    return dialled


def build_resolver(**addresses: str | list[str]) -> Callable[[str, int], Awaitable[list[str]]]:
    """A resolver that knows a few names (`_` for a dot), and for all others one public address."""

    async def resolve(host: str, port: int) -> list[str]:
        answer = addresses.get(host.replace(".", "_"), PUBLIC_ADDRESS)
        return [answer] if isinstance(answer, str) else answer

    return resolve
