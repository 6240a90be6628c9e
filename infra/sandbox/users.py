"""User ids of sandboxes, when the worker is root."""

import itertools
import os
from pathlib import Path
from typing import Final

_UID_BLOCK_SIZE: Final = 256
_numbers = itertools.count()
_reserved_uids: set[int] = set()


def change_owner(folder: str, uid: int) -> None:
    """Make a user own a folder and all beneath it, never following a link."""
    os.chown(folder, uid, uid, follow_symlinks=False)
    for _, folders, files, here in os.fwalk(folder, follow_symlinks=False):
        for name in (*folders, *files):
            os.chown(name, uid, uid, dir_fd=here, follow_symlinks=False)


def reserve_uid() -> int:
    """A user id that belongs to nobody and to no other tree of this host until it is freed.

    A block of 256 per process id, above all that people and packages use; where fewer ids are
    mapped (a rootless container), the highest of those. Errors: `OSError` when all are taken.
    """
    last = max(
        int(line.split()[0]) + int(line.split()[2]) - 1 for line in Path("/proc/self/uid_map").read_text().splitlines()
    )
    for _ in range(_UID_BLOCK_SIZE):
        number = next(_numbers)
        wanted = 1_000_000_000 + (os.getpid() % 4_194_304) * _UID_BLOCK_SIZE + number % _UID_BLOCK_SIZE
        uid = wanted if wanted <= min(last, 2**31 - 2) else max(1, last - 1 - number % 4096)
        if uid not in _reserved_uids:
            _reserved_uids.add(uid)
            return uid
    raise OSError("every user id for sandboxes is taken")


def release_uid(uid: int) -> None:
    """Its tree is gone."""
    _reserved_uids.discard(uid)
