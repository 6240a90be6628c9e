"""Prepare cron lines for cronsim: expand ranges that wrap around, and explain syntax errors."""

import re
from typing import Final

import msgspec

_DAY_NUMBERS: Final = {"SUN": 0, "MON": 1, "TUE": 2, "WED": 3, "THU": 4, "FRI": 5, "SAT": 6}
_MONTH_NUMBERS: Final = {
    "JAN": 1,
    "FEB": 2,
    "MAR": 3,
    "APR": 4,
    "MAY": 5,
    "JUN": 6,
    "JUL": 7,
    "AUG": 8,
    "SEP": 9,
    "OCT": 10,
    "NOV": 11,
    "DEC": 12,
}
_RANGE_ITEM: Final = re.compile(r"([A-Za-z0-9]{1,9})-([A-Za-z0-9]{1,9})(?:/([0-9]{1,4}))?")
_STEP_ITEM: Final = re.compile(r"(.*)/([0-9]{1,9})")
_SECOND_SUNDAY: Final = 7
_MAX_DAY_OF_MONTH: Final = 31


class CronField(msgspec.Struct, frozen=True):
    """Describe one of the five fields: its name, its smallest and largest number, and names for numbers."""

    name: str
    minimum: int
    maximum: int
    names: dict[str, int] = {}

    @property
    def size(self) -> int:
        """The number of different values: Sunday is both 0 and 7."""
        return self.maximum - self.minimum + (0 if self.maximum == _SECOND_SUNDAY else 1)

    def parse_number(self, text: str) -> int | None:
        """Return the number of a name or of digits; None for a value outside this field."""
        value = int(text) if text.isdecimal() and text.isascii() else self.names.get(text.upper())
        return value if value is not None and self.minimum <= value <= self.maximum else None


CRON_FIELDS: Final = (
    CronField("minute", 0, 59),
    CronField("hour", 0, 23),
    CronField("day of month", 1, _MAX_DAY_OF_MONTH),
    CronField("month", 1, 12, _MONTH_NUMBERS),
    CronField("day of week", 0, _SECOND_SUNDAY, _DAY_NUMBERS),
)


def expand_ranges(text: str) -> str:
    """Return a line of five fields with wrapping ranges as lists: `FRI-MON` is 5,6,0,1, and `SAT-SUN` 6,0."""
    parts = text.split()
    return " ".join(
        ",".join(_expand_item(field, item) for item in part.split(","))
        for field, part in zip(CRON_FIELDS, parts, strict=True)
    )


def _expand_item(field: CronField, item: str) -> str:
    if field.names is _DAY_NUMBERS and (day := field.names.get(item[:-1].upper())) is not None and item[-1] in "Ll":
        return f"{day}L"
    match = _RANGE_ITEM.fullmatch(item)
    first, last = (field.parse_number(match[1]), field.parse_number(match[2])) if match is not None else (None, None)
    if match is None or first is None or last is None or first <= last:
        return item
    step = int(match[3] or 1) or 1
    numbers = (
        (value - field.minimum) % field.size + field.minimum for value in range(first, last + field.size + 1, step)
    )
    return ",".join(str(number) for number in dict.fromkeys(numbers))


def find_long_step(text: str) -> str | None:
    """Explain a step that is longer than its field, and so is due only once per round; None without one."""
    for field, part in zip(CRON_FIELDS, text.split(), strict=True):
        for item in part.split(","):
            match = _STEP_ITEM.fullmatch(item)
            if match is not None and int(match[2]) > field.size:
                return (
                    f"{item!r} is due once per round of the {field.name}, not every {match[2]}: a step is "
                    f"at most {field.size} there. List the intended times."
                )
    return None


def explain_syntax_error(text: str) -> str:
    """Explain what is wrong with a line, and what to send instead."""
    parts = text.split()
    if len(parts) in (6, 7):
        has_year = len(parts) == 6 and re.fullmatch(r"[0-9]{4}", parts[-1]) is not None
        rest, left_out = (parts[:5], "year") if has_year else (parts[1:6], "seconds")
        return (
            f"has {len(parts)} fields: seconds and years are not supported. Send minute, hour, day of month, month "
            f"and day of week; without its {left_out} this is {' '.join(rest)!r}."
        )
    if len(parts) != len(CRON_FIELDS):
        count = "1 field" if len(parts) == 1 else f"{len(parts)} fields"
        return f"has {count}; send minute, hour, day of month, month and day of week."
    for field, part in zip(CRON_FIELDS, parts, strict=True):
        for item in part.split(","):
            message = _explain_item(field, item)
            if message is not None:
                return f"its {field.name}: {message}"
    return "is never due: none of its months has that day."


def _explain_item(field: CronField, item: str) -> str | None:
    """Return what is wrong with one item of a list; None if the error is elsewhere."""
    span, slash, step = item.partition("/")
    if item == "":
        return "an item of the list is missing."
    if item == "?":
        return "'?' is not supported; write *."
    if re.fullmatch(r"(?i)[0-9]+W|W", item):
        return f"{item!r} (the weekday next to a day) is not supported; LW is the last weekday of the month."
    if re.fullmatch(r"(?i)L-[0-9]+W?", item):
        return f"{item!r} (days before the end of the month) is not supported; L is its last day."
    if item.upper() == "H" or item.upper().startswith(("H(", "H/")):
        return f"{item!r} is not supported; write a number."
    if slash and not (step.isdecimal() and int(step) > 0):
        return f"{item!r}: a step is a whole number from 1."
    if "#" in item:
        day, _, week = item.partition("#")
        is_valid = (
            field.parse_number(day) is not None and week in {"1", "2", "3", "4", "5"} and field.names is _DAY_NUMBERS
        )
        return (
            None if is_valid else f"{item!r} is not supported; MON#2, the second Monday, is for the day of week only."
        )
    ends = [] if span == "*" else span.split("-")
    for end in ends:
        if field.parse_number(end) is None and not _is_last(field, end):
            return f"{end!r} is unknown; {_describe_values(field)}."
    return f"{item!r} is not a range." if len(ends) > 2 else None


def _is_last(field: CronField, text: str) -> bool:
    """Tell whether an item means the last day or weekday of a month, or the last Friday."""
    if field.names is _DAY_NUMBERS:
        return text[-1:].upper() == "L" and field.parse_number(text[:-1]) is not None
    return field.maximum == _MAX_DAY_OF_MONTH and text.upper() in ("L", "LW")


def _describe_values(field: CronField) -> str:
    named_values = f", or {', '.join(field.names)}" if field.names else ""
    return f"allowed are {field.minimum} to {field.maximum}{named_values}"
