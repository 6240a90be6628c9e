"""Generate and parse TypeIDs: a prefix that names the kind, and a UUIDv7 in Crockford's base 32.

Format: https://github.com/jetify-com/typeid (spec 0.3); UUIDv7: RFC 9562 section 5.7.
"""

import functools
import os
import re
import time
from typing import Final
from uuid import UUID, uuid5

ID_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
# Two letters at a time, and the digits that int() uses for base 32: ids are encoded and decoded on every request.
_LETTER_PAIRS: Final = [first + second for first in ID_ALPHABET for second in ID_ALPHABET]
_TAIL_COMBINATIONS: Final = 32**4
_BASE32_DIGITS: Final = str.maketrans(ID_ALPHABET, "0123456789abcdefghijklmnopqrstuv")
_DERIVED_NAMESPACE: Final = UUID("7d3f6f0e-6a5e-5a5c-9d3b-5c0f2b8f1a77")
_TAIL_PATTERN: Final = re.compile(r"[0-7][0-9a-hjkmnp-tv-z]{25}")


def generate_uuid7(milliseconds: int | None = None) -> UUID:
    """Return a UUID whose first 48 bits are the time in milliseconds, so that ids sort by creation."""
    stamp = time.time_ns() // 1_000_000 if milliseconds is None else milliseconds
    tail = int.from_bytes(os.urandom(10))
    value = (stamp & (2**48 - 1)) << 80 | tail
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return UUID(int=value)


@functools.lru_cache(maxsize=8192)
def encode_id(prefix: str, value: UUID) -> str:
    """Return the TypeID of a UUID: `("agent", UUID)` → `agent_01k…`, 26 characters after the underscore."""
    number = value.int
    letters = [_LETTER_PAIRS[(number >> shift) & 1023] for shift in range(120, -1, -10)]
    return f"{prefix}_{''.join(letters)}"


def decode_id(prefix: str, text: str) -> UUID | None:
    """Return the UUID of a TypeID with this prefix, or None if `text` is not one."""
    tail = text[-26:]
    if len(text) != len(prefix) + 27 or not text.startswith(f"{prefix}_") or _TAIL_PATTERN.fullmatch(tail) is None:
        return None
    return UUID(int=int(tail.translate(_BASE32_DIGITS), 32))


def generate_id(prefix: str) -> str:
    """Return a new TypeID with this prefix."""
    return encode_id(prefix, generate_uuid7())


def generate_ids(prefix: str, count: int) -> list[str]:
    """Return `count` new TypeIDs in ascending order: a random number, incremented (RFC 9562 section 6.2, method 1)."""
    # A zero bit above the random number keeps increments away from the bits of version and variant.
    first = generate_uuid7().int & ~(1 << 61)
    new_ids: list[str] = []
    while len(new_ids) < count:
        # All but the last four letters stay the same until those four are exhausted.
        number = first + len(new_ids)
        head = encode_id(prefix, UUID(int=number))[:-4]
        batch_size = min(count - len(new_ids), _TAIL_COMBINATIONS - number % _TAIL_COMBINATIONS)
        places = range(number % _TAIL_COMBINATIONS, number % _TAIL_COMBINATIONS + batch_size)
        new_ids += [head + _LETTER_PAIRS[place >> 10] + _LETTER_PAIRS[place & 1023] for place in places]
    return new_ids


def derive_id(prefix: str, name: str) -> str:
    """Return the TypeID that follows from a name, the same in every installation (RFC 9562 section 5.5)."""
    return encode_id(prefix, uuid5(_DERIVED_NAMESPACE, f"{prefix}:{name}"))
