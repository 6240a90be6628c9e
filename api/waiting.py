"""Hold answers until a row has a final status: for `Prefer: wait=N`, and for routes that wait unasked."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from litestar import Response

from api.idempotency import CREATED_STATUS, ResourceCreator
from api.requests import HttpRequest, read_preferred_wait
from domain import executions
from domain.executions import Execution
from domain.ports import Store, Tx
from domain.shared.access import Caller
from domain.shared.status import TERMINAL_STATUSES
from infra.redis import Bell


class HasStatus(Protocol):
    """Describe a row that can be waited for."""

    @property
    def status(self) -> str:
        """Return the row's status when it was read."""
        ...


RowT = TypeVar("RowT", bound=HasStatus)


class StatusWaiter:
    """Wait for rows: the bell rings when a row changes; while Redis is unavailable, rows are polled."""

    def __init__(self, store: Store, bell: Bell) -> None:
        self._store, self.bell = store, bell

    async def wait_for_status(
        self, request: HttpRequest, row_id: str, fetch: Callable[[], Awaitable[RowT]], final: frozenset[str]
    ) -> tuple[RowT, dict[str, str]]:
        """Return the row and response headers, once the row has a `final` status or `Prefer: wait=N` runs out."""
        seconds = read_preferred_wait(request)
        if not seconds:
            return await fetch(), {}
        with self.bell.watch_row(row_id, final) as ring:
            row = await self.poll_until_final(ring, fetch, final, seconds, await fetch())
        return row, confirm_wait(seconds)

    async def wait_for_execution(
        self, request: HttpRequest, caller: Caller, execution_id: str
    ) -> tuple[Execution, dict[str, str]]:
        """Return an execution and response headers, once it has ended or `Prefer: wait=N` runs out."""
        return await self.wait_for_status(
            request, execution_id, lambda: self.find_execution(caller, execution_id), TERMINAL_STATUSES
        )

    async def poll_until_final(
        self,
        ring: asyncio.Event,
        fetch: Callable[[], Awaitable[RowT]],
        final: frozenset[str],
        seconds: float,
        row: RowT,
    ) -> RowT:
        """Fetch the row at each ring until its status is final or the seconds are over.

        `row` was read after listening began, so no change of it is missed.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while row.status not in final and (seconds_left := deadline - loop.time()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(seconds_left, self.bell.poll_seconds)):
                    await ring.wait()
            ring.clear()
            row = await fetch()
        return row

    async def find_execution(self, caller: Caller, execution_id: str) -> Execution:
        """Return an execution of the caller's tenant, read in a transaction of its own. Errors: `not_found`."""
        async with self._store.transaction(caller) as tx:
            return await executions.get_execution(tx, execution_id)


class ExecutionStarter:
    """Start executions, and hold the answer until they end where the caller prefers that."""

    def __init__(self, creator: ResourceCreator, waiter: StatusWaiter) -> None:
        self._creator, self._waiter = creator, waiter

    async def start_execution(
        self,
        request: HttpRequest,
        caller: Caller,
        start: Callable[[Tx], Awaitable[Execution]],
        default_wait: int = 0,
    ) -> Response[Any]:
        """Answer 201 with the execution's first state, or with its last state if the caller prefers to wait.

        A repetition with the same Idempotency-Key waits for the same execution: a client whose wait ran out repeats
        its request. `default_wait` is the number of seconds to wait for callers that send no `Prefer`.
        """
        seconds = read_preferred_wait(request) or default_wait
        if not seconds:
            return await self._creator.create_idempotently(request, caller, start)
        with contextlib.ExitStack() as listening:
            rings: list[asyncio.Event] = []

            async def start_and_listen(tx: Tx) -> Execution:
                # Before the commit, so that the end of the execution cannot be missed.
                execution = await start(tx)
                rings.append(listening.enter_context(self._waiter.bell.watch_row(execution.id, TERMINAL_STATUSES)))
                return execution

            answer = await self._creator.create_idempotently(request, caller, start_and_listen)
            if isinstance(answer.content, dict):
                row, headers = await self._waiter.wait_for_execution(request, caller, answer.content["id"])
                headers = {**headers, "Idempotency-Replayed": "true"}
                return Response(row, status_code=CREATED_STATUS, headers=headers)
            execution: Execution = answer.content
            row = await self._waiter.poll_until_final(
                rings[-1],
                lambda: self._waiter.find_execution(caller, execution.id),
                TERMINAL_STATUSES,
                seconds,
                execution,
            )
            return Response(row, status_code=CREATED_STATUS, headers=confirm_wait(seconds))


def confirm_wait(seconds: int) -> dict[str, str]:
    """Return the header that confirms a `Prefer: wait=N` (RFC 7240)."""
    return {"Preference-Applied": f"wait={seconds}"}
