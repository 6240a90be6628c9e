"""Processes of an earlier start that still work on a part's folder: two of them on one folder would ruin it."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Final

from infra.embedded.children import EmbeddedServiceError

# How long one may take to end by itself, in seconds: its last checkpoint may be long.
END_TIMEOUT_SECONDS: Final = 20.0
_POLL_SECONDS: Final = 0.05


def find_leftovers(folder: Path, program: str) -> list[int]:
    """Return the processes of a program (its file's name) that work in a folder, which our parts all do.

    A process that merely has the number of an old one is not among them, nor is a shell that stands in the folder.
    """
    try:
        here = folder.stat()
    except OSError:
        return []
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            # What was installed anew since it began is marked as deleted.
            if (entry / "exe").readlink().name.removesuffix(" (deleted)") != program:
                continue
            # Not by name: a folder may have been moved, or be seen through a link.
            if os.path.samestat((entry / "cwd").stat(), here):
                found.append(int(entry.name))
    return found


async def end_leftovers(
    folder: Path,
    program: str,
    first: signal.Signals,
    leader: int | None = None,
    grace_seconds: float = END_TIMEOUT_SECONDS,
) -> None:
    """Wait until no process works on a folder; ask those that do to end with `first`, and end them after `patience` s.

    Only the `leader` is asked where there can be one: to others the signal may mean something else. Whoever calls
    holds the lock of the installation, so nobody begins meanwhile. Errors: `PartFailed` when one cannot be ended.
    """
    left = find_leftovers(folder, program)
    for pid in left:
        if leader in (None, pid):
            _send_signal(pid, first)
    for _ in range(int(grace_seconds / _POLL_SECONDS)):
        if not left:
            return
        await asyncio.sleep(_POLL_SECONDS)
        left = find_leftovers(folder, program)
    for _ in range(int(END_TIMEOUT_SECONDS / _POLL_SECONDS)):
        if not left:
            return
        # Stopped ones as well, and those that one of them started in the meantime.
        for pid in left:
            _send_signal(pid, signal.SIGKILL)
        await asyncio.sleep(_POLL_SECONDS)
        left = find_leftovers(folder, program)
    if left:
        numbers = ", ".join(map(str, left))
        raise EmbeddedServiceError(
            f"{program} of an earlier start still works on {folder} (process {numbers}); end it first."
        )


def _send_signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
