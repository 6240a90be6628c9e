"""Child processes that do not outlive their parent, and free ports for them."""

import asyncio
import contextlib
import ctypes
import itertools
import os
import random
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Final

_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG: Final = 1
_CLONE_NEWUSER: Final = 0x10000000
_PR_SET_KEEPCAPS: Final = 8
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 47, 2
_CAP_DAC_OVERRIDE: Final = 1
NOBODY_UID: Final = 65534
# Below are ports where services are looked for.
_LOWEST_PORT_NUMBER: Final = 12_000


class EmbeddedServiceError(Exception):
    """An embedded part did not start. The message says which, and ends with what it printed."""


def find_free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody uses right now, all different."""
    taken: list[socket.socket] = []
    try:
        for port in _shuffle_ports():
            made = socket.socket()
            taken.append(made)
            try:
                made.bind(("127.0.0.1", port))
            except OSError:
                taken.pop().close()
            if len(taken) == count:
                break
        return [made.getsockname()[1] for made in taken]
    finally:
        for made in taken:
            made.close()


def _shuffle_ports() -> Iterator[int]:
    """Ports in random order. None that the kernel may give to a connection until whoever asked here has taken it."""
    try:
        first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        first = 0
    known = range(_LOWEST_PORT_NUMBER, first)
    yield from random.sample(known, len(known))
    # Whatever the kernel gives.
    yield from itertools.repeat(0, 10_000)


def create_parent_bond(death: signal.Signals) -> Callable[[], None]:
    """For `preexec_fn`: the kernel sends `death` to the child when its parent dies, however it dies."""

    def before_exec() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, death)

    return before_exec


def create_nobody_setup(death: signal.Signals, *owned: Path) -> Callable[[], None]:
    """For `preexec_fn`: as `bound_to_parent`, and root becomes nobody, or looks like it, to the child.

    Postgres refuses to be root. In a user namespace that maps root to nobody it is not, while its
    files stay root's and folders closed to others stay usable. Where there are no user namespaces,
    it becomes nobody for real, keeps the one right to pass closed folders, and owns `owned`.
    """
    if os.geteuid() != 0:
        return create_parent_bond(death)

    def before_exec() -> None:
        if _libc.unshare(_CLONE_NEWUSER) == 0:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{NOBODY_UID} 0 1")
            Path("/proc/self/gid_map").write_text(f"{NOBODY_UID} 0 1")
        else:
            for folder in owned:
                _change_owner(folder)
            _become_nobody()
        # After the change of user, which clears it.
        _libc.prctl(_PR_SET_PDEATHSIG, death)

    return before_exec


def _change_owner(folder: Path) -> None:
    os.chown(folder, NOBODY_UID, NOBODY_UID)
    for _, folders, files, here in os.fwalk(folder):
        for name in (*folders, *files):
            os.chown(name, NOBODY_UID, NOBODY_UID, dir_fd=here, follow_symlinks=False)


def _become_nobody() -> None:
    os.setgroups([])
    os.setresgid(NOBODY_UID, NOBODY_UID, NOBODY_UID)
    _libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setresuid(NOBODY_UID, NOBODY_UID, NOBODY_UID)
    # linux/capability.h: version 3, this process; effective, permitted, inheritable for 32 rights, then for the rest.
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    right = 1 << _CAP_DAC_OVERRIDE
    if _libc.capset(header, (ctypes.c_uint32 * 6)(right, right, right, 0, 0, 0)) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0)


class ChildProcess:
    """One running embedded part."""

    def __init__(self, name: str, process: "subprocess.Popen[bytes]", log: Path, grace: float) -> None:
        self.name, self.process, self.log, self._grace = name, process, log, grace

    def is_alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    async def wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until `ready` says so. Errors: `PartFailed`."""
        for _ in range(int(seconds / 0.02)):
            if not self.is_alive():
                raise EmbeddedServiceError(
                    f"{self.name} ended with status {self.process.returncode}.\n{self.read_log_tail()}"
                )
            if ready():
                return
            await asyncio.sleep(0.02)
        raise EmbeddedServiceError(f"{self.name} was not ready after {seconds:g} s.\n{self.read_log_tail()}")

    async def stop(self, first: signal.Signals = signal.SIGTERM) -> None:
        """Ask it to end, and end it if it does not."""
        if not self.is_alive():
            return
        self.process.send_signal(first)
        for _ in range(int(self._grace / 0.02)):
            if not self.is_alive():
                return
            await asyncio.sleep(0.02)
        self.process.kill()
        await asyncio.to_thread(self.process.wait)

    def read_log_tail(self) -> str:
        """The last lines that it printed."""
        with contextlib.suppress(OSError):
            return self.log.read_text(errors="replace")[-2000:]
        return ""


def start_child(
    name: str,
    args: list[str],
    *,
    log: Path,
    cwd: Path,
    environment: Mapping[str, str],
    before_exec: Callable[[], None],
    grace: float = 10.0,
) -> ChildProcess:
    """Start a part in a session of its own, so that Ctrl-C reaches its parent alone."""
    output: IO[bytes]
    with log.open("ab") as output:
        process = subprocess.Popen(
            args,
            cwd=cwd,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=before_exec,
        )
    return ChildProcess(name, process, log, grace)


def listening(port: int) -> Callable[[], bool]:
    """Whether something accepts connections on a port of loopback."""

    def ready() -> bool:
        with socket.socket() as probe:
            probe.settimeout(0.2)
            return probe.connect_ex(("127.0.0.1", port)) == 0

    return ready
