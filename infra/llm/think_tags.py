"""Split thoughts between `<think>` and `</think>` from the text of an answer that comes in pieces."""

from typing import Final

_OPENING_TAG: Final = "<think>"
_CLOSING_TAG: Final = "</think>"
# An answer that begins with more white space than this does not begin with a thought.
_MAX_BLANK_CHARACTERS: Final = 1024


class ThinkTagParser:
    """Split thoughts from text piece by piece.

    Tags count only at the beginning of the answer, as an answer may mention them later. A possible beginning of a tag
    is held back until it is clear. White space around thoughts is not part of the answer.
    """

    def __init__(self) -> None:
        self._state = "begin"
        self._held = ""
        self._thought = False

    def split_piece(self, piece: str) -> list[tuple[bool, str]]:
        """Return the texts that are now clear, each as (is a thought, text)."""
        if self._state == "answer":
            return [(False, piece)]
        text, self._held = self._held + piece, ""
        parts: list[tuple[bool, str]] = []
        while text:
            if self._state == "inside":
                thought, closed, text = text.partition(_CLOSING_TAG)
                if closed:
                    self._state = "begin"
                else:
                    thought, self._held = _split_prefix(thought)
                if thought:
                    parts.append((True, thought))
                continue
            bare = text.lstrip()
            if bare.startswith((_OPENING_TAG, _CLOSING_TAG)):
                # A closing tag comes alone if the prompt has the opening tag.
                self._thought = True
                self._state = "inside" if bare.startswith(_OPENING_TAG) else "begin"
                text = bare.partition(">")[2]
            elif (_OPENING_TAG.startswith(bare) or _CLOSING_TAG.startswith(bare)) and len(
                text
            ) <= _MAX_BLANK_CHARACTERS:
                self._held = text
                break
            else:
                self._state = "answer"
                parts.append((False, bare if self._thought else text))
                break
        return parts

    def flush_text(self) -> list[tuple[bool, str]]:
        """Return the text that was held back."""
        rest, self._held = self._held, ""
        if self._state == "inside":
            return [(True, rest)] if rest else []
        text = rest.lstrip() if self._thought else rest
        return [(False, text)] if text else []


def _split_prefix(text: str) -> tuple[str, str]:
    """Split off an end that may be the beginning of a closing tag."""
    for length in range(min(len(_CLOSING_TAG) - 1, len(text)), 0, -1):
        if _CLOSING_TAG.startswith(text[-length:]):
            return text[:-length], text[-length:]
    return text, ""
