"""Check names, and derive the slugs by which models and configurations refer to resources.

A name may be of any script. A slug consists of a to z, digits and `_`: the name in that alphabet, with a hash where
nothing is left of the name or another name has that slug. Two names are alike if they differ only in case, spaces, `_`,
`-`, `.` and invisible characters.
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
# Names of models, as LiteLLM and Ollama write them: `openrouter/deepseek/deepseek-chat`, `llama3.1:8b`.
MODEL_NAME_PATTERN: Final = re.compile(r"[^\x00-\x1f\x7f]{1,256}")
# Keys of crews and ids of steps, which appear in expressions, in paths of errors and in results.
KEY_PATTERN: Final = re.compile(r"(?!\s)[^\x00-\x1f\x7f-\x9f\u2028\u2029\[\]]{1,64}(?<!\s)")
KEY_RULE: Final = "must be 1 to 64 characters, without line breaks, control characters, [ and ], or surrounding spaces."
# Names of states, which may be ids of other systems: `slack:C024BE91L`, an e-mail address.
_STATE_NAME_PATTERN: Final = re.compile(r"(?!\s)[^\x00-\x1f\x7f/\\]{1,128}(?<!\s)")
_NON_SLUG_CHARACTERS: Final = re.compile(r"[^a-z0-9]+")
_SEPARATOR_PATTERN: Final = re.compile(r"[\s_.-]+")
MAX_SLUG_CHARACTERS: Final = 64
# Hexadecimal digits of the hash in a slug.
_HASH_DIGITS: Final = 8

Name = Annotated[str, Meta(min_length=1, max_length=128)]


def check_name(
    name: str,
    prefix: str,
    reserved: frozenset[str] = frozenset(),
    pattern: re.Pattern[str] = NAME_PATTERN,
    forbidden: str = "slashes, colons or control characters",
) -> str:
    """Return a name that can be part of a path.

    `forbidden` names the characters that `pattern` does not allow. Errors: `invalid_field`, also for a name that looks
    like an id.
    """
    if not pattern.fullmatch(name) or name.strip() != name or ids.decode_id(prefix, name) is not None:
        raise InvalidField(
            "name",
            f"must not begin or end with a space, contain {forbidden}, or look like an id.",
        )
    if name in {".", ".."} | reserved:
        raise InvalidField("name", f"{name!r} is reserved. Choose another name.")
    return name


def check_state_name(field: str, name: str) -> str:
    """Return a name of a state, which can be part of a path. Errors: `invalid_field`."""
    if _STATE_NAME_PATTERN.fullmatch(name) is None or name in {".", ".."}:
        rule = "must be 1 to 128 characters, without slashes, control characters or surrounding spaces, and not . or .."
        raise InvalidField(field, rule)
    return name


def make_slug(name: str) -> str:
    """Return the slug of a name: `OpenAI API Key` → `openai_api_key`.

    It is in lower case, without accents, and a run of other characters becomes one `_`. It has at most
    `MAX_SLUG_CHARACTERS`, and the slug of a slug is the slug itself. Empty if nothing is left of the name.
    """
    return _make_full_slug(name)[:MAX_SLUG_CHARACTERS].strip("_")


def _make_full_slug(name: str) -> str:
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))
    return _NON_SLUG_CHARACTERS.sub("_", plain.lower()).strip("_")


def fold_name(name: str) -> str:
    """Return the form that two alike names share."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    visible = "".join(letter for letter in folded if unicodedata.category(letter) != "Cf")
    return _SEPARATOR_PATTERN.sub("_", visible).strip("_") or visible or folded


def is_reference_to(reference: str, name: str) -> bool:
    """Return whether a reference is an alike name, or the name's slug."""
    folded = fold_name(reference)
    return folded == fold_name(name) or (folded != "" and folded == make_slug(name))


def list_slug_candidates(kind: str, name: str) -> list[str]:
    """Return the slugs that a name can have, the plainest first; the last one holds a hash and is unique to the name.

    `kind` begins a slug if nothing is left of the name: `tool_3f9a0c51`.
    """
    plain = _make_full_slug(name)
    name_hash = hashlib.sha256(fold_name(name).encode()).hexdigest()[:_HASH_DIGITS]
    beginning = plain[: MAX_SLUG_CHARACTERS - _HASH_DIGITS - 1].strip("_") or kind
    return ([plain] if 0 < len(plain) <= MAX_SLUG_CHARACTERS else []) + [f"{beginning}_{name_hash}"]


def choose_slug(kind: str, name: str, current: str, holders: Mapping[str, str]) -> str:
    """Return the slug of a name: the `current` one if it still fits, else the first that is free.

    `holders` are the names of other resources by their slugs. Errors: `conflict` for an alike name.
    """
    candidates = list_slug_candidates(kind, name)
    taken_by = [holders[candidate] for candidate in candidates if candidate in holders]
    alike = next((other for other in taken_by if fold_name(other) == fold_name(name)), None)
    if alike is not None:
        raise NameTaken(kind, name, alike)
    if current and current in (*candidates, make_slug(name)):
        return current
    free = next((candidate for candidate in candidates if candidate not in holders), None)
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
