"""Records of concurrent requests written together: one transaction, one commit, for all that came meanwhile.

A request is answered when its commit is durable. Each tenant has transactions of its own; what spoils one
request spoils no other.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

import msgspec
from litestar import Response

from api.requests import HttpRequest, asked_for, idempotency_key
from domain.ports import Store, Tx
from domain.shared.access import Caller
from domain.shared.errors import DomainError
from domain.shared.idempotency import Answer, Asked, replay
from infra.credentials import Vault
from infra.group_commit import Batches

T = TypeVar("T")

# What `write` returns for an item: what the answer shows, or what is wrong with it.
Made = Any
Write = Callable[[Tx, list[T]], Awaitable[list[Made | DomainError]]]


class _Sent(msgspec.Struct, Generic[T], frozen=True):
    item: T
    asked: Asked | None


class Ingest(Generic[T]):
    """Gathers items of concurrent requests for `write`, which takes those of one tenant and says what became of each.

    `weigh` is an item's size in bytes; one transaction takes up to `most` items and, but for a first one that
    is larger, `heaviest` bytes.
    """

    def __init__(
        self,
        store: Store,
        vault: Vault,
        write: Write[T],
        weigh: Callable[[T], int] = lambda item: 0,
        most: int = 256,
        heaviest: int = 16 * 1024 * 1024,
    ) -> None:
        self._store, self._vault, self._write = store, vault, write
        self._weigh, self._most, self._heaviest = weigh, most, heaviest
        self._tenants: dict[str, Batches[_Sent[T], Response[Any] | DomainError]] = {}

    async def add(self, request: HttpRequest, caller: Caller, item: T, sent: bytes) -> Response[Any]:
        """Store one item, that came as the body `sent`.

        201 with what was made of it, or the first answer again for a repeated Idempotency-Key.
        """
        key = idempotency_key(request)
        asked = None
        if key is not None:
            asked = Asked(owner=caller.key_id or caller.user_id, key=key, fingerprint=asked_for(request, sent))
        batches = self._tenants.get(caller.tenant_id)
        if batches is None:
            batches = self._tenants[caller.tenant_id] = self._batches(caller.tenant_id)
        try:
            # Shielded: a client that goes away takes nobody else's record with it.
            answer = await asyncio.shield(asyncio.ensure_future(batches.add(_Sent(item, asked))))
        finally:
            if batches.idle and self._tenants.get(caller.tenant_id) is batches:
                self._tenants.pop(caller.tenant_id, None)
        if isinstance(answer, DomainError):
            raise answer
        return answer

    def _batches(self, tenant_id: str) -> Batches[_Sent[T], Response[Any] | DomainError]:
        return Batches(
            lambda sent: self._write_all(tenant_id, sent),
            self._most,
            weigh=lambda one: self._weigh(one.item),
            heaviest=self._heaviest,
        )

    async def _write_all(self, tenant_id: str, sent: list[_Sent[T]]) -> list[Response[Any] | DomainError]:
        asked: dict[tuple[str, str], Asked] = {}
        for one in sent:
            if one.asked is not None:
                asked.setdefault((one.asked.owner, one.asked.key), one.asked)
        async with self._store.begin_for(tenant_id) as tx:
            first = await tx.answers.claim_many(list(asked.values()), tx.now) if asked else {}
            fresh = [one for one in sent if _is_fresh(one, asked, first)]
            made = await self._write(tx, [one.item for one in fresh]) if fresh else []
            kept: dict[tuple[str, str], bytes] = {}
            failed: dict[tuple[str, str], DomainError] = {}
            for one, result in zip(fresh, made, strict=True):
                if one.asked is not None:
                    pair = (one.asked.owner, one.asked.key)
                    if isinstance(result, DomainError):
                        failed[pair] = result
                    else:
                        kept[pair] = msgspec.json.encode(result)
            if kept:
                await tx.answers.keep_many({pair: self._vault.seal(body) for pair, body in kept.items()})
            if failed:
                await tx.answers.forget_many(list(failed))
        results = iter(made)
        answers: list[Response[Any] | DomainError] = []
        for one in sent:
            if _is_fresh(one, asked, first):
                result = next(results)
                answers.append(result if isinstance(result, DomainError) else Response(result, status_code=201))
            else:
                assert one.asked is not None
                pair = (one.asked.owner, one.asked.key)
                answers.append(self._again(one.asked, first.get(pair), asked[pair], kept.get(pair), failed.get(pair)))
        return answers

    def _again(
        self, asked: Asked, before: Answer | None, beside: Asked, body: bytes | None, failed: DomainError | None
    ) -> Response[Any] | DomainError:
        """The answer to a request whose key was used before, or by another one of the same transaction."""
        if before is None:
            if failed is not None:
                return failed
            before = Answer(fingerprint=beside.fingerprint, status=201, body=self._vault.seal(body or b""))
        try:
            found = replay(before, asked.fingerprint)
        except DomainError as error:
            return error
        content = msgspec.json.decode(self._vault.open(found.body))
        return Response(content, status_code=found.status, headers={"Idempotency-Replayed": "true"})


def _is_fresh(one: _Sent[Any], asked: dict[tuple[str, str], Asked], first: dict[tuple[str, str], Answer]) -> bool:
    if one.asked is None:
        return True
    pair = (one.asked.owner, one.asked.key)
    return asked[pair] is one.asked and pair not in first
