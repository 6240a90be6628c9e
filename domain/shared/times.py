"""Parse the times that callers send, in queries and in bodies.

Accepted are RFC 3339 (`2030-01-01T08:30:00+01:00`), also with a space for `T`, without seconds, or without an offset,
which then means UTC; a date, which means its first moment, or its last one where a period ends; and seconds since 1970,
or milliseconds from 100,000,000,000 on. An unescaped `+` of a query arrives as a space and is restored.
"""

import functools
import re
import types
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Union, get_args, get_origin

import msgspec
from msgspec import Meta

from domain.shared.errors import TIME_RULE, DomainError, InvalidField

# Earlier records, and records of more than a day ahead, come from a wrong clock.
OLDEST_RECORD_TIME: Final = datetime(2000, 1, 1, tzinfo=UTC)
MAX_CLOCK_LEAD: Final = timedelta(days=1)
_UNIX_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MIN_MILLISECONDS: Final = 1e11
_NUMBER_PATTERN: Final = re.compile(r"[-+]?(?!\d{8}$)\d{1,20}(?:\.\d{1,9})?")
_DATE_PATTERN: Final = re.compile(r"\d{4}-?\d{2}-?\d{2}|\d{4}-?W\d{2}-?\d")
_LOST_PLUS: Final = re.compile(r"(.*\d[T ]\d\d:?\d\d(?::?\d\d(?:[.,]\d+)?)?) (\d\d:?\d\d)")
_ONE_DAY: Final = timedelta(days=1)

TimeInput = Annotated[
    str | int | float,
    Meta(description=f"A time: {TIME_RULE.removeprefix('must be ')} UTC unless it has an offset."),
]


def read_time(field: str, value: datetime | str | float, is_end: bool = False) -> datetime:
    """Return a time in UTC. A date means its first moment; with `is_end`, the first moment after the day.

    Errors: `invalid_field`, also outside the years 1 to 9999.
    """
    try:
        at, is_date = _parse_time(value)
        at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
        return (at + _ONE_DAY if is_end and is_date else at).astimezone(UTC)
    except OverflowError:
        raise InvalidField(field, "must be within the years 1 to 9999.") from None
    except ValueError:
        raise InvalidField(field, TIME_RULE) from None


def _parse_time(value: datetime | str | float) -> tuple[datetime, bool]:
    """Parse a time, and return whether it is a date. Errors: ValueError, OverflowError."""
    if isinstance(value, datetime):
        return value, False
    text = value.strip() if isinstance(value, str) else repr(value)
    if isinstance(value, int | float) or _NUMBER_PATTERN.fullmatch(text):
        number = float(text)
        return _UNIX_EPOCH + timedelta(seconds=number / 1000 if abs(number) >= _MIN_MILLISECONDS else number), False
    match = _LOST_PLUS.fullmatch(text)
    text = f"{match[1]}+{match[2]}" if match is not None else text
    if not text.isascii():
        raise ValueError
    return datetime.fromisoformat(text.upper()), _DATE_PATTERN.fullmatch(text.upper()) is not None


def read_time_or_none(field: str, value: datetime | str | float | None, is_end: bool = False) -> datetime | None:
    """Return a time as `read_time` does, or None for None. Errors: `invalid_field`."""
    return None if value is None else read_time(field, value, is_end)


def read_record_time(field: str, at: datetime, now: datetime) -> datetime:
    """Return the time of a record in UTC; a time without an offset is UTC.

    Errors: `invalid_field` for a time before the year 2000, or more than a day ahead of `now`.
    """
    recorded_at = read_time(field, at)
    if not OLDEST_RECORD_TIME <= recorded_at <= now + MAX_CLOCK_LEAD:
        raise InvalidField(field, "must be between the year 2000 and tomorrow.")
    return recorded_at


def normalize_times(source: bytes | msgspec.Raw, kind: Any) -> bytes:
    """Rewrite the times in a struct's JSON that `read_time` can read to the form that msgspec reads.

    Meant for bodies that msgspec refused: it reads only RFC 3339. Everything else stays as it is, undecoded.
    Errors: those of msgspec if `source` is not an object.
    """
    members = msgspec.json.decode(source, type=dict[str, msgspec.Raw])
    for name, (inner, is_list) in _find_time_fields(kind).items():
        if name not in members or bytes(members[name]) == b"null":
            continue
        try:
            members[name] = msgspec.Raw(_normalize_value(members[name], inner, is_list))
        except (msgspec.MsgspecError, DomainError):
            # Decoding the whole body reports what is wrong with it.
            continue
    return msgspec.json.encode(members)


def _normalize_value(source: msgspec.Raw, inner: Any, is_list: bool) -> bytes:
    if is_list:
        parts = msgspec.json.decode(source, type=list[msgspec.Raw])
        return msgspec.json.encode([msgspec.Raw(_normalize_value(part, inner, False)) for part in parts])
    if inner is not None:
        return normalize_times(source, inner)
    return msgspec.json.encode(read_time("", msgspec.json.decode(source, type=str | int | float)))


@functools.cache
def _find_time_fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Map each field with times to the struct inside that has them, or None, and to whether it is a list."""
    time_fields: dict[str, tuple[Any, bool]] = {}
    for field in msgspec.structs.fields(kind):
        for alternative in _list_alternatives(field.type):
            is_list = get_origin(alternative) is list
            items = _list_alternatives(get_args(alternative)[0]) if is_list else [alternative]
            for item in items:
                is_struct = isinstance(item, type) and issubclass(item, msgspec.Struct)
                if item is datetime or (is_struct and _find_time_fields(item)):
                    time_fields[field.encode_name] = (item if is_struct else None, is_list)
    return time_fields


def _list_alternatives(kind: Any) -> list[Any]:
    if get_origin(kind) is Annotated:
        return _list_alternatives(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return [inner for member in get_args(kind) for inner in _list_alternatives(member)]
    return [kind]
