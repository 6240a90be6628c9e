"""JSON from outside is measured on its bytes, exactly; what is past a bound is refused before anything is made of it."""

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
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=5),
    max_leaves=40,
)
MIB4 = 4 << 20


def walk(value: Any) -> tuple[int, int]:
    """Depth, and values and keys: by brute force. An empty list counts as itself and as what could be in it."""
    if isinstance(value, dict):
        below = [walk(one) for one in value.values()]
        return 1 + max((d for d, _ in below), default=0), 1 + sum(n + 1 for _, n in below) + (not below)
    if isinstance(value, list):
        below = [walk(one) for one in value]
        return 1 + max((d for d, _ in below), default=0), 1 + sum(n for _, n in below) + (not below)
    return 0, 1


@settings(deadline=None, max_examples=60)
@given(VALUES, st.booleans(), st.sampled_from([None, 1]), st.sampled_from([1, 2, 7, 64, 1000]))
def test_the_shape_is_exact_whatever_strings_hold_and_wherever_pieces_end(
    value: Any, ascii_only: bool, indent: int | None, piece: int
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()
    whole = json_limits._PIECE_BYTES
    json_limits._PIECE_BYTES = piece  # type: ignore[misc]
    try:
        shape = measure_json(text)
    finally:
        json_limits._PIECE_BYTES = whole  # type: ignore[misc]
    assert (shape.depth, shape.values) == walk(value)


@pytest.mark.parametrize(
    ("text", "longest"), [("12", 2), ("[1,-2.5e+10,33]", 8), ('["12345", {"a": 678}]', 3), ("[]", 0)]
)
def test_numbers_are_measured_outside_of_strings(text: str, longest: int) -> None:
    assert measure_json(text.encode()).longest_number == longest


def repeated(piece: bytes, begin: bytes = b"[", end: bytes = b"]") -> bytes:
    return begin + b",".join([piece] * ((MIB4 - 2) // (len(piece) + 1))) + end


ADVERSARIAL = {
    "empty lists": (repeated(b"[]"), "values"),
    "empty objects": (repeated(b"{}"), "values"),
    "zeros": (repeated(b"0"), "values"),
    "empty strings": (repeated(b'""'), "values"),
    "pairs of keys": (repeated(b'{"a":0}'), "values"),
    "keys": (b"{" + b",".join(b'"%x":0' % number for number in range(MIB4 // 11)) + b"}", "values"),
    "strings of brackets, and lists": (repeated(b'"[[[[",[]'), "values"),
    "escaped quotes, and lists": (repeated(rb'"\\\"[",[]'), "values"),
    "spaces between": (repeated(b" [ ] "), "values"),
    "nested": (b"[" * (MIB4 // 2) + b"]" * (MIB4 // 2), "deeper"),
    "nested and never closed": (b"[" * MIB4, "deeper"),
    "nested objects": (b'{"a":' * (MIB4 // 6) + b"0", "deeper"),
    "an integer": (b"1" * MIB4, "number"),
    "a fraction": (b"0." + b"1" * MIB4, "number"),
    "an exponent": (b"1e" + b"1" * MIB4, "number"),
    "long integers": (repeated(b"9" * 4000), "number"),
    "long integers after text": (b'["' + b"x" * MIB4 + b'",' + b"7" * 2000 + b"]", "number"),
}


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_what_would_take_long_is_refused_before_it_is_decoded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, why = ADVERSARIAL[name]
    pieces = 0
    outside = json_limits._iterate_outside_strings

    def counted(text: bytes) -> Any:
        nonlocal pieces
        for piece in outside(text):
            pieces += 1
            yield piece

    monkeypatch.setattr(json_limits, "_iterate_outside_strings", counted)
    with pytest.raises(JsonTooLarge, match=why):
        check_json(text)
    # As soon as a bound is passed, the rest is not looked at.
    assert pieces <= 18


@pytest.mark.parametrize(
    "text",
    [
        b'{"text": "' + b"hello, [world]: {1} " * (MIB4 // 20) + b'"}',
        b'"' + rb"\"" * (MIB4 // 2) + b'"',
        b'"' + rb"\\" * (MIB4 // 2) + b'"',
        b'"' + b"1" * MIB4 + b'"',
        b"[" + b",".join([b"0.12345678901234567"] * 200_000) + b"]",
        b'{"a": "' + b"[" * 1000 + b'"}',
        b"[" * MAX_JSON_DEPTH + b"]" * MAX_JSON_DEPTH,
        b"[" + b"1" * MAX_NUMBER_CHARACTERS + b"]",
    ],
    ids=["prose", "quotes", "backslashes", "digits in text", "floats", "brackets in text", "deepest", "longest"],
)
def test_what_reads_quickly_is_let_through(text: bytes) -> None:
    check_json(text)
    msgspec.json.decode(text)


def test_bounds_are_exact() -> None:
    check_json(b"[" + b",".join([b"0"] * (MAX_JSON_VALUES - 1)) + b"]")
    with pytest.raises(JsonTooLarge, match="250000 values"):
        check_json(b"[" + b",".join([b"0"] * MAX_JSON_VALUES) + b"]")
    with pytest.raises(JsonTooLarge, match="deeper than 129"):
        check_json(b"[" * 130 + b"]" * 130)
    check_json(b"[[[]]]", JsonLimits(depth=3))
    with pytest.raises(JsonTooLarge, match="deeper than 2"):
        check_json(b"[[[]]]", JsonLimits(depth=2))


def test_decoded_values_have_the_same_bounds() -> None:
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
