"""Tell whether a disk of this machine is full, which the servers whose files lie on it cannot report."""

import errno
import os
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from domain.shared.errors import DomainError

# Servers need some room to answer with an error, and stop before the last block.
MIN_FREE_BYTES: Final = 16 * 1024 * 1024
FULL_DISK_ERRNOS: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_LOCAL_HOSTS: Final = frozenset({"127.0.0.1", "localhost", "::1"})


def find_embedded_folder(data_dir: Path, part: str, url: str) -> Path | None:
    """Return the folder of an embedded server, or None when `url` points to a server elsewhere."""
    folder = data_dir / part
    return folder if urlsplit(url).hostname in _LOCAL_HOSTS and folder.is_dir() else None


def is_full(folder: Path | None, min_free_bytes: int = MIN_FREE_BYTES) -> bool:
    """Tell whether the disk of a folder has less free space than `min_free_bytes`; False where it cannot be read."""
    if folder is None:
        return False
    try:
        disk = os.statvfs(folder)
    except OSError:
        return False
    return disk.f_bavail * disk.f_frsize < min_free_bytes


def build_full_disk_error(owner: str) -> DomainError:
    """Return the outage of a full disk; `owner` names what is stored on it."""
    return DomainError(
        "storage_full", f"The disk of {owner} is full. Work resumes automatically once there is space.", retry_after=5
    )
