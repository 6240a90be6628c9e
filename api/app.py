"""Create and serve the ASGI application: its routes, error handlers and services."""

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import uvicorn
from litestar import Litestar, Router
from litestar.config.cors import CORSConfig
from litestar.exceptions import HTTPException
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme
from litestar.types import ASGIApp

from api import (
    accounts,
    agents,
    artifacts,
    budgets,
    builds,
    bulk_operations,
    costs,
    crews,
    docs,
    errors,
    evaluations,
    events,
    executions,
    files,
    generation,
    health,
    keys,
    llms,
    mcp,
    openai,
    provider_keys,
    queues,
    schedules,
    secrets,
    states,
    stats,
    tasks,
    templates,
    tenants,
    threads,
    tools,
    traces,
    workflows,
    workspaces,
)
from api.accounts import TokenIssuer
from api.artifacts import ArtifactIngest, ArtifactReader
from api.auth import Authenticator, KeyUsageWriter, authorize_route
from api.body_memory import BodyMemoryLimiter
from api.builds import ArchiveUploader
from api.connections import ConnectionBounds
from api.evaluations import EvaluationIngest
from api.event_feed import EventFeed
from api.files import FileUploader
from api.generation import GenerationRunner
from api.health import HealthChecker
from api.idempotency import ResourceCreator, SealedAnswers
from api.ingest import BatchIngest
from api.keyed_locks import KeyedLocks
from api.limits import RateLimiter
from api.mcp import McpResources, McpServer, ToolCalls
from api.middleware import RequestMiddleware
from api.openai import AnswerSender
from api.openapi import build_document, create_operation_id
from api.password_guesses import GuessLimiter
from api.proxy_logins import ProxyLogins
from api.requests import MendingRequest
from api.state import HANDLER_DEPENDENCIES, ApiServices
from api.waiting import ExecutionStarter, StatusWaiter
from domain import evaluations as domain_evaluations
from domain.artifacts import service as artifact_service
from domain.ports import Clock
from domain.shared.errors import DomainError
from domain.shared.jobs import ALL_LANES
from infra.embedded import create_parent_bond
from infra.settings import Settings, parse_networks, read_settings
from infra.telemetry import ApiMetrics, clear_shared_metrics, open_telemetry, share_metrics
from infra.version import PADDOCK_VERSION
from infra.wiring import Resources, get_utc_now, open_resources

CAPABILITY_ROUTERS = (
    accounts.router,
    tenants.router,
    keys.router,
    agents.router,
    states.router,
    builds.router,
    bulk_operations.router,
    executions.router,
    events.router,
    workspaces.router,
    artifacts.router,
    stats.router,
    evaluations.router,
    costs.router,
    budgets.router,
    llms.router,
    files.router,
    provider_keys.router,
    templates.router,
    threads.router,
    generation.router,
    crews.router,
    tasks.router,
    tools.router,
    traces.router,
    workflows.router,
    schedules.router,
    secrets.router,
    queues.router,
)
MAX_ARTIFACT_BATCH = 128
# A few batches of evaluations have enough rows for one transaction.
MAX_EVALUATION_BATCHES = 8
GC_THRESHOLDS = (20_000, 10, 10)
_API_DESCRIPTION = """Upload an agent; Paddock builds it, runs it in a sandbox, and keeps the records of its runs.

Send an API key as `X-API-Key`, or a bearer token from `POST /api/v1/auth/login`. Errors are
`application/problem+json`; lists are `{items, total, limit, offset, has_more}`, newest first.

Below `/v1`, agents, crews and workflows answer as models of OpenAI: its clients need a base URL and a key."""


def create_app(settings: Settings, clock: Clock = get_utc_now) -> ASGIApp:
    """Create the whole application, middleware included. Its lifespan opens and closes every connection."""
    key_usage = KeyUsageWriter()

    @asynccontextmanager
    async def open_services(app: Litestar) -> AsyncIterator[None]:
        async with open_resources(settings, "paddock api", row_changes=ALL_LANES, clock=clock) as resources:
            app.state.services = create_services(resources)
            app.state.query_parameters = _list_query_parameters(app)
            app.state.openapi_document = build_document(app)
            with contextlib.suppress(DomainError):
                # Upkeep does it too, but may not run when a month begins.
                async with resources.store.system_transaction() as tx:
                    await tx.partitions.create_partitions(tx.now, 1)
            _reduce_garbage_collection()
            stop = asyncio.Event()
            key_usage_task = asyncio.create_task(key_usage.run_until_stopped(resources.store, stop))
            try:
                async with app.state.services.mcp_server.run():
                    yield
            finally:
                stop.set()
                await key_usage_task

    app = Litestar(
        [
            Router("/api/v1", route_handlers=[*CAPABILITY_ROUTERS]),
            openai.router,
            health.router,
            mcp.router,
            *([docs.router] if settings.docs else []),
        ],
        lifespan=[open_services],
        guards=[authorize_route],
        dependencies=HANDLER_DEPENDENCIES,
        exception_handlers={
            DomainError: errors.on_domain_error,
            HTTPException: errors.on_http_error,
            RecursionError: errors.on_unreadable_body,
            UnicodeDecodeError: errors.on_unreadable_body,
            Exception: errors.on_unexpected_error,
        },
        request_class=MendingRequest,
        request_max_body_size=settings.body_max_bytes,
        cors_config=_configure_cors(settings),
        openapi_config=_configure_openapi(settings),
        logging_config=None,
    )
    trusted = parse_networks(settings.trusted_proxies, "trusted_proxies")
    bounds = ConnectionBounds(settings, trusted)
    return RequestMiddleware(app, lambda: app.state.services, key_usage, trusted, bounds)


def create_services(resources: Resources) -> ApiServices:
    """Create the services of this process from its open resources."""
    settings, clock, store, blobs = resources.settings, resources.clock, resources.store, resources.blobs
    answers = SealedAnswers(resources.vault)
    creator = ResourceCreator(store, answers)
    waiter = StatusWaiter(store, resources.bell)
    starter = ExecutionStarter(creator, waiter)
    body_memory = BodyMemoryLimiter()
    artifact_batches = BatchIngest(
        store,
        answers,
        artifact_service.store_artifacts,
        measure=lambda artifact: len(artifact.packed_body),
        max_items=MAX_ARTIFACT_BATCH,
    )
    artifact_reader, event_feed = ArtifactReader(store, blobs), EventFeed(store, resources.bell)
    authenticator = Authenticator(store, clock, resources.tokens, ProxyLogins(store, settings))
    evaluation_batches = BatchIngest(
        store, answers, domain_evaluations.create_batches, max_items=MAX_EVALUATION_BATCHES
    )
    return ApiServices(
        settings=settings,
        clock=clock,
        store=store,
        blobs=blobs,
        metrics=ApiMetrics(),
        keyring=resources.keyring,
        passwords=resources.passwords,
        authenticator=authenticator,
        rate_limiter=RateLimiter(resources.counter, settings, clock),
        guess_limiter=GuessLimiter(resources.counter, clock, settings.login_failures),
        token_issuer=TokenIssuer(resources.tokens, clock, timedelta(days=settings.refresh_token_days)),
        creator=creator,
        waiter=waiter,
        starter=starter,
        event_feed=event_feed,
        answer_sender=_create_answer_sender(resources, creator, event_feed, authenticator),
        archive_uploader=ArchiveUploader(store, blobs, settings, creator, waiter),
        file_uploader=FileUploader(blobs, settings, creator),
        generation_runner=GenerationRunner(store, starter, waiter),
        body_memory=body_memory,
        artifact_ingest=ArtifactIngest(body_memory=body_memory, batches=artifact_batches, clock=clock),
        artifact_reader=artifact_reader,
        evaluation_ingest=EvaluationIngest(
            body_memory=body_memory,
            single=BatchIngest(store, answers, domain_evaluations.create_evaluations),
            batches=evaluation_batches,
            clock=clock,
        ),
        workflow_locks=KeyedLocks(),
        mcp_server=McpServer(
            store=store,
            settings=settings,
            calls=ToolCalls(store=store, waiter=waiter, event_feed=event_feed, authenticator=authenticator),
            resources=McpResources(store=store, blobs=blobs, artifact_reader=artifact_reader, body_memory=body_memory),
        ),
        health_checker=HealthChecker(store, resources.redis, blobs, clock),
    )


def _create_answer_sender(
    resources: Resources, creator: ResourceCreator, event_feed: EventFeed, authenticator: Authenticator
) -> AnswerSender:
    return AnswerSender(
        store=resources.store,
        blobs=resources.blobs,
        creator=creator,
        event_feed=event_feed,
        authenticator=authenticator,
        storage_quota=resources.settings.tenant_max_stored_bytes,
    )


def _configure_cors(settings: Settings) -> CORSConfig:
    return CORSConfig(
        allow_origins=list(settings.cors_origins),
        allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"],
        allow_headers=[
            *("Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "Prefer"),
            *("X-API-Key", "X-Request-ID", "X-Paddock-Thread"),
            *("Mcp-Session-Id", "Mcp-Protocol-Version", "Mcp-Method", "Mcp-Name"),
        ],
        expose_headers=[
            *("X-Request-ID", "X-RateLimit-Limit", "X-RateLimit-Remaining", "X-RateLimit-Reset"),
            *("Retry-After", "Idempotency-Replayed", "Preference-Applied", "Mcp-Session-Id"),
        ],
    )


def _configure_openapi(settings: Settings) -> OpenAPIConfig:
    return OpenAPIConfig(
        title=settings.app_name,
        version=PADDOCK_VERSION,
        description=_API_DESCRIPTION,
        # Our own pages serve the document; requests to the path that Litestar insists on are refused.
        path="/_litestar",
        render_plugins=[JsonRenderPlugin(path="/openapi.json")],
        use_handler_docstrings=True,
        operation_id_creator=create_operation_id,
        components=Components(
            security_schemes={
                "ApiKey": SecurityScheme(type="apiKey", name="X-API-Key", security_scheme_in="header"),
                "Bearer": SecurityScheme(type="http", scheme="bearer"),
            }
        ),
        security=[{"ApiKey": []}, {"Bearer": []}],
    )


def _reduce_garbage_collection() -> None:
    """Exclude long-lived objects from garbage collection, and collect less often.

    Requests leave few reference cycles; collecting every 700 objects took a quarter of the time of a batch.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


def _list_query_parameters(app: Litestar) -> dict[tuple[str, str], frozenset[str]]:
    """Return the query parameters of each route by path and method; others are refused."""
    names: dict[tuple[str, str], frozenset[str]] = {}
    for path, item in (app.openapi_schema.paths or {}).items():
        for method in ("get", "post", "put", "patch", "delete"):
            operation = getattr(item, method)
            if operation is not None:
                parameters = operation.parameters or ()
                query = [parameter for parameter in parameters if getattr(parameter, "param_in", "") == "query"]
                names[(path, method.upper())] = frozenset(parameter.name for parameter in query)
    return names


def serve(settings: Settings, shares_port: bool = False) -> None:
    """Serve until SIGTERM or SIGINT, in this process or in `api_workers` child processes.

    With `shares_port` this process is one of several that its parent has started on one port.
    """
    open_telemetry(settings, "api")
    if shares_port:
        share_metrics(settings.metrics_dir)
        uvicorn.Server(uvicorn.Config(create_app(settings), **_configure_server(settings))).run(
            [_open_shared_socket(settings)]
        )
    elif settings.api_workers == 1:
        uvicorn.run(create_app(settings), **_configure_server(settings))
    else:
        clear_shared_metrics(settings.metrics_dir)
        uvicorn.run("api.app:create_worker", factory=True, workers=settings.api_workers, **_configure_server(settings))


def create_worker() -> ASGIApp:
    """Create the app of one of several processes of `paddock api`, from the environment."""
    # The parent may be killed; this process then ends too.
    create_parent_bond(signal.SIGTERM)()
    settings = read_settings()
    open_telemetry(settings, "api")
    share_metrics(settings.metrics_dir)
    return create_app(settings)


def _open_shared_socket(settings: Settings) -> socket.socket:
    shared = socket.create_server((settings.host, settings.port), reuse_port=True, backlog=2048)
    shared.setblocking(False)
    return shared


def _configure_server(settings: Settings) -> dict[str, Any]:
    return {
        "host": settings.host,
        "port": settings.port,
        "log_config": None,
        "access_log": False,
        "server_header": False,
        # PADDOCK_TRUSTED_PROXIES decides which proxies are trusted, not uvicorn.
        "proxy_headers": False,
        "timeout_graceful_shutdown": 5,
        "ws_max_size": settings.body_max_bytes,
        # By name, because each of several processes creates its own.
        "http": "api.connections:BoundedHttp",
        "ws": "api.connections:BoundedWebSockets",
    }
