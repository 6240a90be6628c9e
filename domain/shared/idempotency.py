"""Describe idempotency keys: a POST that creates, sent twice with one key, creates once.

The key is claimed and its response stored in the transaction of the work itself, so that both are committed or
neither is. Draft: draft-ietf-httpapi-idempotency-key-header-07.
"""

from datetime import datetime, timedelta
from typing import Final, Protocol

import msgspec

from domain.shared.errors import DomainError

IDEMPOTENCY_LIFETIME: Final = timedelta(hours=24)
MAX_KEY_CHARACTERS: Final = 255


class StoredResponse(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the first response to a request, to replay it. `fingerprint` is a hash of the request."""

    fingerprint: bytes
    status: int
    body: bytes


class IdempotentRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Identify a request by its owner, its key and the hash of its content."""

    owner: str
    key: str
    fingerprint: bytes


class IdempotencyKeys(Protocol):
    """Store the first responses of the bound tenant, by user and key."""

    async def claim_keys(self, asked: list[IdempotentRequest], now: datetime) -> dict[tuple[str, str], StoredResponse]:
        """Claim the keys of several requests at once; return the stored responses of keys claimed before."""
        ...

    async def store_responses(self, answers: dict[tuple[str, str], bytes]) -> None:
        """Store responses, all with status 201, by owner and key."""
        ...

    async def release_keys(self, claimed: list[tuple[str, str]]) -> None:
        """Release keys that this transaction claimed and did not need."""
        ...


def replay_response(response: StoredResponse, fingerprint: bytes) -> StoredResponse:
    """Return the stored response if the request is the same. Errors: `idempotency_conflict`."""
    if response.fingerprint != fingerprint:
        raise DomainError(
            "idempotency_conflict",
            "This Idempotency-Key was used for a different request in the last 24 hours. Send a new key.",
        )
    return response
