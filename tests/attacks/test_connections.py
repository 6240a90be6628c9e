"""Attacks on connections: endless heads, halves of requests, slow bodies, more connections than one client may have.

They run on a second API with low limits, over raw sockets.
"""

import asyncio
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import httpx
import pytest
import websockets

from tests.support.clients import TenantClient, run_second_api

LOW_LIMITS = {
    "PADDOCK_REQUEST_HEAD_BYTES": "8192",
    "PADDOCK_REQUEST_HEAD_SECONDS": "1.5",
    "PADDOCK_REQUEST_BODY_SECONDS": "1.5",
    "PADDOCK_CONNECTIONS_PER_ADDRESS": "12",
}
REQUEST_HEAD = b"GET /health/live HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
async def limited_api(system) -> AsyncIterator[str]:
    async with run_second_api(system, **LOW_LIMITS) as url:
        yield url


async def open_socket(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    return await asyncio.open_connection(parts.hostname, parts.port)


async def read_to_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """Read all that arrives until the server hangs up."""
    try:
        async with asyncio.timeout(60):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def send_pieces(url: str, *pieces: bytes, times: int = 1) -> bytes:
    reader, writer = await open_socket(url)
    try:
        for _ in range(times):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            if reader.at_eof():
                break
    except ConnectionError:
        pass
    return await read_to_end(reader, writer)


@pytest.mark.parametrize(
    "pieces",
    [
        (REQUEST_HEAD + b"X-Long: " + b"a" * 9000 + b"\r\n\r\n",),
        (REQUEST_HEAD, b"X-Long: ", *([b"a" * 1000] * 50)),
        (REQUEST_HEAD, *[b"X-%d: 1\r\n" % number for number in range(2000)]),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",),
        (b"GET /health/live?" + b"a" * 9000,),
        (b"A" * 9000,),
    ],
    ids=["one header", "a header in pieces", "many headers", "a path", "a query in pieces", "a method"],
)
async def test_too_long_head_is_refused(limited_api: str, pieces: tuple[bytes, ...]) -> None:
    answer = await send_pieces(limited_api, *pieces)
    assert answer.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 ")) or answer == b"", answer[:200]


async def test_too_long_trailers_are_refused(limited_api: str, acme: TenantClient) -> None:
    token = acme.http.headers["Authorization"].encode()
    head = (
        b"POST /api/v1/agents HTTP/1.1\r\nHost: x\r\nAuthorization: "
        + token
        + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    trailers = [b"X-%d: %s\r\n" % (number, b"a" * 100) for number in range(2000)]
    answer = await send_pieces(limited_api, head, b"2\r\n{}\r\n0\r\n", *trailers)
    assert b" 201 " not in answer[:20], answer[:200]


async def test_head_within_the_limit_may_arrive_in_pieces(limited_api: str) -> None:
    reader, writer = await open_socket(limited_api)
    head = REQUEST_HEAD + b"X-Long: " + b"a" * 7000 + b"\r\n\r\n"
    for _ in range(3):
        for offset in range(0, len(head), 1000):
            writer.write(head[offset : offset + 1000])
            await writer.drain()
        async with asyncio.timeout(30):
            answer = await reader.readuntil(b'{"status":"healthy"}')
        assert answer.startswith(b"HTTP/1.1 200 ")
    writer.close()


@pytest.mark.parametrize("first_bytes", [b"", b"\r\n\r\n", b"G", REQUEST_HEAD, REQUEST_HEAD + b"X-Half: "], ids=str)
async def test_incomplete_head_times_out(limited_api: str, first_bytes: bytes) -> None:
    reader, writer = await open_socket(limited_api)
    writer.write(first_bytes)
    answer = await read_to_end(reader, writer)
    assert answer.startswith(b"HTTP/1.1 408 "), answer


async def test_slow_head_times_out(limited_api: str) -> None:
    reader, writer = await open_socket(limited_api)
    writer.write(REQUEST_HEAD)
    reading = asyncio.create_task(read_to_end(reader, writer))
    for number in range(600):
        if reading.done():
            break
        try:
            writer.write(b"X-%d: 1\r\n" % number)
        except ConnectionError:
            break
        await asyncio.sleep(0.1)
    assert (await reading).startswith((b"HTTP/1.1 408 ", b""))
    assert number < 599


async def test_slow_body_times_out(limited_api: str, acme: TenantClient) -> None:
    token = acme.http.headers["Authorization"].encode()
    reader, writer = await open_socket(limited_api)
    head = b"POST /api/v1/agents HTTP/1.1\r\nHost: x\r\nAuthorization: " + token + b"\r\nContent-Length: 100000\r\n\r\n"
    writer.write(head)
    reading = asyncio.create_task(read_to_end(reader, writer))
    for _drop in range(600):
        if reading.done():
            break
        try:
            writer.write(b" ")
        except ConnectionError:
            break
        await asyncio.sleep(0.1)
    answer = await reading
    assert answer.startswith(b"HTTP/1.1 408 "), answer[:200]
    assert _drop < 599


async def test_number_of_connections_per_address_is_limited(limited_api: str) -> None:
    async def get_health_status() -> int:
        reader, writer = await open_socket(limited_api)
        writer.write(REQUEST_HEAD + b"Connection: close\r\n\r\n")
        answer = await read_to_end(reader, writer)
        return int(answer.split(b" ", 2)[1]) if answer else 0

    socket_url = limited_api.replace("http://", "ws://") + "/api/v1/execution-logs/exec_x/stream"
    open_connections = []
    # Keep them busy, as silent ones are closed: each has sent half a head, and begins again in time.
    for _ in range(20):
        reader, writer = await open_socket(limited_api)
        writer.write(REQUEST_HEAD)
        open_connections.append((reader, writer))
    refused = await get_health_status()
    assert refused in (429, 0), refused
    with pytest.raises(Exception):  # noqa: B017 - however the library puts it
        async with asyncio.timeout(30), websockets.connect(socket_url):
            pass
    for _, writer in open_connections:
        writer.close()
    for _ in range(200):
        if await get_health_status() == 200:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("closed connections still count")


async def test_open_websockets_are_not_timed_out(limited_api: str, shared_tenant: TenantClient) -> None:
    token = shared_tenant.http.headers["Authorization"].removeprefix("Bearer ")
    url = limited_api.replace("http://", "ws://") + f"/api/v1/agents/hello/stream?access_token={token}"
    for _ in range(3):
        sockets = []
        for _ in range(10):
            for _ in range(200):
                try:
                    sockets.append(await websockets.connect(url))
                    break
                except (OSError, websockets.WebSocketException):
                    await asyncio.sleep(0.05)
        # Longer than the timeout of a head, which does not apply to websockets.
        await asyncio.sleep(2)
        assert len(sockets) == 10
        for socket in sockets:
            pong = await socket.ping()
            async with asyncio.timeout(30):
                await pong
            await socket.close()


async def test_ordinary_requests_are_not_affected(limited_api: str, acme: TenantClient) -> None:
    async with httpx.AsyncClient(base_url=f"{limited_api}/api/v1", headers=acme.http.headers, timeout=60) as http:
        for _ in range(3):
            answer = await http.post("/evaluations", json={"prompt": "p" * 900_000, "response": "r"})
            assert answer.status_code == 201
            assert (await http.get("/evaluations")).status_code == 200
            # Longer than the timeout of a head, which does not apply to idle connections.
            await asyncio.sleep(1.6)
