"""Create control groups for sandboxes, where the worker may: version 2 delegated to it, or version 1 as root.

They bound what no process limit counts: memory that the kernel holds for a tree, sockets' buffers, files in memory.
They share processors by sandbox rather than by session, at a lower weight than the API and the workers have. A host
without groups relies on the other guards; on a host with groups, a sandbox that cannot join its own is not started.
"""

import contextlib
import functools
import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import structlog

CGROUP_ROOT: Final = Path("/sys/fs/cgroup")
# A sandbox gets a quarter of the processor time of a session outside where both compete. Version 1 counts
# from 1024, version 2 from 100.
CPU_SHARES: Final = 256
CPU_WEIGHT: Final = 25

_log = structlog.get_logger("paddock.sandbox")


class ControlGroup:
    """Represent a sandbox's group: a folder in each hierarchy, of which `memory` bounds the memory, if any does."""

    def __init__(self, folders: tuple[Path, ...], memory: Path | None, version: int) -> None:
        self._folders, self._memory, self._version = folders, memory, version
        self.memory_mb = 0

    @contextlib.contextmanager
    def open_entries(self) -> Iterator[list[int]]:
        """Yield descriptors through which a child puts itself into the group, by `join_group`. Errors: `OSError`."""
        with contextlib.ExitStack() as stack:
            entry_fds = []
            for folder in self._folders:
                entry_fds.append(os.open(folder / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
                stack.callback(os.close, entry_fds[-1])
            yield entry_fds

    def add_process(self, pid: int) -> None:
        """Put a process into the group, and with it every process that it starts later. Errors: `OSError`."""
        for folder in self._folders:
            (folder / "cgroup.procs").write_text(str(pid))

    def list_members(self) -> set[int]:
        """Return the processes that are in all of its folders. Errors: `OSError`."""
        members = [set(map(int, (folder / "cgroup.procs").read_text().split())) for folder in self._folders]
        return set.intersection(*members)

    def limit_memory(self, memory_mb: int) -> None:
        """Bound its memory, in MiB. Errors: `OSError`."""
        self.memory_mb = memory_mb
        if self._memory is not None:
            # Somewhat above the watchdog's limit, which gives the better message; this limit cannot be outrun.
            file = "memory.max" if self._version == 2 else "memory.limit_in_bytes"
            (self._memory / file).write_text(str((memory_mb + 32) << 20))

    def has_run_out(self) -> bool:
        """Return whether the kernel killed a process of the group for its memory."""
        if self._memory is None:
            return False
        file = "memory.events" if self._version == 2 else "memory.oom_control"
        with contextlib.suppress(OSError):
            words = dict(line.split() for line in (self._memory / file).read_text().splitlines())
            return int(words.get("oom_kill", "0")) > 0
        return False

    def remove(self) -> bool:
        """Remove the group. Returns False if it is not empty yet: then the factory's `create_group` tries again."""
        for folder in self._folders:
            with contextlib.suppress(FileNotFoundError):
                try:
                    folder.rmdir()
                except OSError:
                    _unremoved_groups.add(self)
                    return False
        _unremoved_groups.discard(self)
        return True


# Groups that were not empty yet when their sandbox ended.
_unremoved_groups: set[ControlGroup] = set()
_group_numbers = itertools.count()


def join_group(entry_fds: list[int]) -> None:
    """Put this process into the groups that these descriptors open. Errors: `OSError`."""
    for fd in entry_fds:
        os.write(fd, b"0")


class ControlGroupFactory:
    """Create groups where this process may, which is tried once per process.

    `memory` and `cpu` say what the groups control; only the attack suite leaves one out.
    """

    def __init__(self, root: Path = CGROUP_ROOT, memory: bool = True, cpu: bool = True) -> None:
        self._parents = _find_parents(root)
        self.bounds_memory = memory and self._parents.memory is not None
        self.shares_processors = cpu and self._parents.cpu is not None

    def create_group(self, memory_mb: int) -> ControlGroup | None:
        """Create a group with a limit in MiB; None on a host without groups. Errors: `OSError`."""
        for group in list(_unremoved_groups):
            group.remove()
        memory = self._parents.memory if self.bounds_memory else None
        cpu = self._parents.cpu if self.shares_processors else None
        return _create_group(memory, cpu, self._parents.version, memory_mb)


class _GroupParents:
    """Hold the folders in which groups can be made, per kind."""

    def __init__(self, version: int, memory: Path | None = None, cpu: Path | None = None) -> None:
        self.version, self.memory, self.cpu = version, memory, cpu


def _create_group(memory: Path | None, cpu: Path | None, version: int, memory_mb: int) -> ControlGroup | None:
    parents = list(dict.fromkeys(parent for parent in (memory, cpu) if parent is not None))
    if not parents:
        return None
    name = f"paddock-{os.getpid()}-{next(_group_numbers)}"
    group = ControlGroup(
        tuple(parent / name for parent in parents), memory / name if memory is not None else None, version
    )
    try:
        for parent in parents:
            (parent / name).mkdir()
        group.limit_memory(memory_mb)
        if cpu is not None:
            file, weight = ("cpu.weight", CPU_WEIGHT) if version == 2 else ("cpu.shares", CPU_SHARES)
            (cpu / name / file).write_text(str(weight))
        if memory is not None:
            # Without swap these files are missing; with swap, it must not become a second memory.
            for file, value in (
                (("memory.swap.max", "0"), ("memory.oom.group", "1")) if version == 2 else (("memory.swappiness", "0"),)
            ):
                with contextlib.suppress(OSError):
                    (memory / name / file).write_text(value)
    except BaseException:
        group.remove()
        raise
    return group


@functools.cache
def _find_parents(root: Path) -> _GroupParents:
    """Return where groups can be made, each kind tried with a process that does nothing."""
    parents = _find_candidates(root)
    for parent in {parents.memory, parents.cpu} - {None}:
        for folder in parent.glob("paddock-*"):  # type: ignore[union-attr]
            if not Path(f"/proc/{folder.name.split('-')[1]}").exists():
                with contextlib.suppress(OSError):
                    folder.rmdir()
    memory = parents.memory if _can_create(parents.memory, None, parents.version) else None
    cpu = parents.cpu if _can_create(None, parents.cpu, parents.version) else None
    return _GroupParents(parents.version, memory, cpu)


def _can_create(memory: Path | None, cpu: Path | None, version: int) -> bool:
    if memory is None and cpu is None:
        return False
    try:
        group = _create_group(memory, cpu, version, 32)
        assert group is not None
        try:
            with group.open_entries() as entry_fds:
                subprocess.run(["/bin/true"], env={}, check=True, preexec_fn=functools.partial(join_group, entry_fds))
        finally:
            group.remove()
    except (OSError, subprocess.SubprocessError) as error:
        _log.info("no control groups for sandboxes", folder=str(memory or cpu), reason=str(error))
        return False
    return True


def _find_candidates(root: Path) -> _GroupParents:
    if (root / "cgroup.controllers").exists():
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        own_folder = root / next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
        # A group has either processes or groups, so a delegated worker creates its groups beside its own.
        for parent in dict.fromkeys((own_folder.parent, root)):
            with contextlib.suppress(OSError):
                enabled = (parent / "cgroup.subtree_control").read_text().split()
                if {"memory", "cpu"} & set(enabled) and os.access(parent, os.W_OK):
                    return _GroupParents(
                        2, parent if "memory" in enabled else None, parent if "cpu" in enabled else None
                    )
        return _GroupParents(2)
    if os.geteuid() != 0:
        return _GroupParents(1)
    memory, cpu = root / "memory", root / "cpu"
    return _GroupParents(
        1,
        memory if (memory / "memory.limit_in_bytes").exists() else None,
        cpu if (cpu / "cpu.shares").exists() else None,
    )
