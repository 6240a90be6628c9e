"""Times that callers send."""

from datetime import UTC, datetime, timedelta
from typing import Final

from domain.errors import invalid

# Records of an earlier time, or of more than a day ahead, come from a clock that is wrong.
OLDEST: Final = datetime(2000, 1, 1, tzinfo=UTC)
AHEAD: Final = timedelta(days=1)


def utc(field: str, at: datetime) -> datetime:
    """A time in UTC. Errors: `invalid_field` for one without an offset, or beyond the years 1 to 9999."""
    if at.tzinfo is None:
        raise invalid(field, "must name its offset from UTC, for example 2030-01-01T00:00:00Z.")
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise invalid(field, "lies outside the years 1 to 9999.") from None


def assumed(field: str, at: datetime) -> datetime:
    """A time in UTC, which one without an offset is in. Errors: `invalid_field` beyond the years 1 to 9999."""
    return utc(field, at if at.tzinfo is not None else at.replace(tzinfo=UTC))


def moment(field: str, text: str | None) -> datetime | None:
    """A date (its first moment) or a time, in UTC unless it says otherwise. Errors: `invalid_field`."""
    if text is None:
        return None
    try:
        return assumed(field, datetime.fromisoformat(text))
    except ValueError:
        raise invalid(field, "must be a date or a time, for example 2030-01-01 or 2030-01-01T00:00:00Z.") from None


def recorded(field: str, at: datetime, now: datetime) -> datetime:
    """When a record says it was made, in UTC; without an offset it is UTC.

    Errors: `invalid_field` for a time before the year 2000, or more than a day ahead of `now`.
    """
    made = assumed(field, at)
    if not OLDEST <= made <= now + AHEAD:
        raise invalid(field, "must lie between the year 2000 and tomorrow.")
    return made
