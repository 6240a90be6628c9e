"""When cron lines are due, above all where clocks change, against a clock that is watched minute by minute."""

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
# A moment at which clocks were changed, in both directions: by an hour, by half an hour, by two hours, at midnight, in
# the midst of Ramadan, and by a whole day.
CHANGES = {
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
BOTH = [(name, datetime.fromisoformat(at)) for name, changes in CHANGES.items() for at in changes]


def expanded(field: str, least: int, most: int) -> set[int]:
    """What a field says: a term of it is `*`, a number or a range, with or without a step."""
    found: set[int] = set()
    for term in field.split(","):
        span, _, step = term.partition("/")
        first, _, last = span.partition("-")
        low, high = (least, most) if span == "*" else (int(first), int(last or (most if step else first)))
        found |= set(range(low, high + 1, int(step or 1)))
    return found


def term(least: int, most: int) -> st.SearchStrategy[str]:
    numbers, steps = st.integers(least, most), st.integers(1, most)
    # Of one number, with a step, cronsim makes a range to the end: `0-0/5` is `0/5`.
    pairs = st.lists(numbers, min_size=2, max_size=2, unique=True).map(sorted)
    ranges = pairs.map(lambda pair: f"{pair[0]}-{pair[1]}")
    return st.one_of(
        *(st.just("*"), numbers.map(str), numbers.map(str), ranges),
        *(steps.map(lambda step: f"*/{step}"), st.tuples(ranges, steps).map(lambda two: f"{two[0]}/{two[1]}")),
        st.lists(numbers, min_size=1, max_size=4).map(lambda many: ",".join(map(str, many))),
    )


LINES = st.tuples(term(0, 59), term(0, 23)).map(lambda two: f"{two[0]} {two[1]} * * *")


@cache
def watched(name: str, change: datetime) -> list[tuple[datetime, datetime]]:
    """Two days and what the clock shows, minute by minute."""
    begin, there = change - DAY, ZoneInfo(name)
    moments = (begin + n * MINUTE for n in range(2 * 1440 + 1))
    return [(at, at.astimezone(there).replace(tzinfo=None)) for at in moments]


def expected(text: str, seen: list[tuple[datetime, datetime]]) -> list[datetime]:
    """When a line is due after the first moment of what was seen."""
    minute, hour = text.split()[:2]
    minutes, hours = expanded(minute, 0, 59), expanded(hour, 0, 23)

    def matches(wall: datetime) -> bool:
        return wall.minute in minutes and wall.hour in hours

    if minute.startswith("*") or hour.startswith("*"):
        return [at for at, wall in seen[1:] if matches(wall)]
    due, latest = [], seen[0][1]
    for at, wall in seen[1:]:
        passed = [latest + n * MINUTE for n in range(1, int((wall - latest) / MINUTE) + 1)]
        if any(map(matches, passed)):
            due.append(at)
        latest = max(latest, wall)
    return due


@pytest.mark.parametrize(("name", "change"), BOTH)
def test_a_line_is_due_when_the_clock_says_so(name: str, change: datetime) -> None:
    """Each once, none twice, none left out, whichever moment one asks from."""
    there, seen = find_timezone(name), watched(name, change)
    assert seen[0][1].utcoffset() == seen[-1][1].utcoffset()
    assert seen[0][0].astimezone(there).utcoffset() != seen[-1][0].astimezone(there).utcoffset()

    @settings(max_examples=30, deadline=None)
    @given(text=LINES, begin=st.integers(0, 2 * 1440), seconds=st.integers(0, 59))
    def check(text: str, begin: int, seconds: int) -> None:
        due = expected(text, seen)
        one, until = parse_cron(text), seen[-1][0]
        assert list(one.iterate_times(seen[0][0], until, there)) == due
        assert all(earlier < later for earlier, later in pairwise(due))
        asked = seen[begin][0] + timedelta(seconds=seconds)
        assert next(one.iterate_times(asked, until, there), None) == next((at for at in due if at > asked), None)

    check()


@pytest.mark.parametrize(("name", "change"), BOTH)
def test_counting_and_the_latest_are_those_of_going_through_them(name: str, change: datetime) -> None:
    @settings(max_examples=15, deadline=None)
    @given(text=LINES, before=st.integers(0, 99), after=st.integers(0, 99), most=st.integers(0, 30))
    def check(text: str, before: int, after: int, most: int) -> None:
        begin, end = change - before * HOUR, change + after * HOUR
        due = list(parse_cron(text).iterate_times(begin, end, find_timezone(name)))
        assert parse_cron(text).count_times(begin, end, find_timezone(name)) == len(due)
        assert (
            parse_cron(text).list_latest(begin, end, find_timezone(name), most)
            == due[len(due) - most if len(due) > most else 0 :]
        )

    check()


@pytest.mark.parametrize("name", ["Europe/Berlin", "America/New_York", "UTC"])
@settings(max_examples=60, deadline=None)
@given(text=LINES, days=st.sampled_from(["* * *", "*/3 * *", "* */2 *", "* * 1-5", "L * *", "8,29 3,10 0", "1 11 *"]))
def test_where_hours_are_whole_it_is_as_cronsim_says(name: str, text: str, days: str) -> None:
    wanted = f"{text.removesuffix('* * *')}{days}"
    begin = datetime(2026, 3, 1, tzinfo=find_timezone(name))
    due = [one.astimezone(UTC) for one in islice(CronSim(wanted, begin), 150)]
    assert list(islice(parse_cron(wanted).iterate_times(begin, begin + 99_999 * DAY, find_timezone(name)), 150)) == due


def due(text: str, name: str, day: str) -> list[str]:
    """What the clock shows on a day, as often as a line is due there."""
    there = find_timezone(name)
    begin = datetime.fromisoformat(day).replace(tzinfo=there)
    end = datetime.fromisoformat(day).replace(tzinfo=there, hour=23, minute=59)
    found = parse_cron(text).iterate_times(begin - timedelta(seconds=1), end, there)
    return [one.astimezone(there).isoformat()[11:].replace(":00+", "+").replace(":00-", "-") for one in found]


def test_clocks_are_put_forward() -> None:
    assert due("30 2 * * *", "Europe/Berlin", "2026-03-29") == ["03:00+02:00"]
    assert due("0,15,30 2 * * *", "Europe/Berlin", "2026-03-29") == ["03:00+02:00"]
    assert due("0 2,3 * * *", "Europe/Berlin", "2026-03-29") == ["03:00+02:00"]
    assert due("30 2 * * *", "America/New_York", "2026-03-08") == ["03:00-04:00"]
    assert due("15 2 * * *", "Australia/Lord_Howe", "2026-10-04") == ["02:30+11:00"]
    assert due("0 0 * * *", "Africa/Cairo", "2026-04-24") == ["01:00+03:00"]
    # What says how often is not made up for.
    assert due("*/30 2 * * *", "Europe/Berlin", "2026-03-29") == []
    assert due("30 * * * *", "America/New_York", "2026-03-08")[:3] == ["00:30-05:00", "01:30-05:00", "03:30-04:00"]
    assert due("0 */2 * * *", "Australia/Lord_Howe", "2026-10-04")[:2] == ["00:00+10:30", "04:00+11:00"]
    assert due("*/10 3 * * *", "Australia/Lord_Howe", "2026-10-04") == [f"03:{n}0+11:00" for n in range(6)]
    for name, day, minutes in (
        *(("Europe/Berlin", "2026-03-29", 1380), ("America/New_York", "2026-03-08", 1380)),
        ("Australia/Lord_Howe", "2026-10-04", 1410),
    ):
        assert len(due("* * * * *", name, day)) == minutes


def test_clocks_are_put_back() -> None:
    assert due("30 2 * * *", "Europe/Berlin", "2026-10-25") == ["02:30+02:00"]
    assert due("0 2,3 * * *", "Europe/Berlin", "2026-10-25") == ["02:00+02:00", "03:00+01:00"]
    assert due("30 1 * * *", "America/New_York", "2026-11-01") == ["01:30-04:00"]
    assert due("45 1 * * *", "Australia/Lord_Howe", "2026-04-05") == ["01:45+11:00"]
    # What says how often is due both times.
    assert due("*/30 2 * * *", "Europe/Berlin", "2026-10-25") == [
        f"02:{m}+0{o}:00" for o in (2, 1) for m in ("00", "30")
    ]
    assert due("30 * * * *", "America/New_York", "2026-11-01")[1:3] == ["01:30-04:00", "01:30-05:00"]
    assert due("30 * * * *", "Australia/Lord_Howe", "2026-04-05")[1:4] == ["01:30+11:00", "01:30+10:30", "02:30+10:30"]
    for name, day, minutes in (
        *(("Europe/Berlin", "2026-10-25", 1500), ("America/New_York", "2026-11-01", 1500)),
        ("Australia/Lord_Howe", "2026-04-05", 1470),
    ):
        assert len(due("* * * * *", name, day)) == minutes


NOW = datetime(2026, 10, 24, 12, 30, 15, 500_000, tzinfo=UTC)


def first(text: str, after: datetime = NOW, name: str = "UTC") -> str:
    found = parse_cron(text).find_next(after, find_timezone(name))
    assert found is not None
    return f"{found:%Y-%m-%d %H:%M}"


def test_what_a_line_says() -> None:
    assert first("* * * * *") == "2026-10-24 12:31"
    assert first("0 9 * * *") == "2026-10-25 09:00"
    assert first("0 9 * * *", name="Asia/Kolkata") == "2026-10-25 03:30"
    assert first("*/15 9-17 * * MON-FRI") == "2026-10-26 09:00"
    assert first("0 0 L * *") == "2026-10-31 00:00"
    assert first("0 0 * * 5L") == "2026-10-30 00:00"
    assert first("0 0 * feb MON#5") == "2044-02-29 00:00"
    # Both, as one begins with a star; either, as none does.
    assert first("0 0 */7 * SUN") == "2026-11-01 00:00"
    assert first("0 0 13 * FRI") == "2026-10-30 00:00"
    assert {alias: first(alias) for alias in CRON_ALIASES} == {
        "@hourly": "2026-10-24 13:00",
        "@daily": "2026-10-25 00:00",
        "@midnight": "2026-10-25 00:00",
        "@weekly": "2026-10-25 00:00",
        "@monthly": "2026-11-01 00:00",
        "@yearly": "2027-01-01 00:00",
        "@annually": "2027-01-01 00:00",
    }
    assert first(" @Daily\n") == first("@daily")
    on_time = datetime(2026, 10, 25, 9, tzinfo=UTC)
    assert first("0 9 * * *", on_time) == "2026-10-26 09:00"
    assert first("0 9 * * *", on_time - timedelta(microseconds=1)) == "2026-10-25 09:00"


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
def test_what_is_no_line_is_refused(text: str) -> None:
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
def test_any_text_is_a_line_or_refused(text: str) -> None:
    try:
        found = parse_cron(text)
    except DomainError as refused:
        assert refused.code == "invalid_field"
    else:
        after = found.find_next(NOW, find_timezone("Europe/Berlin"))
        assert after is None or after > NOW


def test_a_line_that_cron_takes_may_never_be_due() -> None:
    # The first or the twenty-first, if it is the last Monday of its month.
    assert parse_cron("* * */20 * 1L").find_next(NOW, find_timezone("UTC")) is None
    assert parse_cron("0 0 */20 * 1L").find_next(NOW, find_timezone("Europe/Berlin")) is None


def test_years_of_a_minutely_line_take_no_longer_than_days() -> None:
    often, rare = parse_cron("* * * * *"), parse_cron("* * * 1 *")
    until = datetime(2026, 10, 24, 12, 30, tzinfo=UTC)
    asked = 0

    class Counted(ZoneInfo):
        def utcoffset(self, at):
            nonlocal asked
            asked += 1
            return super().utcoffset(at)

    there = Counted.no_cache("Europe/Berlin")
    begin = until - 3652 * DAY
    assert often.list_latest(begin, until, there, 100) == [until - n * MINUTE for n in reversed(range(100))]
    assert rare.list_latest(begin, until, there, 100)[-1] == datetime(2026, 1, 31, 22, 59, tzinfo=UTC)
    assert often.count_times(begin, until, there) == 3652 * 1440
    assert rare.count_times(begin, until, there) == 10 * 31 * 1440
    assert asked < 200_000


def test_zones() -> None:
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
