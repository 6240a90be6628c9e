"""Prepare the database and the object storage for a release, and change a tenant's plan."""

import sys

from sqlalchemy import text

from infra.postgres.db import create_engine
from infra.postgres.migrate import MigrationError, migrate_database
from infra.postgres.session import UnsafeSession
from infra.r2 import S3Blobs
from infra.settings import Settings


async def prepare_release(settings: Settings, with_bucket: bool = True) -> None:
    """Migrate the database and create the bucket. Ends the process with the reason if it cannot."""
    try:
        await migrate_database(settings.database_owner_url.reveal())
    except (MigrationError, UnsafeSession) as error:
        sys.exit(f"paddock: {error}")
    if with_bucket:
        await ensure_bucket(settings)


async def ensure_bucket(settings: Settings) -> None:
    """Create the bucket if it does not exist."""
    async with S3Blobs(settings) as blobs:
        await blobs.ensure_bucket()


async def set_tenant_plan(settings: Settings, tenant: str, plan: str) -> int:
    """Set a tenant's plan as the owner of the tables, which no API can do. Returns an exit code."""
    engine = create_engine(settings.database_owner_url.reveal(), pool_size=1, application="paddock plan", as_owner=True)
    try:
        async with engine.begin() as connection:
            await connection.execute(text("SELECT set_config('paddock.every_tenant', 'on', true)"))
            changed = await connection.execute(
                text("UPDATE tenants SET plan = :plan WHERE id = :tenant"), {"plan": plan, "tenant": tenant}
            )
    finally:
        await engine.dispose()
    if changed.rowcount != 1:
        print(f"paddock: the tenant {tenant!r} does not exist.", file=sys.stderr)
        return 1
    print(f"{tenant} is now {plan}")
    return 0
