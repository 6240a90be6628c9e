"""Connect the parts of a process, in one place that reads from top to bottom."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from domain import egress
from domain.ports import Clock
from domain.shared.errors import DomainError
from domain.shared.jobs import Lane
from infra.credentials import AccessTokens, Keyring, Passwords, Vault
from infra.disks import find_embedded_folder
from infra.notifications import ArqQueue, create_arq_client
from infra.postgres.db import create_engine
from infra.postgres.session import UnsafeSession
from infra.postgres.store import PostgresStore
from infra.r2 import S3Blobs
from infra.redis import Bell, WindowCounter, create_redis_client
from infra.settings import Settings


def get_utc_now() -> datetime:
    """Return the time; the clock of production."""
    return datetime.now(UTC)


class Resources(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what every process uses, opened and ready."""

    settings: Settings
    clock: Clock
    queue: ArqQueue
    store: PostgresStore
    blobs: S3Blobs
    bell: Bell
    redis: Redis
    counter: WindowCounter
    passwords: Passwords
    tokens: AccessTokens
    vault: Vault
    keyring: Keyring

    @asynccontextmanager
    async def open_dedicated_store(self) -> AsyncIterator[PostgresStore]:
        """Open a store with a connection of its own, for work that must not queue for one: extending leases."""
        engine = create_engine(self.settings.database_url.reveal(), pool_size=1, application="paddock leases")
        store = _create_store(self.settings, engine, self.queue, self.clock)
        try:
            yield store
        finally:
            await store.close()


@asynccontextmanager
async def open_resources(
    settings: Settings,
    application: str,
    lanes: tuple[Lane, ...] = (),
    row_changes: tuple[Lane, ...] = (),
    revocations: tuple[Lane, ...] = (),
    clock: Clock = get_utc_now,
) -> AsyncIterator[Resources]:
    """Open every connection of a process, and close them all at the end.

    The bell listens for rings of `lanes`, for status changes of the rows of `row_changes`, and for rows of
    `revocations` that a worker loses. Errors: `UnsafeSession` when a session of the database could bypass row-level
    security. A database that is unavailable is no error here: its first users wait for it.
    """
    redis_url = settings.redis_url.reveal()
    secret_key = settings.secret_key.reveal()
    access_token_lifetime = timedelta(minutes=settings.access_token_minutes)

    redis, jobs = create_redis_client(redis_url), create_arq_client(redis_url)
    queue = ArqQueue(jobs)
    engine = create_engine(settings.database_url.reveal(), pool_size=settings.database_pool, application=application)
    store = _create_store(settings, engine, queue, clock)
    try:
        await _refuse_unsafe_session(store)
        async with S3Blobs(settings) as blobs, Bell(redis_url, lanes, row_changes, revocations) as bell:
            yield Resources(
                settings=settings,
                clock=clock,
                queue=queue,
                store=store,
                blobs=blobs,
                bell=bell,
                redis=redis,
                counter=WindowCounter(redis),
                passwords=Passwords(),
                tokens=AccessTokens(secret_key, access_token_lifetime, settings.jwt_algorithm),
                vault=Vault(secret_key),
                keyring=Keyring(settings.encryption_keys, secret_key),
            )
    finally:
        await queue.close()
        await store.close()
        await redis.aclose()
        await jobs.aclose()


def _create_store(settings: Settings, engine: AsyncEngine, queue: ArqQueue, clock: Clock) -> PostgresStore:
    policy = egress.parse_policy(settings.egress)
    return PostgresStore(engine, queue, clock, _find_database_folder(settings), installation_egress=policy)


def _find_database_folder(settings: Settings) -> Path | None:
    return find_embedded_folder(Path(settings.data_dir), "postgres", settings.database_url.reveal())


async def _refuse_unsafe_session(store: PostgresStore) -> None:
    try:
        await store.check_health()
    except DomainError as error:
        if error.code == "database_unsafe":
            raise UnsafeSession(error.detail) from error
