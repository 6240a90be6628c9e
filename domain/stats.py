"""Statistics: what sums of records are made of, and which sums cover a stretch of time.

Every commit that adds, changes or deletes records also writes its *deltas*: sums per hour and combination
of dimensions. Workers fold deltas into *rollups* per hour, day and month (UTC). A question is answered from
the fewest rollups that cover it, the deltas that are not folded yet, and, for the parts of an hour at its ends,
from the records themselves; one statement reads all three, so the answer is exact at any moment.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Generic, Literal, Protocol, TypeVar

import msgspec

from domain.shared.errors import InvalidField
from domain.shared.pages import Listing
from domain.shared.times import read_time_or_none

T = TypeVar("T")
RecordKind = Literal["artifacts", "costs", "evaluations"]
RollupLevel = Literal["hour", "day", "month"]
TimeBucket = Literal["hour", "day"]

RECORD_KINDS: Final[tuple[RecordKind, ...]] = ("artifacts", "costs", "evaluations")
# Whole months, so that "since ever" is covered by months alone.
FIRST_MONTH: Final = datetime(1, 1, 1, tzinfo=UTC)
LAST_MONTH: Final = datetime(9999, 12, 1, tzinfo=UTC)
MAX_STATS_DAYS: Final = 90
# How many deltas one fold takes.
MAX_FOLD_DELTAS: Final = 2000
# Relative error of quantiles: a DDSketch's guarantee (Masson et al., VLDB 2019).
QUANTILE_ACCURACY: Final = 0.01
# Fractions are summed up as whole numbers of billionths, so that sums are exact in any order.
NANOS_PER_UNIT: Final = 1_000_000_000
QUANTILE_FRACTIONS: Final = (0.5, 0.95, 0.99)


class RollupSpan(msgspec.Struct, frozen=True, kw_only=True):
    """The rollups of one level that begin in `[since, until)`."""

    level: RollupLevel
    since: datetime
    until: datetime


class RollupCover(msgspec.Struct, frozen=True, kw_only=True):
    """How a stretch of time is put together: of rollups, and of records for the parts of an hour at its ends.

    `since` and `until` are the whole hours that the spans make up, which is where deltas count too.
    """

    spans: tuple[RollupSpan, ...]
    since: datetime
    until: datetime
    parts: tuple[tuple[datetime, datetime], ...]


class GroupSums(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over the records of one combination of dimensions, by the names of their measures."""

    dims: dict[str, str | None]
    measures: dict[str, int]


class StatsResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a question is answered from. `quantiles` are those of `QUANTILES`, None where there is no value."""

    groups: list[GroupSums]
    quantiles: tuple[float | None, ...]

    def sum_measure(self, measure: str) -> int:
        """A measure over all groups."""
        return sum(group.measures[measure] for group in self.groups)

    def sum_by(self, dim: str, measure: str = "count") -> dict[str, int]:
        """Counts, or another measure, by the values of a dimension; records that have none are left out."""
        counts: dict[str, int] = {}
        for group in self.groups:
            value = group.dims[dim]
            if value is not None:
                counts[value] = counts.get(value, 0) + group.measures[measure]
        return counts


class StatsQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which records are asked about: `[since, until)`, and equality by name of a filter."""

    kind: RecordKind
    filters: dict[str, Any]
    since: datetime | None = None
    until: datetime | None = None


def sort_counts(counts: dict[str, int]) -> dict[str, int]:
    """Counts, the largest first."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


class UnfoldedDeltas(msgspec.Struct, frozen=True, kw_only=True):
    """A tenant that has deltas of a kind."""

    tenant_id: str
    kind: RecordKind


class Stats(Protocol):
    """The sums of the bound tenant."""

    async def sum_groups(self, question: StatsQuery) -> StatsResult: ...
    async def sum_measure(self, question: StatsQuery, measure: str) -> int:
        """One measure over all records, or `count`: how many there are."""
        ...

    async def sum_buckets(self, question: StatsQuery, bucket: TimeBucket) -> list[tuple[datetime, dict[str, int]]]:
        """Sums per hour or day that has any records, oldest first. `since` and `until` are whole hours or days."""
        ...

    async def fold_deltas(self, kind: RecordKind, most: int) -> int:
        """Fold up to `most` deltas into rollups. Returns how many; 0 also if somebody else is at it."""
        ...

    async def list_unfolded(self, after: UnfoldedDeltas | None, limit: int) -> list[UnfoldedDeltas]:
        """What there is to fold over all tenants, in their order, after a certain one."""
        ...


def cover_period(since: datetime | None, until: datetime | None) -> RollupCover:
    """The fewest rollups that make up `[since, until)`, and the rest of it."""
    begin = min(max(since or FIRST_MONTH, FIRST_MONTH), LAST_MONTH)
    end = max(min(until or LAST_MONTH, LAST_MONTH), begin)
    first, last = _next(begin, _hour), _hour(end)
    if first > last:
        return RollupCover(spans=(), since=begin, until=begin, parts=((begin, end),) if begin < end else ())
    parts = tuple(part for part in ((begin, first), (last, end)) if part[0] < part[1])
    return RollupCover(spans=tuple(_spans(first, last)), since=first, until=last, parts=parts)


def _spans(first: datetime, last: datetime) -> list[RollupSpan]:
    """Hours up to the first whole day, days up to the first whole month, months, and the same backwards."""
    found: list[RollupSpan] = []
    levels: tuple[tuple[RollupLevel, Callable[[datetime], datetime] | None], ...]
    levels = (("hour", _day), ("day", _month), ("month", None))
    tail: list[RollupSpan] = []
    for level, larger in levels:
        begin = first if larger is None else _next(first, larger)
        end = last if larger is None else larger(last)
        if larger is None or begin > end:
            found.append(RollupSpan(level=level, since=first, until=last))
            break
        found.append(RollupSpan(level=level, since=first, until=begin))
        tail.append(RollupSpan(level=level, since=end, until=last))
        first, last = begin, end
    return [span for span in (*found, *reversed(tail)) if span.since < span.until]


def _hour(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)


def _day(at: datetime) -> datetime:
    return at.replace(hour=0, minute=0, second=0, microsecond=0)


def _month(at: datetime) -> datetime:
    return at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


_STEPS: Final[dict[Callable[[datetime], datetime], timedelta]] = {
    _hour: timedelta(hours=1),
    _day: timedelta(days=1),
    _month: timedelta(days=32),
}


def _next(at: datetime, floor: Callable[[datetime], datetime]) -> datetime:
    """The first beginning of an hour, day or month that is not before `at`."""
    whole = floor(at)
    return whole if whole == at else floor(whole + _STEPS[floor])


def find_window_start(now: datetime, days: int) -> datetime:
    """Since when the last `days` times 24 hours are counted: from the whole hour in which they began.

    Errors: `invalid_field`.
    """
    if not 1 <= days <= MAX_STATS_DAYS:
        raise InvalidField("days", f"must be from 1 to {MAX_STATS_DAYS}.")
    return _hour(now - timedelta(days=days))


def list_bucket_starts(now: datetime, days: int, bucket: TimeBucket) -> list[datetime]:
    """The beginnings of the hours or days (UTC) of a timeseries: the last `days` dates, today's among them.

    Errors: `invalid_field`.
    """
    if not 1 <= days <= MAX_STATS_DAYS:
        raise InvalidField("days", f"must be from 1 to {MAX_STATS_DAYS}.")
    first, step = _day(now) - timedelta(days=days - 1), _STEPS[_hour if bucket == "hour" else _day]
    count = days * 24 if bucket == "hour" else days
    return [first + step * number for number in range(count)]


async def read_timeseries(
    tx: Any, question: StatsQuery, bucket: TimeBucket, begins: list[datetime]
) -> list[dict[str, Any]]:
    """The sums of every bucket, with its `begin`; zeros where there are no records.

    Errors: `invalid_field` for a question that names a time of its own.
    """
    if question.since is not None or question.until is not None:
        raise InvalidField("days", "is what a timeseries is asked for; leave out the other times.")
    asked = msgspec.structs.replace(
        question, since=begins[0], until=begins[-1] + _STEPS[_hour if bucket == "hour" else _day]
    )
    found = dict(await tx.stats.sum_buckets(asked, bucket))
    return [{"begin": begin, **found.get(begin, {})} for begin in begins]


class TimeSeries(Listing[T], Generic[T], frozen=True, kw_only=True):
    """A timeseries, oldest first and whole: of the `days` from `start_date` to before `end_date`. `data` is `items`."""

    data: list[T]
    start_date: datetime
    end_date: datetime
    days: int


class DatedPoint(Protocol):
    """A point of a timeseries."""

    @property
    def date(self) -> datetime:
        """When its hour or day begins."""
        ...


P = TypeVar("P", bound=DatedPoint)


def build_timeseries(points: list[P], days: int, bucket: TimeBucket) -> TimeSeries[P]:
    """Return the points of a timeseries in its envelope."""
    return TimeSeries(
        items=points,
        data=points,
        total=len(points),
        limit=len(points),
        offset=0,
        has_more=False,
        start_date=points[0].date,
        end_date=points[-1].date + _STEPS[_hour if bucket == "hour" else _day],
        days=days,
    )


def parse_time_range(since: datetime | None, until: datetime | None, names: tuple[str, str]) -> tuple[Any, Any]:
    """Both ends of a stretch in UTC, which they are in if they name no offset.

    Errors: `invalid_field` naming the end that is none, or lies before the other.
    """
    first = read_time_or_none(names[0], since)
    last = read_time_or_none(names[1], until)
    if first is not None and last is not None and last < first:
        raise InvalidField(names[1], f"lies before {names[0]}.")
    return first, last


def refuse_nul_characters(wanted: msgspec.Struct) -> None:
    """A filter that Postgres can be asked with. Errors: `invalid_field` for U+0000, which no text there holds."""
    for name in wanted.__struct_fields__:
        if "\0" in str(getattr(wanted, name)):
            raise InvalidField(name, "must not hold U+0000.")
