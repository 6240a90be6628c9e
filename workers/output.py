"""What an agent prints, as log events: split into lines, bounded, written while it runs."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

from domain.errors import DATABASE_OUTAGES, DomainError
from domain.events import MAX_LINE, Event, level_of, logged
from domain.ports import Clock, Stream

KEPT: Final = 64 * 1024
LINES: Final = 4000
FLUSH: Final = 0.1


class Output:
    """Collects output and hands it to `write` in batches. Keeps `KEPT` bytes and says what it dropped."""

    def __init__(self, write: Callable[[list[Event]], Awaitable[None]], clock: Clock) -> None:
        self._write, self._clock = write, clock
        self._rest: dict[Stream, bytes] = {"stdout": b"", "stderr": b""}
        self._pending: list[Event] = []
        self._kept = self._dropped = self._lines = 0

    def take(self, stream: Stream, data: bytes) -> None:
        """Accept a piece of output. Never blocks the agent on a database."""
        room = KEPT - self._kept
        self._dropped += max(0, len(data) - room)
        self._kept += min(len(data), room)
        *lines, self._rest[stream] = (self._rest[stream] + data[:room]).split(b"\n")
        if len(self._rest[stream]) > MAX_LINE:
            lines.append(self._rest[stream])
            self._rest[stream] = b""
        for line in lines:
            if self._lines >= LINES:
                self._dropped += len(line) + 1
                continue
            self._lines += 1
            self._pending += self._events(stream, line)

    async def flush_until(self, stop: asyncio.Event) -> None:
        """Write what is there every `FLUSH` seconds until told to stop. Errors: those of `write`.

        What an outage of the database kept from being written is written later.
        Told, not cancelled: a write that is cancelled may have been committed, and would be written twice.
        """
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), FLUSH)
            if self._pending and not stop.is_set():
                batch, self._pending = self._pending, []
                try:
                    await self._write(batch)
                except DomainError as error:
                    if error.code not in DATABASE_OUTAGES:
                        raise
                    self._pending = batch + self._pending

    def rest(self) -> list[Event]:
        """What has not been written, unfinished lines included, and a line that tells what was dropped."""
        for stream, line in self._rest.items():
            if line:
                self._pending += self._events(stream, line)
        self._rest = {"stdout": b"", "stderr": b""}
        if self._dropped:
            told = f"Only the first {KEPT} bytes and {LINES} lines of output are kept; {self._dropped} more bytes came."
            self._pending.append(logged("WARNING", told, self._clock(), "paddock"))
            self._dropped = 0
        rest, self._pending = self._pending, []
        return rest

    def _events(self, stream: Stream, line: bytes) -> list[Event]:
        """A line as events of `MAX_LINE` bytes at most; all of them have the level that the line names."""
        level, now = level_of(stream, line[:20].decode(errors="replace")), self._clock()
        pieces = [line[start : start + MAX_LINE] for start in range(0, max(1, len(line)), MAX_LINE)]
        return [logged(level, piece.decode(errors="replace").rstrip("\r"), now, stream) for piece in pieces]
