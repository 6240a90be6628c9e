"""Test the contract of sandboxes on every backend: bubblewrap and the fork server, cold and warm."""

import asyncio
import contextlib
import os
import ssl
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
from infra.sandbox.proc import list_descendants
from infra.sandbox.warm_sandbox import WarmSandbox
from tests.support.sandbox_runs import (
    SANDBOX_BACKENDS,
    ignore_output,
    measure_idle,
    open_sandbox,
    run_filter,
    wait_until_released,
)

SLEEPING_PROGRAM = "import time\ndef handle(p):\n    time.sleep(30)\n"


@pytest.fixture(scope="module", params=SANDBOX_BACKENDS)
async def sandbox(request: pytest.FixtureRequest) -> AsyncIterator[WarmSandbox]:
    async with open_sandbox(request.param, warm_mb=256) as sandbox:
        yield sandbox


@pytest.fixture(scope="module", params=SANDBOX_BACKENDS[:2])
async def cold_sandbox(request: pytest.FixtureRequest) -> AsyncIterator[WarmSandbox]:
    """Open a sandbox without a pool, so that counts before and after a run can be compared."""
    async with open_sandbox(request.param, warm_mb=256) as sandbox:
        yield sandbox


@pytest.fixture
def code_folder(readable_folder: Path) -> Path:
    return readable_folder


def _build_program(code_folder: Path, source: str, timeout: float = 10) -> SandboxProgram:
    (code_folder / "agent.py").write_text(source)
    return SandboxProgram(code=code_folder, environment=None, entrypoint="agent:handle", timeout=timeout, memory_mb=128)


async def test_runs_leave_no_descriptors_or_tasks(cold_sandbox, code_folder) -> None:
    program = _build_program(code_folder, "def handle(p): return p\n")
    idle_counts = await measure_idle(cold_sandbox, program)
    for _ in range(25):
        assert (await cold_sandbox.run_program(program, b'{"a":1}', ignore_output)).output == b'{"a":1}'
    await wait_until_released(*idle_counts)


@pytest.mark.parametrize("delay", [0.0, 0.001, 0.003, 0.005, 0.02, 0.05, 0.1, 0.3])
async def test_cancel_at_any_moment_kills_and_releases(cold_sandbox, code_folder, delay: float) -> None:
    program = _build_program(code_folder, SLEEPING_PROGRAM)
    idle_counts = await measure_idle(cold_sandbox, program)
    running = asyncio.create_task(cold_sandbox.run_program(program, b"{}", ignore_output))
    await asyncio.sleep(delay)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await wait_until_released(*idle_counts)


def _list_bwrap_processes() -> set[int]:
    """List live bwraps of this process alone: those of a root worker run under its own block of user ids."""
    first = 1_000_000_000 + os.getpid() * 256
    user_ids = range(first, first + 256) if os.geteuid() == 0 else range(os.getuid(), os.getuid() + 1)
    process_ids = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state = (process / "stat").read_text().rsplit(")", 1)[1].split()[0]
            if process.stat().st_uid in user_ids and (process / "comm").read_text().strip() == "bwrap" and state != "Z":
                process_ids.add(int(process.name))
    return process_ids


async def test_early_and_double_cancels_leave_no_process(cold_sandbox, code_folder) -> None:
    program = _build_program(code_folder, SLEEPING_PROGRAM)
    tasks = (await measure_idle(cold_sandbox, program))[1]
    server = cold_sandbox._server.pid if cold_sandbox._server is not None else None
    processes_before = _list_bwrap_processes() | set(list_descendants(server) if server else [])
    for number in range(40):
        running = asyncio.create_task(cold_sandbox.run_program(program, b"{}", ignore_output))
        await asyncio.sleep(number * 0.001)
        running.cancel()
        await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    await asyncio.sleep(0.3)
    assert (_list_bwrap_processes() | set(list_descendants(server) if server else [])) - processes_before == set()
    assert len(asyncio.all_tasks()) == tasks


async def test_output_of_short_runs_is_complete(sandbox, code_folder) -> None:
    program = _build_program(code_folder, "print('imported')\ndef handle(p):\n    print('called')\n    return 1\n")
    for _ in range(30):
        output = bytearray()

        def collect_output(_: str, data: bytes, output: bytearray = output) -> None:
            output.extend(data)

        await sandbox.run_program(program, b"{}", collect_output)
        assert output == b"imported\ncalled\n"


async def test_runs_share_no_state(sandbox, code_folder) -> None:
    program = _build_program(
        code_folder,
        "import os\nseen = []\ndef handle(p):\n    seen.append(1)\n    there = os.listdir('/tmp')\n    open('/tmp/left', 'w').close()\n    return [len(seen), there]\n",
    )
    for _ in range(3):
        assert (await sandbox.run_program(program, b"{}", ignore_output)).output == b"[1,[]]"


async def test_interpreter_is_on_a_read_only_mount(sandbox, code_folder) -> None:
    """Check `/proc/self/exe`, which leads past the root of a guest that was forked."""
    program = _build_program(
        code_folder,
        "import os\ndef handle(p):\n    return [os.fstatvfs(os.open('/proc/self/exe', os.O_RDONLY)).f_flag & os.ST_RDONLY]\n",
    )
    assert (await sandbox.run_program(program, b"{}", ignore_output)).output == b"[1]"


async def test_guest_environment_is_the_same_on_every_backend(sandbox, code_folder) -> None:
    """Prefer the agent's module to one of the standard library, and leave nothing of the parent process."""
    (code_folder / "queue.py").write_text("MINE = 1\n")
    program = _build_program(
        code_folder,
        "import asyncio, os, queue, sys\n"
        "async def handle(p):\n"
        "    await asyncio.sleep(0)\n"
        "    ours = sorted(name for name in sys.modules if name.startswith('infra'))\n"
        "    return [queue.MINE, ours, sys.argv, sys.modules['__main__'].__file__, sorted(os.environ), sys.path[0], os.getpid()]\n",
    )
    outcome = await sandbox.run_program(program, b"{}", ignore_output)
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
    result = msgspec.json.decode(outcome.output)
    result[4] = [name for name in result[4] if name != "PWD"]
    assert result == expected


async def test_variables_are_there_before_anything_is_imported(sandbox, code_folder) -> None:
    """The time zone too, which a process reads once; and none of them is on record in its first environment."""
    source = (
        "import os, time\nSEEN = os.environ['TOKEN'], time.tzname[0]\n"
        "def handle(p):\n    return [*SEEN, os.popen('echo $TOKEN').read(), open('/proc/self/environ').read()]\n"
    )
    program = msgspec.structs.replace(
        _build_program(code_folder, source), variables={"TOKEN": "a-secret ü\n'", "TZ": "XYZ-3", "EMPTY": ""}
    )
    outcome = await sandbox.run_program(program, b"{}", ignore_output)
    token, zone, child, environ = msgspec.json.decode(outcome.output or b"")
    assert (token, zone) == ("a-secret ü\n'", "XYZ")
    assert child == "a-secret ü '\n"
    assert "a-secret" not in environ
    assert "a-secret" not in repr(program)


async def test_tls_clients_find_the_authorities_of_the_host(sandbox, code_folder) -> None:
    """`urllib`, `aiohttp` and drivers of databases trust what OpenSSL trusts, and bring no list of their own."""
    source = (
        "import os, ssl\ndef handle(p):\n"
        "    paths = ssl.get_default_verify_paths()\n"
        "    folder, keys = paths.openssl_capath, '/etc/ssl/private'\n"
        "    return [os.path.isfile(paths.openssl_cafile), len(os.listdir(folder)), os.path.exists(keys)]\n"
    )
    outcome = await sandbox.run_program(_build_program(code_folder, source), b"{}", ignore_output)
    paths = ssl.get_default_verify_paths()
    expected = [os.path.isfile(paths.openssl_cafile), len(os.listdir(paths.openssl_capath)), False]
    assert msgspec.json.decode(outcome.output or b"null") == expected, outcome
    assert expected[0] or expected[1]


@pytest.mark.parametrize(("shown_as", "expected"), [("/environment", ["one"]), ("/agent", ["one", "two"])])
async def test_tests_of_installed_packages_are_not_compiled(
    cold_sandbox, code_folder, shown_as: str, expected: list[str]
) -> None:
    (code_folder / "package" / "tests").mkdir(parents=True)
    (code_folder / "package" / "one.py").write_text("A = 1\n")
    (code_folder / "package" / "tests" / "two.py").write_text("A = 2\n")
    assert await cold_sandbox.compile_bytecode(code_folder, shown_as) == []
    assert sorted(file.name.split(".")[0] for file in code_folder.rglob("*.pyc")) == expected


async def test_random_numbers_differ_between_runs(sandbox, code_folder) -> None:
    program = _build_program(
        code_folder,
        "import os, random, uuid, tempfile\ndef handle(p): return [random.random(), os.urandom(8).hex(), str(uuid.uuid4()), tempfile.mktemp()]\n",
    )
    results = [
        msgspec.json.decode((await sandbox.run_program(program, b"{}", ignore_output)).output or b"") for _ in range(6)
    ]
    assert all(len(set(column)) == 6 for column in zip(*results, strict=True))


async def test_error_in_the_output_callback_ends_the_run(sandbox, code_folder) -> None:
    program = _build_program(code_folder, "def handle(p):\n    while True: print('x' * 1000)\n")

    def raise_error(_: str, __: bytes) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        await sandbox.run_program(program, b"{}", raise_error)


async def test_bwrap_that_does_not_start_makes_the_sandbox_unavailable(code_folder) -> None:
    for bwrap in ("/usr/bin/false", "/nowhere/bwrap"):
        broken = BubblewrapSandbox(bwrap=bwrap)
        warm = WarmSandbox(broken, None, 64)
        with pytest.raises(DomainError) as error:
            await warm.run_program(_build_program(code_folder, "def handle(p): return 1\n"), b"{}", ignore_output)
        assert error.value.code == "sandbox_unavailable"
        await warm.close()
        with pytest.raises(DomainError) as error:
            await broken.run_program(_build_program(code_folder, "def handle(p): return 1\n"), b"{}", ignore_output)
        assert error.value.code == "sandbox_unavailable"
        assert (await broken.get_status()).available is False


async def test_check_imports_without_calling(sandbox, code_folder) -> None:
    program = _build_program(code_folder, "def handle(p): raise RuntimeError('called')\n")
    assert (await sandbox.check_entrypoint(program, ignore_output)).error_type is None


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def handle(): pass", "takes no payload"),
        ("def handle(*, payload): pass", "takes no payload"),
        ("def handle(payload, context, extra): pass", "requires extra"),
        ("def handle(payload, *, tools): pass", "requires tools"),
        ("class Agent:\n    def __call__(self): pass\nhandle = Agent()", "takes no payload"),
    ],
)
async def test_check_refuses_functions_that_every_call_would_fail(cold_sandbox, code_folder, source, words) -> None:
    outcome = await cold_sandbox.check_entrypoint(_build_program(code_folder, source), ignore_output)
    assert outcome.error_type == "TypeError"
    assert words in outcome.error_message


@pytest.mark.parametrize(
    "source",
    [
        "def handle(*args): pass",
        "def handle(p, verbose=False, *, context): pass",
        "def handle(p, verbose=False, context=None, **more): pass",
        "class Agent:\n    def __init__(self): pass\n    def run(self, p, context): pass\nhandle = Agent().run",
        "import functools\nhandle = functools.partial(lambda tool, p: p, 1)",
        "import functools\nhandle = functools.partial(lambda p, *, tool: p, tool=1)",
        "def wrap(f): return lambda *a, **k: f(*a, 1, **k)\n@wrap\ndef handle(p, context, more): pass",
        "handle = dict",
    ],
)
async def test_check_accepts_functions_that_may_be_called(cold_sandbox, code_folder, source) -> None:
    outcome = await cold_sandbox.check_entrypoint(_build_program(code_folder, source), ignore_output)
    assert outcome.error_message is None


def test_fence_refuses_unknown_guards() -> None:
    with pytest.raises(ValueError, match="unknown guards"):
        Fence(without=frozenset({"wall"}))


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_filter_is_a_valid_program(machine: str) -> None:
    """Check that every jump lands inside the program, and every path ends in a verdict."""
    data = seccomp.build_filter(machine)
    instructions = [struct.unpack("=HBBI", data[start : start + 8]) for start in range(0, len(data), 8)]
    assert len(instructions) < 4096
    for number, (operation, if_true, if_false, _) in enumerate(instructions):
        if operation & 7 == 5:
            assert number + 1 + max(if_true, if_false) < len(instructions)
    assert instructions[-1][0] == 0x06


def test_filter_verdicts() -> None:
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
            return run_filter(data, arch, table[call], *arguments)

        assert verdict("read") == allow
        assert verdict("clone", 17) == allow
        assert verdict("clone", 0x10000000 | 17) == eperm
        assert verdict("clone", 0x40000000) == eperm
        assert verdict("clone3") == enosys
        assert verdict("socketpair", 1, 1) == allow
        assert verdict("socketpair", 1, 1 | 0o2000000) == allow
        assert verdict("socketpair", 1, 2) == eperm, "a datagram socket could be sent outside"
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
        assert run_filter(data, arch, 9999) == enosys
        assert run_filter(data, 0x40000003, 1) == kill
    assert run_filter(seccomp.build_filter("x86_64"), 0xC000003E, 0x40000000) == kill


def test_unknown_machines_are_refused() -> None:
    with pytest.raises(seccomp.UnknownMachine):
        seccomp.build_filter("riscv64")
