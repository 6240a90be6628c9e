"""Cache the folders that workers of one machine keep on disk: bundles, environments, and uv's downloads.

The cache is bounded in bytes: the least recently used folder is removed first, and never one in use. A user of a folder
holds a shared lock on a file that no sandbox sees; removing a folder needs an exclusive lock. So several processes
share a cache, and the folders of a killed process are free at once.
"""

import asyncio
import contextlib
import fcntl
import itertools
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Final

import structlog

FOLDER_KINDS: Final = ("bundles", "environments")
# One folder holds all that uv downloads; it is removed as a whole.
DOWNLOADS_FOLDER: Final = "uv"
# A new folder is locked within moments of its creation.
UNLOCKED_SECONDS: Final = 60.0
_NEW_PREFIX, _OLD_PREFIX = ".new-", ".old-"

_log = structlog.get_logger("paddock.cache")
_numbers = itertools.count()


class FolderCache:
    """Manage the cache in one folder. `max_bytes` bounds the folders that are not in use; 0 means no bound."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self._max_bytes = max_bytes
        # Sizes by name and inode: a placed folder does not change.
        self._sizes: dict[tuple[str, int], int] = {}

    def get_path(self, kind: str, name: str) -> Path:
        """Return the path of a folder, present or not."""
        return self.folder / kind / name

    @property
    def downloads_path(self) -> Path:
        """Return the folder of uv's downloads."""
        return self.folder / DOWNLOADS_FOLDER

    @contextlib.contextmanager
    def lock_folder(self, kind: str, name: str) -> Iterator[Path]:
        """Keep a folder from being removed, present or not, and record its use."""
        lock = self._open_lock(kind, name, fcntl.LOCK_SH)
        assert lock is not None
        try:
            path = self.get_path(kind, name)
            with contextlib.suppress(FileNotFoundError):
                os.utime(path)
            yield path
        finally:
            os.close(lock)

    @contextlib.asynccontextmanager
    async def open_scratch(self, kind: str) -> AsyncIterator[Path]:
        """Yield an empty folder on the same file system as those of a kind, and remove it in the end."""
        parent = self.folder / kind
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=_NEW_PREFIX, dir=parent))
        lock = self._open_lock(kind, folder.name, fcntl.LOCK_SH)
        assert lock is not None
        try:
            yield folder
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, True)
            self._get_lock_path(kind, folder.name).unlink(missing_ok=True)
            os.close(lock)

    def list_names(self, kind: str) -> list[str]:
        """Return the names of the folders of a kind."""
        with contextlib.suppress(FileNotFoundError):
            return [name for name in os.listdir(self.folder / kind) if not name.startswith(".")]
        return []

    def evict_excess(self) -> int:
        """Remove the least recently used folders until the rest is within the bound. Returns their number. Blocks."""
        entries = []
        for kind in FOLDER_KINDS:
            entries += [(kind, name) for name in self.list_names(kind)]
        if self.downloads_path.is_dir():
            entries.append(("", DOWNLOADS_FOLDER))
        candidates = []
        for kind, name in entries:
            with contextlib.suppress(FileNotFoundError):
                status = os.stat(self.get_path(kind, name))
                candidates.append((status.st_mtime, kind, name, self._measure_cached(kind, name, status.st_ino)))
        total, removed = sum(size for *_, size in candidates), 0
        for _, kind, name, size in sorted(candidates):
            if not self._max_bytes or total <= self._max_bytes:
                break
            if self.remove_folder(kind, name):
                total -= size
                removed += 1
        if self._max_bytes and total > self._max_bytes:
            _log.warning("the cache is over its bound, and all of it is in use", bytes=total, bound=self._max_bytes)
        return removed

    def remove_unused(self, before: float) -> int:
        """Remove folders last used before a time, in seconds since 1970, and unfinished ones. Blocks."""
        removed = 0
        for kind in FOLDER_KINDS:
            removed += self.remove_folders(kind, self.list_names(kind), before)
            with contextlib.suppress(FileNotFoundError):
                rest = [name for name in os.listdir(self.folder / kind) if name.startswith((_NEW_PREFIX, _OLD_PREFIX))]
                self.remove_folders(kind, rest, time.time() - UNLOCKED_SECONDS)
        return removed + self.remove_folders("", [DOWNLOADS_FOLDER], before)

    def remove_folders(self, kind: str, names: Iterable[str], before: float) -> int:
        """Remove those of these folders that were last used before a time and are not in use. Returns their number."""
        removed = 0
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                if os.stat(self.get_path(kind, name)).st_mtime < before:
                    removed += self.remove_folder(kind, name)
        return removed

    def remove_folder(self, kind: str, name: str) -> bool:
        """Remove a folder unless it is in use. Blocks while its files are deleted."""
        lock = self._open_lock(kind, name, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if lock is None:
            return False
        try:
            path = self.get_path(kind, name)
            leaving = path.with_name(f"{_OLD_PREFIX}{name}-{os.getpid()}-{next(_numbers)}")
            with contextlib.suppress(FileNotFoundError):
                path.rename(leaving)
            self._get_lock_path(kind, name).unlink(missing_ok=True)
        finally:
            os.close(lock)
        shutil.rmtree(leaving, ignore_errors=True)
        return not leaving.exists()

    def measure_folder(self, kind: str, name: str) -> int:
        """Return the bytes that a folder takes on disk. Blocks. Errors: `FileNotFoundError`."""
        return self._measure_cached(kind, name, os.stat(self.get_path(kind, name)).st_ino)

    def _measure_cached(self, kind: str, name: str, inode: int) -> int:
        if name == DOWNLOADS_FOLDER:
            return count_disk_bytes(self.get_path(kind, name))
        if (name, inode) not in self._sizes:
            self._sizes[name, inode] = count_disk_bytes(self.get_path(kind, name))
        return self._sizes[name, inode]

    def _get_lock_path(self, kind: str, name: str) -> Path:
        return self.folder / "locks" / (kind or "all") / name

    def _open_lock(self, kind: str, name: str, operation: int) -> int | None:
        """Return a locked descriptor; None if the lock is taken and `operation` does not block."""
        path = self._get_lock_path(kind, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, operation)
                # A process that removed the folder in between has deleted the file that was locked here.
                with contextlib.suppress(FileNotFoundError):
                    if os.stat(path).st_ino == os.fstat(lock).st_ino:
                        return lock
            except BlockingIOError:
                os.close(lock)
                return None
            except BaseException:
                os.close(lock)
                raise
            os.close(lock)


def count_disk_bytes(folder: Path) -> int:
    """Return the bytes that the files beneath a folder take on disk, or would if they had no holes."""
    total = 0
    for path, folders, names in os.walk(folder):
        total += 4096 * len(folders)
        for name in names:
            with contextlib.suppress(OSError):
                status = os.lstat(os.path.join(path, name))
                total += max(status.st_size, status.st_blocks * 512)
    return total


def count_file_bytes(folder: Path) -> int:
    """Return the bytes of all files beneath a folder."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(path, name)).st_size
    return total
