"""Control one fenced process tree as a whole: send, read, watch and kill. Callbacks and one future, no tasks."""

import asyncio
import functools
import os
import signal
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Final

from domain.ports import NetworkServer, OutputStream, ProgramNetwork, SandboxLost
from infra.sandbox.answer_parser import AnswerParser, GuestMessage
from infra.sandbox.cgroups import ControlGroup
from infra.sandbox.exit_report import ExitReport, GuestStage, SandboxStartError
from infra.sandbox.guest_pipes import READ_CHUNK_BYTES, FeedWriter, GuestPipes, drain_pipe
from infra.sandbox.listener import SandboxListeners
from infra.sandbox.output_order import OutputOrder
from infra.sandbox.program_network import list_listener_places
from infra.sandbox.tree_leader import TreeLeader
from infra.sandbox.tree_request import TreeRequest
from infra.sandbox.tree_watch import TreeWatch
from infra.sandbox.watchdog import ResourceWatchdog, is_awake, measure_stopped

# Output is read at full speed up to this many bytes and messages, and then one chunk per pause: a longer one the longer
# a chunk takes, so that a flood leaves most of the loop to other runs.
FULL_SPEED_BYTES: Final = 32 * 1024 * 1024
FULL_SPEED_MESSAGES: Final = 10_000
FLOOD_PAUSE_SECONDS: Final = 0.001
FLOOD_PAUSE_FACTOR: Final = 4
# Messages may be small and many, so the answer is read in smaller chunks.
ANSWER_CHUNK_BYTES: Final = 16 * 1024
# A tree may print this much before its run begins: while its code is imported ahead of it.
MAX_EARLY_OUTPUT_BYTES: Final = 64 * 1024


class ProcessTree:
    """Control a started tree, which is used once. When it has ended, every descriptor and its group are freed.

    `max_answer_bytes` bounds the answer. `listeners` are for a program with a network.
    """

    def __init__(
        self,
        leader: TreeLeader,
        pipes: GuestPipes,
        max_answer_bytes: int,
        *,
        group: ControlGroup | None = None,
        listeners: SandboxListeners | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._leader, self._group, self._listeners = leader, group, listeners
        self._parser = AnswerParser(max_answer_bytes)
        feed, self._answer, stdout, stderr = pipes.worker_ends
        self._feed = FeedWriter(feed)
        self._streams: dict[OutputStream, int] = {"stdout": stdout, "stderr": stderr}
        self._read_bytes: dict[str, int] = {"stdout": 0, "stderr": 0, "answer": 0}
        self._request: TreeRequest | None = None
        self._output_stage = GuestStage.FENCED
        self._early_output: list[tuple[OutputStream, bytes]] = []
        self._order = OutputOrder(self._deliver_output)
        self._message_count = 0
        self._failure: Exception | None = None
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._stage_waiter: tuple[GuestStage, asyncio.Future[None]] | None = None
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self.report = ExitReport()
        self._watch = TreeWatch(leader, self.report, self.kill)
        # Set when it printed more than is buffered before its run.
        self.is_too_loud = False
        # Called once when the tree has ended, for any reason.
        self.on_gone: Callable[[], None] | None = None
        self._loop.add_reader(self._answer, self._read_answer)
        leader.watch_exit(self._on_leader_exit)

    @property
    def is_gone(self) -> bool:
        """Return whether the tree has ended and all its resources are freed."""
        return self._gone.done()

    @property
    def pid(self) -> int | None:
        """Return the number of its first process on this host, once it is known."""
        return self._leader.pid1

    @property
    def listener_count(self) -> int:
        """Return how many listeners its network has."""
        return 0 if self._listeners is None else len(self._listeners.places)

    def limit_answer(self, max_bytes: int) -> None:
        """Bound the answer by so many bytes from here on."""
        self._parser.max_answer_bytes = max_bytes

    def expect_network(self, network: ProgramNetwork | None) -> None:
        """Choose the listeners that a tree has which was started without a program."""
        if self._listeners is not None:
            self._listeners.expect_places([] if network is None else list_listener_places(network))

    def set_group(self, group: ControlGroup | None) -> None:
        """Set the group that the tree has joined, which is removed when the tree has ended."""
        if self.is_gone and group is not None:
            group.remove()
        else:
            self._group = group

    def configure_guest(self, head: bytes, memory_mb: int, watchdog: ResourceWatchdog | None) -> None:
        """Send the guest its head, and bound and watch the tree's memory from here on."""
        if self.is_gone:
            return
        if self._group is not None and self._group.memory_mb != memory_mb:
            try:
                self._group.limit_memory(memory_mb)
            except OSError as error:
                self.fail(SandboxStartError(f"its memory cannot be bounded: {error}"))
                return
        if not self._done.done():
            self._watch.start(watchdog)
        self.send_data(head)

    async def run(
        self, request: TreeRequest, timeout: float, prepare: Callable[[], Awaitable[None]] | None = None
    ) -> ExitReport:
        """Send the request, pass on what the tree prints and says, and return when it has ended or was ended.

        `timeout` is in seconds. `prepare` is awaited before the request is sent, while output is passed on already.
        Errors: `SandboxStartError`, and any error of a callback.
        """
        self._request, self._output_stage = request, request.output_stage
        self._flush_early_output()
        if not self.is_gone:
            self._timers["timeout"] = self._loop.call_later(max(0.0, timeout), self._on_timeout)
        if prepare is not None:
            await prepare()
        if not self.is_gone:
            self._feed.send(request.data)
        await self._wait_for_future(self._done)
        if self.report.stage >= GuestStage.FENCED and not self.report.is_retryable:
            self._output_stage = GuestStage.FENCED
            self._flush_early_output()
        if self._failure is not None and not self.report.timed_out:
            raise self._failure
        stopped = self.report.timed_out or self.report.kill_reason is not None
        if self.report.stage < GuestStage.FENCED and not stopped:
            text = b"".join(data for _, data in self._early_output).decode(errors="replace").strip()
            raise SandboxStartError(text or self.report.lost_reason or f"it ended with status {self.report.status}")
        return self.report

    async def wait_for_stage(self, stage: GuestStage, timeout: float) -> bool:
        """Wait until the tree reaches a stage. Returns False if it ended, answered, or took too long instead."""
        if self.report.stage < stage and not self.is_gone and not self._parser.answer:
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
        """Kill the tree and wait until it has ended, even if the waiting is cancelled meanwhile."""
        self.kill()
        await self._wait_for_future(self._gone)

    def kill(self) -> None:
        """Kill the tree without waiting for its end."""
        if not self.is_gone:
            self._leader.kill()

    async def pause(self) -> int | None:
        """Stop the tree until `resume`, so that it uses no processor time. Returns the bytes that it alone holds.

        Returns None if it is not a single process that has stopped: other processes would run on.
        """
        self._watch.stop()
        self._leader.send_signal(signal.SIGSTOP)
        return await asyncio.to_thread(measure_stopped, self._leader.pid1, self._is_fenced)

    @property
    def _is_fenced(self) -> bool:
        return self.report.stage >= GuestStage.FENCED

    @property
    def is_awake(self) -> bool:
        """Return whether a paused tree runs all the same: then its code has found a way to wake it."""
        return self._leader.pid1 is not None and is_awake(self._leader.pid1, self._is_fenced)

    def resume(self, watchdog: ResourceWatchdog | None) -> None:
        """Resume a paused tree, watched from here on."""
        if not self._done.done():
            self._watch.start(watchdog)
        self._leader.send_signal(signal.SIGCONT)

    def allow_memory(self, size: int) -> None:
        """Raise the memory limit by so many bytes: files that the run was given lie in memory."""
        self._watch.allow_bytes(size)

    def serve_network(self, serve: NetworkServer | None) -> AbstractAsyncContextManager[None]:
        """Serve on the tree's listeners, if it has any, around `run`. See `SandboxListeners.serve_connections`."""
        return nullcontext() if self._listeners is None else self._listeners.serve_connections(serve, self.kill)

    async def _wait_for_future(self, future: "asyncio.Future[None]") -> None:
        cancelled = False
        while not future.done():
            try:
                await asyncio.shield(future)
            except asyncio.CancelledError:
                # A cancelled caller needs nothing but the tree's end.
                cancelled, future = True, self._gone
                self.kill()
        if cancelled:
            raise asyncio.CancelledError

    def send_data(self, data: bytes) -> None:
        """Send the guest data as it reads."""
        if not self.is_gone:
            self._feed.send(data)

    # reading from the guest

    def _read_answer(self) -> None:
        began = self._loop.time()
        try:
            part = os.read(self._answer, ANSWER_CHUNK_BYTES)
        except BlockingIOError:
            return
        if part:
            self._process_answer(part)
            self._limit_speed("answer", self._answer, len(part), self._read_answer, began)
            return
        self._loop.remove_reader(self._answer)
        returns_early = self._request is not None and self._request.returns_early
        if returns_early and self.report.stage >= GuestStage.PAYLOAD_READ and self._parser.answer:
            self._complete_report()

    def _process_answer(self, part: bytes) -> None:
        parser, before = self._parser, self.report.stage
        messages = parser.parse_piece(part)
        if parser.stage > before:
            if before < GuestStage.FENCED <= parser.stage:
                for stream, fd in self._streams.items():
                    self._loop.add_reader(fd, self._read_output, stream)
            self.report.stage = parser.stage
            if self._listeners is not None and parser.stage >= GuestStage.FENCED:
                self._receive_listeners(self._listeners)
            self._flush_early_output()
        for message in messages:
            self._deliver_message(message)
        if parser.has_given_up and not self._has_given_up:
            # Our guest never writes this, so nothing that follows counts.
            self.report.is_oversized, self.report.is_malformed = parser.is_oversized, parser.is_malformed
            self._loop.remove_reader(self._answer)
            self.kill()
        if self._stage_waiter is not None and (self._stage_waiter[0] <= self.report.stage or parser.answer):
            self._wake_stage_waiter()

    def _receive_listeners(self, listeners: SandboxListeners) -> None:
        try:
            listeners.receive_sockets()
        except SandboxLost as error:
            self.fail(error)

    @property
    def _has_given_up(self) -> bool:
        return self.report.is_oversized or self.report.is_malformed

    def _deliver_message(self, message: GuestMessage) -> None:
        self._message_count += 1
        on_message = self._request.hooks.on_message if self._request is not None else None
        if not message.number:
            self._call_back(on_message, message.kind, message.data)
            return
        # What was printed before an output lies in the pipes by now.
        for stream, fd in self._streams.items():
            if not self._order.has_mark(stream, message.number):
                for part in drain_pipe(fd):
                    self._read_bytes[stream] += len(part)
                    self._order.add_output(stream, part)
                    if self._order.has_mark(stream, message.number):
                        break
        self._order.begin_output(message.number)
        self._call_back(on_message, message.kind, message.data)
        self._order.end_output(message.number)

    def _read_output(self, stream: OutputStream) -> None:
        fd, began = self._streams[stream], self._loop.time()
        try:
            part = os.read(fd, READ_CHUNK_BYTES)
        except BlockingIOError:
            return
        if not part:
            self._loop.remove_reader(fd)
            return
        self._order.add_output(stream, part)
        self._limit_speed(stream, fd, len(part), functools.partial(self._read_output, stream), began)

    def _limit_speed(self, pipe: str, fd: int, size: int, read: Callable[[], None], began: float) -> None:
        """Make a flooding tree wait between reads: what it writes past full speed is not kept in any case."""
        self._read_bytes[pipe] += size
        is_flood = self._read_bytes[pipe] > FULL_SPEED_BYTES or self._message_count > FULL_SPEED_MESSAGES
        if is_flood and not self._done.done() and not self._has_given_up:
            self._loop.remove_reader(fd)
            pause = max(FLOOD_PAUSE_SECONDS, FLOOD_PAUSE_FACTOR * (self._loop.time() - began))
            self._timers[pipe] = self._loop.call_later(pause, self._loop.add_reader, fd, read)

    def _deliver_output(self, stream: OutputStream, data: bytes) -> None:
        # Output before the guest's stage is from the process that built the fence, not from the agent.
        if self._request is None or self.report.stage < self._output_stage:
            self._early_output.append((stream, data))
            if sum(len(chunk) for _, chunk in self._early_output) > MAX_EARLY_OUTPUT_BYTES:
                self.is_too_loud = True
                self.kill()
            return
        self._call_back(self._request.on_output, stream, data)

    def _call_back(self, callback: Callable[..., None] | None, *args: object) -> None:
        """Call a callback of the request; after one has failed, none is called."""
        if callback is None or self._failure is not None:
            return
        try:
            callback(*args)
        except Exception as error:
            self.fail(error)

    def _flush_early_output(self) -> None:
        if self._request is not None and self.report.stage >= self._output_stage:
            chunks, self._early_output = self._early_output, []
            for stream, data in chunks:
                self._deliver_output(stream, data)

    # ending the tree

    def fail(self, error: Exception) -> None:
        """Kill the tree, and let `run` raise this error."""
        self._failure = self._failure or error
        self.kill()

    def _on_timeout(self) -> None:
        self.report.timed_out = True
        self.kill()

    def _wake_stage_waiter(self) -> None:
        if self._stage_waiter is not None and not self._stage_waiter[1].done():
            self._stage_waiter[1].set_result(None)

    def _cancel_timer(self, timer: str) -> None:
        if timer in self._timers:
            self._timers.pop(timer).cancel()

    def _on_leader_exit(self, status: int | None, lost_reason: str | None) -> None:
        if self.is_gone:
            return
        self.report.status, self.report.lost_reason = status, lost_reason
        self._complete_report()
        self._feed.close()
        for fd in (self._answer, *self._streams.values()):
            os.close(fd)
        self._leader.close()
        if self._listeners is not None:
            self._listeners.close()
        if self._group is not None:
            self._group.remove()
        self._gone.set_result(None)
        self._wake_stage_waiter()
        if self.on_gone is not None:
            self.on_gone()

    def _complete_report(self) -> None:
        """Read what the pipes hold, ignore what comes later, and let `run` return."""
        if self._done.done():
            return
        self.kill()
        for part in drain_pipe(self._answer):
            if not self._has_given_up:
                self._process_answer(part)
        for stream, fd in self._streams.items():
            for part in drain_pipe(fd):
                self._order.add_output(stream, part)
        self._order.deliver_rest()
        for timer in list(self._timers):
            self._cancel_timer(timer)
        self._watch.stop()
        for fd in (self._answer, *self._streams.values()):
            self._loop.remove_reader(fd)
        self.report.answer = bytes(self._parser.answer)
        if self._group is not None and self._group.has_run_out():
            self.report.kill_reason = f"out_of_memory:{self._group.memory_mb}"
        self._done.set_result(None)
