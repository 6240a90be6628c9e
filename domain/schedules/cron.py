"""Compute the due times of a cron line: five fields, in a time zone, with clock changes.

The fields are those of Debian's cron as the library cronsim reads them (its README has the table): names, lists, ranges
and steps, and also `L`, `LW`, `5L` and `MON#2`. A range may wrap around (`FRI-MON`, `23-1`). If the day of the month or
the day of the week begins with `*`, a day must match both, else one of them.

Clock changes follow Debian's cron(8), and cronsim where offsets are whole hours:
- A line whose minute and hour do not begin with `*` names times of day. Each is due once a day, at the first moment at
  which the clock shows that time or a later one. Skipped times are due together, once, right after the gap; repeated
  times are due the first time.
- Any other line names a frequency. It is due whenever the clock shows a matching time: not at skipped times, and twice
  at repeated times.

cronsim only computes times without a zone. With one it walks in steps of an hour, and after a change of half an hour
(Australia/Lord_Howe) it misses the times before the minute of its arrival.
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

from domain.schedules.cron_syntax import CRON_FIELDS, expand_ranges, explain_syntax_error, find_long_step
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
_ONE_SECOND: Final = timedelta(seconds=1)
_ONE_DAY: Final = timedelta(days=1)
# Longer than any clock change, and shorter than the time between any two changes of a zone.
_SHIFT_MARGIN: Final = timedelta(days=2)
# Names that depend on this machine, or that are no zone.
_EXCLUDED_ZONES: Final = frozenset({"localtime", "Factory", "posixrules"})


@cache
def _list_zones() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones()) - _EXCLUDED_ZONES


def find_timezone(name: str, field: str = "timezone") -> ZoneInfo:
    """Return a time zone of the IANA database. Errors: `invalid_field` for an unknown one."""
    # A name is a path below the database's folder: only what is listed is opened.
    if name not in _list_zones():
        raise InvalidField(field, f"there is no time zone {name[:80]!r}; use an IANA name like 'Europe/Berlin'.")
    return ZoneInfo(name)


@lru_cache(maxsize=4096)
def parse_cron(expression: str, field: str = "cron_expression") -> "CronLine":
    """Parse a cron line. Errors: `invalid_field` for an invalid one, or one that no date can match."""
    if len(expression) > MAX_CRON_LENGTH:
        raise InvalidField(field, f"must be at most {MAX_CRON_LENGTH} characters long.")
    text = CRON_ALIASES.get(expression.strip().lower(), expression)
    if text.lstrip().startswith("@"):
        raise InvalidField(field, f"{text.strip()[:50]!r} is unknown; the aliases are {', '.join(CRON_ALIASES)}.")
    if len(text.split()) != len(CRON_FIELDS):
        raise InvalidField(field, explain_syntax_error(text))
    try:
        return CronLine(expand_ranges(text))
    except CronSimError:
        raise InvalidField(field, explain_syntax_error(text)) from None


def refuse_long_steps(expression: str, field: str = "cron_expression") -> None:
    """Refuse a line with a step longer than its field: `*/90` minutes is due every hour.

    Checked for new lines only; saved ones stay valid. Errors: `invalid_field`.
    """
    text = CRON_ALIASES.get(expression.strip().lower(), expression)
    message = find_long_step(text) if len(text.split()) == len(CRON_FIELDS) else None
    if message is not None:
        raise InvalidField(field, message)


class CronLine:
    """Compute due times. All moments are aware and in UTC; due times are whole minutes of the clock."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._fields = CronSim(text, datetime(2000, 1, 1))
        minute, hour, *_ = text.split()
        self._is_time_of_day = not minute.startswith("*") and not hour.startswith("*")

    def find_next(self, after: datetime, zone: ZoneInfo) -> datetime | None:
        """Return the first due time after a moment; None if there is no due time within fifty years."""
        at = after.astimezone(UTC).replace(microsecond=0)
        return self._find_next_time_of_day(at, zone) if self._is_time_of_day else self._find_next_match(at, zone)

    def iterate_times(self, after: datetime, until: datetime, zone: ZoneInfo) -> Iterator[datetime]:
        """Yield the due times after a moment and until another, inclusive."""
        due = self.find_next(after, zone)
        while due is not None and due <= until:
            yield due
            due = self.find_next(due, zone)

    def list_latest(self, after: datetime, until: datetime, zone: ZoneInfo, limit: int) -> list[datetime]:
        """Return the last `limit` due times, oldest first. The work grows with `limit`, not with the time between."""
        if limit <= 0:
            return []
        times = list(islice(self.iterate_times(after, until, zone), limit + 1))
        if len(times) <= limit:
            return times
        middle = after + (until - after) / 2
        later = self.list_latest(middle, until, zone, limit)
        return self.list_latest(after, middle, zone, limit - len(later)) + later

    def count_times(self, after: datetime, until: datetime, zone: ZoneInfo) -> int:
        """Return the number of due times; days without a clock change are counted as a whole."""
        count, daily_count = 0, len(self._fields.hours) * len(self._fields.minutes)
        while after < until:
            first = (after + _ONE_SECOND).astimezone(zone)
            end = _find_first_moment(datetime.combine(first.date() + _ONE_DAY, time()), zone) - _ONE_SECOND
            is_whole_day = first.time() == time() and end <= until
            if is_whole_day and _get_offset(after, zone) == _get_offset(end, zone):
                count += daily_count if self._has_day(first.date()) else 0
            else:
                end = min(end, until)
                count += sum(1 for _ in self.iterate_times(after, end, zone))
            after = end
        return count

    def _has_day(self, day: date) -> bool:
        return day.month in self._fields.months and self._fields.match_day(day)

    def _find_next_wall_time(self, wall: datetime) -> datetime | None:
        """Return the next matching time on a clock without changes."""
        return next(CronSim(self._text, wall), None)

    def _find_next_time_of_day(self, at: datetime, zone: ZoneInfo) -> datetime | None:
        wall = (at + _get_offset(at, zone)).replace(tzinfo=None)
        while (due := self._find_next_wall_time(wall)) is not None:
            moment = _find_first_moment(due, zone)
            if moment > at:
                return moment
            # The clock shows this time for the second time.
            wall = due
        return None

    def _find_next_match(self, at: datetime, zone: ZoneInfo) -> datetime | None:
        offset = _get_offset(at, zone)
        wall = (at + offset).replace(tzinfo=None)
        while (due := self._find_next_wall_time(wall)) is not None:
            if due - wall > 2 * _SHIFT_MARGIN:
                # No time on the way matches, with or without clock changes: continue shortly before the match.
                at += due - wall - _SHIFT_MARGIN
                offset = _get_offset(at, zone)
                wall = (at + offset).replace(tzinfo=None)
                continue
            moment = (due - offset).replace(tzinfo=UTC)
            if _get_offset(moment, zone) == offset:
                return moment
            # The clock changes before that: continue with the time it shows then, which may be earlier.
            at = _find_change(at, moment, zone)
            offset = _get_offset(at, zone)
            wall = (at + offset).replace(tzinfo=None) - _ONE_SECOND
        return None


def _get_offset(at: datetime, zone: ZoneInfo) -> timedelta:
    return at.astimezone(zone).utcoffset() or timedelta()


def _find_change(before: datetime, after: datetime, zone: ZoneInfo) -> datetime:
    """Return the first second with the offset of `after`; there is one change between `before` and `after`."""
    old = _get_offset(before, zone)
    seconds = range(int((after - before).total_seconds()))
    return before + _ONE_SECOND * bisect_left(
        seconds, True, key=lambda n: _get_offset(before + _ONE_SECOND * n, zone) != old
    )


def _find_first_moment(wall: datetime, zone: ZoneInfo) -> datetime:
    """Return the first moment at which the clock shows this time or a later one."""
    # PEP 495: in a gap, fold=0 uses the offset before it, which gives a moment after it; fold=1 the reverse.
    moment, other = (wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    return moment if moment <= other else _find_change(other, moment, zone)
