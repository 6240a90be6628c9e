"""Call models on behalf of a run: within its budgets, with the provider's key, tried again, and on record.

A call is `reserve a budget → stream the answer → settle`. However it ends, by an answer, an error or a cancellation,
what was used is billed.
"""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Final

import msgspec
import structlog
from msgspec import UNSET, UnsetType

from domain import costs, llms
from domain.costs import CostAttribution
from domain.executions import Execution
from domain.llms import ChatMessage, EmbeddingReply, ModelError, ModelOptions, ModelTarget, ModelUsage, ReplyPart
from domain.ports import Tx
from domain.shared.errors import DATABASE_OUTAGE_CODES, DomainError
from domain.shared.secrets import Secret
from workers.model_calls.call import ModelCallTry
from workers.model_calls.schema import AgentRateLimit, ModelAccess, ModelRequest
from workers.model_calls.usage import UsageMeter

_log = structlog.get_logger("paddock.models")

# Tries of a call in all, and the seconds between them: doubled each time, up to what a provider may ask for.
MAX_CALL_TRIES: Final = 4
RETRY_PAUSE_SECONDS: Final = 0.5
MAX_RETRY_PAUSE_SECONDS: Final = 30.0
# Tokens reserved for an answer that has no limit of its own, and the fewest that are worth asking for.
DEFAULT_ANSWER_TOKENS: Final = 4096
MIN_ANSWER_TOKENS: Final = 16


class ModelCalls:
    """Make the model calls of one run.

    `max_rpm` limits the calls of a minute over the whole plan that the run belongs to; left out, it is looked up.
    `run_timeout` is extended by the time that a call waits for that limit.
    """

    def __init__(
        self,
        access: ModelAccess,
        execution: Execution,
        *,
        max_rpm: int | None | UnsetType = UNSET,
        run_timeout: asyncio.Timeout | None = None,
    ) -> None:
        self._access, self._execution, self._max_rpm, self._run_timeout = access, execution, max_rpm, run_timeout
        self._attribution = CostAttribution(
            execution_id=execution.id,
            root_id=execution.root_id,
            agent_id=execution.agent_id,
            agent_name=execution.agent_name,
            key_id=execution.key_id,
            workflow_id=execution.workflow_id,
            user_id=execution.user_id,
            cost_limit=execution.cost_limit,
        )

    async def resolve_target(self, name: str, provider: str | None = None) -> ModelTarget:
        """Return the model of that name, with its key. Errors: `ModelError` if the registry has no such model."""

        store, tenant_id = self._access.store, self._execution.tenant_id
        try:
            resolved = await store.run(tenant_id, lambda tx: llms.resolve_model(tx, name, provider), retry=True)
        except DomainError as error:
            if error.code in DATABASE_OUTAGE_CODES:
                raise
            raise ModelError("refused", error.detail) from error
        model, key = resolved.model, None
        if resolved.sealed_key is not None:
            try:
                key = Secret(self._access.keyring.open(resolved.sealed_key).decode())
            except ValueError as error:
                message = "The model's key was sealed with a key that PADDOCK_ENCRYPTION_KEYS no longer names."
                raise ModelError("unauthorized", message) from error
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

    async def stream_answer(self, request: ModelRequest) -> AsyncGenerator[ReplyPart, None]:
        """Yield the parts of an answer, its `ModelReply` last, once the call is settled.

        A call that failed in passing is tried again, as long as no part was yielded.
        Errors: `ModelError`, `budget_exceeded`, `LostLease`.
        """
        tries = 0
        while True:
            tries, has_parts = tries + 1, False
            try:
                async with self.open_call(request) as call:
                    async for part in call:
                        has_parts = True
                        yield part
                    reply = await call.settle()
                yield reply
                return
            except ModelError as error:
                pause = None if has_parts else choose_retry_pause(error, tries, request.target)
                if pause is None:
                    raise
                await asyncio.sleep(pause)

    async def embed_texts(
        self, target: ModelTarget, texts: tuple[str, ...], dimensions: int | None = None
    ) -> EmbeddingReply:
        """Return the vectors of texts. A call that failed in passing is tried again.

        It is reserved, billed and recorded as a call with these texts as its prompt, and no answer.
        Errors: `ModelError`, `budget_exceeded`.
        """
        messages = tuple(ChatMessage(role="user", content=text) for text in texts)
        request = ModelRequest(target=target, messages=messages, options=ModelOptions(max_tokens=1))
        tries = 0
        while True:
            tries += 1
            try:
                async with self.open_call(request) as call:
                    return await call.embed(texts, dimensions)
            except ModelError as error:
                pause = choose_retry_pause(error, tries, target)
                if pause is None:
                    raise
                await asyncio.sleep(pause)

    @contextlib.asynccontextmanager
    async def open_call(self, request: ModelRequest) -> AsyncIterator["ModelCallTry"]:
        """Reserve what one try of a call may cost, and bill what it used when the block ends.

        The block reads the parts of the answer from the call and settles it. Where it does not come to that, because
        of an error or a cancellation, the call is billed as one that failed. Errors: `ModelError`, `budget_exceeded`,
        `LostLease`.
        """
        meter = UsageMeter(request.messages, request.tools)
        await self._wait_for_rate_limit(request.rate_limit)
        reservation_id, options = await self._reserve_budget(request, meter)
        request = msgspec.structs.replace(request, options=options)
        call = ModelCallTry(self._access, self._execution, self._attribution, request, meter, reservation_id)
        try:
            yield call
        finally:
            await call.close()

    async def _wait_for_rate_limit(self, agent_limit: AgentRateLimit | None) -> None:
        """Wait until the plan of this run, and the agent in it, may make another call."""
        plan_id = self._execution.parent_id
        if (self._max_rpm is None and agent_limit is None) or plan_id is None:
            return

        async def take_slot(tx: Tx) -> float:
            if self._max_rpm is UNSET:
                self._max_rpm = await tx.plans.get_max_rpm(plan_id)
            slots = [tx.now]
            if self._max_rpm is not None:
                slots.append(await tx.plans.reserve_model_call(plan_id, self._max_rpm, tx.now))
            if agent_limit is not None:
                slot = await tx.plans.reserve_model_call(plan_id, agent_limit.max_rpm, tx.now, agent_limit.agent)
                slots.append(slot)
            return (max(slots) - tx.now).total_seconds()

        seconds = await self._access.store.run(self._execution.tenant_id, take_slot, retry=True)
        if seconds > 0:
            if self._run_timeout is not None:
                self._run_timeout.reschedule((self._run_timeout.when() or 0) + seconds)
            await asyncio.sleep(seconds)

    async def _reserve_budget(self, request: ModelRequest, meter: UsageMeter) -> tuple[str | None, ModelOptions]:
        """Reserve what the call may cost. Where the budget grants less, the answer is limited to that."""
        target, options = request.target, request.options
        max_tokens = options.max_tokens or llms.find_token_limit(target.parameters) or DEFAULT_ANSWER_TOKENS
        prompt_usage = ModelUsage(prompt_tokens=meter.max_prompt_tokens)
        whole_usage = ModelUsage(prompt_tokens=meter.max_prompt_tokens, completion_tokens=max_tokens)
        prompt_cost = self._access.calculate_cost(request, prompt_usage)
        max_cost = self._access.calculate_cost(request, whole_usage)
        answer_cost = max_cost - prompt_cost
        if max_cost <= 0:
            return None, options
        min_cost = prompt_cost + answer_cost * min(1.0, MIN_ANSWER_TOKENS / max_tokens)
        seconds = self._execution.timeout + 60.0

        async def reserve(tx: Tx) -> costs.BudgetReservation:
            return await costs.reserve_budget(tx, self._attribution, max_cost, min_cost, seconds)

        reservation = await self._access.store.run(self._execution.tenant_id, reserve, retry=True, max_seconds=30)
        if reservation.id is None and reservation.amount_usd >= max_cost:
            return None, options
        if reservation.amount_usd < max_cost:
            max_tokens = max(1, int((reservation.amount_usd - prompt_cost) / (answer_cost / max_tokens)))
        return reservation.id, msgspec.structs.replace(options, max_tokens=max_tokens)


def choose_retry_pause(error: ModelError, tries: int, target: ModelTarget) -> float | None:
    """Return the seconds until the next try of a call that has failed `tries` times, None if it is to fail."""
    if not error.is_transient or tries >= MAX_CALL_TRIES:
        return None
    if error.retry_after is None:
        # Jitter, so that runs that failed together are not tried again together.
        pause = float(RETRY_PAUSE_SECONDS * 2 ** (tries - 1) * random.uniform(0.5, 1.0))  # noqa: S311 - no secret
    elif error.retry_after <= MAX_RETRY_PAUSE_SECONDS:
        pause = max(error.retry_after, 0.05)
    else:
        return None
    _log.info("a model call is tried again", model=target.name, error=error.kind, seconds=round(pause, 2))
    return pause
