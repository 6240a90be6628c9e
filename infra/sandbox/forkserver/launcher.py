"""Start the fork server: create its namespaces, fork, and wait for the child that becomes the server.

Started as `python -I -S launcher.py FD`, where FD is the socket to the worker, whose first message describes the fence.
"""

import json
import os
import socket
import sys

PROJECT_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
sys.path.append(PROJECT_ROOT)

from infra.sandbox import linux  # noqa: E402
from infra.sandbox.forkserver.slot_fence import SlotFence  # noqa: E402


def launch_server(connection: socket.socket) -> None:
    """Split into two processes: the server, and its parent, which ends when the server ends."""
    linux.set_parent_death_signal()
    fence = SlotFence(json.loads(connection.recv(1 << 20)))
    fence.create_namespaces()
    pid = os.fork()
    if pid:
        connection.close()
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0x7F)
    linux.set_parent_death_signal()
    fence.build_template()
    # The slots' streams will be pipes; Python checks at its start whether they can be rewound.
    reader, writer = os.pipe()
    for standard in (1, 2):
        os.dup2(writer, standard)
    os.close(reader)
    os.close(writer)
    server = os.path.join(os.path.dirname(os.path.abspath(__file__)), "server.py")
    os.execv(sys.executable, [sys.executable, "-I", "-S", server, str(connection.fileno())])  # noqa: S606


if __name__ == "__main__":
    launch_server(socket.socket(fileno=int(sys.argv[1])))
