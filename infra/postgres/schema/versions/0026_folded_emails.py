"""E-mail addresses in one form each: two that looked alike could be two accounts.

Where two accounts have one address by now, the older keeps it. The other keeps its row as it is and can be logged in
to by its user name alone; a warning names it.
"""

import contextlib
import logging
import unicodedata

import idna
from alembic import op
from sqlalchemy import text

revision = "0026"
down_revision = "0025"

_log = logging.getLogger("alembic.runtime.migration")

# As `domain.accounts.emails.normalize_email` was when this was written.
FOREIGN = "email ~ '[^\\x01-\\x7f]' OR email LIKE '%xn--%' OR email <> lower(email)"


def fold(value: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", value).casefold())


def normalize(email: str) -> str:
    local, at, domain = fold(email).rpartition("@")
    if not domain.isascii() or "xn--" in domain:
        with contextlib.suppress(idna.IDNAError, UnicodeError):
            domain = fold(idna.decode(idna.encode(domain, uts46=True)))
    return f"{local}{at}{domain}"


def upgrade() -> None:
    bind = op.get_bind()
    rows = bind.execute(text(f"SELECT id, email FROM users WHERE {FOREIGN} ORDER BY created_at, id")).all()
    for row in rows:
        email = normalize(row.email)
        if email == row.email:
            continue
        values = {"id": row.id, "old": row.email, "new": email}
        if bind.execute(text("SELECT 1 FROM users WHERE email = :new AND id <> :id"), values).first() is not None:
            _log.warning("the account %s has the e-mail of an older one, %r, in other letters", row.id, email)
            continue
        bind.execute(
            text(
                "UPDATE users SET email = :new, "
                "username = CASE WHEN lower(username) = lower(:old) THEN :new ELSE username END WHERE id = :id"
            ),
            values,
        )
    for row in bind.execute(text(f"SELECT id, email FROM invites WHERE accepted_at IS NULL AND ({FOREIGN})")).all():
        bind.execute(
            text("UPDATE invites SET email = :new WHERE id = :id"), {"id": row.id, "new": normalize(row.email)}
        )
