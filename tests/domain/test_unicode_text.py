"""Test that halves of surrogate pairs are joined or replaced by U+FFFD, and that nothing else changes."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.shared.unicode_text import TextRepairer, repair_json, repair_json_text, repair_text

# Escapes and their neighbours, which a parser of escapes may misread.
_PIECES = ("\\ud83d", "\\uD83D", "\\ude00", "\\uDE00", "\\\\", "\\n", '\\"', "\\u0041", "ud83d", "é", "😀", "x", "\\/")
_ANY_TEXTS = st.text(st.characters(codec=None, exclude_categories=()), max_size=8)


def _repair_with_utf16(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


@given(st.lists(st.sampled_from(_PIECES), max_size=12))
def test_json_is_repaired_like_its_text(pieces: list[str]) -> None:
    source = '{"a":"' + "".join(pieces) + '"}'
    expected = _repair_with_utf16(json.loads(source)["a"])
    assert msgspec.json.decode(repair_json(source.encode()))["a"] == expected
    assert msgspec.json.decode(repair_json_text(source))["a"] == expected


@given(_ANY_TEXTS)
def test_any_text_and_json_bytes_are_repaired(text: str) -> None:
    assert repair_text(text) == _repair_with_utf16(text)
    repair_text(text).encode()
    for ascii_only in (True, False):
        source = json.dumps([text], ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
        assert msgspec.json.decode(repair_json(source)) == [_repair_with_utf16(text)]


@given(st.lists(_ANY_TEXTS, max_size=6))
def test_pieces_are_repaired_like_the_whole_text(pieces: list[str]) -> None:
    repairer = TextRepairer()
    repaired = "".join([*(repairer.add(piece) for piece in pieces), repairer.finish()])
    assert repaired == _repair_with_utf16("".join(pieces))


@pytest.mark.parametrize(
    "source",
    [
        b'{"a": "\xff\\ud83d"',
        b"\x00\\ud83d",
        b"\\ud83",
        b"",
        b"\xed\xa0\xff",
        "\udbff\udfff".encode("utf-8", "surrogatepass") * 60_000,
    ],
)
def test_invalid_json_is_left_to_the_decoder(source: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        msgspec.json.decode(repair_json(source))
