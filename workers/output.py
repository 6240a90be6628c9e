"""Turn what an agent prints and says into events: in order, limited, written while it runs."""

import asyncio
import codecs
import contextlib
import re
import unicodedata
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Final, get_args

import msgspec

from domain.events import MAX_LINE_BYTES, ExecutionEvent, LogLevel, build_log_event, parse_level
from domain.ports import Clock, OutputStream
from domain.shared.errors import DATABASE_OUTAGE_CODES, DomainError
from workers.progress import ProgressReporter, ProgressState, parse_fraction

MAX_LOG_BYTES: Final = 64 * 1024
MAX_LOG_LINES: Final = 4000
FLUSH_SECONDS: Final = 0.1
# After what is to be seen at once, the next write waits this long, or as long as the write took, up to the maximum.
STREAM_PAUSE_SECONDS: Final = 0.03
MAX_STREAM_PAUSE_SECONDS: Final = 0.25
# Events in one write.
MAX_WRITE_BATCH: Final = 1000
# A line that has not ended is shown after this long, in seconds, and then after twice as long each time; a redrawn line
# has its state reported as often as progress is.
FIRST_SHOWN_SECONDS: Final = 1.0
MAX_SHOWN_SECONDS: Final = 60.0
# What is shown of the state of a redrawn line, in bytes.
MAX_STATE_BYTES: Final = 1024
# A character may have marks and joiners behind it; one with more of them than this is cut.
_MAX_MARKS: Final = 16
_ZERO_WIDTH_JOINER: Final = "\u200d"
# Escape sequences of a terminal, which show nothing by themselves (ECMA-48).
_ESCAPE_SEQUENCES: Final = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\^_])")
# A sequence whose end has not come yet.
_BEGUN_SEQUENCE: Final = re.compile(r"\x1b(\[[0-?]*[ -/]*|\][^\x07\x1b]*\x1b?)?\Z")
_BACKSPACE_PAIRS: Final = re.compile(r"[^\x08]\x08")
# More backspaces behind one another than this are none that a program means: they are left out.
_MAX_BACKSPACES: Final = 2000


class OutputPiece(msgspec.Struct, frozen=True):
    """Hold a line, or a part of one that is too long or too late for one event. `ends` if a line break follows.

    `is_redrawn` if it is the last state of a line whose states were reported as progress.
    """

    text: str
    level: LogLevel
    ends: bool = False
    is_redrawn: bool = False


class OutputLine:
    """Collect the line of one stream that has not ended yet. Of a redrawn line (`\\r`, `\\b`) the last state counts."""

    def __init__(self, stream: OutputStream) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._reset_line()

    def _reset_line(self) -> None:
        # `_blanks` came behind a return: they replace the line only with what follows them.
        self._text = self._blanks = ""
        self._is_replaced = self._is_begun = self._has_return = self._is_reported = False
        self._named_level: LogLevel | None = None
        self._due: datetime | None = None
        self._wait = FIRST_SHOWN_SECONDS

    @property
    def is_redrawn(self) -> bool:
        """Whether later output may replace the line."""
        return self._is_replaced or self._has_return

    def decode_bytes(self, data: bytes, last: bool = False) -> list[OutputPiece]:
        """Take printed bytes, and return the lines that are complete now; with `last` also one without an end."""
        pieces: list[OutputPiece] = []
        *ended, rest = self._decoder.decode(data, last).split("\n")
        for part in ended:
            self._apply_returns(part)
            pieces += self._take_long_parts()
            pieces += self._take_rest(ends=True)
            self._reset_line()
        self._apply_returns(rest)
        pieces += self._take_long_parts()
        return pieces + self._take_rest(ends=False) if last else pieces

    def show_unfinished(self, now: datetime) -> OutputPiece | None:
        """Return the text of a line without an end that is due to be shown. It is taken off the line."""
        if not self._text or self.is_redrawn or not self._is_due(now):
            return None
        self._wait = min(2 * self._wait, MAX_SHOWN_SECONDS)
        self._due = now + timedelta(seconds=self._wait)
        return self._take_piece(len(self._text))

    def find_state(self, now: datetime) -> str | None:
        """Return the state of a line that has been redrawn for a while, or None."""
        if not self._text or not self.is_redrawn or not (self._is_reported or self._is_due(now)):
            return None
        self._is_reported = True
        return self._text

    def _is_due(self, now: datetime) -> bool:
        self._due = self._due or now + timedelta(seconds=self._wait)
        return now >= self._due

    def _apply_returns(self, part: str) -> None:
        first, *states = part.split("\r")
        self._append_text(first)
        if not states:
            return
        self._has_return, self._blanks = True, states[-1] if _is_blank(states[-1]) else ""
        # The last of many states that shows anything: progress bars are wiped with spaces, and end with a return.
        for number in range(len(states) - 1, -1, -1):
            if states[number] and not _is_blank(states[number]):
                self._replace_text(states[number])
                self._has_return = number < len(states) - 1
                return

    def _append_text(self, text: str) -> None:
        if not self._has_return:
            self._set_text(self._text + text)
        elif _is_blank(text):
            self._blanks += text
        else:
            self._replace_text(self._blanks + text)

    def _replace_text(self, text: str) -> None:
        self._is_replaced, self._has_return = True, False
        self._set_text(text)

    def _set_text(self, text: str) -> None:
        self._text = text
        if "\b" in text:
            self._is_replaced = True
            self._text = _apply_backspaces(text)

    def _take_long_parts(self) -> list[OutputPiece]:
        pieces = []
        while (cut := cut_text(self._text, MAX_LINE_BYTES)) < len(self._text):
            pieces.append(self._take_piece(cut))
        return pieces

    def _take_rest(self, ends: bool) -> list[OutputPiece]:
        if not (self._text or (ends and not self._is_begun)):
            return []
        return [self._take_piece(len(self._text), ends)]

    def _take_piece(self, count: int, ends: bool = False) -> OutputPiece:
        piece = OutputPiece(self._text[:count], self._decide_level(), ends, self._is_reported and self.is_redrawn)
        self._text, self._is_begun = self._text[count:], True
        return piece

    def _decide_level(self) -> LogLevel:
        # All pieces of a line have the level that its beginning names.
        if self._named_level is None or (self.is_redrawn and not self._is_begun):
            self._named_level = parse_level(self._text[:20])
        return self._named_level


def cut_text(text: str, max_bytes: int) -> int:
    """Return how many characters of a text fit into so many bytes, without a cut within a combined character."""
    if 4 * len(text) <= max_bytes:
        return len(text)
    data = text.encode()
    if len(data) <= max_bytes:
        return len(text)
    cut = len(data[:max_bytes].decode(errors="ignore"))
    for back in range(min(_MAX_MARKS, cut - 1)):
        at = cut - back
        if not (
            text[at] == _ZERO_WIDTH_JOINER
            or text[at - 1] == _ZERO_WIDTH_JOINER
            or unicodedata.category(text[at])[0] == "M"
        ):
            return at
    return cut


def _apply_backspaces(text: str) -> str:
    """Apply the backspaces of a text."""
    # This removes spinners quickly, and leaves few backspaces.
    text = _BACKSPACE_PAIRS.sub("", text)
    first, *parts = text.split("\b")
    characters = list(first)
    for part in parts:
        if characters and len(parts) <= _MAX_BACKSPACES:
            characters.pop()
        characters += part
    return "".join(characters)


def _is_blank(text: str) -> bool:
    """Return whether a text shows nothing by itself, as far as it has come."""
    if "\x1b" in text:
        text = _BEGUN_SEQUENCE.sub("", _ESCAPE_SEQUENCES.sub("", text))
    return not text.strip()


class OutputLog:
    """Collect the events of a run and pass them to `write` in batches.

    Keep `MAX_LOG_BYTES` bytes of what is printed, and log what was dropped. States of redrawn lines are progress.
    """

    def __init__(self, write: Callable[[list[ExecutionEvent]], Awaitable[None]], clock: Clock) -> None:
        self._write, self._clock = write, clock
        self._lines: dict[OutputStream, OutputLine] = {stream: OutputLine(stream) for stream in get_args(OutputStream)}
        self._progress = ProgressReporter(clock)
        self._pending: list[ExecutionEvent] = []
        self._kept = self._dropped = self._count = 0
        # Set when something is to be written at once, and when nothing more is to be written here.
        self._wake, self._stopped = asyncio.Event(), asyncio.Event()

    def add_output(self, stream: OutputStream, data: bytes) -> None:
        """Accept a piece of output. Never blocks the agent on a database."""
        if self._dropped:
            self._dropped += len(data)
            return
        for piece in self._lines[stream].decode_bytes(data):
            self._keep_pieces(stream, piece)

    def add_event(self, event: ExecutionEvent) -> None:
        """Accept an event that is to be seen at once, after what was printed before it."""
        self._pending.append(event)
        self._wake.set()

    def update_progress(self, state: ProgressState) -> None:
        """Accept a state of the run, which is to be seen at once or a second after the last one."""
        self._progress.update(state)
        if self._progress.is_due:
            self._wake.set()

    def stop(self) -> None:
        """End `flush_until_stopped` after the write that is under way."""
        self._stopped.set()
        self._wake.set()

    async def flush_until_stopped(self) -> None:
        """Write what is pending every `FLUSH_SECONDS`, or sooner. Errors: those of `write`.

        What an outage of the database kept from being written is written later. It is stopped rather than cancelled:
        a cancelled write may have been committed, and would be written twice.
        """
        while not self._stopped.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), FLUSH_SECONDS)
            is_urgent = self._wake.is_set()
            self._wake.clear()
            self._show_lines()
            if self._pending and not self._stopped.is_set():
                pause = await self._write_batch()
                if is_urgent:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._stopped.wait(), pause)

    async def _write_batch(self) -> float:
        """Write the oldest events that are pending. Return how many seconds to wait before the next write."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        batch, self._pending = self._pending[:MAX_WRITE_BATCH], self._pending[MAX_WRITE_BATCH:]
        try:
            await self._write(batch)
        except DomainError as error:
            if error.code not in DATABASE_OUTAGE_CODES:
                raise
            self._pending = batch + self._pending
            return MAX_STREAM_PAUSE_SECONDS
        if self._pending:
            self._wake.set()
        return min(max(STREAM_PAUSE_SECONDS, loop.time() - began), MAX_STREAM_PAUSE_SECONDS)

    def take_rest(self) -> list[ExecutionEvent]:
        """Return what is not written yet, with unfinished lines and a line about what was dropped."""
        for stream, line in self._lines.items():
            for piece in line.decode_bytes(b"", last=True):
                self._keep_pieces(stream, piece)
        self._lines = {stream: OutputLine(stream) for stream in self._lines}
        if (progress := self._progress.take_event(last=True)) is not None:
            self._pending.append(progress)
        if self._dropped:
            notice = f"Only the first {MAX_LOG_BYTES} bytes and {MAX_LOG_LINES} lines of output are kept; "
            notice += f"{self._dropped} more bytes came."
            self._pending.append(build_log_event("WARNING", notice, self._clock(), "paddock"))
            self._dropped = 0
        rest, self._pending = self._pending, []
        return rest

    def _show_lines(self) -> None:
        """Show lines that have not ended for a while, and report the states of those that are redrawn."""
        now = self._clock()
        for stream, line in self._lines.items():
            if (piece := line.show_unfinished(now)) is not None:
                self._keep_pieces(stream, piece)
            if (state := line.find_state(now)) is not None:
                self._report_state(stream, state)
        if (progress := self._progress.take_event()) is not None:
            self._pending.append(progress)

    def _report_state(self, stream: OutputStream, text: str) -> None:
        """Report the state of a redrawn line, without what tells a terminal how to show it."""
        plain = _ESCAPE_SEQUENCES.sub("", text).strip().replace("\0", "\ufffd")
        message = plain[: cut_text(plain, MAX_STATE_BYTES)]
        self._progress.update(ProgressState(parse_fraction(message), message, stream))

    def _keep_pieces(self, stream: OutputStream, piece: OutputPiece) -> None:
        if piece.is_redrawn:
            self._report_state(stream, piece.text)
        room = MAX_LOG_BYTES - self._kept if self._count < MAX_LOG_LINES and not self._dropped else 0
        count = cut_text(piece.text, room) if room > 0 else 0
        self._dropped += len(piece.text[count:].encode()) + (piece.ends and room <= 0)
        if count or (room > 0 and not piece.text):
            self._kept += len(piece.text[:count].encode()) + piece.ends
            self._count += 1
            self._pending.append(build_log_event(piece.level, piece.text[:count], self._clock(), stream))


class OutputText:
    """Collect the beginning of what is printed, at most `max_bytes` of it, as one text for a build log."""

    def __init__(self, max_bytes: int) -> None:
        self._lines: dict[OutputStream, OutputLine] = {stream: OutputLine(stream) for stream in get_args(OutputStream)}
        self._room, self._parts = max_bytes, [""]

    def add_output(self, stream: OutputStream, data: bytes) -> None:
        """Accept a piece of output."""
        if self._room > 0:
            self._keep_pieces(self._lines[stream].decode_bytes(data))

    def get_text(self) -> str:
        """Return what was printed so far, lines without an end included."""
        for line in self._lines.values():
            self._keep_pieces(line.decode_bytes(b"", last=True))
        return "".join(self._parts)

    def _keep_pieces(self, pieces: list[OutputPiece]) -> None:
        for piece in pieces:
            whole = piece.text + ("\n" if piece.ends else "")
            text = whole[: cut_text(whole, self._room)] if self._room > 0 else ""
            self._room -= len(whole.encode())
            self._parts.append(text)
