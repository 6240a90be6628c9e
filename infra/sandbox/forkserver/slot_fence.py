"""The fence of the fork server: what bubblewrap does from its arguments, done by the slot to itself.

A template root is prepared once, in the server's own mount namespace. Each slot gets namespaces of its
own, completes the template in its copy, enters it, and gives up everything it could do so far. Until
then it runs trusted code alone and reads nothing but what the worker says. Which guards stand is told by
name, as for bubblewrap (`infra/sandbox/fence.py`). Standard library alone.
"""

import os

from infra.sandbox.forkserver import kernel
from infra.sandbox.forkserver.kernel import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_REC, MS_REMOUNT

_LOCKED_FLAGS = MS_RDONLY | MS_NOSUID | MS_NODEV
_DEVICE_NAMES = ("null", "full", "random", "urandom")
_DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}
_GUARD_NAMESPACES = {
    "network": kernel.CLONE_NEWNET,
    "ipc": kernel.CLONE_NEWIPC,
}
GUEST_UID = 65534
# As `infra/sandbox/process.py` has it.
NICE_INCREMENT = 5


class SlotFence:
    """Built from what the worker says: `stage`, `without`, `system` (mounts), `masks`, `filter` and sizes."""

    def __init__(self, told: dict) -> None:  # type: ignore[type-arg]
        self._stage: str = told["stage"]
        self._without = frozenset(told["without"])
        self._system_mounts: list[list[str]] = told["system"]
        self._read_only_folders: list[str] = told["kept_read_only"]
        self._empty_folders: list[str] = told["empty_folders"]
        self._empty_files: list[str] = told["empty_files"]
        self._sizes: dict[str, int] = told["sizes"]
        self._filter = bytes.fromhex(told["filter"])
        self._as_root: bool = told["as_root"]

    def has_guard(self, guard: str) -> bool:
        """Whether a guard stands."""
        return guard not in self._without

    def create_namespaces(self) -> None:
        """Give the server namespaces of its own; its process namespace begins with its next child.

        If that child ends, the kernel ends everything in it: no slot outlives its server.
        """
        flags = kernel.CLONE_NEWNS | kernel.CLONE_NEWUTS
        uid, gid = os.getuid(), os.getgid()
        if not self._as_root:
            flags |= kernel.CLONE_NEWUSER
        if self.has_guard("processes"):
            flags |= kernel.CLONE_NEWPID
        kernel.unshare(flags)
        if not self._as_root:
            _map_user(0, uid, 0, gid)
        kernel.set_hostname(b"sandbox")
        kernel.mount("none", "/", None, MS_REC | kernel.MS_PRIVATE)

    def build_template(self) -> None:
        """Prepare the template, and show the server itself its programs read-only: slots can reach them by
        `/proc/self/exe`, past the root that they see.
        """
        for path in self._read_only_folders:
            _bind_read_only(path, path)
        # Where nothing shall be read-only, the root is everybody's, as bubblewrap's root is its user's.
        mode = 755 if self.has_guard("read_only") else 777
        kernel.mount("tmpfs", self._stage, "tmpfs", MS_NOSUID | MS_NODEV, f"mode={mode},size=1m")
        for folder in ("proc", "tmp", "dev", "dev/shm", "agent", "environment"):
            os.makedirs(self._stage_path(folder), 0o755)
        for kind, source, target in self._system_mounts:
            place = self._stage_path(target)
            os.makedirs(os.path.dirname(place), exist_ok=True)
            if kind == "--symlink":
                os.symlink(source, place)
            elif os.path.exists(source):
                _create_mount_point(source, place)
                _bind_read_only(source, place)
        for name in (*_DEVICE_NAMES, "zero"):
            # Mapping /dev/zero makes memory that belongs to nobody.
            source = f"/dev/{'null' if name == 'zero' else name}"
            _create_mount_point(source, self._stage_path(f"dev/{name}"))
            kernel.mount(source, self._stage_path(f"dev/{name}"), None, MS_BIND)
            kernel.make_read_only(self._stage_path(f"dev/{name}"), MS_RDONLY | MS_NOSUID | MS_NOEXEC)
        if not self.has_guard("terminals"):
            os.makedirs(self._stage_path("dev/pts"), 0o755)
            kernel.mount(
                "devpts", self._stage_path("dev/pts"), "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666"
            )
            os.symlink("pts/ptmx", self._stage_path("dev/ptmx"))
        for name, target in _DEVICE_LINKS.items():
            os.symlink(target, self._stage_path(f"dev/{name}"))
        if self.has_guard("read_only"):
            kernel.mount("none", self._stage, None, MS_REMOUNT | _LOCKED_FLAGS)

    def prepare_slot(self, uid: int) -> None:
        """The first half, before anybody knows which code a slot is for: namespaces and mounts."""
        if self.has_guard("session"):
            os.setsid()
        with open("/proc/self/oom_score_adj", "w") as file:
            # When the host runs out of memory it shall take an agent, not Postgres.
            file.write("1000")
        if self.has_guard("cpu"):
            os.nice(NICE_INCREMENT)
        flags = kernel.CLONE_NEWNS | kernel.CLONE_NEWUTS | kernel.CLONE_NEWCGROUP
        for guard, flag in _GUARD_NAMESPACES.items():
            if self.has_guard(guard):
                flags |= flag
        kernel.unshare(flags)
        proc = self._stage_path("proc")
        if self.has_guard("processes"):
            kernel.mount("proc", proc, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        else:
            kernel.mount("/proc", proc, None, MS_BIND | MS_REC)
        # The mask will lie over this, and what is behind it is needed once more.
        self._sysctl_fd = os.open(f"{proc}/sys", os.O_PATH)
        if self.has_guard("proc_masks"):
            for folder in self._empty_folders:
                # Nothing lies there yet, and it cannot be written to.
                kernel.mount(self._stage_path("agent"), self._stage_path(folder), None, MS_BIND)
            for name in self._empty_files:
                kernel.mount(self._stage_path("dev/null"), self._stage_path(name), None, MS_BIND)
        for path, size in self._sizes.items():
            options = f"mode=700,uid={uid},gid={uid}" + (f",size={size}" if self.has_guard("tmp_size") else "")
            kernel.mount("tmpfs", self._stage_path(path), "tmpfs", MS_NOSUID | MS_NODEV, options)

    def enclose_slot(self, uid: int, code: str, environment: str | None) -> None:
        """The second half: show the code, enter the root, become nobody, and let nothing of it be undone."""
        shown = {"agent": code} if environment is None else {"agent": code, "environment": environment}
        for place, source in shown.items():
            kernel.mount(source, self._stage_path(place), None, MS_BIND | MS_REC)
            if self.has_guard("read_only"):
                kernel.make_read_only(self._stage_path(place), _LOCKED_FLAGS)
        os.chdir(self._stage)
        kernel.enter_root()
        os.chdir("/agent")
        if self._as_root and self.has_guard("uid"):
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        kernel.make_dumpable()
        # Last of the namespaces, so that it owns none of the others.
        kernel.unshare(kernel.CLONE_NEWUSER)
        _map_user(GUEST_UID, uid, GUEST_UID, uid)
        if self.has_guard("userns"):
            with open(os.open("user/max_user_namespaces", os.O_WRONLY, dir_fd=self._sysctl_fd), "w") as file:
                file.write("0")
        os.close(self._sysctl_fd)
        if self.has_guard("capabilities"):
            kernel.drop_capabilities()
        kernel.forbid_new_privileges()
        kernel.die_with_parent()
        if self.has_guard("seccomp"):
            kernel.install_filter(self._filter)

    def _stage_path(self, path: str) -> str:
        return f"{self._stage}/{path.lstrip('/')}"


def _map_user(inside_uid: int, uid: int, inside_gid: int, gid: int) -> None:
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{inside_uid} {uid} 1"),
        ("gid_map", f"{inside_gid} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _create_mount_point(source: str, place: str) -> None:
    if os.path.isdir(source):
        os.makedirs(place, exist_ok=True)
    elif not os.path.exists(place):
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o644))


def _bind_read_only(source: str, place: str) -> None:
    kernel.mount(source, place, None, MS_BIND | MS_REC)
    kernel.make_read_only(place, _LOCKED_FLAGS)
