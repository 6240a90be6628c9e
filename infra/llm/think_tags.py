"""Thoughts between `<think>` and `</think>` in the text of an answer, wherever its pieces end."""

from typing import Final

_OPENING_TAG: Final = "<think>"
_CLOSING_TAG: Final = "</think>"
# An answer that begins with so much white space is not about to think.
_MAX_BLANK_CHARACTERS: Final = 1024


class ThinkTagParser:
    """Tells thoughts from text as both grow.

    Tags count where the answer begins, and nowhere else: an answer may well speak of them. What may be the beginning
    of one is held back until it is clear. White space around thoughts is no part of the answer.
    """

    def __init__(self) -> None:
        self._state = "begin"
        self._held = ""
        self._thought = False

    def split_piece(self, piece: str) -> list[tuple[bool, str]]:
        """Return what the piece makes clear, each as (is a thought, text)."""
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
                # A closing tag alone: the prompt had the opening one.
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
        """Return what was held back."""
        held, self._held = self._held, ""
        if self._state == "inside":
            return [(True, held)] if held else []
        text = held.lstrip() if self._thought else held
        return [(False, text)] if text else []


def _split_prefix(text: str) -> tuple[str, str]:
    """Split off an end that may be the beginning of a closing tag."""
    for length in range(min(len(_CLOSING_TAG) - 1, len(text)), 0, -1):
        if _CLOSING_TAG.startswith(text[-length:]):
            return text[:-length], text[-length:]
    return text, ""
