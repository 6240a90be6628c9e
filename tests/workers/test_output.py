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
    MAX_STATE_BYTES,
    OutputLine,
    OutputLog,
    OutputText,
    cut_text,
)
from workers.progress import ProgressState, parse_fraction

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
        flushing = asyncio.create_task(self.output.flush_until_stopped())
        await asyncio.sleep(0.15)
        self.output.stop()
        await flushing
        self.output._stopped.clear()

    def write(self, text: str | bytes, stream: OutputStream = "stdout") -> None:
        self.output.add_output(stream, text.encode() if isinstance(text, str) else text)

    def take_messages(self) -> list[str]:
        """Return all lines of the log that were written."""
        return [event.data["message"] for event in [*self.written, *self.output.take_rest()] if event.type == "log"]

    def list_progress(self) -> list[tuple[float | None, str]]:
        """Return the progress that was written while it ran."""
        return [(event.data["fraction"], event.data["message"]) for event in self.written if event.type == "progress"]


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


TERMINAL_BYTES = st.lists(
    st.sampled_from([b"\r", b"\n", b"\b", b"\t", b" ", b"a", b"\x1b", b"[K", b"]0;t", b"\a", b"\0"])
)


@given(st.one_of(st.binary(max_size=300), TERMINAL_BYTES.map(b"".join)), st.integers(1, 40))
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


async def test_progress_bar_is_progress_once_a_second_and_its_last_state_a_line() -> None:
    recorder = OutputRecorder()
    for n in range(12):
        for part in range(10):
            recorder.write(f"\r {n}{part}%|###   | {n}{part}/120", "stderr")
        await recorder.pass_time(0.5)
    progress_events = recorder.list_progress()
    assert 4 <= len(progress_events) <= 6, "at most once a second"
    assert progress_events[0] == (0.29, "29%|###   | 29/120")
    assert recorder.take_messages() == [" 119%|###   | 119/120"], "and no line of the log but the last"


async def test_last_state_of_a_progress_bar_is_progress_too() -> None:
    recorder = OutputRecorder()
    recorder.write("\r10%")
    await recorder.pass_time(0)
    await recorder.pass_time(1)
    recorder.write("\r100%\n")
    events = recorder.output.take_rest()
    assert recorder.list_progress() == [(0.1, "10%")]
    assert [(event.type, event.data["message"]) for event in events] == [("log", "100%"), ("progress", "100%")]


async def test_progress_bar_that_ends_at_once_is_only_a_line() -> None:
    recorder = OutputRecorder()
    recorder.write("".join(f"\r{n}%" for n in range(101)) + "\nnext\n")
    await recorder.pass_time(5)
    assert recorder.list_progress() == []
    assert recorder.take_messages() == ["100%", "next"]


async def test_progress_shows_no_escape_sequences_and_is_bounded() -> None:
    recorder = OutputRecorder()
    recorder.write("\r\x1b[32m50%\x1b[0m \0" + "#" * 3000)
    await recorder.pass_time(0)
    await recorder.pass_time(1)
    ((fraction, message),) = recorder.list_progress()
    assert fraction == 0.5
    assert message.startswith("50% \ufffd###")
    assert len(message.encode()) <= MAX_STATE_BYTES


@pytest.mark.parametrize(
    ("line", "fraction"),
    [
        (" 37%|███▋      | 37/100 [00:03<00:06,  9.9it/s]", 0.37),
        ("100%|██████████| 5/5", 1.0),
        ("Downloading 12.5 % of model", 0.125),
        ("0%", 0.0),
        ("37/100", None),
        ("cpu 10%, memory 20%", None),
        ("150%", None),
        ("-5%", None),
        ("v1.50%", None),
        ("½%", None),
        ("loss 0.5", None),
    ],
)
def test_fraction_is_parsed_where_it_is_plain(line: str, fraction: float | None) -> None:
    assert parse_fraction(line) == fraction


async def test_events_are_written_at_once_and_in_order() -> None:
    written, seen = [], asyncio.Event()

    async def write(batch: list[ExecutionEvent]) -> None:
        written.extend(batch)
        seen.set()

    output = OutputLog(write, lambda: NOW)
    flushing = asyncio.create_task(output.flush_until_stopped())
    output.add_output("stdout", b"before\n")
    output.add_event(ExecutionEvent(type="output", data={"number": 1, "value": 1}, at=NOW))
    output.add_output("stdout", b"after\n")
    async with asyncio.timeout(5):
        await seen.wait()
    output.stop()
    await flushing
    assert [event.data.get("message") for event in [*written, *output.take_rest()]] == ["before", None, "after"]


async def test_progress_is_reported_once_a_second_and_never_lost() -> None:
    recorder = OutputRecorder()
    for n in range(40):
        recorder.output.update_progress(ProgressState(n / 100, f"step {n}"))
        if n % 4 == 3:
            await recorder.pass_time(0.5)
    assert len(recorder.list_progress()) == 5
    assert recorder.list_progress()[0] == (0.03, "step 3")
    assert [event.data["message"] for event in recorder.output.take_rest()] == ["step 39"]
    assert recorder.output.take_rest() == []


async def test_many_events_are_written_in_batches() -> None:
    batches: list[int] = []

    async def write(batch: list[ExecutionEvent]) -> None:
        batches.append(len(batch))

    output = OutputLog(write, lambda: NOW)
    for n in range(2500):
        output.add_event(ExecutionEvent(type="output", data={"number": n, "value": n}, at=NOW))
    flushing = asyncio.create_task(output.flush_until_stopped())
    async with asyncio.timeout(5):
        while sum(batches) < 2500:
            await asyncio.sleep(0.01)
    output.stop()
    await flushing
    assert batches == [1000, 1000, 500]


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
