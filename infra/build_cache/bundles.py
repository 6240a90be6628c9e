"""Keep bundles, the unpacked and compiled files of versions, on this machine and in object storage."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from domain.builds import AgentVersion, get_memory_limit
from domain.ports import ArchiveLimits, Blobs, Sandbox, SandboxProgram
from infra.build_cache.archives import fetch_folder, pack_folder, place_folder
from infra.build_cache.environments import EnvironmentCache
from infra.build_cache.folders import FolderCache

# Twice an upload's limits: bytecode lies beside the sources.
BUNDLE_LIMITS: Final = ArchiveLimits(entries=40_000, depth=40, file=256 << 20, total=1 << 30)


class BundleCache:
    """Keep the versions of this machine in the cache."""

    def __init__(self, cache: FolderCache, blobs: Blobs, sandbox: Sandbox, environments: EnvironmentCache) -> None:
        self._cache = cache
        self._blobs = blobs
        self._sandbox = sandbox
        self._environments = environments
        self._locks: dict[str, asyncio.Lock] = {}
        self._local_version_ids: set[str] = set()

    @property
    def local_version_ids(self) -> frozenset[str]:
        """Return the versions that ran here and can run again without a fetch."""
        return frozenset(self._local_version_ids)

    def open_scratch(self) -> AbstractAsyncContextManager[Path]:
        """Open an empty folder on the same file system as the bundles; it is removed when the context closes."""
        return self._cache.open_scratch("bundles")

    async def store_bundle(self, version: AgentVersion, folder: Path, key: str, scratch: Path) -> None:
        """Store a built folder here and in object storage under `key`. The folder is moved."""
        archive = scratch / "bundle.tar.gz"
        await asyncio.to_thread(pack_folder, folder, archive)
        await self._blobs.upload_file(key, archive)
        place_folder(folder, self._cache.get_path("bundles", version.id))
        await asyncio.to_thread(self._cache.evict_excess)

    @asynccontextmanager
    async def open_program(self, version: AgentVersion, timeout: float) -> AsyncIterator[SandboxProgram]:
        """Yield a ready version as a program, fetched if it is missing, which stays while this context is open.

        Errors: `not_found`, `storage_unavailable`.
        """
        with ExitStack() as locks:
            environment = None
            async with self._locks.setdefault(version.id, asyncio.Lock()):
                code = locks.enter_context(self._cache.lock_folder("bundles", version.id))
                if version.environment:
                    environment = locks.enter_context(self._environments.lock_environment(version.environment))
                if not code.is_dir():
                    location = ("bundles", version.id)
                    key = version.bundle_path or ""
                    await fetch_folder(self._cache, self._blobs, self._sandbox, key, location, BUNDLE_LIMITS)
                if version.environment:
                    await self._environments.fetch_environment(version.environment)
            self._local_version_ids.add(version.id)
            yield SandboxProgram(
                code=code,
                environment=environment,
                entrypoint=version.entrypoint or "",
                timeout=timeout,
                memory_mb=get_memory_limit(version.memory),
            )

    def forget_versions(self, version_ids: list[str]) -> None:
        """Forget versions that are no longer cached here."""
        self._local_version_ids.difference_update(version_ids)
