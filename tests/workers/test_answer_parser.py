"""Show that an answer pipe is read alike however its bytes are split, and that garbage in it harms its run alone."""

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.ports import MessageKind, OutputStream
from infra.sandbox.answer_parser import MAX_MESSAGE_BYTES, AnswerParser, GuestMessage
from infra.sandbox.exit_report import GuestStage
from infra.sandbox.guest import context as guest_context
from infra.sandbox.output_order import MAX_HELD_BYTES, OUTPUT_MARK, OutputOrder

MAX_ANSWER: Final = 4096
KIND_BYTES: Final[dict[MessageKind, bytes]] = {
    "output": b"o",
    "progress": b"p",
    "state_request": b"r",
    "state": b"s",
}
MESSAGES: Final = st.lists(
    st.builds(GuestMessage, st.sampled_from(list(KIND_BYTES)), st.integers(0, 2**32 - 1), st.binary(max_size=300)),
    max_size=20,
)
ANSWERS: Final = st.binary(max_size=200).filter(lambda data: data[:1] != b"~")
CUTS: Final = st.lists(st.integers(1, 50), min_size=1, max_size=10)


def _encode_message(message: GuestMessage) -> bytes:
    head = b"~" + KIND_BYTES[message.kind] + message.number.to_bytes(4, "big") + len(message.data).to_bytes(4, "big")
    return head + message.data


def _parse_in_pieces(parser: AnswerParser, data: bytes, cuts: list[int]) -> list[GuestMessage]:
    """Parse data in pieces of these sizes, over and over."""
    messages, start, number = list[GuestMessage](), 0, 0
    while start < len(data):
        size = cuts[number % len(cuts)]
        messages += parser.parse_piece(data[start : start + size])
        start, number = start + size, number + 1
    return messages


@given(MESSAGES, ANSWERS, CUTS)
def test_messages_and_the_answer_are_the_same_however_they_are_split(
    messages: list[GuestMessage], answer: bytes, cuts: list[int]
) -> None:
    parser = AnswerParser(MAX_ANSWER)
    data = b".+=!" + b"".join(map(_encode_message, messages)) + answer
    assert _parse_in_pieces(parser, data, cuts) == messages
    assert (bytes(parser.answer), parser.stage, parser.has_given_up) == (answer, GuestStage.PAYLOAD_READ, False)


@given(st.binary(max_size=600), CUTS, st.sampled_from([b"", b"+", b"+=!"]))
def test_garbage_is_read_alike_however_it_is_split(garbage: bytes, cuts: list[int], start: bytes) -> None:
    pieces, whole = AnswerParser(MAX_ANSWER), AnswerParser(MAX_ANSWER)
    assert _parse_in_pieces(pieces, start + garbage, cuts) == whole.parse_piece(start + garbage)
    assert (pieces.answer, pieces.stage, pieces.has_given_up) == (whole.answer, whole.stage, whole.has_given_up)
    assert len(pieces.answer) <= MAX_ANSWER


@given(st.binary(max_size=40), MESSAGES)
def test_nothing_counts_after_a_message_that_our_guest_never_writes(rest: bytes, messages: list[GuestMessage]) -> None:
    for head in (b"~x" + bytes(8), b"~o" + bytes(4) + (MAX_MESSAGE_BYTES + 1).to_bytes(4, "big")):
        parser = AnswerParser(MAX_ANSWER)
        assert parser.parse_piece(b"+=!" + b"".join(map(_encode_message, messages)) + head + rest) == messages
        assert (parser.is_malformed, parser.is_oversized, parser.answer) == (True, False, b"")
        assert parser.parse_piece(b"{}\nnull") == []
        assert parser.answer == b""


def test_a_message_of_the_largest_size_is_read() -> None:
    parser = AnswerParser(MAX_MESSAGE_BYTES + 100)
    message = GuestMessage("state", 0, b"x" * MAX_MESSAGE_BYTES)
    assert parser.parse_piece(b"+=!" + _encode_message(message)) == [message]


def test_messages_before_the_payload_was_read_and_after_the_answer_are_none() -> None:
    message = _encode_message(GuestMessage("output", 1, b"1"))
    parser = AnswerParser(MAX_ANSWER)
    assert parser.parse_piece(b"+" + message) == []
    parser = AnswerParser(MAX_ANSWER)
    assert parser.parse_piece(b"+=!{}\nnull" + message) == []
    assert parser.answer == b"{}\nnull" + message


def test_an_answer_past_its_limit_is_oversized() -> None:
    parser = AnswerParser(MAX_ANSWER)
    parser.parse_piece(b"+=!{" + b" " * MAX_ANSWER)
    assert (parser.is_oversized, parser.is_malformed, parser.answer) == (True, False, b"")


# the order of what is printed and what is sent


class Delivered:
    """Record what an order delivers."""

    def __init__(self) -> None:
        self.order = OutputOrder(self._take)
        self.events: list[tuple[str, bytes]] = []

    def send(self, number: int) -> None:
        self.order.begin_output(number)
        self.events.append(("output", str(number).encode()))
        self.order.end_output(number)

    def join_neighbours(self) -> list[tuple[str, bytes]]:
        """Return what was delivered, with neighbours of one stream joined."""
        joined: list[tuple[str, bytes]] = []
        for kind, data in self.events:
            if joined and joined[-1][0] == kind != "output":
                joined[-1] = kind, joined[-1][1] + data
            else:
                joined.append((kind, data))
        return joined

    def _take(self, stream: OutputStream, data: bytes) -> None:
        assert data
        self.events.append((stream, data))


def _mark(number: int) -> bytes:
    return OUTPUT_MARK + number.to_bytes(4, "big")


def test_guest_and_host_agree_on_the_mark() -> None:
    assert guest_context.OUTPUT_MARK == OUTPUT_MARK


@given(st.lists(st.binary(min_size=1, max_size=30).filter(lambda data: b"\0" not in data), max_size=8), CUTS)
def test_what_was_printed_comes_between_the_outputs_that_it_was_printed_between(
    printed: list[bytes], cuts: list[int]
) -> None:
    delivered = Delivered()
    data = b"".join(piece + _mark(number) for number, piece in enumerate(printed, 1))
    start = number = 0
    while start < len(data):
        size = cuts[number % len(cuts)]
        delivered.order.add_output("stdout", data[start : start + size])
        start, number = start + size, number + 1
    for number in range(1, len(printed) + 1):
        assert delivered.order.has_mark("stdout", number)
        delivered.send(number)
    expected = [
        event for n, piece in enumerate(printed, 1) for event in [("stdout", piece), ("output", str(n).encode())]
    ]
    assert delivered.join_neighbours() == expected


@given(st.lists(st.one_of(st.binary(max_size=20), st.integers(0, 2**32 - 1)), max_size=30), CUTS, st.booleans())
def test_output_is_complete_with_any_marks_in_it(parts: list[bytes | int], cuts: list[int], sends: bool) -> None:
    delivered = Delivered()
    data = b"".join(part if isinstance(part, bytes) else _mark(part) for part in parts)
    start = number = 0
    while start < len(data):
        size = cuts[number % len(cuts)]
        delivered.order.add_output("stderr", data[start : start + size])
        if sends:
            delivered.send(number)
        start, number = start + size, number + 1
    delivered.order.deliver_rest()
    rest = b"".join(data for kind, data in delivered.events if kind == "stderr")
    assert rest == b"".join(part for part in parts if isinstance(part, bytes))


def test_forged_marks_hold_back_no_more_than_the_limit() -> None:
    delivered = Delivered()
    for number in range(1, 3000):
        delivered.order.add_output("stdout", _mark(number) + b"x" * 100)
    held_bytes = sum(len(data) for pieces in delivered.order._held.values() for _, data in pieces)
    assert held_bytes <= MAX_HELD_BYTES
    assert sum(len(data) for _, data in delivered.events) + held_bytes == 2999 * 100


@pytest.mark.parametrize("cut", range(1, len(OUTPUT_MARK) + 4))
def test_a_mark_that_is_never_complete_is_output(cut: int) -> None:
    delivered = Delivered()
    delivered.order.add_output("stdout", b"text" + _mark(7)[:cut])
    assert delivered.events == [("stdout", b"text")]
    delivered.order.deliver_rest()
    assert delivered.join_neighbours() == [("stdout", b"text" + _mark(7)[:cut])]
