"""Warm slots: sandboxes that have imported a version's entrypoint already and wait for one payload.

Each is used once and replaced off the critical path. How they are made is a `Maker`'s business. A slot
belongs to everything that decides what was imported: the folders (by name, device and inode), the
entrypoint and the memory limit. While it waits it is stopped, so that it costs memory and nothing else.
"""

import asyncio
import functools
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, Literal, Protocol

import msgspec
import structlog

from domain.errors import DomainError
from domain.ports import OnOutput, Outcome, Program
from infra.sandbox.demand import Demand, Identity, Key, identity, key
from infra.sandbox.guests import CHECK_SECONDS, frame, outcome, unavailable
from infra.sandbox.tree import Ending, Stage, StartFailed, Tree
from infra.sandbox.watch import Watch

MOST: Final = 64
BLANKS: Final = 2
# Nobody shall meet a clock, or anything else read while importing, that is older than this, in seconds.
MAX_AGE: Final = 240.0
TICK: Final = 5.0
# How many slots nobody waits for are made at a time, so that runs keep the processors.
REFILLS: Final = 2
# A slot that was taken is replaced this much later, in seconds: a short run is over by then, and goes first.
REFILL_AFTER: Final = 0.004
# How long a version is not warmed after its import failed, and after anything else went wrong, in seconds.
FAILED_PAUSE: Final = 60.0
DIED_PAUSE: Final = 2.0
# What a slot is taken to hold until one of its version was measured.
GUESS: Final = 8 << 20
ATTEMPTS: Final = 3

_log = structlog.get_logger("paddock.sandbox")


class Maker(Protocol):
    """A way of making sandboxes. `blanks` says whether it can make them before it is known for what."""

    blanks: bool

    async def make(self, program: Program | None) -> Tree:
        """A fresh tree, to be directed; for None a blank one. Errors: `sandbox_unavailable`."""
        ...

    def direct(self, tree: Tree, program: Program, mode: Literal["run", "check"]) -> None:
        """Tell it what to import."""
        ...

    def watch(self, memory_mb: int) -> Watch | None:
        """What watches a tree with this much memory."""
        ...


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """How many slots there are: pre-imported, blank, being made, and with a run in them."""

    warm: int
    blank: int
    making: int
    busy: int


class _Slot:
    def __init__(self, tree: Tree, made: float, memory: int, of: Identity | None) -> None:
        self.tree, self.made, self.memory, self.of = tree, made, memory, of


class _Making:
    """A slot on its way. A run that comes meanwhile may claim it rather than have another made."""

    def __init__(self) -> None:
        self.claimed: asyncio.Future[Tree | None] | None = None

    def claim(self) -> "asyncio.Future[Tree | None]":
        self.claimed = asyncio.get_running_loop().create_future()
        return self.claimed

    def hand(self, tree: Tree | None) -> bool:
        """Give the slot to whoever waits. False if nobody does."""
        if self.claimed is None or self.claimed.done():
            return False
        self.claimed.set_result(tree)
        return True


class _Version:
    """What the pool knows of one key."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.demand = Demand()
        self.ready: list[_Slot] = []
        self.making: list[_Making] = []
        self.paused_until = 0.0
        self.memory = GUESS

    def unclaimed(self) -> list[_Making]:
        return [one for one in self.making if one.claimed is None or one.claimed.cancelled()]

    def missing(self, now: float) -> int:
        if now < self.paused_until:
            return 0
        return self.demand.wanted(now) - len(self.ready) - len(self.unclaimed())


class Slots:
    """The pool of one worker process. `memory_mb` bounds what idle slots hold together, `most` how many they are."""

    def __init__(
        self,
        maker: Maker,
        memory_mb: int,
        most: int = MOST,
        blanks: int = BLANKS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._maker, self._clock = maker, clock
        self._budget, self._most = memory_mb << 20, most
        self._wanted_blanks = min(blanks, most) if maker.blanks and memory_mb else 0
        self._versions: dict[Key, _Version] = {}
        self._blanks: list[_Slot] = []
        self._making_blanks = 0
        self._trees: set[Tree] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy = 0
        self._blank_pause = 0.0
        self._refilling: asyncio.TimerHandle | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def counts(self) -> Counts:
        """What there is now."""
        making = sum(len(version.making) for version in self._versions.values())
        return Counts(
            warm=sum(len(version.ready) for version in self._versions.values()),
            blank=len(self._blanks),
            making=making + self._making_blanks,
            busy=self._busy,
        )

    def begin(self) -> None:
        """Have blank slots made before the first run comes."""
        self._refill()

    async def run(self, program: Program, payload: bytes, on_output: OnOutput) -> Outcome:
        """Call the entrypoint with a payload, in a warm slot if there is one. As `domain.ports.Sandbox.run`."""
        version = self._versions.setdefault(key(program), _Version(program))
        version.program = program
        version.demand.begin(self._clock())
        self._busy += 1
        request = frame(payload)
        try:
            for _ in range(ATTEMPTS):
                tree = await self._warm(version, program)
                if tree is None:
                    break
                tree.resume(self._maker.watch(program.memory_mb))
                ending = await self._in(tree, request, program, on_output, Stage.TAKEN)
                if not ending.untouched:
                    return outcome(ending, program.timeout, program.memory_mb)
                _log.info("a warm slot was dead when it was used", status=ending.status)
            return await self._cold(program, request, on_output)
        finally:
            self._busy -= 1
            version.demand.end(self._clock())

    async def close(self) -> None:
        """Kill every slot, whatever it does, and wait until all are gone."""
        self._closed = True
        for timer in (self._ticking, self._refilling):
            if timer is not None:
                timer.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._blanks.clear()
        self._versions.clear()
        for tree in list(self._trees):
            await tree.end()

    def look(self) -> None:
        """Let go of what is too old or no longer wanted, and have made what is missing."""
        now = self._clock()
        for found, version in list(self._versions.items()):
            wanted = version.demand.wanted(now)
            for slot in [*version.ready[wanted:], *(one for one in version.ready[:wanted] if self._old(one, now))]:
                self._drop(version.ready, slot)
            if wanted == 0 and not version.making and now >= version.paused_until and not version.demand.running:
                del self._versions[found]
        for slot in [one for one in self._blanks if self._old(one, now)]:
            self._drop(self._blanks, slot)
        self._refill()

    # one run

    async def _in(self, tree: Tree, request: bytes, program: Program, on_output: OnOutput, since: Stage) -> Ending:
        if self._refilling is None:
            self._refilling = asyncio.get_running_loop().call_later(REFILL_AFTER, self._refill)
        return await tree.run(request, program.timeout, on_output, since, early=True)

    async def _warm(self, version: _Version, program: Program) -> Tree | None:
        """A slot of this version as it is now, or None. It may be stopped still."""
        now, of = self._clock(), identity(program)
        for slot in [one for one in version.ready if one.of != of or self._old(one, now)]:
            self._drop(version.ready, slot)
        if version.ready:
            return version.ready.pop(0).tree
        waiting = version.unclaimed()
        if not waiting:
            return None
        claimed = waiting[0].claim()
        try:
            async with asyncio.timeout(program.timeout):
                tree = await claimed
        except TimeoutError:
            return None
        except asyncio.CancelledError:
            if claimed.done() and not claimed.cancelled() and (made := claimed.result()) is not None:
                made.kill()
            raise
        return tree

    async def _cold(self, program: Program, request: bytes, on_output: OnOutput) -> Outcome:
        for attempt in range(ATTEMPTS):
            if self._blanks and attempt == 0:
                tree = self._blanks.pop(0).tree
                tree.resume(None)
            else:
                tree = await self._made(program)
            self._maker.direct(tree, program, "run")
            try:
                ending = await self._in(tree, request, program, on_output, Stage.FENCED)
            except StartFailed as error:
                # It never came to run anything of the agent's, so that another may, unless that would fail as well.
                if not tree.ending.killed or attempt == ATTEMPTS - 1:
                    raise unavailable(str(error)) from error
                continue
            return outcome(ending, program.timeout, program.memory_mb)
        raise AssertionError

    # making and letting go

    async def _made(self, program: Program | None) -> Tree:
        tree = await self._maker.make(program)
        self._trees.add(tree)
        tree.on_gone = functools.partial(self._gone, tree)
        if tree.gone:
            self._trees.discard(tree)
        return tree

    def _gone(self, tree: Tree) -> None:
        self._trees.discard(tree)
        for slots in (self._blanks, *(version.ready for version in self._versions.values())):
            for slot in slots:
                if slot.tree is tree:
                    _log.info("an idle slot ended and is replaced", status=tree.ending.status)
                    slots.remove(slot)
                    self._refill()
                    return

    def _refill(self) -> None:
        if self._refilling is not None:
            self._refilling.cancel()
            self._refilling = None
        if self._closed or not self._budget:
            return
        now = self._clock()
        underway = self._making_blanks + sum(len(version.unclaimed()) for version in self._versions.values())
        if now >= self._blank_pause:
            for _ in range(self._wanted_blanks - len(self._blanks) - self._making_blanks):
                if underway < REFILLS and self._room(GUESS, None):
                    underway += 1
                    self._making_blanks += 1
                    self._begin(self._make_blank())
        for version in self._by_use():
            while underway < REFILLS and version.missing(now) > 0 and self._room(version.memory, version):
                underway += 1
                making = _Making()
                version.making.append(making)
                self._begin(self._make_warm(version, making))
        if self._ticking is None and (self._versions or self._blanks):
            self._ticking = asyncio.get_running_loop().call_later(TICK, self._tick)

    def _tick(self) -> None:
        self._ticking = None
        self.look()

    def _begin(self, making: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(making)
        self._tasks.add(task)
        task.add_done_callback(self._begun)

    def _begun(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._refill()

    async def _make_blank(self) -> None:
        try:
            tree = await self._made(None)
            if await tree.reach(Stage.BLANK, CHECK_SECONDS):
                memory = await tree.pause()
                if memory is not None and not self._closed and not tree.gone:
                    self._blanks.append(_Slot(tree, self._clock(), memory, None))
                    return
            tree.kill()
            self._blank_pause = self._clock() + DIED_PAUSE
        except DomainError as error:
            _log.warning("cannot make a blank slot", reason=error.detail)
            self._blank_pause = self._clock() + DIED_PAUSE
        finally:
            self._making_blanks -= 1

    async def _make_warm(self, version: _Version, making: _Making) -> None:
        tree, kept = None, False
        try:
            program, of = version.program, identity(version.program)
            tree = await self._made(program)
            self._maker.direct(tree, program, "run")
            if not await tree.reach(Stage.IMPORTED, CHECK_SECONDS):
                died = tree.gone and not tree.ending.answer
                version.paused_until = self._clock() + (DIED_PAUSE if died else FAILED_PAUSE)
                return
            kept = making.hand(tree)
            if kept:
                return
            memory = await tree.pause()
            kept = making.hand(tree) or self._keep(version, tree, memory, of)
        except DomainError as error:
            _log.warning("cannot make a warm slot", reason=error.detail)
            version.paused_until = self._clock() + DIED_PAUSE
        finally:
            version.making.remove(making)
            making.hand(None)
            if tree is not None and not kept:
                tree.kill()

    def _keep(self, version: _Version, tree: Tree, memory: int | None, of: Identity | None) -> bool:
        if tree.gone or self._closed:
            return False
        if memory is None:
            # It started processes, which no signal to the first of them stops.
            version.paused_until = self._clock() + FAILED_PAUSE
            return False
        version.memory = max(memory, 1 << 20)
        if not self._room(version.memory, version):
            version.paused_until = self._clock() + FAILED_PAUSE
            return False
        version.ready.append(_Slot(tree, self._clock(), version.memory, of))
        return True

    def _room(self, memory: int, wanting: _Version | None) -> bool:
        """Make room for one more slot, if need be at the cost of versions that were used less recently."""
        while not self._fits(memory):
            others = [one for one in self._by_use() if one.ready and one is not wanting]
            if wanting is None or not others or others[-1].demand.used >= wanting.demand.used:
                return False
            self._drop(others[-1].ready, others[-1].ready[0])
        return True

    def _fits(self, memory: int) -> bool:
        idle = [*self._blanks, *(slot for version in self._versions.values() for slot in version.ready)]
        return len(idle) < self._most and sum(slot.memory for slot in idle) + memory <= self._budget

    def _by_use(self) -> list[_Version]:
        return sorted(self._versions.values(), key=lambda version: version.demand.used, reverse=True)

    def _old(self, slot: _Slot, now: float) -> bool:
        return now - slot.made > MAX_AGE

    def _drop(self, slots: list[_Slot], slot: _Slot) -> None:
        slots.remove(slot)
        slot.tree.kill()
