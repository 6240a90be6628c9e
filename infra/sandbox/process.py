"""One fenced process tree: started, fed, listened to, watched and killed as a whole."""

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from domain.ports import OnOutput, Stream
from infra.sandbox.fence import Fence, Mount
from infra.sandbox.watch import Watch, descendants

T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNS: Final = 0x00020000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 1 << 18
_PR_SET_PDEATHSIG: Final = 1
_STAGES: Final = ("/run", "/mnt", "/opt")
CHUNK: Final = 64 * 1024
# Output is read at full speed up to FLOOD bytes, and then a chunk per PAUSE seconds.
FLOOD: Final = 32 * 1024 * 1024
PAUSE: Final = 0.001
# How often, half a millisecond apart, to look whether a stopped process has stopped.
STOP_LOOKS: Final = 100


class StartFailed(Exception):
    """The fence could not be built. The message says why, in bwrap's words."""


class Ending(msgspec.Struct, kw_only=True):
    """How a process tree ended. `answer` is what it wrote, without the byte that says it is up."""

    status: int | None = None
    answer: bytes = b""
    overflow: bool = False
    timed_out: bool = False
    killed_for: str | None = None


def _checked(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def stage_folder() -> str:
    """A folder that every host has, to be covered by the stage in a mount namespace of its own."""
    return next(folder for folder in _STAGES if os.path.isdir(folder))


def become(uid: int, stage: str, mounts: list[Mount]) -> Callable[[], None]:
    """What a child of a root worker does before it becomes bwrap.

    In a mount namespace of its own it shows what the sandbox needs beneath `stage`, where a user
    without rights can reach it, and then turns into that user.
    """
    encoded = [(mount.source.encode(), mount.target.encode(), os.path.isdir(mount.source)) for mount in mounts]

    def before_exec() -> None:
        _checked(_libc.unshare(_CLONE_NEWNS), "unshare")
        _checked(_libc.mount(None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None), "mount /")
        _checked(_libc.mount(b"tmpfs", stage.encode(), b"tmpfs", ctypes.c_ulong(0), b"mode=755,size=1m"), stage)
        for source, target, is_folder in encoded:
            os.makedirs(target if is_folder else os.path.dirname(target), exist_ok=True)
            if not is_folder:
                os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
            _checked(_libc.mount(source, target, None, ctypes.c_ulong(_MS_BIND), None), source.decode())
        _prefer_for_oom()
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    return before_exec


def _prefer_for_oom() -> None:
    # When the host runs out of memory it shall take an agent, not Postgres.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _die_with_parent() -> None:
    _prefer_for_oom()
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Pipes:
    """The pipes between worker and guest, as (ours, theirs)."""

    def __init__(self) -> None:
        theirs, ours = os.pipe()
        self.feed = ours, theirs
        self.answer = os.pipe()
        self.info = os.pipe()

    @property
    def ours(self) -> list[int]:
        """Our ends."""
        return [self.feed[0], self.answer[0], self.info[0]]

    @property
    def theirs(self) -> list[int]:
        """Their ends."""
        return [self.feed[1], self.answer[1], self.info[1]]


class Child:
    """A started tree. `close` kills whatever is left of it and frees every descriptor."""

    def __init__(self, process: subprocess.Popen[bytes], feed: int, answer: int, info: int, streams: dict[Stream, int]):
        self._process = process
        self._feed, self._answer, self._info, self._streams = feed, answer, info, streams
        self._pidfd = os.pidfd_open(process.pid)
        self.pid = process.pid
        self.pid1: int | None = None
        self._pid1_fd: int | None = None
        self._open = {feed, answer, info, *streams.values()} - {-1}

    async def run(self, request: bytes, timeout: float, most: int, on_output: OnOutput, watch: Watch | None) -> Ending:
        """Feed the request, pass output on, and return when the tree has ended or was ended.

        Errors: `StartFailed`, and whatever `on_output` raises.
        """
        ending = Ending()
        early = bytearray()
        started = asyncio.Event()

        async def pass_on(stream: Stream, data: bytes) -> None:
            if not started.is_set():
                # The guest's words or bwrap's own? The byte that tells comes through another pipe.
                early.extend(data[: 4096 - len(early)])
                await started.wait()
            await on_output(stream, data)

        pumps = [
            asyncio.create_task(self._write(self._feed, request)),
            asyncio.create_task(self._learn_pid1()),
            asyncio.create_task(self._collect(ending, most, started)),
            *(asyncio.create_task(self._pump(fd, name, pass_on)) for name, fd in self._streams.items()),
        ]
        exited = asyncio.create_task(self._exited())
        watcher = asyncio.create_task(watch.over(self)) if watch is not None else None
        tasks = [exited, *pumps, *([watcher] if watcher else [])]
        try:
            async with asyncio.timeout(timeout):
                await self._until(exited, tasks)
            if watcher is not None and watcher.done():
                ending.killed_for = watcher.result()
        except TimeoutError:
            ending.timed_out = True
        finally:
            gathered = await _to_the_end(self._wind_down(exited, pumps, tasks))
        for failure in gathered:
            if isinstance(failure, Exception) and not ending.timed_out:
                raise failure
        ending.status = self._process.returncode
        if not started.is_set() and not ending.timed_out and ending.killed_for is None:
            raise StartFailed(early.decode(errors="replace").strip() or f"bwrap ended with status {ending.status}")
        return ending

    async def _wind_down(
        self,
        exited: asyncio.Task[None],
        pumps: list[asyncio.Task[None]],
        tasks: list[asyncio.Task[None] | asyncio.Task[str | None]],
    ) -> list[object]:
        self.kill()
        await exited
        # The tree is gone, so its pipes are at their end, unless a test left the door open.
        await asyncio.wait(pumps, timeout=0.5)
        for task in tasks:
            task.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    def kill(self) -> None:
        """SIGKILL to the first process inside, which takes its whole namespace along; bwrap then reaps it and ends.

        While that process is not known yet, bwrap is stopped, so that it makes no more children, and
        killed after those it has: a child that waits for bwrap's word would wait for ever.
        """
        with contextlib.suppress(OSError):
            if self._pid1_fd is not None:
                signal.pidfd_send_signal(self._pid1_fd, signal.SIGKILL)
                return
            signal.pidfd_send_signal(self._pidfd, signal.SIGSTOP)
            # On another core it may be in the middle of making a child just now.
            for _ in range(STOP_LOOKS):
                if not _runs(self._process.pid):
                    break
                time.sleep(0.0005)
            for child in descendants(self._process.pid):
                with contextlib.suppress(OSError):
                    os.kill(child, signal.SIGKILL)
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Free every descriptor."""
        self.kill()
        for fd in [*self._open, self._pidfd, *([self._pid1_fd] if self._pid1_fd is not None else [])]:
            os.close(fd)
        self._open = set()

    @staticmethod
    async def _until(exited: asyncio.Task[None], tasks: list[asyncio.Task[None] | asyncio.Task[str | None]]) -> None:
        pending: set[asyncio.Task[None] | asyncio.Task[str | None]] = set(tasks)
        while not exited.done():
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if task.exception() is not None or task.get_name() == "watch":
                    return
            if any(isinstance(task.result(), str) for task in done):
                return

    async def _exited(self) -> None:
        await _readable(self._pidfd)
        self._process.wait()

    async def _learn_pid1(self) -> None:
        text = b""
        while part := await _read(self._info, 4096):
            text += part
        if not text:
            return
        with contextlib.suppress(msgspec.DecodeError, KeyError, OSError):
            pid = msgspec.json.decode(text)["child-pid"]
            self._pid1_fd = os.pidfd_open(pid)
            self.pid1 = pid

    async def _collect(self, ending: Ending, most: int, started: asyncio.Event) -> None:
        answer = bytearray()
        while part := await _read(self._answer, CHUNK):
            if not started.is_set():
                started.set()
                part = part[1:]
            answer += part
            if len(answer) > most:
                # Whoever writes this much is not our guest any more: nothing it says later counts.
                ending.overflow = True
                self.kill()
                return
            await asyncio.sleep(0)
        ending.answer = bytes(answer)

    async def _pump(self, fd: int, stream: Stream, on_output: OnOutput) -> None:
        passed = 0
        while part := await _read(fd, CHUNK):
            await on_output(stream, part)
            # Others get their turn, and whoever floods us waits: what is past this is not kept in any case.
            passed += len(part)
            await asyncio.sleep(PAUSE if passed > FLOOD else 0)

    async def _write(self, fd: int, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                try:
                    view = view[os.write(fd, view[:CHUNK]) :]
                except BlockingIOError:
                    await _writable(fd)
        except BrokenPipeError:
            pass  # the guest is gone; its ending says why
        finally:
            if fd in self._open:
                self._open.discard(fd)
                os.close(fd)


def _runs(pid: int) -> bool:
    """Whether a process is neither stopped nor ended."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("T", "t", "Z", "X")
    return False


async def _to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Await work that must not be left half done, however often the waiting is cancelled meanwhile."""
    task = asyncio.create_task(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled and not task.cancelled():
        task.result()
        raise asyncio.CancelledError
    return task.result()


def _resolve(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, _resolve, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


async def _writable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(fd, _resolve, ready)
    try:
        await ready
    finally:
        loop.remove_writer(fd)


async def _read(fd: int, most: int) -> bytes:
    while True:
        try:
            return os.read(fd, most)
        except BlockingIOError:
            await _readable(fd)


def start(
    args: list[str], passed: list[int], pipes: Pipes, before_exec: Callable[[], None] | None, fence: Fence
) -> Child:
    """Start bwrap with an empty environment. Their ends of the pipes are closed here, and ours if it fails.

    Errors: `StartFailed`.
    """
    out, err = os.pipe(), os.pipe()
    theirs = [*pipes.theirs, out[1], err[1]]
    ours = [*pipes.ours, out[0], err[0]]
    if not fence.has("descriptors"):
        for fd in (*passed, *theirs):
            os.set_inheritable(fd, True)
    try:
        process = subprocess.Popen(
            args,
            env={} if fence.has("environment") else None,
            stdin=subprocess.DEVNULL,
            stdout=out[1],
            stderr=err[1],
            pass_fds=[*passed, *pipes.theirs] if fence.has("descriptors") else (),
            close_fds=fence.has("descriptors"),
            preexec_fn=before_exec or _die_with_parent,
            cwd="/",
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        for fd in ours:
            os.close(fd)
        raise StartFailed(f"{Path(args[0]).name}: {error}") from error
    finally:
        for fd in theirs:
            os.close(fd)
    for fd in ours:
        os.set_blocking(fd, False)
    return Child(process, pipes.feed[0], pipes.answer[0], pipes.info[0], {"stdout": out[0], "stderr": err[0]})
