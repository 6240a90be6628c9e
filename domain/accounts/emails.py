"""E-mail addresses: one form for each, so that no account looks like another one's.

NFKC makes full-width and other compatible letters plain, case folding makes one of `A` and `a`, and a domain is the
same in Unicode and in its encoding for DNS (`xn--…`). The form is Unicode, as people read it.
"""

import re
import unicodedata
from typing import Final

import idna

from domain.shared.errors import InvalidField

_SHAPE: Final = re.compile(r"[^@\s\x00]{1,64}@[^@\s\x00]{1,189}")
_WORD: Final = re.compile(r"[^\W\d_]+")
# Scripts whose letters look like each other's.
_ALIKE: Final = frozenset({"LATIN", "CYRILLIC", "GREEK", "CHEROKEE", "ARMENIAN"})


def normalize_email(text: str) -> str:
    """Return the form that an address is kept and looked up in. What is no address is folded all the same."""
    folded = _fold(text)
    local, at, domain = folded.rpartition("@")
    return f"{local}{at}{_decode_domain(domain)}" if at else folded


def check_email(text: str) -> str:
    """Return an address in its normal form, for a new account or invitation.

    Errors: `invalid_field` for what no mailbox looks like, and for what only looks like another mailbox.
    """
    email = normalize_email(text)
    if not _SHAPE.fullmatch(email) or not email.isprintable() or not text.strip().isprintable():
        raise InvalidField("email", "must be an e-mail address, without spaces and invisible characters.")
    for word in _WORD.findall(email):
        if len(_scripts(word) & _ALIKE) > 1:
            raise InvalidField("email", f"mixes letters of several alphabets in {word!r}: write it in one.")
    return email


def _fold(text: str) -> str:
    # Twice, as folding may make what can be composed: the result then stays as it is.
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def _decode_domain(domain: str) -> str:
    if domain.isascii() and "xn--" not in domain:
        return domain
    try:
        return _fold(idna.decode(idna.encode(domain, uts46=True)))
    except (idna.IDNAError, UnicodeError):
        return domain


def _scripts(word: str) -> set[str]:
    return {unicodedata.name(character, "").partition(" ")[0] for character in word}
