"""Mask the provider's key in answers: a server may write the key back, and answers are shown and stored."""

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing, suppress
from typing import Final

from msgspec.structs import replace

from domain.llms import ModelCall, ModelReply, ModelTarget, ReasoningDelta, ReplyPart, TextDelta, ToolCallDelta
from domain.shared.aws_keys import InvalidAwsKey, parse_aws_key

KEY_REPLACEMENT: Final = "***"
# Shorter keys are not secrets, and may be ordinary words of an answer.
MIN_KEY_CHARACTERS: Final = 8


def list_secrets(target: ModelTarget) -> tuple[str, ...]:
    """Return what must not be shown of a target's key: of one of AWS the secret parts, and not the id."""
    key = target.api_key.reveal() if target.api_key is not None else ""
    if target.provider == "bedrock":
        with suppress(InvalidAwsKey):
            return parse_aws_key(key).list_secrets()
    return (key,) if key else ()


def mask_secrets(text: str, secrets: Iterable[str]) -> str:
    """Return the text without the secrets."""
    for secret in secrets:
        text = text.replace(secret, KEY_REPLACEMENT)
    return text


class KeyMask:
    """Mask secrets in text that comes in pieces. A possible beginning of one is held back."""

    def __init__(self, *secrets: str) -> None:
        self._secrets, self._held = secrets, ""

    def mask_piece(self, piece: str) -> str:
        """Return the text that is safe to pass on."""
        text = mask_secrets(self._held + piece, self._secrets)
        length = max((_count_begun_characters(text, secret) for secret in self._secrets), default=0)
        self._held = text[len(text) - length :]
        return text[: len(text) - length]

    def flush_text(self) -> str:
        """Return the text that was held back, which is not the key."""
        rest, self._held = self._held, ""
        return rest


def _count_begun_characters(text: str, secret: str) -> int:
    """Return how many characters at the end of a text may be the beginning of a secret."""
    sizes = range(min(len(secret) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(secret[:size])), 0)


async def stream_masked(
    ask: ModelCall, stream: Callable[[ModelCall], AsyncGenerator[ReplyPart, None]]
) -> AsyncGenerator[ReplyPart, None]:
    """Yield the parts of an answer with the key of the call masked. Signed parts stay as they are."""
    secrets = tuple(secret for secret in list_secrets(ask.target) if len(secret) >= MIN_KEY_CHARACTERS)
    async with aclosing(stream(ask)) as parts:
        if not secrets:
            async for part in parts:
                yield part
            return
        masks: dict[object, KeyMask] = {}
        async for part in parts:
            if isinstance(part, TextDelta | ReasoningDelta):
                if text := masks.setdefault(type(part), KeyMask(*secrets)).mask_piece(part.text):
                    yield replace(part, text=text)
            elif isinstance(part, ToolCallDelta):
                arguments = masks.setdefault(part.index, KeyMask(*secrets)).mask_piece(part.arguments)
                if arguments or part.id is not None or part.name is not None:
                    yield replace(
                        part, id=_mask_text(part.id, secrets), name=_mask_text(part.name, secrets), arguments=arguments
                    )
            elif isinstance(part, ModelReply):
                for rest in _flush_masks(masks):
                    yield rest
                yield _mask_reply(part, secrets)
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


def _mask_reply(reply: ModelReply, secrets: tuple[str, ...]) -> ModelReply:
    message = reply.message
    calls = tuple(
        replace(
            call,
            id=mask_secrets(call.id, secrets),
            name=mask_secrets(call.name, secrets),
            arguments=mask_secrets(call.arguments, secrets),
        )
        for call in message.tool_calls
    )
    return replace(reply, message=replace(message, content=mask_secrets(message.content, secrets), tool_calls=calls))


def _mask_text(text: str | None, secrets: tuple[str, ...]) -> str | None:
    return None if text is None else mask_secrets(text, secrets)
