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
from domain.shared.errors import Conflict, FieldError, InvalidField

NAME_PATTERN: Final = re.compile(r"[^\x00-\x1f\x7f/\\:]{1,128}")
# Of models, as LiteLLM and Ollama write them: `openrouter/deepseek/deepseek-chat`, `llama3.1:8b`.
MODEL_NAME_PATTERN: Final = re.compile(r"[^\x00-\x1f\x7f]{1,256}")
# Keys of crews and ids of steps, which stand in expressions, in places of errors and in results.
KEY_PATTERN: Final = re.compile(r"(?!\s)[^\x00-\x1f\x7f-\x9f\u2028\u2029\[\]]{1,64}(?<!\s)")
KEY_RULE: Final = "must be 1 to 64 characters without line breaks, control characters, [ and ], or spaces around it."
_OTHERS: Final = re.compile(r"[^a-z0-9]+")
_JOINTS: Final = re.compile(r"[\s_.-]+")
MAX_SLUG_CHARACTERS: Final = 64
# Hexadecimal digits of a slug that is made up.
_DIGITS: Final = 8

Name = Annotated[str, Meta(min_length=1, max_length=128)]


def check_name(
    name: str,
    prefix: str,
    reserved: frozenset[str] = frozenset(),
    pattern: re.Pattern[str] = NAME_PATTERN,
    forbidden: str = "slashes, colons or control characters",
) -> str:
    """A name that can stand in a path. Errors: `invalid_field` for one that cannot, or that looks like an id.

    `held` says what `pattern` does not let a name hold.
    """
    if not pattern.fullmatch(name) or name.strip() != name or ids.decode_id(prefix, name) is not None:
        raise InvalidField(
            "name",
            f"must not begin or end with a space, hold {forbidden}, or look like an id.",
        )
    if name in {".", ".."} | reserved:
        raise InvalidField("name", f"{name!r} means something else in a path.")
    return name


def make_slug(name: str) -> str:
    """`OpenAI API Key` → `openai_api_key`: lower case, accents gone, a run of other characters is one `_`.

    At most `MAX_SLUG` characters; a slug is its own slug. Empty where nothing is left of the name.
    """
    return _whole_slug(name)[:MAX_SLUG_CHARACTERS].strip("_")


def _whole_slug(name: str) -> str:
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))
    return _OTHERS.sub("_", plain.lower()).strip("_")


def fold_name(name: str) -> str:
    """Return what two names that are alike have in common."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    shown = "".join(letter for letter in folded if unicodedata.category(letter) != "Cf")
    return _JOINTS.sub("_", shown).strip("_") or shown or folded


def is_reference_to(reference: str, name: str) -> bool:
    """Whether somebody means a name by a reference: one that is alike, or its slug."""
    folded = fold_name(reference)
    return folded == fold_name(name) or (folded != "" and folded == make_slug(name))


def list_slug_candidates(kind: str, name: str) -> list[str]:
    """Return the slugs that a name can have, the plainest first; the last is nobody else's, as far as names differ.

    `kind` begins a slug of which nothing else is left: `tool_3f9a0c51`.
    """
    plain = _whole_slug(name)
    made_up = hashlib.sha256(fold_name(name).encode()).hexdigest()[:_DIGITS]
    begin = plain[: MAX_SLUG_CHARACTERS - _DIGITS - 1].strip("_") or kind
    return ([plain] if 0 < len(plain) <= MAX_SLUG_CHARACTERS else []) + [f"{begin}_{made_up}"]


def choose_slug(kind: str, name: str, current: str, holders: Mapping[str, str]) -> str:
    """Return the slug of a name: the `current` one as long as it can be, else the first that is free.

    `holders` are the names of others by the slugs that they have. Errors: `conflict` for a name that is alike.
    """
    candidates = list_slug_candidates(kind, name)
    there = [holders[one] for one in candidates if one in holders]
    alike = next((other for other in there if fold_name(other) == fold_name(name)), None)
    if alike is not None:
        raise NameTaken(kind, name, alike)
    if current and current in (*candidates, make_slug(name)):
        return current
    free = next((one for one in candidates if one not in holders), None)
    if free is None:
        raise NameTaken(kind, name)
    return free


class NameTaken(Conflict):
    """Report a name that another resource of the tenant has, or has but for case, spaces and punctuation."""

    def __init__(self, kind: str, name: str, existing_name: str | None = None) -> None:
        detail = f"A {kind} named {name!r} already exists."
        if existing_name not in (None, name):
            detail = (
                f"A {kind} named {existing_name!r} already exists; it differs from {name!r} only in case, spaces, "
                "_, - or ."
            )
        super().__init__(detail, errors=[FieldError(field="name", message="is already taken in this tenant.")])
