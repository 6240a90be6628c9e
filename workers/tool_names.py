"""The names under which a model calls the tools of a run: unique, fit for every provider, the same in each attempt."""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Final

MAX_NAME: Final = 64
_FITTING: Final = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_NAME}}}")
_UNFIT: Final = re.compile(r"[^A-Za-z0-9_-]+")


def assign_names(tools: Sequence[tuple[str, str]], reserved: Collection[str] = ()) -> list[str]:
    """Return a name for each tool, given as the name it should have and what tells it from all others.

    A name that fits as it stands is kept by the first tool that has it. Any other has its odd characters replaced, and
    where that is no name of its own, a digest of what the tool is: it does not depend on the order of the tools.
    """
    fitting = {wanted for wanted, _ in tools if _FITTING.fullmatch(wanted)} - set(reserved)
    replaced = Counter(_replaced(wanted) for wanted, _ in tools if wanted not in fitting)
    taken: set[str] = set()
    names: list[str] = []
    for wanted, identity in tools:
        name = wanted
        if wanted not in fitting or wanted in taken:
            name = _replaced(wanted)
            alone = replaced[name] == 1 and len(wanted) <= MAX_NAME and name.strip("_-")
            if not alone or name in fitting or name in taken or name in reserved:
                name = _digested(name, identity)
        taken.add(name)
        names.append(name)
    return names


def _replaced(name: str) -> str:
    return _UNFIT.sub("_", name)[:MAX_NAME]


def _digested(name: str, identity: str) -> str:
    digest = hashlib.sha256(identity.encode("utf-8", "replace")).hexdigest()[:8]
    return f"{name[: MAX_NAME - 9].rstrip('_-')}_{digest}"
