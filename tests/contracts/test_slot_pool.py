"""Test the contract of the pool of warm slots on both backends."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from domain.ports import SandboxLost, SandboxProgram
from domain.shared.errors import DomainError
from infra.sandbox import demand
from infra.sandbox import pool as slots
from infra.sandbox.backend import SlotCounts
from infra.sandbox.bubblewrap import BubblewrapSandbox
from infra.sandbox.demand import SlotDemand
from infra.sandbox.fence import Fence
from infra.sandbox.forkserver.client import ForkServerBackend
from infra.sandbox.forkserver.process import SERVER_LOST_MESSAGE
from infra.sandbox.pool import SlotPool
from infra.sandbox.proc import list_descendants
from infra.sandbox.warm_sandbox import WarmSandbox, open_run_sandbox
from tests.support.sandbox_runs import ignore_output

MARKED_PROGRAM = """
import os, time
IMPORTED, MARK = time.monotonic(), os.urandom(8).hex()
calls = 0
def handle(p):
    global calls
    calls += 1
    time.sleep(p.get("sleep", 0))
    return {"waited": p["submitted"] > IMPORTED, "mark": MARK, "calls": calls}
"""


@pytest.fixture(params=["bubblewrap", "forkserver"])
async def warm_sandbox(request: pytest.FixtureRequest) -> AsyncIterator[WarmSandbox]:
    sandbox = WarmSandbox(BubblewrapSandbox(), ForkServerBackend() if request.param == "forkserver" else None, 256)
    yield sandbox
    await sandbox.close()


@pytest.fixture
def code_folder(readable_folder: Path) -> Path:
    return readable_folder / "version"


def _build_program(code_folder: Path, source: str = MARKED_PROGRAM, **more: Any) -> SandboxProgram:
    code_folder.mkdir(exist_ok=True)
    (code_folder / "agent.py").write_text(source)
    return SandboxProgram(
        **{
            "code": code_folder,
            "environment": None,
            "entrypoint": "agent:handle",
            "timeout": 60,
            "memory_mb": 128,
            **more,
        }
    )


async def _run_program(sandbox: WarmSandbox | SlotPool, program: SandboxProgram, **payload: Any) -> dict[str, Any]:
    payload["submitted"] = time.monotonic()
    outcome = await sandbox.run_program(program, json.dumps(payload).encode(), ignore_output)
    assert outcome.output is not None, outcome
    return json.loads(outcome.output)


async def _wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


def _list_stopped(sandbox: WarmSandbox | SlotPool) -> list[int]:
    """List the first processes of idle slots that are stopped."""
    pool, process_ids = sandbox.pool if isinstance(sandbox, WarmSandbox) else sandbox, []
    for pid in [tree.pid or 0 for tree in pool._idle_slots]:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T":
                process_ids.append(pid)
    return process_ids


def _list_children() -> set[int]:
    """List the children of this process alone; the shared running system has slots of its own."""
    process_lists = (
        Path(f"/proc/self/task/{task}/children").read_text().split() for task in os.listdir("/proc/self/task")
    )
    return {int(pid) for pids in process_lists for pid in pids}


async def _wait_until_idle(sandbox: WarmSandbox, count: int = 1) -> None:
    """Wait until all idle slots are ready: `count` of the version, and the blank ones."""
    blanks = slots.BLANK_SLOT_COUNT if sandbox.pool._backend.supports_blanks else 0
    await _wait_until(
        lambda: sandbox.counts.warm >= count and (sandbox.counts.blank, sandbox.counts.making) == (blanks, 0)
    )


async def test_slots_of_other_variables_are_never_used_and_end_when_retired(warm_sandbox, code_folder) -> None:
    source = "import os\nSEEN = os.environ['TOKEN']\ndef handle(p): return {'seen': [SEEN, os.environ['TOKEN']]}\n"
    old = _build_program(code_folder, source, variables={"TOKEN": "old"})
    assert (await _run_program(warm_sandbox, old))["seen"] == ["old", "old"]
    await _wait_until_idle(warm_sandbox)
    waiting = [tree.pid for tree in warm_sandbox.pool._idle_slots]
    warm_sandbox.retire_slots(code_folder)
    # No run comes, and the memory of the slots is gone all the same.
    await _wait_until(lambda: warm_sandbox.counts.warm == 0 and warm_sandbox.counts.making == 0)
    await _wait_until(lambda: not [pid for pid in waiting if pid and Path(f"/proc/{pid}/root/agent").exists()])
    assert (await _run_program(warm_sandbox, old))["seen"] == ["old", "old"]
    await _wait_until(lambda: warm_sandbox.counts.warm > 0)
    new = _build_program(code_folder, source, variables={"TOKEN": "new"})
    for program, value in ((new, "new"), (old, "old"), (new, "new")):
        assert (await _run_program(warm_sandbox, program))["seen"] == [value, value]
    await _wait_until_idle(warm_sandbox)
    versions = warm_sandbox.pool._versions.items()
    assert all(key[1][2] == (("TOKEN", "new"),) for key, version in versions if version.idle_slots)


async def test_used_version_has_a_warm_slot_for_its_next_run(warm_sandbox, code_folder) -> None:
    program = _build_program(code_folder)
    assert (await _run_program(warm_sandbox, program))["waited"] is False
    for _ in range(5):
        await _wait_until(lambda: warm_sandbox.counts.warm > 0)
        assert (await _run_program(warm_sandbox, program))["waited"] is True


async def test_slot_is_used_once(warm_sandbox, code_folder) -> None:
    program = _build_program(code_folder)
    results = []
    for _ in range(4):
        results += await asyncio.gather(*(_run_program(warm_sandbox, program, sleep=0.01) for _ in range(6)))
    assert {result["calls"] for result in results} == {1}
    assert len({result["mark"] for result in results}) == len(results) == 24
    assert warm_sandbox.counts.busy == 0


async def test_concurrent_runs_keep_more_slots_warm(warm_sandbox, code_folder) -> None:
    program = _build_program(code_folder)
    await asyncio.gather(*(_run_program(warm_sandbox, program, sleep=0.2) for _ in range(5)))
    await _wait_until(lambda: warm_sandbox.counts.warm == 5)


async def test_killed_idle_slots_fail_no_run_and_are_replaced(warm_sandbox, code_folder) -> None:
    program = _build_program(code_folder)
    await _run_program(warm_sandbox, program)
    await _wait_until_idle(warm_sandbox)
    for pid in _list_stopped(warm_sandbox):
        os.kill(pid, signal.SIGKILL)
    # Run before the pool can have noticed.
    assert (await _run_program(warm_sandbox, program))["calls"] == 1
    await _wait_until_idle(warm_sandbox)
    for pid in _list_stopped(warm_sandbox):
        os.kill(pid, signal.SIGKILL)
    await asyncio.sleep(0.1)
    await _wait_until_idle(warm_sandbox)
    assert (await _run_program(warm_sandbox, program))["waited"] is True


async def test_killed_blank_slot_fails_no_run(code_folder) -> None:
    sandbox = await open_run_sandbox("forkserver", None, 256)
    try:
        await _wait_until(lambda: sandbox.counts.blank == slots.BLANK_SLOT_COUNT)
        for pid in _list_stopped(sandbox):
            os.kill(pid, signal.SIGKILL)
        assert (await _run_program(sandbox, _build_program(code_folder)))["calls"] == 1
        await _wait_until_idle(sandbox)
    finally:
        await sandbox.close()


async def test_continuously_killed_slots_fail_no_run(warm_sandbox, code_folder) -> None:
    program = _build_program(code_folder)
    killed_count, stop = 0, False

    async def kill_slots() -> None:
        nonlocal killed_count
        while not stop:
            for pid in _list_stopped(warm_sandbox):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed_count += 1
            await asyncio.sleep(0.02)

    killing = asyncio.create_task(kill_slots())
    async with asyncio.timeout(300):
        while killed_count < 5:
            assert (await _run_program(warm_sandbox, program))["calls"] == 1
            await asyncio.sleep(0.02)
    stop = True
    await killing


async def test_changed_code_never_runs_in_an_old_slot(warm_sandbox, code_folder) -> None:
    program = _build_program(code_folder, "def handle(p): return 'old'\n")
    await _run_program(warm_sandbox, program)
    await _wait_until_idle(warm_sandbox)
    code_folder.rename(code_folder.with_name("evicted"))
    with pytest.raises(DomainError, match="cannot isolate"):
        await warm_sandbox.run_program(program, b"{}", ignore_output)
    _build_program(code_folder, "def handle(p): return 'new'\n")
    for _ in range(4):
        assert await _run_program(warm_sandbox, program) == "new"
        await asyncio.sleep(0.05)


async def test_changed_environment_never_runs_in_an_old_slot(warm_sandbox, code_folder) -> None:
    old, new = code_folder.with_name("environment-1"), code_folder.with_name("environment-2")
    for folder, word in ((old, "old"), (new, "new")):
        folder.mkdir(mode=0o755)
        (folder / "library.py").write_text(f"WORD = {word!r}\n")
    program = _build_program(code_folder, "import library\ndef handle(p): return library.WORD\n", environment=old)
    assert await _run_program(warm_sandbox, program) == "old"
    await _wait_until_idle(warm_sandbox)
    assert (
        await _run_program(
            warm_sandbox,
            _build_program(code_folder, "import library\ndef handle(p): return library.WORD\n", environment=new),
        )
        == "new"
    )
    shutil.rmtree(old)
    new.rename(old)
    for _ in range(3):
        assert await _run_program(warm_sandbox, program) == "new"
        await asyncio.sleep(0.05)


async def test_memory_limit_and_entrypoint_select_the_slot(warm_sandbox, code_folder) -> None:
    source = "import resource\ndef handle(p): return resource.getrlimit(resource.RLIMIT_DATA)[0] >> 20\ndef other(p): return 'other'\n"
    for _ in range(2):
        assert await _run_program(warm_sandbox, _build_program(code_folder, source)) == 128
        assert await _run_program(warm_sandbox, _build_program(code_folder, source, memory_mb=200)) == 200
        assert (
            await _run_program(warm_sandbox, _build_program(code_folder, source, entrypoint="agent:other")) == "other"
        )
        await _wait_until(lambda: warm_sandbox.counts.making == 0)


async def test_unused_version_loses_its_slots(code_folder) -> None:
    now = 1000.0
    pool = SlotPool(BubblewrapSandbox(), 256, clock=lambda: now)
    try:
        program = _build_program(code_folder)
        await _run_program(pool, program)
        await _wait_until(lambda: pool.counts.warm == 1)
        await _run_program(pool, program)
        await _wait_until(lambda: pool.counts.warm == 2)
        first = set(_list_stopped(pool))
        now += demand.COOL_AFTER_SECONDS + 1
        pool.sweep_slots()
        assert pool.counts.warm == 1
        now += slots.MAX_SLOT_AGE_SECONDS - demand.COOL_AFTER_SECONDS
        pool.sweep_slots()
        assert pool.counts.warm == 0, "the slot is too old"
        await _wait_until(lambda: pool.counts.warm == 1)
        assert not first & set(_list_stopped(pool)), "a new slot replaces it"
        now += demand.COLD_AFTER_SECONDS
        pool.sweep_slots()
        assert pool.counts == SlotCounts(warm=0, blank=0, making=0, busy=0)
        await _wait_until(lambda: not pool._trees)
    finally:
        await pool.close()


async def test_idle_slots_respect_the_memory_limit_and_the_oldest_are_evicted(code_folder) -> None:
    pool = SlotPool(BubblewrapSandbox(), 70)
    source = "held = bytearray(20 << 20)\n" + MARKED_PROGRAM
    first, second = _build_program(code_folder, source), _build_program(code_folder.with_name("second"), source)
    large = _build_program(code_folder.with_name("big"), source.replace("20 << 20", "80 << 20"))
    try:
        for program in (first, second):
            await _run_program(pool, program)
            await _wait_until(lambda: pool.counts.warm >= 1)
            await _run_program(pool, program)
            await _wait_until(
                lambda: (pool.counts.warm, pool.counts.making) == (2, 0) and len(_list_stopped(pool)) == 2
            )
            assert (await _run_program(pool, program))["waited"], "the most recently used version has the slots"
            await _wait_until(lambda: pool.counts.making == 0)
        await _run_program(pool, large)
        await _wait_until(lambda: pool.counts.making == 0)
        assert (await _run_program(pool, large))["waited"] is False, "a slot over the limit is not kept"
        assert sum(slot.memory_bytes for version in pool._versions.values() for slot in version.idle_slots) <= 70 << 20
    finally:
        await pool.close()


async def test_failed_import_is_reported_with_its_stack_by_each_run(warm_sandbox, code_folder) -> None:
    program = _build_program(code_folder, "import time\nraise RuntimeError('broken')\n")
    for _ in range(3):
        outcome = await warm_sandbox.run_program(program, b"{}", ignore_output)
        assert (outcome.error_type, outcome.error_message) == ("RuntimeError", "broken")
        assert 'File "/agent/agent.py", line 2' in (outcome.stack or "")
        await _wait_until(lambda: warm_sandbox.counts.making == 0)
        assert warm_sandbox.counts.warm == 0


@pytest.mark.parametrize("amount", [10, 200_000])
async def test_output_of_an_import_is_in_every_log_once(warm_sandbox, code_folder, amount: int) -> None:
    program = _build_program(
        code_folder,
        f"import sys\nprint('i' * {amount})\nprint('err', file=sys.stderr)\ndef handle(p): print('called')\n",
    )
    for _ in range(4):
        output = {"stdout": b"", "stderr": b""}

        def collect_output(stream: str, data: bytes, output: dict[str, bytes] = output) -> None:
            output[stream] += data

        assert (await warm_sandbox.run_program(program, b"{}", collect_output)).error_type is None
        assert output == {"stdout": b"i" * amount + b"\ncalled\n", "stderr": b"err\n"}
        await asyncio.sleep(0.02)
        await _wait_until(lambda: warm_sandbox.counts.making == 0)
    assert warm_sandbox.counts.warm == (2 if amount == 10 else 0)


async def test_idle_slot_uses_no_processor_time(warm_sandbox, code_folder) -> None:
    spinning_threads = "import threading\ndef spin():\n    while True: pass\nfor _ in range(3): threading.Thread(target=spin, daemon=True).start()\n"
    program = _build_program(code_folder, spinning_threads + MARKED_PROGRAM)
    await _run_program(warm_sandbox, program)
    await _wait_until_idle(warm_sandbox)

    def list_processor_times() -> list[str]:
        return [
            " ".join(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:15])
            for pid in _list_stopped(warm_sandbox)
        ]

    times_before = list_processor_times()
    await asyncio.sleep(0.3)
    assert list_processor_times() == times_before
    assert times_before
    assert (await _run_program(warm_sandbox, program))["waited"]


async def test_version_that_forks_while_importing_is_not_kept_warm(warm_sandbox, code_folder) -> None:
    program = _build_program(
        code_folder,
        "import os, time\nif os.fork() == 0:\n    time.sleep(60)\n    os._exit(0)\ndef handle(p): return 1\n",
    )
    for _ in range(2):
        assert await _run_program(warm_sandbox, program) == 1
        await _wait_until(lambda: warm_sandbox.counts.making == 0)
        assert warm_sandbox.counts.warm == 0


async def test_run_can_be_cancelled_while_its_slot_starts(warm_sandbox, code_folder) -> None:
    program = _build_program(code_folder, "import time\ntime.sleep(0.3)\n" + MARKED_PROGRAM)
    await _run_program(warm_sandbox, program)
    await _wait_until(lambda: warm_sandbox.counts.making > 0)
    for delay in (0.0, 0.05, 0.2, 0.35):
        running = asyncio.create_task(_run_program(warm_sandbox, program, sleep=1))
        await asyncio.sleep(delay)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert (await _run_program(warm_sandbox, program))["calls"] == 1
    await _wait_until(lambda: warm_sandbox.counts.making == 0 and warm_sandbox.counts.warm >= 2)
    assert warm_sandbox.counts.busy == 0


async def test_killed_fork_server_is_restarted(code_folder) -> None:
    server = ForkServerBackend()
    sandbox = WarmSandbox(BubblewrapSandbox(), server, 256)
    program = _build_program(code_folder)
    try:
        await _run_program(sandbox, program)
        await _wait_until_idle(sandbox)
        for victim_name in ("parent", "server"):
            running = asyncio.create_task(sandbox.run_program(program, b'{"sleep": 20, "submitted": 0}', ignore_output))
            await asyncio.sleep(0.2)
            server_pid = server.pid or 0
            os.kill(server_pid if victim_name == "parent" else list_descendants(server_pid)[0], signal.SIGKILL)
            with pytest.raises(SandboxLost, match=SERVER_LOST_MESSAGE):
                await running
            assert (await _run_program(sandbox, program))["calls"] == 1
            await _wait_until_idle(sandbox)
            assert (await _run_program(sandbox, program))["waited"] is True
            assert server.pid != server_pid
    finally:
        await sandbox.close()


async def test_old_fork_server_is_replaced_when_its_slots_are_gone(
    code_folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.sandbox.forkserver.process.MAX_SERVER_SLOTS", 4)
    server = ForkServerBackend()
    sandbox = WarmSandbox(BubblewrapSandbox(), server, 256)
    program = _build_program(code_folder)
    pids = set()
    try:
        async with asyncio.timeout(120):
            while len(pids) < 4:
                await _run_program(sandbox, program)
                pids.add(server.pid)

        def has_only_servers_in_use() -> bool:
            counts, alive = (
                sandbox.counts,
                [server_process for server_process in server._retired_servers if not server_process.gone.done()],
            )
            return len(alive) <= counts.warm + counts.blank + counts.making

        await _wait_until(has_only_servers_in_use)
    finally:
        await sandbox.close()
    assert not [pid for pid in pids if pid in _list_children()]


async def test_closing_leaves_no_process_or_descriptor(code_folder) -> None:
    program, slow_program = (
        _build_program(code_folder),
        _build_program(code_folder.with_name("slow"), "import time\ntime.sleep(5)\ndef handle(p): pass\n"),
    )

    def count_resources() -> tuple[int, set[int], int]:
        return len(os.listdir("/proc/self/fd")), _list_children(), len(asyncio.all_tasks())

    resources_before = count_resources()
    for backend_name in ("bubblewrap", "forkserver"):
        sandbox = await open_run_sandbox(backend_name, None, 256)
        await _run_program(sandbox, program)
        running = [
            asyncio.create_task(sandbox.run_program(slow_run, b"{}", ignore_output))
            for slow_run in (slow_program, slow_program)
        ]
        await asyncio.sleep(0.15)
        assert sandbox.counts.busy == 2
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await sandbox.close()
        assert count_resources() == resources_before


async def test_bubblewrap_replaces_a_fork_server_that_does_not_work(
    code_folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.sandbox.forkserver.process._LAUNCHER_PATH", Path("/nowhere/launcher.py"))
    sandbox = await open_run_sandbox("auto", None, 64)
    try:
        assert (await _run_program(sandbox, _build_program(code_folder)))["calls"] == 1
        assert sandbox.pool._backend.supports_blanks is False
    finally:
        await sandbox.close()


def test_number_of_slots_follows_demand() -> None:
    slot_demand = SlotDemand()
    assert slot_demand.count_wanted_slots(0) == 0
    for _ in range(6):
        slot_demand.record_start(100)
    for _ in range(6):
        slot_demand.record_end(101)
    assert slot_demand.count_wanted_slots(101) == 6
    assert slot_demand.count_wanted_slots(101 + demand.COOL_AFTER_SECONDS) == 1
    assert slot_demand.count_wanted_slots(101 + demand.COLD_AFTER_SECONDS) == 0
    slot_demand.record_start(1000)
    assert slot_demand.count_wanted_slots(1000 + demand.COLD_AFTER_SECONDS) == 1, "it is still running"
    slot_demand.record_end(1400)
    assert slot_demand.count_wanted_slots(1401) == 1, "an old peak expires"
    slot_demand.record_start(1402)
    slot_demand.record_end(1402)
    slot_demand.record_start(1402)
    slot_demand.record_end(1402)
    assert slot_demand.count_wanted_slots(1402) == demand.MIN_WARM_SLOTS
    for _ in range(100):
        slot_demand.record_start(1402)
    assert slot_demand.count_wanted_slots(1402) == demand.MAX_VERSION_SLOTS


WAKING_PROGRAM = """
import ctypes, os
class SigEvent(ctypes.Structure):
    _fields_ = [("value", ctypes.c_void_p), ("signo", ctypes.c_int), ("notify", ctypes.c_int), ("pad", ctypes.c_char * 48)]
libc = ctypes.CDLL(None, use_errno=True)
timer, event = ctypes.c_void_p(), SigEvent(None, 18, 0)
NUMBER = {"x86_64": (222, 223), "aarch64": (107, 110)}[os.uname().machine]
made = libc.syscall(NUMBER[0], 1, ctypes.byref(event), ctypes.byref(timer))
if made == 0:
    times = (ctypes.c_long * 4)(0, 50_000_000, 0, 300_000_000)
    libc.syscall(NUMBER[1], timer, 0, ctypes.byref(times), None)
def handle(p):
    return {"made": made}
"""


async def test_idle_slot_cannot_wake_itself(code_folder) -> None:
    sandbox = WarmSandbox(BubblewrapSandbox(), ForkServerBackend(), 256)
    try:
        assert json.loads(
            (await sandbox.run_program(_build_program(code_folder, WAKING_PROGRAM), b"{}", ignore_output)).output or b""
        ) == {"made": -1}
    finally:
        await sandbox.close()


async def test_slot_that_woke_is_killed(code_folder) -> None:
    """Remove the seccomp filter, so that only the second guard is left."""
    fence = Fence(without=frozenset({"seccomp"}))
    sandbox = WarmSandbox(BubblewrapSandbox(fence), ForkServerBackend(fence), 256)
    try:
        assert json.loads(
            (await sandbox.run_program(_build_program(code_folder, WAKING_PROGRAM), b"{}", ignore_output)).output or b""
        ) == {"made": 0}
        await _wait_until(lambda: sandbox.counts.warm > 0)
        slot = next(tree for tree in sandbox.pool._idle_slots if tree.report.stage > 2)
        await _wait_until(lambda: slot.is_awake)
        sandbox.pool.sweep_slots()
        await _wait_until(lambda: slot.is_gone)
    finally:
        await sandbox.close()


async def test_files_in_memory_count_as_slot_memory(code_folder) -> None:
    source = "open('/tmp/big', 'wb').write(bytes(40 << 20))\ndef handle(p): return 1\n"
    sandbox = WarmSandbox(BubblewrapSandbox(), ForkServerBackend(), 256)
    try:
        await sandbox.run_program(_build_program(code_folder, source), b"{}", ignore_output)
        await _wait_until(lambda: sandbox.counts.warm > 0)
        assert max(slot.memory_bytes for slot in sandbox.pool._idle_slots.values()) > 40 << 20
    finally:
        await sandbox.close()


async def test_waiting_for_a_slot_counts_toward_the_timeout(code_folder) -> None:
    """Time out a version whose import hangs only in the slots made ahead."""
    flag = "import os, time\nif os.path.exists('/agent/hang'): time.sleep(60)\ndef handle(p): return 1\n"
    sandbox = WarmSandbox(BubblewrapSandbox(), ForkServerBackend(), 256)
    program = _build_program(code_folder, flag, timeout=3)
    try:
        await sandbox.run_program(program, b"{}", ignore_output)
        await _wait_until(lambda: sandbox.counts.warm > 0)
        (code_folder / "hang").touch()
        start = time.monotonic()
        outcomes = await asyncio.gather(*(sandbox.run_program(program, b"{}", ignore_output) for _ in range(3)))
        assert "timeout" in [outcome.error_type for outcome in outcomes]
        assert time.monotonic() - start < 5.5
    finally:
        await sandbox.close()
