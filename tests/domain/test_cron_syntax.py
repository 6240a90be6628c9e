"""Test the syntax of cron lines: ranges past the end, steps that are too long, and errors for unknown words."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from domain.schedules import cron
from domain.shared.errors import DomainError

MONDAY = datetime(2030, 1, 7, tzinfo=UTC)


def list_due_times(line: str, count: int = 8) -> list[datetime]:
    due_times, moment = [], MONDAY
    for _ in range(count):
        moment = cron.parse_cron(line).find_next(moment, ZoneInfo("UTC")) or MONDAY
        due_times.append(moment)
    return due_times


@pytest.mark.parametrize(
    ("line", "same"),
    [
        ("0 9 * * MON-SUN", "0 9 * * *"),
        ("0 9 * * SAT-SUN", "0 9 * * 6-7"),
        ("0 9 * * sat-0", "0 9 * * 6,0"),
        ("0 9 * * THU-SUN/2", "0 9 * * 4,6"),
        ("0 9 * * FRI-MON", "0 9 * * FRI,SAT,SUN,MON"),
        ("0 9 * * FRI-MON/2", "0 9 * * 5,0"),
        ("0 9 * * 7-2", "0 9 * * 0,1,2"),
        ("0 9 * * 3-3", "0 9 * * 3"),
        ("0 23-1 * * *", "0 23,0,1 * * *"),
        ("50-10/5 9 * * *", "50,55,0,5,10 9 * * *"),
        ("0 9 28-3 * *", "0 9 28,29,30,31,1,2,3 * *"),
        ("0 9 1 NOV-FEB *", "0 9 1 11,12,1,2 *"),
        ("0 9 * * MON,FRI-SUN", "0 9 * * 1,5,6,0"),
        ("0 9 * * FRIL", "0 9 * * 5L"),
        ("0 9 * * MON,sunl", "0 9 * * 1,0L"),
        ("@DAILY", "0 0 * * *"),
    ],
)
def test_ranges_wrap_around_the_end(line: str, same: str) -> None:
    assert list_due_times(line) == list_due_times(same)


@pytest.mark.parametrize(
    ("line", "expected_words"),
    [
        ("0 9 ? * MON", ("day of month", "'?'", "write *")),
        ("0 9 15W * *", ("'15W'", "weekday")),
        ("0 9 L-3 * *", ("'L-3'", "last day")),
        ("0 0 9 * * *", ("6 fields", "seconds", "'0 9 * * *'")),
        ("0 0 9 * * * 2030", ("7 fields", "years")),
        ("0 9 * *", ("4 fields", "day of week")),
        ("9:00", ("1 field;",)),
        ("0 9 * * 1 2030", ("6 fields", "without its year this is '0 9 * * 1'")),
        ("@reboot", ("'@reboot'", "@daily")),
        ("@every 5m", ("@every", "@hourly")),
        ("H 9 * * *", ("minute", "'H'")),
        ("0 9 * * MONDAY", ("day of week", "'MONDAY'", "MON")),
        ("0 9 * MAI *", ("month", "'MAI'", "MAY")),
        ("61 9 * * *", ("minute", "'61'", "0 to 59")),
        ("0 24 * * *", ("hour", "'24'", "0 to 23")),
        ("0 9 * * 8", ("day of week", "'8'")),
        ("0 9 * * 1-8", ("day of week", "'8'")),
        ("*/0 * * * *", ("minute", "'*/0'", "from 1")),
        ("*/x * * * *", ("minute", "'*/x'")),
        ("0 9 * * MON#6", ("'MON#6'", "MON#2")),
        ("0,,5 9 * * *", ("minute", "missing")),
        ("1-2-3 9 * * *", ("minute", "'1-2-3'")),
        ("0 9 31 2 *", ("never due",)),
        ("٣ 9 * * *", ("minute", "'٣'")),
    ],
)
def test_unsupported_syntax_is_named_with_an_alternative(line: str, expected_words: tuple[str, ...]) -> None:
    with pytest.raises(DomainError) as caught:
        cron.parse_cron(line)
    (error,) = caught.value.errors
    assert error.field == "cron_expression"
    assert all(word in error.message for word in expected_words), error.message


@pytest.mark.parametrize(
    "line", ["*/90 * * * *", "0 */36 * * *", "0 9 */40 * *", "0 9 1 */13 *", "0 9 * * */8", "0-30/70 * * * *"]
)
def test_steps_longer_than_their_field_are_refused_for_new_schedules(line: str) -> None:
    # Schedules stored before this rule keep working.
    assert cron.parse_cron(line)
    with pytest.raises(DomainError, match="at most"):
        cron.refuse_long_steps(line)


@pytest.mark.parametrize(
    "line", ["*/60 * * * *", "*/45 * * * *", "0 */24 * * *", "0 9 L * 5L", "0 9 LW * MON#2", "@weekly"]
)
def test_usual_lines_are_accepted_for_new_schedules(line: str) -> None:
    assert cron.parse_cron(line)
    cron.refuse_long_steps(line)
