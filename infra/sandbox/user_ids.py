"""Reserve user ids for sandboxes, when the worker is root."""

import itertools
import os
from pathlib import Path
from typing import Final

_UID_BLOCK_SIZE: Final = 256
_uid_numbers = itertools.count()
_reserved_uids: set[int] = set()


def reserve_uid() -> int:
    """Reserve a user id that no user and no other tree of this host has, until it is released.

    Each process id has a block of 256, above all ids that people and packages use. Where fewer ids are mapped (a
    rootless container), the highest of those are used. Errors: `OSError` when all are reserved.
    """
    last_uid = max(
        int(line.split()[0]) + int(line.split()[2]) - 1 for line in Path("/proc/self/uid_map").read_text().splitlines()
    )
    for _ in range(_UID_BLOCK_SIZE):
        number = next(_uid_numbers)
        preferred = 1_000_000_000 + (os.getpid() % 4_194_304) * _UID_BLOCK_SIZE + number % _UID_BLOCK_SIZE
        uid = preferred if preferred <= min(last_uid, 2**31 - 2) else max(1, last_uid - 1 - number % 4096)
        if uid not in _reserved_uids:
            _reserved_uids.add(uid)
            return uid
    raise OSError("every user id for sandboxes is taken")


def release_uid(uid: int) -> None:
    """Release the user id of a tree that is gone."""
    _reserved_uids.discard(uid)
