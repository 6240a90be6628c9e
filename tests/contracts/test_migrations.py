"""Migrations of databases that hold something already."""

import secrets
from urllib.parse import urlsplit

import asyncpg
from alembic import command
from sqlalchemy import Connection

from domain import ids
from infra.postgres.db import connect
from infra.postgres.migrate import config, migrate
from scripts.up import System


async def test_tenants_that_were_there_before_get_the_local_model(system: System) -> None:
    name, owner_url = f"before_{secrets.token_hex(6)}", system.settings.database_owner_url.reveal()
    beside = urlsplit(owner_url)._replace(path=f"/{name}").geturl()

    def until_0011(connection: Connection) -> None:
        made = config()
        made.attributes["connection"] = connection
        command.upgrade(made, "0011")

    server = await asyncpg.connect(owner_url)
    try:
        await server.execute(f"CREATE DATABASE {name}")
        engine = connect(beside, pool_size=1, application="tests", as_owner=True)
        async with engine.begin() as connection:
            await connection.run_sync(until_0011)
        await engine.dispose()
        owner = await asyncpg.connect(beside)
        try:
            await owner.execute(
                "INSERT INTO tenants (id, plan, created_at) SELECT t, 'standard', now() "
                "FROM unnest(ARRAY['one', 'two']) AS t"
            )
            first = ids.uuid7()
            await migrate(beside)
            found = await owner.fetch("SELECT * FROM models ORDER BY tenant_id")
        finally:
            await owner.close()
    finally:
        await server.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await server.close()
    assert [(row["tenant_id"], row["name"], row["provider"]) for row in found] == [
        ("one", "smollm2", "local"),
        ("two", "smollm2", "local"),
    ]
    for row in found:
        assert (row["id"].version, row["id"].variant) == (7, first.variant)
        assert first.int >> 80 <= row["id"].int >> 80 <= ids.uuid7().int >> 80
    assert found[0]["id"] != found[1]["id"]
