"""Migrate the database to the newest schema, once, however many processes ask at the same time."""

from pathlib import Path
from typing import Final

import asyncpg
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from domain.stats import RECORD_KINDS
from infra.postgres.db import create_engine
from infra.postgres.role import APP_ROLE
from infra.postgres.session import UnsafeSession

SCHEMA_FOLDER: Final = Path(__file__).parent / "schema"
FUNCTIONS_FOLDER: Final = SCHEMA_FOLDER / "functions"
# The advisory lock that lets one migration run at a time. The number spells "paddc".
_MIGRATION_LOCK: Final = 0x7061646463
# Partitions of record tables are created for this month and so many more.
_MONTHS_AHEAD: Final = 2


class MigrationError(Exception):
    """Report why the database could not be migrated. Nothing was changed."""


def build_alembic_config() -> Config:
    """Return Alembic's configuration, without an ini file."""
    config = Config()
    config.set_main_option("script_location", str(SCHEMA_FOLDER))
    return config


async def migrate_database(url: str) -> None:
    """Migrate as the owner of the tables, in one transaction.

    Migrations run once each. Then every function of `schema/functions/` is replaced by the file's text, row-level
    security is put on tables that lack it, and missing partitions are created.
    Errors: `MigrationError`; `UnsafeSession` when the application's role could bypass row-level security.
    """
    engine = create_engine(url, pool_size=1, application="paddock migrate", as_owner=True)
    try:
        async with engine.begin() as connection:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATION_LOCK})
            # Row-level security applies to the owner too, and migrations change rows of all tenants.
            await connection.execute(text("SELECT set_config('paddock.every_tenant', 'on', true)"))
            await connection.run_sync(_run_migrations)
            await _replace_functions(connection)
            await connection.execute(text("SELECT force_row_security_everywhere()"))
            for kind in RECORD_KINDS:
                create_partitions = text("SELECT make_partitions(:kind, now(), :ahead)")
                await connection.execute(create_partitions, {"kind": kind, "ahead": _MONTHS_AHEAD})
            await _check_app_role(connection)
    finally:
        await engine.dispose()


def _run_migrations(connection: Connection) -> None:
    config = build_alembic_config()
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise MigrationError(
            f"This database was migrated by another release of Paddock ({error}). "
            "Use that release, or start with an empty database."
        ) from error


async def _replace_functions(connection: AsyncConnection) -> None:
    raw = (await connection.get_raw_connection()).driver_connection
    assert raw is not None
    # Functions refer to each other: their bodies are checked when they are called.
    await raw.execute("SET LOCAL check_function_bodies = off")
    for file in sorted(FUNCTIONS_FOLDER.glob("*.sql")):
        try:
            await raw.execute(file.read_text())
        except asyncpg.PostgresError as error:
            raise MigrationError(f"schema/functions/{file.name} cannot be applied: {error}") from error
    await raw.execute("SET LOCAL check_function_bodies = on")


async def _check_app_role(connection: AsyncConnection) -> None:
    can_bypass = await connection.execute(
        text("SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = :role"), {"role": APP_ROLE}
    )
    if can_bypass.scalar_one():
        raise UnsafeSession(
            f"The role {APP_ROLE} can bypass row-level security. Run: ALTER ROLE {APP_ROLE} NOSUPERUSER NOBYPASSRLS"
        )
