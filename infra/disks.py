"""Whether a disk of this machine is full: what a part on it cannot say for itself."""

import errno
import os
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from domain.shared.errors import DomainError

# Servers need some room to say no, and stop before the last block.
MIN_FREE_BYTES: Final = 16 * 1024 * 1024
FULL_DISK_ERRNOS: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_HERE: Final = frozenset({"127.0.0.1", "localhost", "::1"})


def find_embedded_folder(data: Path, part: str, url: str) -> Path | None:
    """Return the folder of an embedded part, if it is one that `url` points to."""
    folder = data / part
    return folder if urlsplit(url).hostname in _HERE and folder.is_dir() else None


def is_full(folder: Path | None, least: int = MIN_FREE_BYTES) -> bool:
    """Whether there is less room than `least` bytes where a folder lies. What cannot be looked at is not."""
    if folder is None:
        return False
    try:
        found = os.statvfs(folder)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < least


def build_full_disk_error(what: str) -> DomainError:
    """Return the outage of a full disk; `what` is on it."""
    return DomainError(
        "storage_full", f"The disk of {what} is full. Work goes on by itself once there is room.", retry_after=5
    )
