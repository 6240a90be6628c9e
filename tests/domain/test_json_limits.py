"""Test that JSON from outside is measured exactly on its bytes and refused beyond its limits before it is decoded."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.shared import json_limits
from domain.shared.json_limits import (
    MAX_JSON_DEPTH,
    MAX_JSON_VALUES,
    MAX_NUMBER_CHARACTERS,
    JsonLimits,
    JsonTooLarge,
    check_json,
    check_json_value,
    measure_json,
)

TEXTS = st.text(alphabet=st.sampled_from('ab[]{}",:\\0123-+.eE\n é😀'), max_size=12)
JSON_VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=5),
    max_leaves=40,
)
FOUR_MIB = 4 << 20


def measure_value(value: Any) -> tuple[int, int]:
    """Return depth and number of values and keys by brute force. An empty list counts as itself and one item."""
    if isinstance(value, dict):
        below = [measure_value(item) for item in value.values()]
        return 1 + max((d for d, _ in below), default=0), 1 + sum(n + 1 for _, n in below) + (not below)
    if isinstance(value, list):
        below = [measure_value(item) for item in value]
        return 1 + max((d for d, _ in below), default=0), 1 + sum(n for _, n in below) + (not below)
    return 0, 1


@settings(deadline=None, max_examples=60)
@given(JSON_VALUES, st.booleans(), st.sampled_from([None, 1]), st.sampled_from([1, 2, 7, 64, 1000]))
def test_depth_and_value_count_are_exact_for_any_piece_size(
    value: Any, ascii_only: bool, indent: int | None, piece_bytes: int
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    original_piece = json_limits._PIECE_BYTES
    json_limits._PIECE_BYTES = piece_bytes  # type: ignore[misc]
    try:
        shape = measure_json(text)
    finally:
        json_limits._PIECE_BYTES = original_piece  # type: ignore[misc]
    assert (shape.depth, shape.values) == measure_value(value)


@pytest.mark.parametrize(
    ("text", "longest"), [("12", 2), ("[1,-2.5e+10,33]", 8), ('["12345", {"a": 678}]', 3), ("[]", 0)]
)
def test_longest_number_ignores_digits_in_strings(text: str, longest: int) -> None:
    assert measure_json(text.encode()).longest_number == longest


def repeat_piece(piece: bytes, begin: bytes = b"[", end: bytes = b"]") -> bytes:
    return begin + b",".join([piece] * ((FOUR_MIB - 2) // (len(piece) + 1))) + end


ADVERSARIAL_JSON = {
    "empty lists": (repeat_piece(b"[]"), "values"),
    "empty objects": (repeat_piece(b"{}"), "values"),
    "zeros": (repeat_piece(b"0"), "values"),
    "empty strings": (repeat_piece(b'""'), "values"),
    "pairs of keys": (repeat_piece(b'{"a":0}'), "values"),
    "keys": (b"{" + b",".join(b'"%x":0' % number for number in range(FOUR_MIB // 11)) + b"}", "values"),
    "strings of brackets, and lists": (repeat_piece(b'"[[[[",[]'), "values"),
    "escaped quotes, and lists": (repeat_piece(rb'"\\\"[",[]'), "values"),
    "spaces between": (repeat_piece(b" [ ] "), "values"),
    "nested": (b"[" * (FOUR_MIB // 2) + b"]" * (FOUR_MIB // 2), "deeper"),
    "nested and never closed": (b"[" * FOUR_MIB, "deeper"),
    "nested objects": (b'{"a":' * (FOUR_MIB // 6) + b"0", "deeper"),
    "an integer": (b"1" * FOUR_MIB, "number"),
    "a fraction": (b"0." + b"1" * FOUR_MIB, "number"),
    "an exponent": (b"1e" + b"1" * FOUR_MIB, "number"),
    "long integers": (repeat_piece(b"9" * 4000), "number"),
    "long integers after text": (b'["' + b"x" * FOUR_MIB + b'",' + b"7" * 2000 + b"]", "number"),
}


@pytest.mark.parametrize("name", ADVERSARIAL_JSON)
def test_adversarial_json_is_refused_after_few_pieces(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, message = ADVERSARIAL_JSON[name]
    pieces = 0
    iterate_original = json_limits._iterate_outside_strings

    def iterate_counted(text: bytes) -> Any:
        nonlocal pieces
        for piece in iterate_original(text):
            pieces += 1
            yield piece

    monkeypatch.setattr(json_limits, "_iterate_outside_strings", iterate_counted)
    with pytest.raises(JsonTooLarge, match=message):
        check_json(text)
    # Beyond a limit the rest is not read.
    assert pieces <= 18


@pytest.mark.parametrize(
    "text",
    [
        b'{"text": "' + b"hello, [world]: {1} " * (FOUR_MIB // 20) + b'"}',
        b'"' + rb"\"" * (FOUR_MIB // 2) + b'"',
        b'"' + rb"\\" * (FOUR_MIB // 2) + b'"',
        b'"' + b"1" * FOUR_MIB + b'"',
        b"[" + b",".join([b"0.12345678901234567"] * 200_000) + b"]",
        b'{"a": "' + b"[" * 1000 + b'"}',
        b"[" * MAX_JSON_DEPTH + b"]" * MAX_JSON_DEPTH,
        b"[" + b"1" * MAX_NUMBER_CHARACTERS + b"]",
    ],
    ids=["prose", "quotes", "backslashes", "digits in text", "floats", "brackets in text", "deepest", "longest"],
)
def test_large_harmless_json_is_accepted(text: bytes) -> None:
    check_json(text)
    msgspec.json.decode(text)


def test_limits_are_exact() -> None:
    check_json(b"[" + b",".join([b"0"] * (MAX_JSON_VALUES - 1)) + b"]")
    with pytest.raises(JsonTooLarge, match="250000 values"):
        check_json(b"[" + b",".join([b"0"] * MAX_JSON_VALUES) + b"]")
    with pytest.raises(JsonTooLarge, match="deeper than 129"):
        check_json(b"[" * 130 + b"]" * 130)
    check_json(b"[[[]]]", JsonLimits(depth=3))
    with pytest.raises(JsonTooLarge, match="deeper than 2"):
        check_json(b"[[[]]]", JsonLimits(depth=2))


def test_decoded_values_have_the_same_limits() -> None:
    deep: Any = 0
    for _ in range(MAX_JSON_DEPTH):
        deep = [deep]
    check_json_value(deep)
    for wrong in ([deep], {"a": deep}, [0] * MAX_JSON_VALUES, json.loads("[" * 900 + "]" * 900)):
        with pytest.raises(JsonTooLarge):
            check_json_value(wrong)
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(JsonTooLarge):
        check_json_value(endless)
