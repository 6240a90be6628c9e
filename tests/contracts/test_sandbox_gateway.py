"""What the sandbox promises programs with a gateway, whoever makes it, and what it believes of what it is handed."""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest

from domain.llms import (
    ChatMessage,
    ModelOptions,
    ModelReply,
    ModelToolCall,
    ModelUsage,
    ReplyPart,
    TextDelta,
    ToolCallDelta,
    ToolSpec,
)
from domain.ports import GATEWAY_LISTENER, NetworkServer, ProgramHooks, ProgramNetwork, SandboxLost, SandboxProgram
from infra.sandbox import seccomp
from infra.sandbox.bubblewrap import BubblewrapSandbox
from infra.sandbox.forkserver.client import ForkServerBackend
from infra.sandbox.guest_protocol import encode_request
from infra.sandbox.listener import SandboxListeners, receive_listeners
from infra.sandbox.tree_request import TreeRequest
from infra.sandbox.warm_sandbox import WarmSandbox
from tests.support.sandbox_runs import count_descriptors, ignore_output, measure_idle, run_filter, wait_until_released
from workers.run.gateway import serve_gateway

PACKAGES = Path(openai.__file__).parents[1]
WAYS = ["bubblewrap", "forkserver", "bubblewrap-warm", "forkserver-warm"]
ASK = """
import os, urllib.request
def handle(p):
    with urllib.request.urlopen(os.environ["OPENAI_BASE_URL"] + "/models", timeout=3) as answer:
        return answer.read().decode()
"""


@pytest.fixture(params=WAYS)
async def sandbox(request: pytest.FixtureRequest) -> AsyncIterator[WarmSandbox]:
    server = ForkServerBackend() if request.param.startswith("forkserver") else None
    made = WarmSandbox(BubblewrapSandbox(), server, 512 if request.param.endswith("-warm") else 0)
    yield made
    await made.close()


@pytest.fixture
def code(readable_folder: Path) -> Path:
    return readable_folder


def _program(code: Path, source: str = ASK, **more: Any) -> SandboxProgram:
    (code / "agent.py").write_text(source)
    told = {"code": code, "environment": None, "entrypoint": "agent:handle", "timeout": 10, "memory_mb": 128}
    return SandboxProgram(**{**told, "network": ProgramNetwork(gateway=True), **more})


def _saying(word: str) -> NetworkServer:
    """Answers everything with a word."""

    @contextlib.asynccontextmanager
    async def serve(listeners: Mapping[str, socket.socket]) -> AsyncIterator[None]:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(f"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {len(word)}\r\n\r\n{word}".encode())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, sock=listeners[GATEWAY_LISTENER])
        try:
            yield
        finally:
            server.close()

    return serve


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.01)


async def test_each_run_is_answered_by_its_own_worker(sandbox, code) -> None:
    program = _program(code)
    for number in range(3):
        answers = await asyncio.gather(
            *(
                sandbox.run_program(program, b"{}", ignore_output, ProgramHooks(serve=_saying(f"{number}-{one}")))
                for one in range(4)
            )
        )
        assert [msgspec.json.decode(one.output or b"") for one in answers] == [f"{number}-{one}" for one in range(4)]


async def test_a_guest_finds_an_address_a_word_for_a_key_and_no_socket(sandbox, code) -> None:
    source = (
        "import os\n"
        "def handle(p):\n"
        "    links = [f'/proc/self/fd/{fd}' for fd in os.listdir('/proc/self/fd')]\n"
        "    held = [os.readlink(link) for link in links if os.path.lexists(link)]\n"
        "    return [{k: v for k, v in os.environ.items() if 'OPENAI' in k or 'ANTHROPIC' in k}, [one for one in held if 'socket' in one]]\n"
    )
    outcome = await sandbox.run_program(_program(code, source), b"{}", ignore_output, ProgramHooks(serve=_saying("x")))
    found, sockets = msgspec.json.decode(outcome.output or b"")
    url = found["OPENAI_BASE_URL"]
    assert url.startswith("http://127.0.0.1:")
    assert url.endswith("/v1")
    assert found == {
        "OPENAI_BASE_URL": url,
        "OPENAI_API_BASE": url,
        "OPENAI_API_KEY": "paddock",
        "ANTHROPIC_BASE_URL": url.removesuffix("/v1"),
        "ANTHROPIC_API_KEY": "paddock",
    }
    assert sockets == []
    outcome = await sandbox.run_program(_program(code, source, network=None), b"{}", ignore_output)
    assert outcome.output == b"[{},[]]"


async def test_programs_without_a_gateway_have_no_socket(sandbox, code) -> None:
    source = "import socket\ndef handle(p):\n    socket.socket()\n"
    outcome = await sandbox.run_program(
        _program(code, source, network=None), b"{}", ignore_output, ProgramHooks(serve=_saying("x"))
    )
    assert outcome.error_type == "PermissionError"
    assert (
        await sandbox.run_program(_program(code, source), b"{}", ignore_output, ProgramHooks(serve=_saying("x")))
    ).output == b"null"


async def test_where_nobody_serves_connections_are_refused_at_once(sandbox, code) -> None:
    outcome = await sandbox.run_program(_program(code, timeout=30), b"{}", ignore_output)
    # Reset if it had got through just before the listener was closed.
    assert (outcome.error_type, "refused" in (outcome.error_message or "")) in (
        ("URLError", True),
        ("ConnectionResetError", False),
    )
    outcome = await sandbox.check_entrypoint(_program(code, ASK + "handle(0)\n", timeout=30), ignore_output)
    assert outcome.error_type == "URLError"
    assert (await sandbox.check_entrypoint(_program(code), ignore_output)).error_type is None


async def test_calls_made_while_importing_are_answered_in_a_run(sandbox, code) -> None:
    program = _program(
        code, ASK + "first = handle(0)\nagain = handle\ndef handle(p): return [first, again(p)]\n", timeout=5
    )
    for word in ("a", "b"):
        assert (
            await sandbox.run_program(program, b"{}", ignore_output, ProgramHooks(serve=_saying(word)))
        ).output == f'["{word}","{word}"]'.encode()


async def test_runs_leave_no_descriptor_and_no_task_behind(code) -> None:
    sandbox = WarmSandbox(BubblewrapSandbox(), None, 0)
    program = _program(code)
    before = await measure_idle(sandbox, program)
    for _ in range(15):
        assert (
            await sandbox.run_program(program, b"{}", ignore_output, ProgramHooks(serve=_saying("x")))
        ).output == b'"x"'
    await wait_until_released(*before)
    broken = WarmSandbox(BubblewrapSandbox(bwrap="/usr/bin/false"), None, 0)
    for _ in range(3):
        with contextlib.suppress(Exception):
            await broken.run_program(program, b"{}", ignore_output, ProgramHooks(serve=_saying("x")))
    await wait_until_released(*before)


async def test_slots_that_were_never_used_leave_none_either(code) -> None:
    sandbox = WarmSandbox(BubblewrapSandbox(), None, 512)
    program = _program(code)
    before = await measure_idle(WarmSandbox(BubblewrapSandbox(), None, 0), program)
    await sandbox.run_program(program, b"{}", ignore_output, ProgramHooks(serve=_saying("x")))
    await _until(lambda: sandbox.counts.warm > 0 and sandbox.counts.making == 0)
    assert count_descriptors() > before[0]
    await sandbox.close()
    await wait_until_released(*before)


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.01, 0.02, 0.05, 0.1, None])
async def test_cancelling_at_any_moment_ends_the_serving_and_frees(code, delay: float | None) -> None:
    sandbox = WarmSandbox(BubblewrapSandbox(), None, 0)
    before = await measure_idle(sandbox, _program(code))
    program = _program(code, "import time\ndef handle(p): time.sleep(30)\n")
    left, entered = [], asyncio.Event()

    @contextlib.asynccontextmanager
    async def serve(_: Mapping[str, socket.socket]) -> AsyncIterator[None]:
        entered.set()
        try:
            yield
        finally:
            await asyncio.sleep(0.05)
            left.append(1)

    running = asyncio.create_task(sandbox.run_program(program, b"{}", ignore_output, ProgramHooks(serve=serve)))
    # None: once it is being served, however long that takes here.
    await (entered.wait() if delay is None else asyncio.sleep(delay))
    for _ in range(3):
        running.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await running
    assert left == ([1] if entered.is_set() else [])
    await wait_until_released(*before)


async def test_serving_that_fails_ends_the_run_and_says_why(sandbox, code) -> None:
    @contextlib.asynccontextmanager
    async def serve(_: Mapping[str, socket.socket]) -> AsyncIterator[None]:
        raise RuntimeError("no gateway today")
        yield

    program = _program(code, "import time\ndef handle(p): time.sleep(30)\n", timeout=20)
    async with asyncio.timeout(10):
        with pytest.raises(RuntimeError, match="today"):
            await sandbox.run_program(program, b"{}", ignore_output, ProgramHooks(serve=serve))


async def test_the_end_of_serving_is_waited_for(sandbox, code) -> None:
    """Calls of models are settled before the run is."""
    over = []

    @contextlib.asynccontextmanager
    async def slow(listeners: Mapping[str, socket.socket]) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await asyncio.sleep(0.1)
            over.append(listeners[GATEWAY_LISTENER].fileno() >= 0)

    await sandbox.run_program(
        _program(code, "def handle(p): return 1\n"), b"{}", ignore_output, ProgramHooks(serve=slow)
    )
    # It was the server's until it let go: its number cannot have been another's meanwhile.
    assert over == [True]


# what the worker is handed


def _listening(kind: int = socket.AF_INET, at: Any = ("127.0.0.1", 0), protocol: int = 0) -> socket.socket:
    made = socket.socket(kind, socket.SOCK_STREAM, protocol)
    made.bind(at)
    made.listen()
    return made


def _wrong() -> dict[str, Callable[[contextlib.ExitStack], list[int]]]:
    def of(make: Callable[[], Any]) -> Callable[[contextlib.ExitStack], list[int]]:
        return lambda stack: [stack.enter_context(make()).fileno()]

    def connected(stack: contextlib.ExitStack) -> list[int]:
        listener = stack.enter_context(_listening())
        return [stack.enter_context(socket.create_connection(listener.getsockname())).fileno()]

    wrong = {
        "a file": of(lambda: open("/etc/hostname")),
        "a folder": of(lambda: contextlib.closing(_Folder("/"))),
        "an unbound socket": of(socket.socket),
        "a connected socket": connected,
        "a datagram socket": of(lambda: socket.socket(type=socket.SOCK_DGRAM)),
        "a unix listener": of(lambda: _listening(socket.AF_UNIX, f"\0pdk-{os.getpid()}-{os.urandom(4).hex()}")),
        "an IPv6 listener": of(lambda: _listening(socket.AF_INET6, ("::1", 0))),
        "a listener for all": of(lambda: _listening(at=("0.0.0.0", 0))),
        "another loopback": of(lambda: _listening(at=("127.0.0.2", 0))),
        "two listeners": lambda stack: [stack.enter_context(_listening()).fileno() for _ in range(2)],
        "a hundred": lambda stack: [stack.enter_context(_listening()).fileno()] * 100,
        "nothing": lambda _: [],
    }
    with contextlib.suppress(OSError):
        _listening(protocol=262).close()  # MPTCP
        wrong["a listener of another protocol"] = of(lambda: _listening(protocol=262))
    return wrong


class _Folder:
    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_PATH)

    def __enter__(self) -> "_Folder":
        return self

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)


@pytest.mark.parametrize("what", list(_wrong()))
def test_nothing_but_one_listener_is_taken(what: str) -> None:
    with contextlib.ExitStack() as stack:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.enter_context(ours)
        stack.enter_context(theirs)
        fds = _wrong()[what](stack)
        socket.send_fds(theirs, [b"listeners"], fds)
        before = count_descriptors()
        place = ("gateway", "127.0.0.1", _port_of(fds))
        listeners, problem = receive_listeners(ours, [place])
        assert listeners == {}
        assert problem
        assert count_descriptors() == before


def _port_of(fds: list[int]) -> int:
    """The port that the first of these has, so that nothing but its kind is wrong."""
    with contextlib.suppress(OSError, IndexError, TypeError), socket.socket(fileno=os.dup(fds[0])) as first:
        return int(first.getsockname()[1])
    return 1


def test_one_wrong_listener_spoils_all() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, _listening() as mine, _listening() as other, _listening(at=("127.77.0.1", 0)) as third:
        socket.send_fds(theirs, [b"listeners"], [mine.fileno(), other.fileno(), third.fileno()])
        before = count_descriptors()
        places = [("a", *mine.getsockname()), ("b", *other.getsockname()), ("c", "127.77.0.2", third.getsockname()[1])]
        listeners, problem = receive_listeners(ours, places)
        assert listeners == {}
        assert problem == f"c: not at 127.77.0.2:{third.getsockname()[1]}"
        assert count_descriptors() == before


def test_listeners_are_taken_by_name_and_what_they_accept_is_bounded() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, _listening() as mine, _listening(at=("127.77.0.3", 0)) as other:
        socket.send_fds(theirs, [b"listeners"], [mine.fileno(), other.fileno()])
        places = [("gateway", *mine.getsockname()), ("db:5432", *other.getsockname())]
        listeners, problem = receive_listeners(ours, places)
        assert problem is None
        assert [listener.getsockname() for listener in listeners.values()] == [place[1:] for place in places]
        for listener in listeners.values():
            with listener:
                assert not listener.get_inheritable()
                with socket.create_connection(listener.getsockname()):
                    listener.setblocking(True)
                    with listener.accept()[0] as accepted:
                        for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
                            assert accepted.getsockopt(socket.SOL_SOCKET, option) <= 512 * 1024


async def test_what_comes_after_the_fence_is_never_taken() -> None:
    listeners = SandboxListeners()
    listeners.receive_sockets()
    with _listening() as mine, pytest.raises(OSError):
        socket.send_fds(listeners.maker_end, [b"listeners"], [mine.fileno()])
    async with listeners.serve_connections(_saying("x"), lambda: None):
        await asyncio.sleep(0.05)
    listeners.close()


async def test_a_sandbox_that_sends_something_else_is_lost(code) -> None:
    """Only one that is broken could: it is trusted code until then. Its run is nobody's success."""
    base = BubblewrapSandbox()
    tree = await base.start_tree(_program(code, "import time\ntime.sleep(20)\ndef handle(p): return 1\n"))
    assert tree._listeners is not None
    tree._listeners.places = (("gateway", "127.0.0.1", 1),)
    base.assign_program(tree, _program(code), "run")
    with pytest.raises(SandboxLost, match="no listeners"):
        async with tree.serve_network(_saying("x")):
            request = TreeRequest(data=encode_request(b"{}", b"{}"), on_output=ignore_output)
            await tree.run(request, 15)
    await tree.kill_and_wait()


# the filter


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter_lets_through_tcp_and_no_more(machine: str) -> None:
    allow, eperm = 0x7FFF0000, 0x50001
    numbers = {
        "x86_64": {
            "socket": 41,
            "connect": 42,
            "bind": 49,
            "listen": 50,
            "setsockopt": 54,
            "socketpair": 53,
            "accept": 43,
        }
        | {"accept4": 288, "ioctl": 16, "sendmmsg": 307, "read": 0, "unshare": 272, "clone": 56, "setns": 308},
        "aarch64": {"socket": 198, "connect": 203, "bind": 200, "listen": 201, "setsockopt": 208, "socketpair": 199}
        | {
            "accept": 202,
            "accept4": 242,
            "ioctl": 29,
            "sendmmsg": 269,
            "read": 63,
            "unshare": 97,
            "clone": 220,
            "setns": 268,
        },
    }[machine]
    arch = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}[machine]
    filters = {gateway: seccomp.build_filter(machine, has_network=gateway) for gateway in (False, True)}

    def verdict(call: str, *arguments: int, gateway: bool = True) -> int:
        return run_filter(filters[gateway], arch, numbers[call], *arguments)

    flags = 0x80800  # SOCK_CLOEXEC, SOCK_NONBLOCK
    for kind in (1, 1 | flags):
        for protocol in (0, 6):
            assert verdict("socket", 2, kind, protocol) == allow
            assert verdict("socket", 2, kind, protocol, gateway=False) == eperm
    for call in ("connect", "bind", "listen"):
        assert verdict(call, 3) == allow
        assert verdict(call, 3, gateway=False) == eperm
    for family in (0, 1, 10, 16, 17, 40, 44, 2**31):
        assert verdict("socket", family, 1, 0) == eperm
    for kind in (2, 3, 4, 5, 10, 2 | flags):
        assert verdict("socket", 2, kind, 0) == eperm
    for protocol in (1, 17, 132, 262):
        assert verdict("socket", 2, 1, protocol) == eperm
    assert [verdict("socketpair", 1, kind) for kind in (1, 5, 2, 3, 1 | flags, 2 | flags)] == [
        allow,
        allow,
        eperm,
        eperm,
        allow,
        eperm,
    ]
    assert verdict("socketpair", 2, 1) == eperm
    assert verdict("setsockopt", 3, 6, 1) == allow
    assert verdict("setsockopt", 3, 1, 9) == allow
    for level, option in ((1, 26), (1, 50), (6, 31), (6, 13), (0, 64), (41, 1), (1, 1), (6, 9)):
        assert verdict("setsockopt", 3, level, option) == eperm
    assert verdict("setsockopt", 3, 6, 1, gateway=False) == eperm
    assert [verdict("ioctl", 3, request) for request in (0x541B, 0x88FF, 0x8900, 0x8912, 0x89FF, 0x8A00, 0x5412)] == [
        allow,
        allow,
        eperm,
        eperm,
        eperm,
        allow,
        eperm,
    ]
    assert verdict("ioctl", 3, 0x8912, gateway=False) == allow
    for call in ("accept", "accept4", "sendmmsg", "unshare", "setns"):
        assert verdict(call, 0x40000000) == eperm
    assert verdict("clone", 0x40000000) == eperm
    assert verdict("read") == allow


# the real library

LIBRARY = """
import asyncio
import openai

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
HELLO = [{"role": "user", "content": "hello"}]


def handle(p):
    client = openai.OpenAI()
    told = {"models": [one.id for one in client.models.list()]}
    whole = client.chat.completions.create(model="small", messages=HELLO)
    told["whole"] = whole.choices[0].message.content
    stream = client.chat.completions.create(
        model="small", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    told["pieces"] = [one.choices[0].delta.content for one in chunks if one.choices]
    told["tokens"] = chunks[-1].usage.total_tokens
    called = client.chat.completions.create(model="small", messages=HELLO, tools=[TOOL])
    told["arguments"] = called.choices[0].message.tool_calls[0].function.arguments
    back = [*HELLO, called.choices[0].message, {"role": "tool", "tool_call_id": "c1", "content": "3"}]
    told["after"] = client.chat.completions.create(model="small", messages=back, tools=[TOOL]).choices[0].message.content
    try:
        client.chat.completions.create(model="other", messages=HELLO)
    except openai.NotFoundError as error:
        told["refused"] = error.code
    told["together"] = asyncio.run(together())
    return told


async def together():
    async with openai.AsyncOpenAI() as client:
        async def one():
            words = ""
            async for chunk in await client.chat.completions.create(model="small", messages=HELLO, stream=True):
                words += chunk.choices[0].delta.content or ""
            return words

        return await asyncio.gather(*(one() for _ in range(60)))
"""


class Scripted:
    async def stream_answer(
        self, name: str, messages: tuple[ChatMessage, ...], tools: tuple[ToolSpec, ...], options: ModelOptions
    ) -> AsyncGenerator[ReplyPart, None]:
        usage = ModelUsage(prompt_tokens=2, completion_tokens=3)
        if tools and messages[-1].role == "user":
            yield ToolCallDelta(index=0, id="c1", name="add", arguments='{"a":1}')
            calls = (ModelToolCall(id="c1", name="add", arguments='{"a":1}'),)
            yield ModelReply(message=ChatMessage(role="assistant", tool_calls=calls), finish="tool_calls", usage=usage)
            return
        for word in ("Hello", " there"):
            await asyncio.sleep(0.002)
            yield TextDelta(word)
        yield ModelReply(message=ChatMessage(role="assistant", content="Hello there"), finish="stop", usage=usage)


async def test_the_real_library_unchanged(sandbox, code) -> None:
    program = _program(code, LIBRARY, environment=PACKAGES, memory_mb=512, timeout=40)
    for _ in range(2):
        outcome = await sandbox.run_program(
            program, b"{}", ignore_output, ProgramHooks(serve=serve_gateway(Scripted(), ["small", "large"]))
        )
        assert outcome.output is not None, outcome
        assert msgspec.json.decode(outcome.output) == {
            "models": ["small", "large"],
            "whole": "Hello there",
            "pieces": ["", "Hello", " there", None],
            "tokens": 5,
            "arguments": '{"a":1}',
            "after": "Hello there",
            "refused": "model_not_found",
            "together": ["Hello there"] * 60,
        }


async def test_a_server_that_is_stopped_while_it_begins_leaves_no_deaf_descriptor() -> None:
    loop, mine = asyncio.get_running_loop(), _listening()
    listeners = SandboxListeners([("gateway", *mine.getsockname())])
    socket.send_fds(listeners.maker_end, [b"x"], [mine.fileno()])
    listeners.receive_sockets()
    numbers: list[int] = []

    @contextlib.asynccontextmanager
    async def careless(handed: Mapping[str, socket.socket]) -> AsyncIterator[None]:
        # As a server does whose start is cancelled after it has begun to listen.
        loop.add_reader(handed[GATEWAY_LISTENER], lambda: None)
        numbers.append(handed[GATEWAY_LISTENER].fileno())
        await asyncio.Event().wait()
        yield

    async with listeners.serve_connections(careless, lambda: None):
        await _until(lambda: bool(numbers))
    listeners.close()
    mine.close()
    assert loop.remove_reader(numbers[0]) is False, "the loop still listens to a number that is closed"
