"""Find free ports on loopback, and reserve them until the services that asked for them listen there."""

import errno
import itertools
import random
import socket
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final

# Ports below are where clients look for well-known services.
_LOWEST_PORT_NUMBER: Final = 12_000
# A service listens on its port long before its process has given out this many more.
_MAX_RESERVATIONS: Final = 200
_reservations: deque[socket.socket] = deque(maxlen=_MAX_RESERVATIONS)


def find_free_ports(count: int) -> list[int]:
    """Return different ports of loopback that no process uses, and that no other caller on this host gets meanwhile.

    Errors: `OSError` when there are too few.
    """
    ports = list(itertools.islice(filter(None, map(_take_port, _list_candidate_ports())), count))
    if len(ports) < count:
        raise OSError(errno.EADDRNOTAVAIL, f"there are no {count} free ports on loopback")
    return ports


def find_port_range(count: int) -> int:
    """Return the first of `count` ports in a row that are free as those of `find_free_ports` are. Errors: `OSError`."""
    for first in filter(None, _list_candidate_ports()):
        if all(_take_port(port) for port in range(first, first + count)):
            return first
    raise OSError(errno.EADDRNOTAVAIL, f"there are no {count} free ports in a row on loopback")


def is_listening(port: int) -> bool:
    """Return whether a process accepts connections on a port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _list_candidate_ports() -> Iterator[int]:
    """Yield ports in random order, first those that the kernel gives to no connection. 0 stands for any it gives."""
    try:
        first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except (OSError, ValueError):
        first_ephemeral = 0
    ports = range(_LOWEST_PORT_NUMBER, first_ephemeral)
    yield from random.sample(ports, len(ports))
    yield from itertools.repeat(0, 10_000)


def _take_port(port: int) -> int:
    """Reserve a port if it is free. Returns its number, or 0."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return 0
        port = int(probe.getsockname()[1])
        return port if _reserve(port) else 0


def _reserve(port: int) -> bool:
    """Hold the port's name among the abstract sockets, which the kernel frees when the process ends."""
    reservation = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        reservation.bind(f"\0paddock-port-{port}")
    except OSError as error:
        reservation.close()
        # Other kernels have no such sockets, and find ports without reservations.
        return error.errno != errno.EADDRINUSE
    _reservations.append(reservation)
    return True
