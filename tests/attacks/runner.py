"""Run attacks through the adapters that workers use, with all guards and with some removed.

Run as a separate process, so that it can be an ordinary user: `python -m tests.attacks.runner WAY`, where WAY is
`bubblewrap`, `bubblewrap-gateway`, `forkserver`, or one of them with `-warm`. It reads a JSON list of `[attack, [guards to
remove]]` and prints a JSON object per line. With `leftovers` after WAY: what one run leaves for the next. With `outlive
NAME GUARDS`: runs an agent that wants to keep running, and waits to be killed.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any, get_args

import structlog

from domain import egress
from domain.egress import EgressEntry
from domain.llms import (
    ChatMessage,
    ModelError,
    ModelErrorKind,
    ModelOptions,
    ModelReply,
    ReplyPart,
    TextDelta,
    ToolSpec,
)
from domain.ports import NetworkServer, ProgramHooks, ProgramNetwork, SandboxProgram
from domain.shared.errors import DomainError
from infra import http
from infra.http import Outbound
from infra.sandbox.bubblewrap import BubblewrapSandbox
from infra.sandbox.cgroups import ControlGroupFactory
from infra.sandbox.fence import Fence
from infra.sandbox.forkserver.client import ForkServerBackend
from infra.sandbox.warm_sandbox import WarmSandbox
from infra.wires.common import WireRefusal
from tests.attacks.leftovers import LEFTOVER_KINDS
from workers.run import gateway
from workers.run.egress import EgressAccess, EgressLimits, EgressRecord, TenantLookups, serve_egress
from workers.run.gateway import responder, router

WORKER_SECRET = "the-worker-s-secret"
PROVIDER_KEY = f"sk-pdk-{os.urandom(16).hex()}"
PROCESS_NAME = f"pdk-{os.getpid()}"
MEMORY_MB = 160


def _ignore(_: str, __: bytes) -> None:
    return None


def list_survivors() -> list[int]:
    """List processes of this host that have the name which the attacks give themselves."""
    # A run's answer is there a moment before the last of its processes is gone.
    for _ in range(100):
        if not (process_ids := _list_named_processes()):
            break
        time.sleep(0.01)
    return process_ids


def _list_named_processes() -> list[int]:
    process_ids = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "comm").read_text().strip() == PROCESS_NAME:
                process_ids.append(int(folder.name))
    return process_ids


class LeakyProvider:
    """Model calls with a key that is in every error message."""

    def __init__(self, answer: str) -> None:
        self._answer, self._key = answer, PROVIDER_KEY

    async def stream_answer(
        self, name: str, messages: tuple[ChatMessage, ...], tools: tuple[ToolSpec, ...], options: ModelOptions
    ) -> AsyncGenerator[ReplyPart, None]:
        _, _, kind = messages[-1].content.rpartition("fail ")
        message = f"Incorrect API key provided: {self._key}"
        if kind in get_args(ModelErrorKind):
            # What a provider says of a request is passed on, with the key struck out where it is known (infra.llm).
            raise ModelError(kind, message if kind != "refused" else "The prompt is too long.")
        if kind == "late":
            yield TextDelta("begun")
        if kind in ("late", "broken"):
            raise RuntimeError(message)
        if kind == "unavailable_here":
            raise DomainError("unavailable", message)
        yield TextDelta(self._answer)
        yield ModelReply(message=ChatMessage(role="assistant", content=self._answer), finish="stop", usage=None)


# Guards of the gateway itself: how each is taken away.
GATEWAY_GUARDS: dict[str, tuple[Any, str, Any]] = {
    "admission": (http, "find_address_problem", lambda _: None),
    "declaration": (EgressEntry, "is_matching", lambda *_: True),
    "manifest": (router.RequestRouter, "_check_model", lambda _, name: name),
    "words": (responder, "refuse_call", lambda error, _: WireRefusal(500, str(error))),
}


@contextlib.contextmanager
def _remove_guards(without: list[str]) -> Iterator[list[str]]:
    """Remove guards of the gateway; yields those of the fence, to be removed from it."""
    gateway_guards = [GATEWAY_GUARDS[name] for name in without if name in GATEWAY_GUARDS]
    originals = [(place, name, getattr(place, name)) for place, name, _ in gateway_guards]
    for place, name, replacement in gateway_guards:
        setattr(place, name, replacement)
    try:
        yield [name for name in without if name not in GATEWAY_GUARDS]
    finally:
        for place, name, original in originals:
            setattr(place, name, original)


def _create_sandbox(way: str, without: list[str]) -> WarmSandbox:
    fence = Fence(without=frozenset(without))
    server = ForkServerBackend(fence) if way.startswith("forkserver") else None
    return WarmSandbox(BubblewrapSandbox(fence), server, 512 if way.endswith("-warm") else 0)


async def _warm_up(sandbox: WarmSandbox, program: SandboxProgram, base: dict[str, Any]) -> None:
    """Wait until a slot of this very program is warm."""
    await sandbox.run_program(program, json.dumps({**base, "attack": "nothing"}).encode(), _ignore)
    async with asyncio.timeout(20):
        while not sandbox.counts.warm:
            await asyncio.sleep(0.01)


async def run_attack(way: str, name: str, without: list[str], code: Path, base: dict[str, Any]) -> dict[str, Any]:
    """Run one attack on one fence."""
    with _remove_guards(without) as fence_guards:
        sandbox = _create_sandbox(way, fence_guards)
        try:
            return await _run_in_sandbox(sandbox, way, name, without, code, base)
        finally:
            await sandbox.close()


async def _run_in_sandbox(
    sandbox: WarmSandbox, way: str, name: str, without: list[str], code: Path, base: dict[str, Any]
) -> dict[str, Any]:
    memory = {
        "fork_bomb": 1500,
        "thread_bomb": 1500,
        "inodes": 1000,
        "disk": 1000,
        "disk_of_work": 1000,
        "inodes_of_work": 1000,
        "inodes_of_an_ended_thread": 1000,
    }.get(name, MEMORY_MB)
    program = SandboxProgram(
        code=code,
        environment=None,
        entrypoint="agent:handle",
        timeout=3 if name == "stubborn" else 25,
        memory_mb=memory,
        network=_build_network(way, base),
    )
    serve = gateway.serve_gateway(LeakyProvider("mine"), ["small"]) if "-gateway" in way else None
    if "-egress" in way:
        serve = _serve_hosts(base)
    try:
        if way.endswith("-warm"):
            await _warm_up(sandbox, program, base)
        start = time.monotonic()
        with _run_competitor() if name == "processors" else contextlib.nullcontext() as competitor:
            async with (
                _run_second_gateway(sandbox, program, base)
                if name == "gateway_others"
                else contextlib.nullcontext(base) as payload
            ):
                outcome = await sandbox.run_program(
                    program, json.dumps({**payload, "attack": name}).encode(), _ignore, ProgramHooks(serve=serve)
                )
            left_to_others = _get_processor_seconds(competitor.pid) if competitor is not None else 0.0
    except DomainError as error:
        return {"attack": name, "without": without, "error_type": error.code, "error_message": error.detail}
    result = json.loads(outcome.output) if outcome.output else {"broke": False}
    if "used" in result:
        result["broke"], result["got"] = result["used"] > left_to_others, [result["used"], left_to_others]
    survivors = list_survivors()
    for pid in survivors:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return {
        "attack": name,
        "without": without,
        "broke": bool(result["broke"] or survivors),
        "groups": ControlGroupFactory().bounds_memory,
        "got": result.get("got", []) + survivors,
        "error_type": outcome.error_type,
        "error_message": outcome.error_message,
        "seconds": round(time.monotonic() - start, 2),
    }


def _parse_declared_entries(base: dict[str, Any]) -> tuple[EgressEntry, ...]:
    names = [base["declared"][0], *base["private"], "*.cloud.example"]
    return egress.parse_entries([f"{name}:{base['service']}" for name in names])


def _build_network(way: str, base: dict[str, Any]) -> ProgramNetwork | None:
    if "-egress" in way:
        return egress.build_network(_parse_declared_entries(base), has_gateway=False)
    return ProgramNetwork(gateway=True) if "-gateway" in way else None


def _serve_hosts(base: dict[str, Any]) -> NetworkServer:
    """Serve a declared host that is allowed, and names that lead where nothing may be reached."""
    asked: dict[str, int] = {}

    async def resolve(host: str, port: int) -> list[str]:
        asked[host] = asked.get(host, 0) + 1
        if host == "bound.anew.example" and asked[host] == 1:
            return ["192.0.2.1"]
        # With the guard gone, every name leads to the service of this host.
        return ["127.0.0.1"]

    outbound = Outbound((base["declared"][0],), resolve)
    access = EgressAccess(
        lookups=TenantLookups(outbound), limits=EgressLimits(connect_seconds=3), on_closed=lambda _: None
    )
    return serve_egress(access, "acme", _parse_declared_entries(base), EgressRecord(lambda _: None, 100))


@contextlib.contextmanager
def _run_service() -> Iterator[int]:
    """Run a service on this host that answers every client with a word; yields its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client, contextlib.suppress(OSError):
                    client.settimeout(2)
                    client.recv(100)
                    client.sendall(b"outside")

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


PROCESSOR = min(os.sched_getaffinity(0))


@contextlib.contextmanager
def _run_competitor() -> Iterator[subprocess.Popen[bytes]]:
    """Run one process of the host in its own session, which wants all of the processor that the attack runs on."""
    spin = f"import os; os.sched_setaffinity(0, {{{PROCESSOR}}})\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", spin], start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _get_processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.asynccontextmanager
async def _run_second_gateway(
    sandbox: WarmSandbox, program: SandboxProgram, base: dict[str, Any]
) -> AsyncGenerator[dict[str, Any], None]:
    """Keep another run with its own gateway; yields the payload with that gateway's port."""
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    payload = json.dumps({**base, "attack": "gateway_wait"}).encode()
    serve = gateway.serve_gateway(LeakyProvider("another's"), ["small"])
    running = asyncio.create_task(
        sandbox.run_program(program, payload, lambda _, data: port.set_result(int(data)), ProgramHooks(serve=serve))
    )
    try:
        async with asyncio.timeout(10):
            yield {**base, "other": await port}
    finally:
        running.cancel()
        await asyncio.wait([running])


async def run_leftovers(way: str, folder: Path) -> None:
    """Leave every kind of thing, and look for it in the same run and in the next ones of its version."""
    source = (Path(__file__).parent / "leftovers.py").read_bytes()
    code, open_code = folder / "code", folder / "open"
    for code_folder in (code, open_code):
        code_folder.mkdir()
        (code_folder / "agent.py").write_bytes(source)
        # Any user may write there: the fence must protect the code.
        code_folder.chmod(0o777)
    whole_sandbox, open_sandbox = _create_sandbox(way, []), _create_sandbox(way, ["read_only"])
    try:
        for kind in LEFTOVER_KINDS:
            control = (open_sandbox, open_code) if kind in ("file_in_code", "file_in_cwd") else (whole_sandbox, code)
            report = {"kind": kind, "together": await _leave_and_look(*control, kind, ["leave", "look"]), "apart": []}
            for do in (["leave"], ["look"], ["leave"], ["look"], ["look"]):
                async with asyncio.timeout(20):
                    while not whole_sandbox.counts.warm:
                        await asyncio.sleep(0.005)
                report["apart"].append(await _leave_and_look(whole_sandbox, code, kind, do))
            print(json.dumps(report), flush=True)
    finally:
        await whole_sandbox.close()
        await open_sandbox.close()


async def _leave_and_look(sandbox: WarmSandbox, code: Path, kind: str, do: list[str]) -> dict[str, Any]:
    program = SandboxProgram(code=code, environment=None, entrypoint="agent:handle", timeout=10, memory_mb=MEMORY_MB)
    payload = {"kind": kind, "do": do, "submitted": time.monotonic()}
    outcome = await sandbox.run_program(program, json.dumps(payload).encode(), _ignore)
    assert outcome.output is not None, outcome
    return json.loads(outcome.output)


async def main() -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    if len(sys.argv) == 2:
        await run_attacks()
        return
    with tempfile.TemporaryDirectory(prefix="paddock-attack-", dir="/var/tmp") as folder:
        os.chmod(folder, 0o755)
        if sys.argv[2] == "leftovers":
            await run_leftovers(sys.argv[1], Path(folder))
        else:
            await run_outliving_agent(sys.argv[1], Path(folder), *sys.argv[3:])


async def run_outliving_agent(way: str, code: Path, name: str, guards: str) -> None:
    (code / "agent.py").write_bytes((Path(__file__).parent / "agent.py").read_bytes())
    program = SandboxProgram(code=code, environment=None, entrypoint="agent:outlive", timeout=50, memory_mb=MEMORY_MB)
    sandbox = _create_sandbox(way, guards.split(",") if guards else [])
    await sandbox.run_program(
        program, json.dumps({"name": name}).encode(), lambda _, data: print(data.decode(), flush=True)
    )


async def run_attacks() -> None:
    """Run the plan on standard input."""
    os.environ["PADDOCK_SECRET_KEY"], os.environ["PADDOCK_PROVIDER_KEY"] = WORKER_SECRET, PROVIDER_KEY
    with (
        tempfile.TemporaryDirectory(prefix="paddock-attack-", dir="/var/tmp") as folder,
        socket.socket() as tcp,
        contextlib.ExitStack() as stack,
    ):
        os.chmod(folder, 0o755)
        versions, marker, data = Path(folder) / "versions", Path(folder) / "marker", Path(folder) / "data"
        code = versions / "mine"
        for folder_in_test in (versions, code, versions / "theirs", data):
            folder_in_test.mkdir()
        (data / "file").write_text("another's")
        marker.write_text("read me if you can")
        (code / "agent.py").write_bytes((Path(__file__).parent / "agent.py").read_bytes())
        # Named like the module that sets the limits, which must not be replaced by this one.
        (code / "resource.py").write_text("def __getattr__(name):\n    return lambda *a: None\n")
        (code / "owner_only").write_text("for the owner alone")
        (code / "owner_only").chmod(0o600)
        tcp.bind(("0.0.0.0", 0))
        tcp.listen(64)
        abstract = socket.socket(socket.AF_UNIX)
        abstract.bind("\0" + PROCESS_NAME)
        abstract.listen(64)
        sockets = []
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            for place in (f"{code}/door-{int(kind)}", f"\0{PROCESS_NAME}-{int(kind)}"):
                sockets.append(socket.socket(socket.AF_UNIX, kind))
                sockets[-1].bind(place)
                if kind == socket.SOCK_STREAM:
                    sockets[-1].listen(64)
            (code / f"door-{int(kind)}").chmod(0o777)
        service = stack.enter_context(_run_service())
        inherited = os.open(marker, os.O_RDONLY)
        os.set_inheritable(inherited, True)
        base = {
            "marker": str(marker),
            "data": str(data),
            "code": str(code),
            "secret": WORKER_SECRET,
            "port": tcp.getsockname()[1],
            "address": "127.0.0.2",
            "abstract": PROCESS_NAME,
            "runner": os.getpid(),
            "ipc": os.readlink("/proc/self/ns/ipc"),
            "name": PROCESS_NAME,
            "much": 400,
            "service": service,
            "declared": ["open.example", service],
            "private": ["this.example", "metadata.example", "bound.anew.example"],
            "processor": PROCESSOR,
            "key": hashlib.sha256(PROVIDER_KEY.encode()).hexdigest(),
            "kinds": [*get_args(ModelErrorKind), "late", "broken", "unavailable_here"],
        }
        for name, without in json.load(sys.stdin):
            print(json.dumps(await run_attack(sys.argv[1], name, without, code, base)), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
