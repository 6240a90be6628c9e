"""When a cron line is due: five fields, in a time zone, clock changes included.

The fields are those of Debian's cron as the library cronsim reads them (its README has the table): with names, lists,
ranges and steps, and besides `L`, `LW`, `5L` and `MON#2`. A range may go past the end
(`FRI-MON`, `23-1`). If the day of the month or the day of the week begins with a
`*`, a day has to match both, else one of them.

Where clocks are put forward or back, it is as cron(8) of Debian says, and cronsim where hours are whole:
- A line of which neither the minute nor the hour begins with a `*` means times of day. Each is due once a day: at the
  first moment at which the clock shows that time or a later one. What the clocks skip is so due right after the gap,
  all of it together once; what they show twice is due the first time.
- Any other line says how often. It is due whenever the clock shows a time that matches: at nothing that the clocks
  skip, and both times at what they show twice.

cronsim is asked for times without a zone alone. With one, it walks in steps of an hour, and after a change of half an
hour (Australia/Lord_Howe) it misses what lies before the minute that it arrives at.
"""

import zoneinfo
from bisect import bisect_left
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from functools import cache, lru_cache
from itertools import islice
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from domain.schedules.cron_syntax import CRON_FIELDS, explain_syntax_error, find_long_step, unroll_ranges
from domain.shared.errors import InvalidField

MAX_CRON_LENGTH: Final = 200
CRON_ALIASES: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_SECOND: Final = timedelta(seconds=1)
_DAY: Final = timedelta(days=1)
# Farther than any clock was ever put, and nearer than any two changes of one lie together.
_NEAR: Final = timedelta(days=2)
# What is a zone of this machine, or of none.
_NO_ZONES: Final = frozenset({"localtime", "Factory", "posixrules"})


@cache
def _zones() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones()) - _NO_ZONES


def find_timezone(name: str, field: str = "timezone") -> ZoneInfo:
    """A time zone of the IANA's database. Errors: `invalid_field` for one that it does not have."""
    # A name is a path below the database's folder: only what is listed is opened.
    if name not in _zones():
        raise InvalidField(
            field, f"there is no time zone {name[:80]!r}; name one of the IANA's, as in 'Europe/Berlin'."
        )
    return ZoneInfo(name)


@lru_cache(maxsize=4096)
def parse_cron(expression: str, field: str = "cron_expression") -> "CronLine":
    """A cron line, checked. Errors: `invalid_field` for one that is none, or that no date can match."""
    if len(expression) > MAX_CRON_LENGTH:
        raise InvalidField(field, f"must be at most {MAX_CRON_LENGTH} characters long.")
    text = CRON_ALIASES.get(expression.strip().lower(), expression)
    if text.lstrip().startswith("@"):
        raise InvalidField(field, f"{text.strip()[:50]!r} is not known; there are {', '.join(CRON_ALIASES)}.")
    if len(text.split()) != len(CRON_FIELDS):
        raise InvalidField(field, explain_syntax_error(text))
    try:
        return CronLine(unroll_ranges(text))
    except CronSimError:
        raise InvalidField(field, explain_syntax_error(text)) from None


def refuse_long_steps(expression: str, field: str = "cron_expression") -> None:
    """Refuse a line with a step that nobody means, such as `*/90` minutes: it is due every hour.

    For lines that are new: one that has been kept goes on as it was. Errors: `invalid_field`.
    """
    text = CRON_ALIASES.get(expression.strip().lower(), expression)
    told = find_long_step(text) if len(text.split()) == len(CRON_FIELDS) else None
    if told is not None:
        raise InvalidField(field, told)


class CronLine:
    """A cron line. All moments are in UTC, with an offset; what is due is due on a whole minute of the clock."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._fields = CronSim(text, datetime(2000, 1, 1))
        minute, hour, *_ = text.split()
        self._of_day = not minute.startswith("*") and not hour.startswith("*")

    def find_next(self, after: datetime, zone: ZoneInfo) -> datetime | None:
        """The first time after a moment that this is due, or None if that is not within fifty years."""
        at = after.astimezone(UTC).replace(microsecond=0)
        return self._next_of_day(at, zone) if self._of_day else self._next_often(at, zone)

    def iterate_times(self, after: datetime, until: datetime, zone: ZoneInfo) -> Iterator[datetime]:
        """When it is due after a moment and until another, that one included."""
        due = self.find_next(after, zone)
        while due is not None and due <= until:
            yield due
            due = self.find_next(due, zone)

    def list_latest(self, after: datetime, until: datetime, zone: ZoneInfo, most: int) -> list[datetime]:
        """The last `most` of `between`, oldest first; the work grows with `most` and not with the time between."""
        if most <= 0:
            return []
        found = list(islice(self.iterate_times(after, until, zone), most + 1))
        if len(found) <= most:
            return found
        middle = after + (until - after) / 2
        later = self.list_latest(middle, until, zone, most)
        return self.list_latest(after, middle, zone, most - len(later)) + later

    def count_times(self, after: datetime, until: datetime, zone: ZoneInfo) -> int:
        """How many `between` has; days on which no clock changes are not looked into."""
        found, a_day = 0, len(self._fields.hours) * len(self._fields.minutes)
        while after < until:
            first = (after + _SECOND).astimezone(zone)
            end = _first(datetime.combine(first.date() + _DAY, time()), zone) - _SECOND
            whole = first.time() == time() and end <= until
            if whole and _offset(after, zone) == _offset(end, zone):
                found += a_day if self._on(first.date()) else 0
            else:
                end = min(end, until)
                found += sum(1 for _ in self.iterate_times(after, end, zone))
            after = end
        return found

    def _on(self, day: date) -> bool:
        return day.month in self._fields.months and self._fields.match_day(day)

    def _after(self, wall: datetime) -> datetime | None:
        """The first time on a clock that nobody changes, after this one."""
        return next(CronSim(self._text, wall), None)

    def _next_of_day(self, at: datetime, zone: ZoneInfo) -> datetime | None:
        wall = (at + _offset(at, zone)).replace(tzinfo=None)
        while (due := self._after(wall)) is not None:
            found = _first(due, zone)
            if found > at:
                return found
            # It is the second time that the clock shows this.
            wall = due
        return None

    def _next_often(self, at: datetime, zone: ZoneInfo) -> datetime | None:
        offset = _offset(at, zone)
        wall = (at + offset).replace(tzinfo=None)
        while (due := self._after(wall)) is not None:
            if due - wall > 2 * _NEAR:
                # Nothing on the way matches, however often clocks change there. On from close before it.
                at += due - wall - _NEAR
                offset = _offset(at, zone)
                wall = (at + offset).replace(tzinfo=None)
                continue
            found = (due - offset).replace(tzinfo=UTC)
            if _offset(found, zone) == offset:
                return found
            # The clock changes before it comes to that: on from what it shows then, which may be earlier.
            at = _change(at, found, zone)
            offset = _offset(at, zone)
            wall = (at + offset).replace(tzinfo=None) - _SECOND
        return None


def _offset(at: datetime, zone: ZoneInfo) -> timedelta:
    return at.astimezone(zone).utcoffset() or timedelta()


def _change(before: datetime, after: datetime, zone: ZoneInfo) -> datetime:
    """The first second after `before` with the offset that `after` has, where there is one change between them."""
    old = _offset(before, zone)
    seconds = range(int((after - before).total_seconds()))
    return before + _SECOND * bisect_left(seconds, True, key=lambda n: _offset(before + _SECOND * n, zone) != old)


def _first(wall: datetime, zone: ZoneInfo) -> datetime:
    """The first moment at which the clock shows this time or a later one."""
    # PEP 495: in a gap, fold=0 reckons with the offset before it, which gives a moment after it; fold=1 the reverse.
    found, other = (wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    return found if found <= other else _change(other, found, zone)
