"""One fenced process tree: fed, listened to, watched and killed as a whole. Callbacks and one future, no tasks."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Final, Protocol

from domain.ports import OnOutput, Serve, Stream
from infra.sandbox.cgroups import Group
from infra.sandbox.exit_report import MARKS, Ending, Stage, StartFailed
from infra.sandbox.listener import Listener
from infra.sandbox.watchdog import Watch, at_rest, awake

CHUNK: Final = 64 * 1024
# Output is read at full speed up to FLOOD bytes, and then a chunk per PAUSE seconds.
FLOOD: Final = 32 * 1024 * 1024
PAUSE: Final = 0.001
# What a pipe can hold at most, unless root says otherwise (/proc/sys/fs/pipe-max-size).
PIPE_MOST: Final = 1 << 20
# What a tree may print before anybody listens: while its code is imported ahead of the run.
KEPT: Final = 64 * 1024


class Leader(Protocol):
    """A tree's first process, as known to whoever started it."""

    pid1: int | None

    def begin(self, ended: Callable[[int | None, str | None], None]) -> None:
        """From now on say when it has ended: with its status, or why that is not known."""
        ...

    def kill(self) -> None:
        """SIGKILL to the tree, as often as one likes."""
        ...

    def signal(self, number: int) -> None:
        """Another signal to the first process inside."""
        ...

    def close(self) -> None:
        """Free its descriptors; called once, when it has ended."""
        ...


class Pipes:
    """The pipes between worker and guest, as (ours, theirs)."""

    def __init__(self) -> None:
        made: list[tuple[int, int]] = []
        try:
            for _ in range(4):
                made.append(os.pipe())
        except OSError:
            for pipe in made:
                self.close([*pipe])
            raise
        (theirs, ours), self.answer, self.stdout, self.stderr = made
        self.feed = ours, theirs
        for fd in self.ours:
            os.set_blocking(fd, False)

    @property
    def ours(self) -> list[int]:
        """Our ends."""
        return [self.feed[0], self.answer[0], self.stdout[0], self.stderr[0]]

    @property
    def theirs(self) -> list[int]:
        """Their ends, in the order feed, answer, stdout, stderr."""
        return [self.feed[1], self.answer[1], self.stdout[1], self.stderr[1]]

    @staticmethod
    def close(ends: list[int]) -> None:
        """Close one side."""
        for fd in ends:
            os.close(fd)


class Tree:
    """A started tree, used once. When it has ended, every descriptor and its group are freed.

    `most` bounds the answer in bytes. `listener` is for a guest with a gateway.
    """

    def __init__(
        self, leader: Leader, pipes: Pipes, most: int, group: Group | None = None, listener: Listener | None = None
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._leader, self._group, self._most, self._listener = leader, group, most, listener
        self._feed, self._answer, stdout, stderr = pipes.ours
        self._streams: dict[Stream, int] = {"stdout": stdout, "stderr": stderr}
        self._passed: dict[Stream, int] = {"stdout": 0, "stderr": 0}
        self._on_output: OnOutput | None = None
        self._since = Stage.FENCED
        self._kept: list[tuple[Stream, bytes]] = []
        self._unsent = memoryview(b"")
        self._received = bytearray()
        self._failed: Exception | None = None
        self._watch: Watch | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._waiting: tuple[Stage, asyncio.Future[None]] | None = None
        self._early = False
        self._unknown = False
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self.ending = Ending()
        # Whether it printed more than is kept while nobody listened.
        self.loud = False
        # Called once when the tree has ended, however it came to that.
        self.on_gone: Callable[[], None] | None = None
        self._loop.add_reader(self._answer, self._read_answer)
        if listener is not None:
            listener.begin(self._lose)
        leader.begin(self._end)

    @property
    def gone(self) -> bool:
        """Whether the tree has ended and everything of it is freed."""
        return self._gone.done()

    @property
    def pid(self) -> int | None:
        """The number of its first process on this host, once it is known."""
        return self._leader.pid1

    def allow_answer(self, most: int) -> None:
        """Bound the answer by so many bytes from here on."""
        self._most = most

    def belongs_to(self, group: Group | None) -> None:
        """It has joined a group, which is removed when it has ended."""
        if self.gone and group is not None:
            group.remove()
        else:
            self._group = group

    def direct(self, head: bytes, memory_mb: int, watch: Watch | None) -> None:
        """Tell a tree what it is for. Its memory is bounded and watched from here on."""
        if self.gone:
            return
        if self._group is not None and self._group.memory_mb != memory_mb:
            try:
                self._group.limit(memory_mb)
            except OSError as error:
                self._lose(StartFailed(f"its memory cannot be bounded: {error}"))
                return
        self._watch = watch
        self._look_later()
        self._send(head)

    async def run(
        self, request: bytes, timeout: float, on_output: OnOutput, since: Stage = Stage.FENCED, early: bool = False
    ) -> Ending:
        """Send the request, pass output on, and return when the tree has ended or was ended.

        Output is kept until the stage `since`; of a tree that dies before, untouched, none is passed on.
        `early` is for whoever need not see the end: the answer is returned once it is complete, with all that was
        printed before it, and the tree, already killed, ends by itself a millisecond or two later.
        Errors: `StartFailed`, and whatever `on_output` raises.
        """
        self._on_output, self._since, self._early = on_output, since, early
        self._pass_on()
        if not self.gone:
            self._send(request)
            self._timers["timeout"] = self._loop.call_later(timeout, self._time_out)
        await self._until(self._done)
        if self.ending.stage >= Stage.FENCED and not self.ending.untouched:
            self._since = Stage.FENCED
            self._pass_on()
        if self._failed is not None and not self.ending.timed_out:
            raise self._failed
        stopped = self.ending.timed_out or self.ending.killed_for is not None
        if self.ending.stage < Stage.FENCED and not stopped:
            words = b"".join(data for _, data in self._kept).decode(errors="replace").strip()
            raise StartFailed(words or self.ending.lost or f"it ended with status {self.ending.status}")
        return self.ending

    async def reach(self, stage: Stage, timeout: float) -> bool:
        """Wait until it has come this far. False if it ended, or answered, or took too long instead."""
        if self.ending.stage < stage and not self.gone and not self._received:
            reached: asyncio.Future[None] = self._loop.create_future()
            self._waiting = stage, reached
            timer = self._loop.call_later(timeout, self._reached)
            try:
                await reached
            finally:
                timer.cancel()
                self._waiting = None
        return self.ending.stage >= stage and not self.gone

    async def end(self) -> None:
        """Kill it and wait until it has ended, however often the waiting is cancelled meanwhile."""
        self.kill()
        await self._until(self._gone)

    def kill(self) -> None:
        """Begin its end."""
        if not self.gone:
            self._leader.kill()

    async def pause(self) -> int | None:
        """Stop it until `resume`, so that it costs no processor time; the bytes that it alone holds.

        None if it is not a single process that has stopped: such a tree would run on.
        """
        self._watch = None
        self._cancel("look")
        self._leader.signal(signal.SIGSTOP)
        return await asyncio.to_thread(at_rest, self._leader.pid1, self._fenced)

    @property
    def _fenced(self) -> bool:
        return self.ending.stage >= Stage.FENCED

    @property
    def awake(self) -> bool:
        """Whether a paused tree runs all the same: then somebody in it has found a way to wake it."""
        return self._leader.pid1 is not None and awake(self._leader.pid1, self._fenced)

    def resume(self, watch: Watch | None) -> None:
        """Let it run again."""
        self._watch = watch
        self._look_later()
        self._leader.signal(signal.SIGCONT)

    def served(self, serve: Serve | None) -> AbstractAsyncContextManager[None]:
        """Around `run`: serve on its gateway, if it has one, as `Listener.served`."""
        return nullcontext() if self._listener is None else self._listener.served(serve, self.kill)

    async def _until(self, this: "asyncio.Future[None]") -> None:
        cancelled = False
        while not this.done():
            try:
                await asyncio.shield(this)
            except asyncio.CancelledError:
                # Whoever was cancelled wants nothing of it but its end.
                cancelled, this = True, self._gone
                self.kill()
        if cancelled:
            raise asyncio.CancelledError

    # what we send

    def _send(self, data: bytes) -> None:
        begin = not self._unsent
        self._unsent = memoryview(data if begin else bytes(self._unsent) + data)
        if begin:
            self._write()

    def _write(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[os.write(self._feed, self._unsent[:CHUNK]) :]
        except BlockingIOError:
            self._loop.add_writer(self._feed, self._write)
            return
        except BrokenPipeError:
            self._unsent = memoryview(b"")  # the guest is gone; its ending says why
        self._loop.remove_writer(self._feed)

    # what it says

    def _read_answer(self) -> None:
        try:
            part = os.read(self._answer, CHUNK)
        except BlockingIOError:
            return
        if part:
            self._take(part)
            return
        self._loop.remove_reader(self._answer)
        if self._early and self.ending.stage >= Stage.TAKEN and self._received:
            self._finish()

    def _take(self, part: bytes) -> None:
        self._received += part
        while (mark := MARKS.get(bytes(self._received[:1]))) is not None and mark > self.ending.stage:
            del self._received[:1]
            if self.ending.stage < Stage.FENCED <= mark:
                for stream, fd in self._streams.items():
                    self._loop.add_reader(fd, self._read_output, stream)
            self.ending.stage = mark
            if self._listener is not None and mark >= Stage.IMPORTED:
                # What is not there by now would be the agent's.
                self._listener.shut()
            self._pass_on()
        if len(self._received) > self._most:
            # Whoever writes this much is not our guest any more: nothing it says later counts.
            self.ending.overflow = True
            self._received.clear()
            self._loop.remove_reader(self._answer)
            self.kill()
        if self._waiting is not None and (self._waiting[0] <= self.ending.stage or self._received):
            self._reached()

    def _read_output(self, stream: Stream) -> None:
        fd = self._streams[stream]
        try:
            part = os.read(fd, CHUNK)
        except BlockingIOError:
            return
        if not part:
            self._loop.remove_reader(fd)
            return
        self._deliver(stream, part)
        self._passed[stream] += len(part)
        if self._passed[stream] > FLOOD and not self._done.done():
            # Whoever floods us waits: what is past this is not kept in any case.
            self._loop.remove_reader(fd)
            self._timers[stream] = self._loop.call_later(PAUSE, self._read_on, stream)

    def _read_on(self, stream: Stream) -> None:
        self._loop.add_reader(self._streams[stream], self._read_output, stream)

    def _deliver(self, stream: Stream, data: bytes) -> None:
        if self._failed is not None:
            return
        # What comes before the guest is whoever built the fence: those are no words of the agent.
        if self._on_output is None or self.ending.stage < self._since:
            self._kept.append((stream, data))
            if sum(len(kept) for _, kept in self._kept) > KEPT:
                self.loud = True
                self.kill()
            return
        try:
            self._on_output(stream, data)
        except Exception as error:
            self._failed = error
            self.kill()

    def _pass_on(self) -> None:
        if self._on_output is not None and self.ending.stage >= self._since:
            kept, self._kept = self._kept, []
            for stream, data in kept:
                self._deliver(stream, data)

    # what ends it

    def _lose(self, error: Exception) -> None:
        self._failed = self._failed or error
        self.kill()

    def _time_out(self) -> None:
        self.ending.timed_out = True
        self.kill()

    def _look_later(self) -> None:
        self._cancel("look")
        if self._watch is not None and not self._done.done():
            self._timers["look"] = self._loop.call_later(self._watch.interval, self._look)

    def _look(self) -> None:
        if self._watch is None:
            return
        if not self._fenced:
            # Until its fence stands, the folders that it sees are the host's.
            self._look_later()
            return
        if self._leader.pid1 is None:
            # Its number comes by another pipe than its marks do, and has until the next look.
            if self._unknown:
                self._stop_for("not_measurable:its first process is not known")
            self._unknown = True
            self._look_later()
            return
        # In a thread: a tree of many processes takes milliseconds to look at.
        looking = self._loop.run_in_executor(None, self._watch.look, self._leader.pid1)
        looking.add_done_callback(self._looked)

    def _looked(self, looking: "asyncio.Future[str | None]") -> None:
        if looking.cancelled() or self._watch is None:
            return
        error = looking.exception()
        reason = looking.result() if error is None else f"not_measurable:{type(error).__name__}"
        if reason is None:
            self._look_later()
        else:
            self._stop_for(reason)

    def _stop_for(self, reason: str) -> None:
        self.ending.killed_for = reason
        self.kill()

    def _reached(self) -> None:
        if self._waiting is not None and not self._waiting[1].done():
            self._waiting[1].set_result(None)

    def _cancel(self, timer: str) -> None:
        if timer in self._timers:
            self._timers.pop(timer).cancel()

    def _end(self, status: int | None, lost: str | None) -> None:
        if self.gone:
            return
        self.ending.status, self.ending.lost = status, lost
        self._finish()
        self._loop.remove_writer(self._feed)
        for fd in (self._feed, self._answer, *self._streams.values()):
            os.close(fd)
        self._leader.close()
        if self._listener is not None:
            self._listener.close()
        if self._group is not None:
            self._group.remove()
        self._gone.set_result(None)
        self._reached()
        if self.on_gone is not None:
            self.on_gone()

    def _finish(self) -> None:
        """Nothing counts that comes later: take what its pipes hold, and let `run` return."""
        if self._done.done():
            return
        self.kill()
        for part in _rest(self._answer):
            if not self.ending.overflow:
                self._take(part)
        for stream, fd in self._streams.items():
            for part in _rest(fd):
                self._deliver(stream, part)
        for timer in list(self._timers):
            self._cancel(timer)
        self._watch = None
        for fd in (self._answer, *self._streams.values()):
            self._loop.remove_reader(fd)
        self.ending.answer = bytes(self._received)
        if self._group is not None and self._group.ran_out():
            self.ending.killed_for = f"out_of_memory:{self._group.memory_mb}"
        self._done.set_result(None)


def _rest(fd: int) -> Iterator[bytes]:
    """What a pipe holds now. Bounded, as somebody may still write to it."""
    for _ in range(PIPE_MOST // CHUNK):
        try:
            part = os.read(fd, CHUNK)
        except BlockingIOError:
            return
        if not part:
            return
        yield part
