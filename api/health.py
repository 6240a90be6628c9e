"""Report health to people and probes, and metrics to Prometheus. At the root, without authentication."""

import asyncio
import time
from collections.abc import Awaitable
from datetime import datetime
from typing import Final, Literal

import msgspec
from litestar import Response, Router, get
from redis.asyncio import Redis

from api.operations import PUBLIC_ACCESS
from api.requests import Store
from domain import ports
from domain.queues import WORKER_TIMEOUT, choose_gauge_exporter
from domain.shared.errors import DomainError
from domain.shared.jobs import ALL_LANES
from infra.gauges import read_gauges
from infra.notifications import ping_redis
from infra.postgres.store import PostgresStore
from infra.redis import REDIS_OUTAGE_ERRORS
from infra.telemetry import ApiMetrics
from infra.version import PADDOCK_VERSION

CHECK_TIMEOUT_SECONDS: Final = 3.0
HealthStatus = Literal["healthy", "degraded", "unhealthy"]


class Health(msgspec.Struct, kw_only=True):
    """Describe the state of the system. `services` has an entry per service, `milliseconds` its response time."""

    status: HealthStatus
    version: str
    timestamp: datetime
    services: dict[str, HealthStatus]
    milliseconds: dict[str, float]
    problems: dict[str, str]


class ServiceCheck(msgspec.Struct, frozen=True):
    """Hold how long a service took to answer, and its problem if it has one."""

    milliseconds: float
    problem: str | None

    @property
    def status(self) -> HealthStatus:
        """Return the service's state."""
        return "healthy" if self.problem is None else "unhealthy"


class HealthChecker:
    """Check all services at the same time, each anew for every request."""

    def __init__(self, store: PostgresStore, redis: Redis, blobs: ports.Blobs, clock: ports.Clock) -> None:
        self._store, self._redis, self._blobs, self._clock = store, redis, blobs, clock

    async def check_all(self) -> Health:
        """Check every service. The system is degraded while only services other than the database are unhealthy."""
        names = ("database", "redis", "storage", "workers")
        results = await asyncio.gather(
            self.check_database(),
            _run_check(ping_redis(self._redis)),
            _run_check(self._blobs.check_connection()),
            _run_check(self._check_workers()),
        )
        checks = dict(zip(names, results, strict=True))
        status: HealthStatus = "healthy"
        if checks["database"].problem:
            status = "unhealthy"
        elif any(check.problem for check in results):
            status = "degraded"
        return Health(
            status=status,
            version=PADDOCK_VERSION,
            timestamp=self._clock(),
            services={name: check.status for name, check in checks.items()},
            milliseconds={name: check.milliseconds for name, check in checks.items()},
            problems={name: check.problem for name, check in checks.items() if check.problem},
        )

    async def check_database(self) -> ServiceCheck:
        """Check the database alone."""
        return await _run_check(self._store.check_health())

    async def _check_workers(self) -> None:
        async with self._store.system_transaction() as tx:
            workers = await tx.workers.list_alive(tx.now - WORKER_TIMEOUT)
        missing = [lane for lane in (*ALL_LANES, "upkeep") if not any(worker.lane == lane for worker in workers)]
        if missing:
            raise DomainError("unavailable", f"No worker is alive for: {', '.join(missing)}.")
        problem = next((worker.problem for worker in workers if worker.problem), None)
        if problem:
            raise DomainError("sandbox_unavailable", problem)


async def _run_check(check: Awaitable[None]) -> ServiceCheck:
    began, problem = time.perf_counter(), None
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
            await check
    except DomainError as error:
        problem = error.detail
    except TimeoutError:
        problem = f"No answer within {CHECK_TIMEOUT_SECONDS:g} s."
    except REDIS_OUTAGE_ERRORS as error:
        problem = f"{type(error).__name__}: {error}".strip(": ")
    return ServiceCheck(round((time.perf_counter() - began) * 1000, 2), problem)


@get("/health", opt=PUBLIC_ACCESS)
async def get_health(health_checker: HealthChecker) -> Health:
    """Check every service now. The status code is always 200; `/health/ready` is for load balancers."""
    return await health_checker.check_all()


@get("/api/v1/health", opt=PUBLIC_ACCESS, include_in_schema=False)
async def get_health_below_prefix(health_checker: HealthChecker) -> Health:
    """Answer Kurral's client, which looks for `/health` below its `api_url`."""
    return await health_checker.check_all()


@get("/health/live", opt=PUBLIC_ACCESS)
async def check_liveness() -> dict[str, str]:
    """Confirm that this process answers at all."""
    return {"status": "healthy"}


@get("/health/db", opt=PUBLIC_ACCESS)
async def check_database(health_checker: HealthChecker) -> Response[dict[str, str | float]]:
    """Check the database: 200 if it answers, else 503."""
    check = await health_checker.check_database()
    body: dict[str, str | float] = {
        "status": check.status,
        "milliseconds": check.milliseconds,
        "problem": check.problem or "",
    }
    return Response(body, status_code=503 if check.problem else 200)


@get("/health/ready", opt=PUBLIC_ACCESS)
async def check_readiness(health_checker: HealthChecker) -> Response[Health]:
    """Check whether this process can take requests: 200 while the database answers, else 503.

    Most requests work without Redis or object storage, so an outage of those does not take the API out of service.
    """
    health = await health_checker.check_all()
    return Response(health, status_code=503 if health.status == "unhealthy" else 200)


@get("/metrics", opt=PUBLIC_ACCESS, media_type="text/plain; version=0.0.4")
async def get_metrics(store: Store, metrics: ApiMetrics) -> bytes:
    """Return Prometheus metrics: requests of this API, and queues, runs and slots of the whole system.

    The metrics of the whole system are left out while a worker of the lane `upkeep` exports them.
    """
    request_metrics = metrics.render_exposition()
    try:
        async with store.system_transaction() as tx:
            has_exporter = choose_gauge_exporter(await tx.workers.list_alive(tx.now - WORKER_TIMEOUT)) is not None
        return request_metrics if has_exporter else request_metrics + await read_gauges(store)
    except DomainError:
        return request_metrics


router = Router(
    "/",
    route_handlers=[
        get_health,
        get_health_below_prefix,
        check_liveness,
        check_database,
        check_readiness,
        get_metrics,
    ],
    tags=["health"],
)
