"""Answer questions about sums of records, from rollups that cover a period.

Every commit that adds, changes or deletes records also writes its *deltas*: sums per hour and combination
of dimensions. Workers fold deltas into *rollups* per hour, day and month (UTC). A query is answered from
the fewest rollups that cover it, the deltas that are not folded yet, and, for the parts of an hour at its ends,
from the records themselves; one statement reads all three, so the answer is exact at any moment.
"""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Generic, Literal, Protocol, TypeVar

import msgspec

from domain.ports import Tx
from domain.shared.errors import InvalidField
from domain.shared.pages import Listing
from domain.shared.times import read_time_or_none

ItemT = TypeVar("ItemT")
RecordKind = Literal["artifacts", "costs", "evaluations"]
RollupLevel = Literal["hour", "day", "month"]
TimeBucket = Literal["hour", "day"]

RECORD_KINDS: Final[tuple[RecordKind, ...]] = ("artifacts", "costs", "evaluations")
# Whole months, so that a query without bounds is covered by months alone.
FIRST_MONTH: Final = datetime(1, 1, 1, tzinfo=UTC)
LAST_MONTH: Final = datetime(9999, 12, 1, tzinfo=UTC)
MAX_STATS_DAYS: Final = 90
# How many deltas one fold handles.
MAX_FOLD_DELTAS: Final = 2000
# Relative error of quantiles: a DDSketch's guarantee (Masson et al., VLDB 2019).
QUANTILE_ACCURACY: Final = 0.01
# Fractions are summed as whole numbers of billionths, so that sums are exact in any order.
NANOS_PER_UNIT: Final = 1_000_000_000
QUANTILE_FRACTIONS: Final = (0.5, 0.95, 0.99)


class RollupSpan(msgspec.Struct, frozen=True, kw_only=True):
    """Name the rollups of one level that begin in `[since, until)`."""

    level: RollupLevel
    since: datetime
    until: datetime


class RollupCover(msgspec.Struct, frozen=True, kw_only=True):
    """Cover a period by rollups, and by records for the parts of an hour at its ends.

    `since` and `until` are the whole hours that the spans make up, which is where deltas count too.
    """

    spans: tuple[RollupSpan, ...]
    since: datetime
    until: datetime
    parts: tuple[tuple[datetime, datetime], ...]


class GroupSums(msgspec.Struct, frozen=True, kw_only=True):
    """Hold sums over the records of one combination of dimensions, by the names of their measures."""

    dims: dict[str, str | None]
    measures: dict[str, int]


class StatsResult(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the sums that answer a query. `quantiles` are those of `QUANTILES`, None where there is no value."""

    groups: list[GroupSums]
    quantiles: tuple[float | None, ...]

    def sum_measure(self, measure: str) -> int:
        """Sum a measure over all groups."""
        return sum(group.measures[measure] for group in self.groups)

    def sum_by(self, dim: str, measure: str = "count") -> dict[str, int]:
        """Sum a measure by the values of a dimension, without records that have no value."""
        counts: dict[str, int] = {}
        for group in self.groups:
            value = group.dims[dim]
            if value is not None:
                counts[value] = counts.get(value, 0) + group.measures[measure]
        return counts


class StatsQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Select records: those of `[since, until)` that equal the values of `filters`, by name."""

    kind: RecordKind
    filters: dict[str, Any]
    since: datetime | None = None
    until: datetime | None = None


def sort_counts(counts: dict[str, int]) -> dict[str, int]:
    """Sort counts, the largest first."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


class UnfoldedDeltas(msgspec.Struct, frozen=True, kw_only=True):
    """Name a tenant that has unfolded deltas of a kind."""

    tenant_id: str
    kind: RecordKind


class Stats(Protocol):
    """Query and fold the sums of the bound tenant."""

    async def sum_groups(self, query: StatsQuery) -> StatsResult: ...
    async def sum_measure(self, query: StatsQuery, measure: str) -> int:
        """Sum one measure over all records; `count` counts them."""
        ...

    async def sum_buckets(self, query: StatsQuery, bucket: TimeBucket) -> list[tuple[datetime, dict[str, int]]]:
        """Sum per hour or day that has any records, oldest first. `since` and `until` are whole hours or days."""
        ...

    async def fold_deltas(self, kind: RecordKind, limit: int) -> int:
        """Fold up to `limit` deltas into rollups. Returns how many; 0 also if another worker is folding them."""
        ...

    async def list_unfolded(self, after: UnfoldedDeltas | None, limit: int) -> list[UnfoldedDeltas]:
        """List what is to be folded over all tenants, in their order, after a certain one."""
        ...


def cover_period(since: datetime | None, until: datetime | None) -> RollupCover:
    """Cover `[since, until)` by the fewest rollups, and the rest of it by records."""
    begin = min(max(since or FIRST_MONTH, FIRST_MONTH), LAST_MONTH)
    end = max(min(until or LAST_MONTH, LAST_MONTH), begin)
    first, last = _round_up(begin, _round_to_hour), _round_to_hour(end)
    if first > last:
        return RollupCover(spans=(), since=begin, until=begin, parts=((begin, end),) if begin < end else ())
    parts = tuple(part for part in ((begin, first), (last, end)) if part[0] < part[1])
    return RollupCover(spans=tuple(_list_spans(first, last)), since=first, until=last, parts=parts)


def _list_spans(first: datetime, last: datetime) -> list[RollupSpan]:
    """List hours up to the first whole day, days up to the first whole month, months, and the same backwards."""
    head: list[RollupSpan] = []
    levels: tuple[tuple[RollupLevel, Callable[[datetime], datetime] | None], ...]
    levels = (("hour", _round_to_day), ("day", _round_to_month), ("month", None))
    tail: list[RollupSpan] = []
    for level, larger in levels:
        begin = first if larger is None else _round_up(first, larger)
        end = last if larger is None else larger(last)
        if larger is None or begin > end:
            head.append(RollupSpan(level=level, since=first, until=last))
            break
        head.append(RollupSpan(level=level, since=first, until=begin))
        tail.append(RollupSpan(level=level, since=end, until=last))
        first, last = begin, end
    return [span for span in (*head, *reversed(tail)) if span.since < span.until]


def _round_to_hour(at: datetime) -> datetime:
    return at.replace(minute=0, second=0, microsecond=0)


def _round_to_day(at: datetime) -> datetime:
    return at.replace(hour=0, minute=0, second=0, microsecond=0)


def _round_to_month(at: datetime) -> datetime:
    return at.replace(day=1, hour=0, minute=0, second=0, microsecond=0)


_STEP_BY_FLOOR: Final[dict[Callable[[datetime], datetime], timedelta]] = {
    _round_to_hour: timedelta(hours=1),
    _round_to_day: timedelta(days=1),
    _round_to_month: timedelta(days=32),
}


def _round_up(at: datetime, floor: Callable[[datetime], datetime]) -> datetime:
    """Return the first beginning of an hour, day or month that is not before `at`."""
    whole = floor(at)
    return whole if whole == at else floor(whole + _STEP_BY_FLOOR[floor])


def find_window_start(now: datetime, days: int) -> datetime:
    """Return the whole hour in which the last `days` times 24 hours began.

    Errors: `invalid_field`.
    """
    if not 1 <= days <= MAX_STATS_DAYS:
        raise InvalidField("days", f"must be from 1 to {MAX_STATS_DAYS}.")
    return _round_to_hour(now - timedelta(days=days))


def list_bucket_starts(now: datetime, days: int, bucket: TimeBucket) -> list[datetime]:
    """List the beginnings of the hours or days (UTC) of a timeseries: the last `days` dates, with today.

    Errors: `invalid_field`.
    """
    if not 1 <= days <= MAX_STATS_DAYS:
        raise InvalidField("days", f"must be from 1 to {MAX_STATS_DAYS}.")
    first, step = (
        _round_to_day(now) - timedelta(days=days - 1),
        _STEP_BY_FLOOR[_round_to_hour if bucket == "hour" else _round_to_day],
    )
    count = days * 24 if bucket == "hour" else days
    return [first + step * number for number in range(count)]


async def read_timeseries(
    tx: Tx, query: StatsQuery, bucket: TimeBucket, begins: list[datetime]
) -> list[dict[str, Any]]:
    """Return the sums of every bucket, with its `begin`; zeros where there are no records.

    Errors: `invalid_field` for a query with times of its own.
    """
    if query.since is not None or query.until is not None:
        raise InvalidField("days", "sets the times of a timeseries; leave out the others.")
    asked = msgspec.structs.replace(
        query, since=begins[0], until=begins[-1] + _STEP_BY_FLOOR[_round_to_hour if bucket == "hour" else _round_to_day]
    )
    sums_by_begin = dict(await tx.stats.sum_buckets(asked, bucket))
    return [{"begin": begin, **sums_by_begin.get(begin, {})} for begin in begins]


class TimeSeries(Listing[ItemT], Generic[ItemT], frozen=True, kw_only=True):
    """Hold a timeseries, oldest first, of the `days` from `start_date` to before `end_date`. `data` is `items`."""

    data: list[ItemT]
    start_date: datetime
    end_date: datetime
    days: int


class DatedPoint(Protocol):
    """Require the time of a point of a timeseries."""

    @property
    def date(self) -> datetime:
        """Return when its hour or day begins."""
        ...


PointT = TypeVar("PointT", bound=DatedPoint)


def build_timeseries(points: list[PointT], days: int, bucket: TimeBucket) -> TimeSeries[PointT]:
    """Return the points of a timeseries in its envelope."""
    return TimeSeries(
        items=points,
        data=points,
        total=len(points),
        limit=len(points),
        offset=0,
        has_more=False,
        start_date=points[0].date,
        end_date=points[-1].date + _STEP_BY_FLOOR[_round_to_hour if bucket == "hour" else _round_to_day],
        days=days,
    )


def parse_time_range(since: datetime | None, until: datetime | None, names: tuple[str, str]) -> tuple[Any, Any]:
    """Parse both ends of a period as UTC, which is also the default offset.

    Errors: `invalid_field` naming the end that is no time, or lies before the other.
    """
    first = read_time_or_none(names[0], since)
    last = read_time_or_none(names[1], until)
    if first is not None and last is not None and last < first:
        raise InvalidField(names[1], f"lies before {names[0]}.")
    return first, last


def refuse_nul_characters(filters: msgspec.Struct) -> None:
    """Check that a filter has no U+0000, which no text of Postgres holds. Errors: `invalid_field`."""
    for name in filters.__struct_fields__:
        if "\0" in str(getattr(filters, name)):
            raise InvalidField(name, "must not hold U+0000.")
