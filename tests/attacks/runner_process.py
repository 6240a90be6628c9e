"""Run `tests.attacks.runner` in a process of its own, as root or as an ordinary user."""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
ORDINARY_UID = 54321
RUNNER_TIMEOUT_SECONDS = 600


def run_attacks(plan: list[tuple[str, list[str]]], user: str, way: str) -> dict[tuple[str, bool], dict[str, Any]]:
    """Run attacks, each with the guards to take away. Returns results by attack and whether the fence was whole."""
    results = run_runner([way], json.dumps(plan), user)
    return {(result["attack"], not result["without"]): result for result in results}


def run_runner(arguments: list[str], plan: str, user: str) -> list[dict[str, Any]]:
    """Run the runner to its end and return the objects that it printed."""
    process = subprocess.run(
        [sys.executable, "-m", "tests.attacks.runner", *arguments],
        input=plan,
        capture_output=True,
        text=True,
        timeout=RUNNER_TIMEOUT_SECONDS,
        check=False,
        **_build_options(user),
    )
    assert process.returncode == 0, process.stderr[-4000:]
    return [json.loads(line) for line in process.stdout.splitlines()]


def start_runner(arguments: list[str], user: str) -> "subprocess.Popen[bytes]":
    """Start the runner, for a test that kills it."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.attacks.runner", *arguments], stdout=subprocess.PIPE, **_build_options(user)
    )


def _build_options(user: str) -> dict[str, Any]:
    return {
        "cwd": ROOT,
        "preexec_fn": _switch_to_ordinary_user(ORDINARY_UID) if user == "ordinary" and os.geteuid() == 0 else None,
        "env": {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]), "HOME": "/tmp"},
    }


def _switch_to_ordinary_user(uid: int) -> Callable[[], None]:
    """Return a `preexec_fn` that becomes an ordinary user, who still reaches the interpreter under a closed home."""
    libc = ctypes.CDLL(None, use_errno=True)
    closed = [folder for folder in (Path(sys.base_prefix), ROOT) if not _is_reachable(folder)]

    def before_exec() -> None:
        if closed:
            assert libc.unshare(0x00020000) == 0
            assert libc.mount(None, b"/", None, 1 << 18 | 0x4000, None) == 0
            # Open the path to it in a new mount namespace: bind it on itself, then cover the closed parents
            # with an empty folder that contains only that path.
            descriptors = [os.open(folder, os.O_PATH | os.O_DIRECTORY) for folder in closed]
            for folder in closed:
                top = "/" + folder.parts[1]
                assert libc.mount(b"tmpfs", top.encode(), b"tmpfs", 0, b"mode=755") == 0
            for fd, folder in zip(descriptors, closed, strict=True):
                os.makedirs(folder, exist_ok=True)
                assert libc.mount(f"/proc/self/fd/{fd}".encode(), str(folder).encode(), None, 0x1000, None) == 0
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)

    return before_exec


def _is_reachable(folder: Path) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in (folder, *folder.parents))
