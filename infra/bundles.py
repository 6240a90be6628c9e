"""Bundles: the unpacked, compiled files of versions, on this machine and in object storage."""

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from domain.archives import memory_of
from domain.builds import Version
from domain.ports import ArchiveLimits, Blobs, Program, Sandbox
from infra.environments import Environments, fetch_folder, pack, place, use

# Twice an upload's: bytecode lies beside the sources.
LIMITS: Final = ArchiveLimits(entries=40_000, depth=40, file=256 << 20, total=1 << 30)


class Bundles:
    """The versions of this machine, in `cache/bundles`."""

    def __init__(self, cache: Path, blobs: Blobs, sandbox: Sandbox, environments: Environments) -> None:
        self._folder = cache / "bundles"
        self._blobs = blobs
        self._sandbox = sandbox
        self._environments = environments
        self._locks: dict[str, asyncio.Lock] = {}
        self._at_hand: set[str] = set()

    @property
    def at_hand(self) -> frozenset[str]:
        """The versions that were run here and can be run again without fetching anything."""
        return frozenset(self._at_hand)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder on the same file system as the bundles, gone in the end."""
        self._folder.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=".new-", dir=self._folder))
        try:
            yield made
        finally:
            shutil.rmtree(made, ignore_errors=True)

    async def store(self, version: Version, folder: Path, key: str, scratch: Path) -> None:
        """Keep a built folder here and in object storage under `key`. The folder is moved."""
        archive = scratch / "bundle.tar.gz"
        await asyncio.to_thread(pack, folder, archive)
        await self._blobs.put_file(key, archive)
        place(folder, self._folder / version.id)

    async def program(self, version: Version, timeout: float) -> Program:
        """A ready version as something to run, fetched if need be. Errors: `not_found`, `storage_unavailable`."""
        code = self._folder / version.id
        environment = self._environments.path(version.environment) if version.environment else None
        async with self._locks.setdefault(version.id, asyncio.Lock()):
            if not code.is_dir():
                await fetch_folder(self._blobs, self._sandbox, version.bundle_path or "", code, LIMITS)
            if version.environment:
                await self._environments.fetch(version.environment)
            for path in filter(None, (code, environment)):
                use(path)
        self._at_hand.add(version.id)
        return Program(
            code=code,
            environment=environment,
            entrypoint=version.entrypoint or "",
            timeout=timeout,
            memory_mb=memory_of(version.memory),
            gateway=bool(version.models),
        )
