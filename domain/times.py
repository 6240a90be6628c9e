"""Times that callers send."""

from datetime import UTC, datetime

from domain.errors import invalid


def utc(field: str, at: datetime) -> datetime:
    """A time in UTC. Errors: `invalid_field` for one without an offset, or beyond the years 1 to 9999."""
    if at.tzinfo is None:
        raise invalid(field, "must name its offset from UTC, for example 2030-01-01T00:00:00Z.")
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise invalid(field, "lies outside the years 1 to 9999.") from None
