"""Bundles: the unpacked, compiled files of versions, on this machine and in object storage."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from domain.builds import Version
from domain.builds.manifest import memory_of
from domain.ports import ArchiveLimits, Blobs, Program, Sandbox
from infra.build_cache.environments import Environments, fetch_folder, pack, place
from infra.build_cache.folders import FolderCache

# Twice an upload's: bytecode lies beside the sources.
LIMITS: Final = ArchiveLimits(entries=40_000, depth=40, file=256 << 20, total=1 << 30)


class Bundles:
    """The versions of this machine, in the cache."""

    def __init__(self, cache: FolderCache, blobs: Blobs, sandbox: Sandbox, environments: Environments) -> None:
        self._cache = cache
        self._blobs = blobs
        self._sandbox = sandbox
        self._environments = environments
        self._locks: dict[str, asyncio.Lock] = {}
        self._at_hand: set[str] = set()

    @property
    def at_hand(self) -> frozenset[str]:
        """The versions that were run here and can be run again without fetching anything."""
        return frozenset(self._at_hand)

    def scratch(self) -> AbstractAsyncContextManager[Path]:
        """An empty folder on the same file system as the bundles, gone in the end."""
        return self._cache.scratch("bundles")

    async def store(self, version: Version, folder: Path, key: str, scratch: Path) -> None:
        """Keep a built folder here and in object storage under `key`. The folder is moved."""
        archive = scratch / "bundle.tar.gz"
        await asyncio.to_thread(pack, folder, archive)
        await self._blobs.put_file(key, archive)
        place(folder, self._cache.path("bundles", version.id))
        await asyncio.to_thread(self._cache.make_room)

    @asynccontextmanager
    async def open_program(self, version: Version, timeout: float) -> AsyncIterator[Program]:
        """Yield a ready version as something to run, fetched if need be, which stays while this is entered.

        Errors: `not_found`, `storage_unavailable`.
        """
        with ExitStack() as held:
            environment = None
            async with self._locks.setdefault(version.id, asyncio.Lock()):
                code = held.enter_context(self._cache.hold("bundles", version.id))
                if version.environment:
                    environment = held.enter_context(self._environments.hold(version.environment))
                if not code.is_dir():
                    place_of = ("bundles", version.id)
                    key = version.bundle_path or ""
                    await fetch_folder(self._cache, self._blobs, self._sandbox, key, place_of, LIMITS)
                if version.environment:
                    await self._environments.fetch(version.environment)
            self._at_hand.add(version.id)
            yield Program(
                code=code,
                environment=environment,
                entrypoint=version.entrypoint or "",
                timeout=timeout,
                memory_mb=memory_of(version.memory),
                gateway=bool(version.models),
            )

    def forget(self, version_ids: list[str]) -> None:
        """These are not at hand any more."""
        self._at_hand.difference_update(version_ids)
