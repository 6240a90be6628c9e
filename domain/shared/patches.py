"""Read requests that change a part of a resource."""

from typing import Any

import msgspec
from msgspec import UNSET


def collect_sent_fields(patch: msgspec.Struct) -> dict[str, Any]:
    """Return the fields of a request that were sent, by name."""
    return {name: value for name in patch.__struct_fields__ if (value := getattr(patch, name)) is not UNSET}


def set_fields(resource: msgspec.Struct, values: dict[str, Any]) -> None:
    """Set fields of a resource, which is checked afterwards."""
    for name, value in values.items():
        setattr(resource, name, value)
