"""The watchdog counts processes that fork and end while they are counted."""

import pytest

from infra.sandbox import watchdog
from infra.sandbox.watchdog import MAX_EXACT_COUNTS, ResourceWatchdog

LIMIT_MB = 100
PROCESS_BYTES = 60 << 20


class HoppingTree:
    """Answer like `/proc` of a tree of two processes: each has ended, with another in its place, when it is counted.

    After `hops` counts both stay. `shared_count` processes hold each byte, as after a fork.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, hops: int, shared_count: int = 1) -> None:
        self.hops, self.shared_count, self.exact_counts, self.number = hops, shared_count, 0, 0
        monkeypatch.setattr(watchdog, "list_processes", self.list_processes)
        monkeypatch.setattr(watchdog, "measure_process", self.measure_process)
        monkeypatch.setattr(watchdog, "find_sharers", self.find_sharers)
        monkeypatch.setattr(watchdog, "_measure_files", lambda pid: (0, 0))

    def list_processes(self, pid: int) -> list[str]:
        self.number += 1
        return [f"/proc/{self.number}1", f"/proc/{self.number}2"]

    def find_sharers(self, pid: int) -> set[str]:
        self.exact_counts += 1
        return set()

    def measure_process(self, process: str, file: str, parse: object) -> int:
        if file == "statm":
            return PROCESS_BYTES
        has_ended = self.exact_counts <= self.hops and process.endswith("1")
        return 0 if has_ended else PROCESS_BYTES // self.shared_count


def test_tree_is_counted_anew_when_a_process_ends_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = HoppingTree(monkeypatch, hops=1)
    assert ResourceWatchdog(LIMIT_MB, 10).find_excess(1) == "out_of_memory:120"
    assert tree.exact_counts >= 3, "it is counted again before it is killed"


def test_tree_that_never_holds_still_is_counted_again_before_long(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = HoppingTree(monkeypatch, hops=MAX_EXACT_COUNTS)
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    ward = ResourceWatchdog(LIMIT_MB, 10)
    assert ward.find_excess(1) is None
    assert tree.exact_counts == MAX_EXACT_COUNTS
    now[0] += 0.01
    assert ward.find_excess(1) == "out_of_memory:120"


def test_processes_that_share_memory_are_counted_exactly_now_and_then_only(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = HoppingTree(monkeypatch, hops=0, shared_count=2)
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    ward = ResourceWatchdog(LIMIT_MB, 10)
    for _ in range(10):
        assert ward.find_excess(1) is None
        now[0] += watchdog.EXACT_COUNT_SECONDS / 9
    assert tree.exact_counts == 2
