"""Runs executions of model agents, and tool calls by themselves: they wait for others more than they work."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import msgspec

from domain.agents import Spec
from domain.costs import Call, Spender
from domain.executions import Execution, LaneShare
from domain.executions.steps import Step
from domain.llms.messages import ToolFailed
from domain.ports import Clock, Llm, Outcome, Prices
from domain.shared.leases import HandOver, LostLease
from domain.shared.placeholders import worded
from workers.agent.loop import Loop
from workers.agent.tools import Toolbox, Workshop
from workers.agent.workspaces import Workspace
from workers.event_writer import Scribe
from workers.lane_runner import Runs
from workers.leases import Holder, persist
from workers.lifecycle import Drain
from workers.model_calls import ModelCalls


class Phone(msgspec.Struct, frozen=True, kw_only=True):
    """What it takes to call models, in one worker process."""

    shop: Workshop
    llm: Llm
    prices: Prices
    # Told of every call that was billed.
    on_call: Callable[[Call], None] = lambda call: None

    def calls(self, execution: Execution) -> ModelCalls:
        """The model calls of one run."""
        spender = Spender(
            execution_id=execution.id,
            root_id=execution.root_id,
            agent_id=execution.agent_id,
            agent_name=execution.agent_name,
            key_id=execution.key_id,
            workflow_id=execution.workflow_id,
            user_id=execution.user_id,
            cost_limit=execution.cost_limit,
        )
        made = ModelCalls(self.shop.store, self.llm, self.prices, self.shop.keyring, execution, spender)
        made.on_call = self.on_call
        return made


class LlmRunner(Runs):
    """The lane of model agents of one worker process."""

    def __init__(
        self,
        name: str,
        phone: Phone,
        scribe: Scribe,
        holder: Holder,
        clock: Clock,
        share: LaneShare,
        drain: Drain | None = None,
    ) -> None:
        super().__init__(name, phone.shop.store, holder, "llm", share)
        self._phone, self._scribe, self._clock, self._drain = phone, scribe, clock, drain or Drain()

    async def work(self, execution: Execution, log: Any) -> str | None:
        """Run to an end, or to where somebody has to decide."""
        try:
            outcome = await self._outcome(execution)
            if outcome is None:
                log.info("waits for an approval")
                return None
            await self._scribe.flush(execution)
            settled = outcome
            await persist(lambda: self.end(execution, settled, []))
            return settled.error_type
        except (HandOver, asyncio.CancelledError):
            # What was told so far stays; whoever goes on tells the rest.
            with contextlib.suppress(LostLease):
                await self._scribe.flush(execution)
            raise
        finally:
            self._scribe.forget(execution)

    async def _outcome(self, execution: Execution) -> Outcome | None:
        try:
            # Of this stretch of work: what it waited for an approval does not count, nor for its turn (`max_rpm`).
            async with asyncio.timeout(execution.timeout) as limit:
                if execution.kind == "tool":
                    return await self._tool(execution)
                return await self._agent(execution, lambda seconds: limit.reschedule((limit.when() or 0) + seconds))
        except TimeoutError:
            if not limit.expired():
                raise
            who = "tool" if execution.kind == "tool" else "agent"
            told = f"The {who} took longer than {execution.timeout} s."
            return Outcome(error_type="timeout", error_message=told)

    async def _agent(self, execution: Execution, waits: Callable[[float], None]) -> Outcome | None:
        async def known() -> tuple[Spec | None, list[Step]]:
            async with self._store.begin_for(execution.tenant_id) as tx:
                spec = await tx.executions.spec(execution.id)
                # Only another attempt can have done anything before this one.
                return spec, await tx.steps.of(execution.id) if execution.attempt > 1 else []

        agent, done = await persist(known)
        if agent is None:
            raise RuntimeError("an execution of a model agent without its agent")
        workspace_id = execution.root_id or execution.id
        calls = self._phone.calls(execution)
        calls.max_rpm, calls.waits = agent.max_rpm, waits
        outcome = await self._loop(execution, workspace_id, done, calls).work(agent)
        if agent.output_file is None or outcome is None or outcome.output is None:
            return outcome
        return await self._filed(execution, workspace_id, agent.output_file, outcome)

    async def _filed(self, execution: Execution, workspace_id: str, path: str, outcome: Outcome) -> Outcome:
        """The outcome, once its answer lies in the workspace."""
        answer = msgspec.json.decode(outcome.output or b"null")
        text = answer["content"] if isinstance(answer, dict) and set(answer) == {"content"} else worded(answer)
        workspace = Workspace(self._store, self._phone.shop.blobs, execution.tenant_id, workspace_id)
        try:
            commit = await workspace.write({path: str(text).encode("utf-8", "replace")})
        except ToolFailed as failed:
            return Outcome(error_type="output_file", error_message=str(failed))

        async def written() -> None:
            async with self._store.begin_for(execution.tenant_id) as tx:
                await commit(tx)

        await persist(written)
        return outcome

    async def _tool(self, execution: Execution) -> Outcome:
        given = execution.input_data
        loop = self._loop(execution, given.get("execution_id", execution.id), [], self._phone.calls(execution))
        return await loop.tool(given["tool"], given["args"])

    def _loop(self, execution: Execution, workspace_id: str, done: list[Step], calls: ModelCalls) -> Loop:
        shop = self._phone.shop
        workspace = Workspace(self._store, shop.blobs, execution.tenant_id, workspace_id)
        toolbox = Toolbox(shop, execution.tenant_id, workspace, execution.mode or "safe")
        return Loop(self._store, self._scribe, calls, toolbox, execution, self._clock, done, self._drain.has_begun)
