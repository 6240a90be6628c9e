"""Raise this process's limit of open files, and tell whether it suffices for what the process may have open."""

import resource
from typing import Final

# What a worker process has open besides its runs: the loop, the database, Redis, object storage, logs, lookups.
BASE_DESCRIPTORS: Final = 256
_WANTED_DESCRIPTORS: Final = 65_536


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files as far as the hard one allows, and return it. Children inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    new_limit = _WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _WANTED_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < new_limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (new_limit, hard))
        return new_limit
    return _WANTED_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def explain_low_limit(limit: int, needed: int) -> str | None:
    """Return what to change if a process may need more open files than its limit; None if the limit suffices."""
    if limit >= needed:
        return None
    return (
        f"This process may have {limit} files open, and may need {needed} when its slots are busy: runs would fail. "
        "Raise the hard limit (`ulimit -Hn`, LimitNOFILE= of systemd, --ulimit nofile of Docker), or lower "
        "PADDOCK_RUN_SLOTS."
    )
