"""Build the fence of the fork server: a slot does to itself what bubblewrap does from its arguments.

A template root is prepared once, in the server's own mount namespace. Each slot gets namespaces of its
own, completes the template in its copy, enters it, and drops every right that it had so far. Until
then it runs trusted code alone and reads only what the worker sends. The configuration names the guards,
as for bubblewrap (`infra/sandbox/fence.py`). Standard library alone.
"""

import os
import socket
from typing import Any

from infra.sandbox import linux, network
from infra.sandbox.linux import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_REC, MS_REMOUNT

_LOCKED_FLAGS = MS_RDONLY | MS_NOSUID | MS_NODEV
_DEVICE_NAMES = ("null", "full", "random", "urandom")
_DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}
_GUARD_NAMESPACES = {
    "network": linux.CLONE_NEWNET,
    "ipc": linux.CLONE_NEWIPC,
}
GUEST_UID = 65534


class SlotFence:
    """Build the fence of each slot of a server from the server's configuration. See `forkserver.configuration`."""

    def __init__(self, configuration: dict) -> None:  # type: ignore[type-arg]
        self._stage: str = configuration["stage"]
        self._without = frozenset(configuration["without"])
        self._system_mounts: list[list[str]] = configuration["system"]
        self._read_only_folders: list[str] = configuration["kept_read_only"]
        self._empty_folders: list[str] = configuration["empty_folders"]
        self._empty_files: list[str] = configuration["empty_files"]
        self._sizes: dict[str, int] = configuration["sizes"]
        self._filters = {name: bytes.fromhex(code) for name, code in configuration["filters"].items()}
        self._as_root: bool = configuration["as_root"]
        self._nice_increment: int = configuration["nice"]

    def has_guard(self, guard: str) -> bool:
        """Return whether a guard stands."""
        return guard not in self._without

    def create_namespaces(self) -> None:
        """Create the server's own namespaces; its process namespace begins with its next child.

        If that child ends, the kernel ends everything in it: no slot outlives its server.
        """
        flags = linux.CLONE_NEWNS | linux.CLONE_NEWUTS
        uid, gid = os.getuid(), os.getgid()
        if not self._as_root:
            flags |= linux.CLONE_NEWUSER
        if self.has_guard("processes"):
            flags |= linux.CLONE_NEWPID
        linux.unshare(flags)
        if not self._as_root:
            linux.map_user(0, uid, 0, gid)
        linux.set_hostname(b"sandbox")
        linux.mount("none", "/", None, MS_REC | linux.MS_PRIVATE)

    def build_template(self) -> None:
        """Prepare the template, and make the server's own programs read-only.

        Slots can reach those by `/proc/self/exe`, past the root that they see.
        """
        for path in self._read_only_folders:
            _bind_read_only(path, path)
        # Without this guard every user may write to the root, as bubblewrap's root belongs to its user.
        mode = 755 if self.has_guard("read_only") else 777
        linux.mount("tmpfs", self._stage, "tmpfs", MS_NOSUID | MS_NODEV, f"mode={mode},size=1m")
        for folder in ("proc", "tmp", "work", "dev", "dev/shm", "agent", "environment"):
            os.makedirs(self._stage_path(folder), 0o755)
        for kind, source, target in self._system_mounts:
            target_path = self._stage_path(target)
            os.makedirs(os.path.dirname(target_path), exist_ok=True)
            if kind == "--symlink":
                os.symlink(source, target_path)
            elif os.path.exists(source):
                _create_mount_point(source, target_path)
                _bind_read_only(source, target_path)
        for name in (*_DEVICE_NAMES, "zero"):
            # Mapping /dev/zero allocates memory that counts for no process.
            source = f"/dev/{'null' if name == 'zero' else name}"
            _create_mount_point(source, self._stage_path(f"dev/{name}"))
            linux.mount(source, self._stage_path(f"dev/{name}"), None, MS_BIND)
            linux.make_read_only(self._stage_path(f"dev/{name}"), MS_RDONLY | MS_NOSUID | MS_NOEXEC)
        if not self.has_guard("terminals"):
            os.makedirs(self._stage_path("dev/pts"), 0o755)
            linux.mount(
                "devpts", self._stage_path("dev/pts"), "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666"
            )
            os.symlink("pts/ptmx", self._stage_path("dev/ptmx"))
        for name, target in _DEVICE_LINKS.items():
            os.symlink(target, self._stage_path(f"dev/{name}"))
        if self.has_guard("read_only"):
            linux.mount("none", self._stage, None, MS_REMOUNT | _LOCKED_FLAGS)

    def enter_namespaces(self, uid: int) -> None:
        """Enter new namespaces and mount what every slot needs: the first half, before the slot has a program."""
        if self.has_guard("session"):
            os.setsid()
        with open("/proc/self/oom_score_adj", "w") as file:
            # When the host runs out of memory, the kernel must take an agent and not Postgres.
            file.write("1000")
        if self.has_guard("cpu"):
            os.nice(self._nice_increment)
        flags = linux.CLONE_NEWNS | linux.CLONE_NEWUTS | linux.CLONE_NEWCGROUP
        for guard, flag in _GUARD_NAMESPACES.items():
            if self.has_guard(guard):
                flags |= flag
        linux.unshare(flags)
        proc = self._stage_path("proc")
        if self.has_guard("processes"):
            linux.mount("proc", proc, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        else:
            linux.mount("/proc", proc, None, MS_BIND | MS_REC)
        # A mask will cover this folder, which is needed once more.
        self._sysctl_fd = os.open(f"{proc}/sys", os.O_PATH)
        if self.has_guard("proc_masks"):
            for folder in self._empty_folders:
                # This folder is empty, and cannot be written to.
                linux.mount(self._stage_path("agent"), self._stage_path(folder), None, MS_BIND)
            for name in self._empty_files:
                linux.mount(self._stage_path("dev/null"), self._stage_path(name), None, MS_BIND)
        for path, size in self._sizes.items():
            options = f"mode=700,uid={uid},gid={uid}" + (f",size={size}" if self.has_guard("tmp_size") else "")
            linux.mount("tmpfs", self._stage_path(path), "tmpfs", MS_NOSUID | MS_NODEV, options)

    def open_network(self, pair: socket.socket, listeners: list[network.ListenerPlace], hosts_file: str) -> None:
        """Make the slot's listeners in its network, send them to the worker, and show a hosts file."""
        network.send_listeners(pair, listeners, is_separate=self.has_guard("network"))
        # A file in memory, which has no name once it is shown.
        path, target = self._stage_path("dev/shm/hosts"), self._stage_path("etc/hosts")
        with open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644), "w") as file:
            file.write(hosts_file)
        linux.mount(path, target, None, MS_BIND)
        linux.make_read_only(target, _LOCKED_FLAGS)
        os.unlink(path)

    def seal_slot(self, uid: int, head: dict[str, Any]) -> None:
        """Seal the slot, the second half: show the code, enter the root, and drop every right for good."""
        folders = {"agent": head["code"], "environment": head["environment"]}
        for name, source in folders.items():
            if source is None:
                continue
            linux.mount(source, self._stage_path(name), None, MS_BIND | MS_REC)
            if self.has_guard("read_only"):
                linux.make_read_only(self._stage_path(name), _LOCKED_FLAGS)
        os.chdir(self._stage)
        linux.enter_root()
        os.chdir("/agent")
        if self._as_root and self.has_guard("uid"):
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        linux.make_dumpable()
        # The user namespace is the last, so that it owns none of the others.
        linux.unshare(linux.CLONE_NEWUSER)
        linux.map_user(GUEST_UID, uid, GUEST_UID, uid)
        if self.has_guard("userns"):
            with open(os.open("user/max_user_namespaces", os.O_WRONLY, dir_fd=self._sysctl_fd), "w") as file:
                file.write("0")
        os.close(self._sysctl_fd)
        if self.has_guard("capabilities"):
            linux.drop_capabilities()
        linux.forbid_new_privileges()
        linux.set_parent_death_signal()
        if self.has_guard("seccomp"):
            linux.install_filter(self._filters["sockets" if head["listeners"] is not None else "plain"])

    def _stage_path(self, path: str) -> str:
        return f"{self._stage}/{path.lstrip('/')}"


def _create_mount_point(source: str, target: str) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    elif not os.path.exists(target):
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))


def _bind_read_only(source: str, target: str) -> None:
    linux.mount(source, target, None, MS_BIND | MS_REC)
    linux.make_read_only(target, _LOCKED_FLAGS)
