"""Create resources once per Idempotency-Key: claim the key, keep the first answer, replay it for repetitions."""

import hashlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

import msgspec
from litestar import Response

from api.requests import HttpRequest
from domain.ports import Store, Tx
from domain.shared.access import Caller
from domain.shared.errors import InvalidField
from domain.shared.idempotency import MAX_KEY_CHARACTERS, IdempotentRequest, StoredResponse, replay_response
from infra.credentials import Vault

ResourceT = TypeVar("ResourceT")
# Owner and key: an owner is an API key or a user.
ClaimId = tuple[str, str]
CREATED_STATUS = 201


def read_idempotency_key(request: HttpRequest) -> str | None:
    """Return the request's Idempotency-Key, None without. Errors: `invalid_field`."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not (0 < len(key) <= MAX_KEY_CHARACTERS and key.isprintable()):
        raise InvalidField("Idempotency-Key", f"must be 1 to {MAX_KEY_CHARACTERS} printable characters.")
    return key


def read_claim(request: HttpRequest, caller: Caller, body: bytes) -> IdempotentRequest | None:
    """Return the claim of a request with an Idempotency-Key, None without one. Errors: `invalid_field`.

    Its fingerprint is a hash of the request's method, path and body.
    """
    key = read_idempotency_key(request)
    if key is None:
        return None
    fingerprint = hashlib.sha256(f"{request.method} {request.url.path}\n".encode() + body).digest()
    return IdempotentRequest(owner=caller.key_id or caller.user_id, key=key, fingerprint=fingerprint)


def identify_claim(claim: IdempotentRequest) -> ClaimId:
    """Return what a claim is stored under."""
    return claim.owner, claim.key


class SealedAnswers:
    """Claim keys and keep the first answers in the transaction of the work, so that both are stored or neither.

    Answers are sealed because one may hold a key that is shown only once.
    """

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    async def claim_keys(self, tx: Tx, claims: Iterable[IdempotentRequest]) -> dict[ClaimId, StoredResponse]:
        """Claim keys; return the first answers of those that were claimed before.

        A concurrent request with the same key waits here for the other's commit, then finds its answer.
        """
        pending = list(claims)
        return await tx.idempotency.claim_keys(pending, tx.now) if pending else {}

    async def save_answers(
        self, tx: Tx, resources: list[tuple[IdempotentRequest, Any]]
    ) -> dict[ClaimId, StoredResponse]:
        """Keep the answers of new resources under the keys that were claimed for them, and return these answers."""
        answers = {
            identify_claim(claim): StoredResponse(
                fingerprint=claim.fingerprint,
                status=CREATED_STATUS,
                body=self._vault.seal(msgspec.json.encode(resource)),
            )
            for claim, resource in resources
        }
        if answers:
            await tx.idempotency.store_responses({claim_id: answer.body for claim_id, answer in answers.items()})
        return answers

    def replay_answer(self, answer: StoredResponse, claim: IdempotentRequest) -> Response[Any]:
        """Return the first answer again. Errors: `idempotency_conflict` where the request is another one."""
        first = replay_response(answer, claim.fingerprint)
        content = msgspec.json.decode(self._vault.open(first.body))
        return Response(content, status_code=first.status, headers={"Idempotency-Replayed": "true"})


class ResourceCreator:
    """Create resources for single requests, each in a transaction of its own."""

    def __init__(self, store: Store, answers: SealedAnswers) -> None:
        self._store, self._answers = store, answers

    async def create_idempotently(
        self,
        request: HttpRequest,
        caller: Caller,
        create: Callable[[Tx], Awaitable[ResourceT]],
        fingerprint: bytes | None = None,
    ) -> Response[Any]:
        """Answer 201 with what `create` returns, or with the first answer again for a repeated Idempotency-Key.

        The key and the work are one transaction. `fingerprint` stands for the body where that was a stream.
        Errors: `idempotency_conflict`, and those of `create`.
        """
        claim = None
        if read_idempotency_key(request) is not None:
            claim = read_claim(request, caller, await request.body() if fingerprint is None else fingerprint)
        async with self._store.transaction(caller) as tx:
            if claim is not None and (first := await self._answers.claim_keys(tx, [claim])):
                return self._answers.replay_answer(first[identify_claim(claim)], claim)
            resource = await create(tx)
            if claim is not None:
                await self._answers.save_answers(tx, [(claim, resource)])
        return Response(resource, status_code=CREATED_STATUS)
