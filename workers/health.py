"""Health and metrics of one worker process, on a port of its own, without authentication."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec
from aiohttp import web
from prometheus_client import generate_latest

from domain.ports import Store
from domain.queues import WORKER_TIMEOUT, choose_gauge_exporter
from domain.shared.errors import DomainError
from infra.gauges import read_gauges
from infra.notifications import ping_redis
from infra.redis import REDIS_OUTAGE_ERRORS
from infra.version import PADDOCK_VERSION
from workers.lifecycle import Drain

if TYPE_CHECKING:
    from infra.wiring import Resources

# Seconds that a part has to answer.
CHECK_TIMEOUT_SECONDS: Final = 3.0


class WorkerHealth:
    """What a worker process says of itself. `problem` tells why it cannot isolate code, if it cannot."""

    def __init__(
        self, name: str, lane: str, parts: "Resources", drain: Drain, problem: Callable[[], str | None]
    ) -> None:
        self._name, self._lane, self._parts, self._drain, self._problem = name, lane, parts, drain, problem

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Serve on `PADDOCK_WORKER_PORT` meanwhile, if that is set. Ends the process where the port is taken."""
        settings = self._parts.settings
        if not settings.worker_port:
            yield
            return
        app = web.Application()
        app.add_routes(
            [
                web.get("/health/live", self._handle_live),
                web.get("/health/ready", self._handle_ready),
                web.get("/metrics", self._handle_metrics),
            ]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            try:
                await web.TCPSite(runner, settings.host, settings.worker_port).start()
            except OSError as error:
                # Another worker has it: each process on a machine wants its own.
                sys.exit(f"paddock: PADDOCK_WORKER_PORT {settings.worker_port} cannot be listened on: {error.strerror}")
            yield
        finally:
            await runner.cleanup()

    async def _handle_live(self, _: web.Request) -> web.Response:
        stalled = self._drain.list_stalled_loops()
        return self._health_response({"loops": f"not turned for long: {', '.join(stalled)}"} if stalled else {})

    async def _handle_ready(self, _: web.Request) -> web.Response:
        problems: dict[str, str] = {}
        if self._drain.has_begun():
            problems["drain"] = "The worker is about to end and takes nothing new."
        asked = {"database": self._parts.store.check_health(), "redis": ping_redis(self._parts.redis)}
        answers = await asyncio.gather(*(_find_problem(part) for part in asked.values()))
        problems |= {name: told for name, told in zip(asked, answers, strict=True) if told}
        sandbox = self._problem()
        if sandbox is not None:
            problems["sandbox"] = sandbox
        return self._health_response(problems)

    async def _handle_metrics(self, _: web.Request) -> web.Response:
        body = generate_latest(self._drain.metrics.registry)
        if self._lane == "upkeep":
            try:
                if await self._is_leader(self._parts.store):
                    body += await read_gauges(self._parts.store)
            except DomainError:
                # What it counts itself is known without the database.
                pass
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _is_leader(self, store: Store) -> bool:
        async with store.system_transaction() as tx:
            leader = choose_gauge_exporter(await tx.workers.list_alive(tx.now - WORKER_TIMEOUT))
        return leader is not None and leader.id == self._name

    def _health_response(self, problems: dict[str, str]) -> web.Response:
        body = {
            "status": "unhealthy" if problems else "healthy",
            "version": PADDOCK_VERSION,
            "worker": self._name,
            "lane": self._lane,
            "problems": problems,
        }
        return web.json_response(body=msgspec.json.encode(body), status=503 if problems else 200)


async def _find_problem(part: Any) -> str | None:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
            await part
    except DomainError as error:
        return error.detail
    except (*REDIS_OUTAGE_ERRORS, TimeoutError) as error:
        return f"{type(error).__name__}: {error}".strip(": ")
    return None
