"""Leave one kind of thing behind at a time, and look for what an earlier run left.

Standard library alone: this file runs inside the fence, as `agent.py`.
"""

import builtins
import contextlib
import ctypes
import os
import signal
import sys
import threading
import time

IMPORTED = time.monotonic()
libc = ctypes.CDLL(None)
state = []
LEFTOVER_KINDS = {}


def register_kind(leave):
    def register_look(look):
        LEFTOVER_KINDS[leave.__name__] = (leave, look)
        return look

    return register_look


def _write_file(path):
    with contextlib.suppress(OSError), open(path, "w") as file:
        file.write("left")


def module_state():
    state.append(1)


@register_kind(module_state)
def _():
    return bool(state)


def sys_modules():
    sys.modules["left_behind"] = sys


@register_kind(sys_modules)
def _():
    return "left_behind" in sys.modules


def sys_path():
    sys.path.insert(0, "/tmp/left")


@register_kind(sys_path)
def _():
    return "/tmp/left" in sys.path


def the_builtins():
    builtins.left_behind = 1


@register_kind(the_builtins)
def _():
    return hasattr(builtins, "left_behind")


def environment():
    os.environ["LEFT"] = "1"


@register_kind(environment)
def _():
    return "LEFT" in os.environ


def file_in_tmp():
    _write_file("/tmp/left")


@register_kind(file_in_tmp)
def _():
    return os.path.exists("/tmp/left")


def file_in_shm():
    _write_file("/dev/shm/left")


@register_kind(file_in_shm)
def _():
    return os.path.exists("/dev/shm/left")


def file_in_cwd():
    _write_file("left_here")


@register_kind(file_in_cwd)
def _():
    return os.path.exists("left_here")


def file_in_code():
    _write_file(os.path.join(os.path.dirname(__file__), "left"))


@register_kind(file_in_code)
def _():
    return os.path.exists(os.path.join(os.path.dirname(__file__), "left"))


def cwd():
    os.chdir("/dev/shm")


@register_kind(cwd)
def _():
    return os.getcwd() != "/agent"


def umask():
    os.umask(0o077)


@register_kind(umask)
def _():
    now = os.umask(0o077)
    os.umask(now)
    return now == 0o077


def thread():
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()


@register_kind(thread)
def _():
    return len(os.listdir("/proc/self/task")) > 1


def timer():
    signal.setitimer(signal.ITIMER_REAL, 60)


@register_kind(timer)
def _():
    return signal.getitimer(signal.ITIMER_REAL)[0] > 0


def handler():
    signal.signal(signal.SIGUSR1, lambda *_: None)


@register_kind(handler)
def _():
    return signal.getsignal(signal.SIGUSR1) != signal.SIG_DFL


def child():
    if os.fork() == 0:
        os.setsid()
        for number in range(1, 65):
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, signal.SIG_IGN)
        libc.prctl(15, b"pdk-left")
        time.sleep(60)
        os._exit(0)


@register_kind(child)
def _():
    process_ids = [name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
    return bool(process_ids)


def descriptor():
    os.dup2(os.open("/dev/null", os.O_RDONLY), 77)


@register_kind(descriptor)
def _():
    return os.path.lexists("/proc/self/fd/77")


def handle(payload):
    """Leave and look as `do` lists; returns what the last look found and whether this slot was warm."""
    leave, look = LEFTOVER_KINDS[payload["kind"]]
    is_found = None
    for act in payload["do"]:
        is_found = leave() if act == "leave" else look()
    return {"found": is_found, "waited": payload["submitted"] > IMPORTED}
