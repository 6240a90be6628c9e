"""Readers that take their time over large artifacts cost a file and one chunk each, and nobody waits for them."""

import asyncio
import hashlib
import secrets
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import zstandard

from domain.shared.errors import DomainError
from infra import compression
from infra.compression import (
    CHUNK_BYTES,
    MAX_BUFFERED_BYTES,
    MAX_INLINE_BYTES,
    compress_body,
    decompress_stream,
    prefetch_first_chunk,
    stream_once,
)
from infra.wiring import Resources
from scripts.bench.resources import measure_memory_mib
from scripts.system import System
from tests.journeys.test_kurral import key_in_storage, upload
from tests.support.clients import TenantClient

MIB = 1024 * 1024
BOMB: dict[str, Any] = {"outputs": {"text": "a" * (31 * MIB)}, "tool_calls": [{"tool_name": "search"}]}
# Only so that nothing hangs.
PATIENCE = 120


@asynccontextmanager
async def idle(system: System, owner: TenantClient, path: str) -> AsyncIterator[bytes]:
    """A client that asks and reads no further than the beginning of the status line, which it gives out."""
    taking = socket.socket()
    taking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    taking.setblocking(False)
    await asyncio.get_running_loop().sock_connect(taking, ("127.0.0.1", system.port))
    reader, writer = await asyncio.open_connection(sock=taking, limit=1024)
    try:
        headers = f"Host: localhost\r\nAuthorization: {owner.http.headers['Authorization']}\r\n"
        writer.write(f"GET /api/v1{path} HTTP/1.1\r\n{headers}\r\n".encode())
        yield await reader.readexactly(12)
    finally:
        writer.close()


async def idle_many(stack: AsyncExitStack, count: int, system: System, owner: TenantClient, path: str) -> None:
    for _ in range(count):
        assert await stack.enter_async_context(idle(system, owner, path)) == b"HTTP/1.1 200"


async def test_readers_that_do_not_read_leave_object_storage_to_everybody(
    system: System, resources: Resources, acme: TenantClient, other_tenant: TenantClient
) -> None:
    text = secrets.token_hex(4 * MIB)
    made = await upload(acme, {"outputs": {"text": text}})
    await key_in_storage(resources, acme, made["kurral_id"])
    other = await upload(other_tenant, {"outputs": {"text": "theirs"}})
    await key_in_storage(resources, other_tenant, other["kurral_id"])
    path = f"/artifacts/{made['kurral_id']}"
    async with asyncio.timeout(PATIENCE), AsyncExitStack() as stack:
        await idle_many(stack, 12, system, acme, path)
        again = await acme.http.get(path)
        assert (again.status_code, again.json()["outputs"]["text"] == text) == (200, True)
        theirs = await other_tenant.http.get(f"/artifacts/{other['kurral_id']}")
        assert theirs.json()["outputs"] == {"text": "theirs"}
        health = (await other_tenant.http.get(f"{system.url}/health")).json()
        assert health["services"]["storage"] == "healthy", health

        slowly = hashlib.sha256()
        async with acme.http.stream("GET", path) as answer:
            assert answer.headers["content-type"].startswith("application/json")
            async for chunk in answer.aiter_bytes(64 * 1024):
                slowly.update(chunk)
                await asyncio.sleep(0.005)
        assert slowly.hexdigest() == hashlib.sha256(again.content).hexdigest()


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
async def test_readers_of_a_bomb_do_not_hold_it_in_memory(
    system: System, resources: Resources, acme: TenantClient
) -> None:
    made = await upload(acme, BOMB)
    await key_in_storage(resources, acme, made["kurral_id"])
    pid = next(one.pid for one in system.processes if one.name == "api" and one.pid is not None)
    before, seen = measure_memory_mib(pid), list[float]()
    async with asyncio.timeout(PATIENCE), AsyncExitStack() as stack:
        await idle_many(stack, 20, system, acme, f"/artifacts/{made['kurral_id']}")
        for _ in range(20):
            seen.append(measure_memory_mib(pid))
            await asyncio.sleep(0.05)
    assert max(seen) - before < 300


async def test_tool_calls_of_large_bodies_are_read_in_turn(acme: TenantClient, other_tenant: TenantClient) -> None:
    made = await upload(acme, BOMB)
    path = f"/artifacts/{made['kurral_id']}/tool-calls"
    async with asyncio.timeout(PATIENCE):
        answers = await asyncio.gather(*(acme.http.get(path) for _ in range(6)))
    for answer in answers:
        assert [one["call"]["tool_name"] for one in answer.json()["items"]] == ["search"]
    assert (await other_tenant.http.get(path)).status_code == 404


class Source:
    """A stream that knows whether it was closed."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks, self.closed = chunks, False

    async def __call__(self) -> AsyncIterator[bytes]:
        try:
            for chunk in self.chunks:
                yield chunk
        finally:
            self.closed = True


@pytest.mark.parametrize("size", [0, 1, MAX_BUFFERED_BYTES, MAX_BUFFERED_BYTES + 1, CHUNK_BYTES * 5, 31 * MIB])
@pytest.mark.parametrize("random", [False, True])
async def test_whatever_is_packed_is_unpacked_in_chunks(size: int, random: bool) -> None:
    body = secrets.token_bytes(size) if random else b"a" * size
    packed = compress_body(body)
    source = Source(*(packed[start : start + 100_000] for start in range(0, len(packed), 100_000)))
    chunks = await prefetch_first_chunk(decompress_stream(source()))
    assert source.closed
    got = [chunk async for chunk in chunks]
    assert b"".join(got) == body
    assert max(map(len, got)) <= (MAX_BUFFERED_BYTES if len(got) == 1 else CHUNK_BYTES)


@pytest.mark.parametrize("body", [b"small" * 100, b"a" * 31 * MIB, secrets.token_bytes(2 * MIB)])
@pytest.mark.parametrize("keep", [0, 3, 0.5, -1])
async def test_a_frame_that_is_cut_short_or_broken_is_an_error(body: bytes, keep: float) -> None:
    packed = compress_body(body)
    cut = packed[: int(len(packed) * keep) if keep == 0.5 else int(keep)]
    sizeless = zstandard.ZstdCompressor(write_content_size=False).compress(body)
    for broken in (cut, b"nonsense" + packed, sizeless):
        with pytest.raises(DomainError, match="A stored body") as raised:
            [chunk async for chunk in decompress_stream(stream_once(broken))]
        assert raised.value.code == "internal_error"


async def test_a_stream_that_breaks_off_is_closed_and_told_before_the_answer() -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * (MAX_INLINE_BYTES + 1)
        raise DomainError("storage_unavailable", "gone")

    with pytest.raises(DomainError, match="gone"):
        await prefetch_first_chunk(decompress_stream(broken()))


@pytest.mark.parametrize("taken", [0, 1, 2])
async def test_a_stream_that_is_dropped_closes_its_file(monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    files = list[Any]()

    def spooled(*args: Any, **kwargs: Any) -> Any:
        files.append(made(*args, **kwargs))
        return files[-1]

    made = compression.tempfile.SpooledTemporaryFile
    monkeypatch.setattr(compression.tempfile, "SpooledTemporaryFile", spooled)
    chunks = await prefetch_first_chunk(decompress_stream(stream_once(compress_body(secrets.token_bytes(2 * MIB)))))
    for _ in range(taken):
        await anext(chunks)
    assert [file.closed for file in files] == [False]
    del chunks
    async with asyncio.timeout(PATIENCE):
        while not files[0].closed:
            await asyncio.sleep(0.01)
