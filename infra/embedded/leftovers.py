"""End processes of an earlier start that still work on a service's folder: two on one folder would ruin it."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import Final

from infra.embedded.child_process import EmbeddedServiceError

# A process gets this long to end after a signal: its last checkpoint may take long.
END_TIMEOUT_SECONDS: Final = 20.0
_POLL_SECONDS: Final = 0.05


def find_leftovers(folder: Path, program: str) -> list[int]:
    """Return the processes of a program (its file's name) that work in a folder, as our services all do.

    A process that merely has the number of an old one is left out, and so is a shell in that folder.
    """
    try:
        status = folder.stat()
    except OSError:
        return []
    pids: list[int] = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            # A program that was installed again since the start is marked as deleted.
            if (entry / "exe").readlink().name.removesuffix(" (deleted)") != program:
                continue
            # Not by name: a folder may have been moved, or be seen through a link.
            if os.path.samestat((entry / "cwd").stat(), status):
                pids.append(int(entry.name))
    return pids


async def end_leftovers(
    folder: Path,
    program: str,
    number: signal.Signals,
    *,
    leader: int | None = None,
    grace_seconds: float = END_TIMEOUT_SECONDS,
) -> None:
    """Wait until no process works on a folder: signal those that do, and kill those left after `grace_seconds`.

    If there is a `leader`, it alone gets the signal, which may mean something else to the others. The caller holds the
    lock of the installation, so none starts meanwhile. Errors: `EmbeddedServiceError` when one cannot be ended.
    """
    pids = find_leftovers(folder, program)
    for pid in pids:
        if leader in (None, pid):
            _send_signal(pid, number)
    for _ in range(int(grace_seconds / _POLL_SECONDS)):
        if not pids:
            return
        await asyncio.sleep(_POLL_SECONDS)
        pids = find_leftovers(folder, program)
    for _ in range(int(END_TIMEOUT_SECONDS / _POLL_SECONDS)):
        if not pids:
            return
        # Stopped ones as well, and those that one of them started in the meantime.
        for pid in pids:
            _send_signal(pid, signal.SIGKILL)
        await asyncio.sleep(_POLL_SECONDS)
        pids = find_leftovers(folder, program)
    if pids:
        numbers = ", ".join(map(str, pids))
        raise EmbeddedServiceError(
            f"{program} of an earlier start still works on {folder} (process {numbers}); end it first."
        )


def _send_signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
