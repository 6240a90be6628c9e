"""Build the fence around untrusted code from its guards, as arguments of bubblewrap.

Each guard has a name, so that the attack suite can take one away and see its attack succeed.
Only the tests build a fence without all of them.
"""

import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from domain.work_folder import WORK_FOLDER

GUARD_NAMES: Final = frozenset(
    {
        "cgroup",  # memory of the whole tree, the kernel's for it included (where the worker may make groups)
        "cpu",  # processors are shared by sandbox, at a lower weight than the host's, however many sessions it has
        "capabilities",  # no capability, not even over the sandbox's own namespaces
        "descriptors",  # no descriptor of the worker except the pipes for the guest
        "environment",  # empty, for bwrap itself as well: /proc shows it
        "ipc",  # its own System V objects and message queues
        "limits",  # processes, memory, file size, open files, core dumps (set by the guest)
        "network",  # its own network with nothing in it
        "packages",  # no package that the host has installed, for any Python started inside
        "processes",  # its own process ids; the whole tree dies with the first of them
        "proc_masks",  # /proc/sys, /proc/keys and the like are empty
        "read_only",  # the root, /dev and the code cannot be written
        "root",  # only the interpreter, the libraries and one version are there
        "seccomp",  # an allowlist of system calls
        "session",  # its own terminal session
        "terminals",  # no pseudo terminals: the host has few
        "tmp_size",  # /tmp, /work and /dev/shm are bounded
        "uid",  # a user id of its own on the host (when the worker is root)
        "userns",  # no further user namespaces
        "watch",  # memory and files of the whole tree are watched
    }
)

TMP_FOLDER: Final = "/tmp"  # noqa: S108 - inside the sandbox, which no other user sees
TMP_BYTES: Final = 64 * 1024 * 1024
SHM_BYTES: Final = 64 * 1024 * 1024
# What an agent may leave in `WORK_FOLDER`, with the files that it was given.
WORK_BYTES: Final = 256 * 1024 * 1024
# The folders whose files are in memory, with their sizes in bytes.
MEMORY_FOLDERS: Final = {TMP_FOLDER: TMP_BYTES, "/dev/shm": SHM_BYTES, WORK_FOLDER: WORK_BYTES}  # noqa: S108
# A run starts in the folder of its archive, as on its author's machine.
CODE_FOLDER: Final = "/agent"
# `python`, `python3` and `python3.11` by these names are the interpreter of the run, even if `/usr` holds others.
PYTHON_FOLDER: Final = "/python"
# The whole environment of an agent.
GUEST_ENVIRONMENT: Final = {
    "HOME": TMP_FOLDER,
    "PATH": f"{PYTHON_FOLDER}:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "TMPDIR": TMP_FOLDER,
    "PADDOCK_WORK": WORK_FOLDER,
}
EMPTY_FOLDERS: Final = ("/proc/sys", "/proc/irq", "/proc/bus", "/proc/fs", "/proc/scsi", "/proc/acpi")
EMPTY_FILES: Final = (
    "/proc/kcore",
    "/proc/keys",
    "/proc/key-users",
    "/proc/kallsyms",
    "/proc/kmsg",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/proc/config.gz",
    "/proc/slabinfo",
    "/proc/vmallocinfo",
    "/proc/pagetypeinfo",
)
# A sandbox is this much less important than the worker, where processors are shared by process.
NICE_INCREMENT: Final = 5
# Every host has one of these folders; a mount namespace of its own covers it with the stage.
_STAGE_FOLDERS: Final = ("/run", "/mnt", "/opt")
_GUEST_SOURCE: Final = Path(__file__).parent / "guest"
_LIBRARY_LINKS: Final = ("/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin")
# What the libraries of `/usr` read beside it: nothing in these is a secret of the host.
_LIBRARY_SETTINGS: Final = (
    "/etc/ld.so.cache",
    "/etc/alternatives",
    # The authorities that every TLS client trusts unless it brings its own; keys lie elsewhere.
    "/etc/ssl/certs",
    "/etc/ssl/cert.pem",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/ca-trust/extracted",
    "/etc/fonts",
)


class Fence(msgspec.Struct, frozen=True, kw_only=True):
    """Select the guards of a sandbox. `without` is for the attack suite alone."""

    without: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        unknown = self.without - GUARD_NAMES
        if unknown:
            raise ValueError(f"unknown guards: {', '.join(sorted(unknown))}")

    def has_guard(self, guard: str) -> bool:
        """Return whether a guard stands."""
        return guard not in self.without


class HostMount(msgspec.Struct, frozen=True, kw_only=True):
    """Name a host folder or file and where it is shown inside."""

    source: str
    target: str
    writable: bool = False


def list_system_mounts(fence: Fence) -> Iterator[tuple[str, str, str]]:
    """Yield bwrap arguments for the libraries of the host: `/usr`, what leads into it, and what they read beside it."""
    yield "--ro-bind", "/usr", "/usr"
    for path in _LIBRARY_LINKS:
        if os.path.islink(path):
            yield "--symlink", os.readlink(path), path
        elif os.path.isdir(path):
            yield "--ro-bind", path, path
    for path in _LIBRARY_SETTINGS:
        if os.path.exists(path):
            yield "--ro-bind", path, path
    if not fence.has_guard("root"):
        interpreter_folder = (find_interpreter_root() or "/").split("/")[1]
        for name in sorted({"boot", "etc", "home", "media", "opt", "root", "srv", "var"} - {interpreter_folder}):
            yield "--ro-bind-try", f"/{name}", f"/{name}"


def list_python_links() -> list[tuple[str, str, str]]:
    """Return bwrap arguments for the names of the interpreter in `PYTHON_FOLDER`."""
    series = f"{sys.version_info.major}.{sys.version_info.minor}"
    return [
        ("--symlink", find_interpreter(), f"{PYTHON_FOLDER}/{name}")
        for name in ("python", "python3", f"python{series}")
    ]


def list_guest_mounts(fence: Fence) -> list[HostMount]:
    """Return the mounts of every sandbox besides the system and its own code, in the order of mounting.

    The folders of the host's packages are covered by one that leads a started Python to the agent's own.
    """
    mounts = [HostMount(source=str(_GUEST_SOURCE), target="/guest")]
    root = find_interpreter_root()
    if root is not None:
        mounts.append(HostMount(source=root, target=root))
    if fence.has_guard("packages"):
        mounts += [
            HostMount(source=str(_GUEST_SOURCE / "packages"), target=folder) for folder in _list_package_folders()
        ]
    return mounts + [
        HostMount(source=str(_GUEST_SOURCE / "etc" / name), target=f"/etc/{name}")
        for name in ("passwd", "group", "hosts", "nsswitch.conf")
    ]


def _list_package_folders() -> list[str]:
    """Return the folders of this host, visible inside, from which an interpreter would load installed packages."""
    bases = {Path("/usr"), Path("/usr/local"), Path(find_interpreter_root() or "/usr")}
    folders = {
        folder
        for base in bases
        for kind in ("site-packages", "dist-packages")
        for folder in base.glob(f"lib*/python*/{kind}")
    }
    names = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    folders |= {Path(sysconfig.get_path(kind, vars=names)) for kind in ("purelib", "platlib")}
    # A link leads to a folder that is listed under its own name.
    return sorted({str(folder.resolve()) for folder in folders if folder.is_dir()})


def find_interpreter_root() -> str | None:
    """Return the folder of the interpreter, if it lies outside `/usr`."""
    root = str(Path(sys.base_prefix).resolve())
    return None if root == "/usr" or root.startswith("/usr/") else root


def find_interpreter() -> str:
    """Return the real path of the interpreter, which is the same inside and outside."""
    return str(Path(sys.executable).resolve())


def find_stage_folder() -> str:
    """Return a folder that exists here, to be covered by the stage in a mount namespace of its own."""
    return next(folder for folder in _STAGE_FOLDERS if os.path.isdir(folder))


def build_arguments(
    fence: Fence, mounts: list[HostMount], seccomp_fd: int | None, hosts_fd: int | None = None
) -> list[str]:
    """Return everything between `bwrap` and the program, in the order in which bwrap acts on it.

    With a `hosts_fd`, which holds its `/etc/hosts`, bwrap starts in the network that was made for it, and leaves it so.
    """
    args = [*_build_namespace_options(fence, has_network=hosts_fd is not None), *_build_root_options(fence, mounts)]
    if hosts_fd is not None:
        args += ["--perms", "0644", "--ro-bind-data", str(hosts_fd), "/etc/hosts"]
    args += _build_device_options(fence)
    if fence.has_guard("read_only"):
        args += ["--remount-ro", "/dev", "--remount-ro", "/"]
    if fence.has_guard("seccomp") and seccomp_fd is not None:
        args += ["--seccomp", str(seccomp_fd)]
    args += ["--chdir", CODE_FOLDER if any(mount.target == CODE_FOLDER for mount in mounts) else TMP_FOLDER]
    return args


def _build_namespace_options(fence: Fence, has_network: bool) -> list[str]:
    args: list[str] = ["--unshare-user"]
    for guard, flags in (
        ("network", () if has_network else ("--unshare-net",)),
        ("ipc", ("--unshare-ipc",)),
        ("processes", ("--unshare-pid", "--as-pid-1")),
    ):
        if fence.has_guard(guard):
            args += flags
    args += ["--unshare-uts", "--unshare-cgroup-try", "--hostname", "sandbox", "--uid", "65534", "--gid", "65534"]
    if fence.has_guard("environment"):
        args.append("--clearenv")
    args.append("--die-with-parent")
    for name, value in GUEST_ENVIRONMENT.items():
        args += ["--setenv", name, value]
    if fence.has_guard("userns"):
        args.append("--disable-userns")
    if fence.has_guard("session"):
        args.append("--new-session")
    args += ["--cap-drop", "ALL"] if fence.has_guard("capabilities") else ["--cap-add", "ALL"]
    return args


def _build_root_options(fence: Fence, mounts: list[HostMount]) -> list[str]:
    args: list[str] = []
    for option in (*list_system_mounts(fence), *list_python_links()):
        args += option
    for mount in mounts:
        writable = mount.writable or (mount.target == CODE_FOLDER and not fence.has_guard("read_only"))
        args += ["--bind" if writable else "--ro-bind", mount.source, mount.target]
    args += ["--proc", "/proc"] if fence.has_guard("processes") else ["--ro-bind", "/proc", "/proc"]
    if fence.has_guard("proc_masks"):
        for folder in EMPTY_FOLDERS:
            if os.path.isdir(folder):
                args += ["--tmpfs", folder, "--remount-ro", folder]
        for file in EMPTY_FILES:
            if os.path.exists(file):
                args += ["--ro-bind", "/dev/null", file]
    return args


def _build_device_options(fence: Fence) -> list[str]:
    # Mapping /dev/zero allocates memory that counts for no process.
    args = ["--dev", "/dev", "--ro-bind", "/dev/null", "/dev/zero"]
    if fence.has_guard("terminals"):
        # The file system that bubblewrap mounts there takes terminals from a number that the whole host shares;
        # /dev/ptmx leads there.
        args += ["--tmpfs", "/dev/pts", "--remount-ro", "/dev/pts"]
    for path, size in MEMORY_FOLDERS.items():
        if fence.has_guard("tmp_size"):
            args += ["--size", str(size)]
        args += ["--perms", "0700", "--tmpfs", path]
    return args
