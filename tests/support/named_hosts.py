"""Let the processes of an installation find names of hosts on this machine, as a DNS server would."""

import contextlib
import os
import socket
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

from scripts import supervisor

VARIABLE = "NAMED_HOSTS_OF_TESTS"
_run_child = supervisor._run_child


@contextlib.contextmanager
def name_hosts(*names: str) -> Iterator[None]:
    """Resolve names to 127.0.0.1 in the processes that are started in this context."""
    with (
        mock.patch.dict(os.environ, {VARIABLE: " ".join(names)}),
        mock.patch.object(supervisor, "_run_child", run_named_child),
    ):
        yield


def run_named_child(role: str, environment: dict[str, str], output: Connection) -> None:
    """Turn a new child process into `role`, as the supervisor does, with a resolver that knows the names."""
    names, find = environment.get(VARIABLE, "").split(), socket.getaddrinfo

    def find_named(host: Any, *arguments: Any, **options: Any) -> Any:
        return find("127.0.0.1" if host in names else host, *arguments, **options)

    socket.getaddrinfo = find_named
    _run_child(role, environment, output)
