"""Migrations of databases that hold something already."""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import asyncpg
from alembic import command
from sqlalchemy import Connection

from domain.shared import ids
from infra.postgres.db import create_engine
from infra.postgres.migrate import build_alembic_config, migrate_database
from scripts.system import System


@asynccontextmanager
async def database_at(system: System, revision: str) -> AsyncIterator[tuple[str, asyncpg.Connection]]:
    """A database as it was at a revision: its address, and a connection of the owner that sees every tenant."""
    name, owner_url = f"before_{secrets.token_hex(6)}", system.settings.database_owner_url.reveal()
    beside = urlsplit(owner_url)._replace(path=f"/{name}").geturl()

    def until(connection: Connection) -> None:
        made = build_alembic_config()
        made.attributes["connection"] = connection
        command.upgrade(made, revision)

    server = await asyncpg.connect(owner_url)
    try:
        await server.execute(f"CREATE DATABASE {name}")
        engine = create_engine(beside, pool_size=1, application="tests", as_owner=True)
        async with engine.begin() as connection:
            await connection.run_sync(until)
        await engine.dispose()
        owner = await asyncpg.connect(beside, server_settings={"paddock.every_tenant": "on"})
        try:
            yield beside, owner
        finally:
            await owner.close()
    finally:
        await server.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await server.close()


async def test_tenants_that_were_there_before_get_the_local_model(system: System) -> None:
    async with database_at(system, "0011") as (beside, owner):
        await owner.execute(
            "INSERT INTO tenants (id, plan, created_at) SELECT t, 'standard', now() "
            "FROM unnest(ARRAY['one', 'two']) AS t"
        )
        first = ids.generate_uuid7()
        await migrate_database(beside)
        found = await owner.fetch("SELECT * FROM models ORDER BY tenant_id")
    assert [(row["tenant_id"], row["name"], row["provider"]) for row in found] == [
        ("one", "smollm2", "local"),
        ("two", "smollm2", "local"),
    ]
    for row in found:
        assert (row["id"].version, row["id"].variant) == (7, first.variant)
        assert first.int >> 80 <= row["id"].int >> 80 <= ids.generate_uuid7().int >> 80
    assert found[0]["id"] != found[1]["id"]


async def test_e_mails_of_before_are_folded_and_look_alikes_stay_apart(system: System) -> None:
    before = {
        "plain@example.com": "plain@example.com",
        "ａda@example.com": "ada@example.com",
        "eve@xn--bcher-kva.example": "eve@bücher.example",
        "straße@example.com": "strasse@example.com",
        # Younger than what it looks like: the older keeps the address.
        "ｐlain@example.com": "ｐlain@example.com",
        "bob＠example.com": "bob@example.com",
        "ｂob@example.com": "ｂob@example.com",
    }
    async with database_at(system, "0025") as (beside, owner):
        await owner.execute("INSERT INTO tenants (id, plan, created_at) VALUES ('one', 'standard', now())")
        for email in before:
            await owner.execute(
                "INSERT INTO users (id, tenant_id, email, username, password_hash, role, is_active, created_at, updated_at)"
                " VALUES ($1, 'one', $2, $2, '', 'member', true, clock_timestamp(), now())",
                *(ids.generate_uuid7(), email),
            )
        await owner.execute(
            "INSERT INTO invites (id, tenant_id, email, role, token_hash, expires_at, created_at) "
            "VALUES ($1, 'one', 'ｎew@example.com', 'member', '\\x00', now(), now())",
            ids.generate_uuid7(),
        )
        await migrate_database(beside)
        users = await owner.fetch("SELECT email, username FROM users ORDER BY created_at")
        invited = await owner.fetchval("SELECT email FROM invites")
    assert [row["email"] for row in users] == list(before.values())
    assert [row["username"] for row in users] == list(before.values())
    assert invited == "new@example.com"
