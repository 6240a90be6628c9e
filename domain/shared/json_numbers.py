"""Whole numbers as such: models write `5` or `5.0`, to a schema they are the same, and servers often take but one."""

from typing import Any, Final

# Where JavaScript begins to write exponents.
MAX_WHOLE_NUMBER: Final = 1e21


def normalize_whole_numbers(value: Any) -> Any:
    """Return a JSON value in which `5.0` is 5 and `1e20` is 100000000000000000000; larger ones stay as they are."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < MAX_WHOLE_NUMBER else value
    if isinstance(value, dict):
        return {name: normalize_whole_numbers(one) for name, one in value.items()}
    return [normalize_whole_numbers(one) for one in value] if isinstance(value, list) else value
