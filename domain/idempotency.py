"""Idempotency keys: a POST that creates, sent twice with one key, happens once.

The key is claimed and its answer stored in the transaction of the work itself, so that either both
are there or neither is. Draft: draft-ietf-httpapi-idempotency-key-header-07.
"""

from datetime import datetime, timedelta
from typing import Final, Protocol

import msgspec

from domain.errors import DomainError

LIFETIME: Final = timedelta(hours=24)
MAX_KEY: Final = 255


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A first answer, kept to be given again. `fingerprint` is a hash of what was asked."""

    fingerprint: bytes
    status: int
    body: bytes


class Answers(Protocol):
    """The first answers of the bound tenant, by user and key."""

    async def claim(self, owner: str, key: str, fingerprint: bytes, now: datetime) -> Answer | None: ...
    async def keep(self, owner: str, key: str, status: int, body: bytes) -> None: ...


def replay(answer: Answer, fingerprint: bytes) -> Answer:
    """The first answer, if the request is the same. Errors: `idempotency_conflict`."""
    if answer.fingerprint != fingerprint:
        raise DomainError(
            "idempotency_conflict",
            "This Idempotency-Key was used for another request in the last 24 hours. Send a new key.",
        )
    return answer
