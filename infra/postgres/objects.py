"""List the objects in object storage that rows refer to, for tools that copy rows and objects."""

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Final

import asyncpg

from domain.shared import ids

_REFERENCED_KEYS_SQL: Final = """
    SELECT v.tarball_path FROM agent_versions v JOIN agents a ON a.id = v.agent_id WHERE a.deleted_at IS NULL
    UNION SELECT v.bundle_path FROM agent_versions v JOIN agents a ON a.id = v.agent_id
          WHERE a.deleted_at IS NULL AND v.bundle_path IS NOT NULL
    UNION SELECT 'environments/' || v.environment || '.tar.gz' FROM agent_versions v JOIN agents a ON a.id = v.agent_id
          WHERE a.deleted_at IS NULL AND v.environment IS NOT NULL AND v.status = 'ready'
    UNION SELECT f.key FROM workspace_files f
    UNION SELECT f.key FROM files f
"""
# A body that still waits in the database is no object yet.
_ARTIFACT_KEYS_SQL: Final = """
    SELECT a.tenant_id, a.id, a.received_at FROM artifacts a
    WHERE NOT EXISTS (SELECT FROM artifact_bodies b WHERE b.id = a.id)
"""


def format_artifact_key(tenant_id: str, received_at: datetime, artifact_id: str) -> str:
    """Return where the body of an artifact lies in object storage."""
    return f"artifacts/{tenant_id}/{received_at:%Y/%m}/{artifact_id}"


async def iterate_referenced_keys(owner_url: str) -> AsyncIterator[str]:
    """Yield the key of every object that some row needs, over all tenants, as the owner of the tables."""
    owner = await asyncpg.connect(owner_url)
    try:
        async with owner.transaction(isolation="repeatable_read", readonly=True):
            await owner.execute("SELECT set_config('paddock.every_tenant', 'on', true)")
            async for row in owner.cursor(_REFERENCED_KEYS_SQL, prefetch=1000):
                yield row[0]
            async for row in owner.cursor(_ARTIFACT_KEYS_SQL, prefetch=1000):
                yield format_artifact_key(row["tenant_id"], row["received_at"], ids.encode_id("art", row["id"]))
    finally:
        await owner.close()
