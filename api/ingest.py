"""Store records of concurrent requests together: one transaction and one commit for all that arrived meanwhile."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

import msgspec
from litestar import Response

from api.idempotency import CREATED_STATUS, ClaimId, SealedAnswers, identify_claim, read_claim
from api.requests import HttpRequest
from domain.ports import Store, Tx
from domain.shared.access import Caller
from domain.shared.errors import DomainError
from domain.shared.idempotency import IdempotentRequest, StoredResponse
from infra.group_commit import GroupCommit

ItemT = TypeVar("ItemT")

MAX_BATCH_ITEMS = 256
MAX_BATCH_BYTES = 16 * 1024 * 1024
# Stores items of one tenant; returns for each what the answer shows, or what is wrong with it.
ItemWriter = Callable[[Tx, list[ItemT]], Awaitable[list[Any | DomainError]]]


class IngestItem(msgspec.Struct, Generic[ItemT], frozen=True):
    """Hold an item and the claim of its request's Idempotency-Key, if it has one."""

    content: ItemT
    claim: IdempotentRequest | None


class IngestOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """Hold what one transaction did: results of the stored items, and answers and errors by claim."""

    results: dict[int, Any | DomainError]
    answers: dict[ClaimId, StoredResponse]
    errors: dict[ClaimId, DomainError]


class BatchIngest(Generic[ItemT]):
    """Gather items of concurrent requests and store those of one tenant together with `write`.

    A request is answered when its commit is durable. Each tenant has its own transactions, and an item that fails
    does not fail the others. `measure` returns an item's size in bytes; one transaction takes up to `max_items` items
    of up to `MAX_BATCH_BYTES` together, or one larger item.
    """

    def __init__(
        self,
        store: Store,
        answers: SealedAnswers,
        write: ItemWriter[ItemT],
        *,
        measure: Callable[[ItemT], int] = lambda item: 0,
        max_items: int = MAX_BATCH_ITEMS,
    ) -> None:
        self._store, self._answers, self._write = store, answers, write
        self._measure, self._max_items = measure, max_items
        self._tenant_batches: dict[str, GroupCommit[IngestItem[ItemT], Response[Any] | DomainError]] = {}

    async def add_item(self, request: HttpRequest, caller: Caller, content: ItemT, body: bytes) -> Response[Any]:
        """Store one item, which arrived as this body.

        Answers 201 with what `write` returned for it, or with the first answer again for a repeated Idempotency-Key.
        """
        claim = read_claim(request, caller, body)
        batches = self._tenant_batches.get(caller.tenant_id)
        if batches is None:
            batches = self._tenant_batches[caller.tenant_id] = self._open_batches(caller.tenant_id)
        try:
            # Shielded: a client that disconnects must not cancel the records of other clients.
            answer = await asyncio.shield(asyncio.ensure_future(batches.add(IngestItem(content, claim))))
        finally:
            if batches.is_idle and self._tenant_batches.get(caller.tenant_id) is batches:
                self._tenant_batches.pop(caller.tenant_id, None)
        if isinstance(answer, DomainError):
            raise answer
        return answer

    def _open_batches(self, tenant_id: str) -> GroupCommit[IngestItem[ItemT], Response[Any] | DomainError]:
        return GroupCommit(
            lambda items: self._write_batch(tenant_id, items),
            self._max_items,
            weigh=lambda item: self._measure(item.content),
            max_weight=MAX_BATCH_BYTES,
        )

    async def _write_batch(self, tenant_id: str, items: list[IngestItem[ItemT]]) -> list[Response[Any] | DomainError]:
        # Of several items with the same key, the first is stored and the others get its answer.
        claims: dict[ClaimId, IdempotentRequest] = {}
        for item in items:
            if item.claim is not None:
                claims.setdefault(identify_claim(item.claim), item.claim)
        async with self._store.tenant_transaction(tenant_id) as tx:
            first_answers = await self._answers.claim_keys(tx, claims.values())
            new_positions = [
                position
                for position, item in enumerate(items)
                if item.claim is None
                or (
                    claims[identify_claim(item.claim)] is item.claim and identify_claim(item.claim) not in first_answers
                )
            ]
            outcome = await self._write_new(tx, items, new_positions)
        answers = {**first_answers, **outcome.answers}
        return [
            self._answer_item(outcome.results[position])
            if position in outcome.results
            else self._answer_repetition(item, answers, outcome.errors)
            for position, item in enumerate(items)
        ]

    async def _write_new(self, tx: Tx, items: list[IngestItem[ItemT]], positions: list[int]) -> IngestOutcome:
        """Store the items at these positions; keep answers under their keys, and release the keys of failed ones."""
        written = await self._write(tx, [items[position].content for position in positions]) if positions else []
        results = dict(zip(positions, written, strict=True))
        created: list[tuple[IdempotentRequest, Any]] = []
        errors: dict[ClaimId, DomainError] = {}
        for position, result in results.items():
            claim = items[position].claim
            if claim is not None and isinstance(result, DomainError):
                errors[identify_claim(claim)] = result
            elif claim is not None:
                created.append((claim, result))
        answers = await self._answers.save_answers(tx, created)
        if errors:
            await tx.idempotency.release_keys(list(errors))
        return IngestOutcome(results=results, answers=answers, errors=errors)

    def _answer_item(self, result: Any | DomainError) -> Response[Any] | DomainError:
        return result if isinstance(result, DomainError) else Response(result, status_code=CREATED_STATUS)

    def _answer_repetition(
        self, item: IngestItem[ItemT], answers: dict[ClaimId, StoredResponse], errors: dict[ClaimId, DomainError]
    ) -> Response[Any] | DomainError:
        """Answer a request whose key was used before, or by another request of the same transaction."""
        assert item.claim is not None
        claim_id = identify_claim(item.claim)
        if claim_id in errors:
            return errors[claim_id]
        try:
            return self._answers.replay_answer(answers[claim_id], item.claim)
        except DomainError as error:
            return error
