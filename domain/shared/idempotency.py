"""Idempotency keys: a POST that creates, sent twice with one key, happens once.

The key is claimed and its answer stored in the transaction of the work itself, so that either both
are there or neither is. Draft: draft-ietf-httpapi-idempotency-key-header-07.
"""

from datetime import datetime, timedelta
from typing import Final, Protocol

import msgspec

from domain.shared.errors import DomainError

IDEMPOTENCY_LIFETIME: Final = timedelta(hours=24)
MAX_KEY_CHARACTERS: Final = 255


class StoredResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A first answer, kept to be given again. `fingerprint` is a hash of what was asked."""

    fingerprint: bytes
    status: int
    body: bytes


class IdempotentRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request with a key: who asks, under which key, and the hash of what."""

    owner: str
    key: str
    fingerprint: bytes


class IdempotencyKeys(Protocol):
    """The first answers of the bound tenant, by user and key."""

    async def claim_key(self, owner: str, key: str, fingerprint: bytes, now: datetime) -> StoredResponse | None: ...
    async def store_response(self, owner: str, key: str, status: int, body: bytes) -> None: ...
    async def claim_keys(self, asked: list[IdempotentRequest], now: datetime) -> dict[tuple[str, str], StoredResponse]:
        """Claim the keys of several requests at once; returns the first answers of those that were claimed before."""
        ...

    async def store_responses(self, answers: dict[tuple[str, str], bytes]) -> None:
        """Keep the answers, all with status 201, by owner and key."""
        ...

    async def release_keys(self, claimed: list[tuple[str, str]]) -> None:
        """Give back keys that this transaction claimed for nothing."""
        ...


def replay_response(answer: StoredResponse, fingerprint: bytes) -> StoredResponse:
    """The first answer, if the request is the same. Errors: `idempotency_conflict`."""
    if answer.fingerprint != fingerprint:
        raise DomainError(
            "idempotency_conflict",
            "This Idempotency-Key was used for another request in the last 24 hours. Send a new key.",
        )
    return answer
