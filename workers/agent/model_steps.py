"""Make the model calls of an agent: with its fallback model, without tools that a provider refuses, tried again.

Each call is a step. Its answer is put on record in the transaction that bills it, and is not asked for again.
"""

import asyncio
import itertools
from datetime import datetime
from typing import Final

import msgspec

from domain.agents import Agent, AgentSpec, CrewAgent
from domain.llms import (
    ChatMessage,
    ModelError,
    ModelOptions,
    ModelReply,
    ModelTarget,
    ReasoningDelta,
    ReplyNotice,
    ReplyPart,
    TextDelta,
    ToolSpec,
)
from domain.ports import Tx
from workers.agent.attempt import AgentAttempt
from workers.agent.client_tools import merge_options
from workers.agent.context_window import MAX_SHORTENINGS, can_shorten, shorten_messages
from workers.agent.delegation import DELEGATE_TOOL
from workers.agent.messages import render_transcript
from workers.agent.schema import MAX_SHOWN_CHARACTERS, AgentFailed, ModelPrompt
from workers.model_calls import AgentRateLimit, ModelCalls, ModelRequest, choose_retry_pause, clean_text

# Begins the paths of the steps that write a thread's summary.
SUMMARY_PATH: Final = "summary"


class ModelSteps:
    """Make the model calls of one attempt."""

    def __init__(self, calls: ModelCalls, attempt: AgentAttempt) -> None:
        self._calls, self._attempt = calls, attempt
        # Names of models, each with the name of a tool that its provider refuses.
        self._refused_tools: set[tuple[str, str]] = set()
        # Whether pieces of the answer that is being read are in the log.
        self._has_logged_pieces = False

    async def ask_model(self, prompt: ModelPrompt) -> ChatMessage:
        """Return the model's answer.

        Errors: `ModelError`, `AgentFailed`, `HandOver`, `budget_exceeded`, `LostLease`.
        """
        output = self._attempt.find_output(prompt.path)
        if output is not None:
            return msgspec.convert(output["message"], ChatMessage)
        self._attempt.stop_if_draining()
        self._attempt.warn_of_lost_worker(prompt.path)
        reply = await self._ask_within_context(prompt)
        if reply.finish == "length" and not reply.message.tool_calls:
            if not reply.message.content.strip():
                raise AgentFailed("refused", "The model used all tokens of its answer (max_tokens) for its thoughts.")
            self._attempt.warn(
                "The answer was cut at its maximum number of tokens.", step=prompt.path, finish=reply.finish
            )
        if reply.finish == "content_filter":
            if not reply.message.content:
                raise AgentFailed("refused", "The provider's filter withheld the answer.")
            self._attempt.warn(
                "The answer is a refusal, or the provider's filter cut it.", step=prompt.path, finish=reply.finish
            )
        return reply.message

    async def _ask_within_context(self, prompt: ModelPrompt) -> ModelReply:
        """Ask, and ask again with shorter messages if the model has no room for all of them."""
        for number in itertools.count(1):
            try:
                return await self._ask_with_fallback(prompt)
            except ModelError as error:
                shorter = shorten_messages(prompt.messages) if can_shorten(prompt.agent, error) else None
                if shorter is None or number > MAX_SHORTENINGS:
                    raise
                message = f"The messages are longer than the model's context, and are shortened. {error.message}"
                self._attempt.warn(message, step=prompt.path, discards=prompt.path)
                prompt = msgspec.structs.replace(prompt, messages=shorter)
        raise AssertionError("unreachable")

    async def _ask_with_fallback(self, prompt: ModelPrompt) -> ModelReply:
        agent = prompt.agent
        try:
            target = await self._calls.resolve_target(agent.model or "", agent.provider)
            return await self._ask_without_refused_tools(prompt, target)
        except ModelError as error:
            if agent.fallback_model is None or error.kind == "not_allowed":
                raise
            message = f"The model {agent.model!r} gave no answer; {agent.fallback_model!r} is asked. {error.message}"
            self._attempt.warn(message, step=prompt.path, discards=prompt.path)
        target = await self._calls.resolve_target(agent.fallback_model)
        return await self._ask_without_refused_tools(prompt, target)

    async def _ask_without_refused_tools(self, prompt: ModelPrompt, target: ModelTarget) -> ModelReply:
        """Ask a model, and ask again without a tool that its provider refuses: the model might never call it."""
        while True:
            tools = tuple(tool for tool in prompt.tools if (target.name, tool.name) not in self._refused_tools)
            try:
                return await self._ask_with_retries(prompt, target, tools)
            except ModelError as error:
                if error.tool is None or not any(tool.name == error.tool for tool in tools):
                    raise
                self._refused_tools.add((target.name, error.tool))
                message = f"The tool {error.tool!r} is left out for {target.name!r}, whose provider refuses it. "
                self._attempt.warn(message + error.message, step=prompt.path, discards=prompt.path)

    async def _ask_with_retries(
        self, prompt: ModelPrompt, target: ModelTarget, tools: tuple[ToolSpec, ...]
    ) -> ModelReply:
        attempt, path, started_at, tries = self._attempt, prompt.path, self._attempt.clock(), 0
        if prompt.agent.verbose:
            size = f"{len(prompt.messages)} messages and {len(tools)} tools"
            text = clean_text(f"Step {path}: asks {target.name} with {size}.\n{render_transcript(prompt.messages)}")
            attempt.add_event("log", level="DEBUG", stream="paddock", message=text[:MAX_SHOWN_CHARACTERS])
        options = _choose_options(prompt.agent, path, tools)
        request = ModelRequest(
            target=target,
            messages=prompt.messages,
            tools=tools,
            options=options,
            rate_limit=_find_rate_limit(prompt.agent),
        )
        self._has_logged_pieces = False
        try:
            while True:
                tries += 1
                try:
                    return await self._ask_once(request, path, started_at)
                except ModelError as error:
                    pause = choose_retry_pause(error, tries, target)
                    if pause is None:
                        raise
                    problem = "gave no usable answer" if error.kind in ("cut_off", "malformed") else "did not answer"
                    message = (
                        f"The model {target.name!r} {problem} and is asked again in {pause:.1f} s. {error.message}"
                    )
                    attempt.warn(message, step=path, discards=path)
                    await asyncio.sleep(pause)
        except asyncio.CancelledError:
            if self._has_logged_pieces and attempt.is_draining():
                attempt.warn("The worker was stopped; another goes on from the last finished step.", discards=path)
            raise

    async def _ask_once(self, request: ModelRequest, path: str, started_at: datetime) -> ModelReply:
        """Make one try of a call: log the pieces of the answer as they come, then bill it and finish the step."""

        async def finish_step(tx: Tx, reply: ModelReply) -> None:
            output = {"message": reply.message, "finish": reply.finish, "usage": reply.usage}
            name = request.target.name
            await self._attempt.finish_model_step(tx, path, name, started_at, msgspec.to_builtins(output))

        async with self._calls.open_call(request) as call:
            try:
                async for part in call:
                    await self._log_part(part, path)
            except ModelError:
                await self._attempt.flush_if_held()
                raise
            await self._attempt.flush_events()
            return await call.settle(finish_step)

    async def _log_part(self, part: ReplyPart, path: str) -> None:
        if isinstance(part, ReplyNotice):
            self._attempt.warn(part.message, step=path)
        if path.startswith(SUMMARY_PATH):
            # Those who follow the run read its answer, and not what its model notes for itself.
            return
        if isinstance(part, TextDelta | ReasoningDelta) and part.text:
            self._has_logged_pieces = True
            await self._attempt.add_piece("token" if isinstance(part, TextDelta) else "thinking", part.text, path)


def _find_rate_limit(agent: Agent) -> AgentRateLimit | None:
    max_rpm = agent.crew_options.max_rpm if isinstance(agent, CrewAgent) and agent.crew_options else None
    return None if max_rpm is None else AgentRateLimit(agent=agent.name, max_rpm=max_rpm)


def _choose_options(agent: Agent, path: str, tools: tuple[ToolSpec, ...]) -> ModelOptions:
    options = ModelOptions(temperature=agent.temperature, max_tokens=agent.max_tokens)
    if not isinstance(agent, AgentSpec):
        return options
    must_delegate = agent.manager and path == "1" and any(tool.name == DELEGATE_TOOL.name for tool in tools)
    options = msgspec.structs.replace(merge_options(agent, options), schema=None if tools else agent.expected_schema)
    return msgspec.structs.replace(options, tool_choice="required") if must_delegate else options
