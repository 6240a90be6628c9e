"""Split what a guest writes to its answer pipe: marks of its stages, messages while it runs, and the answer."""

from typing import Final

from domain.ports import MessageKind
from infra.sandbox.exit_report import STAGE_MARKS, GuestStage

# The most that a message may hold, in bytes: a state of 1 MiB, and its JSON may have escapes.
MAX_MESSAGE_BYTES: Final = (1 << 20) + (64 << 10)
# A message is `~`, a byte for its kind, its length in four bytes, and its JSON.
_MESSAGE_MARK: Final = ord("~")
_MESSAGE_HEAD_BYTES: Final = 6
_MESSAGE_KINDS: Final[dict[int, MessageKind]] = {ord("o"): "output", ord("p"): "progress", ord("s"): "state"}


class AnswerParser:
    """Parse the answer pipe of one guest. Nothing in it is trusted but its syntax.

    `answer` is what follows the marks and the messages. `is_oversized` is set when that, or a message, is larger than
    our guest writes; then nothing that follows counts.
    """

    def __init__(self, max_answer_bytes: int) -> None:
        self.max_answer_bytes = max_answer_bytes
        self.stage = GuestStage.STARTED
        self.answer = bytearray()
        self.is_oversized = False

    def feed(self, part: bytes) -> list[tuple[MessageKind, bytes]]:
        """Take a piece of what was written, and return the messages that are complete now."""
        if self.is_oversized:
            return []
        self.answer += part
        while (mark := STAGE_MARKS.get(bytes(self.answer[:1]))) is not None and mark > self.stage:
            del self.answer[:1]
            self.stage = mark
        messages = self._take_messages() if self.stage >= GuestStage.PAYLOAD_READ else []
        if len(self.answer) > self.max_answer_bytes:
            self._give_up()
        return messages

    def _take_messages(self) -> list[tuple[MessageKind, bytes]]:
        messages: list[tuple[MessageKind, bytes]] = []
        start = 0
        while len(self.answer) >= start + _MESSAGE_HEAD_BYTES and self.answer[start] == _MESSAGE_MARK:
            kind = _MESSAGE_KINDS.get(self.answer[start + 1])
            size = int.from_bytes(self.answer[start + 2 : start + _MESSAGE_HEAD_BYTES], "big")
            if kind is None or size > MAX_MESSAGE_BYTES:
                self._give_up()
                return messages
            end = start + _MESSAGE_HEAD_BYTES + size
            if len(self.answer) < end:
                break
            messages.append((kind, bytes(self.answer[start + _MESSAGE_HEAD_BYTES : end])))
            start = end
        del self.answer[:start]
        return messages

    def _give_up(self) -> None:
        self.is_oversized = True
        self.answer.clear()
