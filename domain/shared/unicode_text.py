"""Repair the surrogates in text from outside: halves of a pair are joined, and a lone half becomes U+FFFD.

UTF-16 writes an emoji in two halves. Software that cuts text between them, like much of JavaScript, sends half of one:
as the escape `\\ud83d` in JSON, or as three bytes that are not UTF-8. No database and no provider accepts that.
All text that enters is repaired here, once.
"""

import codecs
import re
from typing import Final

_SURROGATE_PATTERN: Final = re.compile("[\ud800-\udfff]")
_RAW_SURROGATE: Final = re.compile(rb"\xed[\xa0-\xbf]")
_LONE_RAW_SURROGATE: Final = re.compile(
    rb"\xed[\xa0-\xaf][\x80-\xbf](?!\xed[\xb0-\xbf][\x80-\xbf])"
    rb"|(?<!\xed[\xa0-\xaf][\x80-\xbf])\xed[\xb0-\xbf][\x80-\xbf]"
)
_RAW_SURROGATE_PAIR: Final = re.compile(rb"\xed[\xa0-\xaf][\x80-\xbf]\xed[\xb0-\xbf][\x80-\xbf]")
# Each costs a Python call: with more of them, the source stays as it is, and its reader refuses it as invalid UTF-8.
_MAX_RAW_PAIRS: Final = 50_000
_ESCAPED_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_LONE_ESCAPE: Final = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F][0-9a-fA-F]{2})"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F][0-9a-fA-F]{2}"
)
# Stands for `\\` during the repair, so that every other backslash begins an escape. No JSON contains it.
_BACKSLASH_MARK: Final = b"\x00\x01"


def repair_text(text: str) -> str:
    """Return text in which adjacent halves of a surrogate pair are one character, and a lone half is U+FFFD."""
    if text.isascii() or not _SURROGATE_PATTERN.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def repair_json(source: bytes) -> bytes:
    """Return JSON without a BOM whose texts contain no half of a surrogate pair, neither as an escape nor as bytes.

    Text that is not JSON, or not UTF-8 for another reason, is returned unchanged for its reader to refuse. The work is
    linear in the size of the source.
    """
    # Editors on Windows begin a file with it. RFC 8259 section 8.1 lets readers skip it.
    source = source.removeprefix(codecs.BOM_UTF8)
    if _RAW_SURROGATE.search(source):
        source = _LONE_RAW_SURROGATE.sub("\ufffd".encode(), source)
        source = _RAW_SURROGATE_PAIR.sub(_join_raw_pair, source, count=_MAX_RAW_PAIRS)
    if not _ESCAPED_SURROGATE.search(source) or b"\x00" in source:
        return source
    repaired = _LONE_ESCAPE.sub(rb"\\ufffd", source.replace(rb"\\", _BACKSLASH_MARK))
    return repaired.replace(_BACKSLASH_MARK, rb"\\")


def _join_raw_pair(match: re.Match[bytes]) -> bytes:
    return repair_text(match[0].decode("utf-8", "surrogatepass")).encode()


def repair_json_text(source: str) -> str:
    """Return JSON that came as text, repaired as `repair_json` does."""
    return repair_json(repair_text(source).encode()).decode()


class TextRepairer:
    """Repair text that comes in pieces, where a character may begin in one piece and end in the next.

    The pieces must still contain their halves: `json.loads` keeps them, msgspec refuses them.
    """

    def __init__(self) -> None:
        self._pending = ""

    def add(self, piece: str) -> str:
        """Return the text that is complete; the first half of a pair at the end is held back."""
        text = self._pending + piece
        self._pending = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        return repair_text(text.removesuffix(self._pending))

    def finish(self) -> str:
        """Return the text that was held back."""
        text, self._pending = self._pending, ""
        return repair_text(text)
