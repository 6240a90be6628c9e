"""Control groups for sandboxes, where the worker may make them: version 2 delegated to it, or version 1 as root.

They bound what no process limit sees: memory that the kernel holds for a tree, sockets' buffers, files
in memory. Where there are none, the other guards stand alone.
"""

import contextlib
import itertools
import os
from pathlib import Path
from typing import Final

ROOT: Final = Path("/sys/fs/cgroup")


class Group:
    """One sandbox's group."""

    def __init__(self, folder: Path, version: int) -> None:
        self._folder, self._version = folder, version
        self.memory_mb = 0

    def join(self, pid: int) -> None:
        """Put a process into the group; what it starts from then on belongs to it as well."""
        with contextlib.suppress(OSError):
            (self._folder / "cgroup.procs").write_text(str(pid))

    def limit(self, memory_mb: int) -> None:
        """Bound its memory, in MiB. Errors: `OSError`."""
        # Some room above the watch's limit, which gives the better message; this one cannot be outrun.
        file = "memory.max" if self._version == 2 else "memory.limit_in_bytes"
        self.memory_mb = memory_mb
        (self._folder / file).write_text(str((memory_mb + 32) << 20))

    def ran_out(self) -> bool:
        """Whether the kernel killed something in it for memory."""
        file = "memory.events" if self._version == 2 else "memory.oom_control"
        with contextlib.suppress(OSError):
            words = dict(line.split() for line in (self._folder / file).read_text().splitlines())
            return int(words.get("oom_kill", "0")) > 0
        return False

    def remove(self) -> None:
        """Remove the group; one that is still emptying stays, and is removed by the next worker's start."""
        with contextlib.suppress(OSError):
            self._folder.rmdir()


class Cgroups:
    """Where this process may make groups, found out once."""

    def __init__(self, root: Path = ROOT) -> None:
        self._numbers = itertools.count()
        self._parent, self._version = _writable(root)
        if self._parent is not None:
            for left in self._parent.glob("paddock-*"):
                if not Path(f"/proc/{left.name.split('-')[1]}").exists():
                    with contextlib.suppress(OSError):
                        left.rmdir()

    def make(self, memory_mb: int) -> Group | None:
        """A group with a limit, or None where there are no groups."""
        if self._parent is None:
            return None
        folder = self._parent / f"paddock-{os.getpid()}-{next(self._numbers)}"
        group = Group(folder, self._version)
        try:
            folder.mkdir()
            group.limit(memory_mb)
            if self._version == 2:
                with contextlib.suppress(OSError):
                    (folder / "memory.swap.max").write_text("0")
                with contextlib.suppress(OSError):
                    (folder / "memory.oom.group").write_text("1")
        except OSError:
            with contextlib.suppress(OSError):
                folder.rmdir()
            return None
        return group


def _writable(root: Path) -> tuple[Path | None, int]:
    if (root / "cgroup.controllers").exists():
        with contextlib.suppress(OSError, IndexError):
            own = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
            here = root / own[3:].strip("/")
            # Processes may not live beside groups, so a delegated worker makes its groups beside its own.
            for parent in (here.parent, root):
                enabled = (parent / "cgroup.subtree_control").read_text().split()
                if "memory" in enabled and os.access(parent, os.W_OK):
                    return parent, 2
        return None, 2
    if os.geteuid() == 0 and (root / "memory" / "memory.limit_in_bytes").exists():
        return root / "memory", 1
    return None, 1
