"""Check the limits of JSON from outside on its bytes, before anything is decoded.

A body of 4 MiB can hold millions of values, and a decoder blocks its thread, and with it the whole process, until it
has created all of them. Counting brackets and commas takes a few milliseconds and creates nothing.
"""

from collections.abc import Iterator
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from domain.shared.errors import DomainError, InvalidField

# The outermost value, and 128 levels below it.
MAX_JSON_DEPTH: Final = 129
# Values of lists and objects; a key counts as a value too. Decoding this many takes tens of milliseconds.
MAX_JSON_VALUES: Final = 250_000
# The work of decoding a number grows with the square of its digits.
MAX_NUMBER_CHARACTERS: Final = 1300
# JSON of this size decodes fast unless it is deep.
SMALL_JSON_BYTES: Final = 64 * 1024


class JsonLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limit what JSON may contain; None means no limit."""

    depth: int = MAX_JSON_DEPTH
    values: int | None = MAX_JSON_VALUES
    number_characters: int | None = MAX_NUMBER_CHARACTERS


DEFAULT_JSON_LIMITS: Final = JsonLimits()
# The fields of a body have their own limits and name the field at fault. This limit protects recursive decoders.
BODY_JSON_LIMITS: Final = JsonLimits(depth=512)

_PIECE_BYTES: Final = 256 * 1024
_QUOTE_CODE: Final = ord('"')
_DEPTH_STEPS: Final = np.zeros(256, np.int8)
_DEPTH_STEPS[[ord("["), ord("{")]] = 1
_DEPTH_STEPS[[ord("]"), ord("}")]] = -1
_VALUE_STARTS: Final = np.isin(np.arange(256), [ord(character) for character in "[{,:"])
_NUMBER_CODES: Final = np.isin(np.arange(256), [ord(character) for character in "0123456789+-.eE"])
_NUMBER_TRANSLATION: Final = bytes(ord("0") if chr(byte) in "0123456789+-.eE" else byte for byte in range(256))


class JsonTooLarge(Exception):
    """Report JSON past a limit. `reason` continues a sentence about its container: "nests deeper than …"."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class JsonShape(msgspec.Struct, frozen=True, kw_only=True):
    """Measure JSON text: its depth (0 for a scalar), its number of values and keys, its longest number."""

    depth: int
    values: int
    longest_number: int


def measure_json(text: bytes) -> JsonShape:
    """Return the shape of JSON text: exact for valid JSON, else exact up to the point where a decoder stops."""
    shape = JsonShape(depth=0, values=1, longest_number=0)
    for shape in _measure_pieces(text):  # noqa: B007 - the last one is of the whole
        pass
    return shape


def check_json(text: bytes, limits: JsonLimits = DEFAULT_JSON_LIMITS) -> None:
    """Refuse JSON text that nests too deeply, or contains too many values or a number that is too long.

    It is scanned up to the first limit that is exceeded. Errors: `JsonTooLarge`.
    """
    opening = text.count(b"[") + text.count(b"{")
    small = len(text) <= SMALL_JSON_BYTES
    if opening <= limits.depth and (small or _is_surely_within(text, opening, limits)):
        return
    for shape in _measure_pieces(text):
        if shape.depth > limits.depth:
            raise JsonTooLarge(f"nests deeper than {limits.depth} levels.")
        if limits.values is not None and shape.values > limits.values:
            raise JsonTooLarge(f"contains more than {limits.values} values and keys: send less at a time.")
        if limits.number_characters is not None and shape.longest_number > limits.number_characters:
            raise JsonTooLarge(f"contains a number of over {limits.number_characters} characters: send it as a string.")


def check_json_body(body: bytes, limits: JsonLimits = BODY_JSON_LIMITS) -> None:
    """Refuse a request body past the limits. Errors: `malformed_request`."""
    try:
        check_json(body, limits)
    except JsonTooLarge as error:
        raise DomainError("malformed_request", f"The body {error.reason}") from None


def check_json_field(field: str, value: Any) -> None:
    """Refuse a decoded value past the limits. Errors: `invalid_field`."""
    try:
        check_json_value(value)
    except JsonTooLarge as error:
        raise InvalidField(field, error.reason) from None


def check_json_value(value: Any) -> None:
    """Refuse a decoded value past the limits. Encoding it is faster than walking through it.

    Errors: `JsonTooLarge`, and msgspec's errors for values that JSON does not have.
    """
    if not isinstance(value, dict | list):
        return
    try:
        text = msgspec.json.encode(value)
    except RecursionError:
        raise JsonTooLarge(f"nests deeper than {MAX_JSON_DEPTH} levels.") from None
    check_json(text)


def _is_surely_within(text: bytes, opening: int, limits: JsonLimits) -> bool:
    """Return whether the limits of values and numbers hold even if the contents of strings counted too."""
    if limits.values is not None and opening + text.count(b",") + text.count(b":") >= limits.values:
        return False
    longest = limits.number_characters
    return longest is None or b"0" * (longest + 1) not in text.translate(_NUMBER_TRANSLATION)


def _measure_pieces(text: bytes) -> Iterator[JsonShape]:
    """Yield the shape of everything up to the end of each piece, so that memory is bounded."""
    depth = level = longest = number = 0
    values = 1
    for outside in _iterate_outside_strings(text):
        levels = np.cumsum(_DEPTH_STEPS[outside], dtype=np.int64)
        depth = max(depth, level + int(levels.max(initial=0)))
        level += int(levels[-1]) if len(levels) else 0
        values += int(np.count_nonzero(_VALUE_STARTS[outside]))
        # A number may continue in the next piece.
        ends = np.flatnonzero(~_NUMBER_CODES[outside])
        if len(ends):
            longest = max(longest, number + int(ends[0]), int(np.diff(ends).max(initial=1)) - 1)
            number = len(outside) - 1 - int(ends[-1])
        else:
            number += len(outside)
        longest = max(longest, number)
        yield JsonShape(depth=depth, values=values, longest_number=longest)


def _iterate_outside_strings(text: bytes) -> Iterator[NDArray[np.uint8]]:
    """Yield the bytes outside of strings, piece by piece."""
    in_string = escaped = False
    for begin in range(0, len(text), _PIECE_BYTES):
        piece = text[begin + escaped : begin + _PIECE_BYTES]
        escaped = False
        if b"\\" in piece:
            # Pairs of backslashes are removed; a single one that is left escapes the next character.
            piece = piece.replace(b"\\\\", b"")
            escaped = piece.endswith(b"\\")
            piece = piece.replace(b'\\"', b"")
        codes = np.frombuffer(piece, np.uint8)
        # True from an opening quote up to its closing one.
        within = np.logical_xor.accumulate(codes == _QUOTE_CODE) ^ in_string if len(codes) else np.zeros(0, bool)
        yield codes[~within]
        in_string = bool(within[-1]) if len(within) else in_string
