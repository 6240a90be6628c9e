"""What the sandbox promises, whoever makes it: bubblewrap or the fork server, cold or warm."""

import asyncio
import contextlib
import os
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from domain.ports import SandboxProgram
from domain.shared.errors import DomainError
from infra.sandbox import seccomp
from infra.sandbox.bubblewrap import BubblewrapSandbox
from infra.sandbox.fence import Fence
from infra.sandbox.forkserver.client import ForkServerBackend
from infra.sandbox.proc import list_descendants
from infra.sandbox.warm_sandbox import WarmSandbox

SLEEP = "import time\ndef handle(p):\n    time.sleep(30)\n"


def _ignore(_: str, __: bytes) -> None:
    return None


WAYS = ["bubblewrap", "forkserver", "bubblewrap-warm", "forkserver-warm"]


async def _made(way: str) -> AsyncIterator[WarmSandbox]:
    server = ForkServerBackend() if way.startswith("forkserver") else None
    made = WarmSandbox(BubblewrapSandbox(), server, 256 if way.endswith("-warm") else 0)
    yield made
    await made.close()


@pytest.fixture(scope="module", params=WAYS)
async def sandbox(request: pytest.FixtureRequest) -> AsyncIterator[WarmSandbox]:
    async for made in _made(request.param):
        yield made


@pytest.fixture(scope="module", params=WAYS[:2])
async def cold(request: pytest.FixtureRequest) -> AsyncIterator[WarmSandbox]:
    """Without a pool, so that what is there before a run and after it can be compared."""
    async for made in _made(request.param):
        yield made


@pytest.fixture
def code(readable: Path) -> Path:
    return readable


def _program(code: Path, source: str, timeout: float = 10) -> SandboxProgram:
    (code / "agent.py").write_text(source)
    return SandboxProgram(code=code, environment=None, entrypoint="agent:handle", timeout=timeout, memory_mb=128)


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def _as_before(descriptors: int, tasks: int) -> None:
    """An answer is there a moment before its tree is gone, that of the first run too."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(10):
            while _descriptors() > descriptors or len(asyncio.all_tasks()) > tasks:
                await asyncio.sleep(0.005)
    assert _descriptors() <= descriptors
    assert len(asyncio.all_tasks()) <= tasks


async def _begun(cold: WarmSandbox, program: SandboxProgram) -> tuple[int, int]:
    """How many descriptors and tasks there are when nothing runs and all that lasts is there."""
    quick = msgspec.structs.replace(program, entrypoint="json:dumps")
    await cold.run_program(quick, b"{}", _ignore)
    await asyncio.sleep(0.1)
    return _descriptors(), len(asyncio.all_tasks())


async def test_runs_leave_no_descriptor_and_no_task_behind(cold, code) -> None:
    program = _program(code, "def handle(p): return p\n")
    before = await _begun(cold, program)
    for _ in range(25):
        assert (await cold.run_program(program, b'{"a":1}', _ignore)).output == b'{"a":1}'
    await _as_before(*before)


@pytest.mark.parametrize("delay", [0.0, 0.001, 0.003, 0.005, 0.02, 0.05, 0.1, 0.3])
async def test_cancelling_at_any_moment_kills_and_frees(cold, code, delay: float) -> None:
    program = _program(code, SLEEP)
    before = await _begun(cold, program)
    running = asyncio.create_task(cold.run_program(program, b"{}", _ignore))
    await asyncio.sleep(delay)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await _as_before(*before)


def _bwraps() -> set[int]:
    """Live bwraps of this process alone: a root worker's run under its own block of user ids."""
    first = 1_000_000_000 + os.getpid() * 256
    mine = range(first, first + 256) if os.geteuid() == 0 else range(os.getuid(), os.getuid() + 1)
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state = (process / "stat").read_text().rsplit(")", 1)[1].split()[0]
            if process.stat().st_uid in mine and (process / "comm").read_text().strip() == "bwrap" and state != "Z":
                found.add(int(process.name))
    return found


async def test_early_and_double_cancels_leave_no_process(cold, code) -> None:
    program = _program(code, SLEEP)
    tasks = (await _begun(cold, program))[1]
    server = cold._server.pid if cold._server is not None else None
    before = _bwraps() | set(list_descendants(server) if server else [])
    for number in range(40):
        running = asyncio.create_task(cold.run_program(program, b"{}", _ignore))
        await asyncio.sleep(number * 0.001)
        running.cancel()
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    await asyncio.sleep(0.3)
    assert (_bwraps() | set(list_descendants(server) if server else [])) - before == set()
    assert len(asyncio.all_tasks()) == tasks


async def test_no_output_is_lost_however_short_the_run(sandbox, code) -> None:
    program = _program(code, "print('imported')\ndef handle(p):\n    print('called')\n    return 1\n")
    for _ in range(30):
        heard = bytearray()

        def hear(_: str, data: bytes, heard: bytearray = heard) -> None:
            heard.extend(data)

        await sandbox.run_program(program, b"{}", hear)
        assert heard == b"imported\ncalled\n"


async def test_no_state_passes_from_one_run_to_the_next(sandbox, code) -> None:
    program = _program(
        code,
        "import os\nseen = []\ndef handle(p):\n    seen.append(1)\n    there = os.listdir('/tmp')\n    open('/tmp/left', 'w').close()\n    return [len(seen), there]\n",
    )
    for _ in range(3):
        assert (await sandbox.run_program(program, b"{}", _ignore)).output == b"[1,[]]"


async def test_not_even_its_own_interpreter_lies_on_a_mount_it_could_write_to(sandbox, code) -> None:
    """A forked guest was not started beneath the root that it sees; `/proc/self/exe` leads past that root."""
    program = _program(
        code,
        "import os\ndef handle(p):\n    return [os.fstatvfs(os.open('/proc/self/exe', os.O_RDONLY)).f_flag & os.ST_RDONLY]\n",
    )
    assert (await sandbox.run_program(program, b"{}", _ignore)).output == b"[1]"


async def test_a_guest_finds_the_same_names_however_it_was_made(sandbox, code) -> None:
    """Its own module comes before one of the standard library, and nothing of whoever made it is left."""
    (code / "queue.py").write_text("MINE = 1\n")
    program = _program(
        code,
        "import asyncio, os, queue, sys\n"
        "async def handle(p):\n"
        "    await asyncio.sleep(0)\n"
        "    ours = sorted(name for name in sys.modules if name.startswith('infra'))\n"
        "    return [queue.MINE, ours, sys.argv, sys.modules['__main__'].__file__, sorted(os.environ), sys.path[0], os.getpid()]\n",
    )
    outcome = await sandbox.run_program(program, b"{}", _ignore)
    expected = [
        1,
        [],
        ["/guest/main.py"],
        "/guest/main.py",
        ["HOME", "LANG", "PADDOCK_WORK", "PATH", "TMPDIR"],
        "/agent",
        1,
    ]
    assert outcome.output is not None, outcome
    told = msgspec.json.decode(outcome.output)
    told[4] = [name for name in told[4] if name != "PWD"]
    assert told == expected


async def test_variables_are_there_before_anything_is_imported(sandbox, code) -> None:
    """The time zone too, which a process reads once; and none of them is on record in its first environment."""
    source = (
        "import os, time\nSEEN = os.environ['TOKEN'], time.tzname[0]\n"
        "def handle(p):\n    return [*SEEN, os.popen('echo $TOKEN').read(), open('/proc/self/environ').read()]\n"
    )
    program = msgspec.structs.replace(
        _program(code, source), variables={"TOKEN": "a-secret ü\n'", "TZ": "XYZ-3", "EMPTY": ""}
    )
    outcome = await sandbox.run_program(program, b"{}", _ignore)
    token, zone, child, environ = msgspec.json.decode(outcome.output or b"")
    assert (token, zone) == ("a-secret ü\n'", "XYZ")
    assert child == "a-secret ü '\n"
    assert "a-secret" not in environ
    assert "a-secret" not in repr(program)


async def test_randomness_is_each_run_s_own(sandbox, code) -> None:
    program = _program(
        code,
        "import os, random, uuid, tempfile\ndef handle(p): return [random.random(), os.urandom(8).hex(), str(uuid.uuid4()), tempfile.mktemp()]\n",
    )
    told = [msgspec.json.decode((await sandbox.run_program(program, b"{}", _ignore)).output or b"") for _ in range(6)]
    assert all(len(set(column)) == 6 for column in zip(*told, strict=True))


async def test_what_listening_raises_ends_the_run(sandbox, code) -> None:
    program = _program(code, "def handle(p):\n    while True: print('x' * 1000)\n")

    def too_much(_: str, __: bytes) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        await sandbox.run_program(program, b"{}", too_much)


async def test_a_bwrap_that_does_not_start_is_an_unavailable_sandbox(code) -> None:
    for bwrap in ("/usr/bin/false", "/nowhere/bwrap"):
        broken = BubblewrapSandbox(bwrap=bwrap)
        warm = WarmSandbox(broken, None, 64)
        with pytest.raises(DomainError) as caught:
            await warm.run_program(_program(code, "def handle(p): return 1\n"), b"{}", _ignore)
        assert caught.value.code == "sandbox_unavailable"
        await warm.close()
        with pytest.raises(DomainError) as caught:
            await broken.run_program(_program(code, "def handle(p): return 1\n"), b"{}", _ignore)
        assert caught.value.code == "sandbox_unavailable"
        assert (await broken.get_status()).available is False


async def test_check_imports_and_does_not_call(sandbox, code) -> None:
    program = _program(code, "def handle(p): raise RuntimeError('called')\n")
    assert (await sandbox.check_entrypoint(program, _ignore)).error_type is None


def test_a_fence_knows_its_guards() -> None:
    with pytest.raises(ValueError, match="unknown guards"):
        Fence(without=frozenset({"wall"}))


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_is_a_valid_program(machine: str) -> None:
    """Every jump lands inside the program, and every path ends in a verdict."""
    data = seccomp.build_filter(machine)
    code = [struct.unpack("=HBBI", data[start : start + 8]) for start in range(0, len(data), 8)]
    assert len(code) < 4096
    for number, (operation, if_true, if_false, _) in enumerate(code):
        if operation & 7 == 5:
            assert number + 1 + max(if_true, if_false) < len(code)
    assert code[-1][0] == 0x06


def _verdict(data: bytes, machine: int, number: int, *arguments: int) -> int:
    """Runs the filter as the kernel does."""
    packet = struct.pack("=iIQ6Q", number, machine, 0, *(list(arguments) + [0] * 6)[:6])
    code = [struct.unpack("=HBBI", data[start : start + 8]) for start in range(0, len(data), 8)]
    at, value = 0, 0
    while True:
        operation, if_true, if_false, constant = code[at]
        at += 1
        if operation == 0x20:
            value = struct.unpack_from("=I", packet, constant)[0]
        elif operation == 0x54:
            value &= constant
        elif operation == 0x06:
            return constant
        else:
            holds = {0x15: value == constant, 0x35: value >= constant, 0x45: bool(value & constant)}[operation]
            at += if_true if holds else if_false


def test_the_filter_s_verdicts() -> None:
    allow, kill, eperm, enosys = 0x7FFF0000, 0x80000000, 0x50001, 0x50026
    for name, arch, table in (
        (
            "x86_64",
            0xC000003E,
            {
                "read": 0,
                "clone": 56,
                "clone3": 435,
                "socketpair": 53,
                "socket": 41,
                "prlimit64": 302,
                "ioctl": 16,
                "mount": 165,
                "keyctl": 250,
                "mmap": 9,
                "prctl": 157,
            },
        ),
        (
            "aarch64",
            0xC00000B7,
            {
                "read": 63,
                "clone": 220,
                "clone3": 435,
                "socketpair": 199,
                "socket": 198,
                "prlimit64": 261,
                "ioctl": 29,
                "mount": 40,
                "keyctl": 219,
                "mmap": 222,
                "prctl": 167,
            },
        ),
    ):
        data = seccomp.build_filter(name)

        def verdict(
            call: str, *arguments: int, data: bytes = data, arch: int = arch, table: dict[str, int] = table
        ) -> int:
            return _verdict(data, arch, table[call], *arguments)

        assert verdict("read") == allow
        assert verdict("clone", 17) == allow
        assert verdict("clone", 0x10000000 | 17) == eperm
        assert verdict("clone", 0x40000000) == eperm
        assert verdict("clone3") == enosys
        assert verdict("socketpair", 1, 1) == allow
        assert verdict("socketpair", 1, 1 | 0o2000000) == allow
        assert verdict("socketpair", 1, 2) == eperm, "a datagram socket could be sent elsewhere"
        assert verdict("socketpair", 2, 1) == eperm
        for call in ("socket", "mount", "keyctl"):
            assert verdict(call) == eperm
        assert verdict("prlimit64", 0) == allow
        assert verdict("prlimit64", 1) == eperm
        assert verdict("mmap", 0, 4096, 3, 0x22) == allow
        assert verdict("mmap", 0, 4096, 3, 0x01) == allow
        assert verdict("mmap", 0, 4096, 3, 0x21) == eperm
        assert verdict("mmap", 0, 4096, 3, 0x23) == eperm
        assert verdict("prctl", 1, 0) == eperm
        assert verdict("prctl", 1, 9) == allow
        assert verdict("prctl", 15, 0) == allow
        assert verdict("ioctl", 0, 0x5412) == eperm
        assert verdict("ioctl", 0, 0x5401) == allow
        assert _verdict(data, arch, 9999) == enosys
        assert _verdict(data, 0x40000003, 1) == kill
    assert _verdict(seccomp.build_filter("x86_64"), 0xC000003E, 0x40000000) == kill


def test_other_machines_are_refused() -> None:
    with pytest.raises(seccomp.UnknownMachine):
        seccomp.build_filter("riscv64")
