"""Names as others take them: unique, of a few ASCII characters, the same whenever they are made."""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Final

MAX_WIRE_NAME: Final = 64
TOOL_CHARACTERS: Final = "A-Za-z0-9_-"
PROPERTY_CHARACTERS: Final = "A-Za-z0-9_.-"


def is_wire_name(name: str, characters: str) -> bool:
    """Return whether a name is one to send as it stands."""
    return re.fullmatch(rf"[{characters}]{{1,{MAX_WIRE_NAME}}}", name) is not None


def assign_wire_names(
    wanted: Sequence[tuple[str, str]], reserved: Collection[str] = (), characters: str = TOOL_CHARACTERS
) -> list[str]:
    """Return a name for each thing, given as the name it should have and what tells it from all others.

    A name that fits as it stands is kept by the first thing that has it. Any other has its odd characters replaced, and
    where that is no name of its own, a digest of what the thing is: it does not depend on the order of the things.
    """
    fitting = {name for name, _ in wanted if is_wire_name(name, characters)} - set(reserved)
    replaced = Counter(_replace_odd(name, characters) for name, _ in wanted if name not in fitting)
    taken: set[str] = set()
    names: list[str] = []
    for name, identity in wanted:
        chosen = name
        if name not in fitting or name in taken:
            chosen = _replace_odd(name, characters)
            alone = chosen and replaced[chosen] == 1 and len(name) <= MAX_WIRE_NAME
            if not alone or chosen in fitting or chosen in taken or chosen in reserved:
                chosen = _add_digest(chosen, identity)
        taken.add(chosen)
        names.append(chosen)
    return names


def _replace_odd(name: str, characters: str) -> str:
    return re.sub(rf"[^{characters}]+", "_", name).strip("_")[:MAX_WIRE_NAME]


def _add_digest(name: str, identity: str) -> str:
    digest = hashlib.sha256(identity.encode("utf-8", "replace")).hexdigest()[:8]
    return f"{name[: MAX_WIRE_NAME - 9].rstrip('_-') or 'x'}_{digest}"
