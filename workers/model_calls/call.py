"""Make one try of a call of a model, and bill what it used."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, Final

from domain import costs
from domain.costs import BilledCall, CostAttribution, CostSettlement
from domain.events import ExecutionEvent
from domain.executions import Execution
from domain.llms import (
    EmbeddingCall,
    EmbeddingReply,
    ModelCall,
    ModelError,
    ModelErrorKind,
    ModelReply,
    ReplyPart,
    ReportedUsage,
)
from domain.ports import Tx
from domain.shared import ids
from domain.shared.leases import LostLease
from domain.shared.unicode_text import repair_text
from workers.model_calls.schema import ModelAccess, ModelRequest, WriteAnswer
from workers.model_calls.usage import UsageMeter, clean_part

# Seconds that a model may be silent.
MAX_SILENCE_SECONDS: Final = 120.0
# Dollars that one call may cost: a higher figure is not a real one.
MAX_CALL_COST_USD: Final = 100_000_000.0
# Parts of an answer after which other runs, and leases above all, get their turn.
PARTS_PER_YIELD: Final = 8


class ModelCallTry:
    """Make one try of a call: iterate over it for the parts of the answer, then settle it."""

    def __init__(
        self,
        access: ModelAccess,
        execution: Execution,
        attribution: CostAttribution,
        request: ModelRequest,
        meter: UsageMeter,
        reservation_id: str | None,
    ) -> None:
        self._access, self._execution, self._attribution = access, execution, attribution
        self._request, self._meter, self._reservation_id = request, meter, reservation_id
        self._reply: ModelReply | None = None
        self._error_kind: ModelErrorKind | None = None
        self._is_settled = False
        self._parts = self._read_parts()

    def __aiter__(self) -> AsyncGenerator[ReplyPart, None]:
        """Iterate over the parts of the answer, without its `ModelReply`. Errors: `ModelError`."""
        return self._parts

    async def _read_parts(self) -> AsyncGenerator[ReplyPart, None]:
        meter, request = self._meter, self._request
        ask = ModelCall(
            target=request.target,
            messages=request.messages,
            tools=request.tools,
            options=request.options,
            timeout=MAX_SILENCE_SECONDS,
            on_sent=meter.note_sent,
        )
        meter.started_at = time.monotonic()
        try:
            async with contextlib.aclosing(self._access.llm.stream(ask)) as parts:
                async for raw_part in parts:
                    part = clean_part(raw_part)
                    meter.count_part(part)
                    if isinstance(part, ModelReply):
                        self._reply = part
                        break
                    if isinstance(part, ReportedUsage):
                        continue
                    yield part
                    if meter.part_count % PARTS_PER_YIELD == 0:
                        # Parts that have arrived already are read without waiting.
                        await asyncio.sleep(0)
            if self._reply is None:
                raise ModelError("cut_off", "The answer ended before it was complete.")
        except ModelError as error:
            error.message = repair_text(error.message)
            self._error_kind = error.kind
            raise

    async def embed(self, texts: tuple[str, ...], dimensions: int | None) -> EmbeddingReply:
        """Return the vectors of texts instead of an answer, and bill the call. Errors: `ModelError`."""
        meter, target = self._meter, self._request.target
        ask = EmbeddingCall(
            target=target, texts=texts, dimensions=dimensions, timeout=MAX_SILENCE_SECONDS, on_sent=meter.note_sent
        )
        meter.started_at = time.monotonic()
        try:
            reply = await self._access.llm.embed(ask)
        except ModelError as error:
            error.message = repair_text(error.message)
            self._error_kind = error.kind
            raise
        meter.count_part(reply.usage or ReportedUsage())
        self._is_settled = True
        await _finish_despite_cancel(self._record_call("ok"))
        return reply

    async def settle(self, write_answer: WriteAnswer | None = None) -> ModelReply:
        """Bill an answered call, have `write_answer` write along, and return the answer.

        Errors: `LostLease` if this attempt does not hold the run any more; the call is billed all the same.
        """
        if self._reply is None:
            raise RuntimeError("a call of a model was settled before its answer was read")
        self._is_settled = True
        await _finish_despite_cancel(self._record_call("ok", write_answer))
        return self._reply

    async def close(self) -> None:
        """Stop reading, and bill a call that was not settled: what it used is owed all the same."""
        if self._is_settled:
            return
        self._is_settled = True
        try:
            await self._parts.aclose()
        finally:
            status: costs.ModelCallStatus = "cancelled" if self._error_kind is None else "error"
            await _finish_despite_cancel(self._record_call(status))

    async def _record_call(self, status: costs.ModelCallStatus, write_answer: WriteAnswer | None = None) -> None:
        call, cost_id, reply = self._describe_call(status), ids.generate_id("cost"), self._reply
        self._access.on_call(call)

        async def write(tx: Tx) -> bool:
            settled = await costs.settle_call(tx, self._reservation_id, self._attribution, call, cost_id)
            if settled.is_repeat:
                # An earlier try of the same commit went through, and its answer was lost on its way.
                return True
            is_held = await self._append_events(tx, call, settled)
            if is_held and write_answer is not None and reply is not None:
                await write_answer(tx, reply)
            return is_held

        is_held = await self._access.store.run(self._execution.tenant_id, write, retry=True)
        if not is_held and write_answer is not None:
            # The cost is on record; this attempt has nothing more to write.
            raise LostLease(self._execution.id)

    def _describe_call(self, status: costs.ModelCallStatus) -> BilledCall:
        meter, target = self._meter, self._request.target
        error_kind = self._error_kind if status == "error" else None
        usage, is_estimated = meter.measure_usage(error_kind)
        first_part_at = meter.first_part_at
        return BilledCall(
            provider=target.provider,
            model=target.model,
            model_name=target.name,
            usage=usage,
            cost_usd=min(self._access.calculate_cost(self._request, usage), MAX_CALL_COST_USD),
            estimated=is_estimated,
            status=status,
            error_type=error_kind,
            duration_ms=(time.monotonic() - meter.started_at) * 1000,
            first_token_ms=None if first_part_at is None else (first_part_at - meter.started_at) * 1000,
        )

    async def _append_events(self, tx: Tx, call: BilledCall, settled: CostSettlement) -> bool:
        """Append the call and its cost to the event log. Return False if this attempt does not hold the run."""
        usage = call.usage
        events: list[ExecutionEvent] = [
            _build_event(
                tx,
                "model_call",
                model=call.model_name,
                provider=call.provider,
                status=call.status,
                error_type=call.error_type,
                duration_ms=round(call.duration_ms, 1),
                first_token_ms=None if call.first_token_ms is None else round(call.first_token_ms, 1),
            ),
            _build_event(
                tx,
                "cost",
                cost_id=settled.cost_id,
                cost_usd=call.cost_usd,
                model=call.model_name,
                prompt_tokens=usage.prompt_tokens,
                completion_tokens=usage.completion_tokens,
                cached_tokens=usage.cached_tokens,
                reasoning_tokens=usage.reasoning_tokens,
                total_tokens=usage.total_tokens,
                estimated=call.estimated,
            ),
        ]
        events += [
            _build_event(
                tx,
                "warning",
                about="budget",
                message=warning.message,
                budget_id=warning.budget_id,
                scope=warning.scope,
            )
            for warning in settled.warnings
        ]
        is_held = await tx.events.append_if_leased(self._execution.id, self._execution.attempt, events)
        if is_held:
            tx.announce_status(self._execution.id, "running")
        return is_held


async def _finish_despite_cancel(settling: Coroutine[Any, Any, None]) -> None:
    """Settle a call to the end also when the run is cancelled meanwhile: what was used must be billed."""
    task = asyncio.create_task(settling)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        if not task.cancelled():
            task.exception()
        raise


def _build_event(tx: Tx, kind: Any, **data: Any) -> ExecutionEvent:
    return ExecutionEvent(type=kind, data=data, at=tx.now)
