"""Name tools: each by the slug of what it stands for, told apart where two have the same."""

import functools
from collections.abc import Iterable

from domain.mcp.schema import ExposedTarget
from domain.shared.names import MAX_SLUG_CHARACTERS, make_slug

_make_cached_slug = functools.lru_cache(maxsize=16_384)(make_slug)
# Letters of an id that tell two tools with the same slug apart. The last ones of a UUIDv7 are random.
_SHORT_TAIL = 6


def assign_tool_names(targets: Iterable[ExposedTarget]) -> dict[str, ExposedTarget]:
    """Return targets by the names of their tools.

    A name is a slug of at most 64 letters. Of several with the same slug the first keeps it, and the others end in
    letters of their ids, so that a target which comes later changes no name.
    """
    named: dict[str, ExposedTarget] = {}
    for target in targets:
        slug = _make_cached_slug(target.name)
        tail = target.id.rpartition("_")[2]
        candidates = [slug] if slug else []
        for length in (_SHORT_TAIL, len(tail)):
            beginning = (slug or target.kind)[: MAX_SLUG_CHARACTERS - length - 1].rstrip("_")
            candidates.append(f"{beginning}_{tail[-length:]}")
        # The whole id is unique unless a name was made up to equal it, and then numbers go on.
        number = 2
        while candidates[0] in named:
            if len(candidates) == 1:
                candidates.append(f"{target.kind}_{tail}_{number}")
                number += 1
            candidates.pop(0)
        named[candidates[0]] = target
    return named
