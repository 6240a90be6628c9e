"""Run a model agent: ask its model, make the tool calls of the answer, ask again, until it calls no tool.

Every finished call is a step on record, so another attempt goes on where this one ended: answers are not asked for
again, and a tool call with effects is made at most once.
"""

from typing import Any, Final

import msgspec

from domain import agents
from domain.agents import Agent, AgentSpec, CrewAgent, build_messages
from domain.executions import steps
from domain.llms import ChatMessage, ModelError, ModelToolCall, ToolFailed, ToolSpec
from domain.ports import SandboxOutcome, Store, Tx
from domain.shared.errors import DomainError
from domain.threads import NO_CONVERSATION, Conversation
from workers.agent.answer_checks import AnswerChecks
from workers.agent.attempt import AgentAttempt
from workers.agent.client_tools import list_client_tools, render_client_calls, select_client_calls
from workers.agent.conversation import AgentConversation
from workers.agent.delegation import DELEGATE_TOOL, DelegateArguments, describe_delegate_tool, find_teammate
from workers.agent.json_answers import SchemaAnswers, read_json_answer
from workers.agent.messages import render_tool_result
from workers.agent.model_steps import ModelSteps
from workers.agent.recall import add_recalled_texts
from workers.agent.schema import AgentFailed, AgentParked, BoundTool, ModelPrompt
from workers.agent.summaries import SummaryWriter
from workers.agent.task_plans import TaskPlans
from workers.agent.tool_steps import ToolSteps
from workers.agent.tools import Toolbox
from workers.model_calls import ModelCalls

DEFAULT_MAX_STEPS: Final = 20
# Agents that may be at work for one another: the one that was asked, one that it asked, and one more.
MAX_DELEGATION_DEPTH: Final = 2


class AgentLoop:
    """Run one attempt at an execution of a model agent."""

    def __init__(self, store: Store, calls: ModelCalls, toolbox: Toolbox, attempt: AgentAttempt) -> None:
        self._store, self._toolbox, self._attempt = store, toolbox, attempt
        self._model_steps, self._tool_steps = ModelSteps(calls, attempt), ToolSteps(toolbox, attempt)
        self._summary_writer = SummaryWriter(self._model_steps, attempt)
        self.turn: list[ChatMessage] = []
        self._task_plans = TaskPlans(self._model_steps)

    async def run_agent(self, agent: AgentSpec, conversation: Conversation = NO_CONVERSATION) -> SandboxOutcome | None:
        """Return the outcome, None if the run waits for a decision. Errors: `LostLease`, `HandoverRequested`.

        The messages of the run are in `turn` then.
        """
        attempt = self._attempt
        if finished := attempt.count_finished():
            attempt.add_event(
                "log", level="INFO", stream="paddock", message=f"Goes on after {finished} finished steps."
            )
        try:
            messages = AgentConversation(agent, build_messages(agent, attempt.execution.input_data), conversation)
            if agent.summary:
                await self._summary_writer.fold_left_out(agent, messages)
            await add_recalled_texts(self._toolbox.dependencies, attempt, agent, messages)
            answer = await self._do_checked_task(agent, messages)
            self.turn = [*messages.turn, answer]
            if answer.tool_calls:
                return SandboxOutcome(output=render_client_calls(answer))
            if agent.expected_schema is not None:
                return SandboxOutcome(output=read_json_answer(answer.content))
        except AgentParked:
            await attempt.park()
            return None
        except AgentFailed as failed:
            return failed.outcome
        except ModelError as error:
            return SandboxOutcome(error_type=error.kind, error_message=error.message)
        except DomainError as error:
            if error.code != "budget_exceeded":
                raise
            return SandboxOutcome(error_type=error.code, error_message=error.detail)
        return SandboxOutcome(output=msgspec.json.encode({"content": answer.content}))

    async def run_tool(self, name: str, args: dict[str, Any]) -> SandboxOutcome:
        """Make the only call of an execution that is a tool call. Errors: `LostLease`."""
        problems: list[str] = []
        tools = await self._toolbox.bind_tools([name], problems.append)
        for problem in problems:
            self._attempt.warn(problem)
        if len(tools) != 1:
            message = problems[0] if problems else f"The server {name!r} has several tools; name one of them."
            return SandboxOutcome(error_type="tool_failed", error_message=message)
        call = ModelToolCall(id="call_1", name=next(iter(tools)), arguments=msgspec.json.encode(args).decode())
        answer = await self._tool_steps.call_tool("1", call, tools) or {"error": "waits for an approval."}
        if "error" in answer:
            return SandboxOutcome(error_type="tool_failed", error_message=str(answer["error"]))
        return SandboxOutcome(output=msgspec.json.encode(answer["result"]))

    async def _do_checked_task(self, agent: AgentSpec, messages: AgentConversation) -> ChatMessage:
        """Return an answer that the rules of the task accept. The agent receives what is wrong, and tries again."""
        task = messages.turn[-1].content if messages.turn else ""
        checks = AnswerChecks(agent, task, self._model_steps, self._attempt)
        number, answer = 0, await self._do_task(agent, messages)
        while not answer.tool_calls and (feedback := await checks.check_answer(answer.content, number)) is not None:
            number += 1
            messages.add_messages([answer, ChatMessage(role="user", content=feedback)])
            answer = await self._do_task(agent, messages, f"again{number}/")
        return answer

    async def _do_task(
        self, agent: Agent, messages: AgentConversation, prefix: str = "", depth: int = 0
    ) -> ChatMessage:
        """Return an agent's answer: a text, or calls of the caller's tools.

        `prefix` begins the paths of its steps; `depth` counts delegations above it.
        """
        tools, specs = await self._list_tools(agent, depth)
        max_steps = agent.max_steps or DEFAULT_MAX_STEPS
        answers_in_schema = SchemaAnswers(agent if depth == 0 else None, self._attempt, has_tools=bool(specs))
        await self._task_plans.add_plan(agent, messages, [spec.name for spec in specs], prefix)
        number = 0
        while number < max_steps + answers_in_schema.corrections:
            number += 1
            path = f"{prefix}{number}"
            asked = answers_in_schema.extend_messages(messages.list_messages(specs))
            prompt = ModelPrompt(path=path, agent=agent, messages=asked, tools=specs)
            message = await self._model_steps.ask_model(prompt)
            if not message.tool_calls:
                if await answers_in_schema.accept_answer(message, path):
                    return message
                continue
            if (client_answer := select_client_calls(agent, message)) is not None:
                self._warn_of_dropped_calls(message, client_answer, path)
                return client_answer
            if len(message.tool_calls) > steps.MAX_CALLS_PER_ANSWER:
                count = len(message.tool_calls)
                self._attempt.warn(
                    f"The model asks for {count} tool calls at once; {steps.MAX_CALLS_PER_ANSWER} are made.", step=path
                )
            answers: list[dict[str, Any] | None] = []
            for index, call in enumerate(message.tool_calls):
                if index >= steps.MAX_CALLS_PER_ANSWER:
                    answers.append({"error": f"not made: more than {steps.MAX_CALLS_PER_ANSWER} calls at once."})
                elif call.name == DELEGATE_TOOL.name and _may_delegate(agent, depth):
                    answers.append(await self._delegate_task(f"{path}.{index}", call, agent, depth))
                else:
                    answers.append(await self._tool_steps.call_tool(f"{path}.{index}", call, tools))
            if None in answers:
                raise AgentParked
            results = zip(message.tool_calls, answers, strict=True)
            messages.add_messages(answers_in_schema.take_corrections())
            messages.add_messages([message, *(render_tool_result(call, answer) for call, answer in results)])
        problem = f"The model called tools {max_steps} times without giving an answer (max_steps)."
        raise AgentFailed("too_many_steps", problem)

    async def _list_tools(self, agent: Agent, depth: int) -> tuple[dict[str, BoundTool], tuple[ToolSpec, ...]]:
        """Return an agent's tools by name, and the specs that its model gets of them and of `delegate`."""
        may_delegate = _may_delegate(agent, depth)
        client_tools = list_client_tools(agent)
        reserved = {tool.name for tool in client_tools} | ({DELEGATE_TOOL.name} if may_delegate else set())
        crew_options = agent.crew_options if isinstance(agent, CrewAgent) else None
        servers = crew_options.servers if crew_options is not None else ()
        tools: dict[str, BoundTool] = {}
        if agent.tools or servers:
            tools = await self._toolbox.bind_tools(agent.tools, self._attempt.warn, reserved, servers)
        specs = [tool.spec for tool in tools.values()]
        if may_delegate:
            specs.append(describe_delegate_tool(agent))
        return tools, (*specs, *client_tools)

    def _warn_of_dropped_calls(self, message: ChatMessage, client_answer: ChatMessage, path: str) -> None:
        dropped = [call.name for call in message.tool_calls if call not in client_answer.tool_calls]
        if dropped:
            names = ", ".join(repr(name) for name in dropped)
            self._attempt.warn(f"The model calls tools of the caller too, so {names} are not called.", step=path)

    async def _delegate_task(self, path: str, call: ModelToolCall, agent: Agent, depth: int) -> dict[str, Any]:
        """Have another agent do a task, in steps of its own below this one."""
        attempt, step = self._attempt, self._attempt.find_step(path)
        output = attempt.find_output(path)
        if output is not None:
            return output
        try:
            args = msgspec.json.decode(call.arguments or "{}", type=DelegateArguments)
            if step is None:
                teammate = find_teammate(agent, args.agent)
                if teammate is None:
                    teammate = AgentSpec.from_agent(await self._find_other_agent(args.agent))
                # The agent as it is now: another attempt is to meet the same one.
                step_input = {"agent": msgspec.to_builtins(teammate), "task": args.task}
                await attempt.begin_tool_step(path, call, "started", step_input)
            else:
                teammate = msgspec.convert(step.input["agent"], AgentSpec)
            messages = AgentConversation(teammate, _start_messages(teammate, args.task), NO_CONVERSATION)
        except (msgspec.MsgspecError, RecursionError, ToolFailed) as error:
            return await attempt.finish_tool_step(path, call, {"error": str(error)})
        answer = await self._do_task(teammate, messages, f"{path}/", depth + 1)
        return await attempt.finish_tool_step(path, call, {"result": {"content": answer.content}})

    async def _find_other_agent(self, name: str) -> Agent:
        """Return a model agent of the tenant that may be asked. Errors: `ToolFailed`."""
        own_id = self._attempt.execution.agent_id

        async def find(tx: Tx) -> Agent:
            other = await tx.agents.find(name)
            if other is None or other.kind != "llm" or other.status == "archived" or other.id == own_id:
                raise ToolFailed(f"there is no other model agent {name!r} to ask.")
            try:
                return await agents.resolve_agent(tx, other)
            except DomainError as error:
                if error.code != "invalid_field":
                    raise
                raise ToolFailed(f"the agent {name!r} cannot be asked: {error.detail}") from error

        agent = await self._store.run(self._attempt.tenant_id, find, retry=True)
        if agent.model is None:
            raise ToolFailed(f"the agent {name!r} has no model.")
        return agent


def _may_delegate(agent: Agent, depth: int) -> bool:
    return depth < MAX_DELEGATION_DEPTH and bool(
        agent.allow_delegation or (isinstance(agent, AgentSpec) and agent.team)
    )


def _start_messages(agent: Agent, task: str) -> list[ChatMessage]:
    try:
        return build_messages(agent, {"task": task})
    except DomainError as error:
        raise ToolFailed(f"the task is too long for the agent {agent.name!r}.") from error
