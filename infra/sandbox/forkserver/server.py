"""Serve slots: a trusted process beside a worker, which makes sandboxes by forking itself.

Started as `python -I -S server.py FD`, by `launcher.py`, in namespaces of its own. It talks over that socket with
its worker alone and reads nothing that an agent wrote; the slot and not the server learns which code it runs.
Requests are JSON with the slot's descriptors (feed, answer, stdout, stderr, listeners); answers are JSON, for a new
slot with its pidfd. One thread, nothing secret, nothing that differs from slot to slot. Standard library alone.
"""

# First the modules that a guest in a process of its own has by now, to tell them from the server's.
import importlib  # noqa: F401
import json
import os
import resource  # noqa: F401
import sys

GUEST_MODULES = frozenset(sys.modules)

import asyncio  # noqa: E402, F401 - ahead of time, for agents: it takes as long as all other imports together
import contextlib  # noqa: E402
import gc  # noqa: E402
import select  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import traceback  # noqa: E402 - ahead of time, too
from typing import Any  # noqa: E402

PROJECT_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
sys.path.append(PROJECT_ROOT)

from infra.sandbox import linux  # noqa: E402
from infra.sandbox.forkserver.slot_fence import SlotFence  # noqa: E402

sys.path.remove(PROJECT_ROOT)
sys.path_importer_cache.pop(PROJECT_ROOT, None)

_GUEST_PATH = "/guest/main.py"
_SLOT_DESCRIPTORS = 5


class SlotServer:
    """Read requests, fork slots and report their exits, in one loop."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._configuration = json.loads(connection.recv(1 << 20))
        self._fence = SlotFence(self._configuration)
        self._slots: dict[int, int] = {}
        self._namespace = os.open("/proc/self/ns/pid", os.O_RDONLY)
        wake, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup_fd = wake
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
        self._guest = _load_guest(self._configuration["guest"])

    def run(self) -> None:
        """Serve until the worker is gone."""
        gc.disable()
        gc.collect()
        gc.freeze()
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        poll.register(self._wakeup_fd, select.POLLIN)
        self._send_message({"is_ready": True})
        while True:
            for fd, _ in poll.poll():
                if fd == self._wakeup_fd:
                    os.read(self._wakeup_fd, 4096)
                    self._reap_slots()
                elif not self._handle_request():
                    return

    def _send_message(self, message: dict[str, object], fds: tuple[int, ...] = ()) -> None:
        socket.send_fds(self._connection, [json.dumps(message).encode()], fds)

    def _handle_request(self) -> bool:
        data, fds, _, _ = socket.recv_fds(self._connection, 4096, _SLOT_DESCRIPTORS)
        if not data:
            return False
        request = json.loads(data)
        try:
            pid = self._fork_slot(request["uid"], fds)
        except OSError as error:
            self._send_message({"slot": request["slot"], "error": str(error)})
            return True
        finally:
            for fd in fds:
                os.close(fd)
        self._slots[pid] = request["slot"]
        pidfd = os.pidfd_open(pid)
        self._send_message({"slot": request["slot"], "is_started": True}, (pidfd,))
        os.close(pidfd)
        return True

    def _fork_slot(self, uid: int, fds: list[int]) -> int:
        # The child is the first of its own process namespace, and still a child of this process.
        separate = self._fence.has_guard("processes")
        if separate:
            linux.unshare(linux.CLONE_NEWPID)
        try:
            pid = os.fork()
            if pid == 0:
                self._run_slot(uid, *fds)
        finally:
            if separate:
                linux.enter_namespace(self._namespace, linux.CLONE_NEWPID)
        return pid

    def _reap_slots(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self._slots:
                self._send_message({"slot": self._slots.pop(pid), "status": os.waitstatus_to_exitcode(status)})

    def _run_slot(self, uid: int, feed: int, answer: int, stdout: int, stderr: int, listeners: int) -> None:
        """Run a slot in the forked child. Never returns."""
        try:
            os.dup2(stdout, 1)
            os.dup2(stderr, 2)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if self._fence.has_guard("descriptors"):
                linux.close_other_descriptors({feed, answer, listeners})
            else:
                for fd in (stdout, stderr):
                    os.close(fd)
            self._fence.enter_namespaces(uid)
            os.write(answer, b".")
            try:
                head = json.loads(self._guest.read_frame(feed))
            except EOFError:
                os._exit(0)  # the worker no longer needs this slot
            with socket.socket(fileno=listeners) as pair:
                if head["listeners"] is not None:
                    self._fence.open_network(pair, head["listeners"], head["hosts_file"])
            self._fence.seal_slot(uid, head)
            self._restore_guest_state(head["path"])
            os.write(answer, b"+")
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}".encode())
            os._exit(1)
        try:
            self._guest.serve_run(head, feed, answer)
        except BaseException:
            traceback.print_exc()
        os._exit(1)

    def _restore_guest_state(self, path: list[str]) -> None:
        """Leave the agent the modules and the names that it finds in a guest in a process of its own."""
        gc.enable()
        sys.argv[:] = [_GUEST_PATH]
        sys.orig_argv[:] = [sys.executable, "-I", "-S", _GUEST_PATH]
        extra_modules = [name for name in sys.modules if name not in GUEST_MODULES]
        # A module of the agent's own comes before one of the standard library that was not loaded yet.
        with contextlib.suppress(OSError):
            agent_modules = {entry.partition(".")[0] for folder in path for entry in os.listdir(folder)}
            if agent_modules.isdisjoint(name.partition(".")[0] for name in extra_modules):
                extra_modules = [name for name in extra_modules if name.partition(".")[0] == "infra"]
        for name in extra_modules:
            del sys.modules[name]
        sys.modules["__main__"] = self._guest
        self._guest.__name__ = "__main__"


def _load_guest(path: str) -> Any:
    """Load the guest as a module under the name that it has inside."""
    guest = type(sys)("guest")
    guest.__file__ = _GUEST_PATH
    with open(path) as file:
        exec(compile(file.read(), _GUEST_PATH, "exec"), guest.__dict__)  # noqa: S102 - our own file
    for name in guest.PART_NAMES:
        guest.load_part(name, os.path.dirname(path))
    return guest


if __name__ == "__main__":
    SlotServer(socket.socket(fileno=int(sys.argv[1]))).run()
