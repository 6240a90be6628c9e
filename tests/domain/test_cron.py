"""Test when cron lines are due, above all where clocks change, against a clock that is checked every minute."""

from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import islice, pairwise
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.schedules.cron import CRON_ALIASES, find_timezone, parse_cron
from domain.shared.errors import DomainError

MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
# Moments at which clocks changed, in both directions: by an hour, by half an hour, by two hours, at midnight, in
# the middle of Ramadan, and by a whole day.
CLOCK_CHANGES = {
    "Europe/Berlin": ("2026-03-29T01:00Z", "2026-10-25T01:00Z"),
    "America/New_York": ("2026-03-08T07:00Z", "2026-11-01T06:00Z"),
    "Australia/Lord_Howe": ("2026-10-03T15:30Z", "2026-04-04T15:00Z"),
    "Antarctica/Troll": ("2026-03-29T01:00Z", "2026-10-25T01:00Z"),
    "Africa/Cairo": ("2026-04-23T22:00Z", "2026-10-29T21:00Z"),
    "America/Havana": ("2026-03-08T05:00Z", "2026-11-01T05:00Z"),
    "Africa/Casablanca": ("2026-02-15T02:00Z", "2026-03-22T02:00Z"),
    "America/Sao_Paulo": ("2018-11-04T03:00Z", "2018-02-18T02:00Z"),
    "Pacific/Apia": ("2011-12-30T10:00Z", "2012-03-31T14:00Z"),
}
ZONE_CHANGES = [(name, datetime.fromisoformat(at)) for name, changes in CLOCK_CHANGES.items() for at in changes]


def expand_field(field: str, minimum: int, maximum: int) -> set[int]:
    """Return the values of a field: a term of it is `*`, a number or a range, with or without a step."""
    values: set[int] = set()
    for term in field.split(","):
        span, _, step = term.partition("/")
        first, _, last = span.partition("-")
        low, high = (minimum, maximum) if span == "*" else (int(first), int(last or (maximum if step else first)))
        values |= set(range(low, high + 1, int(step or 1)))
    return values


def build_term_strategy(minimum: int, maximum: int) -> st.SearchStrategy[str]:
    numbers, steps = st.integers(minimum, maximum), st.integers(1, maximum)
    # cronsim reads one number with a step as a range to the end: `0-0/5` is `0/5`.
    pairs = st.lists(numbers, min_size=2, max_size=2, unique=True).map(sorted)
    ranges = pairs.map(lambda pair: f"{pair[0]}-{pair[1]}")
    return st.one_of(
        *(st.just("*"), numbers.map(str), numbers.map(str), ranges),
        *(
            steps.map(lambda step: f"*/{step}"),
            st.tuples(ranges, steps).map(lambda range_and_step: f"{range_and_step[0]}/{range_and_step[1]}"),
        ),
        st.lists(numbers, min_size=1, max_size=4).map(lambda values: ",".join(map(str, values))),
    )


CRON_LINES = st.tuples(build_term_strategy(0, 59), build_term_strategy(0, 23)).map(
    lambda two: f"{two[0]} {two[1]} * * *"
)


@cache
def list_clock_minutes(name: str, change: datetime) -> list[tuple[datetime, datetime]]:
    """Return every minute of two days with what the clock shows then."""
    begin, zone = change - DAY, ZoneInfo(name)
    moments = (begin + n * MINUTE for n in range(2 * 1440 + 1))
    return [(moment, moment.astimezone(zone).replace(tzinfo=None)) for moment in moments]


def compute_due_times(text: str, clock_minutes: list[tuple[datetime, datetime]]) -> list[datetime]:
    """Return when a line is due after the first of the watched minutes."""
    minute, hour = text.split()[:2]
    minutes, hours = expand_field(minute, 0, 59), expand_field(hour, 0, 23)

    def is_match(clock_time: datetime) -> bool:
        return clock_time.minute in minutes and clock_time.hour in hours

    if minute.startswith("*") or hour.startswith("*"):
        return [moment for moment, clock_time in clock_minutes[1:] if is_match(clock_time)]
    due, latest = [], clock_minutes[0][1]
    for moment, clock_time in clock_minutes[1:]:
        passed = [latest + n * MINUTE for n in range(1, int((clock_time - latest) / MINUTE) + 1)]
        if any(map(is_match, passed)):
            due.append(moment)
        latest = max(latest, clock_time)
    return due


@pytest.mark.slow
@pytest.mark.parametrize(("name", "change"), ZONE_CHANGES)
def test_due_times_match_a_clock_checked_every_minute(name: str, change: datetime) -> None:
    """Find each due time exactly once, from any starting moment."""
    zone, clock_minutes = find_timezone(name), list_clock_minutes(name, change)
    assert clock_minutes[0][1].utcoffset() == clock_minutes[-1][1].utcoffset()
    assert clock_minutes[0][0].astimezone(zone).utcoffset() != clock_minutes[-1][0].astimezone(zone).utcoffset()

    @settings(max_examples=30, deadline=None)
    @given(text=CRON_LINES, begin=st.integers(0, 2 * 1440), seconds=st.integers(0, 59))
    def check(text: str, begin: int, seconds: int) -> None:
        due = compute_due_times(text, clock_minutes)
        line, until = parse_cron(text), clock_minutes[-1][0]
        assert list(line.iterate_times(clock_minutes[0][0], until, zone)) == due
        assert all(earlier < later for earlier, later in pairwise(due))
        after = clock_minutes[begin][0] + timedelta(seconds=seconds)
        assert next(line.iterate_times(after, until, zone), None) == next(
            (moment for moment in due if moment > after), None
        )

    check()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "change"), ZONE_CHANGES)
def test_count_and_latest_times_match_iteration(name: str, change: datetime) -> None:
    @settings(max_examples=15, deadline=None)
    @given(text=CRON_LINES, before=st.integers(0, 99), after=st.integers(0, 99), most=st.integers(0, 30))
    def check(text: str, before: int, after: int, most: int) -> None:
        begin, end = change - before * HOUR, change + after * HOUR
        due = list(parse_cron(text).iterate_times(begin, end, find_timezone(name)))
        assert parse_cron(text).count_times(begin, end, find_timezone(name)) == len(due)
        assert (
            parse_cron(text).list_latest(begin, end, find_timezone(name), most)
            == due[len(due) - most if len(due) > most else 0 :]
        )

    check()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Europe/Berlin", "America/New_York", "UTC"])
@settings(max_examples=60, deadline=None)
@given(
    text=CRON_LINES, days=st.sampled_from(["* * *", "*/3 * *", "* */2 *", "* * 1-5", "L * *", "8,29 3,10 0", "1 11 *"])
)
def test_due_times_match_cronsim_in_zones_with_whole_hours(name: str, text: str, days: str) -> None:
    line = f"{text.removesuffix('* * *')}{days}"
    begin = datetime(2026, 3, 1, tzinfo=find_timezone(name))
    due = [moment.astimezone(UTC) for moment in islice(CronSim(line, begin), 150)]
    assert list(islice(parse_cron(line).iterate_times(begin, begin + 99_999 * DAY, find_timezone(name)), 150)) == due


def list_due_clock_times(text: str, name: str, day: str) -> list[str]:
    """Return what the clock shows on a day each time that a line is due there."""
    zone = find_timezone(name)
    begin = datetime.fromisoformat(day).replace(tzinfo=zone)
    end = datetime.fromisoformat(day).replace(tzinfo=zone, hour=23, minute=59)
    due_times = parse_cron(text).iterate_times(begin - timedelta(seconds=1), end, zone)
    return [moment.astimezone(zone).isoformat()[11:].replace(":00+", "+").replace(":00-", "-") for moment in due_times]


def test_due_times_when_clocks_go_forward() -> None:
    assert list_due_clock_times("30 2 * * *", "Europe/Berlin", "2026-03-29") == ["03:00+02:00"]
    assert list_due_clock_times("0,15,30 2 * * *", "Europe/Berlin", "2026-03-29") == ["03:00+02:00"]
    assert list_due_clock_times("0 2,3 * * *", "Europe/Berlin", "2026-03-29") == ["03:00+02:00"]
    assert list_due_clock_times("30 2 * * *", "America/New_York", "2026-03-08") == ["03:00-04:00"]
    assert list_due_clock_times("15 2 * * *", "Australia/Lord_Howe", "2026-10-04") == ["02:30+11:00"]
    assert list_due_clock_times("0 0 * * *", "Africa/Cairo", "2026-04-24") == ["01:00+03:00"]
    # A line that states an interval does not catch up.
    assert list_due_clock_times("*/30 2 * * *", "Europe/Berlin", "2026-03-29") == []
    assert list_due_clock_times("30 * * * *", "America/New_York", "2026-03-08")[:3] == [
        "00:30-05:00",
        "01:30-05:00",
        "03:30-04:00",
    ]
    assert list_due_clock_times("0 */2 * * *", "Australia/Lord_Howe", "2026-10-04")[:2] == [
        "00:00+10:30",
        "04:00+11:00",
    ]
    assert list_due_clock_times("*/10 3 * * *", "Australia/Lord_Howe", "2026-10-04") == [
        f"03:{n}0+11:00" for n in range(6)
    ]
    for name, day, minutes in (
        *(("Europe/Berlin", "2026-03-29", 1380), ("America/New_York", "2026-03-08", 1380)),
        ("Australia/Lord_Howe", "2026-10-04", 1410),
    ):
        assert len(list_due_clock_times("* * * * *", name, day)) == minutes


def test_due_times_when_clocks_go_back() -> None:
    assert list_due_clock_times("30 2 * * *", "Europe/Berlin", "2026-10-25") == ["02:30+02:00"]
    assert list_due_clock_times("0 2,3 * * *", "Europe/Berlin", "2026-10-25") == ["02:00+02:00", "03:00+01:00"]
    assert list_due_clock_times("30 1 * * *", "America/New_York", "2026-11-01") == ["01:30-04:00"]
    assert list_due_clock_times("45 1 * * *", "Australia/Lord_Howe", "2026-04-05") == ["01:45+11:00"]
    # A line that states an interval is due both times.
    assert list_due_clock_times("*/30 2 * * *", "Europe/Berlin", "2026-10-25") == [
        f"02:{m}+0{o}:00" for o in (2, 1) for m in ("00", "30")
    ]
    assert list_due_clock_times("30 * * * *", "America/New_York", "2026-11-01")[1:3] == ["01:30-04:00", "01:30-05:00"]
    assert list_due_clock_times("30 * * * *", "Australia/Lord_Howe", "2026-04-05")[1:4] == [
        "01:30+11:00",
        "01:30+10:30",
        "02:30+10:30",
    ]
    for name, day, minutes in (
        *(("Europe/Berlin", "2026-10-25", 1500), ("America/New_York", "2026-11-01", 1500)),
        ("Australia/Lord_Howe", "2026-04-05", 1470),
    ):
        assert len(list_due_clock_times("* * * * *", name, day)) == minutes


START_TIME = datetime(2026, 10, 24, 12, 30, 15, 500_000, tzinfo=UTC)


def find_first_due(text: str, after: datetime = START_TIME, name: str = "UTC") -> str:
    moment = parse_cron(text).find_next(after, find_timezone(name))
    assert moment is not None
    return f"{moment:%Y-%m-%d %H:%M}"


def test_first_due_time_of_common_lines() -> None:
    assert find_first_due("* * * * *") == "2026-10-24 12:31"
    assert find_first_due("0 9 * * *") == "2026-10-25 09:00"
    assert find_first_due("0 9 * * *", name="Asia/Kolkata") == "2026-10-25 03:30"
    assert find_first_due("*/15 9-17 * * MON-FRI") == "2026-10-26 09:00"
    assert find_first_due("0 0 L * *") == "2026-10-31 00:00"
    assert find_first_due("0 0 * * 5L") == "2026-10-30 00:00"
    assert find_first_due("0 0 * feb MON#5") == "2044-02-29 00:00"
    # Both fields must match if one begins with a star; either must match if none does.
    assert find_first_due("0 0 */7 * SUN") == "2026-11-01 00:00"
    assert find_first_due("0 0 13 * FRI") == "2026-10-30 00:00"
    assert {alias: find_first_due(alias) for alias in CRON_ALIASES} == {
        "@hourly": "2026-10-24 13:00",
        "@daily": "2026-10-25 00:00",
        "@midnight": "2026-10-25 00:00",
        "@weekly": "2026-10-25 00:00",
        "@monthly": "2026-11-01 00:00",
        "@yearly": "2027-01-01 00:00",
        "@annually": "2027-01-01 00:00",
    }
    assert find_first_due(" @Daily\n") == find_first_due("@daily")
    due_at = datetime(2026, 10, 25, 9, tzinfo=UTC)
    assert find_first_due("0 9 * * *", due_at) == "2026-10-26 09:00"
    assert find_first_due("0 9 * * *", due_at - timedelta(microseconds=1)) == "2026-10-25 09:00"


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "nonsense",
            "* * * *",
            "0 * * * * *",
            "@reboot",
            "@",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
        ),
        *("* * * * 8", "*/0 * * * *", "5-61 * * * *", "-1 * * * *", "1.5 * * * *", "* * * * MON#6", "* * * * MON#0"),
        *("0 0 30 2 *", "0 0 31 2,4,6 *", "0 0 * FOO *", "* * * * *\0", "٣ * * * *", "²L * * * *"),
        *("* * * * ²L", "0 0 LL * *", "a" * 201, "0," * 99 + "0 * * * *"),
    ],
)
def test_invalid_line_is_refused(text: str) -> None:
    with pytest.raises(DomainError) as refused:
        parse_cron(text)
    assert (refused.value.code, refused.value.errors[0].field) == ("invalid_field", "cron_expression")


@settings(max_examples=400, deadline=None)
@given(
    st.one_of(
        st.text(max_size=30),
        st.text("*/,-#LWAMON0123456789 ", max_size=30),
        st.lists(st.text("*/,-#LW5"), min_size=5, max_size=5).map(" ".join),
    )
)
def test_any_text_is_parsed_or_refused(text: str) -> None:
    try:
        line = parse_cron(text)
    except DomainError as refused:
        assert refused.code == "invalid_field"
    else:
        due_at = line.find_next(START_TIME, find_timezone("Europe/Berlin"))
        assert due_at is None or due_at > START_TIME


def test_valid_line_may_never_be_due() -> None:
    # The first or the twenty-first, if it is the last Monday of its month.
    assert parse_cron("* * */20 * 1L").find_next(START_TIME, find_timezone("UTC")) is None
    assert parse_cron("0 0 */20 * 1L").find_next(START_TIME, find_timezone("Europe/Berlin")) is None


def test_counting_ten_years_of_minutes_takes_few_clock_lookups() -> None:
    minutely, january = parse_cron("* * * * *"), parse_cron("* * * 1 *")
    until = datetime(2026, 10, 24, 12, 30, tzinfo=UTC)
    offset_calls = 0

    class CountingZone(ZoneInfo):
        def utcoffset(self, at):
            nonlocal offset_calls
            offset_calls += 1
            return super().utcoffset(at)

    zone = CountingZone.no_cache("Europe/Berlin")
    begin = until - 3652 * DAY
    assert minutely.list_latest(begin, until, zone, 100) == [until - n * MINUTE for n in reversed(range(100))]
    assert january.list_latest(begin, until, zone, 100)[-1] == datetime(2026, 1, 31, 22, 59, tzinfo=UTC)
    assert minutely.count_times(begin, until, zone) == 3652 * 1440
    assert january.count_times(begin, until, zone) == 10 * 31 * 1440
    assert offset_calls < 200_000


def test_unknown_time_zones_are_refused() -> None:
    assert find_timezone("Europe/Berlin").key == "Europe/Berlin"
    for name in (
        "",
        "Mars/Olympus",
        "europe/berlin",
        "Europe",
        "../etc/passwd",
        "localtime",
        "Factory",
        "a\0",
        "x" * 999,
    ):
        with pytest.raises(DomainError) as refused:
            find_timezone(name)
        assert refused.value.errors[0].field == "timezone"
        assert len(refused.value.detail) < 250
