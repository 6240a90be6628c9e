"""How a stretch of time is put together of rollups, and the buckets of timeseries."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from domain.shared.errors import DomainError
from domain.stats import (
    FIRST_MONTH,
    LAST_MONTH,
    MAX_STATS_DAYS,
    RollupCover,
    cover_period,
    find_window_start,
    list_bucket_starts,
)

LATEST = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
HOUR, DAY, MICRO = timedelta(hours=1), timedelta(days=1), timedelta(microseconds=1)
# Near what matters: beginnings of hours, days, months and years, and times right beside them.
BEGINS = [
    datetime(2024, 2, 29, tzinfo=UTC),
    datetime(2024, 3, 1, tzinfo=UTC),
    datetime(2025, 12, 31, 23, tzinfo=UTC),
    datetime(2026, 1, 1, tzinfo=UTC),
    datetime(2026, 1, 31, 22, tzinfo=UTC),
    datetime(2026, 2, 1, tzinfo=UTC),
    datetime(2026, 2, 28, 23, tzinfo=UTC),
]
BESIDE = [-HOUR, -timedelta(minutes=17), -MICRO, timedelta(0), MICRO, timedelta(minutes=30), HOUR, DAY]
NEAR = st.builds(lambda at, by: at + by, st.sampled_from(BEGINS), st.sampled_from(BESIDE))
ANY = st.datetimes(min_value=datetime(1, 1, 1), timezones=st.just(UTC))
TIMES = st.one_of(
    NEAR, ANY, st.sampled_from([FIRST_MONTH, FIRST_MONTH + MICRO, LAST_MONTH - MICRO, LAST_MONTH, LATEST])
)
WHOLE = {
    "hour": lambda at: at.replace(minute=0, second=0, microsecond=0),
    "day": lambda at: at.replace(hour=0, minute=0, second=0, microsecond=0),
    "month": lambda at: at.replace(day=1, hour=0, minute=0, second=0, microsecond=0),
}
MORE = {"hour": ("day", DAY), "day": ("month", timedelta(days=32))}


def after(at: datetime, level: str, step: timedelta) -> datetime:
    """The first whole day or month that does not begin before `at`."""
    whole = WHOLE[level](at)
    return whole if whole == at else WHOLE[level](whole + step)


def pieces(made: RollupCover) -> list[tuple[str, datetime, datetime]]:
    """Spans with the part before them and the part behind them. A part may be empty."""
    parts = [("part", *part) for part in made.parts if part[0] < part[1]]
    spans = [(span.level, span.since, span.until) for span in made.spans]
    return [*(one for one in parts if one[1] < made.since), *spans, *(one for one in parts if one[1] >= made.since)]


@given(since=st.none() | TIMES, until=st.none() | TIMES)
@example(since=None, until=None)
@example(since=None, until=FIRST_MONTH)
@example(since=FIRST_MONTH, until=LATEST)
@example(since=LATEST, until=None)
@example(since=LATEST, until=LATEST)
@example(since=datetime(2026, 1, 1, 5, 10, tzinfo=UTC), until=datetime(2026, 1, 1, 5, 50, tzinfo=UTC))
@example(since=datetime(2026, 1, 1, 5, 10, tzinfo=UTC), until=datetime(2026, 1, 1, 5, 10, tzinfo=UTC))
@example(since=datetime(2026, 1, 1, 5, 10, tzinfo=UTC), until=datetime(2026, 1, 1, 6, 10, tzinfo=UTC))
@example(since=datetime(2026, 1, 1, 5, 10, tzinfo=UTC), until=datetime(2026, 1, 1, 7, 10, tzinfo=UTC))
@example(since=datetime(2026, 1, 31, 23, tzinfo=UTC), until=datetime(2026, 2, 1, 1, tzinfo=UTC))
@example(since=datetime(2026, 1, 30, 23, tzinfo=UTC), until=datetime(2026, 2, 2, 1, tzinfo=UTC))
@example(since=datetime(2026, 1, 31, tzinfo=UTC), until=datetime(2026, 2, 1, tzinfo=UTC))
def test_a_cover_is_the_stretch_itself_and_the_smallest_one(since: datetime | None, until: datetime | None) -> None:
    made = cover_period(since, until)
    begin = min(since or FIRST_MONTH, LAST_MONTH)
    end = max(min(until or LAST_MONTH, LAST_MONTH), begin)
    # In order, disjoint and without a gap: each begins where the one before it ended.
    place = begin
    for level, first, last in pieces(made):
        assert first == place
        assert first < last
        place = last
        if level == "part":
            assert WHOLE["hour"](last - MICRO) <= first, "a part holds no whole hour, and does not cross one"
            continue
        assert WHOLE[level](first) == first
        assert WHOLE[level](last) == last
        if level in MORE:
            larger, step = MORE[level]
            assert WHOLE[larger](last) <= after(first, larger, step), "one larger rollup would have done"
    assert place == end
    if made.spans:
        assert (made.spans[0].since, made.spans[-1].until) == (made.since, made.until)
    else:
        assert made.since == made.until, "deltas count for nothing where no rollup does"
    levels = [span.level for span in made.spans]
    left = iter(("hour", "day", "month", "day", "hour"))
    assert all(level in left for level in levels), "hours, days, months, days, hours: one run of each at most"
    assert len(made.parts) <= 2


@given(since=NEAR, hours=st.integers(0, 24 * 70), minutes=st.integers(0, 59))
def test_each_hour_is_counted_once(since: datetime, hours: int, minutes: int) -> None:
    until = since + timedelta(hours=hours, minutes=minutes)
    made = cover_period(since, until)
    for number in range(-2, hours + 4):
        # The first hour may begin before the stretch: the records in it are looked at one by one.
        hour = WHOLE["hour"](since) + number * HOUR
        counted = sum(span.since <= hour < span.until for span in made.spans)
        assert counted == (made.since <= hour < made.until) == (since <= hour and hour + HOUR <= until)
    rollups = sum(
        (span.until - span.since) // (HOUR if span.level == "hour" else DAY if span.level == "day" else 28 * DAY)
        for span in made.spans
    )
    assert rollups <= 2 * 23 + 2 * 30 + 3


def test_ever_is_months_alone() -> None:
    made = cover_period(None, None)
    assert [(span.level, span.since, span.until) for span in made.spans] == [("month", FIRST_MONTH, LAST_MONTH)]
    assert made.parts == ()
    assert cover_period(None, LATEST) == cover_period(FIRST_MONTH, LAST_MONTH) == made


def test_within_an_hour_there_are_records_alone() -> None:
    since, until = datetime(2026, 1, 1, 5, 0, 0, 1, tzinfo=UTC), datetime(2026, 1, 1, 5, 59, 59, 999999, tzinfo=UTC)
    made = cover_period(since, until)
    assert (made.spans, made.parts) == ((), ((since, until),))
    nothing = cover_period(since, since)
    assert nothing.spans == ()
    assert nothing.since == nothing.until


def test_an_end_before_the_beginning_covers_nothing() -> None:
    made = cover_period(datetime(2026, 5, 1, 7, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC))
    assert (made.spans, made.parts, made.since == made.until) == ((), (), True)


@given(now=st.datetimes(min_value=datetime(2000, 1, 1), timezones=st.just(UTC)), days=st.integers(1, MAX_STATS_DAYS))
@example(now=datetime(2024, 3, 1, tzinfo=UTC), days=1)
@example(now=datetime(2024, 2, 29, 23, 59, 59, 999999, tzinfo=UTC), days=MAX_STATS_DAYS)
def test_buckets_are_the_last_dates_with_todays(now: datetime, days: int) -> None:
    of_days, of_hours = list_bucket_starts(now, days, "day"), list_bucket_starts(now, days, "hour")
    assert [begin.date() for begin in of_days] == [now.date() - timedelta(days=back) for back in range(days)][::-1]
    assert of_hours == [begin + hour * HOUR for begin in of_days for hour in range(24)]
    assert of_days[-1] <= now < of_days[-1] + DAY if now < LATEST - DAY else True
    assert find_window_start(now, days) == WHOLE["hour"](now - days * DAY)
    assert timedelta(0) <= now - days * DAY - find_window_start(now, days) < HOUR


@pytest.mark.parametrize("days", [-1, 0, MAX_STATS_DAYS + 1])
def test_days_beyond_their_range_are_refused(days: int) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    for wrong in (
        lambda: find_window_start(now, days),
        lambda: list_bucket_starts(now, days, "day"),
        lambda: list_bucket_starts(now, days, "hour"),
    ):
        with pytest.raises(DomainError) as caught:
            wrong()
        assert caught.value.code == "invalid_field"
        assert [one.field for one in caught.value.errors] == ["days"]
