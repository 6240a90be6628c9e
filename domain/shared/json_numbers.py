"""Write whole numbers without a fraction: `5.0` and `5` are equal in JSON Schema, but many servers take only `5`."""

from typing import Any, Final

# JavaScript writes exponents from here on.
MAX_WHOLE_NUMBER: Final = 1e21


def normalize_whole_numbers(value: Any) -> Any:
    """Return a JSON value in which `5.0` is 5 and `1e20` is 100000000000000000000; larger ones stay as they are."""
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < MAX_WHOLE_NUMBER else value
    if isinstance(value, dict):
        return {name: normalize_whole_numbers(item) for name, item in value.items()}
    return [normalize_whole_numbers(item) for item in value] if isinstance(value, list) else value
