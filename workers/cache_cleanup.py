"""Keep the caches of one machine within their limits, and remove deleted versions from them."""

import asyncio
import time
from typing import Final

import structlog

from domain.ports import Store
from infra.build_cache import FolderCache

# Seconds that an environment without a version stays: a failed build needs it again once the upload is corrected.
UNCLAIMED_SECONDS: Final = 3600.0

_log = structlog.get_logger("paddock.cache")


async def clean_cache(cache: FolderCache, store: Store, unused_seconds: float) -> list[str]:
    """Remove folders unused for `unused_seconds`, those of deleted agents, and those beyond the cache's limits.

    Return the versions that were deleted. Errors: `unavailable` and other outages of the database, `OSError`.
    """
    now = time.time()
    removed = await asyncio.to_thread(cache.remove_unused, now - unused_seconds)
    versions, environments = await asyncio.to_thread(
        lambda: (cache.list_names("bundles"), cache.list_names("environments"))
    )
    async with store.system_transaction() as tx:
        known_versions = await tx.references.find_versions(versions) if versions else set()
        claimed = await tx.references.find_environments(environments) if environments else set()
    gone = [name for name in versions if name not in known_versions]
    unclaimed = [name for name in environments if name not in claimed]
    removed += await asyncio.to_thread(cache.remove_folders, "bundles", gone, now)
    removed += await asyncio.to_thread(cache.remove_folders, "environments", unclaimed, now - UNCLAIMED_SECONDS)
    removed += await asyncio.to_thread(cache.evict_excess)
    if removed:
        _log.info("removed from the cache", folders=removed)
    return gone
