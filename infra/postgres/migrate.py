"""Bring the database to the newest schema, once, however many processes ask at the same time."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

from infra.postgres.db import create_engine
from infra.postgres.role import APP_ROLE
from infra.postgres.session import UnsafeSession

SCHEMA_FOLDER = Path(__file__).parent / "schema"
_LOCK = 0x7061646463  # "paddc": one migration at a time


def build_alembic_config() -> Config:
    """Alembic's configuration, without an ini file."""
    made = Config()
    made.set_main_option("script_location", str(SCHEMA_FOLDER))
    return made


def _upgrade(connection: Connection) -> None:
    made = build_alembic_config()
    made.attributes["connection"] = connection
    command.upgrade(made, "head")


async def migrate_database(url: str) -> None:
    """Migrate as the owner of the tables. Errors: `UnsafeSession` when the role of the application is too mighty."""
    engine = create_engine(url, pool_size=1, application="paddock migrate", as_owner=True)
    try:
        async with engine.begin() as connection:
            await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            # Row-level security holds the owner too, and migrations change rows of all tenants.
            await connection.execute(text("SELECT set_config('paddock.every_tenant', 'on', true)"))
            await connection.run_sync(_upgrade)
            await connection.execute(text("SELECT force_row_security_everywhere()"))
            mighty = await connection.execute(
                text("SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = :role"), {"role": APP_ROLE}
            )
            if mighty.scalar_one():
                raise UnsafeSession(
                    f"The role {APP_ROLE} can bypass row-level security. "
                    f"Run: ALTER ROLE {APP_ROLE} NOSUPERUSER NOBYPASSRLS"
                )
    finally:
        await engine.dispose()
