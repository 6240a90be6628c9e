"""Ports stay reserved for those who were given them, in one process and in several."""

import subprocess
import sys

from infra.embedded.ports import find_free_ports, find_port_range

PROGRAM = """
import sys
from infra.embedded.ports import find_free_ports
print(*find_free_ports(8_000), flush=True)
sys.stdin.read()
"""


def test_ports_are_given_once_while_they_are_reserved() -> None:
    calls = [find_free_ports(10) for _ in range(10)]
    first = find_port_range(8)
    ports = [port for call in calls for port in call] + list(range(first, first + 8))
    assert len(set(ports)) == 108


def test_another_process_is_given_other_ports() -> None:
    ports = set(find_free_ports(100))
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other_process:
        assert other_process.stdin
        assert other_process.stdout
        other_ports = {int(port) for port in other_process.stdout.readline().split()}
        other_process.stdin.close()
    assert len(other_ports) == 8_000
    assert not ports & other_ports


def test_many_ports_of_one_call_are_different() -> None:
    assert len(set(find_free_ports(400))) == 400
