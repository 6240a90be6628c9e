"""Check again and again what a process tree holds, and end it when that is too much."""

import asyncio
from collections.abc import Callable

from infra.sandbox.exit_report import ExitReport, GuestStage
from infra.sandbox.tree_leader import TreeLeader
from infra.sandbox.watchdog import ResourceWatchdog


class TreeWatch:
    """Watch the tree of a leader with one watchdog at a time. `kill` kills it, after the report has the reason."""

    def __init__(self, leader: TreeLeader, report: ExitReport, kill: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._leader, self._report, self._kill = leader, report, kill
        self._watchdog: ResourceWatchdog | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_pid1_overdue = False

    def start(self, watchdog: ResourceWatchdog | None) -> None:
        """Watch from here on, with this watchdog if there is one."""
        self.stop()
        self._watchdog = watchdog
        self._schedule_check()

    def allow_bytes(self, size: int) -> None:
        """Raise the memory limit of the tree by so many bytes."""
        if self._watchdog is not None:
            self._watchdog.allow_bytes(size)

    def stop(self) -> None:
        """Check no more."""
        self._watchdog = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _schedule_check(self) -> None:
        if self._watchdog is not None:
            self._timer = self._loop.call_later(self._watchdog.interval_seconds, self._start_check)

    def _start_check(self) -> None:
        if self._watchdog is None:
            return
        if self._report.stage < GuestStage.FENCED:
            # Until its fence stands, the folders that it sees are the host's.
            self._schedule_check()
            return
        if self._leader.pid1 is None:
            # The pid comes by another pipe than the marks, and has until the next check.
            if self._is_pid1_overdue:
                self._end_tree("not_measurable:its first process is not known")
            self._is_pid1_overdue = True
            self._schedule_check()
            return
        # In a thread: a tree of many processes takes milliseconds to check.
        check = self._loop.run_in_executor(None, self._watchdog.find_excess, self._leader.pid1)
        check.add_done_callback(self._on_check_done)

    def _on_check_done(self, check: "asyncio.Future[str | None]") -> None:
        if check.cancelled() or self._watchdog is None:
            return
        error = check.exception()
        reason = check.result() if error is None else f"not_measurable:{type(error).__name__}"
        if reason is None:
            self._schedule_check()
        else:
            self._end_tree(reason)

    def _end_tree(self, reason: str) -> None:
        self._report.kill_reason = reason
        self._kill()
