"""Halves of surrogate pairs: put together, or U+FFFD, and nothing else changed."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.shared.unicode_text import TextRepairer, repair_json, repair_json_text, repair_text

# Escapes and what stands near them: every way in which a reader of escapes can lose its place.
_PIECES = ("\\ud83d", "\\uD83D", "\\ude00", "\\uDE00", "\\\\", "\\n", '\\"', "\\u0041", "ud83d", "é", "😀", "x", "\\/")
_ANY = st.text(st.characters(codec=None, exclude_categories=()), max_size=8)


def _expected(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


@given(st.lists(st.sampled_from(_PIECES), max_size=12))
def test_json_is_mended_as_its_text_is(pieces: list[str]) -> None:
    source = '{"a":"' + "".join(pieces) + '"}'
    expected = _expected(json.loads(source)["a"])
    assert msgspec.json.decode(repair_json(source.encode()))["a"] == expected
    assert msgspec.json.decode(repair_json_text(source))["a"] == expected


@given(_ANY)
def test_text_and_bytes_of_any_kind(text: str) -> None:
    assert repair_text(text) == _expected(text)
    repair_text(text).encode()
    for ascii_only in (True, False):
        source = json.dumps([text], ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
        assert msgspec.json.decode(repair_json(source)) == [_expected(text)]


@given(st.lists(_ANY, max_size=6))
def test_pieces_come_to_what_the_whole_is(pieces: list[str]) -> None:
    mender = TextRepairer()
    said = "".join([*(mender.add(piece) for piece in pieces), mender.finish()])
    assert said == _expected("".join(pieces))


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
def test_what_is_no_json_is_left_to_its_reader(source: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
        msgspec.json.decode(repair_json(source))
