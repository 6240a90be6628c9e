"""Stars for a provider's key in its answers: whoever answers may write the key back, and answers are shown and kept."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Final

from msgspec.structs import replace

from domain.llms import ModelCall, ModelReply, ReasoningDelta, ReplyPart, TextDelta, ToolCallDelta

KEY_REPLACEMENT: Final = "***"
# Shorter ones are no secrets, and words of an answer.
MIN_KEY_CHARACTERS: Final = 8


class KeyMask:
    """Masks a key in text that comes in pieces; what may be the key's beginning is held back."""

    def __init__(self, key: str) -> None:
        self._key, self._held = key, ""

    def mask_piece(self, piece: str) -> str:
        """Return what can be handed on by now."""
        text = (self._held + piece).replace(self._key, KEY_REPLACEMENT)
        held = next((size for size in range(len(self._key) - 1, 0, -1) if text.endswith(self._key[:size])), 0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush_text(self) -> str:
        """Return what was held back, which is no key."""
        held, self._held = self._held, ""
        return held


async def stream_masked(
    ask: ModelCall, stream: Callable[[ModelCall], AsyncGenerator[ReplyPart, None]]
) -> AsyncGenerator[ReplyPart, None]:
    """The parts of an answer without the key that it was asked with. What a provider signed stays as it is."""
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
    found: list[ReplyPart] = []
    for kind, mask in masks.items():
        if held := mask.flush_text():
            if isinstance(kind, int):
                found.append(ToolCallDelta(index=kind, arguments=held))
            else:
                found.append(ReasoningDelta(held) if kind is ReasoningDelta else TextDelta(held))
    return found


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
