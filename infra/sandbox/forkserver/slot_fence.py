"""The fence of the fork server: what bubblewrap does from its arguments, done by the slot to itself.

A template root is prepared once, in the server's own mount namespace. Each slot gets namespaces of its
own, completes the template in its copy, enters it, and gives up everything it could do so far. Until
then it runs trusted code alone and reads nothing but what the worker says. Which guards stand is told by
name, as for bubblewrap (`infra/sandbox/fence.py`). Standard library alone.
"""

import os

from infra.sandbox.forkserver import kernel
from infra.sandbox.forkserver.kernel import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_REC, MS_REMOUNT

_SHUT = MS_RDONLY | MS_NOSUID | MS_NODEV
_DEVICES = ("null", "full", "random", "urandom")
_LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}
_NAMESPACES = {
    "network": kernel.CLONE_NEWNET,
    "ipc": kernel.CLONE_NEWIPC,
}
INSIDE = 65534
# As `infra/sandbox/process.py` has it.
NICE = 5


class Enclosure:
    """Built from what the worker says: `stage`, `without`, `system` (mounts), `masks`, `filter` and sizes."""

    def __init__(self, told: dict) -> None:  # type: ignore[type-arg]
        self._stage: str = told["stage"]
        self._without = frozenset(told["without"])
        self._system: list[list[str]] = told["system"]
        self._kept: list[str] = told["kept_read_only"]
        self._folders: list[str] = told["empty_folders"]
        self._files: list[str] = told["empty_files"]
        self._sizes: dict[str, int] = told["sizes"]
        self._filter = bytes.fromhex(told["filter"])
        self._as_root: bool = told["as_root"]

    def has(self, guard: str) -> bool:
        """Whether a guard stands."""
        return guard not in self._without

    def separate(self) -> None:
        """Give the server namespaces of its own; its process namespace begins with its next child.

        If that child ends, the kernel ends everything in it: no slot outlives its server.
        """
        flags = kernel.CLONE_NEWNS | kernel.CLONE_NEWUTS
        uid, gid = os.getuid(), os.getgid()
        if not self._as_root:
            flags |= kernel.CLONE_NEWUSER
        if self.has("processes"):
            flags |= kernel.CLONE_NEWPID
        kernel.unshare(flags)
        if not self._as_root:
            _map(0, uid, 0, gid)
        kernel.set_hostname(b"sandbox")
        kernel.mount("none", "/", None, MS_REC | kernel.MS_PRIVATE)

    def build(self) -> None:
        """Prepare the template, and show the server itself its programs read-only: slots can reach them by
        `/proc/self/exe`, past the root that they see.
        """
        for path in self._kept:
            _bind(path, path)
        # Where nothing shall be read-only, the root is everybody's, as bubblewrap's root is its user's.
        mode = 755 if self.has("read_only") else 777
        kernel.mount("tmpfs", self._stage, "tmpfs", MS_NOSUID | MS_NODEV, f"mode={mode},size=1m")
        for folder in ("proc", "tmp", "dev", "dev/shm", "agent", "environment"):
            os.makedirs(self._inside(folder), 0o755)
        for kind, source, target in self._system:
            place = self._inside(target)
            os.makedirs(os.path.dirname(place), exist_ok=True)
            if kind == "--symlink":
                os.symlink(source, place)
            elif os.path.exists(source):
                _point(source, place)
                _bind(source, place)
        for name in (*_DEVICES, "zero"):
            # Mapping /dev/zero makes memory that belongs to nobody.
            source = f"/dev/{'null' if name == 'zero' else name}"
            _point(source, self._inside(f"dev/{name}"))
            kernel.mount(source, self._inside(f"dev/{name}"), None, MS_BIND)
            kernel.read_only(self._inside(f"dev/{name}"), MS_RDONLY | MS_NOSUID | MS_NOEXEC)
        if not self.has("terminals"):
            os.makedirs(self._inside("dev/pts"), 0o755)
            kernel.mount(
                "devpts", self._inside("dev/pts"), "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666"
            )
            os.symlink("pts/ptmx", self._inside("dev/ptmx"))
        for name, target in _LINKS.items():
            os.symlink(target, self._inside(f"dev/{name}"))
        if self.has("read_only"):
            kernel.mount("none", self._stage, None, MS_REMOUNT | _SHUT)

    def prepare(self, uid: int) -> None:
        """The first half, before anybody knows which code a slot is for: namespaces and mounts."""
        if self.has("session"):
            os.setsid()
        with open("/proc/self/oom_score_adj", "w") as file:
            # When the host runs out of memory it shall take an agent, not Postgres.
            file.write("1000")
        if self.has("cpu"):
            os.nice(NICE)
        flags = kernel.CLONE_NEWNS | kernel.CLONE_NEWUTS | kernel.CLONE_NEWCGROUP
        for guard, flag in _NAMESPACES.items():
            if self.has(guard):
                flags |= flag
        kernel.unshare(flags)
        proc = self._inside("proc")
        if self.has("processes"):
            kernel.mount("proc", proc, "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
        else:
            kernel.mount("/proc", proc, None, MS_BIND | MS_REC)
        # The mask will lie over this, and what is behind it is needed once more.
        self._settings = os.open(f"{proc}/sys", os.O_PATH)
        if self.has("proc_masks"):
            for folder in self._folders:
                # Nothing lies there yet, and it cannot be written to.
                kernel.mount(self._inside("agent"), self._inside(folder), None, MS_BIND)
            for name in self._files:
                kernel.mount(self._inside("dev/null"), self._inside(name), None, MS_BIND)
        for path, size in self._sizes.items():
            options = f"mode=700,uid={uid},gid={uid}" + (f",size={size}" if self.has("tmp_size") else "")
            kernel.mount("tmpfs", self._inside(path), "tmpfs", MS_NOSUID | MS_NODEV, options)

    def close(self, uid: int, code: str, environment: str | None) -> None:
        """The second half: show the code, enter the root, become nobody, and let nothing of it be undone."""
        shown = {"agent": code} if environment is None else {"agent": code, "environment": environment}
        for place, source in shown.items():
            kernel.mount(source, self._inside(place), None, MS_BIND | MS_REC)
            if self.has("read_only"):
                kernel.read_only(self._inside(place), _SHUT)
        os.chdir(self._stage)
        kernel.enter_root()
        os.chdir("/agent")
        if self._as_root and self.has("uid"):
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        kernel.show_to_own_user()
        # Last of the namespaces, so that it owns none of the others.
        kernel.unshare(kernel.CLONE_NEWUSER)
        _map(INSIDE, uid, INSIDE, uid)
        if self.has("userns"):
            with open(os.open("user/max_user_namespaces", os.O_WRONLY, dir_fd=self._settings), "w") as file:
                file.write("0")
        os.close(self._settings)
        if self.has("capabilities"):
            kernel.drop_capabilities()
        kernel.forbid_new_privileges()
        kernel.die_with_parent()
        if self.has("seccomp"):
            kernel.filter_calls(self._filter)

    def _inside(self, path: str) -> str:
        return f"{self._stage}/{path.lstrip('/')}"


def _map(inside_uid: int, uid: int, inside_gid: int, gid: int) -> None:
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{inside_uid} {uid} 1"),
        ("gid_map", f"{inside_gid} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def _point(source: str, place: str) -> None:
    if os.path.isdir(source):
        os.makedirs(place, exist_ok=True)
    elif not os.path.exists(place):
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o644))


def _bind(source: str, place: str) -> None:
    kernel.mount(source, place, None, MS_BIND | MS_REC)
    kernel.read_only(place, _SHUT)
