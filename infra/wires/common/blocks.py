"""Order the parts of an answer into blocks: each begins, grows and ends before the next one begins.

Parts of several tool calls may come mixed, as providers send them. Responses and Anthropic's messages are sequences of
blocks, and clients read them so.
"""

from collections.abc import Callable, Iterator
from typing import Literal

import msgspec

from domain.llms import ModelReply, ReasoningDelta, ReasoningItem, ReplyPart, TextDelta, ToolCallDelta

BlockKind = Literal["text", "reasoning", "call"]
# Makes of an item of reasoning what an agent may hold, and give back.
SealItem = Callable[[ReasoningItem], str]


class AnswerBlock:
    """Hold one block of an answer: text, reasoning, or a tool call whose text is its arguments.

    `sealed` is what the agent gives back of reasoning: None until it is complete, or if its provider needs nothing.
    """

    def __init__(self, index: int, kind: BlockKind, *, call_id: str = "", name: str = "") -> None:
        self.index, self.kind, self.call_id, self.name = index, kind, call_id, name
        self.pieces: list[str] = []
        self.sealed: str | None = None
        self.is_complete = False
        self._checked_pieces = 0

    @property
    def text(self) -> str:
        """Return the text so far."""
        return "".join(self.pieces)

    def has_whole_arguments(self) -> bool:
        """Return whether the arguments of a call are complete JSON. What has not grown since is not read again."""
        if self._checked_pieces < len(self.pieces) and self.pieces[-1].rstrip().endswith("}"):
            self.is_complete = _is_json(self.text)
        self._checked_pieces = len(self.pieces)
        return self.is_complete


class BlockEvent(msgspec.Struct, frozen=True):
    """Describe what happens to a block. `text` is the piece that it grows by."""

    kind: Literal["start", "piece", "end"]
    block: AnswerBlock
    text: str = ""


class BlockSequence:
    """Order the parts of one answer into blocks."""

    def __init__(self, seal: SealItem) -> None:
        self._seal = seal
        self.blocks: list[AnswerBlock] = []
        self._calls: dict[int, AnswerBlock] = {}
        self._open = 0  # the index of the block that has not ended
        self._is_started = False
        self._sent_pieces = 0

    def add_part(self, part: ReplyPart) -> Iterator[BlockEvent]:
        """Yield what a part changes."""
        match part:
            case TextDelta() if part.text:
                self._get_last("text").pieces.append(part.text)
            case ReasoningDelta() if part.text:
                self._get_last("reasoning").pieces.append(part.text)
            case ReasoningItem():
                block = self._get_last("reasoning")
                block.sealed, block.is_complete = self._seal(part), True
            case ToolCallDelta():
                block = self._calls.get(part.index) or self._begin_call(part)
                if part.arguments:
                    block.pieces.append(part.arguments)
            case _:
                return
        yield from self._advance(is_last=False)

    def end_answer(self, reply: ModelReply) -> Iterator[BlockEvent]:
        """Yield the rest of a complete answer."""
        message = reply.message
        if message.content and not any(block.kind == "text" for block in self.blocks):
            self._get_last("text").pieces.append(message.content)
        for index, call in enumerate(message.tool_calls):
            if index not in self._calls:
                part = ToolCallDelta(index=index, id=call.id, name=call.name)
                self._begin_call(part).pieces.append(call.arguments)
        yield from self._advance(is_last=True)

    def _get_last(self, kind: BlockKind) -> AnswerBlock:
        """Return the last block, or a new one if that is of another kind or complete."""
        if self.blocks and self.blocks[-1].kind == kind and not self.blocks[-1].is_complete:
            return self.blocks[-1]
        block = AnswerBlock(len(self.blocks), kind)
        self.blocks.append(block)
        return block

    def _begin_call(self, part: ToolCallDelta) -> AnswerBlock:
        block = AnswerBlock(len(self.blocks), "call", call_id=part.id or "", name=part.name or "")
        self.blocks.append(block)
        self._calls[part.index] = block
        return block

    def _advance(self, is_last: bool) -> Iterator[BlockEvent]:
        """Yield what has become known of the open block, and of the next ones if it has ended."""
        while self._open < len(self.blocks):
            block = self.blocks[self._open]
            if not self._is_started:
                self._is_started, self._sent_pieces = True, 0
                yield BlockEvent("start", block)
            for piece in block.pieces[self._sent_pieces :]:
                yield BlockEvent("piece", block, piece)
            self._sent_pieces = len(block.pieces)
            if not is_last and not self._has_ended(block):
                return
            yield BlockEvent("end", block)
            self._open, self._is_started = self._open + 1, False

    def _has_ended(self, block: AnswerBlock) -> bool:
        """Return whether nothing more can come of a block: more of a tool call may come after the next has begun."""
        if block.is_complete:
            return True
        if block.index == len(self.blocks) - 1:
            return False
        return block.kind != "call" or block.has_whole_arguments()


def _is_json(text: str) -> bool:
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return False
    return True
