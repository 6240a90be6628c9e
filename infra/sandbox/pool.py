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

from domain.ports import OnOutput, Outcome, Program, Serve
from domain.shared.errors import DomainError
from infra.sandbox.backend import Counts, Maker
from infra.sandbox.demand import Demand, Identity, Key, identity, key
from infra.sandbox.exit_report import Ending, Stage, StartFailed
from infra.sandbox.guest_protocol import CHECK_SECONDS, frame, outcome, unavailable
from infra.sandbox.process_tree import Tree

MOST: Final = 64
BLANKS: Final = 2
# Nobody shall meet a clock, or anything else read while importing, that is older than this, in seconds.
MAX_AGE: Final = 240.0
TICK: Final = 5.0
# How many slots nobody waits for are made at a time, so that runs keep the processors. One whose import
# takes longer than `SLOW` seconds stops counting, or it would keep every other version cold; up to a bound.
REFILLS: Final = 2
SLOW: Final = 1.0
MOST_UNDERWAY: Final = 8
# A slot that was taken is replaced this much later, in seconds: a short run is over by then, and goes first.
REFILL_AFTER: Final = 0.004
# How long a version is not warmed after its import failed, and after anything else went wrong, in seconds.
FAILED_PAUSE: Final = 60.0
DIED_PAUSE: Final = 1.0
# What a slot is taken to hold until one of its version was measured.
GUESS: Final = 8 << 20
ATTEMPTS: Final = 3

_log = structlog.get_logger("paddock.sandbox")


class _Slot:
    def __init__(self, tree: Tree, made: float, memory: int, of: Identity | None) -> None:
        self.tree, self.made, self.memory, self.of = tree, made, memory, of


class _Making:
    """A slot on its way. A run that comes meanwhile may claim it rather than have another made."""

    def __init__(self, since: float, of: Identity | None) -> None:
        self.since, self.of = since, of
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
        self._making_blanks: list[_Making] = []
        self._idle: dict[Tree, _Slot] = {}
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
            making=making + len(self._making_blanks),
            busy=self._busy,
        )

    def begin(self) -> None:
        """Have blank slots made before the first run comes."""
        self._refill()

    async def run(self, program: Program, payload: bytes, on_output: OnOutput, serve: Serve | None = None) -> Outcome:
        """Call the entrypoint with a payload, in a warm slot if there is one. As `domain.ports.Sandbox.run`."""
        version = self._version(program)
        version.demand.begin(self._clock())
        self._busy += 1
        request, until = frame(payload), asyncio.get_running_loop().time() + program.timeout
        try:
            for _ in range(ATTEMPTS):
                tree = await self._warm(version, program, until)
                if tree is None:
                    break
                tree.resume(self._maker.watch(program))
                ending = await self._in(tree, request, until, on_output, Stage.TAKEN, serve)
                if not ending.untouched:
                    return outcome(ending, program.timeout, program.memory_mb)
                _log.info("a warm slot was dead when it was used", status=ending.status)
            return await self._cold(program, request, until, on_output, serve)
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
        self._idle.clear()
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
        for tree in [one for one in self._idle if one.awake]:
            _log.warning("a slot that should wait was awake; it is killed")
            tree.kill()
        self._refill()

    # one run

    def _version(self, program: Program) -> _Version:
        """What is known of this program's version. The dictionary is in the order of use."""
        found = self._versions.pop(key(program), None) or _Version(program)
        self._versions[key(program)] = found
        found.program = program
        return found

    async def _in(
        self, tree: Tree, request: bytes, until: float, on_output: OnOutput, since: Stage, serve: Serve | None
    ) -> Ending:
        self._refill_after(REFILL_AFTER)
        left = max(0.0, until - asyncio.get_running_loop().time())
        async with tree.served(serve):
            return await tree.run(request, left, on_output, since, early=True)

    async def _warm(self, version: _Version, program: Program, until: float) -> Tree | None:
        """A slot of this version as it is now, or None. It may be stopped still."""
        now, of = self._clock(), identity(program)
        for slot in [one for one in version.ready if one.of != of or self._old(one, now)]:
            self._drop(version.ready, slot)
        if version.ready:
            return self._taken(version.ready)
        waiting = [one for one in version.unclaimed() if one.of == of]
        if not waiting:
            return None
        claimed = waiting[0].claim()
        try:
            async with asyncio.timeout_at(until):
                return await claimed
        except TimeoutError:
            return _handed(claimed)
        except asyncio.CancelledError:
            if (tree := _handed(claimed)) is not None:
                tree.kill()
            raise

    async def _cold(
        self, program: Program, request: bytes, until: float, on_output: OnOutput, serve: Serve | None
    ) -> Outcome:
        for left in reversed(range(ATTEMPTS)):
            # A blank slot's filter is made already, and it is the one without sockets.
            if self._blanks and left and not program.gateway:
                tree = self._taken(self._blanks)
                tree.resume(None)
            else:
                tree = await self._made(program)
            self._maker.direct(tree, program, "run")
            try:
                ending = await self._in(tree, request, until, on_output, Stage.FENCED, serve)
            except StartFailed as error:
                # It never came to run anything of the agent's, so that another may, unless that would fail as well.
                if not tree.ending.killed or not left:
                    raise unavailable(str(error)) from error
            else:
                return outcome(ending, program.timeout, program.memory_mb)
        raise unavailable("every slot that was made for this run was killed")

    # making and letting go

    async def _made(self, program: Program | None) -> Tree:
        if self._closed:
            raise unavailable("the worker is ending")
        tree = await self._maker.make(program)
        self._trees.add(tree)
        tree.on_gone = functools.partial(self._gone, tree)
        if tree.gone:
            self._trees.discard(tree)
        return tree

    def _taken(self, slots: list[_Slot]) -> Tree:
        tree = slots.pop(0).tree
        del self._idle[tree]
        return tree

    def _gone(self, tree: Tree) -> None:
        self._trees.discard(tree)
        if self._idle.pop(tree, None) is None:
            return
        _log.info("an idle slot ended and is replaced", status=tree.ending.status)
        again = self._clock() + DIED_PAUSE
        self._blanks = [slot for slot in self._blanks if slot.tree is not tree]
        for version in self._versions.values():
            if any(slot.tree is tree for slot in version.ready):
                version.ready = [slot for slot in version.ready if slot.tree is not tree]
                # Not at once: whatever killed it, a lack of memory say, may do it again.
                version.paused_until = max(version.paused_until, again)
        self._refill_after(DIED_PAUSE)

    def _refill_after(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if self._refilling is not None:
            if self._refilling.when() <= loop.time() + seconds:
                return
            self._refilling.cancel()
        self._refilling = loop.call_later(seconds, self._refill)

    def _refill(self) -> None:
        if self._refilling is not None:
            self._refilling.cancel()
            self._refilling = None
        if self._closed:
            return
        if self._ticking is None and (self._versions or self._blanks):
            self._ticking = asyncio.get_running_loop().call_later(TICK, self._tick)
        if not self._budget:
            return
        now = self._clock()
        free = self._free(now)
        if now >= self._blank_pause:
            missing = self._wanted_blanks - len(self._blanks) - len(self._making_blanks)
            for _ in range(min(missing, free)):
                if self._room(GUESS, None):
                    free -= 1
                    making = _Making(now, None)
                    self._making_blanks.append(making)
                    self._begin(self._make_blank(making))
        for version in reversed(self._versions.values()):
            for _ in range(min(version.missing(now), free)):
                if not self._room(version.memory, version):
                    return  # and those that were used less recently have less of a claim
                free -= 1
                making = _Making(now, identity(version.program))
                version.making.append(making)
                self._begin(self._make_warm(version, making))

    def _free(self, now: float) -> int:
        """How many more slots may be made that nobody waits for."""
        underway = [*self._making_blanks, *(one for version in self._versions.values() for one in version.unclaimed())]
        quick = [one for one in underway if now - one.since < SLOW]
        return max(0, min(REFILLS - len(quick), MOST_UNDERWAY - len(underway)))

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

    async def _make_blank(self, making: _Making) -> None:
        tree, kept = None, False
        try:
            tree = await self._made(None)
            if await tree.reach(Stage.BLANK, CHECK_SECONDS):
                memory = await tree.pause()
                kept = not tree.gone and not self._closed
                if kept:
                    self._blanks.append(self._wait(tree, memory or GUESS, None))
        except DomainError as error:
            _log.warning("cannot make a blank slot", reason=error.detail)
        finally:
            self._making_blanks.remove(making)
            if not kept:
                self._blank_pause = self._clock() + DIED_PAUSE
                if tree is not None:
                    tree.kill()

    async def _make_warm(self, version: _Version, making: _Making) -> None:
        tree, kept = None, False
        try:
            tree = await self._made(version.program)
            self._maker.direct(tree, version.program, "run")
            if await tree.reach(Stage.IMPORTED, CHECK_SECONDS):
                kept = making.hand(tree)
                if not kept:
                    memory = await tree.pause()
                    kept = making.hand(tree) or self._keep(version, tree, memory, making.of)
        except DomainError as error:
            _log.warning("cannot make a warm slot", reason=error.detail)
        finally:
            version.making.remove(making)
            making.hand(None)
            if not kept:
                # A version that cannot wait runs cold, and its run says what is wrong with it.
                by_itself = tree is None or (tree.gone and tree.ending.killed and not tree.loud)
                version.paused_until = self._clock() + (DIED_PAUSE if by_itself else FAILED_PAUSE)
                if tree is not None:
                    tree.kill()

    def _keep(self, version: _Version, tree: Tree, memory: int | None, of: Identity | None) -> bool:
        """Whether a slot waits from here on. Not if it started processes: no signal to the first stops those."""
        if tree.gone or self._closed or memory is None:
            return False
        version.memory = max(memory, 1 << 20)
        if not self._room(version.memory, version):
            return False
        version.ready.append(self._wait(tree, version.memory, of))
        return True

    def _wait(self, tree: Tree, memory: int, of: Identity | None) -> _Slot:
        slot = self._idle[tree] = _Slot(tree, self._clock(), memory, of)
        return slot

    def _room(self, memory: int, wanting: _Version | None) -> bool:
        """Make room for one more slot, if need be at the cost of versions that were used less recently."""
        while not self._fits(memory):
            if wanting is None:
                return False
            other = next((one for one in self._versions.values() if one.ready or one is wanting), wanting)
            if other is wanting:
                return False
            self._drop(other.ready, other.ready[0])
        return True

    def _fits(self, memory: int) -> bool:
        held = sum(slot.memory for slot in self._idle.values())
        return len(self._idle) < self._most and held + memory <= self._budget

    def _old(self, slot: _Slot, now: float) -> bool:
        return now - slot.made > MAX_AGE

    def _drop(self, slots: list[_Slot], slot: _Slot) -> None:
        slots.remove(slot)
        del self._idle[slot.tree]
        slot.tree.kill()


def _handed(claimed: "asyncio.Future[Tree | None]") -> Tree | None:
    """What was handed over in the very moment in which its receiver gave up."""
    return claimed.result() if claimed.done() and not claimed.cancelled() else None
