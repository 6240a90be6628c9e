"""Names: what can stand in a path and in a log line, and the slugs by which models and configurations know things."""

import re
import unicodedata
from typing import Annotated, Final

from msgspec import Meta

from domain import ids
from domain.errors import DomainError, invalid

NAME: Final = re.compile(r"[^\x00-\x1f\x7f/\\:]{1,128}")
_OTHERS: Final = re.compile(r"[^a-z0-9]+")
MAX_SLUG: Final = 64

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

    At most `MAX_SLUG` characters; a slug is its own slug.
    """
    plain = "".join(letter for letter in unicodedata.normalize("NFKD", name) if not unicodedata.combining(letter))
    return _OTHERS.sub("_", plain.lower()).strip("_")[:MAX_SLUG].strip("_")


def checked_slug(name: str) -> str:
    """The slug of a name. Errors: `invalid_field` when nothing is left of it."""
    made = slug(name)
    if not made:
        raise invalid("name", "must hold a letter of a to z or a digit: others know this by what is made of them.")
    return made


def taken(kind: str, name: str) -> DomainError:
    """The refusal of a name that something else in the tenant has."""
    error = invalid("name", "is taken in this tenant.").errors
    return DomainError("conflict", f"There is a {kind} named {name!r}, or much like it, already.", error)
