"""Test a host where root cannot create user namespaces: all but running code works, and the log names the remedy."""

import ctypes
import os
import sys
from pathlib import Path

import pytest

from infra.embedded.ports import find_free_ports

ROOT = Path(__file__).resolve().parents[2]
_CLONE_NEWUSER, _CLONE_NEWNS = 0x10000000, 0x00020000


def _run_without_namespaces(command: list[str], log: Path) -> int:
    """Run a command as root of a user namespace that maps every user and cannot create namespaces."""
    child_pipe, parent_pipe = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            assert ctypes.CDLL(None).unshare(_CLONE_NEWUSER | _CLONE_NEWNS) == 0
            os.write(child_pipe[1], b"x")
            os.read(parent_pipe[0], 1)
            os.setresgid(0, 0, 0)
            os.setresuid(0, 0, 0)
            Path("/proc/sys/user/max_user_namespaces").write_text("0")
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.chdir(ROOT)
            os.execv(command[0], command)
        finally:
            os._exit(99)
    os.read(child_pipe[0], 1)
    for name in ("uid_map", "gid_map"):
        Path(f"/proc/{pid}/{name}").write_text("0 0 4294967295")
    os.write(parent_pipe[1], b"x")
    for fd in (*child_pipe, *parent_pipe):
        os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a host without namespaces")
def test_root_without_user_namespaces_gets_advice(tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-m", "scripts.cli", "up", "--once", "--data", str(tmp_path / "data")]
    for _ in range(2):  # the second time on the data of the first
        status = _run_without_namespaces([*command, "--port", str(find_free_ports(1)[0])], log)
        text = log.read_text()
        assert status == 0, text
        line = next(line for line in text.splitlines() if "No runs on this host" in line)
        assert "sysctl -w user.max_user_namespaces" in line
        assert "ready http" in text
