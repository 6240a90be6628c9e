"""No form of a secret survives a mask, whole or in pieces, and text without a secret stays as it is."""

import base64
import json
import string
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from domain.shared.masking import MIN_SECRET_CHARACTERS, SecretMask, list_secret_forms

TOKEN = "ghp_x7Rk29vLmQ04TzWb61"
PEM = "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\nAQEFAASCBKcwggSjAgEAAoIB\nab=\n-----END KEY-----\n"

TOKENS = st.text(string.ascii_letters + string.digits + "_-.+/=", min_size=4, max_size=60)
# Everything that people paste: spaces, quotes, line breaks, other scripts, percent signs, stars.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=4, max_size=40)
VALUES = st.one_of(TOKENS, TEXTS).filter(lambda value: len(value.strip()) >= MIN_SECRET_CHARACTERS)
UNHURRIED = settings(deadline=None)
FILLERS = st.one_of(st.text(st.characters(exclude_categories=["Cs"]), max_size=30), st.just("***"), st.just("aaaa"))


def encode_value(value: str) -> list[str]:
    """Return what programs make of a value: an oracle that knows nothing of the mask."""
    data = value.encode()
    encoded = [value, quote(value), quote(value, safe=""), quote_plus(value), json.dumps(value)[1:-1]]
    encoded += [json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1]]
    encoded += [base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()]
    for before in (b"a", b"ab", b"user:"):
        # Without the characters that hold bits of what stands before and behind.
        whole = base64.b64encode(before + data).decode()
        encoded.append(whole[-(-len(before) * 8 // 6) : len(before + data) * 8 // 6])
    return [form for form in encoded if len(form) >= MIN_SECRET_CHARACTERS]


def mask_stream(mask: SecretMask, data: bytes, cuts: list[int]) -> bytes:
    """Return what comes out of a stream whose pieces end at these places."""
    stream, places = mask.open_stream(), sorted({cut % (len(data) + 1) for cut in cuts})
    pieces = [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]
    return b"".join([*map(stream.mask_piece, pieces), stream.flush_bytes()])


@UNHURRIED
@given(st.lists(VALUES, min_size=1, max_size=4), st.data())
def test_no_form_survives(values: list[str], data: st.DataObject) -> None:
    mask, parts = SecretMask(values), []
    for value in values:
        parts += [data.draw(FILLERS), data.draw(st.sampled_from(encode_value(value.strip())))]
    text = "".join([*parts, data.draw(FILLERS)])
    cuts = data.draw(st.lists(st.integers(0, 10_000), max_size=12))
    masked, streamed = mask.mask_text(text), mask_stream(mask, text.encode(), cuts).decode()
    assert streamed == masked
    for value in values:
        for form in list_secret_forms(value) | set(encode_value(value.strip())):
            assert form not in masked
    assert mask.mask_text(masked) == masked


@UNHURRIED
@given(
    st.lists(VALUES, min_size=1, max_size=3), st.lists(FILLERS, max_size=8), st.lists(st.integers(0, 999), max_size=9)
)
@example([TOKEN], ["ghp_x7Rk29vLmQ04TzWb6", "hp_x7Rk29vLmQ04TzWb61"], [3, 20])
def test_other_text_stays_as_it_is(values: list[str], parts: list[str], cuts: list[int]) -> None:
    text = "".join(parts)
    forms = {form for value in values for form in list_secret_forms(value)}
    mask = SecretMask(values)
    if any(form in text for form in forms):
        return
    assert mask.mask_text(text) == text
    assert mask_stream(mask, text.encode(), cuts) == text.encode()


@UNHURRIED
@given(st.lists(VALUES, min_size=1, max_size=3), st.binary(max_size=60), st.lists(st.integers(0, 999), max_size=9))
def test_bytes_that_are_no_text_pass(values: list[str], data: bytes, cuts: list[int]) -> None:
    mask = SecretMask(values)
    forms = {form.encode() for value in values for form in list_secret_forms(value)}
    streamed = mask_stream(mask, data + values[0].strip().encode() + data, cuts)
    assert not any(form in streamed for form in forms)
    if not any(form in data + data for form in forms):
        assert mask_stream(mask, data, cuts) == data


JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.text(max_size=10), st.floats(-1e9, 1e9)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


@UNHURRIED
@given(VALUES, JSON_VALUES, st.booleans())
def test_json_keeps_its_shape_and_no_secret(value: str, other: Any, ascii_only: bool) -> None:
    value = value.strip()
    mask, forms = SecretMask([value]), {form.encode() for form in list_secret_forms(value)}
    result = {"a": [value, f"Bearer {value}"], value: other, "in": json.dumps({"b": value}), "c": other}
    data = json.dumps(result, ensure_ascii=ascii_only).encode()
    masked = mask.mask_json(data)
    assert not any(form in masked for form in forms)
    plain = json.dumps(other, ensure_ascii=ascii_only).encode()
    if not any(form.decode() in json.dumps(json.loads(plain), ensure_ascii=False) for form in forms):
        masked_plain = mask.mask_json(plain)
        assert json.loads(masked_plain) == other or any(form in plain for form in forms)
    json.loads(masked)


def test_json_without_a_secret_is_the_same_bytes() -> None:
    data = b'{"a": 1.50, "b": ["x\\u0041"],  "a": 2}'
    assert SecretMask([TOKEN]).mask_json(data) == data
    assert SecretMask(["12345678"]).mask_json(b'{"pin": 12345678, "other": 1234}') == b'{"pin":"***","other":1234}'
    twice = SecretMask([TOKEN, "other-secret"]).mask_json(json.dumps({TOKEN: 1, "other-secret": 2}).encode())
    assert json.loads(twice) == {"***": 1, "*** (2)": 2}


def test_json_that_is_a_secret_itself_is_masked_whole() -> None:
    mask = SecretMask(['{"a":1,"b":2}'])
    assert json.loads(mask.mask_json(b'{"c": [{"a":1,"b":2}, {"a":1}]}')) == {"c": ["***", {"a": 1}]}
    assert b'"abcd"' not in SecretMask(['"abcd"']).mask_json(b'{"x": "abcd"}')


def test_lines_and_parts_of_a_value_are_masked_too() -> None:
    mask = SecretMask([PEM])
    assert mask.mask_text("key AQEFAASCBKcwggSjAgEAAoIB.") == "key ***."
    assert mask.mask_text(PEM) == "***\n"
    assert mask.mask_text("ab=") == "ab="
    account = json.dumps({"type": "x", "private_key": PEM, "id": 123456789})
    mask = SecretMask([account])
    for leak in (PEM.strip(), json.loads(account)["private_key"].splitlines()[1], "123456789", account):
        assert mask.mask_text(f"<{leak}>") == "<***>"
    mask = SecretMask(["postgresql://app:p%40ss-w0rd-1@db.example.com/app"])
    assert mask.mask_text("password p@ss-w0rd-1 or p%40ss-w0rd-1") == "password *** or ***"
    assert SecretMask([f" '{TOKEN}'\n"]).mask_text(f"token={TOKEN};") == "token=***;"


def test_wrapped_base64_is_masked_by_line() -> None:
    value = "".join(chr(33 + number % 90) for number in range(200))
    mask = SecretMask([value])
    masked = mask.mask_text(base64.encodebytes(value.encode()).decode())
    assert masked.count(mask.replacement) >= 3
    assert len(masked.replace(mask.replacement, "").replace("\n", "")) < 8


@pytest.mark.parametrize("cut", [3, 10, len(TOKEN) - 1])
def test_the_beginning_of_a_secret_at_a_cut_is_masked(cut: int) -> None:
    mask = SecretMask([TOKEN])
    assert mask.mask_cut_text(f"no access with {TOKEN} and {TOKEN[:cut]}") == "no access with *** and ***"
    assert mask.mask_cut_text("no access") == "no access"


def test_a_mask_never_makes_up_another_secret() -> None:
    mask = SecretMask(["ab***cd", "secret-1"])
    assert "ab***cd" not in mask.mask_text("absecret-1cd")
    assert mask.replacement == "•••"


def test_nothing_is_held_back_behind_a_line_break_or_another_character() -> None:
    stream = SecretMask([TOKEN]).open_stream()
    assert stream.mask_piece(b"ghp_x") == b""
    assert stream.mask_piece(b"y") == b"ghp_xy"
    assert stream.mask_piece(b"g\n") == b"g\n"
    assert stream.mask_piece(TOKEN.encode()[:-1]) == b""
    assert stream.flush_bytes() == TOKEN.encode()[:-1]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 4000), min_size=1, max_size=30))
def test_a_long_value_in_small_pieces_is_masked(sizes: list[int]) -> None:
    value = "".join(chr(48 + (number * number) % 70) for number in range(20_000))
    mask = SecretMask([value])
    stream, data, out, start = mask.open_stream(), f"before {value} after".encode(), b"", 0
    for size in sizes * 200:
        out += stream.mask_piece(data[start : start + size])
        start += size
        if start >= len(data):
            break
    out += stream.mask_piece(data[start:]) + stream.flush_bytes()
    assert out == b"before *** after"


def test_a_mask_shows_nothing_of_itself() -> None:
    assert TOKEN not in repr(SecretMask([TOKEN]))
