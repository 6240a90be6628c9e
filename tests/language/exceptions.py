"""List the names that may break a rule, each with its reason. At most 40."""

from typing import Final

EXCEPTIONS: Final[dict[str, str]] = {}
