"""Processes of an earlier start that still work on a part's folder: two of them on one folder would ruin it."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Final

from infra.embedded.children import PartFailed

# How long one may take to end by itself, in seconds: its last checkpoint may be long.
PATIENCE: Final = 20.0
_LOOK: Final = 0.05


def working_on(folder: Path, program: str) -> list[int]:
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
    folder: Path, program: str, first: signal.Signals, leader: int | None = None, patience: float = PATIENCE
) -> None:
    """Wait until no process works on a folder; ask those that do to end with `first`, and end them after `patience` s.

    Only the `leader` is asked where there can be one: to others the signal may mean something else. Whoever calls
    holds the lock of the installation, so nobody begins meanwhile. Errors: `PartFailed` when one cannot be ended.
    """
    left = working_on(folder, program)
    for pid in left:
        if leader in (None, pid):
            _send(pid, first)
    for _ in range(int(patience / _LOOK)):
        if not left:
            return
        await asyncio.sleep(_LOOK)
        left = working_on(folder, program)
    for _ in range(int(PATIENCE / _LOOK)):
        if not left:
            return
        # Stopped ones as well, and those that one of them started in the meantime.
        for pid in left:
            _send(pid, signal.SIGKILL)
        await asyncio.sleep(_LOOK)
        left = working_on(folder, program)
    if left:
        numbers = ", ".join(map(str, left))
        raise PartFailed(f"{program} of an earlier start still works on {folder} (process {numbers}); end it first.")


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
