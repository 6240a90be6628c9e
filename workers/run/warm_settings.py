"""Retire sandboxes that wait with variables of an agent or a secret that has changed since."""

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeVar

from domain.ports import Sandbox

K = TypeVar("K")
V = TypeVar("V")

# Programs and changes that are remembered, the latest ones. Fewer sandboxes wait.
MAX_WATCHED_PROGRAMS: Final = 1000


class WarmSettings:
    """Track the rows that the settings of recent programs were read from, and retire their slots when one changes.

    A run always reads its settings anew, and never gets a slot of others: this is about values left in memory.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._sources: OrderedDict[Path, frozenset[str]] = OrderedDict()
        # The number of the latest change of each row; None stands for any row.
        self._changes: OrderedDict[str | None, int] = OrderedDict()
        # How many changes have been heard of. Read it before the settings of a run.
        self.change_count = 0

    def retire_changed(self, row_id: str | None) -> None:
        """Retire the slots of programs with settings from this row, or all slots if any row may have changed."""
        self.change_count += 1
        _push_latest(self._changes, row_id, self.change_count)
        for code, sources in self._sources.items():
            if row_id is None or row_id in sources:
                self._sandbox.retire_slots(code)

    @contextlib.contextmanager
    def watch_run(self, code: Path, sources: frozenset[str], loaded_at: int) -> Iterator[None]:
        """Watch the settings of a run, and retire what waits with them in the end if they have changed since.

        `sources` are the rows that they were read from when `change_count` was `loaded_at`.
        """
        _push_latest(self._sources, code, sources)
        try:
            yield
        finally:
            if any(self._changes.get(source, 0) > loaded_at for source in (*sources, None)):
                self._sandbox.retire_slots(code)


def _push_latest(entries: OrderedDict[K, V], key: K, value: V) -> None:
    entries[key] = value
    entries.move_to_end(key)
    if len(entries) > MAX_WATCHED_PROGRAMS:
        entries.popitem(last=False)
