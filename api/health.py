"""Health for people and probes, and metrics for Prometheus. At the root, without authentication."""

import asyncio
import time
from collections.abc import Awaitable
from datetime import datetime
from typing import Final, Literal

import msgspec
from litestar import Response, Router, get

from api.front import PUBLIC, Front
from domain.queues import ALIVE, gauge_leader
from domain.shared.errors import DomainError
from domain.shared.jobs import LANES
from infra.gauges import read_gauges
from infra.notifications import ping
from infra.redis import GONE
from infra.version import VERSION

PATIENCE: Final = 3.0
Verdict = Literal["healthy", "degraded", "unhealthy"]


class Health(msgspec.Struct, kw_only=True):
    """The verdict over all parts. `services` has one per part, `milliseconds` what each took to answer."""

    status: Verdict
    version: str
    timestamp: datetime
    services: dict[str, Verdict]
    milliseconds: dict[str, float]
    problems: dict[str, str]


async def _measure(part: Awaitable[None]) -> tuple[float, str | None]:
    began, problem = time.perf_counter(), None
    try:
        async with asyncio.timeout(PATIENCE):
            await part
    except DomainError as error:
        problem = error.detail
    except TimeoutError:
        problem = f"There was no answer within {PATIENCE:g} s."
    except GONE as error:
        problem = f"{type(error).__name__}: {error}".strip(": ")
    return round((time.perf_counter() - began) * 1000, 2), problem


async def _workers(front: Front) -> None:
    async with front.store.begin_unbound() as tx:
        alive = await tx.queues.workers(tx.now - ALIVE)
    missing = [lane for lane in (*LANES, "upkeep") if not any(worker.lane == lane for worker in alive)]
    if missing:
        raise DomainError("unavailable", f"No worker is alive for: {', '.join(missing)}.")
    problem = next((worker.problem for worker in alive if worker.problem), None)
    if problem:
        raise DomainError("sandbox_unavailable", problem)


async def _health(front: Front) -> Health:
    names = ("database", "redis", "storage", "workers")
    measured = await asyncio.gather(
        _measure(front.store.check()),
        _measure(ping(front.redis)),
        _measure(front.blobs.check()),
        _measure(_workers(front)),
    )
    services: dict[str, Verdict] = {}
    for name, (_, problem) in zip(names, measured, strict=True):
        services[name] = "healthy" if problem is None else "unhealthy"
    bad = [name for name, verdict in services.items() if verdict == "unhealthy"]
    return Health(
        status="healthy" if not bad else ("unhealthy" if "database" in bad else "degraded"),
        version=VERSION,
        timestamp=front.clock(),
        services=services,
        milliseconds={name: took for name, (took, _) in zip(names, measured, strict=True)},
        problems={name: problem for name, (_, problem) in zip(names, measured, strict=True) if problem},
    )


@get("/health", opt=PUBLIC)
async def health(front: Front) -> Health:
    """Every part, each asked just now. 200 whatever the verdict; `/health/ready` is for load balancers."""
    return await _health(front)


@get("/api/v1/health", opt=PUBLIC, include_in_schema=False)
async def health_below(front: Front) -> Health:
    """Where Kurral's client looks for `/health`, below its `api_url`."""
    return await _health(front)


@get("/health/live", opt=PUBLIC)
async def live() -> dict[str, str]:
    """Whether this process answers at all."""
    return {"status": "healthy"}


@get("/health/db", opt=PUBLIC)
async def database(front: Front) -> Response[dict[str, str | float]]:
    """Whether the database answers: 200, else 503."""
    took, problem = await _measure(front.store.check())
    verdict = "healthy" if problem is None else "unhealthy"
    body: dict[str, str | float] = {"status": verdict, "milliseconds": took, "problem": problem or ""}
    return Response(body, status_code=200 if problem is None else 503)


@get("/health/ready", opt=PUBLIC)
async def ready(front: Front) -> Response[Health]:
    """Whether requests should be sent here: 200 while the database answers, else 503.

    Without Redis or object storage most requests still work, so they do not take the API out of service.
    """
    found = await _health(front)
    return Response(found, status_code=503 if found.status == "unhealthy" else 200)


@get("/metrics", opt=PUBLIC, media_type="text/plain; version=0.0.4")
async def metrics(front: Front) -> bytes:
    """Prometheus: requests; and queues, runs and slots of the whole system, unless a worker `upkeep` exports those."""
    own = front.metrics.exposition()
    try:
        async with front.store.begin_unbound() as tx:
            exported = gauge_leader(await tx.queues.workers(tx.now - ALIVE)) is not None
        return own if exported else own + await read_gauges(front.store)
    except DomainError:
        return own


router = Router("/", route_handlers=[health, health_below, live, database, ready, metrics], tags=["health"])
