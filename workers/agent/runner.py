"""Run the executions of model agents, and tool calls on their own: both wait for others more than they work.

A run goes down and comes back: `run_execution` (this file) → `AgentLoop.run_agent` → `ModelSteps.ask_model` and
`ToolSteps.call_tool` in turn → `ModelCalls.open_call` and `Toolbox.call_tool`. What they write goes through
`AgentAttempt`.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from domain import crews, threads
from domain.agents import AgentSpec
from domain.executions import Execution, RunStep
from domain.llms import ToolFailed
from domain.ports import SandboxOutcome, Tx
from domain.shared.errors import DomainError
from domain.shared.leases import HandoverRequested, LostLease
from domain.shared.placeholders import format_value
from domain.threads import DEFAULT_CONTEXT_TOKENS, THREAD_ERRORS, Conversation
from infra.polling import retry_through_outage
from workers.agent.attempt import AgentAttempt
from workers.agent.loop import AgentLoop
from workers.agent.schema import ToolDependencies
from workers.agent.tools import Toolbox
from workers.agent.workspaces import RunWorkspace
from workers.event_writer import EventWriter
from workers.lane_runner import LaneContext, LaneRunner
from workers.model_calls import ModelAccess, ModelCalls


class AgentRunResult(msgspec.Struct, frozen=True, kw_only=True):
    """Hold the outcome of an attempt that has ended, and what writes the turn of a completed run to its thread."""

    outcome: SandboxOutcome
    write_turn: Callable[[Tx], Awaitable[None]] | None = None


class AgentRunner(LaneRunner):
    """Run the executions of the `llm` lane in one worker process."""

    def __init__(
        self, context: LaneContext, dependencies: ToolDependencies, model_access: ModelAccess, events: EventWriter
    ) -> None:
        super().__init__(context)
        self._dependencies, self._model_access, self._events = dependencies, model_access, events

    async def run_execution(self, execution: Execution, log: Any) -> str | None:
        """Run an execution to its end, or to where somebody has to decide. Return the error it ended with."""
        try:
            ended = await self._run_within_timeout(execution)
            if ended is None:
                log.info("the run waits for an approval")
                return None
            await self._events.flush(execution)
            return await self._settle_run(execution, ended)
        except (HandoverRequested, asyncio.CancelledError):
            # The events so far stay; the worker that goes on adds the rest.
            with contextlib.suppress(LostLease):
                await self._events.flush(execution)
            raise
        finally:
            self._events.forget_attempt(execution)

    async def _settle_run(self, execution: Execution, ended: AgentRunResult) -> str | None:
        """Settle a run, with its turn in its thread, or as failed without it. Return the error type."""
        outcome = ended.outcome
        try:
            await retry_through_outage(lambda: self.settle_execution(execution, outcome, [], ended.write_turn))
        except DomainError as error:
            if ended.write_turn is None or error.code not in THREAD_ERRORS:
                raise
            outcome = SandboxOutcome(error_type=error.code, error_message=error.detail)
            await retry_through_outage(lambda: self.settle_execution(execution, outcome, []))
        return outcome.error_type

    async def _run_within_timeout(self, execution: Execution) -> AgentRunResult | None:
        try:
            # The timeout of this attempt: waiting for an approval or for the rate limit (`max_rpm`) does not count.
            async with asyncio.timeout(execution.timeout) as timeout:
                if execution.kind == "tool":
                    return AgentRunResult(outcome=await self._run_tool(execution))
                return await self._run_agent(execution, timeout)
        except TimeoutError:
            if not timeout.expired():
                raise
            subject = "tool" if execution.kind == "tool" else "agent"
            message = f"The {subject} took longer than {execution.timeout} s."
            return AgentRunResult(outcome=SandboxOutcome(error_type="timeout", error_message=message))

    async def _run_agent(self, execution: Execution, timeout: asyncio.Timeout) -> AgentRunResult | None:
        async def load(tx: Tx) -> tuple[AgentSpec, list[RunStep], Conversation]:
            agent = await tx.executions.get_spec(execution.id)
            if agent is None:
                raise RuntimeError("an execution of a model agent has no agent")
            if agent.context_tokens is None and (execution.thread_id or execution.messages):
                agent.context_tokens = await threads.choose_context_tokens(tx, agent)
            max_tokens = agent.context_tokens or DEFAULT_CONTEXT_TOKENS
            conversation = await threads.load_conversation(tx, execution, max_tokens, bool(agent.summary))
            # The first attempt finds no steps.
            return agent, await tx.steps.list_steps(execution.id) if execution.attempt > 1 else [], conversation

        try:
            agent, earlier_steps, conversation = await self._store.run(execution.tenant_id, load, retry=True)
        except DomainError as error:
            if error.code not in THREAD_ERRORS:
                raise
            return AgentRunResult(outcome=SandboxOutcome(error_type=error.code, error_message=error.detail))
        workspace = self._open_workspace(execution, execution.root_id or execution.id)
        calls = ModelCalls(self._model_access, execution, max_rpm=agent.max_rpm, run_timeout=timeout)
        loop = self._create_loop(execution, workspace, calls, earlier_steps)
        outcome = await loop.run_agent(agent, conversation)
        if outcome is None:
            return None
        if agent.output_file is not None and outcome.output is not None:
            outcome = await self._save_output_file(execution, workspace, agent.output_file, outcome)
        if outcome.error_type is None and (recall := agent.recall) is not None:
            output = msgspec.json.decode(outcome.output or b"null")
            return AgentRunResult(
                outcome=outcome, write_turn=lambda tx: crews.save_task_memory(tx, execution, recall, output)
            )
        if execution.thread_id is None or outcome.error_type is not None:
            return AgentRunResult(outcome=outcome)
        turn = loop.turn
        return AgentRunResult(
            outcome=outcome, write_turn=lambda tx: threads.append_turn(tx, execution, conversation, turn)
        )

    async def _run_tool(self, execution: Execution) -> SandboxOutcome:
        data = execution.input_data
        workspace = self._open_workspace(execution, data.get("execution_id", execution.id))
        loop = self._create_loop(execution, workspace, ModelCalls(self._model_access, execution), [])
        return await loop.run_tool(data["tool"], data["args"])

    async def _save_output_file(
        self, execution: Execution, workspace: RunWorkspace, path: str, outcome: SandboxOutcome
    ) -> SandboxOutcome:
        """Write the answer to a file of the workspace, and return the outcome."""
        answer = msgspec.json.decode(outcome.output or b"null")
        text = answer["content"] if isinstance(answer, dict) and set(answer) == {"content"} else format_value(answer)
        try:
            commit = await workspace.write_files({path: str(text).encode("utf-8", "replace")})
        except ToolFailed as failed:
            return SandboxOutcome(error_type="output_file", error_message=str(failed))

        await self._store.run(execution.tenant_id, commit, retry=True)
        return outcome

    def _open_workspace(self, execution: Execution, workspace_id: str) -> RunWorkspace:
        tools = self._dependencies
        return RunWorkspace(self._store, tools.blobs, execution.tenant_id, workspace_id, quota=tools.quota)

    def _create_loop(
        self, execution: Execution, workspace: RunWorkspace, calls: ModelCalls, earlier_steps: list[RunStep]
    ) -> AgentLoop:
        context = self._context
        attempt = AgentAttempt(
            self._store, self._events, execution, context.clock, earlier_steps, context.drain.has_begun
        )
        toolbox = Toolbox(self._dependencies, execution.tenant_id, workspace, execution.mode or "safe")
        return AgentLoop(self._store, calls, toolbox, attempt)
