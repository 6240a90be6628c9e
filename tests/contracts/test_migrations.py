"""Migrations: a new database, one that is migrated again, several processes at once, and what goes wrong."""

import asyncio
import re
import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from infra.postgres import migrate
from infra.postgres.migrate import FUNCTIONS_FOLDER, MigrationError, migrate_database
from scripts.system import System

FUNCTIONS = "SELECT proname, prosrc FROM pg_proc WHERE pronamespace = 'public'::regnamespace ORDER BY proname, oid"


@asynccontextmanager
async def create_empty_database(system: System) -> AsyncIterator[tuple[str, asyncpg.Connection]]:
    """Yield the address of a new database that is not migrated, and a connection of its owner that sees every tenant."""
    name, owner_url = f"empty_{secrets.token_hex(6)}", system.settings.database_owner_url.reveal()
    url = urlsplit(owner_url)._replace(path=f"/{name}").geturl()
    server = await asyncpg.connect(owner_url)
    try:
        await server.execute(f"CREATE DATABASE {name}")
        owner = await asyncpg.connect(url, server_settings={"paddock.every_tenant": "on"})
        try:
            yield url, owner
        finally:
            await owner.close()
    finally:
        await server.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await server.close()


@asynccontextmanager
async def open_migrated_database(system: System) -> AsyncIterator[tuple[str, asyncpg.Connection]]:
    async with create_empty_database(system) as (url, owner):
        await migrate_database(url)
        yield url, owner


def read_functions(folder: Path = FUNCTIONS_FOLDER) -> dict[str, str]:
    """Return the body of each function by the name of its file."""
    bodies = {}
    for file in sorted(folder.glob("*.sql")):
        text = file.read_text()
        assert text.startswith("-- "), f"{file.name} begins with a comment that says what the function does"
        assert re.findall(r"^CREATE OR REPLACE FUNCTION (\w+)\(", text, re.M) == [file.stem], file.name
        bodies[file.stem] = text.split("AS $$", 1)[1].split("$$;", 1)[0]
    return bodies


async def test_functions_of_a_database_equal_the_files(system: System) -> None:
    async with open_migrated_database(system) as (_, owner):
        functions = [(row["proname"], row["prosrc"]) for row in await owner.fetch(FUNCTIONS)]
    assert functions == sorted(read_functions().items())


async def test_every_function_body_is_valid(system: System) -> None:
    """Check the bodies, which a migration does not, as functions refer to each other."""
    async with open_migrated_database(system) as (_, owner):
        await owner.execute("SET check_function_bodies = on")
        for file in sorted(FUNCTIONS_FOLDER.glob("*.sql")):
            await owner.execute(file.read_text())


async def test_only_the_application_may_call_security_definer_functions(system: System) -> None:
    async with open_migrated_database(system) as (_, owner):
        public_functions = await owner.fetch(
            "SELECT proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND prosecdef "
            "AND has_function_privilege('public', oid, 'EXECUTE')"
        )
    assert public_functions == []


async def test_migrating_again_restores_functions_only(system: System) -> None:
    schema = """
        SELECT c.relname || ' ' || a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid
        WHERE c.relnamespace = 'public'::regnamespace AND a.attnum > 0
        UNION ALL SELECT 'policy ' || polname || ' ' || polrelid::regclass FROM pg_policy
        UNION ALL SELECT 'trigger ' || tgname || ' ' || oid FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1
    """
    async with open_migrated_database(system) as (url, owner):
        schema_before, functions = await owner.fetch(schema), await owner.fetch(FUNCTIONS)
        assert len([row for row in schema_before if row[0].startswith("trigger ")]) == 8
        await owner.execute(
            "CREATE OR REPLACE FUNCTION first_id(at timestamptz) RETURNS uuid LANGUAGE sql "
            "IMMUTABLE AS 'SELECT gen_random_uuid()'"
        )
        assert await owner.fetch(FUNCTIONS) != functions
        await migrate_database(url)
        assert await owner.fetch(schema) == schema_before
        assert await owner.fetch(FUNCTIONS) == functions


async def test_several_processes_migrate_at_once(system: System) -> None:
    async with create_empty_database(system) as (url, owner):
        await asyncio.gather(*(migrate_database(url) for _ in range(3)))
        assert await owner.fetchval("SELECT count(*) FROM alembic_version") == 1
        assert await owner.fetchval("SELECT count(*) FROM pg_class WHERE relname ~ '_[0-9]{4}_[0-9]{2}$'") == 9


async def test_failed_function_leaves_the_database_unchanged(
    system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "functions"
    shutil.copytree(FUNCTIONS_FOLDER, folder)
    (folder / "run_states.sql").write_text("CREATE OR REPLACE FUNCTION run_states() RETURNS nonsense AS $$ $$;")
    monkeypatch.setattr(migrate, "FUNCTIONS_FOLDER", folder)
    async with create_empty_database(system) as (url, owner):
        with pytest.raises(MigrationError, match=r"run_states\.sql"):
            await migrate_database(url)
        assert await owner.fetchval("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace") == 0


async def test_database_of_another_release_is_refused(system: System) -> None:
    async with open_migrated_database(system) as (url, owner):
        await owner.execute("UPDATE alembic_version SET version_num = '0028'")
        with pytest.raises(MigrationError, match="migrated by another release of Paddock .*0028"):
            await migrate_database(url)
