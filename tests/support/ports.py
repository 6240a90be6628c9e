"""Find ports of this machine that are free."""

import socket

from infra.embedded.child_process import find_free_ports


def find_port_range(count: int) -> int:
    """Return the first of several consecutive free ports."""
    for _ in range(100):
        (port,) = find_free_ports(1)
        if all(_is_free(number) for number in range(port, port + count)):
            return port
    raise AssertionError("there are no free ports in a row")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
