"""Calls of models on behalf of a run: within its budgets, with the provider's key, tried again, written down.

A call is `hold → stream → settle`. However it ends, by an answer, an error, a cancellation, what was used is billed.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any, Final

import msgspec
import structlog
from msgspec import UNSET, UnsetType

from domain import costs, llms
from domain.costs import BilledCall, CostAttribution, CostSettlement
from domain.events import ExecutionEvent
from domain.executions import Execution
from domain.llms import (
    ChatMessage,
    ModelCall,
    ModelError,
    ModelErrorKind,
    ModelOptions,
    ModelReply,
    ModelTarget,
    ModelUsage,
    ReplyPart,
    ReportedUsage,
    ToolSpec,
)
from domain.ports import Llm, Prices, Store, Tx
from domain.shared import ids
from domain.shared.errors import DATABASE_OUTAGE_CODES, DomainError
from domain.shared.leases import LostLease
from domain.shared.secrets import Secret
from domain.shared.unicode_text import repair_text
from infra.credentials import Keyring
from infra.polling import retry_through_outage
from workers.usage import UsageMeter, clean_part

_log = structlog.get_logger("paddock.models")

# How often a call is tried in all, and the seconds between: doubled each time, up to what a provider may ask for.
MAX_CALL_TRIES: Final = 4
RETRY_PAUSE_SECONDS: Final = 0.5
MAX_RETRY_PAUSE_SECONDS: Final = 30.0
# Seconds that a model may be silent.
MAX_SILENCE_SECONDS: Final = 120.0
# What an answer may be held for where nobody bounds it, and the least that is worth asking for, in tokens.
DEFAULT_ANSWER_TOKENS: Final = 4096
MIN_ANSWER_TOKENS: Final = 16
# What one call may cost in dollars: more is made up.
MAX_CALL_COST_USD: Final = 100_000_000.0
# After how many parts of an answer other runs have their turn.
PARTS_PER_YIELD: Final = 8

# Called in the transaction that writes down a call that was answered, with the answer.
OnAnswered = Callable[[Tx, ModelReply], Awaitable[None]]


class ModelCalls:
    """The model calls of one run."""

    def __init__(
        self, store: Store, llm: Llm, prices: Prices, keyring: Keyring, execution: Execution, spender: CostAttribution
    ) -> None:
        self._store, self._llm, self._prices, self._keyring = store, llm, prices, keyring
        self._execution, self.attribution = execution, spender
        # Calls in a minute at most, over all that the plan runs which this run belongs to; it is asked if not told.
        self.max_rpm: int | None | UnsetType = UNSET
        # Told of the seconds that a call is about to wait for its turn.
        self.on_wait: Callable[[float], None] = lambda seconds: None
        self.on_call: Callable[[BilledCall], None] = lambda call: None

    async def resolve_target(self, name: str, provider: str | None = None) -> ModelTarget:
        """The model of that name, with its key. Errors: `ModelError` if the registry has none."""

        async def resolved() -> llms.ResolvedModel:
            async with self._store.tenant_transaction(self._execution.tenant_id) as tx:
                return await llms.resolve_model(tx, name, provider)

        try:
            found = await retry_through_outage(resolved)
        except DomainError as error:
            if error.code in DATABASE_OUTAGE_CODES:
                raise
            raise ModelError("refused", error.detail) from error
        model, key = found.model, None
        if found.sealed_key is not None:
            try:
                key = Secret(self._keyring.open(found.sealed_key).decode())
            except ValueError as error:
                told = "The model's key was sealed with a key that PADDOCK_ENCRYPTION_KEYS does not name any more."
                raise ModelError("unauthorized", told) from error
        return ModelTarget(
            name=model.name,
            provider=model.provider,
            model=model.model,
            base_url=model.base_url,
            api_key=key,
            parameters=model.parameters,
            price=model.price,
            api=model.api,
        )

    async def stream_answer(
        self,
        target: ModelTarget,
        messages: tuple[ChatMessage, ...],
        tools: tuple[ToolSpec, ...],
        options: ModelOptions,
        also: OnAnswered | None = None,
        again: Callable[[ModelError, float], None] | None = None,
        before: Callable[[], Awaitable[None]] | None = None,
    ) -> AsyncGenerator[ReplyPart, None]:
        """The parts of an answer. A call that failed in passing is made again.

        After parts were handed on that is only done with `again`, which is told that they do not count any more.
        `before` is awaited before an answer is written down, `also` writes along.
        Errors: `ModelError`, `budget_exceeded`, `LostLease`.
        """
        for number in range(1, MAX_CALL_TRIES + 1):
            handed = False
            try:
                async with contextlib.aclosing(
                    self._stream_once(target, messages, tools, options, also, before)
                ) as parts:
                    async for part in parts:
                        handed = True
                        yield part
                return
            except ModelError as error:
                if not error.is_transient or number == MAX_CALL_TRIES or (handed and again is None):
                    raise
                pause = _choose_retry_pause(number, error.retry_after)
                if pause is None:
                    raise
                _log.info("a model call is made again", model=target.name, error=error.kind, seconds=round(pause, 2))
                if again is not None:
                    again(error, pause)
                await asyncio.sleep(pause)

    async def _stream_once(
        self,
        target: ModelTarget,
        messages: tuple[ChatMessage, ...],
        tools: tuple[ToolSpec, ...],
        options: ModelOptions,
        also: OnAnswered | None,
        before: Callable[[], Awaitable[None]] | None,
    ) -> AsyncGenerator[ReplyPart, None]:
        meter = UsageMeter(messages, tools)
        await self._wait_for_rate_limit()
        hold_id, options = await self._reserve_budget(target, meter, options)
        ask = ModelCall(
            target=target,
            messages=messages,
            tools=tools,
            options=options,
            timeout=MAX_SILENCE_SECONDS,
            on_sent=meter.note_sent,
        )
        reply: ModelReply | None = None
        meter.started_at = time.monotonic()
        try:
            async with contextlib.aclosing(self._llm.stream(ask)) as parts:
                async for given in parts:
                    part = clean_part(given)
                    meter.count_part(part)
                    if isinstance(part, ReportedUsage):
                        continue
                    if isinstance(part, ModelReply):
                        reply = part
                        break
                    yield part
                    if meter.part_count % PARTS_PER_YIELD == 0:
                        # What has arrived already is read without waiting: others want their turn, leases above all.
                        await asyncio.sleep(0)
            if reply is None:
                raise ModelError("cut_off", "The answer ended before it was complete.")
            if before is not None:
                await before()
        except ModelError as error:
            error.message = repair_text(error.message)
            try:
                if before is not None:
                    with contextlib.suppress(LostLease):
                        await before()
            finally:
                await _finish_despite_cancel(self._settle_call(hold_id, target, meter, reply, "error", error.kind))
            raise
        except BaseException:
            # Cancelled, or lost, or nobody wants the rest: what was used is owed all the same.
            await _finish_despite_cancel(self._settle_call(hold_id, target, meter, reply, "cancelled", None))
            raise
        await _finish_despite_cancel(self._settle_call(hold_id, target, meter, reply, "ok", None, also))
        yield reply

    async def _wait_for_rate_limit(self) -> None:
        """Wait until this call may be made."""
        plan_id = self._execution.parent_id
        if self.max_rpm is None or plan_id is None:
            return

        async def slot() -> float:
            async with self._store.tenant_transaction(self._execution.tenant_id) as tx:
                if self.max_rpm is UNSET:
                    self.max_rpm = await tx.plans.get_max_rpm(plan_id)
                if self.max_rpm is None:
                    return 0.0
                return (await tx.plans.reserve_model_call(plan_id, self.max_rpm, tx.now) - tx.now).total_seconds()

        seconds = await retry_through_outage(slot)
        if seconds > 0:
            self.on_wait(seconds)
            await asyncio.sleep(seconds)

    async def _reserve_budget(
        self, target: ModelTarget, meter: UsageMeter, options: ModelOptions
    ) -> tuple[str | None, ModelOptions]:
        """Set aside what the call may cost. The answer is bounded to what there is room for."""
        most = options.max_tokens or llms.find_token_limit(target.parameters) or DEFAULT_ANSWER_TOKENS
        prompt = self._price_usage(target, ModelUsage(prompt_tokens=meter.max_prompt_tokens))
        answer = (
            self._price_usage(target, ModelUsage(prompt_tokens=meter.max_prompt_tokens, completion_tokens=most))
            - prompt
        )
        wanted = prompt + answer
        if wanted <= 0:
            return None, options
        least = prompt + answer * min(1.0, MIN_ANSWER_TOKENS / most)
        seconds = self._execution.timeout + 60.0

        async def held() -> costs.BudgetReservation:
            async with self._store.tenant_transaction(self._execution.tenant_id) as tx:
                return await costs.reserve_budget(tx, self.attribution, wanted, least, seconds)

        hold = await retry_through_outage(held, max_seconds=30)
        if hold.id is None and hold.amount_usd >= wanted:
            return None, options
        if hold.amount_usd < wanted:
            most = max(1, int((hold.amount_usd - prompt) / (answer / most)))
        return hold.id, msgspec.structs.replace(options, max_tokens=most)

    async def _settle_call(
        self,
        hold_id: str | None,
        target: ModelTarget,
        meter: UsageMeter,
        reply: ModelReply | None,
        status: costs.ModelCallStatus,
        error_type: ModelErrorKind | None,
        also: OnAnswered | None = None,
    ) -> None:
        usage, is_estimated = meter.measure_usage(error_type)
        now = time.monotonic()
        call = BilledCall(
            provider=target.provider,
            model=target.model,
            model_name=target.name,
            usage=usage,
            cost_usd=min(self._price_usage(target, usage), MAX_CALL_COST_USD),
            estimated=is_estimated,
            status=status,
            error_type=error_type,
            duration_ms=(now - meter.started_at) * 1000,
            first_token_ms=None if meter.first_part_at is None else (meter.first_part_at - meter.started_at) * 1000,
        )

        self.on_call(call)
        cost_id = ids.generate_id("cost")

        async def write() -> None:
            async with self._store.tenant_transaction(self._execution.tenant_id) as tx:
                settled = await costs.settle_call(tx, hold_id, self.attribution, call, cost_id)
                if settled.is_repeat:
                    # The answer to an earlier commit of the same was lost on its way.
                    return
                held = await self._record_call(tx, call, settled)
                if held and also is not None and reply is not None:
                    await also(tx, reply)
            if not held and also is not None:
                # What was used is on record; nothing more is this attempt's to write.
                raise LostLease(self._execution.id)

        await retry_through_outage(write)

    async def _record_call(self, tx: Tx, call: BilledCall, settled: CostSettlement) -> bool:
        """Note the call and its cost in the log. False if the run is not held any more."""
        usage = call.usage
        events: list[ExecutionEvent] = [
            _new_event(
                tx,
                "model_call",
                model=call.model_name,
                provider=call.provider,
                status=call.status,
                error_type=call.error_type,
                duration_ms=round(call.duration_ms, 1),
                first_token_ms=None if call.first_token_ms is None else round(call.first_token_ms, 1),
            ),
            _new_event(
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
            _new_event(tx, "warning", about="budget", message=one.message, budget_id=one.budget_id, scope=one.scope)
            for one in settled.warnings
        ]
        held = await tx.events.append_if_leased(self._execution.id, self._execution.attempt, events)
        if held:
            tx.announce_status(self._execution.id, "running")
        return held

    def _price_usage(self, target: ModelTarget, usage: ModelUsage) -> float:
        return self._prices.calculate_cost(target, usage) or 0.0


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


def _new_event(tx: Tx, kind: Any, **data: Any) -> ExecutionEvent:
    return ExecutionEvent(type=kind, data=data, at=tx.now)


def _choose_retry_pause(number: int, retry_after: float | None) -> float | None:
    """Seconds until the next try; None if the provider wants us to wait longer than anybody would."""
    if retry_after is not None:
        return None if retry_after > MAX_RETRY_PAUSE_SECONDS else max(retry_after, 0.05)
    # Jitter, so that runs that failed together do not come back together.
    return float(RETRY_PAUSE_SECONDS * 2 ** (number - 1) * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
