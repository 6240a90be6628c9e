"""What a release does before its processes start, and operators' changes of plan."""

import sys

from sqlalchemy import text

from infra.postgres.db import create_engine
from infra.postgres.migrate import MigrationError, migrate_database
from infra.postgres.session import UnsafeSession
from infra.r2 import S3Blobs
from infra.settings import Settings


async def prepare_release(settings: Settings, bucket: bool = True) -> None:
    """Migrate the database and see that the bucket is there. Ends the process with a reason if it cannot."""
    try:
        await migrate_database(settings.database_owner_url.reveal())
    except (MigrationError, UnsafeSession) as error:
        sys.exit(f"paddock: {error}")
    if bucket:
        await ensure_bucket(settings)


async def ensure_bucket(settings: Settings) -> None:
    """Create the bucket if it is not there."""
    async with S3Blobs(settings) as blobs:
        await blobs.ensure_bucket()


async def set_tenant_plan(settings: Settings, tenant: str, plan: str) -> int:
    """Set a tenant's plan, as the owner of the tables: no API can. Returns an exit code."""
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
        print(f"paddock: there is no tenant {tenant!r}.", file=sys.stderr)
        return 1
    print(f"{tenant} is {plan} now")
    return 0
