"""The system call filter of the fence, as a classic BPF program.

Own code, because the libraries need a libseccomp on the host, which a fresh machine does not have.
Format: linux/seccomp.h, linux/filter.h. An allowlist: what is not named is refused with EPERM,
what is newer than our tables with ENOSYS, so that libc falls back to what it knows.
"""

import errno
import platform
import signal
import struct
from typing import Final

from infra.sandbox import syscalls

_LD_ABS, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NR, _ARCH = 0, 4

# CLONE_NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_NEW_NAMESPACES: Final = 0x7E020080
_AF_UNIX: Final = 1
_PR_SET_PDEATHSIG: Final = 1
_MAP_SHARED, _MAP_ANONYMOUS = 0x01, 0x20
_TERMINAL_INJECTION: Final = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX

_MACHINES: Final = {"x86_64": (0xC000003E, syscalls.X86_64), "aarch64": (0xC00000B7, syscalls.AARCH64)}


class UnknownMachine(Exception):
    """There is no system call table for this processor."""


def _argument(number: int) -> int:
    """The offset of the low half of a system call's argument in `struct seccomp_data` (little endian)."""
    return 16 + 8 * number


def program(machine: str | None = None) -> bytes:
    """The filter for this machine, as `struct sock_filter[]`. Errors: `UnknownMachine`."""
    name = machine or platform.machine()
    if name not in _MACHINES:
        raise UnknownMachine(f"there is no system call filter for {name!r}; there are: {', '.join(_MACHINES)}")
    arch, table = _MACHINES[name]
    code: list[tuple[int, int, int, int]] = []

    def add(operation: int, value: int, if_true: int = 0, if_false: int = 0) -> None:
        code.append((operation, if_true, if_false, value))

    def refuse(number: int) -> None:
        add(_RET, 0, 0, 0)
        code[-1] = (_RET, 0, 0, _ERRNO | number)

    add(_LD_ABS, _ARCH)
    add(_JEQ, arch, 1, 0)
    add(_RET, _KILL)
    add(_LD_ABS, _NR)
    if name == "x86_64":
        add(_JGE, 0x40000000, 0, 1)  # the x32 calls share our architecture but not our numbers
        add(_RET, _KILL)
    special = {"clone", "clone3", "socketpair", "prlimit64", "ioctl", "mmap", "prctl"}
    for call, number in sorted(table.items()):
        if call not in special:
            add(_JEQ, number, 0, 1)
            add(_RET, _ALLOW)

    # glibc falls back from clone3, whose flags a filter cannot read, to clone.
    add(_JEQ, table["clone3"], 0, 1)
    refuse(errno.ENOSYS)

    add(_JEQ, table["clone"], 0, 4)
    add(_LD_ABS, _argument(0))
    add(_JSET, _NEW_NAMESPACES, 0, 1)
    refuse(errno.EPERM)
    add(_RET, _ALLOW)

    add(_JEQ, table["socketpair"], 0, 4)
    add(_LD_ABS, _argument(0))
    add(_JEQ, _AF_UNIX, 0, 1)
    add(_RET, _ALLOW)
    refuse(errno.EPERM)

    # Shared memory without a file counts for no process once it is unmapped; with a file it counts for its tmpfs.
    add(_JEQ, table["mmap"], 0, 6)
    add(_LD_ABS, _argument(3))
    add(_JSET, _MAP_ANONYMOUS, 0, 3)
    add(_JSET, _MAP_SHARED, 0, 1)
    refuse(errno.EPERM)
    add(_RET, _ALLOW)
    add(_RET, _ALLOW)

    # Only one's own limits: a sibling's were once used to break a shared process.
    add(_JEQ, table["prlimit64"], 0, 4)
    add(_LD_ABS, _argument(0))
    add(_JEQ, 0, 0, 1)
    add(_RET, _ALLOW)
    refuse(errno.EPERM)

    # Whoever may unset the signal that comes with its parent's death outlives a worker that was killed.
    add(_JEQ, table["prctl"], 0, 6)
    add(_LD_ABS, _argument(0))
    add(_JEQ, _PR_SET_PDEATHSIG, 0, 3)
    add(_LD_ABS, _argument(1))
    add(_JEQ, signal.SIGKILL, 1, 0)
    refuse(errno.EPERM)
    add(_RET, _ALLOW)

    add(_JEQ, table["ioctl"], 0, 2 + 2 * len(_TERMINAL_INJECTION))
    add(_LD_ABS, _argument(1))
    for request in _TERMINAL_INJECTION:
        add(_JEQ, request, 0, 1)
        refuse(errno.EPERM)
    add(_RET, _ALLOW)

    add(_JGE, syscalls.NEWEST + 1, 0, 1)
    refuse(errno.ENOSYS)
    refuse(errno.EPERM)
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
