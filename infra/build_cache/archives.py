"""Pack cached folders for object storage, and fetch them from it."""

import asyncio
import tarfile
from pathlib import Path

from domain.ports import ArchiveLimits, Blobs, Sandbox
from domain.shared.errors import DomainError
from infra.build_cache.folders import FolderCache


def pack_folder(folder: Path, archive: Path) -> None:
    """Write a `.tar.gz` of the files and folders beneath `folder`, owned by root, with links left out."""

    def strip_member(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if not (member.isfile() or member.isdir()):
            return None
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(archive, "w:gz", compresslevel=1) as packed:
        for entry in sorted(folder.iterdir()):
            packed.add(entry, arcname=entry.name, filter=strip_member)


def place_folder(scratch: Path, path: Path) -> None:
    """Move a finished folder to its path at once; if another worker was faster, its folder stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        scratch.rename(path)
    except OSError:
        if not path.is_dir():
            raise


async def fetch_folder(
    cache: FolderCache, blobs: Blobs, sandbox: Sandbox, key: str, location: tuple[str, str], limits: ArchiveLimits
) -> None:
    """Fetch a packed folder from object storage to its location (kind and name) in the cache, whole or not at all.

    It is unpacked inside the fence although a worker packed it: object storage is not part of this host.
    """
    kind, name = location
    async with cache.open_scratch(kind) as scratch:
        archive, target = scratch / "archive", scratch / "folder"
        await blobs.download_file(key, archive)
        target.mkdir(mode=0o755)
        unpacked = await sandbox.unpack_archive(archive, target, limits)
        if unpacked.error is not None:
            raise DomainError("storage_unavailable", f"{key} in object storage is damaged: {unpacked.error}")
        place_folder(target, cache.get_path(kind, name))
    await asyncio.to_thread(cache.evict_excess)
