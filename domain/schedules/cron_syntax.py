"""What a cron line says, before cronsim reads it: ranges that go past the end, and what to say of one that is none."""

import re
from typing import Final

import msgspec

_DAYS: Final = {"SUN": 0, "MON": 1, "TUE": 2, "WED": 3, "THU": 4, "FRI": 5, "SAT": 6}
_MONTHS: Final = {
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
_RANGE: Final = re.compile(r"([A-Za-z0-9]{1,9})-([A-Za-z0-9]{1,9})(?:/([0-9]{1,4}))?")
_STEP: Final = re.compile(r"(.*)/([0-9]{1,9})")
_SUNDAY: Final = 7
_LONGEST_MONTH: Final = 31


class CronField(msgspec.Struct, frozen=True):
    """One of the five fields: its name, the least and the greatest number in it, and names for numbers."""

    name: str
    minimum: int
    maximum: int
    names: dict[str, int] = {}

    @property
    def size(self) -> int:
        """How many there are until it begins anew: Sunday is 0 and 7."""
        return self.maximum - self.minimum + (0 if self.maximum == _SUNDAY else 1)

    def parse_number(self, text: str) -> int | None:
        """Return the number that a name or digits stand for, None if that is none of this field."""
        value = int(text) if text.isdecimal() and text.isascii() else self.names.get(text.upper())
        return value if value is not None and self.minimum <= value <= self.maximum else None


CRON_FIELDS: Final = (
    CronField("minute", 0, 59),
    CronField("hour", 0, 23),
    CronField("day of month", 1, _LONGEST_MONTH),
    CronField("month", 1, 12, _MONTHS),
    CronField("day of week", 0, _SUNDAY, _DAYS),
)


def unroll_ranges(text: str) -> str:
    """Return a line of five fields whose ranges past the end are lists: `FRI-MON` is 5,6,0,1, and `SAT-SUN` 6,0."""
    parts = text.split()
    return " ".join(
        ",".join(_unrolled(field, item) for item in part.split(","))
        for field, part in zip(CRON_FIELDS, parts, strict=True)
    )


def _unrolled(field: CronField, item: str) -> str:
    if field.names is _DAYS and (day := field.names.get(item[:-1].upper())) is not None and item[-1] in "Ll":
        return f"{day}L"
    found = _RANGE.fullmatch(item)
    first, last = (field.parse_number(found[1]), field.parse_number(found[2])) if found is not None else (None, None)
    if found is None or first is None or last is None or first <= last:
        return item
    step = int(found[3] or 1) or 1
    numbers = ((one - field.minimum) % field.size + field.minimum for one in range(first, last + field.size + 1, step))
    return ",".join(str(one) for one in dict.fromkeys(numbers))


def find_long_step(text: str) -> str | None:
    """Say which step is longer than its field, and so is due once each time round; None if none is."""
    for field, part in zip(CRON_FIELDS, text.split(), strict=True):
        for item in part.split(","):
            found = _STEP.fullmatch(item)
            if found is not None and int(found[2]) > field.size:
                return (
                    f"{item!r} is due once each time the {field.name} begins anew, not every {found[2]}: a step is "
                    f"at most {field.size} there. List the times that are meant."
                )
    return None


def explain_syntax_error(text: str) -> str:
    """Say what of a line is not known, and what can be written instead."""
    parts = text.split()
    if len(parts) in (6, 7):
        has_year = len(parts) == 6 and re.fullmatch(r"[0-9]{4}", parts[-1]) is not None
        rest, left_out = (parts[:5], "year") if has_year else (parts[1:6], "seconds")
        return (
            f"has {len(parts)} fields: seconds and years are not known here. Send minute, hour, day of month, month "
            f"and day of week; without its {left_out} this is {' '.join(rest)!r}."
        )
    if len(parts) != len(CRON_FIELDS):
        count = "1 field" if len(parts) == 1 else f"{len(parts)} fields"
        return f"has {count}; send minute, hour, day of month, month and day of week."
    for field, part in zip(CRON_FIELDS, parts, strict=True):
        for item in part.split(","):
            why = _explained(field, item)
            if why is not None:
                return f"its {field.name}: {why}"
    return "it is never due: no month that is named has such a day."


def _explained(field: CronField, item: str) -> str | None:
    """What is wrong with one item of a list; None if that is not known."""
    span, slash, step = item.partition("/")
    if item == "":
        return "an item of the list is missing."
    if item == "?":
        return "'?' is not known here; write *."
    if re.fullmatch(r"(?i)[0-9]+W|W", item):
        return f"{item!r} (the weekday next to a day) is not known here; LW is the last weekday of the month."
    if re.fullmatch(r"(?i)L-[0-9]+W?", item):
        return f"{item!r} (days before the end of the month) is not known here; L is its last day."
    if item.upper() == "H" or item.upper().startswith(("H(", "H/")):
        return f"{item!r} is not known here; write a number."
    if slash and not (step.isdecimal() and int(step) > 0):
        return f"{item!r}: a step is a whole number from 1."
    if "#" in item:
        day, _, week = item.partition("#")
        known = field.parse_number(day) is not None and week in {"1", "2", "3", "4", "5"} and field.names is _DAYS
        return None if known else f"{item!r} is not known here; MON#2, the second Monday, is for the day of week alone."
    ends = [] if span == "*" else span.split("-")
    for one in ends:
        if field.parse_number(one) is None and not _is_last(field, one):
            return f"{one!r} is not known; {_known(field)}."
    return f"{item!r} is not a range." if len(ends) > 2 else None


def _is_last(field: CronField, text: str) -> bool:
    """Whether it is the last day, or the last weekday, of a month, or the last Friday."""
    if field.names is _DAYS:
        return text[-1:].upper() == "L" and field.parse_number(text[:-1]) is not None
    return field.maximum == _LONGEST_MONTH and text.upper() in ("L", "LW")


def _known(field: CronField) -> str:
    named = f", or {', '.join(field.names)}" if field.names else ""
    return f"there are {field.minimum} to {field.maximum}{named}"
