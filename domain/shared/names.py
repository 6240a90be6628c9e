"""Names: what can stand in a path and in a log line, and the slugs by which models and configurations know things.

A name may be of any script. A slug is of a to z, digits and `_`: what is left of the name, or made up where that is
nothing, or what another name has left already. Two names are alike if only case, spaces, `_`, `-`, `.` and characters
that cannot be seen tell them apart.
"""

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Final

from msgspec import Meta

from domain.shared import ids
from domain.shared.errors import DomainError, invalid

NAME: Final = re.compile(r"[^\x00-\x1f\x7f/\\:]{1,128}")
# Of models, as LiteLLM and Ollama write them: `openrouter/deepseek/deepseek-chat`, `llama3.1:8b`.
MODEL_NAME: Final = re.compile(r"[^\x00-\x1f\x7f]{1,256}")
# Keys of crews and ids of steps, which stand in expressions, in places of errors and in results.
KEY: Final = re.compile(r"(?!\s)[^\x00-\x1f\x7f-\x9f\u2028\u2029\[\]]{1,64}(?<!\s)")
KEY_RULE: Final = "must be 1 to 64 characters without line breaks, control characters, [ and ], or spaces around it."
_OTHERS: Final = re.compile(r"[^a-z0-9]+")
_JOINTS: Final = re.compile(r"[\s_.-]+")
MAX_SLUG: Final = 64
# Hexadecimal digits of a slug that is made up.
_DIGITS: Final = 8

Name = Annotated[str, Meta(min_length=1, max_length=128)]


def checked(
    name: str,
    prefix: str,
    reserved: frozenset[str] = frozenset(),
    pattern: re.Pattern[str] = NAME,
    held: str = "slashes, colons or control characters",
) -> str:
    """A name that can stand in a path. Errors: `invalid_field` for one that cannot, or that looks like an id.

    `held` says what `pattern` does not let a name hold.
    """
    if not pattern.fullmatch(name) or name.strip() != name or ids.decode(prefix, name) is not None:
        raise invalid(
            "name",
            f"must not begin or end with a space, hold {held}, or look like an id.",
        )
    if name in {".", ".."} | reserved:
        raise invalid("name", f"{name!r} means something else in a path.")
    return name


def slug(name: str) -> str:
    """`OpenAI API Key` → `openai_api_key`: lower case, accents gone, a run of other characters is one `_`.

    At most `MAX_SLUG` characters; a slug is its own slug. Empty where nothing is left of the name.
    """
    return _whole_slug(name)[:MAX_SLUG].strip("_")


def _whole_slug(name: str) -> str:
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))
    return _OTHERS.sub("_", plain.lower()).strip("_")


def fold_name(name: str) -> str:
    """Return what two names that are alike have in common."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    shown = "".join(letter for letter in folded if unicodedata.category(letter) != "Cf")
    return _JOINTS.sub("_", shown).strip("_") or shown or folded


def is_meant(reference: str, name: str) -> bool:
    """Whether somebody means a name by a reference: one that is alike, or its slug."""
    folded = fold_name(reference)
    return folded == fold_name(name) or (folded != "" and folded == slug(name))


def slug_candidates(kind: str, name: str) -> list[str]:
    """Return the slugs that a name can have, the plainest first; the last is nobody else's, as far as names differ.

    `kind` begins a slug of which nothing else is left: `tool_3f9a0c51`.
    """
    plain = _whole_slug(name)
    made_up = hashlib.sha256(fold_name(name).encode()).hexdigest()[:_DIGITS]
    begin = plain[: MAX_SLUG - _DIGITS - 1].strip("_") or kind
    return ([plain] if 0 < len(plain) <= MAX_SLUG else []) + [f"{begin}_{made_up}"]


def choose_slug(kind: str, name: str, current: str, holders: Mapping[str, str]) -> str:
    """Return the slug of a name: the `current` one as long as it can be, else the first that is free.

    `holders` are the names of others by the slugs that they have. Errors: `conflict` for a name that is alike.
    """
    candidates = slug_candidates(kind, name)
    there = [holders[one] for one in candidates if one in holders]
    alike = next((other for other in there if fold_name(other) == fold_name(name)), None)
    if alike is not None:
        raise taken(kind, name, alike)
    if current and current in (*candidates, slug(name)):
        return current
    free = next((one for one in candidates if one not in holders), None)
    if free is None:
        raise taken(kind, name)
    return free


def taken(kind: str, name: str, other: str | None = None) -> DomainError:
    """The refusal of a name that something else in the tenant has, or has all but case and spaces."""
    error = invalid("name", "is taken in this tenant.").errors
    if other in (None, name):
        return DomainError("conflict", f"There is a {kind} named {name!r} already.", error)
    told = f"There is a {kind} named {other!r} already; only case, spaces, _, - or . tell it from {name!r}."
    return DomainError("conflict", told, error)
