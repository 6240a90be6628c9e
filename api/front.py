"""What every handler has at hand, and the two shapes of answer that creating work takes."""

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, Protocol, TypeVar

import msgspec
from litestar import Response
from litestar.params import Parameter

from api.guesses import GuessLimiter
from api.ingest import Ingest
from api.requests import HttpRequest, asked_for, idempotency_key
from api.room import Room, Turns
from domain import executions
from domain.accounts.keys import KeyIdentity
from domain.artifacts.service import Stored
from domain.evaluations import Evaluation
from domain.events import Asked, Slice
from domain.executions import Execution
from domain.ports import Tx
from domain.shared.access import Caller
from domain.shared.errors import DomainError, invalid
from domain.shared.idempotency import replay
from domain.shared.pages import Page, page_of
from domain.shared.status import TERMINAL
from infra.group_commit import Batches
from infra.telemetry import Metrics
from infra.wiring import Parts

T = TypeVar("T")


# A time in a query, read by `domain.shared.times`; as the end of a stretch, a date is the whole of that day.
QueryTime = Annotated[
    str | None,
    Parameter(
        description="A date, a time (RFC 3339) or seconds since 1970; UTC unless it says otherwise. "
        "As the end of a stretch a date is the whole of that day."
    ),
]


class HasStatus(Protocol):
    """A row that can be waited for."""

    @property
    def status(self) -> str:
        """Its status now."""
        ...


R = TypeVar("R", bound=HasStatus)
MAX_WAIT: Final = 60
_WAIT: Final = re.compile(r"(?:^|[,;\s])wait=(\d+)(?:$|[,;\s])")


class Front(Parts, frozen=True, kw_only=True):
    """The parts of this process, its metrics, and where records gather to be written together."""

    metrics: Metrics
    keys: Batches[bytes, KeyIdentity | None]
    events: Batches[Asked, Slice | DomainError]
    artifacts: Ingest[Stored]
    large_bodies: Room
    workflows: Turns
    guesses: GuessLimiter
    evaluations: Ingest[list[Evaluation]]
    evaluation_batches: Ingest[list[Evaluation]]


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
    asked = asked_for(request, fingerprint if fingerprint is not None else await request.body())
    owner = caller.key_id or caller.user_id
    async with front.store.begin(caller) as tx:
        first = await tx.answers.claim(owner, key, asked, tx.now)
        if first is not None:
            body = front.vault.open(replay(first, asked).body)
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
    front: Front, request: HttpRequest, row_id: str, fetch: Callable[[], Awaitable[R]], final: frozenset[str]
) -> tuple[R, dict[str, str]]:
    """Hold the answer until the row has a `final` status or the caller's patience ends: the row, and headers."""
    seconds = prefer_wait(request)
    if not seconds:
        return await fetch(), {}
    with front.bell.listen(row_id, final) as heard:
        return await _held(front, heard, fetch, final, seconds, await fetch()), _applied(seconds)


async def _held(
    front: Front,
    heard: asyncio.Event,
    fetch: Callable[[], Awaitable[R]],
    final: frozenset[str],
    seconds: int,
    row: R,
) -> R:
    """`row` was seen after listening began. The bell tells when to look again; without it waiters poll."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while row.status not in final and (left := deadline - loop.time()) > 0:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(left, front.bell.patience)):
                await heard.wait()
        heard.clear()
        row = await fetch()
    return row


def _applied(seconds: int) -> dict[str, str]:
    return {"Preference-Applied": f"wait={seconds}"}


async def started(
    front: Front,
    request: HttpRequest,
    caller: Caller,
    make: Callable[[Tx], Awaitable[Execution]],
    patience: int = 0,
) -> Response[Any]:
    """Start an execution: 201 with its first state, or with its last if the caller prefers to wait.

    So does a repetition: whoever ran out of patience repeats the request to wait for the same execution.
    `patience` is for how many seconds callers wait who do not say.
    """
    seconds = prefer_wait(request) or patience
    if not seconds:
        return await created(front, request, caller, make)
    with contextlib.ExitStack() as listening:
        heard: list[asyncio.Event] = []

        async def made(tx: Tx) -> Execution:
            # Before the commit, so that no end of it can go unheard.
            execution = await make(tx)
            heard.append(listening.enter_context(front.bell.listen(execution.id, TERMINAL)))
            return execution

        answer = await created(front, request, caller, made)
        if isinstance(answer.content, dict):
            first_id = answer.content["id"]
            row, headers = await waited(
                front, request, first_id, lambda: find_execution(front, caller, first_id), TERMINAL
            )
            return Response(row, status_code=201, headers={**headers, "Idempotency-Replayed": "true"})
        execution: Execution = answer.content
        row = await _held(
            front, heard[-1], lambda: find_execution(front, caller, execution.id), TERMINAL, seconds, execution
        )
        return Response(row, status_code=201, headers=_applied(seconds))


async def find_execution(front: Front, caller: Caller, execution_id: str) -> Execution:
    """An execution of the caller's tenant, in a transaction of its own."""
    async with front.store.begin(caller) as tx:
        return await executions.get(tx, execution_id)


def bad_login() -> DomainError:
    """The same words for an unknown user, a wrong password and a user who is shut out."""
    return DomainError("invalid_credentials", "The user name or the password is wrong.")
