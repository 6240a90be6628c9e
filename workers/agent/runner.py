"""Runs executions of model agents, and tool calls by themselves: they wait for others more than they work."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import msgspec

from domain.agents import AgentSpec
from domain.costs import BilledCall, CostAttribution
from domain.executions import Execution, LaneShare, RunStep
from domain.llms import ToolFailed
from domain.ports import Clock, Llm, Prices, SandboxOutcome
from domain.shared.leases import HandoverRequested, LostLease
from domain.shared.placeholders import format_value
from infra.polling import retry_through_outage
from workers.agent.loop import AgentLoop
from workers.agent.tools import Toolbox, ToolDependencies
from workers.agent.workspaces import RunWorkspace
from workers.event_writer import EventWriter
from workers.lane_runner import LaneRunner
from workers.leases import LeaseKeeper
from workers.lifecycle import Drain
from workers.model_calls import ModelCalls


class ModelCallFactory(msgspec.Struct, frozen=True, kw_only=True):
    """What it takes to call models, in one worker process."""

    dependencies: ToolDependencies
    llm: Llm
    prices: Prices
    # Told of every call that was billed.
    on_call: Callable[[BilledCall], None] = lambda call: None

    def create_calls(self, execution: Execution) -> ModelCalls:
        """The model calls of one run."""
        spender = CostAttribution(
            execution_id=execution.id,
            root_id=execution.root_id,
            agent_id=execution.agent_id,
            agent_name=execution.agent_name,
            key_id=execution.key_id,
            workflow_id=execution.workflow_id,
            user_id=execution.user_id,
            cost_limit=execution.cost_limit,
        )
        made = ModelCalls(self.dependencies.store, self.llm, self.prices, self.dependencies.keyring, execution, spender)
        made.on_call = self.on_call
        return made


class AgentRunner(LaneRunner):
    """The lane of model agents of one worker process."""

    def __init__(
        self,
        name: str,
        phone: ModelCallFactory,
        scribe: EventWriter,
        holder: LeaseKeeper,
        clock: Clock,
        share: LaneShare,
        drain: Drain | None = None,
    ) -> None:
        super().__init__(name, phone.dependencies.store, holder, "llm", share)
        self._call_factory, self._events, self._clock, self._drain = phone, scribe, clock, drain or Drain()

    async def run_execution(self, execution: Execution, log: Any) -> str | None:
        """Run to an end, or to where somebody has to decide."""
        try:
            outcome = await self._run_within_timeout(execution)
            if outcome is None:
                log.info("waits for an approval")
                return None
            await self._events.flush(execution)
            settled = outcome
            await retry_through_outage(lambda: self.settle_execution(execution, settled, []))
            return settled.error_type
        except (HandoverRequested, asyncio.CancelledError):
            # What was told so far stays; whoever goes on tells the rest.
            with contextlib.suppress(LostLease):
                await self._events.flush(execution)
            raise
        finally:
            self._events.forget_attempt(execution)

    async def _run_within_timeout(self, execution: Execution) -> SandboxOutcome | None:
        try:
            # Of this stretch of work: what it waited for an approval does not count, nor for its turn (`max_rpm`).
            async with asyncio.timeout(execution.timeout) as limit:
                if execution.kind == "tool":
                    return await self._run_tool(execution)
                return await self._run_agent(execution, lambda seconds: limit.reschedule((limit.when() or 0) + seconds))
        except TimeoutError:
            if not limit.expired():
                raise
            who = "tool" if execution.kind == "tool" else "agent"
            told = f"The {who} took longer than {execution.timeout} s."
            return SandboxOutcome(error_type="timeout", error_message=told)

    async def _run_agent(self, execution: Execution, waits: Callable[[float], None]) -> SandboxOutcome | None:
        async def known() -> tuple[AgentSpec | None, list[RunStep]]:
            async with self._store.tenant_transaction(execution.tenant_id) as tx:
                spec = await tx.executions.get_spec(execution.id)
                # Only another attempt can have done anything before this one.
                return spec, await tx.steps.list_steps(execution.id) if execution.attempt > 1 else []

        agent, done = await retry_through_outage(known)
        if agent is None:
            raise RuntimeError("an execution of a model agent without its agent")
        workspace_id = execution.root_id or execution.id
        calls = self._call_factory.create_calls(execution)
        calls.max_rpm, calls.on_wait = agent.max_rpm, waits
        outcome = await self._create_loop(execution, workspace_id, done, calls).run_agent(agent)
        if agent.output_file is None or outcome is None or outcome.output is None:
            return outcome
        return await self._save_output_file(execution, workspace_id, agent.output_file, outcome)

    async def _save_output_file(
        self, execution: Execution, workspace_id: str, path: str, outcome: SandboxOutcome
    ) -> SandboxOutcome:
        """The outcome, once its answer lies in the workspace."""
        answer = msgspec.json.decode(outcome.output or b"null")
        text = answer["content"] if isinstance(answer, dict) and set(answer) == {"content"} else format_value(answer)
        workspace = RunWorkspace(self._store, self._call_factory.dependencies.blobs, execution.tenant_id, workspace_id)
        try:
            commit = await workspace.write_files({path: str(text).encode("utf-8", "replace")})
        except ToolFailed as failed:
            return SandboxOutcome(error_type="output_file", error_message=str(failed))

        async def written() -> None:
            async with self._store.tenant_transaction(execution.tenant_id) as tx:
                await commit(tx)

        await retry_through_outage(written)
        return outcome

    async def _run_tool(self, execution: Execution) -> SandboxOutcome:
        given = execution.input_data
        loop = self._create_loop(
            execution, given.get("execution_id", execution.id), [], self._call_factory.create_calls(execution)
        )
        return await loop.run_tool(given["tool"], given["args"])

    def _create_loop(
        self, execution: Execution, workspace_id: str, done: list[RunStep], calls: ModelCalls
    ) -> AgentLoop:
        shop = self._call_factory.dependencies
        workspace = RunWorkspace(self._store, shop.blobs, execution.tenant_id, workspace_id)
        toolbox = Toolbox(shop, execution.tenant_id, workspace, execution.mode or "safe")
        return AgentLoop(self._store, self._events, calls, toolbox, execution, self._clock, done, self._drain.has_begun)
