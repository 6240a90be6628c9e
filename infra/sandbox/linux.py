"""Wrap the Linux system calls that the standard library lacks.

Every function raises `OSError`, which names the call. The fork server imports this module under `python -I -S`:
standard library alone, and little of it.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 0x1000, 0x4000, 1 << 18
_MNT_DETACH: Final = 2
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_KEEPCAPS, _PR_SET_SECCOMP = 1, 4, 8, 22
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 24, 38, 47
_SECCOMP_FILTER, _AMBIENT_RAISE, _AMBIENT_CLEAR_ALL = 2, 2, 4
_CAPABILITY_VERSION_3: Final = 0x20080522
CAP_DAC_OVERRIDE: Final = 1
_ERRNO_EINVAL: Final = 22
_SIGNAL_KILL: Final = 9

_PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41}.get(os.uname().machine, -1)
_KCMP_CALL: Final = {"x86_64": 312, "aarch64": 272}.get(os.uname().machine, -1)
_KCMP_VM: Final = 1
_MOUNT_SETATTR: Final = 442
_CLOSE_RANGE: Final = 436


class _MountAttributes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns_fd")]


class _FilterProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def _check_result(result: int, call: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Create new namespaces for this process; with `CLONE_NEWPID`, for its future children."""
    _check_result(_libc.unshare(flags), f"unshare {flags:#x}")


def enter_namespace(fd: int, flags: int) -> None:
    """Enter the namespace that a descriptor stands for."""
    _check_result(_libc.setns(fd, flags), "setns")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """Mount a file system, or bind or remount a folder. See mount(2)."""
    _check_result(
        _libc.mount(
            None if source is None else source.encode(),
            target.encode(),
            None if kind is None else kind.encode(),
            ctypes.c_ulong(flags),
            options.encode() or None,
        ),
        f"mount {source} on {target}",
    )


def make_read_only(target: str, flags: int) -> None:
    """Add `MS_RDONLY` and similar flags to a mount and to every mount beneath it."""
    attributes = _MountAttributes(set=flags)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    result = _libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, target.encode(), _AT_RECURSIVE, ctypes.byref(attributes), size)
    _check_result(result, f"mount_setattr {target}")


def enter_root() -> None:
    """Make the current folder, a mount point, the root, and detach the old root."""
    _check_result(_libc.syscall(_PIVOT_ROOT, b".", b"."), "pivot_root")
    _check_result(_libc.umount2(b".", _MNT_DETACH), "umount2")


def map_user(inside_uid: int, uid: int, inside_gid: int, gid: int) -> None:
    """Map one user and one group into the user namespace that this process has just created."""
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{inside_uid} {uid} 1"),
        ("gid_map", f"{inside_gid} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def set_hostname(name: bytes) -> None:
    """Set the host name of this UTS namespace."""
    _check_result(_libc.sethostname(name, len(name)), "sethostname")


def set_parent_death_signal(number: int = _SIGNAL_KILL) -> None:
    """Have the kernel send this process a signal when its parent dies. A change of user clears the setting."""
    _check_result(_libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0), "prctl PDEATHSIG")


def make_dumpable() -> None:
    """Make this process' files in `/proc` belong to its user, as they do after an exec."""
    _check_result(_libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0), "prctl DUMPABLE")


def drop_capabilities() -> None:
    """Drop every capability for good."""
    _check_result(_libc.prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL, 0, 0, 0), "prctl CAP_AMBIENT")
    for number in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) != 0:
            if ctypes.get_errno() == _ERRNO_EINVAL and number > 0:
                break
            _check_result(-1, f"prctl CAPBSET_DROP {number}")
    _set_capabilities(0)


def keep_capabilities() -> None:
    """Keep the permitted capabilities across the next change of user."""
    _check_result(_libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0), "prctl KEEPCAPS")


def retain_capability(number: int) -> None:
    """Drop every capability but one of the first 32; the programs that this process executes inherit that one."""
    _set_capabilities(1 << number)
    _check_result(_libc.prctl(_PR_CAP_AMBIENT, _AMBIENT_RAISE, number, 0, 0), "prctl CAP_AMBIENT")


def _set_capabilities(mask: int) -> None:
    # linux/capability.h: version 3, this process; effective, permitted, inheritable for 32 rights, then for the rest.
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0)
    _check_result(_libc.capset(ctypes.byref(header), ctypes.byref(data)), "capset")


def forbid_new_privileges() -> None:
    """Forbid every program started from here on to gain privileges."""
    _check_result(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl NO_NEW_PRIVS")


def install_filter(instructions: bytes) -> None:
    """Install a system call filter, given as `struct sock_filter[]`."""
    buffer = ctypes.create_string_buffer(instructions, len(instructions))
    program = _FilterProgram(len(instructions) // 8, ctypes.addressof(buffer))
    _check_result(_libc.prctl(_PR_SET_SECCOMP, _SECCOMP_FILTER, ctypes.byref(program), 0, 0), "prctl SECCOMP")


def close_other_descriptors(open_fds: set[int]) -> None:
    """Close every descriptor above stderr except these."""
    first = 3
    for fd in [*sorted(open_fds), 2**32 - 1]:
        if first < fd:
            last = ctypes.c_uint(fd - 1 if fd < 2**32 - 1 else fd)
            _check_result(_libc.syscall(_CLOSE_RANGE, ctypes.c_uint(first), last, 0), "close_range")
        first = max(first, fd + 1)


def is_sharing_memory(pid: int, other_pid: int) -> bool:
    """Return whether two processes share one address space; False where the kernel does not say."""
    return bool(_libc.syscall(_KCMP_CALL, pid, other_pid, _KCMP_VM, 0, 0) == 0)


def change_owner(folder: str | os.PathLike[str], uid: int) -> None:
    """Give a folder and everything beneath it to a user and the group of the same number, never following a link."""
    os.chown(folder, uid, uid, follow_symlinks=False)
    for _, folders, files, folder_fd in os.fwalk(folder, follow_symlinks=False):
        for name in (*folders, *files):
            os.chown(name, uid, uid, dir_fd=folder_fd, follow_symlinks=False)


@contextlib.contextmanager
def use_filesystem_user(uid: int, gid: int) -> Iterator[None]:
    """Create files as another user, in this thread alone and only while it is root. It must not wait in between.

    A file system that was mounted in a user namespace takes no files of users whom that namespace does not know.
    """
    if os.geteuid() != 0:
        yield
        return
    _libc.setfsgid(gid)
    _libc.setfsuid(uid)
    try:
        yield
    finally:
        _libc.setfsuid(0)
        _libc.setfsgid(0)
