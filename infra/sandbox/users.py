"""User ids of sandboxes, when the worker is root."""

import os
from pathlib import Path


def give(folder: str, uid: int) -> None:
    """Make a user own a folder and all beneath it, never following a link."""
    os.chown(folder, uid, uid, follow_symlinks=False)
    for _, folders, files, here in os.fwalk(folder, follow_symlinks=False):
        for name in (*folders, *files):
            os.chown(name, uid, uid, dir_fd=here, follow_symlinks=False)


def free_uid(number: int) -> int:
    """A user id that belongs to nobody and to no other tree of this host at the same time.

    A block of 256 per process id, above all that people and packages use; where fewer ids are
    mapped (a rootless container), the highest of those.
    """
    wanted = 1_000_000_000 + (os.getpid() % 4_194_304) * 256 + number % 256
    last = max(
        int(line.split()[0]) + int(line.split()[2]) - 1 for line in Path("/proc/self/uid_map").read_text().splitlines()
    )
    return wanted if wanted <= min(last, 2**31 - 2) else max(1, last - 1 - number % 4096)
