"""Normalize e-mail addresses, so that no account looks like another one.

NFKC maps full-width and other compatible letters to plain ones, case folding maps `A` to `a`, and a domain has one form
for Unicode and for its DNS encoding (`xn--…`). The normal form is Unicode, as people read it.
"""

import re
import unicodedata
from typing import Final

import idna

from domain.shared.errors import InvalidField

_EMAIL_PATTERN: Final = re.compile(r"[^@\s\x00]{1,64}@[^@\s\x00]{1,189}")
_WORD_PATTERN: Final = re.compile(r"[^\W\d_]+")
# Scripts with letters that look alike.
_LOOKALIKE_SCRIPTS: Final = frozenset({"LATIN", "CYRILLIC", "GREEK", "CHEROKEE", "ARMENIAN"})


def normalize_email(text: str) -> str:
    """Return the form in which an address is stored and looked up. Text that is not an address is folded too."""
    folded = _fold_text(text)
    local, at, domain = folded.rpartition("@")
    return f"{local}{at}{_decode_domain(domain)}" if at else folded


def check_email(text: str) -> str:
    """Return an address in its normal form, for a new account or invitation.

    Errors: `invalid_field` for an invalid address, and for one that imitates another address.
    """
    email = normalize_email(text)
    if not _EMAIL_PATTERN.fullmatch(email) or not email.isprintable() or not text.strip().isprintable():
        raise InvalidField("email", "must be an e-mail address, without spaces or invisible characters.")
    for word in _WORD_PATTERN.findall(email):
        if len(_list_scripts(word) & _LOOKALIKE_SCRIPTS) > 1:
            raise InvalidField("email", f"must not mix alphabets within a word: {word!r}.")
    return email


def _fold_text(text: str) -> str:
    # Twice: folding may produce letters that can be composed. The second pass makes the result stable.
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def _decode_domain(domain: str) -> str:
    if domain.isascii() and "xn--" not in domain:
        return domain
    try:
        return _fold_text(idna.decode(idna.encode(domain, uts46=True)))
    except (idna.IDNAError, UnicodeError):
        return domain


def _list_scripts(word: str) -> set[str]:
    return {unicodedata.name(character, "").partition(" ")[0] for character in word}
