"""What every handler has at hand, and the two shapes of answer that creating work takes."""

import asyncio
import contextlib
import hashlib
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import msgspec
from litestar import Request, Response

from domain import executions
from domain.access import Caller
from domain.errors import DomainError, invalid
from domain.executions import Execution
from domain.idempotency import MAX_KEY, replay
from domain.pages import Page, page_of
from domain.ports import Tx
from domain.states import TERMINAL
from infra.telemetry import Metrics
from infra.wiring import Parts

# What Litestar calls a request; we use none of its three type parameters.
HttpRequest = Request[Any, Any, Any]

T = TypeVar("T")
MAX_WAIT: Final = 60
# Without a bell (Redis away) waiters look this often.
LOOK: Final = 1.0
_WAIT: Final = re.compile(r"(?:^|[,;\s])wait=(\d+)(?:$|[,;\s])")


class Front(Parts, frozen=True, kw_only=True):
    """The parts of this process, and its metrics."""

    metrics: Metrics


def needs(scope: str) -> dict[str, str]:
    """What a route asks of its caller. A route that asks nothing says so with `PUBLIC`; silence is refused."""
    return {"needs": scope}


ANYBODY: Final = {"needs": "anybody"}
PUBLIC: Final = {"needs": "nothing"}


def provide_page(
    limit: int | None = None,
    offset: int | None = None,
    skip: int | None = None,
    page: int | None = None,
    page_size: int | None = None,
) -> Page:
    """The part of a list that is asked for: `limit` and `offset`, or `skip`, or `page` and `page_size`."""
    return page_of(limit, offset, skip, page, page_size)


def idempotency_key(request: HttpRequest) -> str | None:
    """The request's Idempotency-Key. Errors: `invalid_field`."""
    key = request.headers.get("Idempotency-Key")
    if key is not None and not (0 < len(key) <= MAX_KEY and key.isprintable()):
        raise invalid("Idempotency-Key", f"must be 1 to {MAX_KEY} printable characters.")
    return key


async def created(
    front: Front,
    request: HttpRequest,
    caller: Caller,
    make: Callable[[Tx], Awaitable[T]],
    fingerprint: bytes | None = None,
) -> Response[Any]:
    """Answer 201 with what `make` made, or with the first answer again for a repeated Idempotency-Key.

    The key and the work are one transaction. `fingerprint` stands for the body where that was a stream.
    Errors: `idempotency_conflict`, and those of `make`.
    """
    key = idempotency_key(request)
    if key is None:
        async with front.store.begin(caller) as tx:
            made = await make(tx)
        return Response(made, status_code=201)
    asked = hashlib.sha256(f"{request.method} {request.url.path}\n".encode())
    asked.update(fingerprint if fingerprint is not None else await request.body())
    owner = caller.key_id or caller.user_id
    async with front.store.begin(caller) as tx:
        first = await tx.answers.claim(owner, key, asked.digest(), tx.now)
        if first is not None:
            body = front.vault.open(replay(first, asked.digest()).body)
            headers = {"Idempotency-Replayed": "true"}
            return Response(msgspec.json.decode(body), status_code=first.status, headers=headers)
        made = await make(tx)
        # Sealed, because an answer may hold a key that is shown this once.
        await tx.answers.keep(owner, key, 201, front.vault.seal(msgspec.json.encode(made)))
    return Response(made, status_code=201)


def prefer_wait(request: HttpRequest) -> int:
    """Seconds of `Prefer: wait=N` (RFC 7240), 0 without. Errors: `invalid_field` for more than a minute."""
    match = _WAIT.search(request.headers.get("Prefer", ""))
    seconds = int(match.group(1)[:9]) if match else 0
    if seconds > MAX_WAIT:
        raise invalid("Prefer", f"wait must be at most {MAX_WAIT} seconds.")
    return seconds


async def waited(
    front: Front,
    request: HttpRequest,
    row_id: str,
    fetch: Callable[[], Awaitable[T]],
    ended: Callable[[T], bool],
) -> tuple[T, dict[str, str]]:
    """Hold the answer until the row has ended or the caller's patience has: the row, and headers that say so."""
    seconds = prefer_wait(request)
    if not seconds:
        return await fetch(), {}
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    with front.bell.listen(row_id) as heard:
        while True:
            heard.clear()
            row = await fetch()
            left = deadline - loop.time()
            if ended(row) or left <= 0:
                return row, {"Preference-Applied": f"wait={seconds}"}
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(heard.wait(), min(left, LOOK))


async def started(
    front: Front, request: HttpRequest, caller: Caller, make: Callable[[Tx], Awaitable[Execution]]
) -> Response[Any]:
    """Start an execution: 201 with its first state, or with its last if the caller prefers to wait.

    So does a repetition: whoever ran out of patience repeats the request to wait for the same execution.
    """
    prefer_wait(request)
    answer = await created(front, request, caller, make)
    if not prefer_wait(request):
        return answer
    replayed = isinstance(answer.content, dict)
    execution_id = answer.content["id"] if replayed else answer.content.id
    row, headers = await waited(
        front, request, execution_id, lambda: find_execution(front, caller, execution_id), has_ended
    )
    if replayed:
        headers["Idempotency-Replayed"] = "true"
    return Response(row, status_code=201, headers=headers)


def has_ended(execution: Execution) -> bool:
    """Whether an execution is in a terminal state."""
    return execution.status in TERMINAL


async def find_execution(front: Front, caller: Caller, execution_id: str) -> Execution:
    """An execution of the caller's tenant, in a transaction of its own."""
    async with front.store.begin(caller) as tx:
        return await executions.get(tx, execution_id)


def bad_login() -> DomainError:
    """The same words for an unknown user, a wrong password and a user who is shut out."""
    return DomainError("invalid_credentials", "The user name or the password is wrong.")
