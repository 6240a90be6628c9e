"""What the watch sees of a guest that hides, and what it does where it sees nothing."""

import asyncio
import json
import os
from pathlib import Path

import msgspec
import pytest

from domain.ports import SandboxOutcome, SandboxProgram
from infra.sandbox import proc
from infra.sandbox.bubblewrap import BubblewrapSandbox
from infra.sandbox.forkserver.client import ForkServerBackend
from infra.sandbox.warm_sandbox import WarmSandbox

# An agent whose first thread has ended when it is imported: another says that it is imported, holds much, and waits.
HIDDEN = """
import ctypes, mmap, os, sys, threading, time
def hide(much):
    frame = sys._getframe()
    while "answers" not in frame.f_locals:
        frame = frame.f_back
    answers = frame.f_locals["answers"]
    def hold():
        block = mmap.mmap(-1, much << 20, flags=mmap.MAP_PRIVATE)
        for offset in range(0, len(block), 4096):
            block[offset] = 1
        os.write(answers, b"=")
        time.sleep(60)
    threading.Thread(target=hold).start()
    ctypes.CDLL(None).pthread_exit(None)
if os.path.exists("/agent/hidden"):
    hide(int(open("/agent/hidden").read()))
def handle(p):
    return 1
"""


def _ignore(_: str, __: bytes) -> None:
    return None


def _program(code: Path, source: str, memory_mb: int = 128) -> SandboxProgram:
    (code / "agent.py").write_text(source)
    return SandboxProgram(code=code, environment=None, entrypoint="agent:handle", timeout=20, memory_mb=memory_mb)


@pytest.fixture(params=["bubblewrap", "forkserver"])
def made(request: pytest.FixtureRequest) -> WarmSandbox:
    return WarmSandbox(BubblewrapSandbox(), ForkServerBackend() if request.param == "forkserver" else None, 256)


async def test_an_idle_slot_whose_first_thread_has_ended_is_measured(made: WarmSandbox, readable: Path) -> None:
    """400 MiB do not fit into the 256 that idle slots may hold together, so that it does not wait."""
    program = _program(readable, HIDDEN, memory_mb=1024)
    assert (await made.run_program(program, b"{}", _ignore)).output == b"1"
    async with asyncio.timeout(60):
        while not made.counts.warm:
            await asyncio.sleep(0.01)
    version = next(iter(made.pool._versions.values()))
    (readable / "hidden").write_text("400")
    for slot in list(version.idle_slots):
        made.pool._drop_slot(version.idle_slots, slot)
    made.pool._refill_slots()
    async with asyncio.timeout(60):
        while made.counts.making or not version.paused_until:
            await asyncio.sleep(0.01)
    assert version.slot_bytes > 400 << 20
    assert made.counts.warm == 0
    await made.close()


@pytest.mark.parametrize("file", ["/statm", "/task"])
async def test_what_cannot_be_measured_is_ended(
    monkeypatch: pytest.MonkeyPatch, made: WarmSandbox, readable: Path, file: str
) -> None:
    program = _program(readable, "import time\ndef handle(p):\n    time.sleep(20)\n    return 1\n")
    # First as it is, so that everything that lasts is there.
    await made.run_program(msgspec.structs.replace(program, entrypoint="json:dumps"), b"{}", _ignore)
    read, listed = proc._read_file, os.listdir

    def refused_read(path: str) -> str:
        if path.endswith(file):
            raise PermissionError(13, "Permission denied", path)
        return read(path)

    def refused_list(path: str) -> list[str]:
        if str(path).endswith(file):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(proc, "_read_file", refused_read)
    monkeypatch.setattr(proc.os, "listdir", refused_list)
    outcome = await made.run_program(program, b"{}", _ignore)
    monkeypatch.undo()
    assert outcome.error_type == "not_measurable", outcome
    assert str(readable) not in json.dumps(msgspec.to_builtins(outcome))
    assert "/proc/" not in (outcome.error_message or "")
    await made.close()


async def test_a_host_that_cannot_look_into_sandboxes_cannot_isolate(monkeypatch: pytest.MonkeyPatch) -> None:
    read = proc._read_file

    def refused(path: str) -> str:
        if path.endswith("/statm"):
            raise PermissionError(13, "Permission denied", path)
        return read(path)

    sandbox = BubblewrapSandbox()
    monkeypatch.setattr(proc, "_read_file", refused)
    status = await sandbox.get_status()
    assert not status.available
    assert "SYS_PTRACE" in status.reason


PROGRAMS = """
import asyncio, os, signal, subprocess, sys, threading
def handle(p):
    # A program in a session of its own, ended with all that it started.
    child = subprocess.Popen(["/bin/sh", "-c", "sleep 60 & sleep 60"], start_new_session=True)
    os.killpg(child.pid, signal.SIGTERM)
    ended = child.wait()
    async def programs():
        made = [await asyncio.create_subprocess_exec("/bin/echo", str(n), stdout=subprocess.PIPE) for n in range(5)]
        return [(await one.communicate())[0].decode().strip() for one in made]
    threads = [threading.Thread(target=lambda: None) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Half of the memory, while programs start that share it for a moment.
    block = bytearray(70 << 20)
    block[::4096] = b"x" * len(block[::4096])
    for _ in range(30):
        subprocess.run(["/bin/true"], check=True)
    return [ended, asyncio.run(programs()), len(block)]
"""


async def test_what_programs_do_every_day_is_not_ended(made: WarmSandbox, readable: Path) -> None:
    outcome = await made.run_program(_program(readable, PROGRAMS), b"{}", _ignore)
    assert outcome == SandboxOutcome(output=b'[-15,["0","1","2","3","4"],73400320]')
    await made.close()
