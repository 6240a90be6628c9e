"""Shorten what a model is asked, when it has no room for all of it."""

import re
from typing import Final

import msgspec

from domain.agents import Agent, CrewAgent
from domain.llms import ChatMessage, ModelError

# Times that one call is shortened, each time to half.
MAX_SHORTENINGS: Final = 4
MIN_KEPT_CHARACTERS: Final = 200
_CUT_MARK: Final = "\n… (cut: the model has no room for more)"
# How providers and servers say it; there is no code that all of them have.
_OVERFLOW_TEXT: Final = re.compile(
    r"context[_ -]length|context[_ -]window|context size|maximum context|prompt is too long|input is too long"
    r"|too many tokens|maximum number of tokens|exceeds? the (?:token|context)|request too large",
    re.IGNORECASE,
)


def can_shorten(agent: Agent, error: ModelError) -> bool:
    """Return whether a call failed for want of room, and its agent wants it to be shortened."""
    wants_it = isinstance(agent, CrewAgent) and agent.crew_options is not None and agent.crew_options.fits_context
    return wants_it and error.kind == "refused" and _OVERFLOW_TEXT.search(error.message) is not None


def shorten_messages(messages: tuple[ChatMessage, ...]) -> tuple[ChatMessage, ...] | None:
    """Return messages of half the characters, the longest cut first; None if they cannot be much shorter.

    No message is left out, so a tool call keeps its result. The system message stays as it is.
    """
    sizes = [0 if message.role == "system" else len(message.content) for message in messages]
    total = sum(sizes)
    # The highest limit of a message at which all of them together are at most half as long.
    limit = max(sizes, default=0)
    while limit > MIN_KEPT_CHARACTERS and sum(min(size, limit) for size in sizes) > total // 2:
        limit = max(limit * 9 // 10, MIN_KEPT_CHARACTERS)
    if sum(min(size, limit) for size in sizes) > total * 9 // 10:
        return None
    return tuple(
        msgspec.structs.replace(message, content=message.content[:limit] + _CUT_MARK) if size > limit else message
        for message, size in zip(messages, sizes, strict=True)
    )
