"""Cut an agent's output between characters, count redrawn lines once, and lose nothing after a progress bar."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.events import MAX_LINE_BYTES, ExecutionEvent
from domain.ports import OutputStream
from workers.output import (
    MAX_LOG_BYTES,
    MAX_LOG_LINES,
    MAX_STATES_BYTES,
    OutputLine,
    OutputLog,
    OutputText,
    cut_text,
)

NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)


class OutputRecorder:
    """An `OutputLog` whose clock the test controls."""

    def __init__(self) -> None:
        self.now = NOW
        self.written: list[ExecutionEvent] = []
        self.output = OutputLog(self._write, lambda: self.now)

    async def _write(self, batch: list[ExecutionEvent]) -> None:
        self.written += batch

    async def pass_time(self, seconds: float) -> None:
        """Advance the clock, and let one flush happen."""
        self.now += timedelta(seconds=seconds)
        stop = asyncio.Event()
        flushing = asyncio.create_task(self.output.flush_until(stop))
        await asyncio.sleep(0.15)
        stop.set()
        await flushing

    def write(self, text: str | bytes, stream: OutputStream = "stdout") -> None:
        self.output.add_output(stream, text.encode() if isinstance(text, str) else text)

    def take_messages(self) -> list[str]:
        """Return all messages that were written."""
        return [event.data["message"] for event in [*self.written, *self.output.take_rest()]]


@pytest.mark.parametrize("text", ["价格" * 3000, "é" * 5000, "👩‍👩‍👧" * 1500, "e\u0301" * 6000, "नमस्ते" * 1400])
@pytest.mark.parametrize("size", [1, 7, 4096, 65536])
@pytest.mark.parametrize("end", ["\n", ""])
def test_long_lines_are_cut_between_characters(text: str, size: int, end: str) -> None:
    recorder, data = OutputRecorder(), (text + end).encode()
    for start in range(0, len(data), size):
        recorder.write(data[start : start + size])
    messages = recorder.take_messages()
    assert "".join(messages) == text
    assert len(messages) > 1
    for message in messages:
        assert len(message.encode()) <= MAX_LINE_BYTES
        assert message[0] not in "\u200d\u0301\u0947\u094d", "cut before a mark"
        assert message[-1] != "\u200d", "cut after a joiner"


@given(st.text(alphabet=st.characters(exclude_characters="\r\b", exclude_categories=["Cs"])), st.integers(1, 60))
def test_any_text_is_kept_however_it_is_split(text: str, size: int) -> None:
    recorder, data = OutputRecorder(), text.encode()
    for start in range(0, len(data), size):
        recorder.write(data[start : start + size])
    expected = text.replace("\0", "\ufffd").split("\n")
    assert recorder.take_messages() == (expected if expected[-1] else expected[:-1])


@given(st.binary(max_size=300), st.integers(1, 40))
def test_any_bytes_give_the_same_messages_however_they_are_split(data: bytes, size: int) -> None:
    split_recorder, whole_recorder = OutputRecorder(), OutputRecorder()
    for start in range(0, len(data), size):
        split_recorder.write(data[start : start + size])
    whole_recorder.write(data)
    assert split_recorder.take_messages() == whole_recorder.take_messages()


@given(st.text(max_size=400), st.integers(1, 200))
def test_cut_fits_and_ends_at_a_character(text: str, max_bytes: int) -> None:
    cut = cut_text(text, max_bytes) if text.isprintable() else 0
    assert len(text[:cut].encode()) <= max_bytes


@pytest.mark.parametrize(
    "bar",
    [
        [f"\r{n:5d}/3000 " + "#" * 40 for n in range(3000)],
        [f"{n:5d}/3000 " + "#" * 40 + "\r" for n in range(3000)],
        [f"\x1b[2K\r{n:5d}/3000 " + "#" * 40 for n in range(3000)],
        [f"\r{' ' * 60}\r{n:5d}/3000 " + "#" * 40 for n in range(3000)],
    ],
)
async def test_progress_bar_counts_once_and_what_follows_is_kept(bar: list[str]) -> None:
    recorder = OutputRecorder()
    for state in bar:
        recorder.write(state, "stderr")
    recorder.write("\n", "stderr")
    recorder.write("RESULT: 42 letters sorted\n")
    messages = recorder.take_messages()
    assert len(messages) == 2
    assert "2999/3000 " + "#" * 40 in messages[0]
    assert messages[1] == "RESULT: 42 letters sorted"


async def test_progress_bar_is_written_at_intervals_while_it_is_drawn() -> None:
    recorder = OutputRecorder()
    for n in range(10):
        recorder.write(f"\r{n}0%", "stderr")
        await recorder.pass_time(1)
    messages_while_running = [event.data["message"] for event in recorder.written]
    assert messages_while_running[0] == "10%"
    assert 2 <= len(messages_while_running) <= 4, "less often, the longer it takes"
    recorder.write("\r100%\n", "stderr")
    assert recorder.take_messages() == [*messages_while_running, "100%"]


async def test_state_already_written_is_not_written_again() -> None:
    recorder = OutputRecorder()
    recorder.write("\r50%\r100%")
    await recorder.pass_time(0)
    await recorder.pass_time(2)
    assert [event.data["message"] for event in recorder.written] == ["100%"]
    recorder.write("\nnext\n")
    assert recorder.take_messages() == ["100%", "next"]


async def test_redrawn_states_cannot_fill_a_log() -> None:
    recorder = OutputRecorder()
    for n in range(60):
        recorder.write("\r" + "#" * 1000 + str(n))
        await recorder.pass_time(0 if n % 2 else 100)
    states = sum(len(event.data["message"]) for event in recorder.written)
    assert 0 < states <= MAX_STATES_BYTES


async def test_unfinished_line_is_written_before_it_ends() -> None:
    recorder = OutputRecorder()
    recorder.write("Loading ")
    await recorder.pass_time(0)
    assert recorder.written == []
    await recorder.pass_time(2)
    assert [event.data["message"] for event in recorder.written] == ["Loading "]
    recorder.write("done\n")
    recorder.write("WARNING: hot ")
    await recorder.pass_time(0)
    await recorder.pass_time(2)
    recorder.write("\n\nend")
    assert recorder.take_messages() == ["Loading ", "done", "WARNING: hot ", "", "end"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\r\nb\r\n", ["a", "b"]),
        ("a\r", ["a"]),
        ("one\rtwo", ["two"]),
        ("one\r   \rtwo\n", ["two"]),
        ("one\r\x1b[K", ["one"]),
        ("one\r\x1b[K\rtwo\n", ["two"]),
        ("\n\r\n", ["", ""]),
        ("work |\b/\b-\b\\\bdone\n", ["work done"]),
        ("\b\b\bx\n", ["x"]),
        ("bar 1\rbar 2\nafter\n", ["bar 2", "after"]),
        (b"\xe4 latin\n", ["\ufffd latin"]),
        (b"cut \xe4\xbb", ["cut \ufffd"]),
    ],
)
def test_output_is_shown_as_by_a_terminal(text: str | bytes, expected: list[str]) -> None:
    recorder = OutputRecorder()
    recorder.write(text)
    assert recorder.take_messages() == expected


def test_total_output_limit_cuts_between_characters() -> None:
    recorder = OutputRecorder()
    recorder.write("x" + "价" * MAX_LOG_BYTES + "\nlater\n")
    *messages, notice = recorder.take_messages()
    assert "\ufffd" not in "".join(messages)
    assert MAX_LOG_BYTES - 4 < len("".join(messages).encode()) <= MAX_LOG_BYTES
    assert (
        f"{len(('x' + '价' * MAX_LOG_BYTES).encode()) - len(''.join(messages).encode())}" in notice
        or "more bytes came" in notice
    )
    many_lines = OutputRecorder()
    many_lines.write("\n" * (MAX_LOG_LINES + 10))
    assert len(many_lines.take_messages()) == MAX_LOG_LINES + 1


def test_all_pieces_of_a_line_have_its_level() -> None:
    line = OutputLine("stderr")
    pieces = line.decode_bytes(b"ERROR: " + b"x" * 20_000 + b"\nplain\n")
    assert [piece.level for piece in pieces] == ["ERROR", "ERROR", "ERROR", "INFO"]


def test_output_of_an_import_is_cut_the_same_way() -> None:
    text = OutputText(100)
    text.add_output("stderr", "".join(f"\r{n}%" for n in range(101)).encode())
    text.add_output("stdout", "价".encode()[:1])
    text.add_output("stdout", "价".encode()[1:] + b"\n")
    text.add_output("stdout", "é".encode() * 100)
    assert text.get_text().startswith("价\n")
    assert "\ufffd" not in text.get_text()
    assert len(text.get_text().encode()) <= 100
