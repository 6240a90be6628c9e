"""Load on an API and on Postgres, from a process of its own, and a bare handler to compare with."""

import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator
from typing import Any, cast

import asyncpg
import msgspec
import uvicorn
import uvloop
from litestar import Litestar, Request, get, post

from domain import evaluations
from domain.evaluations import NewEvaluation
from domain.shared import ids
from infra.embedded import find_free_ports
from scripts.bench.environment import run_server

TIMEOUT_SECONDS = 120


class LoadResult(msgspec.Struct):
    """Hold what a client measured: the seconds of all requests, and the milliseconds of each answer."""

    seconds: float
    took: list[float]

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.took) / self.seconds

    @property
    def p50(self) -> float:
        """Milliseconds of half the answers, at most."""
        return statistics.median(self.took)


class _LoadConnection(asyncio.Protocol):
    """Send requests over one connection, each after the answer to the last. Parses no more than it must."""

    def __init__(self, fire: "_LoadRun") -> None:
        self._fire = fire
        self._seen, self._left = bytearray(), 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are of no class that asyncio knows.
        self._transport = cast(asyncio.Transport, transport)
        self._send_next()

    def data_received(self, data: bytes) -> None:
        if self._left == 0:
            self._seen += data
            end = self._seen.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._seen[:end]).lower()
            if not head.startswith(self._fire.status):
                self._fire.fail(bytes(self._seen))
                return
            self._left = int(head.partition(b"content-length:")[2].partition(b"\r")[0]) - (len(self._seen) - end - 4)
            self._seen.clear()
        else:
            self._left -= len(data)
        if self._left == 0:
            self._fire.took.append((time.perf_counter() - self._began) * 1000)
            self._send_next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fire.on_closed(self)

    def _send_next(self) -> None:
        request = next(self._fire.requests, None)
        if request is None:
            self._transport.close()
            return
        self._began = time.perf_counter()
        self._transport.write(request)


class _LoadRun:
    """Distribute the requests over all connections, and collect the results."""

    def __init__(self, requests: list[bytes], total: int, status: int) -> None:
        self.requests = iter([requests[number % len(requests)] for number in range(total)])
        self.status = f"http/1.1 {status}".encode()
        self.took: list[float] = []
        self._total = total
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._open: set[_LoadConnection] = set()

    async def run(self, port: int, width: int) -> LoadResult:
        began = time.perf_counter()
        for _ in range(width):
            sender = _LoadConnection(self)
            self._open.add(sender)
            await asyncio.get_running_loop().create_connection(lambda sender=sender: sender, "127.0.0.1", port)  # type: ignore[misc]
        await self._done
        return LoadResult(time.perf_counter() - began, self.took)

    def fail(self, answer: bytes) -> None:
        if not self._done.done():
            self._done.set_exception(RuntimeError(answer[:2000].decode(errors="replace")))

    def on_closed(self, sender: _LoadConnection) -> None:
        self._open.discard(sender)
        if not self._done.done() and (len(self.took) == self._total or not self._open):
            whole = len(self.took) == self._total
            self._done.set_result(None) if whole else self.fail(b"connections were closed without an answer")


def send_load(port: int, requests: list[bytes], total: int, width: int, status: int) -> LoadResult:
    """Send `total` of `requests`, over and over, `width` at a time. Errors: `RuntimeError` for another status."""

    async def run_load() -> LoadResult:
        firing = _LoadRun(requests, total, status)
        asyncio.get_running_loop().set_exception_handler(lambda _, context: firing.fail(str(context).encode()))
        async with asyncio.timeout(TIMEOUT_SECONDS):
            return await firing.run(port, width)

    return uvloop.run(run_load())


def copy_rows(url: str, table: str, columns: list[str], rows: list[tuple[Any, ...]], times: int) -> tuple[float, float]:
    """COPY `rows`, so many times, each with new ids and a commit. Returns seconds, and processor time of the client."""

    async def run_copies() -> tuple[float, float]:
        connection = await asyncpg.connect(url)
        seconds = processors = 0.0
        try:
            for _ in range(times):
                fresh = ids.generate_ids("eval", len(rows))
                sent = [
                    (ids.decode_id("eval", evaluation_id), *row) for evaluation_id, row in zip(fresh, rows, strict=True)
                ]
                began, busy = time.perf_counter(), time.process_time()
                await connection.copy_records_to_table(table, records=sent, columns=["id", *columns])
                seconds, processors = (
                    seconds + time.perf_counter() - began,
                    processors + time.process_time() - busy,
                )
        finally:
            await connection.close()
        return seconds, processors

    return uvloop.run(run_copies())


def serve_bare_handlers(port: int) -> None:
    """Serve Litestar handlers that do nothing, or parse the same bodies as the real ones, and store nothing."""

    @get("/", sync_to_thread=False)
    def get_status() -> dict[str, str]:
        return {"status": "completed"}

    @post("/evaluations")
    async def post_evaluation(request: Request[Any, Any, Any]) -> NewEvaluation:
        return evaluations.parse_evaluation(await request.body())

    @post("/artifacts", request_max_body_size=32 * 1024 * 1024)
    async def post_artifact(request: Request[Any, Any, Any]) -> dict[str, int]:
        return {"size_bytes": len(await request.body())}

    app = Litestar([get_status, post_evaluation, post_artifact], openapi_config=None, logging_config=None)
    uvicorn.run(app, port=port, log_config=None, access_log=False, server_header=False)


@contextlib.asynccontextmanager
async def run_bare_handlers() -> AsyncIterator[int]:
    """Run the bare handlers in a process of their own. Yields their port."""
    port = find_free_ports(1)[0]
    async with run_server(port, "-c", f"from scripts.bench.load import serve_bare_handlers as serve; serve({port})"):
        yield port
