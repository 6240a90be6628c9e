"""The resource watchdog measures guests that hide, and ends those that it cannot measure."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from domain.ports import SandboxOutcome, SandboxProgram
from infra.sandbox import proc
from infra.sandbox.bubblewrap import BubblewrapSandbox
from infra.sandbox.forkserver.client import ForkServerBackend
from infra.sandbox.warm_sandbox import WarmSandbox
from tests.support.sandbox_runs import ignore_output

# An agent whose first thread has ended after the import: another thread reports the import, allocates memory, and waits.
HIDING_PROGRAM = """
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


def _build_program(code: Path, source: str, memory_mb: int = 128) -> SandboxProgram:
    (code / "agent.py").write_text(source)
    return SandboxProgram(code=code, environment=None, entrypoint="agent:handle", timeout=20, memory_mb=memory_mb)


@pytest.fixture(params=["bubblewrap", "forkserver"])
def sandbox(request: pytest.FixtureRequest) -> WarmSandbox:
    return WarmSandbox(BubblewrapSandbox(), ForkServerBackend() if request.param == "forkserver" else None, 256)


async def test_idle_slot_without_its_first_thread_is_measured(sandbox: WarmSandbox, readable_folder: Path) -> None:
    """Evict the slot, as its 400 MiB do not fit into the 256 that idle slots may use together."""
    program = _build_program(readable_folder, HIDING_PROGRAM, memory_mb=1024)
    assert (await sandbox.run_program(program, b"{}", ignore_output)).output == b"1"
    async with asyncio.timeout(60):
        while not sandbox.counts.warm:
            await asyncio.sleep(0.01)
    version = next(iter(sandbox.pool._versions.values()))
    (readable_folder / "hidden").write_text("400")
    for slot in list(version.idle_slots):
        sandbox.pool._drop_slot(version.idle_slots, slot)
    sandbox.pool._refill_slots()
    async with asyncio.timeout(60):
        while sandbox.counts.making or not version.paused_until:
            await asyncio.sleep(0.01)
    assert version.slot_bytes > 400 << 20
    assert sandbox.counts.warm == 0
    await sandbox.close()


@pytest.mark.parametrize("file", ["/statm", "/task"])
async def test_guest_that_cannot_be_measured_is_ended(
    monkeypatch: pytest.MonkeyPatch, sandbox: WarmSandbox, readable_folder: Path, file: str
) -> None:
    program = _build_program(readable_folder, "import time\ndef handle(p):\n    time.sleep(20)\n    return 1\n")
    # Run once undisturbed, so that everything lasting exists.
    await sandbox.run_program(msgspec.structs.replace(program, entrypoint="json:dumps"), b"{}", ignore_output)
    read_file, list_folder = proc._read_file, os.listdir

    def refuse_to_read(path: str) -> str:
        if path.endswith(file):
            raise PermissionError(13, "Permission denied", path)
        return read_file(path)

    def refuse_to_list(path: str) -> list[str]:
        if str(path).endswith(file):
            raise PermissionError(13, "Permission denied", path)
        return list_folder(path)

    monkeypatch.setattr(proc, "_read_file", refuse_to_read)
    monkeypatch.setattr(proc.os, "listdir", refuse_to_list)
    outcome = await sandbox.run_program(program, b"{}", ignore_output)
    monkeypatch.undo()
    assert outcome.error_type == "not_measurable", outcome
    assert str(readable_folder) not in json.dumps(msgspec.to_builtins(outcome))
    assert "/proc/" not in (outcome.error_message or "")
    await sandbox.close()


async def test_host_without_access_to_sandboxes_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    read_file = proc._read_file

    def refuse_to_read(path: str) -> str:
        if path.endswith("/statm"):
            raise PermissionError(13, "Permission denied", path)
        return read_file(path)

    sandbox = BubblewrapSandbox()
    monkeypatch.setattr(proc, "_read_file", refuse_to_read)
    status = await sandbox.get_status()
    assert not status.available
    assert "SYS_PTRACE" in status.reason


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: an ordinary user has it in a namespace of its own")
@pytest.mark.parametrize("backend", ["BubblewrapSandbox", "ForkServerBackend"])
def test_root_without_rights_over_networks_reads_which_it_needs(backend: str) -> None:
    program = f"""
import asyncio
from infra.sandbox import linux
from infra.sandbox.bubblewrap import BubblewrapSandbox
from infra.sandbox.forkserver.client import ForkServerBackend
from infra.sandbox.self_test import run_self_test
async def main():
    sandbox = {backend}()
    print(await run_self_test(sandbox))
    if isinstance(sandbox, ForkServerBackend):
        await sandbox.close()
asyncio.run(main())
"""
    without = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin", sys.executable, "-c", program]
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    output = subprocess.run(without, capture_output=True, text=True, check=True).stdout
    assert "a worker that is root needs the capability NET_ADMIN" in output


SUBPROCESS_PROGRAM = """
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


async def test_ordinary_programs_are_not_ended(sandbox: WarmSandbox, readable_folder: Path) -> None:
    outcome = await sandbox.run_program(_build_program(readable_folder, SUBPROCESS_PROGRAM), b"{}", ignore_output)
    assert outcome == SandboxOutcome(output=b'[-15,["0","1","2","3","4"],73400320]')
    await sandbox.close()
