"""Test the contract of sandboxes for programs with a gateway on every backend, and what a worker accepts as a listener."""

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
from infra.sandbox.guest_protocol import encode_request
from infra.sandbox.listener import SandboxListeners, receive_listeners
from infra.sandbox.tree_request import TreeRequest
from infra.sandbox.warm_sandbox import WarmSandbox
from tests.support.gateway_client import wait_until
from tests.support.sandbox_runs import (
    SANDBOX_BACKENDS,
    count_descriptors,
    ignore_output,
    measure_idle,
    open_sandbox,
    run_filter,
    wait_until_released,
)
from workers.run.gateway import serve_gateway

PACKAGES = Path(openai.__file__).parents[1]
MODELS_PROGRAM = """
import os, urllib.request
def handle(p):
    with urllib.request.urlopen(os.environ["OPENAI_BASE_URL"] + "/models", timeout=3) as answer:
        return answer.read().decode()
"""


@pytest.fixture(params=SANDBOX_BACKENDS)
async def sandbox(request: pytest.FixtureRequest) -> AsyncIterator[WarmSandbox]:
    async with open_sandbox(request.param, warm_mb=512) as sandbox:
        yield sandbox


@pytest.fixture
def code_folder(readable_folder: Path) -> Path:
    return readable_folder


def _build_program(code_folder: Path, source: str = MODELS_PROGRAM, **more: Any) -> SandboxProgram:
    (code_folder / "agent.py").write_text(source)
    fields = {"code": code_folder, "environment": None, "entrypoint": "agent:handle", "timeout": 10, "memory_mb": 128}
    return SandboxProgram(**{**fields, "network": ProgramNetwork(gateway=True), **more})


def _build_gateway(word: str) -> NetworkServer:
    """Return a gateway that answers every request with a word."""

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


async def test_each_run_reaches_its_own_gateway(sandbox, code_folder) -> None:
    program = _build_program(code_folder)
    for number in range(3):
        answers = await asyncio.gather(
            *(
                sandbox.run_program(
                    program, b"{}", ignore_output, ProgramHooks(serve=_build_gateway(f"{number}-{answer_number}"))
                )
                for answer_number in range(4)
            )
        )
        assert [msgspec.json.decode(outcome.output or b"") for outcome in answers] == [
            f"{number}-{answer_number}" for answer_number in range(4)
        ]


async def test_guest_has_an_address_a_placeholder_key_and_no_socket(sandbox, code_folder) -> None:
    source = (
        "import os\n"
        "def handle(p):\n"
        "    links = [f'/proc/self/fd/{fd}' for fd in os.listdir('/proc/self/fd')]\n"
        "    held = [os.readlink(link) for link in links if os.path.lexists(link)]\n"
        "    return [{k: v for k, v in os.environ.items() if 'OPENAI' in k or 'ANTHROPIC' in k}, [one for one in held if 'socket' in one]]\n"
    )
    outcome = await sandbox.run_program(
        _build_program(code_folder, source), b"{}", ignore_output, ProgramHooks(serve=_build_gateway("x"))
    )
    variables, sockets = msgspec.json.decode(outcome.output or b"")
    url = variables["OPENAI_BASE_URL"]
    assert url.startswith("http://127.0.0.1:")
    assert url.endswith("/v1")
    assert variables == {
        "OPENAI_BASE_URL": url,
        "OPENAI_API_BASE": url,
        "OPENAI_API_KEY": "paddock",
        "ANTHROPIC_BASE_URL": url.removesuffix("/v1"),
        "ANTHROPIC_API_KEY": "paddock",
    }
    assert sockets == []
    outcome = await sandbox.run_program(_build_program(code_folder, source, network=None), b"{}", ignore_output)
    assert outcome.output == b"[{},[]]"


async def test_programs_without_a_gateway_have_no_sockets(sandbox, code_folder) -> None:
    source = "import socket\ndef handle(p):\n    socket.socket()\n"
    outcome = await sandbox.run_program(
        _build_program(code_folder, source, network=None), b"{}", ignore_output, ProgramHooks(serve=_build_gateway("x"))
    )
    assert outcome.error_type == "PermissionError"
    assert (
        await sandbox.run_program(
            _build_program(code_folder, source), b"{}", ignore_output, ProgramHooks(serve=_build_gateway("x"))
        )
    ).output == b"null"


async def test_connections_without_a_gateway_are_refused_at_once(sandbox, code_folder) -> None:
    outcome = await sandbox.run_program(_build_program(code_folder, timeout=30), b"{}", ignore_output)
    # Reset if the connection was made just before the listener was closed.
    assert (outcome.error_type, "refused" in (outcome.error_message or "")) in (
        ("URLError", True),
        ("ConnectionResetError", False),
    )
    outcome = await sandbox.check_entrypoint(
        _build_program(code_folder, MODELS_PROGRAM + "handle(0)\n", timeout=30), ignore_output
    )
    assert outcome.error_type == "URLError"
    assert (await sandbox.check_entrypoint(_build_program(code_folder), ignore_output)).error_type is None


async def test_calls_while_importing_are_answered_in_a_run(sandbox, code_folder) -> None:
    program = _build_program(
        code_folder,
        MODELS_PROGRAM + "first = handle(0)\nagain = handle\ndef handle(p): return [first, again(p)]\n",
        timeout=5,
    )
    for word in ("a", "b"):
        assert (
            await sandbox.run_program(program, b"{}", ignore_output, ProgramHooks(serve=_build_gateway(word)))
        ).output == f'["{word}","{word}"]'.encode()


async def test_runs_leave_no_descriptors_or_tasks(code_folder) -> None:
    sandbox = WarmSandbox(BubblewrapSandbox(), None, 0)
    program = _build_program(code_folder)
    idle_counts = await measure_idle(sandbox, program)
    for _ in range(15):
        assert (
            await sandbox.run_program(program, b"{}", ignore_output, ProgramHooks(serve=_build_gateway("x")))
        ).output == b'"x"'
    await wait_until_released(*idle_counts)
    broken = WarmSandbox(BubblewrapSandbox(bwrap="/usr/bin/false"), None, 0)
    for _ in range(3):
        with contextlib.suppress(Exception):
            await broken.run_program(program, b"{}", ignore_output, ProgramHooks(serve=_build_gateway("x")))
    await wait_until_released(*idle_counts)


async def test_unused_slots_leave_no_descriptors_or_tasks(code_folder) -> None:
    sandbox = WarmSandbox(BubblewrapSandbox(), None, 512)
    program = _build_program(code_folder)
    idle_counts = await measure_idle(WarmSandbox(BubblewrapSandbox(), None, 0), program)
    await sandbox.run_program(program, b"{}", ignore_output, ProgramHooks(serve=_build_gateway("x")))
    await wait_until(lambda: sandbox.counts.warm > 0 and sandbox.counts.making == 0, 20)
    assert count_descriptors() > idle_counts[0]
    await sandbox.close()
    await wait_until_released(*idle_counts)


@pytest.mark.parametrize("delay", [0.0, 0.003, 0.01, 0.02, 0.05, 0.1, None])
async def test_cancel_at_any_moment_ends_the_gateway(code_folder, delay: float | None) -> None:
    sandbox = WarmSandbox(BubblewrapSandbox(), None, 0)
    idle_counts = await measure_idle(sandbox, _build_program(code_folder))
    program = _build_program(code_folder, "import time\ndef handle(p): time.sleep(30)\n")
    exits, entered = [], asyncio.Event()

    @contextlib.asynccontextmanager
    async def serve(_: Mapping[str, socket.socket]) -> AsyncIterator[None]:
        entered.set()
        try:
            yield
        finally:
            await asyncio.sleep(0.05)
            exits.append(1)

    running = asyncio.create_task(sandbox.run_program(program, b"{}", ignore_output, ProgramHooks(serve=serve)))
    # None means: once the gateway is serving, however long that takes here.
    await (entered.wait() if delay is None else asyncio.sleep(delay))
    for _ in range(3):
        running.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await running
    assert exits == ([1] if entered.is_set() else [])
    await wait_until_released(*idle_counts)


async def test_failing_gateway_ends_the_run_with_its_error(sandbox, code_folder) -> None:
    @contextlib.asynccontextmanager
    async def serve(_: Mapping[str, socket.socket]) -> AsyncIterator[None]:
        raise RuntimeError("no gateway today")
        yield

    program = _build_program(code_folder, "import time\ndef handle(p): time.sleep(30)\n", timeout=20)
    async with asyncio.timeout(10):
        with pytest.raises(RuntimeError, match="today"):
            await sandbox.run_program(program, b"{}", ignore_output, ProgramHooks(serve=serve))


async def test_run_waits_for_the_end_of_the_gateway(sandbox, code_folder) -> None:
    """Settle model calls before the run ends."""
    was_open = []

    @contextlib.asynccontextmanager
    async def close_slowly(listeners: Mapping[str, socket.socket]) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await asyncio.sleep(0.1)
            was_open.append(listeners[GATEWAY_LISTENER].fileno() >= 0)

    await sandbox.run_program(
        _build_program(code_folder, "def handle(p): return 1\n"), b"{}", ignore_output, ProgramHooks(serve=close_slowly)
    )
    # The gateway still owned the listener: its descriptor cannot have been reused meanwhile.
    assert was_open == [True]


# What the worker receives as a listener.


def _create_listener(kind: int = socket.AF_INET, at: Any = ("127.0.0.1", 0), protocol: int = 0) -> socket.socket:
    listener = socket.socket(kind, socket.SOCK_STREAM, protocol)
    listener.bind(at)
    listener.listen()
    return listener


def _list_invalid_handovers() -> dict[str, Callable[[contextlib.ExitStack], list[int]]]:
    def wrap(make: Callable[[], Any]) -> Callable[[contextlib.ExitStack], list[int]]:
        return lambda stack: [stack.enter_context(make()).fileno()]

    def connect(stack: contextlib.ExitStack) -> list[int]:
        listener = stack.enter_context(_create_listener())
        return [stack.enter_context(socket.create_connection(listener.getsockname())).fileno()]

    handovers = {
        "a file": wrap(lambda: open("/etc/hostname")),
        "a folder": wrap(lambda: contextlib.closing(_PathDescriptor("/"))),
        "an unbound socket": wrap(socket.socket),
        "a connected socket": connect,
        "a datagram socket": wrap(lambda: socket.socket(type=socket.SOCK_DGRAM)),
        "a unix listener": wrap(lambda: _create_listener(socket.AF_UNIX, f"\0pdk-{os.getpid()}-{os.urandom(4).hex()}")),
        "an IPv6 listener": wrap(lambda: _create_listener(socket.AF_INET6, ("::1", 0))),
        "a listener for all": wrap(lambda: _create_listener(at=("0.0.0.0", 0))),
        "another loopback": wrap(lambda: _create_listener(at=("127.0.0.2", 0))),
        "two listeners": lambda stack: [stack.enter_context(_create_listener()).fileno() for _ in range(2)],
        "a hundred": lambda stack: [stack.enter_context(_create_listener()).fileno()] * 100,
        "nothing": lambda _: [],
    }
    with contextlib.suppress(OSError):
        _create_listener(protocol=262).close()  # MPTCP
        handovers["a listener of another protocol"] = wrap(lambda: _create_listener(protocol=262))
    return handovers


class _PathDescriptor:
    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_PATH)

    def __enter__(self) -> "_PathDescriptor":
        return self

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)


@pytest.mark.parametrize("handover", list(_list_invalid_handovers()))
def test_only_a_single_listener_is_accepted(handover: str) -> None:
    with contextlib.ExitStack() as stack:
        worker_end, guest_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.enter_context(worker_end)
        stack.enter_context(guest_end)
        fds = _list_invalid_handovers()[handover](stack)
        socket.send_fds(guest_end, [b"listeners"], fds)
        place = ("gateway", "127.0.0.1", _read_port(fds))
        descriptors_before = count_descriptors()
        listeners, problem = receive_listeners(worker_end, [place])
        assert listeners == {}
        assert problem
        assert count_descriptors() == descriptors_before


def _read_port(fds: list[int]) -> int:
    """Return the port of the first of these, so that nothing but its kind is wrong."""
    with contextlib.suppress(OSError, IndexError, TypeError), socket.socket(fileno=fds[0]) as first:
        try:
            return int(first.getsockname()[1])
        finally:
            first.detach()
    return 1


def test_one_invalid_listener_invalidates_all() -> None:
    worker_end, guest_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with (
        worker_end,
        guest_end,
        _create_listener() as first,
        _create_listener() as second,
        _create_listener(at=("127.77.0.1", 0)) as third,
    ):
        socket.send_fds(guest_end, [b"listeners"], [first.fileno(), second.fileno(), third.fileno()])
        descriptors_before = count_descriptors()
        places = [
            ("a", *first.getsockname()),
            ("b", *second.getsockname()),
            ("c", "127.77.0.2", third.getsockname()[1]),
        ]
        listeners, problem = receive_listeners(worker_end, places)
        assert listeners == {}
        assert problem == f"c: not at 127.77.0.2:{third.getsockname()[1]}"
        assert count_descriptors() == descriptors_before


def test_listeners_are_received_by_name_and_have_limited_buffers() -> None:
    worker_end, guest_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with worker_end, guest_end, _create_listener() as first, _create_listener(at=("127.77.0.3", 0)) as second:
        socket.send_fds(guest_end, [b"listeners"], [first.fileno(), second.fileno()])
        places = [("gateway", *first.getsockname()), ("db:5432", *second.getsockname())]
        listeners, problem = receive_listeners(worker_end, places)
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


async def test_handover_after_the_fence_is_ignored() -> None:
    listeners = SandboxListeners()
    listeners.receive_sockets()
    with _create_listener() as late_listener, pytest.raises(OSError):
        socket.send_fds(listeners.maker_end, [b"listeners"], [late_listener.fileno()])
    async with listeners.serve_connections(_build_gateway("x"), lambda: None):
        await asyncio.sleep(0.05)
    listeners.close()


async def test_guest_that_hands_over_something_else_is_lost(code_folder) -> None:
    """Fail the run of a sandbox that is broken; its code is trusted until the fence."""
    base = BubblewrapSandbox()
    tree = await base.start_tree(_build_program(code_folder, "import time\ntime.sleep(20)\ndef handle(p): return 1\n"))
    assert tree._listeners is not None
    tree._listeners.places = (("gateway", "127.0.0.1", 1),)
    base.assign_program(tree, _build_program(code_folder), "run")
    with pytest.raises(SandboxLost, match="no listeners"):
        async with tree.serve_network(_build_gateway("x")):
            request = TreeRequest(data=encode_request(b"{}", b"{}"), on_output=ignore_output)
            await tree.run(request, 15)
    await tree.kill_and_wait()


# The system call filter.


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_filter_allows_only_tcp(machine: str) -> None:
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


# The client library.

CLIENT_PROGRAM = """
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


class ScriptedModel:
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


async def test_unchanged_client_library_works_in_the_sandbox(sandbox, code_folder) -> None:
    program = _build_program(code_folder, CLIENT_PROGRAM, environment=PACKAGES, memory_mb=512, timeout=40)
    for _ in range(2):
        outcome = await sandbox.run_program(
            program, b"{}", ignore_output, ProgramHooks(serve=serve_gateway(ScriptedModel(), ["small", "large"]))
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


async def test_server_stopped_while_starting_leaves_no_watched_descriptor() -> None:
    loop, gateway_socket = asyncio.get_running_loop(), _create_listener()
    listeners = SandboxListeners([("gateway", *gateway_socket.getsockname())])
    socket.send_fds(listeners.maker_end, [b"x"], [gateway_socket.fileno()])
    listeners.receive_sockets()
    numbers: list[int] = []

    @contextlib.asynccontextmanager
    async def serve_carelessly(handed_sockets: Mapping[str, socket.socket]) -> AsyncIterator[None]:
        # Like a server whose start is cancelled after it has begun to listen.
        loop.add_reader(handed_sockets[GATEWAY_LISTENER], lambda: None)
        numbers.append(handed_sockets[GATEWAY_LISTENER].fileno())
        await asyncio.Event().wait()
        yield

    async with listeners.serve_connections(serve_carelessly, lambda: None):
        await wait_until(lambda: bool(numbers), 20)
    listeners.close()
    gateway_socket.close()
    assert loop.remove_reader(numbers[0]) is False, "the loop still watches a closed descriptor"
