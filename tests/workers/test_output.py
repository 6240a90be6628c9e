"""What an agent prints: cut between characters, redrawn lines counted once, nothing lost after a progress bar."""

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


class Printed:
    """An `Output` with the clock in hand."""

    def __init__(self) -> None:
        self.now = NOW
        self.written: list[ExecutionEvent] = []
        self.output = OutputLog(self._write, lambda: self.now)

    async def _write(self, batch: list[ExecutionEvent]) -> None:
        self.written += batch

    async def pass_time(self, seconds: float) -> None:
        """Let so much time pass, and one flush happen."""
        self.now += timedelta(seconds=seconds)
        stop = asyncio.Event()
        flushing = asyncio.create_task(self.output.flush_until(stop))
        await asyncio.sleep(0.15)
        stop.set()
        await flushing

    def take(self, text: str | bytes, stream: OutputStream = "stdout") -> None:
        self.output.add_output(stream, text.encode() if isinstance(text, str) else text)

    def messages(self) -> list[str]:
        """All that was written in the end."""
        return [event.data["message"] for event in [*self.written, *self.output.take_rest()]]


@pytest.mark.parametrize("text", ["价格" * 3000, "é" * 5000, "👩‍👩‍👧" * 1500, "e\u0301" * 6000, "नमस्ते" * 1400])
@pytest.mark.parametrize("size", [1, 7, 4096, 65536])
@pytest.mark.parametrize("end", ["\n", ""])
def test_long_lines_are_cut_between_characters(text: str, size: int, end: str) -> None:
    printed, data = Printed(), (text + end).encode()
    for start in range(0, len(data), size):
        printed.take(data[start : start + size])
    messages = printed.messages()
    assert "".join(messages) == text
    assert len(messages) > 1
    for message in messages:
        assert len(message.encode()) <= MAX_LINE_BYTES
        assert message[0] not in "\u200d\u0301\u0947\u094d", "cut before a mark"
        assert message[-1] != "\u200d", "cut after a joiner"


@given(st.text(alphabet=st.characters(exclude_characters="\r\b", exclude_categories=["Cs"])), st.integers(1, 60))
def test_any_text_comes_through_however_it_is_cut(text: str, size: int) -> None:
    printed, data = Printed(), text.encode()
    for start in range(0, len(data), size):
        printed.take(data[start : start + size])
    expected = text.replace("\0", "\ufffd").split("\n")
    assert printed.messages() == (expected if expected[-1] else expected[:-1])


@given(st.binary(max_size=300), st.integers(1, 40))
def test_any_bytes_are_taken_and_the_same_however_they_come(data: bytes, size: int) -> None:
    pieces, whole = Printed(), Printed()
    for start in range(0, len(data), size):
        pieces.take(data[start : start + size])
    whole.take(data)
    assert pieces.messages() == whole.messages()


@given(st.text(max_size=400), st.integers(1, 200))
def test_a_cut_fits_and_is_at_a_character(text: str, most: int) -> None:
    cut = cut_text(text, most) if text.isprintable() else 0
    assert len(text[:cut].encode()) <= most


@pytest.mark.parametrize(
    "bar",
    [
        [f"\r{n:5d}/3000 " + "#" * 40 for n in range(3000)],
        [f"{n:5d}/3000 " + "#" * 40 + "\r" for n in range(3000)],
        [f"\x1b[2K\r{n:5d}/3000 " + "#" * 40 for n in range(3000)],
        [f"\r{' ' * 60}\r{n:5d}/3000 " + "#" * 40 for n in range(3000)],
    ],
)
async def test_a_bar_counts_once_and_what_follows_is_kept(bar: list[str]) -> None:
    printed = Printed()
    for state in bar:
        printed.take(state, "stderr")
    printed.take("\n", "stderr")
    printed.take("RESULT: 42 letters sorted\n")
    messages = printed.messages()
    assert len(messages) == 2
    assert "2999/3000 " + "#" * 40 in messages[0]
    assert messages[1] == "RESULT: 42 letters sorted"


async def test_a_bar_is_seen_now_and_then_while_it_is_drawn() -> None:
    printed = Printed()
    for n in range(10):
        printed.take(f"\r{n}0%", "stderr")
        await printed.pass_time(1)
    while_it_ran = [event.data["message"] for event in printed.written]
    assert while_it_ran[0] == "10%"
    assert 2 <= len(while_it_ran) <= 4, "seldom, the longer it takes"
    printed.take("\r100%\n", "stderr")
    assert printed.messages() == [*while_it_ran, "100%"]


async def test_a_state_that_was_seen_last_is_not_written_twice() -> None:
    printed = Printed()
    printed.take("\r50%\r100%")
    await printed.pass_time(0)
    await printed.pass_time(2)
    assert [event.data["message"] for event in printed.written] == ["100%"]
    printed.take("\nnext\n")
    assert printed.messages() == ["100%", "next"]


async def test_states_alone_cannot_fill_a_log() -> None:
    printed = Printed()
    for n in range(60):
        printed.take("\r" + "#" * 1000 + str(n))
        await printed.pass_time(0 if n % 2 else 100)
    states = sum(len(event.data["message"]) for event in printed.written)
    assert 0 < states <= MAX_STATES_BYTES


async def test_a_line_without_an_end_is_seen_before_it_ends() -> None:
    printed = Printed()
    printed.take("Loading ")
    await printed.pass_time(0)
    assert printed.written == []
    await printed.pass_time(2)
    assert [event.data["message"] for event in printed.written] == ["Loading "]
    printed.take("done\n")
    printed.take("WARNING: hot ")
    await printed.pass_time(0)
    await printed.pass_time(2)
    printed.take("\n\nend")
    assert printed.messages() == ["Loading ", "done", "WARNING: hot ", "", "end"]


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
def test_what_a_terminal_would_show(text: str | bytes, expected: list[str]) -> None:
    printed = Printed()
    printed.take(text)
    assert printed.messages() == expected


def test_the_limit_of_all_output_cuts_between_characters_too() -> None:
    printed = Printed()
    printed.take("x" + "价" * MAX_LOG_BYTES + "\nlater\n")
    *kept, told = printed.messages()
    assert "\ufffd" not in "".join(kept)
    assert MAX_LOG_BYTES - 4 < len("".join(kept).encode()) <= MAX_LOG_BYTES
    assert (
        f"{len(('x' + '价' * MAX_LOG_BYTES).encode()) - len(''.join(kept).encode())}" in told
        or "more bytes came" in told
    )
    many = Printed()
    many.take("\n" * (MAX_LOG_LINES + 10))
    assert len(many.messages()) == MAX_LOG_LINES + 1


def test_all_pieces_of_a_line_have_its_level() -> None:
    line = OutputLine("stderr")
    pieces = line.decode_bytes(b"ERROR: " + b"x" * 20_000 + b"\nplain\n")
    assert [piece.level for piece in pieces] == ["ERROR", "ERROR", "ERROR", "INFO"]


def test_the_output_of_an_import_is_cut_alike() -> None:
    text = OutputText(100)
    text.add_output("stderr", "".join(f"\r{n}%" for n in range(101)).encode())
    text.add_output("stdout", "价".encode()[:1])
    text.add_output("stdout", "价".encode()[1:] + b"\n")
    text.add_output("stdout", "é".encode() * 100)
    assert text.get_text().startswith("价\n")
    assert "\ufffd" not in text.get_text()
    assert len(text.get_text().encode()) <= 100
