"""The cache of folders has a size limit, is shared by processes, and keeps what is in use."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from infra.build_cache import folders
from infra.build_cache.folders import FolderCache

MIB = 1 << 20


def _create_folder(cache: FolderCache, kind: str, name: str, size: int, used: float) -> Path:
    path = cache.get_path(kind, name)
    path.mkdir(parents=True)
    (path / "file").write_bytes(b"x" * size)
    os.utime(path, (used, used))
    return path


def _list_names(cache: FolderCache) -> list[str]:
    return sorted(cache.list_names("bundles") + cache.list_names("environments"))


def test_least_recently_used_folder_is_evicted_first(tmp_path: Path) -> None:
    cache = FolderCache(tmp_path, 3 * MIB + 64 * 1024)
    for age, (kind, name) in enumerate([("bundles", "a"), ("environments", "b"), ("bundles", "c"), ("bundles", "d")]):
        _create_folder(cache, kind, name, MIB, 1000.0 + age)
    with cache.lock_folder("bundles", "a"):
        pass  # used just now
    assert cache.evict_excess() == 1
    assert _list_names(cache) == ["a", "c", "d"]
    assert cache.evict_excess() == 0


def test_folders_in_use_are_kept_over_the_limit(tmp_path: Path) -> None:
    cache, other = FolderCache(tmp_path, 1), FolderCache(tmp_path, 1)
    for name in ("a", "b"):
        _create_folder(cache, "bundles", name, MIB, 1000.0)
    with cache.lock_folder("bundles", "a"), cache.lock_folder("bundles", "a"):
        assert other.evict_excess() == 1
        assert _list_names(cache) == ["a"]
        assert not other.remove_folder("bundles", "a")
        assert other.remove_folders("bundles", ["a"], time.time() + 100) == 0
    assert other.remove_folder("bundles", "a")
    assert _list_names(cache) == []
    # Neither the folders nor their locks are left.
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_downloads_count_and_are_evicted_as_a_whole(tmp_path: Path) -> None:
    cache = FolderCache(tmp_path, 2 * MIB)
    for number in range(4):
        (cache.downloads_path / f"archive-{number}").mkdir(parents=True)
        (cache.downloads_path / f"archive-{number}" / "wheel").write_bytes(b"x" * MIB)
    _create_folder(cache, "environments", "e", 1024, time.time() + 100)
    with cache.lock_folder("", folders.DOWNLOADS_FOLDER):
        assert cache.evict_excess() == 1  # the environment, although it is younger: the downloads are in use
    assert cache.evict_excess() == 1
    assert not cache.downloads_path.exists()


def test_folders_of_another_process_stay_until_it_ends(tmp_path: Path) -> None:
    cache = FolderCache(tmp_path, 1)
    _create_folder(cache, "bundles", "a", MIB, 1000.0)
    program = (
        "import asyncio, sys, time\nfrom pathlib import Path\nfrom infra.build_cache.folders import FolderCache\n"
        "async def main():\n"
        "    cache = FolderCache(Path(sys.argv[1]), 0)\n"
        "    with cache.lock_folder('bundles', 'a'):\n"
        "        async with cache.open_scratch('bundles') as made:\n"
        "            (made / 'file').write_text('x')\n"
        "            print(made.name, flush=True)\n"
        "            time.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        scratch = cache.get_path("bundles", other.stdout.readline().strip())
        os.utime(scratch, (1000.0, 1000.0))
        assert cache.evict_excess() == 0
        cache.remove_unused(time.time() + 100)
        assert scratch.is_dir()
        assert _list_names(cache) == ["a"]
        other.kill()
    assert cache.evict_excess() == 1
    cache.remove_unused(time.time() - 100)
    assert not scratch.exists()


async def test_locked_folder_is_complete_or_missing(tmp_path: Path) -> None:
    """Remove and create folders while others use them."""
    cache, is_complete = FolderCache(tmp_path, 0), list[bool]()

    def use_folder() -> None:
        for _ in range(300):
            with cache.lock_folder("bundles", "a") as path:
                if not path.is_dir():
                    new_folder = tmp_path / "bundles" / f".new-{time.monotonic_ns()}-{os.urandom(4).hex()}"
                    new_folder.mkdir(parents=True)
                    (new_folder / "file").write_text("x")
                    try:
                        new_folder.rename(path)
                    except OSError:
                        assert path.is_dir()
                for _ in range(3):
                    is_complete.append((path / "file").exists())

    def remove_folder() -> None:
        for _ in range(600):
            cache.remove_folder("bundles", "a")

    await asyncio.gather(*(asyncio.to_thread(work) for work in (use_folder, use_folder, remove_folder)))
    assert all(is_complete)
    assert len(is_complete) == 1800


async def test_scratch_folder_is_removed_at_the_end(tmp_path: Path) -> None:
    cache = FolderCache(tmp_path, 0)
    with pytest.raises(RuntimeError, match="enough"):
        async with cache.open_scratch("environments") as scratch:
            (scratch / "deep" / "er").mkdir(parents=True)
            raise RuntimeError("enough")
    assert [path for path in tmp_path.rglob("*") if path.is_file() or path.name.startswith(".")] == []
