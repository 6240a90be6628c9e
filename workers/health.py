"""Serve the health and the metrics of one worker process, on a port of its own, without authentication."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
from aiohttp import web
from prometheus_client import generate_latest
from redis.asyncio import Redis

from domain.queues import WORKER_TIMEOUT, choose_gauge_exporter
from domain.shared.errors import DomainError
from infra.gauges import read_gauges
from infra.notifications import ping_redis
from infra.postgres.store import PostgresStore
from infra.redis import REDIS_OUTAGE_ERRORS
from infra.settings import Settings
from infra.version import PADDOCK_VERSION
from workers.heartbeat import Heartbeat
from workers.lifecycle import Drain

# Seconds within which a dependency must answer.
CHECK_TIMEOUT_SECONDS: Final = 3.0


class WorkerHealth:
    """Serve the health of one worker process."""

    def __init__(
        self, settings: Settings, store: PostgresStore, redis: Redis, drain: Drain, heartbeat: Heartbeat
    ) -> None:
        self._settings, self._store, self._redis = settings, store, redis
        self._drain, self._heartbeat = drain, heartbeat

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[None]:
        """Serve on `PADDOCK_WORKER_PORT` meanwhile, if that is set. If the port is in use, the process ends."""
        settings = self._settings
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
                # Another worker has it: each process of a machine needs a port of its own.
                sys.exit(f"paddock: PADDOCK_WORKER_PORT {settings.worker_port} cannot be listened on: {error.strerror}")
            yield
        finally:
            await runner.cleanup()

    async def _handle_live(self, _: web.Request) -> web.Response:
        stalled = self._drain.list_stalled_loops()
        return self._build_response({"loops": f"stalled: {', '.join(stalled)}"} if stalled else {})

    async def _handle_ready(self, _: web.Request) -> web.Response:
        problems: dict[str, str] = {}
        if self._drain.has_begun():
            problems["drain"] = "The worker is about to end and takes no new work."
        checks = {"database": self._store.check_health(), "redis": ping_redis(self._redis)}
        answers = await asyncio.gather(*(_find_problem(check) for check in checks.values()))
        problems |= {name: problem for name, problem in zip(checks, answers, strict=True) if problem}
        if self._heartbeat.problem is not None:
            problems["sandbox"] = self._heartbeat.problem
        return self._build_response(problems)

    async def _handle_metrics(self, _: web.Request) -> web.Response:
        body = generate_latest(self._drain.metrics.registry)
        if self._heartbeat.info.lane == "upkeep":
            try:
                if await self._is_leader():
                    body += await read_gauges(self._store)
            except DomainError:
                # The metrics of this process need no database.
                pass
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _is_leader(self) -> bool:
        async with self._store.system_transaction() as tx:
            leader = choose_gauge_exporter(await tx.workers.list_alive(tx.now - WORKER_TIMEOUT))
        return leader is not None and leader.id == self._heartbeat.info.id

    def _build_response(self, problems: dict[str, str]) -> web.Response:
        body = {
            "status": "unhealthy" if problems else "healthy",
            "version": PADDOCK_VERSION,
            "worker": self._heartbeat.info.id,
            "lane": self._heartbeat.info.lane,
            "problems": problems,
        }
        return web.json_response(body=msgspec.json.encode(body), status=503 if problems else 200)


async def _find_problem(check: Any) -> str | None:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
            await check
    except DomainError as error:
        return error.detail
    except (*REDIS_OUTAGE_ERRORS, TimeoutError) as error:
        return f"{type(error).__name__}: {error}".strip(": ")
    return None
