"""Fold what does not fit into a model's context into the running summary of its thread.

The run's own model writes it, in steps of their own, which are billed to the run. The thread has the new summary when
the run is settled as completed.
"""

from collections.abc import Sequence
from typing import Final

from domain.agents import AgentSpec, build_unlisted_agent
from domain.llms import BYTES_PER_TOKEN, ChatMessage, ModelError
from domain.threads import StoredMessage
from workers.agent.attempt import AgentAttempt
from workers.agent.conversation import AgentConversation
from workers.agent.model_steps import SUMMARY_PATH, ModelSteps
from workers.agent.schema import AgentFailed, ModelPrompt

MAX_SUMMARY_TOKENS: Final = 1024
# Tokens of one part of a conversation that is folded in at once.
MIN_PART_TOKENS: Final = 200
_SUMMARY_INSTRUCTIONS: Final = (
    "You keep the summary of a conversation for an assistant who will not see its beginning any more. Keep names, "
    "numbers, facts, decisions, wishes of the user and open questions. Leave out greetings. Answer with the new "
    "summary alone, in at most {words} words."
)


class SummaryWriter:
    """Write the summary of one run's conversation."""

    def __init__(self, model_steps: ModelSteps, attempt: AgentAttempt) -> None:
        self._model_steps, self._attempt = model_steps, attempt

    async def fold_left_out(self, agent: AgentSpec, conversation: AgentConversation) -> None:
        """Put into the summary what does not fit. If the model gives no summary, the run goes on without it.

        Errors: `budget_exceeded`, `LostLease`, `HandoverRequested`.
        """
        limit = agent.context_tokens or 0
        max_tokens = min(MAX_SUMMARY_TOKENS, max(64, limit // 8))
        writer = self._build_writer(agent, max_tokens)
        parts = _split_messages(conversation.list_left_out(), max(MIN_PART_TOKENS, limit // 2))
        for number, part in enumerate(parts, 1):
            before = f"The summary so far:\n{conversation.summary}\n\n" if conversation.summary else ""
            text = f"{before}What was said then:\n{_render_part(part, limit // 2)}\n\nWrite the new summary."
            instructions = _SUMMARY_INSTRUCTIONS.format(words=max_tokens // 2)
            messages = ChatMessage(role="system", content=instructions), ChatMessage(role="user", content=text)
            prompt = ModelPrompt(path=f"{SUMMARY_PATH}/{number}", agent=writer, messages=messages, tools=())
            try:
                answer = await self._model_steps.ask_model(prompt)
            except (ModelError, AgentFailed) as error:
                self._attempt.warn(f"The beginning of the conversation is left out without a summary. {error}")
                return
            conversation.use_summary(answer.content.strip() or conversation.summary or "", part[-1].seq)

    def _build_writer(self, agent: AgentSpec, max_tokens: int) -> AgentSpec:
        """Return the agent that writes the summary: the run's model, without its instructions and tools."""
        fields = {name: getattr(agent, name) for name in ("model", "provider", "fallback_model", "verbose")}
        unlisted = build_unlisted_agent(
            agent.name, agent.user_id, agent.tenant_id, self._attempt.clock(), max_tokens=max_tokens, **fields
        )
        return AgentSpec.from_agent(unlisted)


def _split_messages(messages: Sequence[StoredMessage], max_tokens: int) -> list[list[StoredMessage]]:
    parts: list[list[StoredMessage]] = []
    room = 0
    for stored in messages:
        room -= stored.tokens
        if not parts or room < 0:
            parts.append([])
            room = max_tokens - stored.tokens
        parts[-1].append(stored)
    return parts


def _render_part(messages: Sequence[StoredMessage], max_tokens: int) -> str:
    """Return messages as text, each of at most so many tokens."""
    limit = max(MIN_PART_TOKENS, max_tokens) * BYTES_PER_TOKEN // 2
    lines: list[str] = []
    for stored in messages:
        message = stored.message
        text = message.content if len(message.content) <= limit else f"{message.content[:limit]} …"
        calls = [f"{call.name}({call.arguments[:limit]})" for call in message.tool_calls]
        lines.append(f"[{message.role}] {' '.join([text, *calls]).strip()}")
    return "\n".join(lines)
