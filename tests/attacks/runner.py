"""Runs attacks through the adapters that workers use, with all guards and with some taken away.

A process of its own, so that it can be an ordinary user: `python -m tests.attacks.runner WAY`, where WAY is
`bubblewrap`, `bubblewrap-gateway`, `forkserver`, or one of them with `-warm`. Reads a JSON list of `[attack, [guards to take
away]]`, prints a JSON object per line. With `remains` behind WAY: what one run leaves for the next. With `outlive
NAME GUARDS`: runs an agent that wants to go on, and waits to be killed.
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
from tests.attacks.remains import KINDS
from workers.run import gateway
from workers.run.egress import EgressAccess, EgressLimits, EgressRecord, TenantLookups, serve_egress
from workers.run.gateway import responder, router
from workers.run.wire import GatewayRefusal

SECRET = "the-worker-s-secret"
KEY = f"sk-pdk-{os.urandom(16).hex()}"
NAME = f"pdk-{os.getpid()}"
MEMORY = 160


def _ignore(_: str, __: bytes) -> None:
    return None


def survivors() -> list[int]:
    """Processes of this host that carry the name which the attacks give themselves."""
    # A run's answer is there a moment before the last of its processes is gone.
    for _ in range(100):
        if not (found := _named()):
            break
        time.sleep(0.01)
    return found


def _named() -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "comm").read_text().strip() == NAME:
                found.append(int(folder.name))
    return found


class Provider:
    """Calls of models with a key, which is in everything that goes wrong with them."""

    def __init__(self, says: str) -> None:
        self._says, self._key = says, KEY

    async def stream_answer(
        self, name: str, messages: tuple[ChatMessage, ...], tools: tuple[ToolSpec, ...], options: ModelOptions
    ) -> AsyncGenerator[ReplyPart, None]:
        _, _, kind = messages[-1].content.rpartition("fail ")
        told = f"Incorrect API key provided: {self._key}"
        if kind in get_args(ModelErrorKind):
            # What a provider says of a request is passed on, with the key struck out where it is known (infra.llm).
            raise ModelError(kind, told if kind != "refused" else "The prompt is too long.")
        if kind == "late":
            yield TextDelta("begun")
        if kind in ("late", "broken"):
            raise RuntimeError(told)
        if kind == "unavailable_here":
            raise DomainError("unavailable", told)
        yield TextDelta(self._says)
        yield ModelReply(message=ChatMessage(role="assistant", content=self._says), finish="stop", usage=None)


# Guards of the gateway itself: how each is taken away.
GATEWAY_GUARDS: dict[str, tuple[Any, str, Any]] = {
    "admission": (http, "find_address_problem", lambda _: None),
    "declaration": (EgressEntry, "is_matching", lambda *_: True),
    "manifest": (router.RequestRouter, "_check_model", lambda _, name: name),
    "words": (responder, "refuse_call", lambda error, _: GatewayRefusal(500, str(error))),
}


@contextlib.contextmanager
def _taken_away(without: list[str]) -> Iterator[list[str]]:
    """Without those of the gateway; the fence's, to be taken away from it."""
    own = [GATEWAY_GUARDS[name] for name in without if name in GATEWAY_GUARDS]
    before = [(place, name, getattr(place, name)) for place, name, _ in own]
    for place, name, instead in own:
        setattr(place, name, instead)
    try:
        yield [name for name in without if name not in GATEWAY_GUARDS]
    finally:
        for place, name, was in before:
            setattr(place, name, was)


def _sandbox(way: str, without: list[str]) -> WarmSandbox:
    fence = Fence(without=frozenset(without))
    server = ForkServerBackend(fence) if way.startswith("forkserver") else None
    return WarmSandbox(BubblewrapSandbox(fence), server, 512 if way.endswith("-warm") else 0)


async def _warmed(sandbox: WarmSandbox, program: SandboxProgram, base: dict[str, Any]) -> None:
    """A slot of this very program, ready and waiting."""
    await sandbox.run_program(program, json.dumps({**base, "attack": "nothing"}).encode(), _ignore)
    async with asyncio.timeout(20):
        while not sandbox.counts.warm:
            await asyncio.sleep(0.01)


async def attack(way: str, name: str, without: list[str], code: Path, base: dict[str, Any]) -> dict[str, Any]:
    """One attack on one fence."""
    with _taken_away(without) as of_fence:
        sandbox = _sandbox(way, of_fence)
        try:
            return await _attack(sandbox, way, name, without, code, base)
        finally:
            await sandbox.close()


async def _attack(
    sandbox: WarmSandbox, way: str, name: str, without: list[str], code: Path, base: dict[str, Any]
) -> dict[str, Any]:
    memory = {
        "fork_bomb": 1500,
        "thread_bomb": 1500,
        "inodes": 1000,
        "disk": 1000,
        "inodes_of_an_ended_thread": 1000,
    }.get(name, MEMORY)
    program = SandboxProgram(
        code=code,
        environment=None,
        entrypoint="agent:handle",
        timeout=3 if name == "stubborn" else 25,
        memory_mb=memory,
        network=_network(way, base),
    )
    serve = gateway.serve_gateway(Provider("mine"), ["small"]) if "-gateway" in way else None
    if "-egress" in way:
        serve = _serve_hosts(base)
    try:
        if way.endswith("-warm"):
            await _warmed(sandbox, program, base)
        began = time.monotonic()
        with _neighbour() if name == "processors" else contextlib.nullcontext() as neighbour:
            async with (
                _beside(sandbox, program, base) if name == "gateway_others" else contextlib.nullcontext(base) as told
            ):
                outcome = await sandbox.run_program(
                    program, json.dumps({**told, "attack": name}).encode(), _ignore, ProgramHooks(serve=serve)
                )
            left_to_others = _processor_seconds(neighbour.pid) if neighbour is not None else 0.0
    except DomainError as error:
        return {"attack": name, "without": without, "error_type": error.code, "error_message": error.detail}
    told = json.loads(outcome.output) if outcome.output else {"broke": False}
    if "used" in told:
        told["broke"], told["got"] = told["used"] > left_to_others, [told["used"], left_to_others]
    left = survivors()
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return {
        "attack": name,
        "without": without,
        "broke": bool(told["broke"] or left),
        "groups": ControlGroupFactory().bounds_memory,
        "got": told.get("got", []) + left,
        "error_type": outcome.error_type,
        "error_message": outcome.error_message,
        "seconds": round(time.monotonic() - began, 2),
    }


def _declared(base: dict[str, Any]) -> tuple[EgressEntry, ...]:
    names = [base["declared"][0], *base["private"], "*.cloud.example"]
    return egress.parse_entries([f"{name}:{base['service']}" for name in names])


def _network(way: str, base: dict[str, Any]) -> ProgramNetwork | None:
    if "-egress" in way:
        return egress.build_network(_declared(base), has_gateway=False)
    return ProgramNetwork(gateway=True) if "-gateway" in way else None


def _serve_hosts(base: dict[str, Any]) -> NetworkServer:
    """Serves a declared host that is allowed, and names that lead where nothing may be reached."""
    asked: dict[str, int] = {}

    async def resolve(host: str, port: int) -> list[str]:
        asked[host] = asked.get(host, 0) + 1
        if host == "bound.anew.example" and asked[host] == 1:
            return ["192.0.2.1"]
        # With the guard gone, whatever a name leads to is the service of this host.
        return ["127.0.0.1"]

    outbound = Outbound((base["declared"][0],), resolve)
    access = EgressAccess(
        lookups=TenantLookups(outbound), limits=EgressLimits(connect_seconds=3), on_closed=lambda _: None
    )
    return serve_egress(access, "acme", _declared(base), EgressRecord(lambda _: None, 100))


@contextlib.contextmanager
def _service() -> Iterator[int]:
    """A service on this host that answers everybody with a word; its port."""
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
def _neighbour() -> Iterator[subprocess.Popen[bytes]]:
    """One process of the host in a session of its own, which wants all of the processor that the attack runs on."""
    spin = f"import os; os.sched_setaffinity(0, {{{PROCESSOR}}})\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", spin], start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.asynccontextmanager
async def _beside(
    sandbox: WarmSandbox, program: SandboxProgram, base: dict[str, Any]
) -> AsyncGenerator[dict[str, Any], None]:
    """While another run has a gateway of its own."""
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    payload = json.dumps({**base, "attack": "gateway_wait"}).encode()
    serve = gateway.serve_gateway(Provider("another's"), ["small"])
    running = asyncio.create_task(
        sandbox.run_program(program, payload, lambda _, data: port.set_result(int(data)), ProgramHooks(serve=serve))
    )
    try:
        async with asyncio.timeout(10):
            yield {**base, "other": await port}
    finally:
        running.cancel()
        await asyncio.wait([running])


async def remains(way: str, folder: Path) -> None:
    """Every kind of thing that a run can leave: looked for in the same run, and in the next ones of its version."""
    source = (Path(__file__).parent / "remains.py").read_bytes()
    code, open_code = folder / "code", folder / "open"
    for made in (code, open_code):
        made.mkdir()
        (made / "agent.py").write_bytes(source)
        # Whoever is let may write there: what keeps the code as it is shall be the fence.
        made.chmod(0o777)
    whole, open_fence = _sandbox(way, []), _sandbox(way, ["read_only"])
    try:
        for kind in KINDS:
            control = (open_fence, open_code) if kind in ("file_in_code", "file_in_cwd") else (whole, code)
            told = {"kind": kind, "together": await _remaining(*control, kind, ["leave", "look"]), "apart": []}
            for do in (["leave"], ["look"], ["leave"], ["look"], ["look"]):
                async with asyncio.timeout(20):
                    while not whole.counts.warm:
                        await asyncio.sleep(0.005)
                told["apart"].append(await _remaining(whole, code, kind, do))
            print(json.dumps(told), flush=True)
    finally:
        await whole.close()
        await open_fence.close()


async def _remaining(sandbox: WarmSandbox, code: Path, kind: str, do: list[str]) -> dict[str, Any]:
    program = SandboxProgram(code=code, environment=None, entrypoint="agent:handle", timeout=10, memory_mb=MEMORY)
    payload = {"kind": kind, "do": do, "submitted": time.monotonic()}
    outcome = await sandbox.run_program(program, json.dumps(payload).encode(), _ignore)
    assert outcome.output is not None, outcome
    return json.loads(outcome.output)


async def main() -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    if len(sys.argv) == 2:
        await attacks()
        return
    with tempfile.TemporaryDirectory(prefix="paddock-attack-", dir="/var/tmp") as folder:
        os.chmod(folder, 0o755)
        if sys.argv[2] == "remains":
            await remains(sys.argv[1], Path(folder))
        else:
            await outlive(sys.argv[1], Path(folder), *sys.argv[3:])


async def outlive(way: str, code: Path, name: str, guards: str) -> None:
    (code / "agent.py").write_bytes((Path(__file__).parent / "agent.py").read_bytes())
    program = SandboxProgram(code=code, environment=None, entrypoint="agent:outlive", timeout=50, memory_mb=MEMORY)
    sandbox = _sandbox(way, guards.split(",") if guards else [])
    await sandbox.run_program(
        program, json.dumps({"name": name}).encode(), lambda _, data: print(data.decode(), flush=True)
    )


async def attacks() -> None:
    """The plan on standard input."""
    os.environ["PADDOCK_SECRET_KEY"], os.environ["PADDOCK_PROVIDER_KEY"] = SECRET, KEY
    with (
        tempfile.TemporaryDirectory(prefix="paddock-attack-", dir="/var/tmp") as folder,
        socket.socket() as tcp,
        contextlib.ExitStack() as stack,
    ):
        os.chmod(folder, 0o755)
        versions, marker, data = Path(folder) / "versions", Path(folder) / "marker", Path(folder) / "data"
        code = versions / "mine"
        for made in (versions, code, versions / "theirs", data):
            made.mkdir()
        (data / "file").write_text("another's")
        marker.write_text("read me if you can")
        (code / "agent.py").write_bytes((Path(__file__).parent / "agent.py").read_bytes())
        # Named like the module that sets the limits: it must not be the one that does.
        (code / "resource.py").write_text("def __getattr__(name):\n    return lambda *a: None\n")
        (code / "owner_only").write_text("for the owner alone")
        (code / "owner_only").chmod(0o600)
        tcp.bind(("0.0.0.0", 0))
        tcp.listen(64)
        abstract = socket.socket(socket.AF_UNIX)
        abstract.bind("\0" + NAME)
        abstract.listen(64)
        doors = []
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            for place in (f"{code}/door-{int(kind)}", f"\0{NAME}-{int(kind)}"):
                doors.append(socket.socket(socket.AF_UNIX, kind))
                doors[-1].bind(place)
                if kind == socket.SOCK_STREAM:
                    doors[-1].listen(64)
            (code / f"door-{int(kind)}").chmod(0o777)
        service = stack.enter_context(_service())
        inherited = os.open(marker, os.O_RDONLY)
        os.set_inheritable(inherited, True)
        base = {
            "marker": str(marker),
            "data": str(data),
            "code": str(code),
            "secret": SECRET,
            "port": tcp.getsockname()[1],
            "address": "127.0.0.2",
            "abstract": NAME,
            "runner": os.getpid(),
            "ipc": os.readlink("/proc/self/ns/ipc"),
            "name": NAME,
            "much": 400,
            "service": service,
            "declared": ["open.example", service],
            "private": ["this.example", "metadata.example", "bound.anew.example"],
            "processor": PROCESSOR,
            "key": hashlib.sha256(KEY.encode()).hexdigest(),
            "kinds": [*get_args(ModelErrorKind), "late", "broken", "unavailable_here"],
        }
        for name, without in json.load(sys.stdin):
            print(json.dumps(await attack(sys.argv[1], name, without, code, base)), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
