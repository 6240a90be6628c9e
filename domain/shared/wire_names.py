"""Assign the names under which outside systems see things: unique, of few ASCII characters, and reproducible."""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Final

MAX_WIRE_NAME: Final = 64
TOOL_CHARACTERS: Final = "A-Za-z0-9_-"
PROPERTY_CHARACTERS: Final = "A-Za-z0-9_.-"


def is_wire_name(name: str, characters: str) -> bool:
    """Return whether a name can be sent unchanged."""
    return re.fullmatch(rf"[{characters}]{{1,{MAX_WIRE_NAME}}}", name) is not None


def assign_wire_names(
    items: Sequence[tuple[str, str]], reserved: Collection[str] = (), characters: str = TOOL_CHARACTERS
) -> list[str]:
    """Return a name for each item of `items`, pairs of a preferred name and a unique identity.

    The first item with a valid name keeps it. Any other gets its invalid characters replaced, and where the result is
    not unique, a digest of its identity: it does not depend on the order of the items.
    """
    fitting = {name for name, _ in items if is_wire_name(name, characters)} - set(reserved)
    replaced = Counter(_replace_invalid(name, characters) for name, _ in items if name not in fitting)
    assigned: set[str] = set()
    names: list[str] = []
    for name, identity in items:
        chosen = name
        if name not in fitting or name in assigned:
            chosen = _replace_invalid(name, characters)
            alone = chosen and replaced[chosen] == 1 and len(name) <= MAX_WIRE_NAME
            if not alone or chosen in fitting or chosen in assigned or chosen in reserved:
                chosen = _add_digest(chosen, identity)
        assigned.add(chosen)
        names.append(chosen)
    return names


def _replace_invalid(name: str, characters: str) -> str:
    return re.sub(rf"[^{characters}]+", "_", name).strip("_")[:MAX_WIRE_NAME]


def _add_digest(name: str, identity: str) -> str:
    digest = hashlib.sha256(identity.encode("utf-8", "replace")).hexdigest()[:8]
    return f"{name[: MAX_WIRE_NAME - 9].rstrip('_-') or 'x'}_{digest}"
