"""Manage warm slots: sandboxes that have already imported a version's entrypoint and wait for one payload.

Each slot is used once and replaced off the critical path; a `SandboxBackend` starts them. A slot belongs to
everything that decides what was imported: the folders (by name, device and inode), the entrypoint and the memory
limit. While a slot waits it is stopped, so that it uses memory and no processor time.
"""

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from domain.ports import NO_HOOKS, OutputCallback, ProgramHooks, SandboxOutcome, SandboxProgram
from domain.shared.errors import DomainError
from infra.sandbox.backend import SandboxBackend, SlotCounts
from infra.sandbox.demand import FolderIdentity, VersionKey, get_version_key, read_folder_identity
from infra.sandbox.exit_report import ExitReport, GuestStage, SandboxStartError
from infra.sandbox.guest_protocol import (
    CHECK_TIMEOUT_SECONDS,
    create_unavailable_error,
    encode_request,
    outcome_from_report,
)
from infra.sandbox.process_tree import ProcessTree
from infra.sandbox.slots import DEFAULT_SLOT_BYTES, IdleSlot, PendingSlot, VersionSlots, get_delivered_tree
from infra.sandbox.tree_request import TreeRequest, serve_request

MAX_IDLE_SLOTS: Final = 64
BLANK_SLOT_COUNT: Final = 2
# No run is to see a clock, or anything else read while importing, that is older than this.
MAX_SLOT_AGE_SECONDS: Final = 240.0
SWEEP_INTERVAL_SECONDS: Final = 5.0
# So many slots that no run waits for are started at a time, so that runs keep the processors. A slot whose import takes
# longer than `SLOW_IMPORT_SECONDS` no longer counts, or it would keep every other version cold; a second bound holds.
MAX_QUICK_REFILLS: Final = 2
SLOW_IMPORT_SECONDS: Final = 1.0
MAX_PENDING_REFILLS: Final = 8
# A used slot is replaced this much later: a short run is over by then, and goes first.
REFILL_DELAY_SECONDS: Final = 0.004
# A version is not warmed for this long after its import failed, and after any other failure.
FAILED_IMPORT_PAUSE_SECONDS: Final = 60.0
DEAD_SLOT_PAUSE_SECONDS: Final = 1.0
MAX_RUN_ATTEMPTS: Final = 3

_log = structlog.get_logger("paddock.sandbox")


class SlotPool:
    """Manage the slots of a worker process. At most `max_slots` are idle, and hold at most `memory_mb` together."""

    def __init__(
        self,
        backend: SandboxBackend,
        memory_mb: int,
        *,
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
        """Return how many slots there are now."""
        pending = sum(len(version.pending_slots) for version in self._versions.values())
        return SlotCounts(
            warm=sum(len(version.idle_slots) for version in self._versions.values()),
            blank=len(self._blank_slots),
            making=pending + len(self._pending_blanks),
            busy=self._busy_count,
        )

    def start_refilling(self) -> None:
        """Start blank slots before the first run comes."""
        self._refill_slots()

    async def run_program(
        self, program: SandboxProgram, payload: bytes, on_output: OutputCallback, hooks: ProgramHooks = NO_HOOKS
    ) -> SandboxOutcome:
        """Call the entrypoint with a payload, in a warm slot if there is one. See `domain.ports.Sandbox`."""
        version = self._get_version(program)
        version.demand.record_start(self._clock())
        self._busy_count += 1
        deadline = asyncio.get_running_loop().time() + program.timeout
        request = TreeRequest(
            data=encode_request(payload, hooks.context),
            on_output=on_output,
            output_stage=GuestStage.PAYLOAD_READ,
            hooks=hooks,
            returns_early=True,
        )
        try:
            for _ in range(MAX_RUN_ATTEMPTS):
                tree = await self._find_warm_tree(version, program, deadline)
                if tree is None:
                    break
                tree.resume(self._backend.create_watchdog(program))
                report = await self._run_in_tree(tree, request, deadline)
                if not report.is_retryable:
                    return outcome_from_report(report, program.timeout, program.memory_mb)
                _log.info("a warm slot was dead when a run took it", status=report.status)
            cold_request = msgspec.structs.replace(request, output_stage=GuestStage.FENCED)
            return await self._run_cold(program, cold_request, deadline)
        finally:
            self._busy_count -= 1
            version.demand.record_end(self._clock())

    def retire_slots(self, code: Path, current_key: VersionKey | None = None) -> None:
        """Drop the idle slots of the code in this folder but those of `current_key`, pending ones once they are ready.

        Their settings have changed: a secret of before must not stay in memory.
        """
        for key, version in self._versions.items():
            if key[0][0] == str(code) and key != current_key:
                version.is_retired = True
                for slot in list(version.idle_slots):
                    self._drop_slot(version.idle_slots, slot)

    async def close(self) -> None:
        """Kill every slot, idle or busy, and wait until all are gone."""
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
        """Drop slots that are too old or no longer wanted, and start those that are missing."""
        now = self._clock()
        for key, version in list(self._versions.items()):
            count = version.demand.count_wanted_slots(now)
            expired = [slot for slot in version.idle_slots[:count] if self._is_expired(slot, now)]
            for slot in [*version.idle_slots[count:], *expired]:
                self._drop_slot(version.idle_slots, slot)
            is_unused = not version.pending_slots and not version.demand.running_count
            if is_unused and (version.is_retired or (count == 0 and now >= version.paused_until)):
                del self._versions[key]
        for slot in [slot for slot in self._blank_slots if self._is_expired(slot, now)]:
            self._drop_slot(self._blank_slots, slot)
        for tree in [tree for tree in self._idle_slots if tree.is_awake]:
            _log.warning("a waiting slot was awake; it is killed")
            tree.kill()
        self._refill_slots()

    # one run

    def _get_version(self, program: SandboxProgram) -> VersionSlots:
        """Return the slots of this program's version, and move it to the end: the dictionary is in the order of use."""
        key = get_version_key(program)
        version = self._versions.pop(key, None)
        if version is None or version.is_retired:
            self.retire_slots(program.code, key)
            version = VersionSlots(program)
        self._versions[key] = version
        version.program = program
        return version

    async def _run_in_tree(self, tree: ProcessTree, request: TreeRequest, deadline: float) -> ExitReport:
        self._schedule_refill(REFILL_DELAY_SECONDS)
        return await serve_request(tree, request, deadline)

    async def _find_warm_tree(
        self, version: VersionSlots, program: SandboxProgram, deadline: float
    ) -> ProcessTree | None:
        """Return a tree of this version as its folders are now, or None. It may still be stopped."""
        now, identity = self._clock(), read_folder_identity(program)
        for slot in [slot for slot in version.idle_slots if slot.identity != identity or self._is_expired(slot, now)]:
            self._drop_slot(version.idle_slots, slot)
        if version.idle_slots:
            return self._take_slot(version.idle_slots)
        if program.network is not None:
            # The network of a slot that is being made has no server yet: an import that calls out would never end.
            return None
        pending = [slot for slot in version.list_unclaimed() if slot.identity == identity]
        if not pending:
            return None
        claim = pending[0].claim_tree()
        try:
            async with asyncio.timeout_at(deadline):
                return await claim
        except TimeoutError:
            return get_delivered_tree(claim)
        except asyncio.CancelledError:
            if (tree := get_delivered_tree(claim)) is not None:
                tree.kill()
            raise

    async def _run_cold(self, program: SandboxProgram, request: TreeRequest, deadline: float) -> SandboxOutcome:
        for attempts_left in reversed(range(MAX_RUN_ATTEMPTS)):
            if self._blank_slots and attempts_left:
                tree = self._take_slot(self._blank_slots)
                tree.resume(None)
            else:
                tree = await self._start_tree(program)
            self._backend.assign_program(tree, program, "run")
            try:
                report = await self._run_in_tree(tree, request, deadline)
            except SandboxStartError as error:
                # It never ran anything of the agent's, so another tree may, unless that one would fail as well.
                if not tree.report.has_been_killed or not attempts_left:
                    raise create_unavailable_error(str(error)) from error
            else:
                return outcome_from_report(report, program.timeout, program.memory_mb)
        raise create_unavailable_error("every slot that was made for this run was killed")

    # starting and dropping slots

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
        paused_until = self._clock() + DEAD_SLOT_PAUSE_SECONDS
        self._blank_slots = [slot for slot in self._blank_slots if slot.tree is not tree]
        for version in self._versions.values():
            if any(slot.tree is tree for slot in version.idle_slots):
                version.idle_slots = [slot for slot in version.idle_slots if slot.tree is not tree]
                # Not at once: its killer, the lack of memory for example, may kill the next one too.
                version.paused_until = max(version.paused_until, paused_until)
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
        free_starts = self._count_free_starts(now)
        if now >= self._blanks_paused_until:
            missing = self._blank_count - len(self._blank_slots) - len(self._pending_blanks)
            for _ in range(min(missing, free_starts)):
                if self._make_room(DEFAULT_SLOT_BYTES, None):
                    free_starts -= 1
                    pending = PendingSlot(now, None)
                    self._pending_blanks.append(pending)
                    self._start_task(self._make_blank_slot(pending))
        for version in reversed(self._versions.values()):
            for _ in range(min(version.count_missing(now), free_starts)):
                if not self._make_room(version.slot_bytes, version):
                    return  # versions that were used less recently have less of a claim
                free_starts -= 1
                pending = PendingSlot(now, read_folder_identity(version.program))
                version.pending_slots.append(pending)
                self._start_task(self._make_warm_slot(version, pending))

    def _count_free_starts(self, now: float) -> int:
        """Return how many more slots may be started that no run waits for."""
        unclaimed = (slot for version in self._versions.values() for slot in version.list_unclaimed())
        pending = [*self._pending_blanks, *unclaimed]
        quick = [slot for slot in pending if now - slot.started_at < SLOW_IMPORT_SECONDS]
        return max(0, min(MAX_QUICK_REFILLS - len(quick), MAX_PENDING_REFILLS - len(pending)))

    def _on_sweep_timer(self) -> None:
        self._sweep_timer = None
        self.sweep_slots()

    def _start_task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._refill_slots()

    async def _make_blank_slot(self, pending: PendingSlot) -> None:
        tree, is_used = None, False
        try:
            tree = await self._start_tree(None)
            if await tree.wait_for_stage(GuestStage.BLANK, CHECK_TIMEOUT_SECONDS):
                memory_bytes = await tree.pause()
                is_used = not tree.is_gone and not self._is_closed
                if is_used:
                    self._blank_slots.append(self._add_idle_slot(tree, memory_bytes or DEFAULT_SLOT_BYTES, None))
        except DomainError as error:
            _log.warning("cannot make a blank slot", reason=error.detail)
        finally:
            self._pending_blanks.remove(pending)
            if not is_used:
                self._blanks_paused_until = self._clock() + DEAD_SLOT_PAUSE_SECONDS
                if tree is not None:
                    tree.kill()

    async def _make_warm_slot(self, version: VersionSlots, pending: PendingSlot) -> None:
        tree, is_used = None, False
        try:
            tree = await self._start_tree(version.program)
            self._backend.assign_program(tree, version.program, "run")
            if await tree.wait_for_stage(GuestStage.IMPORTED, CHECK_TIMEOUT_SECONDS):
                is_used = pending.deliver_tree(tree)
                if not is_used:
                    memory_bytes = await tree.pause()
                    is_used = pending.deliver_tree(tree) or self._keep_tree(
                        version, tree, memory_bytes, pending.identity
                    )
        except DomainError as error:
            _log.warning("cannot make a warm slot", reason=error.detail)
        finally:
            version.pending_slots.remove(pending)
            pending.deliver_tree(None)
            if not is_used:
                # A version that cannot wait runs cold, and its run reports its error.
                was_killed = tree is None or (tree.is_gone and tree.report.has_been_killed and not tree.is_too_loud)
                pause = DEAD_SLOT_PAUSE_SECONDS if was_killed else FAILED_IMPORT_PAUSE_SECONDS
                version.paused_until = self._clock() + pause
                if tree is not None:
                    tree.kill()

    def _keep_tree(
        self, version: VersionSlots, tree: ProcessTree, memory_bytes: int | None, identity: FolderIdentity | None
    ) -> bool:
        """Keep a tree as an idle slot, if it can wait. One of several processes cannot: stopping one stops no other."""
        if tree.is_gone or self._is_closed or version.is_retired or memory_bytes is None:
            return False
        version.slot_bytes = max(memory_bytes, 1 << 20)
        if not self._make_room(version.slot_bytes, version):
            return False
        version.idle_slots.append(self._add_idle_slot(tree, version.slot_bytes, identity))
        return True

    def _add_idle_slot(self, tree: ProcessTree, memory_bytes: int, identity: FolderIdentity | None) -> IdleSlot:
        slot = self._idle_slots[tree] = IdleSlot(tree, self._clock(), memory_bytes, identity)
        return slot

    def _make_room(self, memory_bytes: int, requester: VersionSlots | None) -> bool:
        """Make room for one more slot, if necessary by dropping slots of versions that were used less recently."""
        while not self._has_room(memory_bytes):
            if requester is None:
                return False
            versions = self._versions.values()
            victim = next((version for version in versions if version.idle_slots or version is requester), requester)
            if victim is requester:
                return False
            self._drop_slot(victim.idle_slots, victim.idle_slots[0])
        return True

    def _has_room(self, memory_bytes: int) -> bool:
        idle_bytes = sum(slot.memory_bytes for slot in self._idle_slots.values())
        idle_weight = sum(slot.weight for slot in self._idle_slots.values())
        return idle_weight < self._max_slots and idle_bytes + memory_bytes <= self._memory_limit_bytes

    def _is_expired(self, slot: IdleSlot, now: float) -> bool:
        return now - slot.created_at > MAX_SLOT_AGE_SECONDS

    def _drop_slot(self, slots: list[IdleSlot], slot: IdleSlot) -> None:
        slots.remove(slot)
        del self._idle_slots[slot.tree]
        slot.tree.kill()
