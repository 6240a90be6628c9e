"""Hold what the model of an agent is asked: the conversation before its task, the task, and what follows it."""

from collections.abc import Sequence

from domain.agents import Agent
from domain.llms import ChatMessage, estimate_tokens
from domain.threads import DEFAULT_CONTEXT_TOKENS, Conversation, close_open_calls, fit_window


class AgentConversation:
    """Collect the messages of one task. `start` are the agent's own words, and the task if there is one."""

    def __init__(self, agent: Agent, start: Sequence[ChatMessage], conversation: Conversation) -> None:
        self._agent = agent
        self._system = [message for message in start if message.role == "system"]
        task = [message for message in start if message.role != "system" and (message.content or message.parts)]
        self._history = [stored.message for stored in conversation.history]
        # What the run adds to its thread when it is completed.
        self.turn = [*conversation.sent, *task]
        self._question = max(0, len(self._history) + len(self.turn) - 1)

    @property
    def max_tokens(self) -> int:
        """The tokens that a prompt may have beside the agent's own words."""
        limit = self._agent.context_tokens or DEFAULT_CONTEXT_TOKENS
        return limit - sum(estimate_tokens(message) for message in self._system)

    def list_messages(self) -> tuple[ChatMessage, ...]:
        """Return what the model reads: its instructions, and of the conversation as much as fits, the newest."""
        messages = [*self._history, *self.turn]
        if self._agent.context_tokens is not None or self._history:
            messages = fit_window(messages, self._question, self.max_tokens)
        return (*self._system, *close_open_calls(messages))

    def add_messages(self, messages: Sequence[ChatMessage]) -> None:
        """Add an answer, or an answer with the results of its tool calls."""
        self.turn.extend(messages)
