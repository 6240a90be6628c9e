"""Build the system call filter of the fence, as a classic BPF program.

Own code, because the libraries need a libseccomp on the host, which a fresh machine does not have.
Format: linux/seccomp.h, linux/filter.h. The filter is an allowlist: a call that is not named is refused with EPERM,
a call newer than our tables with ENOSYS, so that libc falls back to an older one.
"""

import errno
import platform
import signal
import struct
from typing import Final

from infra.sandbox import syscalls

_BPF_LOAD, _BPF_JUMP_EQ, _BPF_JUMP_GE, _BPF_JUMP_SET, _BPF_AND, _BPF_RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_RETURN_ALLOW, _RETURN_KILL, _RETURN_ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
# Offsets in `struct seccomp_data`.
_CALL_OFFSET, _ARCH_OFFSET = 0, 4

# For programs with a network: the options that a client of a TCP server on this host sets, as (level, option).
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
# A socket's type also carries SOCK_NONBLOCK and SOCK_CLOEXEC.
_SOCK_TYPE: Final = 0xF
_IPPROTO_TCP: Final = 6
_PR_SET_PDEATHSIG: Final = 1
_MAP_SHARED, _MAP_ANONYMOUS = 0x01, 0x20
_TERMINAL_REQUESTS: Final = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX
_INTERFACE_REQUESTS: Final = range(0x8900, 0x8A00)  # SIOC…: questions about a network through any of its sockets

_MACHINE_TABLES: Final = {
    "x86_64": (0xC000003E, syscalls.X86_64_CALLS),
    "aarch64": (0xC00000B7, syscalls.AARCH64_CALLS),
}
# Calls that are allowed with some arguments alone.
_FILTERED_CALLS: Final = frozenset({"clone", "clone3", "socketpair", "prlimit64", "ioctl", "mmap", "prctl"})


class UnknownMachine(Exception):
    """Report that this processor has no system call table."""


class _FilterCode:
    """Collect the instructions of a filter."""

    def __init__(self) -> None:
        self._instructions: list[tuple[int, int, int, int]] = []

    def add(self, operation: int, value: int, if_true: int = 0, if_false: int = 0) -> None:
        """Append an instruction. A jump skips `if_true` or `if_false` instructions."""
        self._instructions.append((operation, if_true, if_false, value))

    def load_argument(self, number: int) -> None:
        """Load the low half of a system call's argument (little endian)."""
        self.add(_BPF_LOAD, 16 + 8 * number)

    def allow(self) -> None:
        """Allow the call."""
        self.add(_BPF_RETURN, _RETURN_ALLOW)

    def refuse(self, error: int) -> None:
        """Refuse the call with an error number."""
        self.add(_BPF_RETURN, _RETURN_ERRNO | error)

    def encode(self) -> bytes:
        """Return the program as `struct sock_filter[]`."""
        return b"".join(struct.pack("=HBBI", *instruction) for instruction in self._instructions)


def build_filter(machine: str | None = None, has_network: bool = False) -> bytes:
    """Return the filter for this machine, as `struct sock_filter[]`. With `has_network`, TCP over IPv4 is allowed.

    Errors: `UnknownMachine`.
    """
    name = machine or platform.machine()
    if name not in _MACHINE_TABLES:
        raise UnknownMachine(
            f"no system call filter exists for {name!r}; these machines have one: {', '.join(_MACHINE_TABLES)}"
        )
    table = _MACHINE_TABLES[name][1]
    code = _FilterCode()
    _check_architecture(code, name)
    for call, number in sorted({**table, **(syscalls.NETWORK_CALLS[name] if has_network else {})}.items()):
        if call not in _FILTERED_CALLS:
            code.add(_BPF_JUMP_EQ, number, 0, 1)
            code.allow()
    _filter_clone(code, table)
    if has_network:
        _filter_sockets(code, name)
    _filter_socketpair(code, table)
    _filter_mmap(code, table)
    _filter_process_calls(code, table)
    _filter_ioctl(code, table, has_network)
    code.add(_BPF_JUMP_GE, syscalls.NEWEST_CALL_NUMBER + 1, 0, 1)
    code.refuse(errno.ENOSYS)
    code.refuse(errno.EPERM)
    return code.encode()


def _check_architecture(code: _FilterCode, machine: str) -> None:
    code.add(_BPF_LOAD, _ARCH_OFFSET)
    code.add(_BPF_JUMP_EQ, _MACHINE_TABLES[machine][0], 1, 0)
    code.add(_BPF_RETURN, _RETURN_KILL)
    code.add(_BPF_LOAD, _CALL_OFFSET)
    if machine == "x86_64":
        code.add(_BPF_JUMP_GE, 0x40000000, 0, 1)  # the x32 calls share our architecture but not our numbers
        code.add(_BPF_RETURN, _RETURN_KILL)


def _filter_clone(code: _FilterCode, table: dict[str, int]) -> None:
    # glibc falls back from clone3, whose flags a filter cannot read, to clone.
    code.add(_BPF_JUMP_EQ, table["clone3"], 0, 1)
    code.refuse(errno.ENOSYS)

    code.add(_BPF_JUMP_EQ, table["clone"], 0, 4)
    code.load_argument(0)
    code.add(_BPF_JUMP_SET, _NEW_NAMESPACES, 0, 1)
    code.refuse(errno.EPERM)
    code.allow()


def _filter_sockets(code: _FilterCode, machine: str) -> None:
    # Not MPTCP or SCTP, which are streams as well.
    code.add(_BPF_JUMP_EQ, syscalls.SOCKET_NUMBERS[machine], 0, 10)
    code.load_argument(0)
    code.add(_BPF_JUMP_EQ, _AF_INET, 0, 6)
    code.load_argument(1)
    code.add(_BPF_AND, _SOCK_TYPE)
    code.add(_BPF_JUMP_EQ, _SOCK_STREAM, 0, 3)
    code.load_argument(2)
    code.add(_BPF_JUMP_EQ, 0, 2, 0)
    code.add(_BPF_JUMP_EQ, _IPPROTO_TCP, 1, 0)
    code.refuse(errno.EPERM)
    code.allow()

    code.add(_BPF_JUMP_EQ, syscalls.SETSOCKOPT_NUMBERS[machine], 0, 1 + 5 * len(_SOCKET_OPTIONS))
    for level, option in _SOCKET_OPTIONS:
        code.load_argument(1)
        code.add(_BPF_JUMP_EQ, level, 0, 3)
        code.load_argument(2)
        code.add(_BPF_JUMP_EQ, option, 0, 1)
        code.allow()
    code.refuse(errno.EPERM)


def _filter_socketpair(code: _FilterCode, table: dict[str, int]) -> None:
    # A datagram socket, and it alone, could leave its pair for another address.
    code.add(_BPF_JUMP_EQ, table["socketpair"], 0, 8)
    code.load_argument(0)
    code.add(_BPF_JUMP_EQ, _AF_UNIX, 0, 5)
    code.load_argument(1)
    code.add(_BPF_AND, _SOCK_TYPE)
    code.add(_BPF_JUMP_EQ, _SOCK_STREAM, 1, 0)
    code.add(_BPF_JUMP_EQ, _SOCK_SEQPACKET, 0, 1)
    code.allow()
    code.refuse(errno.EPERM)


def _filter_mmap(code: _FilterCode, table: dict[str, int]) -> None:
    # Shared memory without a file counts for no process once it is unmapped; with a file it counts for its tmpfs.
    code.add(_BPF_JUMP_EQ, table["mmap"], 0, 6)
    code.load_argument(3)
    code.add(_BPF_JUMP_SET, _MAP_ANONYMOUS, 0, 3)
    code.add(_BPF_JUMP_SET, _MAP_SHARED, 0, 1)
    code.refuse(errno.EPERM)
    code.allow()
    code.allow()


def _filter_process_calls(code: _FilterCode, table: dict[str, int]) -> None:
    # A process may set its own limits alone: a sibling's were once used to break a shared process.
    code.add(_BPF_JUMP_EQ, table["prlimit64"], 0, 4)
    code.load_argument(0)
    code.add(_BPF_JUMP_EQ, 0, 0, 1)
    code.allow()
    code.refuse(errno.EPERM)

    # A process that could unset the signal at its parent's death would outlive a killed worker.
    code.add(_BPF_JUMP_EQ, table["prctl"], 0, 6)
    code.load_argument(0)
    code.add(_BPF_JUMP_EQ, _PR_SET_PDEATHSIG, 0, 3)
    code.load_argument(1)
    code.add(_BPF_JUMP_EQ, signal.SIGKILL, 1, 0)
    code.refuse(errno.EPERM)
    code.allow()


def _filter_ioctl(code: _FilterCode, table: dict[str, int], has_network: bool) -> None:
    code.add(_BPF_JUMP_EQ, table["ioctl"], 0, 2 + 2 * len(_TERMINAL_REQUESTS) + (3 if has_network else 0))
    code.load_argument(1)
    for request in _TERMINAL_REQUESTS:
        code.add(_BPF_JUMP_EQ, request, 0, 1)
        code.refuse(errno.EPERM)
    if has_network:
        code.add(_BPF_JUMP_GE, _INTERFACE_REQUESTS.start, 0, 2)
        code.add(_BPF_JUMP_GE, _INTERFACE_REQUESTS.stop, 1, 0)
        code.refuse(errno.EPERM)
    code.allow()
