"""One fenced process tree: fed, listened to, watched and killed as a whole. Callbacks and one future, no tasks."""

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Final, Protocol

from domain.ports import GatewayServer, OutputCallback, OutputStream
from infra.sandbox.cgroups import ControlGroup
from infra.sandbox.exit_report import STAGE_MARKS, ExitReport, GuestStage, SandboxStartError
from infra.sandbox.listener import GatewayListener
from infra.sandbox.watchdog import ResourceWatchdog, is_awake, measure_stopped

READ_CHUNK_BYTES: Final = 64 * 1024
# Output is read at full speed up to FLOOD bytes, and then a chunk per PAUSE seconds.
FULL_SPEED_BYTES: Final = 32 * 1024 * 1024
FLOOD_PAUSE_SECONDS: Final = 0.001
# What a pipe can hold at most, unless root says otherwise (/proc/sys/fs/pipe-max-size).
MAX_PIPE_BYTES: Final = 1 << 20
# What a tree may print before anybody listens: while its code is imported ahead of the run.
MAX_EARLY_OUTPUT_BYTES: Final = 64 * 1024


class TreeLeader(Protocol):
    """A tree's first process, as known to whoever started it."""

    pid1: int | None

    def watch_exit(self, ended: Callable[[int | None, str | None], None]) -> None:
        """From now on say when it has ended: with its status, or why that is not known."""
        ...

    def kill(self) -> None:
        """SIGKILL to the tree, as often as one likes."""
        ...

    def send_signal(self, number: int) -> None:
        """Another signal to the first process inside."""
        ...

    def close(self) -> None:
        """Free its descriptors; called once, when it has ended."""
        ...


class GuestPipes:
    """The pipes between worker and guest, as (ours, theirs)."""

    def __init__(self) -> None:
        made: list[tuple[int, int]] = []
        try:
            for _ in range(4):
                made.append(os.pipe())
        except OSError:
            for pipe in made:
                self.close_ends([*pipe])
            raise
        (theirs, ours), self.answer, self.stdout, self.stderr = made
        self.feed = ours, theirs
        for fd in self.worker_ends:
            os.set_blocking(fd, False)

    @property
    def worker_ends(self) -> list[int]:
        """Our ends."""
        return [self.feed[0], self.answer[0], self.stdout[0], self.stderr[0]]

    @property
    def guest_ends(self) -> list[int]:
        """Their ends, in the order feed, answer, stdout, stderr."""
        return [self.feed[1], self.answer[1], self.stdout[1], self.stderr[1]]

    @staticmethod
    def close_ends(ends: list[int]) -> None:
        """Close one side."""
        for fd in ends:
            os.close(fd)


class ProcessTree:
    """A started tree, used once. When it has ended, every descriptor and its group are freed.

    `most` bounds the answer in bytes. `listener` is for a guest with a gateway.
    """

    def __init__(
        self,
        leader: TreeLeader,
        pipes: GuestPipes,
        most: int,
        group: ControlGroup | None = None,
        listener: GatewayListener | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._leader, self._group, self._max_answer_bytes, self._listener = leader, group, most, listener
        self._feed, self._answer, stdout, stderr = pipes.worker_ends
        self._streams: dict[OutputStream, int] = {"stdout": stdout, "stderr": stderr}
        self._read_bytes: dict[OutputStream, int] = {"stdout": 0, "stderr": 0}
        self._on_output: OutputCallback | None = None
        self._output_stage = GuestStage.FENCED
        self._early_output: list[tuple[OutputStream, bytes]] = []
        self._unsent = memoryview(b"")
        self._received = bytearray()
        self._failure: Exception | None = None
        self._watchdog: ResourceWatchdog | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._stage_waiter: tuple[GuestStage, asyncio.Future[None]] | None = None
        self._returns_early = False
        self._is_pid1_overdue = False
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self.report = ExitReport()
        # Whether it printed more than is kept while nobody listened.
        self.is_too_loud = False
        # Called once when the tree has ended, however it came to that.
        self.on_gone: Callable[[], None] | None = None
        self._loop.add_reader(self._answer, self._read_answer)
        if listener is not None:
            listener.start_receiving(self._fail_tree)
        leader.watch_exit(self._on_leader_exit)

    @property
    def is_gone(self) -> bool:
        """Whether the tree has ended and everything of it is freed."""
        return self._gone.done()

    @property
    def pid(self) -> int | None:
        """The number of its first process on this host, once it is known."""
        return self._leader.pid1

    def limit_answer(self, most: int) -> None:
        """Bound the answer by so many bytes from here on."""
        self._max_answer_bytes = most

    def set_group(self, group: ControlGroup | None) -> None:
        """It has joined a group, which is removed when it has ended."""
        if self.is_gone and group is not None:
            group.remove()
        else:
            self._group = group

    def configure_guest(self, head: bytes, memory_mb: int, watch: ResourceWatchdog | None) -> None:
        """Tell a tree what it is for. Its memory is bounded and watched from here on."""
        if self.is_gone:
            return
        if self._group is not None and self._group.memory_mb != memory_mb:
            try:
                self._group.limit_memory(memory_mb)
            except OSError as error:
                self._fail_tree(SandboxStartError(f"its memory cannot be bounded: {error}"))
                return
        self._watchdog = watch
        self._schedule_check()
        self._send_data(head)

    async def run(
        self,
        request: bytes,
        timeout: float,
        on_output: OutputCallback,
        output_stage: GuestStage = GuestStage.FENCED,
        returns_early: bool = False,
    ) -> ExitReport:
        """Send the request, pass output on, and return when the tree has ended or was ended.

        Output is kept until the stage `since`; of a tree that dies before, untouched, none is passed on.
        `early` is for whoever need not see the end: the answer is returned once it is complete, with all that was
        printed before it, and the tree, already killed, ends by itself a millisecond or two later.
        Errors: `StartFailed`, and whatever `on_output` raises.
        """
        self._on_output, self._output_stage, self._returns_early = on_output, output_stage, returns_early
        self._flush_early_output()
        if not self.is_gone:
            self._send_data(request)
            self._timers["timeout"] = self._loop.call_later(timeout, self._on_timeout)
        await self._wait_for_future(self._done)
        if self.report.stage >= GuestStage.FENCED and not self.report.is_retryable:
            self._output_stage = GuestStage.FENCED
            self._flush_early_output()
        if self._failure is not None and not self.report.timed_out:
            raise self._failure
        stopped = self.report.timed_out or self.report.kill_reason is not None
        if self.report.stage < GuestStage.FENCED and not stopped:
            words = b"".join(data for _, data in self._early_output).decode(errors="replace").strip()
            raise SandboxStartError(words or self.report.lost_reason or f"it ended with status {self.report.status}")
        return self.report

    async def wait_for_stage(self, stage: GuestStage, timeout: float) -> bool:
        """Wait until it has come this far. False if it ended, or answered, or took too long instead."""
        if self.report.stage < stage and not self.is_gone and not self._received:
            reached: asyncio.Future[None] = self._loop.create_future()
            self._stage_waiter = stage, reached
            timer = self._loop.call_later(timeout, self._wake_stage_waiter)
            try:
                await reached
            finally:
                timer.cancel()
                self._stage_waiter = None
        return self.report.stage >= stage and not self.is_gone

    async def kill_and_wait(self) -> None:
        """Kill it and wait until it has ended, however often the waiting is cancelled meanwhile."""
        self.kill()
        await self._wait_for_future(self._gone)

    def kill(self) -> None:
        """Begin its end."""
        if not self.is_gone:
            self._leader.kill()

    async def pause(self) -> int | None:
        """Stop it until `resume`, so that it costs no processor time; the bytes that it alone holds.

        None if it is not a single process that has stopped: such a tree would run on.
        """
        self._watchdog = None
        self._cancel_timer("look")
        self._leader.send_signal(signal.SIGSTOP)
        return await asyncio.to_thread(measure_stopped, self._leader.pid1, self._is_fenced)

    @property
    def _is_fenced(self) -> bool:
        return self.report.stage >= GuestStage.FENCED

    @property
    def is_awake(self) -> bool:
        """Whether a paused tree runs all the same: then somebody in it has found a way to wake it."""
        return self._leader.pid1 is not None and is_awake(self._leader.pid1, self._is_fenced)

    def resume(self, watch: ResourceWatchdog | None) -> None:
        """Let it run again."""
        self._watchdog = watch
        self._schedule_check()
        self._leader.send_signal(signal.SIGCONT)

    def serve_gateway(self, serve: GatewayServer | None) -> AbstractAsyncContextManager[None]:
        """Around `run`: serve on its gateway, if it has one, as `Listener.served`."""
        return nullcontext() if self._listener is None else self._listener.serve_connections(serve, self.kill)

    async def _wait_for_future(self, this: "asyncio.Future[None]") -> None:
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

    def _send_data(self, data: bytes) -> None:
        begin = not self._unsent
        self._unsent = memoryview(data if begin else bytes(self._unsent) + data)
        if begin:
            self._write_unsent()

    def _write_unsent(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[os.write(self._feed, self._unsent[:READ_CHUNK_BYTES]) :]
        except BlockingIOError:
            self._loop.add_writer(self._feed, self._write_unsent)
            return
        except BrokenPipeError:
            self._unsent = memoryview(b"")  # the guest is gone; its ending says why
        self._loop.remove_writer(self._feed)

    # what it says

    def _read_answer(self) -> None:
        try:
            part = os.read(self._answer, READ_CHUNK_BYTES)
        except BlockingIOError:
            return
        if part:
            self._process_answer(part)
            return
        self._loop.remove_reader(self._answer)
        if self._returns_early and self.report.stage >= GuestStage.PAYLOAD_READ and self._received:
            self._complete_report()

    def _process_answer(self, part: bytes) -> None:
        self._received += part
        while (mark := STAGE_MARKS.get(bytes(self._received[:1]))) is not None and mark > self.report.stage:
            del self._received[:1]
            if self.report.stage < GuestStage.FENCED <= mark:
                for stream, fd in self._streams.items():
                    self._loop.add_reader(fd, self._read_output, stream)
            self.report.stage = mark
            if self._listener is not None and mark >= GuestStage.IMPORTED:
                # What is not there by now would be the agent's.
                self._listener.end_handover()
            self._flush_early_output()
        if len(self._received) > self._max_answer_bytes:
            # Whoever writes this much is not our guest any more: nothing it says later counts.
            self.report.is_oversized = True
            self._received.clear()
            self._loop.remove_reader(self._answer)
            self.kill()
        if self._stage_waiter is not None and (self._stage_waiter[0] <= self.report.stage or self._received):
            self._wake_stage_waiter()

    def _read_output(self, stream: OutputStream) -> None:
        fd = self._streams[stream]
        try:
            part = os.read(fd, READ_CHUNK_BYTES)
        except BlockingIOError:
            return
        if not part:
            self._loop.remove_reader(fd)
            return
        self._deliver_output(stream, part)
        self._read_bytes[stream] += len(part)
        if self._read_bytes[stream] > FULL_SPEED_BYTES and not self._done.done():
            # Whoever floods us waits: what is past this is not kept in any case.
            self._loop.remove_reader(fd)
            self._timers[stream] = self._loop.call_later(FLOOD_PAUSE_SECONDS, self._resume_reading, stream)

    def _resume_reading(self, stream: OutputStream) -> None:
        self._loop.add_reader(self._streams[stream], self._read_output, stream)

    def _deliver_output(self, stream: OutputStream, data: bytes) -> None:
        if self._failure is not None:
            return
        # What comes before the guest is whoever built the fence: those are no words of the agent.
        if self._on_output is None or self.report.stage < self._output_stage:
            self._early_output.append((stream, data))
            if sum(len(kept) for _, kept in self._early_output) > MAX_EARLY_OUTPUT_BYTES:
                self.is_too_loud = True
                self.kill()
            return
        try:
            self._on_output(stream, data)
        except Exception as error:
            self._failure = error
            self.kill()

    def _flush_early_output(self) -> None:
        if self._on_output is not None and self.report.stage >= self._output_stage:
            kept, self._early_output = self._early_output, []
            for stream, data in kept:
                self._deliver_output(stream, data)

    # what ends it

    def _fail_tree(self, error: Exception) -> None:
        self._failure = self._failure or error
        self.kill()

    def _on_timeout(self) -> None:
        self.report.timed_out = True
        self.kill()

    def _schedule_check(self) -> None:
        self._cancel_timer("look")
        if self._watchdog is not None and not self._done.done():
            self._timers["look"] = self._loop.call_later(self._watchdog.interval_seconds, self._start_check)

    def _start_check(self) -> None:
        if self._watchdog is None:
            return
        if not self._is_fenced:
            # Until its fence stands, the folders that it sees are the host's.
            self._schedule_check()
            return
        if self._leader.pid1 is None:
            # Its number comes by another pipe than its marks do, and has until the next look.
            if self._is_pid1_overdue:
                self._kill_for_reason("not_measurable:its first process is not known")
            self._is_pid1_overdue = True
            self._schedule_check()
            return
        # In a thread: a tree of many processes takes milliseconds to look at.
        looking = self._loop.run_in_executor(None, self._watchdog.find_excess, self._leader.pid1)
        looking.add_done_callback(self._on_check_done)

    def _on_check_done(self, looking: "asyncio.Future[str | None]") -> None:
        if looking.cancelled() or self._watchdog is None:
            return
        error = looking.exception()
        reason = looking.result() if error is None else f"not_measurable:{type(error).__name__}"
        if reason is None:
            self._schedule_check()
        else:
            self._kill_for_reason(reason)

    def _kill_for_reason(self, reason: str) -> None:
        self.report.kill_reason = reason
        self.kill()

    def _wake_stage_waiter(self) -> None:
        if self._stage_waiter is not None and not self._stage_waiter[1].done():
            self._stage_waiter[1].set_result(None)

    def _cancel_timer(self, timer: str) -> None:
        if timer in self._timers:
            self._timers.pop(timer).cancel()

    def _on_leader_exit(self, status: int | None, lost: str | None) -> None:
        if self.is_gone:
            return
        self.report.status, self.report.lost_reason = status, lost
        self._complete_report()
        self._loop.remove_writer(self._feed)
        for fd in (self._feed, self._answer, *self._streams.values()):
            os.close(fd)
        self._leader.close()
        if self._listener is not None:
            self._listener.close()
        if self._group is not None:
            self._group.remove()
        self._gone.set_result(None)
        self._wake_stage_waiter()
        if self.on_gone is not None:
            self.on_gone()

    def _complete_report(self) -> None:
        """Nothing counts that comes later: take what its pipes hold, and let `run` return."""
        if self._done.done():
            return
        self.kill()
        for part in _drain_pipe(self._answer):
            if not self.report.is_oversized:
                self._process_answer(part)
        for stream, fd in self._streams.items():
            for part in _drain_pipe(fd):
                self._deliver_output(stream, part)
        for timer in list(self._timers):
            self._cancel_timer(timer)
        self._watchdog = None
        for fd in (self._answer, *self._streams.values()):
            self._loop.remove_reader(fd)
        self.report.answer = bytes(self._received)
        if self._group is not None and self._group.has_run_out():
            self.report.kill_reason = f"out_of_memory:{self._group.memory_mb}"
        self._done.set_result(None)


def _drain_pipe(fd: int) -> Iterator[bytes]:
    """What a pipe holds now. Bounded, as somebody may still write to it."""
    for _ in range(MAX_PIPE_BYTES // READ_CHUNK_BYTES):
        try:
            part = os.read(fd, READ_CHUNK_BYTES)
        except BlockingIOError:
            return
        if not part:
            return
        yield part
