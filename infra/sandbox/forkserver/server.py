"""The fork server: a trusted process beside a worker, which makes sandboxes by forking itself.

Started as `python -I -S server.py FD`, by `begin.py`, in namespaces of its own. It talks over that socket with
its worker alone and reads nothing that an agent wrote; which code a slot is for is told to the slot and not to
it. Requests are JSON with the slot's descriptors (feed, answer, stdout, stderr); answers are JSON, for a new slot
with its pidfd. One thread, nothing secret, nothing that differs from slot to slot. Standard library alone.
"""

# First what a guest of its own process has by now, to know it from what is here besides.
import importlib  # noqa: F401
import json
import os
import resource  # noqa: F401
import sys

GUEST_MODULES = frozenset(sys.modules)

import asyncio  # noqa: E402, F401 - ahead of time, for agents: it takes as long as everything else together
import contextlib  # noqa: E402
import gc  # noqa: E402
import select  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import traceback  # noqa: E402 - ahead of time, too
from typing import Any  # noqa: E402

PROJECT_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
sys.path.append(PROJECT_ROOT)

from infra.sandbox.forkserver import kernel  # noqa: E402
from infra.sandbox.forkserver.slot_fence import SlotFence  # noqa: E402

sys.path.remove(PROJECT_ROOT)
sys.path_importer_cache.pop(PROJECT_ROOT, None)

_GUEST_PATH = "/guest/main.py"
_SLOT_DESCRIPTORS = 4


class SlotServer:
    """The loop: requests in, slots and their endings out."""

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

    def _send_message(self, what: dict[str, object], fds: tuple[int, ...] = ()) -> None:
        socket.send_fds(self._connection, [json.dumps(what).encode()], fds)

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
        # The child is the first of a process namespace of its own, and a child of ours all the same.
        separate = self._fence.has_guard("processes")
        if separate:
            kernel.unshare(kernel.CLONE_NEWPID)
        try:
            pid = os.fork()
            if pid == 0:
                self._become_slot(uid, *fds)
        finally:
            if separate:
                kernel.enter_namespace(self._namespace, kernel.CLONE_NEWPID)
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

    def _become_slot(self, uid: int, feed: int, answer: int, out: int, err: int) -> None:
        """Be a slot. Never returns."""
        try:
            os.dup2(out, 1)
            os.dup2(err, 2)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if self._fence.has_guard("descriptors"):
                kernel.close_other_descriptors({feed, answer})
            else:
                for fd in (out, err):
                    os.close(fd)
            self._fence.prepare_slot(uid)
            os.write(answer, b".")
            try:
                head = json.loads(self._guest.read_frame(feed))
            except EOFError:
                os._exit(0)  # nobody wants this slot
            self._fence.enclose_slot(uid, head["code"], head["environment"])
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
        """Leave the agent the modules and the names that it finds in a guest that was started by itself."""
        gc.enable()
        sys.argv[:] = [_GUEST_PATH]
        sys.orig_argv[:] = [sys.executable, "-I", "-S", _GUEST_PATH]
        ahead = [name for name in sys.modules if name not in GUEST_MODULES]
        # A module of the agent's own comes before one of the standard library that was not loaded yet.
        with contextlib.suppress(OSError):
            shown = {entry.partition(".")[0] for folder in path for entry in os.listdir(folder)}
            if shown.isdisjoint(name.partition(".")[0] for name in ahead):
                ahead = [name for name in ahead if name.partition(".")[0] == "infra"]
        for name in ahead:
            del sys.modules[name]
        sys.modules["__main__"] = self._guest
        self._guest.__name__ = "__main__"


def _load_guest(path: str) -> Any:
    """The guest as a module under the name that it has inside."""
    guest = type(sys)("guest")
    guest.__file__ = _GUEST_PATH
    with open(path) as file:
        exec(compile(file.read(), _GUEST_PATH, "exec"), guest.__dict__)  # noqa: S102 - our own file
    return guest


if __name__ == "__main__":
    SlotServer(socket.socket(fileno=int(sys.argv[1]))).run()
