"""What the pool of warm slots promises, over both ways of making them."""

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

MARKED = """
import os, time
IMPORTED, MARK = time.monotonic(), os.urandom(8).hex()
calls = 0
def handle(p):
    global calls
    calls += 1
    time.sleep(p.get("sleep", 0))
    return {"waited": p["submitted"] > IMPORTED, "mark": MARK, "calls": calls}
"""


def _ignore(_: str, __: bytes) -> None:
    return None


@pytest.fixture(params=["bubblewrap", "forkserver"])
async def warm(request: pytest.FixtureRequest) -> AsyncIterator[WarmSandbox]:
    made = WarmSandbox(BubblewrapSandbox(), ForkServerBackend() if request.param == "forkserver" else None, 256)
    yield made
    await made.close()


@pytest.fixture
def code(readable: Path) -> Path:
    return readable / "version"


def _program(code: Path, source: str = MARKED, **more: Any) -> SandboxProgram:
    code.mkdir(exist_ok=True)
    (code / "agent.py").write_text(source)
    return SandboxProgram(
        **{"code": code, "environment": None, "entrypoint": "agent:handle", "timeout": 60, "memory_mb": 128, **more}
    )


async def _run(sandbox: WarmSandbox | SlotPool, program: SandboxProgram, **payload: Any) -> dict[str, Any]:
    payload["submitted"] = time.monotonic()
    outcome = await sandbox.run_program(program, json.dumps(payload).encode(), _ignore)
    assert outcome.output is not None, outcome
    return json.loads(outcome.output)


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.005)


def _stopped(of: WarmSandbox | SlotPool) -> list[int]:
    """The first processes of slots that wait, and are indeed stopped."""
    pool, found = of.pool if isinstance(of, WarmSandbox) else of, []
    for pid in [tree.pid or 0 for tree in pool._idle_slots]:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T":
                found.append(pid)
    return found


def _children() -> set[int]:
    """What this process itself started; the system that other tests share has slots of its own that come and go."""
    mine = (Path(f"/proc/self/task/{task}/children").read_text().split() for task in os.listdir("/proc/self/task"))
    return {int(pid) for pids in mine for pid in pids}


async def _quiet(sandbox: WarmSandbox, count: int = 1) -> None:
    """All slots that shall wait are there: `count` of the version, and the blank ones."""
    blanks = slots.BLANK_SLOT_COUNT if sandbox.pool._backend.supports_blanks else 0
    await _until(lambda: sandbox.counts.warm >= count and (sandbox.counts.blank, sandbox.counts.making) == (blanks, 0))


async def test_a_version_that_was_used_waits_for_its_next_run(warm, code) -> None:
    program = _program(code)
    assert (await _run(warm, program))["waited"] is False
    for _ in range(5):
        await _until(lambda: warm.counts.warm > 0)
        assert (await _run(warm, program))["waited"] is True


async def test_slots_of_other_variables_are_never_used_and_end_when_retired(warm, code) -> None:
    source = "import os\nSEEN = os.environ['TOKEN']\ndef handle(p): return {'seen': [SEEN, os.environ['TOKEN']]}\n"
    old = _program(code, source, variables={"TOKEN": "old"})
    assert (await _run(warm, old))["seen"] == ["old", "old"]
    await _quiet(warm)
    waiting = [tree.pid for tree in warm.pool._idle_slots]
    warm.retire_slots(code)
    # No run comes, and the memory of the slots is gone all the same.
    await _until(lambda: warm.counts.warm == 0 and warm.counts.making == 0)
    await _until(lambda: not [pid for pid in waiting if pid and Path(f"/proc/{pid}/root/agent").exists()])
    assert (await _run(warm, old))["seen"] == ["old", "old"]
    await _until(lambda: warm.counts.warm > 0)
    new = _program(code, source, variables={"TOKEN": "new"})
    for program, value in ((new, "new"), (old, "old"), (new, "new")):
        assert (await _run(warm, program))["seen"] == [value, value]
    await _quiet(warm)
    assert all(key[1][2] == (("TOKEN", "new"),) for key, version in warm.pool._versions.items() if version.idle_slots)


async def test_each_slot_is_used_once(warm, code) -> None:
    program = _program(code)
    told = []
    for _ in range(4):
        told += await asyncio.gather(*(_run(warm, program, sleep=0.01) for _ in range(6)))
    assert {one["calls"] for one in told} == {1}
    assert len({one["mark"] for one in told}) == len(told) == 24
    assert warm.counts.busy == 0


async def test_more_slots_wait_where_more_runs_come_at_once(warm, code) -> None:
    program = _program(code)
    await asyncio.gather(*(_run(warm, program, sleep=0.2) for _ in range(5)))
    await _until(lambda: warm.counts.warm == 5)


async def test_idle_slots_that_die_cost_no_run_and_are_replaced(warm, code) -> None:
    program = _program(code)
    await _run(warm, program)
    await _quiet(warm)
    for pid in _stopped(warm):
        os.kill(pid, signal.SIGKILL)
    # At once, before the pool can have noticed.
    assert (await _run(warm, program))["calls"] == 1
    await _quiet(warm)
    for pid in _stopped(warm):
        os.kill(pid, signal.SIGKILL)
    await asyncio.sleep(0.1)
    await _quiet(warm)
    assert (await _run(warm, program))["waited"] is True


async def test_a_blank_slot_that_dies_costs_no_run(code) -> None:
    sandbox = await open_run_sandbox("forkserver", None, 256)
    try:
        await _until(lambda: sandbox.counts.blank == slots.BLANK_SLOT_COUNT)
        for pid in _stopped(sandbox):
            os.kill(pid, signal.SIGKILL)
        assert (await _run(sandbox, _program(code)))["calls"] == 1
        await _quiet(sandbox)
    finally:
        await sandbox.close()


async def test_slots_that_are_killed_all_the_time_cost_no_run(warm, code) -> None:
    program = _program(code)
    killed, stop = 0, False

    async def kill() -> None:
        nonlocal killed
        while not stop:
            for pid in _stopped(warm):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
            await asyncio.sleep(0.02)

    killing = asyncio.create_task(kill())
    async with asyncio.timeout(120):
        while killed < 5:
            assert (await _run(warm, program))["calls"] == 1
            await asyncio.sleep(0.02)
    stop = True
    await killing


async def test_other_code_under_the_same_name_never_meets_an_old_slot(warm, code) -> None:
    program = _program(code, "def handle(p): return 'old'\n")
    await _run(warm, program)
    await _quiet(warm)
    code.rename(code.with_name("evicted"))
    with pytest.raises(DomainError, match="cannot isolate"):
        await warm.run_program(program, b"{}", _ignore)
    _program(code, "def handle(p): return 'new'\n")
    for _ in range(4):
        assert await _run(warm, program) == "new"
        await asyncio.sleep(0.05)


async def test_another_environment_never_meets_an_old_slot(warm, code) -> None:
    old, new = code.with_name("environment-1"), code.with_name("environment-2")
    for folder, word in ((old, "old"), (new, "new")):
        folder.mkdir(mode=0o755)
        (folder / "library.py").write_text(f"WORD = {word!r}\n")
    program = _program(code, "import library\ndef handle(p): return library.WORD\n", environment=old)
    assert await _run(warm, program) == "old"
    await _quiet(warm)
    assert (
        await _run(warm, _program(code, "import library\ndef handle(p): return library.WORD\n", environment=new))
        == "new"
    )
    shutil.rmtree(old)
    new.rename(old)
    for _ in range(3):
        assert await _run(warm, program) == "new"
        await asyncio.sleep(0.05)


async def test_memory_and_entrypoint_are_part_of_what_a_slot_is(warm, code) -> None:
    source = "import resource\ndef handle(p): return resource.getrlimit(resource.RLIMIT_DATA)[0] >> 20\ndef other(p): return 'other'\n"
    for _ in range(2):
        assert await _run(warm, _program(code, source)) == 128
        assert await _run(warm, _program(code, source, memory_mb=200)) == 200
        assert await _run(warm, _program(code, source, entrypoint="agent:other")) == "other"
        await _until(lambda: warm.counts.making == 0)


async def test_a_version_that_is_not_used_cools_down(code) -> None:
    now = 1000.0
    pool = SlotPool(BubblewrapSandbox(), 256, clock=lambda: now)
    try:
        program = _program(code)
        await _run(pool, program)
        await _until(lambda: pool.counts.warm == 1)
        await _run(pool, program)
        await _until(lambda: pool.counts.warm == 2)
        first = set(_stopped(pool))
        now += demand.COOL_AFTER_SECONDS + 1
        pool.sweep_slots()
        assert pool.counts.warm == 1
        now += slots.MAX_SLOT_AGE_SECONDS - demand.COOL_AFTER_SECONDS
        pool.sweep_slots()
        assert pool.counts.warm == 0, "it is too old"
        await _until(lambda: pool.counts.warm == 1)
        assert not first & set(_stopped(pool)), "and another took its place"
        now += demand.COLD_AFTER_SECONDS
        pool.sweep_slots()
        assert pool.counts == SlotCounts(warm=0, blank=0, making=0, busy=0)
        await _until(lambda: not pool._trees)
    finally:
        await pool.close()


async def test_idle_slots_keep_to_their_memory_and_the_least_recently_used_give_way(code) -> None:
    pool = SlotPool(BubblewrapSandbox(), 70)
    source = "held = bytearray(20 << 20)\n" + MARKED
    first, second = _program(code, source), _program(code.with_name("second"), source)
    big = _program(code.with_name("big"), source.replace("20 << 20", "80 << 20"))
    try:
        for program in (first, second):
            await _run(pool, program)
            await _until(lambda: pool.counts.warm >= 1)
            await _run(pool, program)
            await _until(lambda: (pool.counts.warm, pool.counts.making) == (2, 0) and len(_stopped(pool)) == 2)
            assert (await _run(pool, program))["waited"], "the version used last has the slots"
            await _until(lambda: pool.counts.making == 0)
        await _run(pool, big)
        await _until(lambda: pool.counts.making == 0)
        assert (await _run(pool, big))["waited"] is False, "what does not fit is not kept"
        assert sum(slot.memory_bytes for version in pool._versions.values() for slot in version.idle_slots) <= 70 << 20
    finally:
        await pool.close()


async def test_an_import_that_fails_is_reported_with_its_stack_by_the_run(warm, code) -> None:
    program = _program(code, "import time\nraise RuntimeError('broken')\n")
    for _ in range(3):
        outcome = await warm.run_program(program, b"{}", _ignore)
        assert (outcome.error_type, outcome.error_message) == ("RuntimeError", "broken")
        assert 'File "/agent/agent.py", line 2' in (outcome.stack or "")
        await _until(lambda: warm.counts.making == 0)
        assert warm.counts.warm == 0


@pytest.mark.parametrize("amount", [10, 200_000])
async def test_what_an_import_prints_is_in_every_run_s_log_once(warm, code, amount: int) -> None:
    program = _program(
        code, f"import sys\nprint('i' * {amount})\nprint('err', file=sys.stderr)\ndef handle(p): print('called')\n"
    )
    for _ in range(4):
        heard = {"stdout": b"", "stderr": b""}

        def hear(stream: str, data: bytes, heard: dict[str, bytes] = heard) -> None:
            heard[stream] += data

        assert (await warm.run_program(program, b"{}", hear)).error_type is None
        assert heard == {"stdout": b"i" * amount + b"\ncalled\n", "stderr": b"err\n"}
        await asyncio.sleep(0.02)
        await _until(lambda: warm.counts.making == 0)
    assert warm.counts.warm == (2 if amount == 10 else 0)


async def test_a_slot_that_waits_gets_no_processor_time(warm, code) -> None:
    busy = "import threading\ndef spin():\n    while True: pass\nfor _ in range(3): threading.Thread(target=spin, daemon=True).start()\n"
    program = _program(code, busy + MARKED)
    await _run(warm, program)
    await _quiet(warm)

    def spent() -> list[str]:
        return [
            " ".join(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:15]) for pid in _stopped(warm)
        ]

    before = spent()
    await asyncio.sleep(0.3)
    assert spent() == before
    assert before
    assert (await _run(warm, program))["waited"]


async def test_what_an_import_starts_cannot_wait(warm, code) -> None:
    program = _program(
        code, "import os, time\nif os.fork() == 0:\n    time.sleep(60)\n    os._exit(0)\ndef handle(p): return 1\n"
    )
    for _ in range(2):
        assert await _run(warm, program) == 1
        await _until(lambda: warm.counts.making == 0)
        assert warm.counts.warm == 0


async def test_a_run_may_be_cancelled_while_its_slot_is_being_made(warm, code) -> None:
    program = _program(code, "import time\ntime.sleep(0.3)\n" + MARKED)
    await _run(warm, program)
    await _until(lambda: warm.counts.making > 0)
    for delay in (0.0, 0.05, 0.2, 0.35):
        running = asyncio.create_task(_run(warm, program, sleep=1))
        await asyncio.sleep(delay)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert (await _run(warm, program))["calls"] == 1
    await _until(lambda: warm.counts.making == 0 and warm.counts.warm >= 2)
    assert warm.counts.busy == 0


async def test_the_end_of_the_fork_server_is_survived(code) -> None:
    server = ForkServerBackend()
    sandbox = WarmSandbox(BubblewrapSandbox(), server, 256)
    program = _program(code)
    try:
        await _run(sandbox, program)
        await _quiet(sandbox)
        for which in ("parent", "server"):
            running = asyncio.create_task(sandbox.run_program(program, b'{"sleep": 20, "submitted": 0}', _ignore))
            await asyncio.sleep(0.2)
            victim = server.pid or 0
            os.kill(victim if which == "parent" else list_descendants(victim)[0], signal.SIGKILL)
            with pytest.raises(SandboxLost, match=SERVER_LOST_MESSAGE):
                await running
            assert (await _run(sandbox, program))["calls"] == 1
            await _quiet(sandbox)
            assert (await _run(sandbox, program))["waited"] is True
            assert server.pid != victim
    finally:
        await sandbox.close()


async def test_a_worn_fork_server_is_replaced_when_its_slots_are_gone(code, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.sandbox.forkserver.process.MAX_SERVER_SLOTS", 4)
    server = ForkServerBackend()
    sandbox = WarmSandbox(BubblewrapSandbox(), server, 256)
    program = _program(code)
    pids = set()
    try:
        async with asyncio.timeout(120):
            while len(pids) < 4:
                await _run(sandbox, program)
                pids.add(server.pid)

        def only_waiting_slots_keep_one() -> bool:
            counts, alive = sandbox.counts, [old for old in server._retired_servers if not old.gone.done()]
            return len(alive) <= counts.warm + counts.blank + counts.making

        await _until(only_waiting_slots_keep_one)
    finally:
        await sandbox.close()
    assert not [pid for pid in pids if pid in _children()]


async def test_closing_leaves_no_process_and_no_descriptor(code) -> None:
    program, slow = (
        _program(code),
        _program(code.with_name("slow"), "import time\ntime.sleep(5)\ndef handle(p): pass\n"),
    )

    def left() -> tuple[int, set[int], int]:
        return len(os.listdir("/proc/self/fd")), _children(), len(asyncio.all_tasks())

    before = left()
    for how in ("bubblewrap", "forkserver"):
        sandbox = await open_run_sandbox(how, None, 256)
        await _run(sandbox, program)
        running = [asyncio.create_task(sandbox.run_program(one, b"{}", _ignore)) for one in (slow, slow)]
        await asyncio.sleep(0.15)
        assert sandbox.counts.busy == 2
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await sandbox.close()
        assert left() == before


async def test_where_the_fork_server_does_not_work_bubblewrap_does(code, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.sandbox.forkserver.process._LAUNCHER_PATH", Path("/nowhere/launcher.py"))
    sandbox = await open_run_sandbox("auto", None, 64)
    try:
        assert (await _run(sandbox, _program(code)))["calls"] == 1
        assert sandbox.pool._backend.supports_blanks is False
    finally:
        await sandbox.close()


def test_how_many_slots_a_version_deserves() -> None:
    one = SlotDemand()
    assert one.count_wanted_slots(0) == 0
    for _ in range(6):
        one.record_start(100)
    for _ in range(6):
        one.record_end(101)
    assert one.count_wanted_slots(101) == 6
    assert one.count_wanted_slots(101 + demand.COOL_AFTER_SECONDS) == 1
    assert one.count_wanted_slots(101 + demand.COLD_AFTER_SECONDS) == 0
    one.record_start(1000)
    assert one.count_wanted_slots(1000 + demand.COLD_AFTER_SECONDS) == 1, "it runs all the time"
    one.record_end(1400)
    assert one.count_wanted_slots(1401) == 1, "an old peak is forgotten"
    one.record_start(1402)
    one.record_end(1402)
    one.record_start(1402)
    one.record_end(1402)
    assert one.count_wanted_slots(1402) == demand.MIN_WARM_SLOTS
    for _ in range(100):
        one.record_start(1402)
    assert one.count_wanted_slots(1402) == demand.MAX_VERSION_SLOTS


WAKER = """
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


async def test_an_idle_slot_cannot_wake_itself(code) -> None:
    sandbox = WarmSandbox(BubblewrapSandbox(), ForkServerBackend(), 256)
    try:
        assert json.loads((await sandbox.run_program(_program(code, WAKER), b"{}", _ignore)).output or b"") == {
            "made": -1
        }
    finally:
        await sandbox.close()


async def test_a_slot_that_woke_all_the_same_is_killed(code) -> None:
    """The second net, seen where the first is taken away."""
    fence = Fence(without=frozenset({"seccomp"}))
    sandbox = WarmSandbox(BubblewrapSandbox(fence), ForkServerBackend(fence), 256)
    try:
        assert json.loads((await sandbox.run_program(_program(code, WAKER), b"{}", _ignore)).output or b"") == {
            "made": 0
        }
        await _until(lambda: sandbox.counts.warm > 0)
        slot = next(tree for tree in sandbox.pool._idle_slots if tree.report.stage > 2)
        await _until(lambda: slot.is_awake)
        sandbox.pool.sweep_slots()
        await _until(lambda: slot.is_gone)
    finally:
        await sandbox.close()


async def test_files_in_memory_count_for_the_memory_of_a_slot(code) -> None:
    source = "open('/tmp/big', 'wb').write(bytes(40 << 20))\ndef handle(p): return 1\n"
    sandbox = WarmSandbox(BubblewrapSandbox(), ForkServerBackend(), 256)
    try:
        await sandbox.run_program(_program(code, source), b"{}", _ignore)
        await _until(lambda: sandbox.counts.warm > 0)
        assert max(slot.memory_bytes for slot in sandbox.pool._idle_slots.values()) > 40 << 20
    finally:
        await sandbox.close()


async def test_waiting_for_a_slot_counts_for_the_timeout(code) -> None:
    """A version whose import hangs once slots are made ahead takes no longer than it may."""
    flag = "import os, time\nif os.path.exists('/agent/hang'): time.sleep(60)\ndef handle(p): return 1\n"
    sandbox = WarmSandbox(BubblewrapSandbox(), ForkServerBackend(), 256)
    program = _program(code, flag, timeout=3)
    try:
        await sandbox.run_program(program, b"{}", _ignore)
        await _until(lambda: sandbox.counts.warm > 0)
        (code / "hang").touch()
        began = time.monotonic()
        outcomes = await asyncio.gather(*(sandbox.run_program(program, b"{}", _ignore) for _ in range(3)))
        assert "timeout" in [outcome.error_type for outcome in outcomes]
        assert time.monotonic() - began < 5.5
    finally:
        await sandbox.close()
