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

_LD_ABS, _JEQ, _JGE, _JSET, _AND, _RET = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NR, _ARCH = 0, 4

# For programs with a gateway: what a client of a TCP server on this host asks of its sockets, as (level, option).
_SOCKET_OPTIONS: Final = (
    (1, 2),  # SO_REUSEADDR
    (1, 9),  # SO_KEEPALIVE
    (1, 13),  # SO_LINGER
    (1, 20),  # SO_RCVTIMEO
    (1, 21),  # SO_SNDTIMEO
    (6, 1),  # TCP_NODELAY
    (6, 4),  # TCP_KEEPIDLE
    (6, 5),  # TCP_KEEPINTVL
    (6, 6),  # TCP_KEEPCNT
    (6, 12),  # TCP_QUICKACK
    (6, 18),  # TCP_USER_TIMEOUT
)

# CLONE_NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_NEW_NAMESPACES: Final = 0x7E020080
_AF_UNIX, _AF_INET = 1, 2
_SOCK_STREAM, _SOCK_SEQPACKET = 1, 5
# Beside a socket's type lie SOCK_NONBLOCK and SOCK_CLOEXEC.
_SOCK_TYPE: Final = 0xF
_IPPROTO_TCP: Final = 6
_PR_SET_PDEATHSIG: Final = 1
_MAP_SHARED, _MAP_ANONYMOUS = 0x01, 0x20
_TERMINAL_REQUESTS: Final = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
_INTERFACE_REQUESTS: Final = range(0x8900, 0x8A00)  # SIOC…: what can be asked of a network through any of its sockets

_MACHINE_TABLES: Final = {
    "x86_64": (0xC000003E, syscalls.X86_64_CALLS),
    "aarch64": (0xC00000B7, syscalls.AARCH64_CALLS),
}


class UnknownMachine(Exception):
    """There is no system call table for this processor."""


def _get_argument_offset(number: int) -> int:
    """The offset of the low half of a system call's argument in `struct seccomp_data` (little endian)."""
    return 16 + 8 * number


def build_filter(machine: str | None = None, gateway: bool = False) -> bytes:
    """The filter for this machine, as `struct sock_filter[]`. With a `gateway`, TCP over IPv4 is let through.

    Errors: `UnknownMachine`.
    """
    name = machine or platform.machine()
    if name not in _MACHINE_TABLES:
        raise UnknownMachine(f"there is no system call filter for {name!r}; there are: {', '.join(_MACHINE_TABLES)}")
    arch, table = _MACHINE_TABLES[name]
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
    for call, number in sorted({**table, **(syscalls.GATEWAY_CALLS[name] if gateway else {})}.items()):
        if call not in special:
            add(_JEQ, number, 0, 1)
            add(_RET, _ALLOW)

    # glibc falls back from clone3, whose flags a filter cannot read, to clone.
    add(_JEQ, table["clone3"], 0, 1)
    refuse(errno.ENOSYS)

    add(_JEQ, table["clone"], 0, 4)
    add(_LD_ABS, _get_argument_offset(0))
    add(_JSET, _NEW_NAMESPACES, 0, 1)
    refuse(errno.EPERM)
    add(_RET, _ALLOW)

    if gateway:
        # Not MPTCP or SCTP, which are streams as well.
        add(_JEQ, syscalls.SOCKET_NUMBERS[name], 0, 10)
        add(_LD_ABS, _get_argument_offset(0))
        add(_JEQ, _AF_INET, 0, 6)
        add(_LD_ABS, _get_argument_offset(1))
        add(_AND, _SOCK_TYPE)
        add(_JEQ, _SOCK_STREAM, 0, 3)
        add(_LD_ABS, _get_argument_offset(2))
        add(_JEQ, 0, 2, 0)
        add(_JEQ, _IPPROTO_TCP, 1, 0)
        refuse(errno.EPERM)
        add(_RET, _ALLOW)

        add(_JEQ, syscalls.SETSOCKOPT_NUMBERS[name], 0, 1 + 5 * len(_SOCKET_OPTIONS))
        for level, option in _SOCKET_OPTIONS:
            add(_LD_ABS, _get_argument_offset(1))
            add(_JEQ, level, 0, 3)
            add(_LD_ABS, _get_argument_offset(2))
            add(_JEQ, option, 0, 1)
            add(_RET, _ALLOW)
        refuse(errno.EPERM)

    # A datagram socket, and it alone, could leave its pair for another address.
    add(_JEQ, table["socketpair"], 0, 8)
    add(_LD_ABS, _get_argument_offset(0))
    add(_JEQ, _AF_UNIX, 0, 5)
    add(_LD_ABS, _get_argument_offset(1))
    add(_AND, _SOCK_TYPE)
    add(_JEQ, _SOCK_STREAM, 1, 0)
    add(_JEQ, _SOCK_SEQPACKET, 0, 1)
    add(_RET, _ALLOW)
    refuse(errno.EPERM)

    # Shared memory without a file counts for no process once it is unmapped; with a file it counts for its tmpfs.
    add(_JEQ, table["mmap"], 0, 6)
    add(_LD_ABS, _get_argument_offset(3))
    add(_JSET, _MAP_ANONYMOUS, 0, 3)
    add(_JSET, _MAP_SHARED, 0, 1)
    refuse(errno.EPERM)
    add(_RET, _ALLOW)
    add(_RET, _ALLOW)

    # Only one's own limits: a sibling's were once used to break a shared process.
    add(_JEQ, table["prlimit64"], 0, 4)
    add(_LD_ABS, _get_argument_offset(0))
    add(_JEQ, 0, 0, 1)
    add(_RET, _ALLOW)
    refuse(errno.EPERM)

    # Whoever may unset the signal that comes with its parent's death outlives a worker that was killed.
    add(_JEQ, table["prctl"], 0, 6)
    add(_LD_ABS, _get_argument_offset(0))
    add(_JEQ, _PR_SET_PDEATHSIG, 0, 3)
    add(_LD_ABS, _get_argument_offset(1))
    add(_JEQ, signal.SIGKILL, 1, 0)
    refuse(errno.EPERM)
    add(_RET, _ALLOW)

    add(_JEQ, table["ioctl"], 0, 2 + 2 * len(_TERMINAL_REQUESTS) + (3 if gateway else 0))
    add(_LD_ABS, _get_argument_offset(1))
    for request in _TERMINAL_REQUESTS:
        add(_JEQ, request, 0, 1)
        refuse(errno.EPERM)
    if gateway:
        add(_JGE, _INTERFACE_REQUESTS.start, 0, 2)
        add(_JGE, _INTERFACE_REQUESTS.stop, 1, 0)
        refuse(errno.EPERM)
    add(_RET, _ALLOW)

    add(_JGE, syscalls.NEWEST_CALL_NUMBER + 1, 0, 1)
    refuse(errno.ENOSYS)
    refuse(errno.EPERM)
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
