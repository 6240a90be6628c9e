"""Show what an entrypoint is given besides its payload and what it sends while it runs, in every kind of slot."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from domain.ports import MessageKind, OutputStream, ProgramHooks, SandboxOutcome, SandboxProgram
from infra.sandbox import WarmSandbox
from tests.support.sandbox_runs import SANDBOX_BACKENDS, open_sandbox

CONTEXT = {
    "execution_id": "exec_1",
    "thread_id": None,
    "attempt": 2,
    "deadline": "2030-01-01T00:00:00Z",
    "files": {"data.csv": "/work/data.csv"},
}


@pytest.fixture(scope="module", params=SANDBOX_BACKENDS)
async def sandbox(request: pytest.FixtureRequest) -> AsyncIterator[WarmSandbox]:
    async with open_sandbox(request.param, warm_mb=256) as sandbox:
        yield sandbox


class GuestRun:
    """Run one entrypoint, and keep what it prints and sends in the order in which it came."""

    def __init__(self, sandbox: WarmSandbox, code: Path) -> None:
        self._sandbox, self._code = sandbox, code
        self.events: list[tuple[str, Any]] = []
        self.state: bytes = b""
        self.state_loads = 0

    async def run(
        self, source: str, entrypoint: str = "agent:handle", payload: Any = None, timeout: float = 20
    ) -> SandboxOutcome:
        (self._code / "agent.py").write_text(source)
        program = SandboxProgram(
            code=self._code, environment=None, entrypoint=entrypoint, timeout=timeout, memory_mb=128
        )
        hooks = ProgramHooks(
            context=json.dumps(CONTEXT).encode(), on_message=self._take_message, load_state=self._load_state
        )
        return await self._sandbox.run_program(program, json.dumps(payload).encode(), self._take_output, hooks)

    async def run_well(self, source: str, entrypoint: str = "agent:handle", payload: Any = None) -> Any:
        """Run it and return its result."""
        outcome = await self.run(source, entrypoint, payload)
        assert outcome.output is not None, outcome
        return json.loads(outcome.output)

    def list_values(self, kind: str) -> list[Any]:
        return [value for name, value in self.events if name == kind]

    def _take_message(self, kind: MessageKind, data: bytes) -> None:
        self.events.append((kind, json.loads(data)))

    def _take_output(self, stream: OutputStream, data: bytes) -> None:
        self.events += [(stream, line) for line in data.decode().splitlines()]

    async def _load_state(self) -> bytes:
        self.state_loads += 1
        return self.state


@pytest.fixture
def guest_run(sandbox: WarmSandbox, readable_folder: Path) -> GuestRun:
    return GuestRun(sandbox, readable_folder)


async def test_an_entrypoint_of_one_parameter_is_called_as_ever(guest_run: GuestRun) -> None:
    assert await guest_run.run_well("def handle(payload): return payload\n", payload={"a": 1}) == {"a": 1}
    assert guest_run.events == []
    assert guest_run.state_loads == 0


async def test_a_context_says_what_the_run_is(guest_run: GuestRun) -> None:
    source = """
def handle(payload, context):
    deadline = context.deadline
    return [context.execution_id, context.thread_id, context.attempt, deadline.isoformat(), dict(context.files)]
"""
    expected = ["exec_1", None, 2, "2030-01-01T00:00:00+00:00", {"data.csv": "/work/data.csv"}]
    assert await guest_run.run_well(source) == expected


async def test_the_context_can_be_annotated_without_being_uploaded(guest_run: GuestRun) -> None:
    source = """
import subprocess, sys
from paddock_context import Context

def handle(payload: dict, context: Context):
    names = {name for name in [*Context.__annotations__, *vars(Context)] if not name.startswith("_")}
    child = "import paddock_context; print(paddock_context.Context.__name__)"
    output = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True).stdout
    return [sorted(name for name in names if not hasattr(context, name)), output]
"""
    assert await guest_run.run_well(source) == [[], "Context\n"]


async def test_an_agent_s_own_module_of_that_name_comes_first(guest_run: GuestRun) -> None:
    (guest_run._code / "paddock_context.py").write_text("Context = 'own'\n")
    source = "from paddock_context import Context\ndef handle(p): return Context\n"
    assert await guest_run.run_well(source) == "own"


SIGNATURES = """
import contextlib, functools

def given(context):
    return getattr(context, "execution_id", context)

def required(payload, anything): return given(anything)
def named(payload, context=None): return given(context)
def keyword(payload, *, context): return given(context)
def late(payload, verbose=False, context=None): return [verbose, given(context)]
async def asynchronous(payload, context): return given(context)
def optional(payload, verbose=False): return verbose
def rest(payload, *arguments, **options): return [arguments, options]

class Calls:
    def __call__(self, payload, context): return given(context)
    def method(self, payload, context): return given(context)
    def plain(self, payload): return payload
    @classmethod
    def of_class(cls, payload, context): return given(context)
    @staticmethod
    def of_none(payload, context): return given(context)
calls = Calls()
method, plain = calls.method, calls.plain

def prefixed(prefix, payload, context): return [prefix, given(context)]
partial = functools.partial(prefixed, "a")
bound = functools.partial(named, context="mine")

def decorate(function):
    @functools.wraps(function)
    def wrapper(*arguments, **options): return function(*arguments, **options)
    return wrapper
def narrow(function):
    @functools.wraps(function)
    def wrapper(payload): return function(payload, "narrow")
    return wrapper
decorated = decorate(required)
twice = decorate(decorate(keyword))
narrowed = narrow(required)
undecorated = decorate(optional)

@contextlib.contextmanager
def manager(payload): yield
"""


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, "exec_1") for name in ("required", "named", "keyword", "asynchronous", "calls", "method")),
        *((name, "exec_1") for name in ("Calls.of_class", "Calls.of_none", "decorated", "twice")),
        ("late", [False, "exec_1"]),
        ("optional", False),
        ("undecorated", False),
        ("rest", [[], {}]),
        ("plain", {}),
        ("partial", ["a", "exec_1"]),
        ("bound", "mine"),
        ("narrowed", "narrow"),
    ],
)
async def test_the_signature_decides_who_gets_a_context(guest_run: GuestRun, name: str, expected: Any) -> None:
    assert await guest_run.run_well(SIGNATURES, f"agent:{name}", {}) == expected


ORDERED = """
import sys

def handle(payload):
    for number in range(40):
        print("out", number)
        print("err", number, file=sys.stderr)
        yield number
    print("end")
    return "all"
"""


async def test_yields_and_prints_come_in_their_order(guest_run: GuestRun) -> None:
    assert await guest_run.run_well(ORDERED) == "all"
    *events, last = guest_run.events
    assert last == ("stdout", "end")
    for number in range(40):
        before = {("stdout", f"out {number}"), ("stderr", f"err {number}")}
        assert set(events[3 * number : 3 * number + 2]) == before
        assert events[3 * number + 2] == ("output", number)


async def test_output_of_child_processes_keeps_its_place(guest_run: GuestRun) -> None:
    source = """
import os, subprocess, sys

def handle(payload):
    for number in range(5):
        subprocess.run(["/bin/echo", f"child {number}"], check=True)
        os.write(1, b"raw %d\\n" % number)
        print("unfinished", end=" ")
        yield number
"""
    assert await guest_run.run_well(source) == 4
    kinds = [(kind, value) for kind, value in guest_run.events if value != "unfinished "]
    expected = [
        event
        for n in range(5)
        for event in [("stdout", f"child {n}"), ("stdout", f"raw {n}"), ("stdout", "unfinished"), ("output", n)]
    ]
    assert [
        (kind, value.strip() if isinstance(value, str) else value) for kind, value in guest_run.events
    ] == expected, kinds


async def test_output_that_the_agent_turns_elsewhere_gets_no_marks(guest_run: GuestRun) -> None:
    source = """
import os
os.dup2(os.open("/tmp/log", os.O_WRONLY | os.O_CREAT), 1)

def handle(payload):
    print("to the file")
    yield 1
    yield open("/tmp/log").read()
"""
    assert await guest_run.run_well(source) == "to the file\n"
    assert guest_run.events == [("output", 1), ("output", "to the file\n")]


NUMBERS = """
class Numbers:
    def __init__(self): self.n = 0
    def __aiter__(self): return self
    async def __anext__(self):
        self.n += 1
        if self.n > 3: raise StopAsyncIteration
        return self.n

def handle(payload): return Numbers()
"""


@pytest.mark.parametrize(
    ("source", "result", "outputs"),
    [
        ("def handle(p):\n    yield 1\n    yield {'b': 2}\n", {"b": 2}, [1, {"b": 2}]),
        ("def handle(p):\n    yield 1\n    return 0\n", 0, [1]),
        ("def handle(p):\n    yield 1\n    yield None\n", None, [1, None]),
        ("def handle(p):\n    return\n    yield\n", None, []),
        ("async def handle(p):\n    yield 'a'\n    yield 'b'\n", "b", ["a", "b"]),
        ("async def handle(p):\n    return\n    yield\n", None, []),
        ("def made():\n    yield 1\ndef handle(p): return made()\n", 1, [1]),
        ("def made():\n    yield 1\n    return 9\nasync def handle(p): return made()\n", 9, [1]),
        ("async def made():\n    yield 1\nasync def handle(p): return made()\n", 1, [1]),
        (
            NUMBERS,
            3,
            [1, 2, 3],
        ),
        (
            "def handle(p):\n    kept = []\n    for n in range(2):\n        kept.append(n)\n        yield kept\n",
            [0, 1],
            [[0], [0, 1]],
        ),
    ],
)
async def test_what_streams_and_what_its_result_is(
    guest_run: GuestRun, source: str, result: Any, outputs: list[Any]
) -> None:
    assert await guest_run.run_well(source) == result
    assert guest_run.events == [("output", value) for value in outputs]


async def test_a_generator_that_raises_fails_after_what_it_yielded(guest_run: GuestRun) -> None:
    outcome = await guest_run.run("def handle(p):\n    yield 1\n    yield 2\n    raise KeyError('three')\n")
    assert (outcome.error_type, outcome.output) == ("KeyError", None)
    assert outcome.stack is not None
    assert "/guest/" not in outcome.stack
    assert guest_run.list_values("output") == [1, 2]


@pytest.mark.parametrize(
    ("value", "kind", "problem"),
    [
        ("{'a': [float('nan')]}", "output_not_json", "Output 2 is not JSON: `a[0]` is nan, which JSON does not have."),
        ("{1, 2}", "output_not_json", "Output 2 is not JSON: the output is a set. Use its list()."),
        ("{1: 'a', '1': 'b'}", "output_not_json", "has the keys 1 and '1', which are one key in JSON"),
        ("'x' * 262143", "output_too_large", "Output 2 is 262145 bytes of JSON; at most 262144 are allowed."),
    ],
)
@pytest.mark.parametrize("start", ["def", "async def"])
async def test_a_yield_that_is_no_json_fails_the_run(
    guest_run: GuestRun, value: str, kind: str, problem: str, start: str
) -> None:
    source = f"{start} handle(p):\n    try:\n        yield 1\n        yield {value}\n        yield 3\n    finally:\n        print('closed')\n"
    outcome = await guest_run.run(source)
    assert outcome.error_type == kind
    assert problem in (outcome.error_message or "")
    assert guest_run.events == [("output", 1), ("stdout", "closed")]


async def test_an_output_of_exactly_the_limit_is_sent(guest_run: GuestRun) -> None:
    await guest_run.run_well("def handle(p):\n    yield 'x' * 262142\n")
    assert [len(value) for value in guest_run.list_values("output")] == [262142]


async def test_emit_sends_from_any_thread_and_says_what_it_cannot(guest_run: GuestRun) -> None:
    source = """
import threading

def handle(payload, context):
    def work(name):
        for number in range(50):
            context.emit({"thread": name, "number": number, "filling": "x" * 3000})
    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    problems = []
    for value in (float("nan"), object(), "x" * 300_000):
        try:
            context.emit(value)
        except ValueError as error:
            problems.append(str(error))
    return problems
"""
    problems = await guest_run.run_well(source)
    assert problems[0].endswith("is nan, which JSON does not have. Use None or text in its place.")
    assert "the output is a object." in problems[1]
    assert "300002 bytes of JSON; at most 262144 are allowed" in problems[2]
    outputs = guest_run.list_values("output")
    assert len(outputs) == 400
    for name in range(8):
        assert [value["number"] for value in outputs if value["thread"] == name] == list(range(50))


async def test_a_signal_handler_that_raises_tears_no_message(guest_run: GuestRun) -> None:
    source = """
import signal

class Late(Exception): pass

def ring(*_): raise Late

def handle(payload, context):
    signal.signal(signal.SIGALRM, ring)
    rings = 0
    for number in range(40):
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.003)
            while True:
                context.emit("x" * 200_000)
        except Late:
            rings += 1
    return rings
"""
    assert await guest_run.run_well(source) == 40
    assert {len(value) for value in guest_run.list_values("output")} == {200_000}


async def test_a_child_process_cannot_use_the_context(guest_run: GuestRun) -> None:
    source = """
import os

def handle(payload, context):
    context.emit("parent")
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            context.emit("child")
        except RuntimeError as error:
            os.write(writing, str(error).encode())
        os._exit(0)
    os.wait()
    return os.read(reading, 1000).decode()
"""
    assert "only in the process that called the entrypoint" in await guest_run.run_well(source)
    assert guest_run.events == [("output", "parent")]


async def test_a_thread_that_goes_on_is_stopped_by_the_end_of_the_run(guest_run: GuestRun) -> None:
    source = """
import threading, time

def handle(payload, context):
    def work():
        while True:
            context.emit("x" * 10_000)
    threading.Thread(target=work, daemon=True).start()
    time.sleep(0.1)
    return "done"
"""
    assert await guest_run.run_well(source) == "done"


async def test_progress_is_checked_and_sent(guest_run: GuestRun) -> None:
    source = """
from decimal import Decimal

def handle(payload, context):
    context.progress(0, "begin")
    context.progress(0.1 * 3 + 0.7)
    context.progress(message="no fraction")
    context.progress(Decimal("0.25"), "\\ud800 odd")
    context.progress(1, "x" * 5000)
    problems = []
    for arguments in ((2,), (-0.1,), (float("nan"),), ("half",), (0.5, 7)):
        try:
            context.progress(*arguments)
        except (ValueError, TypeError) as error:
            problems.append(str(error))
    return problems
"""
    problems = await guest_run.run_well(source)
    assert problems[0] == "fraction must be a number from 0 to 1, or None; it is '2'."
    assert [problem[:8] for problem in problems[:4]] == ["fraction"] * 4
    assert problems[4] == "message must be text or None; it is a int."
    states = guest_run.list_values("progress")
    assert states[:4] == [
        {"fraction": 0.0, "message": "begin"},
        {"fraction": 1.0, "message": None},
        {"fraction": None, "message": "no fraction"},
        {"fraction": 0.25, "message": "\\ud800 odd"},
    ]
    assert len(states[4]["message"]) == 1000
    assert len(states) == 5


async def test_the_state_is_loaded_once_and_sent_once_if_it_changed(guest_run: GuestRun) -> None:
    source = """
def handle(payload, context):
    context.state["count"] = context.state.get("count", 0) + 1
    return context.state
"""
    assert await guest_run.run_well(source) == {"count": 1}
    guest_run.state = b'{"count": 41, "kept": "\\u00e9"}'
    assert await guest_run.run_well(source) == {"count": 42, "kept": "é"}
    assert guest_run.list_values("state") == [{"count": 1}, {"count": 42, "kept": "é"}]
    assert guest_run.state_loads == 2


@pytest.mark.parametrize(
    ("body", "states"),
    [
        ("return context.state", []),
        ("context.state['a'] = 1; return 0", []),
        ("context.state = [1]; return 0", [[1]]),
        ("yield context.state; context.state['b'] = 2", [{"a": 1, "b": 2}]),
        ("context.state.clear(); raise ValueError", []),
        ("return 0", []),
    ],
)
async def test_only_a_changed_state_of_a_good_run_is_sent(guest_run: GuestRun, body: str, states: list[Any]) -> None:
    guest_run.state = b'{ "a" : 1 }'
    await guest_run.run(f"def handle(payload, context):\n    {body}\n")
    assert guest_run.list_values("state") == states


@pytest.mark.parametrize(
    ("value", "kind", "problem"),
    [
        ("{'a': {1}}", "state_not_json", "The state is not JSON: `a` is a set. Use its list()."),
        ("object()", "state_not_json", "The state is not JSON: the state is a object."),
        (
            "'x' * (1024 * 1024 - 1)",
            "state_too_large",
            "The state is 1048577 bytes of JSON; at most 1048576 are allowed.",
        ),
    ],
)
async def test_a_state_that_cannot_be_kept_fails_the_run(
    guest_run: GuestRun, value: str, kind: str, problem: str
) -> None:
    outcome = await guest_run.run(f"def handle(payload, context):\n    context.state = {value}\n")
    assert (outcome.error_type, outcome.output) == (kind, None)
    assert problem in (outcome.error_message or "")
    assert guest_run.events == []


async def test_a_state_of_exactly_the_limit_is_sent(guest_run: GuestRun) -> None:
    await guest_run.run_well("def handle(payload, context):\n    context.state = 'x' * (1024 * 1024 - 2)\n")
    assert [len(value) for value in guest_run.list_values("state")] == [1024 * 1024 - 2]


async def test_a_state_that_cannot_be_loaded_ends_the_run(guest_run: GuestRun) -> None:
    async def fail() -> bytes:
        raise RuntimeError("no state today")

    guest_run._load_state = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="no state today"):
        await guest_run.run("def handle(payload, context):\n    context.state\n")


async def test_an_endless_generator_is_ended_by_its_timeout(guest_run: GuestRun) -> None:
    source = "import time\ndef handle(p):\n    n = 0\n    while True:\n        n += 1\n        yield n\n        time.sleep(0.05)\n"
    outcome = await guest_run.run(source, timeout=2)
    assert outcome.error_type == "timeout"
    values = guest_run.list_values("output")
    assert values == list(range(1, len(values) + 1))
    assert values


async def test_a_flood_of_yields_leaves_the_loop_to_others(guest_run: GuestRun) -> None:
    flood = asyncio.create_task(guest_run.run("def handle(p):\n    while True:\n        yield 1\n", timeout=4))
    await asyncio.sleep(2)
    loop = asyncio.get_running_loop()
    began, busy = loop.time(), 0.0
    for _ in range(100):
        before = loop.time()
        await asyncio.sleep(0)
        busy = max(busy, loop.time() - before)
        await asyncio.sleep(0.005)
    outcome = await flood
    assert outcome.error_type == "timeout"
    assert loop.time() - began > 0.5
    assert busy < 1.0, "no turn of the loop takes as long as that, on the slowest of machines"
