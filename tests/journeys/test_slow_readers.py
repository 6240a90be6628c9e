"""Test that slow readers of large artifacts cost one file and one chunk each and block no other client."""

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
from tests.journeys.test_artifacts import upload_artifact, wait_for_storage_key
from tests.support.clients import TenantClient

MIB = 1024 * 1024
COMPRESSIBLE_ARTIFACT: dict[str, Any] = {"outputs": {"text": "a" * (31 * MIB)}, "tool_calls": [{"tool_name": "search"}]}
# An upper limit against hanging tests.
TIMEOUT_SECONDS = 120


@asynccontextmanager
async def open_idle_reader(system: System, owner: TenantClient, path: str) -> AsyncIterator[bytes]:
    """Send a request and read only the beginning of the status line; yield it."""
    client_socket = socket.socket()
    client_socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client_socket.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client_socket, ("127.0.0.1", system.port))
    reader, writer = await asyncio.open_connection(sock=client_socket, limit=1024)
    try:
        headers = f"Host: localhost\r\nAuthorization: {owner.http.headers['Authorization']}\r\n"
        writer.write(f"GET /api/v1{path} HTTP/1.1\r\n{headers}\r\n".encode())
        yield await reader.readexactly(12)
    finally:
        writer.close()


async def open_idle_readers(stack: AsyncExitStack, count: int, system: System, owner: TenantClient, path: str) -> None:
    for _ in range(count):
        assert await stack.enter_async_context(open_idle_reader(system, owner, path)) == b"HTTP/1.1 200"


async def test_idle_readers_do_not_block_object_storage(
    system: System, resources: Resources, acme: TenantClient, other_tenant: TenantClient
) -> None:
    text = secrets.token_hex(4 * MIB)
    created = await upload_artifact(acme, {"outputs": {"text": text}})
    await wait_for_storage_key(resources, acme, created["kurral_id"])
    other = await upload_artifact(other_tenant, {"outputs": {"text": "theirs"}})
    await wait_for_storage_key(resources, other_tenant, other["kurral_id"])
    path = f"/artifacts/{created['kurral_id']}"
    async with asyncio.timeout(TIMEOUT_SECONDS), AsyncExitStack() as stack:
        await open_idle_readers(stack, 12, system, acme, path)
        full_answer = await acme.http.get(path)
        assert (full_answer.status_code, full_answer.json()["outputs"]["text"] == text) == (200, True)
        other_answer = await other_tenant.http.get(f"/artifacts/{other['kurral_id']}")
        assert other_answer.json()["outputs"] == {"text": "theirs"}
        health = (await other_tenant.http.get(f"{system.url}/health")).json()
        assert health["services"]["storage"] == "healthy", health

        slow_hash = hashlib.sha256()
        async with acme.http.stream("GET", path) as answer:
            assert answer.headers["content-type"].startswith("application/json")
            async for chunk in answer.aiter_bytes(64 * 1024):
                slow_hash.update(chunk)
                await asyncio.sleep(0.005)
        assert slow_hash.hexdigest() == hashlib.sha256(full_answer.content).hexdigest()


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
async def test_idle_readers_of_a_large_body_use_little_memory(
    system: System, resources: Resources, acme: TenantClient
) -> None:
    created = await upload_artifact(acme, COMPRESSIBLE_ARTIFACT)
    await wait_for_storage_key(resources, acme, created["kurral_id"])
    pid = next(process.pid for process in system.processes if process.name == "api" and process.pid is not None)
    before, memory_samples = measure_memory_mib(pid), list[float]()
    async with asyncio.timeout(TIMEOUT_SECONDS), AsyncExitStack() as stack:
        await open_idle_readers(stack, 20, system, acme, f"/artifacts/{created['kurral_id']}")
        for _ in range(20):
            memory_samples.append(measure_memory_mib(pid))
            await asyncio.sleep(0.05)
    assert max(memory_samples) - before < 300


async def test_tool_calls_of_large_bodies_can_be_read_concurrently(
    acme: TenantClient, other_tenant: TenantClient
) -> None:
    created = await upload_artifact(acme, COMPRESSIBLE_ARTIFACT)
    path = f"/artifacts/{created['kurral_id']}/tool-calls"
    async with asyncio.timeout(TIMEOUT_SECONDS):
        answers = await asyncio.gather(*(acme.http.get(path) for _ in range(6)))
    for answer in answers:
        assert [item["call"]["tool_name"] for item in answer.json()["items"]] == ["search"]
    assert (await other_tenant.http.get(path)).status_code == 404


class ClosingStream:
    """Stream chunks and record whether the stream was closed."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks, self.is_closed = chunks, False

    async def __call__(self) -> AsyncIterator[bytes]:
        try:
            for chunk in self.chunks:
                yield chunk
        finally:
            self.is_closed = True


@pytest.mark.parametrize("size", [0, 1, MAX_BUFFERED_BYTES, MAX_BUFFERED_BYTES + 1, CHUNK_BYTES * 5, 31 * MIB])
@pytest.mark.parametrize("random", [False, True])
async def test_compressed_body_is_decompressed_in_chunks(size: int, random: bool) -> None:
    body = secrets.token_bytes(size) if random else b"a" * size
    packed = compress_body(body)
    source = ClosingStream(*(packed[start : start + 100_000] for start in range(0, len(packed), 100_000)))
    chunks = await prefetch_first_chunk(decompress_stream(source()))
    assert source.is_closed
    received = [chunk async for chunk in chunks]
    assert b"".join(received) == body
    assert max(map(len, received)) <= (MAX_BUFFERED_BYTES if len(received) == 1 else CHUNK_BYTES)


@pytest.mark.parametrize("body", [b"small" * 100, b"a" * 31 * MIB, secrets.token_bytes(2 * MIB)])
@pytest.mark.parametrize("kept_length", [0, 3, 0.5, -1])
async def test_truncated_or_broken_frame_is_an_error(body: bytes, kept_length: float) -> None:
    packed = compress_body(body)
    cut = packed[: int(len(packed) * kept_length) if kept_length == 0.5 else int(kept_length)]
    sizeless = zstandard.ZstdCompressor(write_content_size=False).compress(body)
    for frame in (cut, b"nonsense" + packed, sizeless):
        with pytest.raises(DomainError, match="A stored body") as raised:
            [chunk async for chunk in decompress_stream(stream_once(frame))]
        assert raised.value.code == "internal_error"


async def test_broken_stream_raises_before_the_answer() -> None:
    async def stream_broken() -> AsyncIterator[bytes]:
        yield b"x" * (MAX_INLINE_BYTES + 1)
        raise DomainError("storage_unavailable", "gone")

    with pytest.raises(DomainError, match="gone"):
        await prefetch_first_chunk(decompress_stream(stream_broken()))


@pytest.mark.parametrize("read_count", [0, 1, 2])
async def test_dropped_stream_closes_its_file(monkeypatch: pytest.MonkeyPatch, read_count: int) -> None:
    files = list[Any]()

    def record_file(*args: Any, **kwargs: Any) -> Any:
        files.append(open_file(*args, **kwargs))
        return files[-1]

    open_file = compression.tempfile.SpooledTemporaryFile
    monkeypatch.setattr(compression.tempfile, "SpooledTemporaryFile", record_file)
    chunks = await prefetch_first_chunk(decompress_stream(stream_once(compress_body(secrets.token_bytes(2 * MIB)))))
    for _ in range(read_count):
        await anext(chunks)
    assert [file.closed for file in files] == [False]
    del chunks
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while not files[0].closed:
            await asyncio.sleep(0.01)
