"""Text as it comes from outside: halves of surrogate pairs are put together, or become U+FFFD.

UTF-16 writes an emoji in two halves. Whoever cuts text between them, as much of JavaScript does, sends half of one:
as the escape `\\ud83d` in JSON, or as three bytes that are no UTF-8. No database and no provider takes such text.
Everything that enters is mended here, once: halves that meet are one character, a half alone is U+FFFD.
"""

import codecs
import re
from typing import Final

_HALF: Final = re.compile("[\ud800-\udfff]")
_RAW_HALF: Final = re.compile(rb"\xed[\xa0-\xbf]")
_LONE_RAW: Final = re.compile(
    rb"\xed[\xa0-\xaf][\x80-\xbf](?!\xed[\xb0-\xbf][\x80-\xbf])"
    rb"|(?<!\xed[\xa0-\xaf][\x80-\xbf])\xed[\xb0-\xbf][\x80-\xbf]"
)
_RAW_PAIR: Final = re.compile(rb"\xed[\xa0-\xaf][\x80-\xbf]\xed[\xb0-\xbf][\x80-\xbf]")
# Each costs a call of Python: with more of them, the source is left to its reader, as text that is no UTF-8.
_MAX_RAW_PAIRS: Final = 50_000
_ESCAPED_HALF: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_LONE_ESCAPE: Final = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
# What no JSON holds as it stands, for `\\` meanwhile: only then does every other backslash begin an escape.
_BACKSLASH: Final = b"\x00\x01"


def repair_text(text: str) -> str:
    """Return text in which halves of surrogate pairs that meet are one character, and a half alone is U+FFFD."""
    if text.isascii() or not _HALF.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def repair_json(source: bytes) -> bytes:
    """Return JSON without a BOM, whose texts hold no half of a surrogate pair, neither as an escape nor as bytes.

    What is not JSON, or not UTF-8 otherwise, is returned as it came, for its reader to refuse. The work grows with
    the size alone, whatever the source holds.
    """
    # What Windows' editors put before a text. RFC 8259 section 8.1 lets readers pass over it.
    source = source.removeprefix(codecs.BOM_UTF8)
    if _RAW_HALF.search(source):
        source = _LONE_RAW.sub("\ufffd".encode(), source)
        source = _RAW_PAIR.sub(_join_raw_pair, source, count=_MAX_RAW_PAIRS)
    if not _ESCAPED_HALF.search(source) or b"\x00" in source:
        return source
    mended = _LONE_ESCAPE.sub(rb"\\ufffd", source.replace(rb"\\", _BACKSLASH))
    return mended.replace(_BACKSLASH, rb"\\")


def _join_raw_pair(found: re.Match[bytes]) -> bytes:
    return repair_text(found[0].decode("utf-8", "surrogatepass")).encode()


def repair_json_text(source: str) -> str:
    """Return JSON that came as text, mended as `mend_json` does."""
    return repair_json(repair_text(source).encode()).decode()


class TextRepairer:
    """Mends text that comes in pieces, where a character may begin in one piece and end in the next.

    The pieces must still hold their halves: `json.loads` keeps them, msgspec refuses them.
    """

    def __init__(self) -> None:
        self._held = ""

    def add(self, piece: str) -> str:
        """Return what can be passed on by now; the first half of a pair at the end is held back."""
        text = self._held + piece
        held = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        self._held = held
        return repair_text(text.removesuffix(held))

    def finish(self) -> str:
        """Return what was held back."""
        held, self._held = self._held, ""
        return repair_text(held)
