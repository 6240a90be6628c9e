"""Idempotency keys: a POST that creates, sent twice with one key, happens once.

The key is claimed and its answer stored in the transaction of the work itself, so that either both
are there or neither is. Draft: draft-ietf-httpapi-idempotency-key-header-07.
"""

from datetime import datetime, timedelta
from typing import Final, Protocol

import msgspec

from domain.shared.errors import DomainError

LIFETIME: Final = timedelta(hours=24)
MAX_KEY: Final = 255


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A first answer, kept to be given again. `fingerprint` is a hash of what was asked."""

    fingerprint: bytes
    status: int
    body: bytes


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A request with a key: who asks, under which key, and the hash of what."""

    owner: str
    key: str
    fingerprint: bytes


class Answers(Protocol):
    """The first answers of the bound tenant, by user and key."""

    async def claim(self, owner: str, key: str, fingerprint: bytes, now: datetime) -> Answer | None: ...
    async def keep(self, owner: str, key: str, status: int, body: bytes) -> None: ...
    async def claim_many(self, asked: list[Asked], now: datetime) -> dict[tuple[str, str], Answer]:
        """Claim the keys of several requests at once; returns the first answers of those that were claimed before."""
        ...

    async def keep_many(self, answers: dict[tuple[str, str], bytes]) -> None:
        """Keep the answers, all with status 201, by owner and key."""
        ...

    async def forget_many(self, claimed: list[tuple[str, str]]) -> None:
        """Give back keys that this transaction claimed for nothing."""
        ...


def replay(answer: Answer, fingerprint: bytes) -> Answer:
    """The first answer, if the request is the same. Errors: `idempotency_conflict`."""
    if answer.fingerprint != fingerprint:
        raise DomainError(
            "idempotency_conflict",
            "This Idempotency-Key was used for another request in the last 24 hours. Send a new key.",
        )
    return answer
