"""The ASGI application: routes, errors, and the parts they work with."""

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from litestar import Litestar, Router
from litestar.config.cors import CORSConfig
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.types import ASGIApp, Scope

from api import (
    accounts,
    agents,
    artifacts,
    budgets,
    builds,
    costs,
    crews,
    docs,
    errors,
    evaluations,
    events,
    executions,
    generation,
    health,
    keys,
    llms,
    provider_keys,
    queues,
    schedules,
    stats,
    tasks,
    templates,
    tenants,
    tools,
    traces,
    workflows,
    workspaces,
)
from api.auth import KeyUse, admit, lookups
from api.connections import ConnectionBounds
from api.door import Door
from api.front import Front, provide_page
from api.guesses import GuessLimiter
from api.ingest import Ingest
from api.openapi import finished, operation_id
from api.requests import MendingRequest
from api.room import Room, Turns
from domain import evaluations as domain_evaluations
from domain.artifacts import service as artifact_cases
from domain.ports import Clock
from domain.shared.access import Caller
from domain.shared.errors import DomainError
from domain.shared.jobs import LANES
from infra.embedded.children import bound_to_parent
from infra.settings import Settings, parse_networks, read
from infra.telemetry import Metrics, clear_shared_metrics, open_telemetry, share_metrics
from infra.version import VERSION
from infra.wiring import utc_now, wire

ROUTERS = (
    accounts.router,
    tenants.router,
    keys.router,
    agents.router,
    builds.router,
    executions.router,
    events.router,
    workspaces.router,
    artifacts.router,
    stats.router,
    evaluations.router,
    costs.router,
    budgets.router,
    llms.router,
    provider_keys.router,
    templates.router,
    generation.router,
    crews.router,
    tasks.router,
    tools.router,
    traces.router,
    workflows.router,
    schedules.router,
    queues.router,
)
_DESCRIPTION = """Upload an agent; Paddock builds it, runs it fenced in, and keeps everything the run left behind.

Send an API key as `X-API-Key`, or a bearer token from `POST /api/v1/auth/login`. Errors are
`application/problem+json`; lists are `{items, total, limit, offset, has_more}`, newest first."""


def provide_front(scope: Scope) -> Front:
    """The parts of this process. From the app itself: asking for `state` would copy all of it for every request."""
    front: Front = scope["litestar_app"].state.front
    return front


def provide_caller(scope: Scope, front: Front) -> Caller:
    """The caller that `admit` let in. Asks for `front` only to come after it: side by side would cost two tasks."""
    caller: Caller = scope["state"]["caller"]
    return caller


def create(settings: Settings, clock: Clock = utc_now) -> ASGIApp:
    """The whole application, door included. Its lifespan opens and closes every connection."""
    uses = KeyUse()

    @asynccontextmanager
    async def parts(app: Litestar) -> AsyncIterator[None]:
        async with wire(settings, "paddock api", heard=LANES, clock=clock) as wired:
            values = {name: getattr(wired, name) for name in wired.__struct_fields__}
            app.state.front = Front(
                **values,
                metrics=Metrics(),
                keys=lookups(wired.store),
                events=events.readers(wired.store),
                artifacts=Ingest(
                    wired.store, wired.vault, artifact_cases.store, weigh=lambda one: len(one.packed), most=128
                ),
                large_bodies=Room(),
                workflows=Turns(),
                guesses=GuessLimiter(wired.counter, wired.clock, settings.login_failures),
                evaluations=Ingest(wired.store, wired.vault, domain_evaluations.created),
                # A handful of batches is a transaction's worth of rows.
                evaluation_batches=Ingest(wired.store, wired.vault, domain_evaluations.created_batches, most=8),
            )
            app.state.query_names = _query_names(app)
            app.state.document = finished(app.openapi_schema.to_schema())
            with contextlib.suppress(DomainError):
                # Upkeep does it too, but may be asleep when a month begins.
                async with wired.store.begin_unbound() as tx:
                    await tx.queues.make_partitions(tx.now, 1)
            _collect_less()
            writer = asyncio.create_task(uses.write_always(app.state.front))
            try:
                yield
            finally:
                writer.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await writer

    app = Litestar(
        [
            Router("/api/v1", route_handlers=[*ROUTERS]),
            health.router,
            *([docs.router] if settings.docs else []),
        ],
        lifespan=[parts],
        guards=[admit],
        dependencies={
            "front": Provide(provide_front, sync_to_thread=False),
            "caller": Provide(provide_caller, sync_to_thread=False),
            "part": Provide(provide_page, sync_to_thread=False),
        },
        exception_handlers={
            DomainError: errors.on_domain_error,
            HTTPException: errors.on_http_error,
            RecursionError: errors.on_unreadable,
            UnicodeDecodeError: errors.on_unreadable,
            Exception: errors.on_any_error,
        },
        request_class=MendingRequest,
        request_max_body_size=settings.body_max_bytes,
        cors_config=CORSConfig(
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"],
            allow_headers=[
                *("Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "Prefer"),
                *("X-API-Key", "X-Request-ID"),
            ],
            expose_headers=[
                *("X-Request-ID", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"),
                *("Retry-After", "Idempotency-Replayed", "Preference-Applied"),
            ],
        ),
        openapi_config=OpenAPIConfig(
            title=settings.app_name,
            version=VERSION,
            description=_DESCRIPTION,
            # Our own pages serve the document; nothing is let in at the path that Litestar insists on.
            path="/_litestar",
            render_plugins=[JsonRenderPlugin(path="/openapi.json")],
            use_handler_docstrings=True,
            operation_id_creator=operation_id,
            components=Components(
                security_schemes={
                    "ApiKey": SecurityScheme(type="apiKey", name="X-API-Key", security_scheme_in="header"),
                    "Bearer": SecurityScheme(type="http", scheme="bearer"),
                }
            ),
            security=[{"ApiKey": []}, {"Bearer": []}],
        ),
        logging_config=None,
    )
    trusted = parse_networks(settings.trusted_proxies, "trusted_proxies")
    return Door(app, lambda: app.state.front, uses, trusted, ConnectionBounds(settings, trusted))


def _collect_less() -> None:
    """What lives as long as the process is looked at no more; requests leave few circles behind.

    Looking for circles every 700 objects took a quarter of the time of a batch.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def _query_names(app: Litestar) -> dict[tuple[str, str], frozenset[str]]:
    """For each route, the query parameters that do something: any other is refused."""
    names: dict[tuple[str, str], frozenset[str]] = {}
    for path, item in (app.openapi_schema.paths or {}).items():
        for method in ("get", "post", "put", "patch", "delete"):
            operation = getattr(item, method)
            if operation is not None:
                found = [one for one in operation.parameters or () if getattr(one, "param_in", "") == "query"]
                names[(path, method.upper())] = frozenset(one.name for one in found)
    return names


def serve(settings: Settings, shares_port: bool = False) -> None:
    """Serve until SIGTERM or SIGINT: in this process, or in `api_workers` of them.

    With `shares_port` this process is one of several that somebody else has started on one port.
    """
    open_telemetry(settings, "api")
    if shares_port:
        share_metrics(settings.metrics_dir)
        uvicorn.Server(uvicorn.Config(create(settings), **_options(settings))).run([_shared_socket(settings)])
    elif settings.api_workers == 1:
        uvicorn.run(create(settings), **_options(settings))
    else:
        clear_shared_metrics(settings.metrics_dir)
        uvicorn.run("api.app:create_worker", factory=True, workers=settings.api_workers, **_options(settings))


def create_worker() -> ASGIApp:
    """Make the app of one of several processes of `paddock api`, from the environment."""
    # Its parent may be killed.
    bound_to_parent(signal.SIGTERM)()
    settings = read()
    open_telemetry(settings, "api")
    share_metrics(settings.metrics_dir)
    return create(settings)


def _shared_socket(settings: Settings) -> socket.socket:
    shared = socket.create_server((settings.host, settings.port), reuse_port=True, backlog=2048)
    shared.setblocking(False)
    return shared


def _options(settings: Settings) -> dict[str, Any]:
    return {
        "host": settings.host,
        "port": settings.port,
        "log_config": None,
        "access_log": False,
        "server_header": False,
        # Whom to believe about addresses is ours to decide: PADDOCK_TRUSTED_PROXIES.
        "proxy_headers": False,
        "timeout_graceful_shutdown": 5,
        "ws_max_size": settings.body_max_bytes,
        # By name, as each of several processes makes its own.
        "http": "api.connections:BoundedHttp",
        "ws": "api.connections:BoundedWebSockets",
    }
