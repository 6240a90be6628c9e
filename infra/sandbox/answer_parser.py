"""Split what a guest writes to its answer pipe: marks of its stages, messages while it runs, and the answer."""

from typing import Final

import msgspec

from domain.ports import MessageKind
from infra.sandbox.exit_report import STAGE_MARKS, GuestStage

# The most that a message may hold, in bytes: a state of 1 MiB.
MAX_MESSAGE_BYTES: Final = 1 << 20
# A message is `~`, a byte for its kind, its number and its length in four bytes each, and its JSON.
_MESSAGE_MARK: Final = ord("~")
_MESSAGE_HEAD_BYTES: Final = 10
_MESSAGE_KINDS: Final[dict[int, MessageKind]] = {
    ord("o"): "output",
    ord("p"): "progress",
    ord("r"): "state_request",
    ord("s"): "state",
}


class GuestMessage(msgspec.Struct, frozen=True):
    """Hold a message. `number` is an output's place among the outputs of its run, from 1, and 0 for other kinds."""

    kind: MessageKind
    number: int
    data: bytes


class AnswerParser:
    """Parse the answer pipe of one guest. Nothing in it is trusted but its syntax.

    `answer` is what follows the marks and the messages. After `is_oversized` or `is_malformed` is set, nothing that
    follows counts: the first for an answer that is larger than our guest writes, the other for a message that it never
    writes.
    """

    def __init__(self, max_answer_bytes: int) -> None:
        self.max_answer_bytes = max_answer_bytes
        self.stage = GuestStage.STARTED
        self.answer = bytearray()
        self.is_oversized = self.is_malformed = False

    @property
    def has_given_up(self) -> bool:
        """Return whether nothing that follows counts."""
        return self.is_oversized or self.is_malformed

    def parse_piece(self, part: bytes) -> list[GuestMessage]:
        """Take a piece of what was written, and return the messages that are complete now."""
        if not self.has_given_up:
            self.answer += part
        while (mark := STAGE_MARKS.get(bytes(self.answer[:1]))) is not None and mark > self.stage:
            del self.answer[:1]
            self.stage = mark
        messages = self._take_messages() if self.stage >= GuestStage.PAYLOAD_READ else []
        if len(self.answer) > self.max_answer_bytes:
            self.is_oversized = True
        if self.has_given_up:
            self.answer.clear()
        return messages

    def _take_messages(self) -> list[GuestMessage]:
        messages: list[GuestMessage] = []
        start, answer = 0, self.answer
        while len(answer) >= start + _MESSAGE_HEAD_BYTES and answer[start] == _MESSAGE_MARK:
            kind = _MESSAGE_KINDS.get(answer[start + 1])
            number = int.from_bytes(answer[start + 2 : start + 6], "big")
            size = int.from_bytes(answer[start + 6 : start + _MESSAGE_HEAD_BYTES], "big")
            if kind is None or size > MAX_MESSAGE_BYTES:
                self.is_malformed = True
                return messages
            end = start + _MESSAGE_HEAD_BYTES + size
            if len(answer) < end:
                break
            messages.append(GuestMessage(kind, number, bytes(answer[start + _MESSAGE_HEAD_BYTES : end])))
            start = end
        del answer[:start]
        return messages
