"""Create a database for one test beside the running system's: no worker claims what the test puts there."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from urllib.parse import urlsplit

import asyncpg

from domain.shared import ids
from domain.shared.access import SCOPES_BY_ROLE, Caller
from infra.postgres.migrate import migrate_database
from scripts.system import System

NOW = datetime(2030, 1, 1, tzinfo=UTC)


class SilentBell:
    """A bell that loses every ring, for tests that do not depend on one."""

    async def ring_jobs(self, jobs: object, changes: object = ()) -> None: ...

    async def ring_lost_jobs(self, jobs: object) -> int:
        return 0


class IsolatedDatabase:
    """A database for one test. `url` is the application's, `owner` a connection that sees all."""

    def __init__(self, url: str, owner: asyncpg.Connection) -> None:
        self.url, self.owner = url, owner

    async def add_tenant(self) -> Caller:
        """A tenant with one user, who may do everything."""
        tenant_id, user = f"t-{secrets.token_hex(6)}", ids.generate_uuid7()
        await self.owner.execute(
            "INSERT INTO tenants (id, plan, created_at) VALUES ($1, 'standard', $2)", tenant_id, NOW
        )
        await self.owner.execute(
            "INSERT INTO users (id, tenant_id, email, password_hash, role, is_active, created_at, updated_at) "
            "VALUES ($1, $2, $3, '', 'admin', true, $4, $4)",
            *(user, tenant_id, f"{tenant_id}@example.com", NOW),
        )
        return Caller(
            tenant_id=tenant_id, user_id=ids.encode_id("user", user), role="admin", scopes=SCOPES_BY_ROLE["admin"]
        )

    async def add_agent(self, caller: Caller, max_concurrency: int | None = None, policy: str = "queue") -> str:
        """A ready agent of the tenant; its id."""
        agent, version = ids.generate_uuid7(), ids.generate_uuid7()
        user = ids.decode_id("user", caller.user_id)
        await self.owner.execute(
            "INSERT INTO agents (id, tenant_id, user_id, name, kind, status, current_version_id, max_concurrency, "
            "concurrency_policy, created_at, updated_at) VALUES ($1, $2, $3, $4, 'code', 'ready', $5, $6, $7, $8, $8)",
            *(agent, caller.tenant_id, user, secrets.token_hex(6), version, max_concurrency, policy, NOW),
        )
        await self.owner.execute(
            "INSERT INTO agent_versions (id, tenant_id, agent_id, number, version, status, tarball_path, entrypoint, "
            "sha256, size_bytes, attempt, created_at, updated_at) "
            "VALUES ($1, $2, $3, 1, 'v1', 'ready', $4, 'agent:handle', '', 0, 1, $5, $5)",
            *(version, caller.tenant_id, agent, str(version), NOW),
        )
        return ids.encode_id("agent", agent)


# Migrated once per server and copied for every test: copying takes a twentieth of the time.
_TEMPLATES: dict[str, str] = {}


async def _create_template(server: asyncpg.Connection, owner_url: str) -> str:
    """Return the name of a migrated, empty database to copy, made on first use."""
    if owner_url not in _TEMPLATES:
        name = f"template_{secrets.token_hex(6)}"
        await server.execute(f"CREATE DATABASE {name}")
        await migrate_database(urlsplit(owner_url)._replace(path=f"/{name}").geturl())
        _TEMPLATES[owner_url] = name
    return _TEMPLATES[owner_url]


@asynccontextmanager
async def open_isolated_database(system: System) -> AsyncIterator[IsolatedDatabase]:
    """Yield a migrated database, dropped in the end."""
    name = f"apart_{secrets.token_hex(6)}"
    owner_url, app_url = (url.reveal() for url in (system.settings.database_owner_url, system.settings.database_url))
    server = await asyncpg.connect(owner_url)
    try:
        await server.execute(f"CREATE DATABASE {name} TEMPLATE {await _create_template(server, owner_url)}")
        owner = await asyncpg.connect(urlsplit(owner_url)._replace(path=f"/{name}").geturl())
        try:
            yield IsolatedDatabase(urlsplit(app_url)._replace(path=f"/{name}").geturl(), owner)
        finally:
            await owner.close()
    finally:
        await server.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await server.close()
