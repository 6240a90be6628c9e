"""The loop of a model agent: ask the model, make the tool calls of its answer, ask again, until it calls none.

Whatever is finished is a step on record, so that another attempt goes on where this one ended: answers are not asked
for again, and a tool call with effects is made at most once.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from domain import agents
from domain.agents import Agent, AgentSpec
from domain.agents import build_messages as first_messages
from domain.events import ExecutionEvent
from domain.executions import Execution, RunStep, steps
from domain.llms import (
    ChatMessage,
    ModelError,
    ModelOptions,
    ModelReply,
    ModelTarget,
    ModelToolCall,
    ReasoningDelta,
    ReplyNotice,
    TextDelta,
    ToolFailed,
    ToolSpec,
)
from domain.ports import Clock, SandboxOutcome, Store, Tx
from domain.shared.errors import DomainError
from domain.shared.leases import HandoverRequested
from infra.polling import retry_through_outage
from workers.agent.delegation import DELEGATE_TOOL, DelegateArguments, describe_delegate_tool, find_teammate
from workers.agent.json_answers import parse_json_answer
from workers.agent.messages import limit_result, render_arguments, render_tool_result, render_transcript
from workers.agent.tools import MAX_SHOWN_CHARACTERS, BoundTool, Toolbox, ToolResult
from workers.event_writer import EventWriter
from workers.model_calls import ModelCalls
from workers.usage import clean_text

DEFAULT_MAX_STEPS: Final = 20
# How many agents may be at work for one another: the one that was asked, one that it asked, and one more.
MAX_DELEGATION_DEPTH: Final = 2


class AgentParked(Exception):
    """Tool calls wait for somebody's decision."""


class AgentFailed(Exception):
    """The run ends with an error of its own."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.outcome = SandboxOutcome(error_type=kind, error_message=message)


class AgentLoop:
    """One attempt at an execution of a model agent."""

    def __init__(
        self,
        store: Store,
        scribe: EventWriter,
        calls: ModelCalls,
        tools: Toolbox,
        execution: Execution,
        clock: Clock,
        done: list[RunStep],
        drains: Callable[[], bool] = lambda: False,
    ) -> None:
        self._store, self._events, self._calls, self._tools = store, scribe, calls, tools
        self._execution, self._clock, self._drains = execution, clock, drains
        self._steps = {step.path: step for step in done}
        self._refused: set[tuple[str, str]] = set()  # models, and the tools that their providers do not take
        decided = any(step.status in ("approved", "rejected") for step in done)
        self._after_loss = execution.attempt - execution.resumes - execution.handovers > 1 and not decided

    async def run_agent(self, agent: AgentSpec) -> SandboxOutcome | None:
        """Work on the task of the execution. None if it is parked. Errors: `LostLease`, and `HandOver`."""
        done = sum(step.status == "finished" for step in self._steps.values())
        if done:
            self._tell("log", level="INFO", stream="paddock", message=f"Goes on after {done} finished steps.")
        try:
            answer = await self._answer(agent, first_messages(agent, self._execution.input_data), "", 0)
            if agent.answer_schema is not None:
                return SandboxOutcome(
                    output=await parse_json_answer(answer, agent.answer_schema, self._execution.tenant_id)
                )
        except AgentParked:
            await self._park()
            return None
        except AgentFailed as failed:
            return failed.outcome
        except ModelError as error:
            return SandboxOutcome(error_type=error.kind, error_message=error.message)
        except DomainError as error:
            if error.code != "budget_exceeded":
                raise
            return SandboxOutcome(error_type=error.code, error_message=error.detail)
        return SandboxOutcome(output=msgspec.json.encode({"content": answer}))

    async def run_tool(self, name: str, args: dict[str, Any]) -> SandboxOutcome:
        """Make the one call of an execution that is a tool call. Errors: `LostLease`."""
        problems: list[str] = []
        bound = await self._tools.bind_tools([name], problems.append)
        for problem in problems:
            self._warn(problem)
        if len(bound) != 1:
            told = problems[0] if problems else f"The server {name!r} has several tools; name one of them."
            return SandboxOutcome(error_type="tool_failed", error_message=told)
        called = ModelToolCall(id="call_1", name=next(iter(bound)), arguments=msgspec.json.encode(args).decode())
        answer = await self._call("1", called, bound) or {"error": "waits for an approval."}
        if "error" in answer:
            return SandboxOutcome(error_type="tool_failed", error_message=str(answer["error"]))
        return SandboxOutcome(output=msgspec.json.encode(answer["result"]))

    async def _park(self) -> None:
        await self._events.flush(self._execution)
        waiting = [step for step in self._steps.values() if step.status == "waiting"]

        async def write() -> None:
            async with self._store.tenant_transaction(self._execution.tenant_id) as tx:
                await steps.park_for_approval(tx, self._execution, waiting)

        await retry_through_outage(write)

    async def _answer(self, agent: Agent, messages: list[ChatMessage], prefix: str, deep: int) -> str:
        delegates = self._delegates(agent, deep)
        reserved = {DELEGATE_TOOL.name} if delegates else ()
        bound = await self._tools.bind_tools(agent.tools, self._warn, reserved) if agent.tools else {}
        specs = [one.spec for one in bound.values()]
        if delegates:
            specs.append(describe_delegate_tool(agent))
        for number in range(1, (agent.max_steps or DEFAULT_MAX_STEPS) + 1):
            path = f"{prefix}{number}"
            message = await self._ask(path, agent, tuple(messages), tuple(specs))
            if not message.tool_calls:
                return message.content
            if len(message.tool_calls) > steps.MAX_CALLS_PER_ANSWER:
                count, most = len(message.tool_calls), steps.MAX_CALLS_PER_ANSWER
                told = f"The model asks for {count} tool calls at once; {most} are made."
                self._warn(told, step=path)
            answers = [
                await self._called(f"{path}.{place}", call, bound, agent, deep)
                if place < steps.MAX_CALLS_PER_ANSWER
                else {"error": f"not made: more than {steps.MAX_CALLS_PER_ANSWER} calls at once."}
                for place, call in enumerate(message.tool_calls)
            ]
            if None in answers:
                raise AgentParked
            messages.append(message)
            messages += [
                render_tool_result(call, answer) for call, answer in zip(message.tool_calls, answers, strict=True)
            ]
        count = agent.max_steps or DEFAULT_MAX_STEPS
        told = f"The model called tools {count} times without coming to an answer (max_steps)."
        raise AgentFailed("too_many_steps", told)

    def _hand_over(self) -> None:
        """Stop here if this worker is about to end: what is finished is on record. Errors: `HandOver`."""
        if self._drains():
            raise HandoverRequested

    # one call of the model

    async def _ask(
        self, path: str, agent: Agent, messages: tuple[ChatMessage, ...], specs: tuple[ToolSpec, ...]
    ) -> ChatMessage:
        known = self._steps.get(path)
        if known is not None and known.status == "finished":
            return msgspec.convert(known.output["message"], ChatMessage)
        self._hand_over()
        if self._after_loss:
            # What the lost attempt may have told of this answer.
            self._after_loss = False
            self._warn("The worker was lost; the run goes on from its last finished step.", step=path, discards=path)
        primary = await self._first_that_works(path, agent, messages, specs)
        if primary.finish == "length" and not primary.message.tool_calls:
            if not primary.message.content.strip():
                told = "The model used up all the tokens of its answer (max_tokens) on thoughts, and gave none."
                raise AgentFailed("refused", told)
            self._warn("The answer was cut at the most tokens it may have.", step=path)
        if primary.finish == "content_filter":
            if not primary.message.content:
                raise AgentFailed("refused", "The provider's filter withheld the answer.")
            self._warn("The answer is a refusal, or the provider's filter cut it.", step=path)
        return primary.message

    async def _first_that_works(
        self, path: str, agent: Agent, messages: tuple[ChatMessage, ...], specs: tuple[ToolSpec, ...]
    ) -> ModelReply:
        try:
            target = await self._calls.resolve_target(agent.model or "", agent.provider)
            return await self._without_refused(path, agent, target, messages, specs)
        except ModelError as error:
            if agent.fallback_model is None or error.kind == "not_allowed":
                raise
            told = f"The model {agent.model!r} gave no answer; {agent.fallback_model!r} is asked. {error.message}"
            self._warn(told, step=path, discards=path)
        target = await self._calls.resolve_target(agent.fallback_model)
        return await self._without_refused(path, agent, target, messages, specs)

    async def _without_refused(
        self,
        path: str,
        agent: Agent,
        target: ModelTarget,
        messages: tuple[ChatMessage, ...],
        specs: tuple[ToolSpec, ...],
    ) -> ModelReply:
        """Ask a model, without a tool that its provider refuses: the model might never have called it."""
        while True:
            left = tuple(spec for spec in specs if (target.name, spec.name) not in self._refused)
            try:
                return await self._streamed(path, agent, target, messages, left)
            except ModelError as error:
                if error.tool is None or not any(spec.name == error.tool for spec in left):
                    raise
                self._refused.add((target.name, error.tool))
                told = f"The tool {error.tool!r} is left out for {target.name!r}, whose provider refuses it. "
                self._warn(told + error.message, step=path, discards=path)

    async def _streamed(
        self,
        path: str,
        agent: Agent,
        target: ModelTarget,
        messages: tuple[ChatMessage, ...],
        specs: tuple[ToolSpec, ...],
    ) -> ModelReply:
        begun = self._clock()
        if agent.verbose:
            told = f"Step {path}: asks {target.name} with {len(messages)} messages and {len(specs)} tools.\n"
            self._tell(
                "log",
                level="DEBUG",
                stream="paddock",
                message=clean_text(told + render_transcript(messages))[:MAX_SHOWN_CHARACTERS],
            )

        async def also(tx: Tx, reply: ModelReply) -> None:
            output = {"message": reply.message, "finish": reply.finish, "usage": reply.usage}
            step = self._step(path, "model", target.name, "finished", begun, output=msgspec.to_builtins(output))
            await steps.write_step(tx, step, [])
            self._steps[path] = step

        def again(error: ModelError, pause: float) -> None:
            what = "gave no answer that counts" if error.kind in ("cut_off", "malformed") else "did not answer"
            told = f"The model {target.name!r} {what} and is asked again in {pause:.1f} s. {error.message}"
            self._warn(told, step=path, discards=path)

        options = ModelOptions(temperature=agent.temperature, max_tokens=agent.max_tokens)
        if isinstance(agent, AgentSpec):
            must = agent.manager and path == "1" and any(spec.name == DELEGATE_TOOL.name for spec in specs)
            schema = None if specs else agent.answer_schema
            options = msgspec.structs.replace(options, schema=schema, tool_choice="required" if must else "auto")
        parts = self._calls.stream_answer(
            target, messages, specs, options, also, again, lambda: self._events.flush(self._execution)
        )
        handed = False
        try:
            async with contextlib.aclosing(parts):
                async for part in parts:
                    if isinstance(part, ModelReply):
                        return part
                    if isinstance(part, ReplyNotice):
                        self._warn(part.message, step=path)
                    if isinstance(part, TextDelta | ReasoningDelta) and part.text:
                        kind, handed = "token" if isinstance(part, TextDelta) else "thinking", True
                        self._tell(kind, content=part.text, step=path)
                        await self._events.wait_for_space(self._execution)
        except asyncio.CancelledError:
            if handed and self._drains():
                self._warn("The worker was stopped; another goes on from the last finished step.", discards=path)
            raise
        raise ModelError("cut_off", "The answer ended before it was complete.")

    # tool calls

    async def _called(
        self, path: str, call: ModelToolCall, bound: dict[str, BoundTool], agent: Agent, deep: int
    ) -> dict[str, Any] | None:
        """What a tool call came to; None if it waits for a decision."""
        if call.name == DELEGATE_TOOL.name and self._delegates(agent, deep):
            return await self._delegated(path, call, agent, deep)
        return await self._call(path, call, bound)

    async def _call(self, path: str, call: ModelToolCall, bound: dict[str, BoundTool]) -> dict[str, Any] | None:
        known, tool = self._steps.get(path), bound.get(call.name)
        if known is not None and known.status == "finished":
            return dict(known.output)
        self._hand_over()
        begun = self._clock() if known is None else known.started_at
        if tool is None:
            there = ", ".join(bound) or "none"
            return await self._finished(
                path, call, begun, {"error": f"there is no tool {call.name!r}; there are: {there}."}
            )
        if known is not None and known.status == "rejected":
            told = "The call was rejected." + (f" {known.reason}" if known.reason else "")
            return await self._finished(path, call, begun, {"error": told, "rejected": True})
        if known is not None and known.status == "started" and tool.has_effects:
            told = "The worker was lost during this call. Whether it took effect is not known; it is not made again."
            return await self._finished(path, call, begun, {"error": told})
        if tool.has_effects and self._execution.mode == "safe" and (known is None or known.status == "waiting"):
            if known is None:
                await self._begun(path, call, "waiting")
            return None
        if tool.has_effects or known is None:
            await self._begun(path, call, "started", told=known is None)
        try:
            done = await self._tools.call_tool(tool, call.arguments)
            result = limit_result(done.result)
        except ToolFailed as error:
            return await self._finished(path, call, begun, {"error": clean_text(str(error))})
        return await self._finished(path, call, begun, {"result": result}, done)

    def _delegates(self, agent: Agent, deep: int) -> bool:
        return deep < MAX_DELEGATION_DEPTH and bool(
            agent.allow_delegation or (isinstance(agent, AgentSpec) and agent.team)
        )

    async def _delegated(self, path: str, call: ModelToolCall, agent: Agent, deep: int) -> dict[str, Any] | None:
        """Have another agent do a task, in steps of its own below this one."""
        known = self._steps.get(path)
        if known is not None and known.status == "finished":
            return dict(known.output)
        begun = self._clock() if known is None else known.started_at
        try:
            args = msgspec.json.decode(call.arguments or "{}", type=DelegateArguments)
            if known is None:
                mate = find_teammate(agent, args.agent)
                other = (
                    mate
                    if mate is not None
                    else AgentSpec.from_agent(await retry_through_outage(lambda: self._other(args.agent)))
                )
                # As it is now: another attempt shall meet the same agent.
                await self._begun(path, call, "started", given={"agent": msgspec.to_builtins(other), "task": args.task})
            else:
                other = msgspec.convert(known.input["agent"], AgentSpec)
            told = _task(other, args.task)
        except (msgspec.MsgspecError, RecursionError, ToolFailed) as error:
            return await self._finished(path, call, begun, {"error": str(error)})
        answer = await self._answer(other, told, f"{path}/", deep + 1)
        return await self._finished(path, call, begun, {"result": {"content": answer}})

    async def _other(self, name: str) -> Agent:
        async with self._store.tenant_transaction(self._execution.tenant_id) as tx:
            found = await tx.agents.find(name)
            if (
                found is None
                or found.kind != "llm"
                or found.status == "archived"
                or found.id == self._execution.agent_id
            ):
                raise ToolFailed(f"there is no other model agent {name!r} to ask.")
            try:
                other = await agents.resolve_agent(tx, found)
            except DomainError as error:
                if error.code != "invalid_field":
                    raise
                raise ToolFailed(f"the agent {name!r} cannot be asked: {error.detail}") from error
        if other.model is None:
            raise ToolFailed(f"the agent {name!r} has no model.")
        return other

    async def _begun(
        self, path: str, call: ModelToolCall, status: steps.RunStepStatus, told: bool = True, given: Any = None
    ) -> None:
        """Note that a call is about to be made, or waits, before anything of it happens."""
        args = render_arguments(call.arguments)
        event = ExecutionEvent(
            type="tool_call",
            data={"tool": call.name, "args": args, "call_id": call.id, "step": path},
            at=self._clock(),
        )
        known = self._steps.get(path)
        begun = self._clock() if known is None else known.started_at
        step = self._step(
            path, "tool", call.name, status, begun, call_id=call.id, input=args if given is None else given
        )
        await self._write(step, [event] if told else [])

    async def _finished(
        self, path: str, call: ModelToolCall, begun: Any, answer: dict[str, Any], done: ToolResult | None = None
    ) -> dict[str, Any]:
        event = ExecutionEvent(
            type="tool_result",
            data={"tool": call.name, "call_id": call.id, "step": path, **answer},
            at=self._clock(),
        )
        known = self._steps.get(path)
        given = render_arguments(call.arguments) if known is None else known.input
        step = self._step(path, "tool", call.name, "finished", begun, call_id=call.id, input=given, output=answer)
        await self._write(step, [event], None if done is None else done.commit)
        return answer

    # what is written

    def _step(self, path: str, kind: Any, name: str, status: steps.RunStepStatus, begun: Any, **more: Any) -> RunStep:
        return RunStep(
            execution_id=self._execution.id,
            path=path,
            kind=kind,
            name=name,
            status=status,
            attempt=self._execution.attempt,
            started_at=begun,
            finished_at=self._clock() if status == "finished" else None,
            **more,
        )

    async def _write(
        self, step: RunStep, told: list[ExecutionEvent], commit: Callable[[Tx], Awaitable[None]] | None = None
    ) -> None:
        await self._events.flush(self._execution)

        async def write() -> None:
            async with self._store.tenant_transaction(self._execution.tenant_id) as tx:
                await steps.write_step(tx, step, told)
                if commit is not None:
                    await commit(tx)

        await retry_through_outage(write)
        self._steps[step.path] = step

    def _tell(self, kind: str, **data: Any) -> None:
        self._events.add_event(self._execution, kind, **data)

    def _warn(self, message: str, **more: Any) -> None:
        self._tell("warning", message=message, **more)


def _task(agent: Agent, task: str) -> list[ChatMessage]:
    try:
        return first_messages(agent, {"task": task})
    except DomainError as error:
        raise ToolFailed(f"the task is too long for the agent {agent.name!r}.") from error
