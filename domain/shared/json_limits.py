"""Bounds of JSON from outside, looked at on the bytes: before anything is decoded, as decoding is what costs.

A body of 4 MiB can hold millions of values, and a decoder keeps its thread, and with it the whole process, until it has
made all of them. Counting brackets and commas takes a few milliseconds and makes nothing.
"""

from collections.abc import Iterator
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from domain.shared.errors import DomainError, FieldError

# The outermost value, and 128 below it.
MAX_JSON_DEPTH: Final = 129
# Values of lists and objects; a key counts as one too. Decoding so many takes tens of milliseconds.
MAX_JSON_VALUES: Final = 250_000
# What a decoder does with a number grows with the square of its digits.
MAX_NUMBER_CHARACTERS: Final = 1300
# Nothing within so few bytes takes long, but for its depth.
SMALL_JSON_BYTES: Final = 64 * 1024


class JsonLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What JSON may be made of; None for no bound."""

    depth: int = MAX_JSON_DEPTH
    values: int | None = MAX_JSON_VALUES
    number_characters: int | None = MAX_NUMBER_CHARACTERS


DEFAULT_JSON_LIMITS: Final = JsonLimits()
# A body's fields have bounds of their own and say which of them is past one. This one is for decoders, which recurse.
BODY_JSON_LIMITS: Final = JsonLimits(depth=512)

_PIECE_BYTES: Final = 256 * 1024
_QUOTE: Final = ord('"')
_STEPS: Final = np.zeros(256, np.int8)
_STEPS[[ord("["), ord("{")]] = 1
_STEPS[[ord("]"), ord("}")]] = -1
_BEFORE_VALUES: Final = np.isin(np.arange(256), [ord(character) for character in "[{,:"])
_IN_NUMBERS: Final = np.isin(np.arange(256), [ord(character) for character in "0123456789+-.eE"])
_DIGITS_ALIKE: Final = bytes(ord("0") if chr(byte) in "0123456789+-.eE" else byte for byte in range(256))


class JsonTooLarge(Exception):
    """JSON past a bound. `reason` says which, to follow the name of what holds it: "nests deeper than …"."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class JsonShape(msgspec.Struct, frozen=True, kw_only=True):
    """What JSON text is made of: how deep it nests (0 for a scalar), how many values and keys, its longest number."""

    depth: int
    values: int
    longest_number: int


def measure_json(text: bytes) -> JsonShape:
    """Return the shape of JSON text. Exact for valid JSON; for the rest up to the place where a decoder stops."""
    shape = JsonShape(depth=0, values=1, longest_number=0)
    for shape in _measure_pieces(text):  # noqa: B007 - the last one is of the whole
        pass
    return shape


def check_json(text: bytes, limits: JsonLimits = DEFAULT_JSON_LIMITS) -> None:
    """Refuse JSON text that nests too deeply, holds too many values or a number of too many characters.

    It is looked at as far as the first bound that is passed. Errors: `JsonTooLarge`.
    """
    opening = text.count(b"[") + text.count(b"{")
    small = len(text) <= SMALL_JSON_BYTES
    if opening <= limits.depth and (small or _is_surely_within(text, opening, limits)):
        return
    for shape in _measure_pieces(text):
        if shape.depth > limits.depth:
            raise JsonTooLarge(f"nests deeper than {limits.depth} levels.")
        if limits.values is not None and shape.values > limits.values:
            raise JsonTooLarge(f"holds more than {limits.values} values and keys: send less at a time.")
        if limits.number_characters is not None and shape.longest_number > limits.number_characters:
            raise JsonTooLarge(f"holds a number of over {limits.number_characters} characters: send it as a string.")


def check_json_body(body: bytes, limits: JsonLimits = BODY_JSON_LIMITS) -> None:
    """Refuse a request's body that is past the bounds. Errors: `malformed_request`."""
    try:
        check_json(body, limits)
    except JsonTooLarge as error:
        raise DomainError("malformed_request", f"The body {error.reason}") from None


def check_json_field(field: str, value: Any) -> None:
    """Refuse a decoded value that is past the bounds. Errors: `invalid_field`."""
    try:
        check_json_value(value)
    except JsonTooLarge as error:
        found = FieldError(field=field, message=error.reason)
        raise DomainError("invalid_field", f"{field}: {error.reason}", [found]) from None


def check_json_value(value: Any) -> None:
    """Refuse a decoded value that is past the bounds; writing it down is faster than walking through it.

    Errors: `JsonTooLarge`, and msgspec's for what cannot be JSON.
    """
    if not isinstance(value, dict | list):
        return
    try:
        text = msgspec.json.encode(value)
    except RecursionError:
        raise JsonTooLarge(f"nests deeper than {MAX_JSON_DEPTH} levels.") from None
    check_json(text)


def _is_surely_within(text: bytes, opening: int, limits: JsonLimits) -> bool:
    """Whether the bounds of values and numbers hold even if all that strings hold counted too."""
    if limits.values is not None and opening + text.count(b",") + text.count(b":") >= limits.values:
        return False
    longest = limits.number_characters
    return longest is None or b"0" * (longest + 1) not in text.translate(_DIGITS_ALIKE)


def _measure_pieces(text: bytes) -> Iterator[JsonShape]:
    """The shape of all that comes before the end of each piece, so that memory is bounded."""
    depth = level = longest = number = 0
    values = 1
    for outside in _iterate_outside_strings(text):
        levels = np.cumsum(_STEPS[outside], dtype=np.int64)
        depth = max(depth, level + int(levels.max(initial=0)))
        level += int(levels[-1]) if len(levels) else 0
        values += int(np.count_nonzero(_BEFORE_VALUES[outside]))
        # A number may go on in the next piece.
        ends = np.flatnonzero(~_IN_NUMBERS[outside])
        if len(ends):
            longest = max(longest, number + int(ends[0]), int(np.diff(ends).max(initial=1)) - 1)
            number = len(outside) - 1 - int(ends[-1])
        else:
            number += len(outside)
        longest = max(longest, number)
        yield JsonShape(depth=depth, values=values, longest_number=longest)


def _iterate_outside_strings(text: bytes) -> Iterator[NDArray[np.uint8]]:
    """The bytes outside of strings, piece by piece."""
    in_string = escaped = False
    for begin in range(0, len(text), _PIECE_BYTES):
        piece = text[begin + escaped : begin + _PIECE_BYTES]
        escaped = False
        if b"\\" in piece:
            # An escape begins at the first backslash of a run: pairs go, and one that is left escapes what follows.
            piece = piece.replace(b"\\\\", b"")
            escaped = piece.endswith(b"\\")
            piece = piece.replace(b'\\"', b"")
        found = np.frombuffer(piece, np.uint8)
        # True from an opening quote up to its closing one.
        within = np.logical_xor.accumulate(found == _QUOTE) ^ in_string if len(found) else np.zeros(0, bool)
        yield found[~within]
        in_string = bool(within[-1]) if len(within) else in_string
