"""Mask the provider's key in answers: a server may write the key back, and answers are shown and stored."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final

from msgspec.structs import replace

from domain.llms import ModelCall, ModelReply, ReasoningDelta, ReplyPart, TextDelta, ToolCallDelta

KEY_REPLACEMENT: Final = "***"
# Shorter keys are not secrets, and may be ordinary words of an answer.
MIN_KEY_CHARACTERS: Final = 8


class KeyMask:
    """Mask a key in text that comes in pieces. A possible beginning of the key is held back."""

    def __init__(self, key: str) -> None:
        self._key, self._held = key, ""

    def mask_piece(self, piece: str) -> str:
        """Return the text that is safe to pass on."""
        text = (self._held + piece).replace(self._key, KEY_REPLACEMENT)
        length = next((size for size in range(len(self._key) - 1, 0, -1) if text.endswith(self._key[:size])), 0)
        self._held = text[len(text) - length :]
        return text[: len(text) - length]

    def flush_text(self) -> str:
        """Return the text that was held back, which is not the key."""
        rest, self._held = self._held, ""
        return rest


async def stream_masked(
    ask: ModelCall, stream: Callable[[ModelCall], AsyncGenerator[ReplyPart, None]]
) -> AsyncGenerator[ReplyPart, None]:
    """Yield the parts of an answer with the key of the call masked. Signed parts stay as they are."""
    key = ask.target.api_key.reveal() if ask.target.api_key is not None else ""
    async with aclosing(stream(ask)) as parts:
        if len(key) < MIN_KEY_CHARACTERS:
            async for part in parts:
                yield part
            return
        masks: dict[object, KeyMask] = {}
        async for part in parts:
            if isinstance(part, TextDelta | ReasoningDelta):
                if text := masks.setdefault(type(part), KeyMask(key)).mask_piece(part.text):
                    yield replace(part, text=text)
            elif isinstance(part, ToolCallDelta):
                arguments = masks.setdefault(part.index, KeyMask(key)).mask_piece(part.arguments)
                if arguments or part.id is not None or part.name is not None:
                    yield replace(
                        part, id=_mask_text(part.id, key), name=_mask_text(part.name, key), arguments=arguments
                    )
            elif isinstance(part, ModelReply):
                for rest in _flush_masks(masks):
                    yield rest
                yield _mask_reply(part, key)
            else:
                yield part


def _flush_masks(masks: dict[object, KeyMask]) -> list[ReplyPart]:
    parts: list[ReplyPart] = []
    for kind, mask in masks.items():
        if rest := mask.flush_text():
            if isinstance(kind, int):
                parts.append(ToolCallDelta(index=kind, arguments=rest))
            else:
                parts.append(ReasoningDelta(rest) if kind is ReasoningDelta else TextDelta(rest))
    return parts


def _mask_reply(reply: ModelReply, key: str) -> ModelReply:
    message = reply.message
    calls = tuple(
        replace(
            call,
            id=call.id.replace(key, KEY_REPLACEMENT),
            name=call.name.replace(key, KEY_REPLACEMENT),
            arguments=call.arguments.replace(key, KEY_REPLACEMENT),
        )
        for call in message.tool_calls
    )
    return replace(
        reply, message=replace(message, content=message.content.replace(key, KEY_REPLACEMENT), tool_calls=calls)
    )


def _mask_text(text: str | None, key: str) -> str | None:
    return None if text is None else text.replace(key, KEY_REPLACEMENT)
