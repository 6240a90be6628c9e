"""Times that callers send: one reader for all of them, in queries and in bodies.

Taken are RFC 3339 (`2030-01-01T08:30:00+01:00`), the same with a space for `T`, without seconds, or without an offset,
which is UTC then; a date, which is its first moment, and where a stretch ends its last; and seconds since 1970, or
milliseconds from 100,000,000,000 on. A `+` that a query holds as it stands arrives as a space, and is meant.
"""

import functools
import re
import types
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Union, get_args, get_origin

import msgspec
from msgspec import Meta

from domain.shared.errors import TIME_RULE, DomainError, InvalidField

# Records of an earlier time, or of more than a day ahead, come from a clock that is wrong.
OLDEST_RECORD_TIME: Final = datetime(2000, 1, 1, tzinfo=UTC)
MAX_CLOCK_LEAD: Final = timedelta(days=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECONDS_FROM: Final = 1e11
_NUMBER: Final = re.compile(r"[-+]?(?!\d{8}$)\d{1,20}(?:\.\d{1,9})?")
_DATE: Final = re.compile(r"\d{4}-?\d{2}-?\d{2}|\d{4}-?W\d{2}-?\d")
_LOST_PLUS: Final = re.compile(r"(.*\d[T ]\d\d:?\d\d(?::?\d\d(?:[.,]\d+)?)?) (\d\d:?\d\d)")
_DAY: Final = timedelta(days=1)

TimeInput = Annotated[
    str | int | float,
    Meta(description=f"A time: {TIME_RULE.removeprefix('must be ')} UTC, unless it says otherwise."),
]


def read_time(field: str, value: datetime | str | float, is_end: bool = False) -> datetime:
    """Return a time in UTC. A date is its first moment; as the `end` of a stretch, the first moment after it.

    Errors: `invalid_field`, also beyond the years 1 to 9999.
    """
    try:
        at, is_date = _read(value)
        at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
        return (at + _DAY if is_end and is_date else at).astimezone(UTC)
    except OverflowError:
        raise InvalidField(field, "lies outside the years 1 to 9999.") from None
    except ValueError:
        raise InvalidField(field, TIME_RULE) from None


def _read(sent: datetime | str | float) -> tuple[datetime, bool]:
    """A time, and whether it is a date. Errors: ValueError, OverflowError."""
    if isinstance(sent, datetime):
        return sent, False
    text = sent.strip() if isinstance(sent, str) else repr(sent)
    if isinstance(sent, int | float) or _NUMBER.fullmatch(text):
        number = float(text)
        return _EPOCH + timedelta(seconds=number / 1000 if abs(number) >= _MILLISECONDS_FROM else number), False
    lost = _LOST_PLUS.fullmatch(text)
    text = f"{lost[1]}+{lost[2]}" if lost is not None else text
    if not text.isascii():
        raise ValueError
    return datetime.fromisoformat(text.upper()), _DATE.fullmatch(text.upper()) is not None


def read_time_or_none(field: str, value: datetime | str | float | None, is_end: bool = False) -> datetime | None:
    """Return a time as `read_time` does, None for none. Errors: `invalid_field`."""
    return None if value is None else read_time(field, value, is_end)


def read_record_time(field: str, at: datetime, now: datetime) -> datetime:
    """When a record says it was made, in UTC; without an offset it is UTC.

    Errors: `invalid_field` for a time before the year 2000, or more than a day ahead of `now`.
    """
    made = read_time(field, at)
    if not OLDEST_RECORD_TIME <= made <= now + MAX_CLOCK_LEAD:
        raise InvalidField(field, "must lie between the year 2000 and tomorrow.")
    return made


def normalize_times(source: bytes | msgspec.Raw, kind: Any) -> bytes:
    """Return the JSON of a struct with the times that `read_time` can read in the form that msgspec reads.

    For bodies that msgspec has refused: it takes RFC 3339 alone. All else stays as it is, undecoded.
    Errors: those of msgspec for what is no object.
    """
    members = msgspec.json.decode(source, type=dict[str, msgspec.Raw])
    for name, (inner, is_list) in _places(kind).items():
        if name not in members or bytes(members[name]) == b"null":
            continue
        try:
            members[name] = msgspec.Raw(_mended(members[name], inner, is_list))
        except (msgspec.MsgspecError, DomainError):
            # The reader of the whole says what is wrong with it.
            continue
    return msgspec.json.encode(members)


def _mended(source: msgspec.Raw, inner: Any, is_list: bool) -> bytes:
    if is_list:
        parts = msgspec.json.decode(source, type=list[msgspec.Raw])
        return msgspec.json.encode([msgspec.Raw(_mended(part, inner, False)) for part in parts])
    if inner is not None:
        return normalize_times(source, inner)
    return msgspec.json.encode(read_time("", msgspec.json.decode(source, type=str | int | float)))


@functools.cache
def _places(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Where a struct holds times: by field None, or the struct that holds some, and whether it is a list of those."""
    found: dict[str, tuple[Any, bool]] = {}
    for field in msgspec.structs.fields(kind):
        for one in _alternatives(field.type):
            items = _alternatives(get_args(one)[0]) if get_origin(one) is list else [one]
            for item in items:
                is_struct = isinstance(item, type) and issubclass(item, msgspec.Struct)
                if item is datetime or (is_struct and _places(item)):
                    found[field.encode_name] = (item if is_struct else None, get_origin(one) is list)
    return found


def _alternatives(kind: Any) -> list[Any]:
    if get_origin(kind) is Annotated:
        return _alternatives(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return [inner for one in get_args(kind) for inner in _alternatives(one)]
    return [kind]
