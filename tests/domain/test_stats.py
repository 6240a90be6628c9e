"""Test how rollups cover a period of time, and the buckets of time series."""

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

LATEST_TIME = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
HOUR, DAY, MICRO = timedelta(hours=1), timedelta(days=1), timedelta(microseconds=1)
# Times near the beginnings of hours, days, months and years.
PERIOD_STARTS = [
    datetime(2024, 2, 29, tzinfo=UTC),
    datetime(2024, 3, 1, tzinfo=UTC),
    datetime(2025, 12, 31, 23, tzinfo=UTC),
    datetime(2026, 1, 1, tzinfo=UTC),
    datetime(2026, 1, 31, 22, tzinfo=UTC),
    datetime(2026, 2, 1, tzinfo=UTC),
    datetime(2026, 2, 28, 23, tzinfo=UTC),
]
SMALL_OFFSETS = [-HOUR, -timedelta(minutes=17), -MICRO, timedelta(0), MICRO, timedelta(minutes=30), HOUR, DAY]
TIMES_NEAR_STARTS = st.builds(lambda at, by: at + by, st.sampled_from(PERIOD_STARTS), st.sampled_from(SMALL_OFFSETS))
ANY_TIMES = st.datetimes(min_value=datetime(1, 1, 1), timezones=st.just(UTC))
ALL_TIMES = st.one_of(
    TIMES_NEAR_STARTS,
    ANY_TIMES,
    st.sampled_from([FIRST_MONTH, FIRST_MONTH + MICRO, LAST_MONTH - MICRO, LAST_MONTH, LATEST_TIME]),
)
TRUNCATE_BY_LEVEL = {
    "hour": lambda at: at.replace(minute=0, second=0, microsecond=0),
    "day": lambda at: at.replace(hour=0, minute=0, second=0, microsecond=0),
    "month": lambda at: at.replace(day=1, hour=0, minute=0, second=0, microsecond=0),
}
NEXT_LEVEL = {"hour": ("day", DAY), "day": ("month", timedelta(days=32))}


def find_next_start(moment: datetime, level: str, step: timedelta) -> datetime:
    """Return the first day or month that does not begin before `at`."""
    start = TRUNCATE_BY_LEVEL[level](moment)
    return start if start == moment else TRUNCATE_BY_LEVEL[level](start + step)


def list_pieces(cover: RollupCover) -> list[tuple[str, datetime, datetime]]:
    """Return the spans with the part before and the part after them. A part may be empty."""
    parts = [("part", *part) for part in cover.parts if part[0] < part[1]]
    spans = [(span.level, span.since, span.until) for span in cover.spans]
    return [
        *(piece for piece in parts if piece[1] < cover.since),
        *spans,
        *(piece for piece in parts if piece[1] >= cover.since),
    ]


@given(since=st.none() | ALL_TIMES, until=st.none() | ALL_TIMES)
@example(since=None, until=None)
@example(since=None, until=FIRST_MONTH)
@example(since=FIRST_MONTH, until=LATEST_TIME)
@example(since=LATEST_TIME, until=None)
@example(since=LATEST_TIME, until=LATEST_TIME)
@example(since=datetime(2026, 1, 1, 5, 10, tzinfo=UTC), until=datetime(2026, 1, 1, 5, 50, tzinfo=UTC))
@example(since=datetime(2026, 1, 1, 5, 10, tzinfo=UTC), until=datetime(2026, 1, 1, 5, 10, tzinfo=UTC))
@example(since=datetime(2026, 1, 1, 5, 10, tzinfo=UTC), until=datetime(2026, 1, 1, 6, 10, tzinfo=UTC))
@example(since=datetime(2026, 1, 1, 5, 10, tzinfo=UTC), until=datetime(2026, 1, 1, 7, 10, tzinfo=UTC))
@example(since=datetime(2026, 1, 31, 23, tzinfo=UTC), until=datetime(2026, 2, 1, 1, tzinfo=UTC))
@example(since=datetime(2026, 1, 30, 23, tzinfo=UTC), until=datetime(2026, 2, 2, 1, tzinfo=UTC))
@example(since=datetime(2026, 1, 31, tzinfo=UTC), until=datetime(2026, 2, 1, tzinfo=UTC))
def test_cover_is_exact_and_uses_the_largest_rollups(since: datetime | None, until: datetime | None) -> None:
    cover = cover_period(since, until)
    begin = min(since or FIRST_MONTH, LAST_MONTH)
    end = max(min(until or LAST_MONTH, LAST_MONTH), begin)
    # Ordered, disjoint and without a gap: each piece begins where the previous one ended.
    place = begin
    for level, first, last in list_pieces(cover):
        assert first == place
        assert first < last
        place = last
        if level == "part":
            assert TRUNCATE_BY_LEVEL["hour"](last - MICRO) <= first, (
                "a part holds no whole hour, and does not cross one"
            )
            continue
        assert TRUNCATE_BY_LEVEL[level](first) == first
        assert TRUNCATE_BY_LEVEL[level](last) == last
        if level in NEXT_LEVEL:
            larger, step = NEXT_LEVEL[level]
            assert TRUNCATE_BY_LEVEL[larger](last) <= find_next_start(first, larger, step), (
                "one larger rollup would be enough"
            )
    assert place == end
    if cover.spans:
        assert (cover.spans[0].since, cover.spans[-1].until) == (cover.since, cover.until)
    else:
        assert cover.since == cover.until, "without rollups the covered period is empty"
    levels = [span.level for span in cover.spans]
    left = iter(("hour", "day", "month", "day", "hour"))
    assert all(level in left for level in levels), "hours, days, months, days, hours: one run of each at most"
    assert len(cover.parts) <= 2


@given(since=TIMES_NEAR_STARTS, hours=st.integers(0, 24 * 70), minutes=st.integers(0, 59))
def test_each_hour_is_covered_once(since: datetime, hours: int, minutes: int) -> None:
    until = since + timedelta(hours=hours, minutes=minutes)
    cover = cover_period(since, until)
    for number in range(-2, hours + 4):
        # The first hour may begin before the period: its records are read one by one.
        hour = TRUNCATE_BY_LEVEL["hour"](since) + number * HOUR
        counted = sum(span.since <= hour < span.until for span in cover.spans)
        assert counted == (cover.since <= hour < cover.until) == (since <= hour and hour + HOUR <= until)
    rollups = sum(
        (span.until - span.since) // (HOUR if span.level == "hour" else DAY if span.level == "day" else 28 * DAY)
        for span in cover.spans
    )
    assert rollups <= 2 * 23 + 2 * 30 + 3


def test_unbounded_period_uses_months_only() -> None:
    cover = cover_period(None, None)
    assert [(span.level, span.since, span.until) for span in cover.spans] == [("month", FIRST_MONTH, LAST_MONTH)]
    assert cover.parts == ()
    assert cover_period(None, LATEST_TIME) == cover_period(FIRST_MONTH, LAST_MONTH) == cover


def test_period_within_an_hour_uses_records_only() -> None:
    since, until = datetime(2026, 1, 1, 5, 0, 0, 1, tzinfo=UTC), datetime(2026, 1, 1, 5, 59, 59, 999999, tzinfo=UTC)
    cover = cover_period(since, until)
    assert (cover.spans, cover.parts) == ((), ((since, until),))
    empty = cover_period(since, since)
    assert empty.spans == ()
    assert empty.since == empty.until


def test_reversed_period_covers_nothing() -> None:
    cover = cover_period(datetime(2026, 5, 1, 7, tzinfo=UTC), datetime(2026, 4, 1, tzinfo=UTC))
    assert (cover.spans, cover.parts, cover.since == cover.until) == ((), (), True)


@given(now=st.datetimes(min_value=datetime(2000, 1, 1), timezones=st.just(UTC)), days=st.integers(1, MAX_STATS_DAYS))
@example(now=datetime(2024, 3, 1, tzinfo=UTC), days=1)
@example(now=datetime(2024, 2, 29, 23, 59, 59, 999999, tzinfo=UTC), days=MAX_STATS_DAYS)
def test_buckets_are_the_last_days_including_today(now: datetime, days: int) -> None:
    of_days, of_hours = list_bucket_starts(now, days, "day"), list_bucket_starts(now, days, "hour")
    assert [begin.date() for begin in of_days] == [now.date() - timedelta(days=back) for back in range(days)][::-1]
    assert of_hours == [begin + hour * HOUR for begin in of_days for hour in range(24)]
    assert of_days[-1] <= now < of_days[-1] + DAY if now < LATEST_TIME - DAY else True
    assert find_window_start(now, days) == TRUNCATE_BY_LEVEL["hour"](now - days * DAY)
    assert timedelta(0) <= now - days * DAY - find_window_start(now, days) < HOUR


@pytest.mark.parametrize("days", [-1, 0, MAX_STATS_DAYS + 1])
def test_days_out_of_range_are_refused(days: int) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    for call in (
        lambda: find_window_start(now, days),
        lambda: list_bucket_starts(now, days, "day"),
        lambda: list_bucket_starts(now, days, "hour"),
    ):
        with pytest.raises(DomainError) as caught:
            call()
        assert caught.value.code == "invalid_field"
        assert [error.field for error in caught.value.errors] == ["days"]
