"""Build the filters of lists from query parameters."""

from typing import Any, TypeVar

import msgspec

from domain.shared.times import read_time_or_none

FilterT = TypeVar("FilterT", bound=msgspec.Struct)


def build_filter(kind: type[FilterT], query: Any, start: str = "since", end: str = "until") -> FilterT:
    """Return the filter: equal in every parameter of the query, from the time `start` on and before `end`.

    Parameters and fields of the filter have the same names. Errors: `invalid_field` for a time.
    """
    values = {name: getattr(query, name) for name in kind.__struct_fields__ if hasattr(query, name)}
    values[start] = read_time_or_none(start, values[start])
    values[end] = read_time_or_none(end, values[end], is_end=True)
    return kind(**values)
