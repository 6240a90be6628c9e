"""Starts the fork server: gives itself namespaces of its own, forks, and waits for the child that becomes the server.

Started as `python -I -S begin.py FD`, where FD is the socket to the worker, whose first message describes the fence.
"""

import json
import os
import socket
import sys

PROJECT_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
sys.path.append(PROJECT_ROOT)

from infra.sandbox.forkserver import kernel  # noqa: E402
from infra.sandbox.forkserver.slot_fence import SlotFence  # noqa: E402


def launch_server(connection: socket.socket) -> None:
    """Become two: the server, and its parent, which ends as it ends."""
    kernel.die_with_parent()
    told = json.loads(connection.recv(1 << 20))
    enclosure = SlotFence(told)
    enclosure.create_namespaces()
    pid = os.fork()
    if pid:
        connection.close()
        os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) & 0x7F)
    kernel.die_with_parent()
    enclosure.build_template()
    # The slots' streams will be pipes; Python looks at the start whether they can be rewound.
    reader, writer = os.pipe()
    for standard in (1, 2):
        os.dup2(writer, standard)
    os.close(reader)
    os.close(writer)
    server = os.path.join(os.path.dirname(os.path.abspath(__file__)), "server.py")
    os.execv(sys.executable, [sys.executable, "-I", "-S", server, str(connection.fileno())])  # noqa: S606


if __name__ == "__main__":
    launch_server(socket.socket(fileno=int(sys.argv[1])))
