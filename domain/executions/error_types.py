"""Name the kind of an error that ended an execution."""

import re
import unicodedata
from typing import Final

MAX_ERROR_TYPE_CHARACTERS: Final = 200
# Error types of the platform are lower-case words with underscores, or one of these.
_PLATFORM_ERROR_TYPES: Final = frozenset(
    {"timeout", "crashed", "cancelled", "expired", "unavailable", "malformed", "refused", "unauthorized", "rejected"}
)
_PLATFORM_PATTERN: Final = re.compile(r"[a-z0-9]+(_[a-z0-9]+)+")


def error_type_from_exception(name: str) -> str:
    """Return the `error_type` for the class name of an exception that an agent raised.

    Error types of the platform stay the platform's: `timeout` becomes `agent.timeout`. A name that is no identifier
    becomes `Exception`.
    """
    plain = unicodedata.normalize("NFKC", name[:MAX_ERROR_TYPE_CHARACTERS])[:MAX_ERROR_TYPE_CHARACTERS]
    if not all(part.isidentifier() for part in plain.split(".")):
        return "Exception"
    return f"agent.{plain}" if is_platform_error_type(plain) else plain


def is_platform_error_type(error_type: str) -> bool:
    """Return whether an `error_type` is one of the platform, and not the class of an exception."""
    return error_type in _PLATFORM_ERROR_TYPES or _PLATFORM_PATTERN.fullmatch(error_type) is not None
