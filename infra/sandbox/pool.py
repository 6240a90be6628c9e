"""Warm slots: sandboxes that have imported a version's entrypoint already and wait for one payload.

Each is used once and replaced off the critical path. How they are made is a `Maker`'s business. A slot
belongs to everything that decides what was imported: the folders (by name, device and inode), the
entrypoint and the memory limit. While it waits it is stopped, so that it costs memory and nothing else.
"""

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

import structlog

from domain.ports import GatewayServer, OutputCallback, SandboxOutcome, SandboxProgram
from domain.shared.errors import DomainError
from infra.sandbox.backend import SandboxBackend, SlotCounts
from infra.sandbox.demand import FolderIdentity, SlotDemand, VersionKey, get_version_key, read_folder_identity
from infra.sandbox.exit_report import ExitReport, GuestStage, SandboxStartError
from infra.sandbox.guest_protocol import (
    CHECK_TIMEOUT_SECONDS,
    create_unavailable_error,
    encode_frame,
    outcome_from_report,
)
from infra.sandbox.process_tree import ProcessTree

MAX_IDLE_SLOTS: Final = 64
BLANK_SLOT_COUNT: Final = 2
# Nobody shall meet a clock, or anything else read while importing, that is older than this, in seconds.
MAX_SLOT_AGE_SECONDS: Final = 240.0
SWEEP_INTERVAL_SECONDS: Final = 5.0
# How many slots nobody waits for are made at a time, so that runs keep the processors. One whose import
# takes longer than `SLOW` seconds stops counting, or it would keep every other version cold; up to a bound.
MAX_QUICK_REFILLS: Final = 2
SLOW_IMPORT_SECONDS: Final = 1.0
MAX_PENDING_REFILLS: Final = 8
# A slot that was taken is replaced this much later, in seconds: a short run is over by then, and goes first.
REFILL_DELAY_SECONDS: Final = 0.004
# How long a version is not warmed after its import failed, and after anything else went wrong, in seconds.
FAILED_IMPORT_PAUSE_SECONDS: Final = 60.0
DEAD_SLOT_PAUSE_SECONDS: Final = 1.0
# What a slot is taken to hold until one of its version was measured.
DEFAULT_SLOT_BYTES: Final = 8 << 20
MAX_RUN_ATTEMPTS: Final = 3

_log = structlog.get_logger("paddock.sandbox")


class IdleSlot:  # noqa: D101
    def __init__(self, tree: ProcessTree, made: float, memory: int, of: FolderIdentity | None) -> None:
        self.tree, self.created_at, self.memory_bytes, self.identity = tree, made, memory, of


class PendingSlot:
    """A slot on its way. A run that comes meanwhile may claim it rather than have another made."""

    def __init__(self, since: float, of: FolderIdentity | None) -> None:
        self.started_at, self.identity = since, of
        self.claim_future: asyncio.Future[ProcessTree | None] | None = None

    def claim_tree(self) -> "asyncio.Future[ProcessTree | None]":
        self.claim_future = asyncio.get_running_loop().create_future()
        return self.claim_future

    def deliver_tree(self, tree: ProcessTree | None) -> bool:
        """Give the slot to whoever waits. False if nobody does."""
        if self.claim_future is None or self.claim_future.done():
            return False
        self.claim_future.set_result(tree)
        return True


class VersionSlots:
    """What the pool knows of one key."""

    def __init__(self, program: SandboxProgram) -> None:
        self.program = program
        self.demand = SlotDemand()
        self.idle_slots: list[IdleSlot] = []
        self.pending_slots: list[PendingSlot] = []
        self.paused_until = 0.0
        self.slot_bytes = DEFAULT_SLOT_BYTES

    def list_unclaimed(self) -> list[PendingSlot]:
        return [one for one in self.pending_slots if one.claim_future is None or one.claim_future.cancelled()]

    def count_missing(self, now: float) -> int:
        if now < self.paused_until:
            return 0
        return self.demand.count_wanted_slots(now) - len(self.idle_slots) - len(self.list_unclaimed())


class SlotPool:
    """The pool of one worker process. `memory_mb` bounds what idle slots hold together, `most` how many they are."""

    def __init__(
        self,
        backend: SandboxBackend,
        memory_mb: int,
        max_slots: int = MAX_IDLE_SLOTS,
        blank_count: int = BLANK_SLOT_COUNT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backend, self._clock = backend, clock
        self._memory_limit_bytes, self._max_slots = memory_mb << 20, max_slots
        self._blank_count = min(blank_count, max_slots) if backend.supports_blanks and memory_mb else 0
        self._versions: dict[VersionKey, VersionSlots] = {}
        self._blank_slots: list[IdleSlot] = []
        self._pending_blanks: list[PendingSlot] = []
        self._idle_slots: dict[ProcessTree, IdleSlot] = {}
        self._trees: set[ProcessTree] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy_count = 0
        self._blanks_paused_until = 0.0
        self._refill_timer: asyncio.TimerHandle | None = None
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    @property
    def counts(self) -> SlotCounts:
        """What there is now."""
        making = sum(len(version.pending_slots) for version in self._versions.values())
        return SlotCounts(
            warm=sum(len(version.idle_slots) for version in self._versions.values()),
            blank=len(self._blank_slots),
            making=making + len(self._pending_blanks),
            busy=self._busy_count,
        )

    def start_refilling(self) -> None:
        """Have blank slots made before the first run comes."""
        self._refill_slots()

    async def run_program(
        self, program: SandboxProgram, payload: bytes, on_output: OutputCallback, serve: GatewayServer | None = None
    ) -> SandboxOutcome:
        """Call the entrypoint with a payload, in a warm slot if there is one. As `domain.ports.Sandbox.run_program`."""
        version = self._get_version(program)
        version.demand.record_start(self._clock())
        self._busy_count += 1
        request, until = encode_frame(payload), asyncio.get_running_loop().time() + program.timeout
        try:
            for _ in range(MAX_RUN_ATTEMPTS):
                tree = await self._find_warm_tree(version, program, until)
                if tree is None:
                    break
                tree.resume(self._backend.create_watchdog(program))
                ending = await self._run_in_tree(tree, request, until, on_output, GuestStage.PAYLOAD_READ, serve)
                if not ending.is_retryable:
                    return outcome_from_report(ending, program.timeout, program.memory_mb)
                _log.info("a warm slot was dead when it was used", status=ending.status)
            return await self._run_cold(program, request, until, on_output, serve)
        finally:
            self._busy_count -= 1
            version.demand.record_end(self._clock())

    async def close(self) -> None:
        """Kill every slot, whatever it does, and wait until all are gone."""
        self._is_closed = True
        for timer in (self._sweep_timer, self._refill_timer):
            if timer is not None:
                timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._idle_slots.clear()
        for tree in list(self._trees):
            await tree.kill_and_wait()

    def sweep_slots(self) -> None:
        """Let go of what is too old or no longer wanted, and have made what is missing."""
        now = self._clock()
        for found, version in list(self._versions.items()):
            wanted = version.demand.count_wanted_slots(now)
            for slot in [
                *version.idle_slots[wanted:],
                *(one for one in version.idle_slots[:wanted] if self._is_expired(one, now)),
            ]:
                self._drop_slot(version.idle_slots, slot)
            if (
                wanted == 0
                and not version.pending_slots
                and now >= version.paused_until
                and not version.demand.running_count
            ):
                del self._versions[found]
        for slot in [one for one in self._blank_slots if self._is_expired(one, now)]:
            self._drop_slot(self._blank_slots, slot)
        for tree in [one for one in self._idle_slots if one.is_awake]:
            _log.warning("a slot that should wait was awake; it is killed")
            tree.kill()
        self._refill_slots()

    # one run

    def _get_version(self, program: SandboxProgram) -> VersionSlots:
        """What is known of this program's version. The dictionary is in the order of use."""
        found = self._versions.pop(get_version_key(program), None) or VersionSlots(program)
        self._versions[get_version_key(program)] = found
        found.program = program
        return found

    async def _run_in_tree(
        self,
        tree: ProcessTree,
        request: bytes,
        until: float,
        on_output: OutputCallback,
        since: GuestStage,
        serve: GatewayServer | None,
    ) -> ExitReport:
        self._schedule_refill(REFILL_DELAY_SECONDS)
        left = max(0.0, until - asyncio.get_running_loop().time())
        async with tree.serve_gateway(serve):
            return await tree.run(request, left, on_output, since, returns_early=True)

    async def _find_warm_tree(self, version: VersionSlots, program: SandboxProgram, until: float) -> ProcessTree | None:
        """A slot of this version as it is now, or None. It may be stopped still."""
        now, of = self._clock(), read_folder_identity(program)
        for slot in [one for one in version.idle_slots if one.identity != of or self._is_expired(one, now)]:
            self._drop_slot(version.idle_slots, slot)
        if version.idle_slots:
            return self._take_slot(version.idle_slots)
        waiting = [one for one in version.list_unclaimed() if one.identity == of]
        if not waiting:
            return None
        claimed = waiting[0].claim_tree()
        try:
            async with asyncio.timeout_at(until):
                return await claimed
        except TimeoutError:
            return _get_delivered_tree(claimed)
        except asyncio.CancelledError:
            if (tree := _get_delivered_tree(claimed)) is not None:
                tree.kill()
            raise

    async def _run_cold(
        self,
        program: SandboxProgram,
        request: bytes,
        until: float,
        on_output: OutputCallback,
        serve: GatewayServer | None,
    ) -> SandboxOutcome:
        for left in reversed(range(MAX_RUN_ATTEMPTS)):
            # A blank slot's filter is made already, and it is the one without sockets.
            if self._blank_slots and left and not program.gateway:
                tree = self._take_slot(self._blank_slots)
                tree.resume(None)
            else:
                tree = await self._start_tree(program)
            self._backend.assign_program(tree, program, "run")
            try:
                ending = await self._run_in_tree(tree, request, until, on_output, GuestStage.FENCED, serve)
            except SandboxStartError as error:
                # It never came to run anything of the agent's, so that another may, unless that would fail as well.
                if not tree.report.has_been_killed or not left:
                    raise create_unavailable_error(str(error)) from error
            else:
                return outcome_from_report(ending, program.timeout, program.memory_mb)
        raise create_unavailable_error("every slot that was made for this run was killed")

    # making and letting go

    async def _start_tree(self, program: SandboxProgram | None) -> ProcessTree:
        if self._is_closed:
            raise create_unavailable_error("the worker is ending")
        tree = await self._backend.start_tree(program)
        self._trees.add(tree)
        tree.on_gone = functools.partial(self._on_tree_gone, tree)
        if tree.is_gone:
            self._trees.discard(tree)
        return tree

    def _take_slot(self, slots: list[IdleSlot]) -> ProcessTree:
        tree = slots.pop(0).tree
        del self._idle_slots[tree]
        return tree

    def _on_tree_gone(self, tree: ProcessTree) -> None:
        self._trees.discard(tree)
        if self._idle_slots.pop(tree, None) is None:
            return
        _log.info("an idle slot ended and is replaced", status=tree.report.status)
        again = self._clock() + DEAD_SLOT_PAUSE_SECONDS
        self._blank_slots = [slot for slot in self._blank_slots if slot.tree is not tree]
        for version in self._versions.values():
            if any(slot.tree is tree for slot in version.idle_slots):
                version.idle_slots = [slot for slot in version.idle_slots if slot.tree is not tree]
                # Not at once: whatever killed it, a lack of memory say, may do it again.
                version.paused_until = max(version.paused_until, again)
        self._schedule_refill(DEAD_SLOT_PAUSE_SECONDS)

    def _schedule_refill(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if self._refill_timer is not None:
            if self._refill_timer.when() <= loop.time() + seconds:
                return
            self._refill_timer.cancel()
        self._refill_timer = loop.call_later(seconds, self._refill_slots)

    def _refill_slots(self) -> None:
        if self._refill_timer is not None:
            self._refill_timer.cancel()
            self._refill_timer = None
        if self._is_closed:
            return
        if self._sweep_timer is None and (self._versions or self._blank_slots):
            self._sweep_timer = asyncio.get_running_loop().call_later(SWEEP_INTERVAL_SECONDS, self._on_sweep_timer)
        if not self._memory_limit_bytes:
            return
        now = self._clock()
        free = self._count_free_starts(now)
        if now >= self._blanks_paused_until:
            missing = self._blank_count - len(self._blank_slots) - len(self._pending_blanks)
            for _ in range(min(missing, free)):
                if self._make_room(DEFAULT_SLOT_BYTES, None):
                    free -= 1
                    making = PendingSlot(now, None)
                    self._pending_blanks.append(making)
                    self._start_task(self._make_blank_slot(making))
        for version in reversed(self._versions.values()):
            for _ in range(min(version.count_missing(now), free)):
                if not self._make_room(version.slot_bytes, version):
                    return  # and those that were used less recently have less of a claim
                free -= 1
                making = PendingSlot(now, read_folder_identity(version.program))
                version.pending_slots.append(making)
                self._start_task(self._make_warm_slot(version, making))

    def _count_free_starts(self, now: float) -> int:
        """How many more slots may be made that nobody waits for."""
        underway = [
            *self._pending_blanks,
            *(one for version in self._versions.values() for one in version.list_unclaimed()),
        ]
        quick = [one for one in underway if now - one.started_at < SLOW_IMPORT_SECONDS]
        return max(0, min(MAX_QUICK_REFILLS - len(quick), MAX_PENDING_REFILLS - len(underway)))

    def _on_sweep_timer(self) -> None:
        self._sweep_timer = None
        self.sweep_slots()

    def _start_task(self, making: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(making)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._refill_slots()

    async def _make_blank_slot(self, making: PendingSlot) -> None:
        tree, kept = None, False
        try:
            tree = await self._start_tree(None)
            if await tree.wait_for_stage(GuestStage.BLANK, CHECK_TIMEOUT_SECONDS):
                memory = await tree.pause()
                kept = not tree.is_gone and not self._is_closed
                if kept:
                    self._blank_slots.append(self._add_idle_slot(tree, memory or DEFAULT_SLOT_BYTES, None))
        except DomainError as error:
            _log.warning("cannot make a blank slot", reason=error.detail)
        finally:
            self._pending_blanks.remove(making)
            if not kept:
                self._blanks_paused_until = self._clock() + DEAD_SLOT_PAUSE_SECONDS
                if tree is not None:
                    tree.kill()

    async def _make_warm_slot(self, version: VersionSlots, making: PendingSlot) -> None:
        tree, kept = None, False
        try:
            tree = await self._start_tree(version.program)
            self._backend.assign_program(tree, version.program, "run")
            if await tree.wait_for_stage(GuestStage.IMPORTED, CHECK_TIMEOUT_SECONDS):
                kept = making.deliver_tree(tree)
                if not kept:
                    memory = await tree.pause()
                    kept = making.deliver_tree(tree) or self._keep_tree(version, tree, memory, making.identity)
        except DomainError as error:
            _log.warning("cannot make a warm slot", reason=error.detail)
        finally:
            version.pending_slots.remove(making)
            making.deliver_tree(None)
            if not kept:
                # A version that cannot wait runs cold, and its run says what is wrong with it.
                by_itself = tree is None or (tree.is_gone and tree.report.has_been_killed and not tree.is_too_loud)
                version.paused_until = self._clock() + (
                    DEAD_SLOT_PAUSE_SECONDS if by_itself else FAILED_IMPORT_PAUSE_SECONDS
                )
                if tree is not None:
                    tree.kill()

    def _keep_tree(
        self, version: VersionSlots, tree: ProcessTree, memory: int | None, of: FolderIdentity | None
    ) -> bool:
        """Whether a slot waits from here on. Not if it started processes: no signal to the first stops those."""
        if tree.is_gone or self._is_closed or memory is None:
            return False
        version.slot_bytes = max(memory, 1 << 20)
        if not self._make_room(version.slot_bytes, version):
            return False
        version.idle_slots.append(self._add_idle_slot(tree, version.slot_bytes, of))
        return True

    def _add_idle_slot(self, tree: ProcessTree, memory: int, of: FolderIdentity | None) -> IdleSlot:
        slot = self._idle_slots[tree] = IdleSlot(tree, self._clock(), memory, of)
        return slot

    def _make_room(self, memory: int, wanting: VersionSlots | None) -> bool:
        """Make room for one more slot, if need be at the cost of versions that were used less recently."""
        while not self._has_room(memory):
            if wanting is None:
                return False
            other = next((one for one in self._versions.values() if one.idle_slots or one is wanting), wanting)
            if other is wanting:
                return False
            self._drop_slot(other.idle_slots, other.idle_slots[0])
        return True

    def _has_room(self, memory: int) -> bool:
        held = sum(slot.memory_bytes for slot in self._idle_slots.values())
        return len(self._idle_slots) < self._max_slots and held + memory <= self._memory_limit_bytes

    def _is_expired(self, slot: IdleSlot, now: float) -> bool:
        return now - slot.created_at > MAX_SLOT_AGE_SECONDS

    def _drop_slot(self, slots: list[IdleSlot], slot: IdleSlot) -> None:
        slots.remove(slot)
        del self._idle_slots[slot.tree]
        slot.tree.kill()


def _get_delivered_tree(claimed: "asyncio.Future[ProcessTree | None]") -> ProcessTree | None:
    """What was handed over in the very moment in which its receiver gave up."""
    return claimed.result() if claimed.done() and not claimed.cancelled() else None
