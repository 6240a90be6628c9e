"""Hold the services of this process, and provide each handler with those that it names."""

from typing import Any, Final

import msgspec
from litestar.di import Provide
from litestar.types import Scope

from api.accounts import TokenIssuer
from api.artifacts import ArtifactIngest, ArtifactReader
from api.auth import Authenticator
from api.body_memory import BodyMemoryLimiter
from api.builds import ArchiveUploader
from api.evaluations import EvaluationIngest
from api.event_feed import EventFeed
from api.files import FileUploader
from api.generation import GenerationRunner
from api.health import HealthChecker
from api.idempotency import ResourceCreator
from api.keyed_locks import KeyedLocks
from api.limits import RateLimiter
from api.mcp import McpServer
from api.openai import AnswerSender
from api.password_guesses import GuessLimiter
from api.waiting import ExecutionStarter, StatusWaiter
from domain.ports import Blobs, Clock, Store
from domain.shared.access import Caller
from domain.shared.pages import Page, parse_page
from infra.credentials import Keyring, Passwords
from infra.settings import Settings
from infra.telemetry import ApiMetrics


class ApiServices(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the services of this process. A handler's parameter of the same name receives one of them."""

    settings: Settings
    clock: Clock
    store: Store
    blobs: Blobs
    metrics: ApiMetrics
    keyring: Keyring
    passwords: Passwords
    authenticator: Authenticator
    rate_limiter: RateLimiter
    guess_limiter: GuessLimiter
    token_issuer: TokenIssuer
    creator: ResourceCreator
    waiter: StatusWaiter
    starter: ExecutionStarter
    event_feed: EventFeed
    answer_sender: AnswerSender
    archive_uploader: ArchiveUploader
    file_uploader: FileUploader
    generation_runner: GenerationRunner
    body_memory: BodyMemoryLimiter
    artifact_ingest: ArtifactIngest
    artifact_reader: ArtifactReader
    evaluation_ingest: EvaluationIngest
    workflow_locks: KeyedLocks
    mcp_server: McpServer
    health_checker: HealthChecker


def provide_caller(scope: Scope) -> Caller | None:
    """Return the caller that `authorize_route` admitted, or None on public routes."""
    caller: Caller | None = scope["state"].get("caller")
    return caller


def provide_pagination(
    limit: int | None = None,
    offset: int | None = None,
    skip: int | None = None,
    page: int | None = None,
    page_size: int | None = None,
) -> Page:
    """Return the requested part of a list: `limit` and `offset`, or `skip`, or `page` and `page_size`."""
    return parse_page(limit, offset, skip, page, page_size)


def _provide_service(name: str) -> Provide:
    # Asks for the caller only to be resolved after it: two dependencies side by side would cost two tasks. Reads from
    # the app itself: Litestar copies `state` for every request that asks for it.
    def provide_service(scope: Scope, caller: Any) -> Any:
        return getattr(scope["litestar_app"].state.services, name)

    return Provide(provide_service, sync_to_thread=False)


HANDLER_DEPENDENCIES: Final = {
    "caller": Provide(provide_caller, sync_to_thread=False),
    "pagination": Provide(provide_pagination, sync_to_thread=False),
    **{name: _provide_service(name) for name in ApiServices.__struct_fields__},
}
