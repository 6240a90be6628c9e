"""The system calls that the fork server needs and the standard library lacks. Errors: `OSError`, naming the call."""

import ctypes
import os
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

_PDEATHSIG, _DUMPABLE, _SECCOMP, _CAPBSET_DROP, _NO_NEW_PRIVS, _CAP_AMBIENT = 1, 4, 22, 24, 38, 47
_SECCOMP_FILTER, _AMBIENT_CLEAR_ALL = 2, 4
_CAPABILITY_VERSION_3: Final = 0x20080522
_EINVAL: Final = 22

_PIVOT_ROOT: Final = {"x86_64": 155, "aarch64": 41}.get(os.uname().machine, -1)
_MOUNT_SETATTR: Final = 442
_CLOSE_RANGE: Final = 436


class MountAttributes(ctypes.Structure):  # noqa: D101
    _fields_ = [(name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns_fd")]


class FilterProgram(ctypes.Structure):  # noqa: D101
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def _check_result(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """New namespaces for this process; `CLONE_NEWPID` for the children it will have."""
    _check_result(_libc.unshare(flags), f"unshare {flags:#x}")


def enter_namespace(fd: int, flags: int) -> None:
    """Back into the namespace that a descriptor stands for."""
    _check_result(_libc.setns(fd, flags), "setns")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """mount(2)."""
    told = options.encode() or None
    result = _libc.mount(source.encode(), target.encode(), kind and kind.encode(), ctypes.c_ulong(flags), told)
    _check_result(result, f"mount {source} on {target}")


def make_read_only(target: str, flags: int) -> None:
    """Add `MS_RDONLY` and the like to a mount and all beneath it, whatever they were mounted with."""
    attributes = MountAttributes(set=flags)
    size = ctypes.c_size_t(ctypes.sizeof(attributes))
    result = _libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, target.encode(), _AT_RECURSIVE, ctypes.byref(attributes), size)
    _check_result(result, f"mount_setattr {target}")


def enter_root() -> None:
    """Make the current folder, a mount point, the root, and let go of the old one."""
    _check_result(_libc.syscall(_PIVOT_ROOT, b".", b"."), "pivot_root")
    _check_result(_libc.umount2(b".", _MNT_DETACH), "umount2")


def set_hostname(name: bytes) -> None:
    """sethostname(2)."""
    _check_result(_libc.sethostname(name, len(name)), "sethostname")


def die_with_parent() -> None:
    """SIGKILL when the parent ends."""
    _check_result(_libc.prctl(_PDEATHSIG, 9, 0, 0, 0), "prctl PDEATHSIG")


def make_dumpable() -> None:
    """Let the files of this process in `/proc` belong to its user, as after an exec."""
    _check_result(_libc.prctl(_DUMPABLE, 1, 0, 0, 0), "prctl DUMPABLE")


def drop_capabilities() -> None:
    """Give up every capability, for good."""
    _check_result(_libc.prctl(_CAP_AMBIENT, _AMBIENT_CLEAR_ALL, 0, 0, 0), "prctl CAP_AMBIENT")
    for number in range(64):
        if _libc.prctl(_CAPBSET_DROP, number, 0, 0, 0) != 0:
            if ctypes.get_errno() == _EINVAL and number > 0:
                break
            _check_result(-1, f"prctl CAPBSET_DROP {number}")
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _check_result(_libc.capset(ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)())), "capset")


def forbid_new_privileges() -> None:
    """No program started from here on gets more than its parent had."""
    _check_result(_libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl NO_NEW_PRIVS")


def install_filter(program: bytes) -> None:
    """Install a system call filter, given as `struct sock_filter[]`."""
    held = ctypes.create_string_buffer(program, len(program))
    filled = FilterProgram(len(program) // 8, ctypes.addressof(held))
    _check_result(_libc.prctl(_SECCOMP, _SECCOMP_FILTER, ctypes.byref(filled), 0, 0), "prctl SECCOMP")


def close_other_descriptors(kept: set[int]) -> None:
    """Close every descriptor above stderr that is not named."""
    first = 3
    for fd in [*sorted(kept), 2**32 - 1]:
        if first < fd:
            last = ctypes.c_uint(fd - 1 if fd < 2**32 - 1 else fd)
            _check_result(_libc.syscall(_CLOSE_RANGE, ctypes.c_uint(first), last, 0), "close_range")
        first = max(first, fd + 1)
