"""Hold what the model of an agent is asked: the conversation before its task, the task, and what follows it."""

from collections.abc import Sequence

import msgspec

from domain.agents import Agent
from domain.llms import BYTES_PER_TOKEN, ChatMessage, ToolSpec, estimate_tokens
from domain.threads import Conversation, StoredMessage, choose_window, close_open_calls

_SUMMARY_HEAD = "The conversation began before the messages that follow. A summary of what was said:"


class AgentConversation:
    """Collect the messages of one task. `start` are the agent's own words, and the task if there is one.

    Without `context_tokens` of the agent, all of them are sent.
    """

    def __init__(self, agent: Agent, start: Sequence[ChatMessage], conversation: Conversation) -> None:
        self._agent, self._conversation = agent, conversation
        self._system = [message for message in start if message.role == "system"]
        task = [message for message in start if message.role != "system" and (message.content or message.parts)]
        self._history = list(conversation.history)
        # What the run adds to its thread when it is completed, besides its answer.
        self.turn = [*conversation.sent, *task]
        # The place of the question in the turn.
        self._question = len(self.turn) - 1

    @property
    def summary(self) -> str | None:
        """The summary of what was left out."""
        return self._conversation.summary

    def add_messages(self, messages: Sequence[ChatMessage]) -> None:
        """Add an answer with the results of its tool calls."""
        self.turn.extend(messages)

    def list_messages(self, tools: Sequence[ToolSpec] = ()) -> list[ChatMessage]:
        """Return what the model reads: its instructions, and of the conversation as much as fits, the newest."""
        system, messages = self._build_system(), self._list_all()
        if (limit := self._agent.context_tokens) is not None:
            limit -= sum(estimate_tokens(message) for message in system)
            limit -= len(msgspec.json.encode(tools)) // BYTES_PER_TOKEN
            messages = [messages[place] for place in self._choose_places(messages, limit)]
        return [*system, *close_open_calls(messages)]

    def list_left_out(self) -> list[StoredMessage]:
        """Return the messages of the thread that do not fit, and with them all but about half of what fits.

        The summary of a conversation that grows is therefore written once in a while, and not in each run.
        """
        if self._agent.context_tokens is None:
            return []
        messages = self._list_all()
        limit = self._agent.context_tokens - sum(estimate_tokens(message) for message in self._build_system())
        if len(self._choose_places(messages, limit)) == len(messages):
            return []
        chosen_places = self._choose_places(messages, limit // 2)
        first_place = next((place for place in chosen_places if place < len(self._history)), len(self._history))
        return self._history[:first_place]

    def use_summary(self, summary: str, seq: int) -> None:
        """Put a summary in the place of the messages of the thread up to a number, here and in later runs."""
        self._conversation.summary, self._conversation.summarized_seq = summary, seq
        self._history = [stored for stored in self._history if stored.seq > seq]

    def _build_system(self) -> list[ChatMessage]:
        if self.summary is None:
            return self._system
        # One message: some models take no second one of the system.
        text = "\n\n".join([*(message.content for message in self._system), f"{_SUMMARY_HEAD}\n{self.summary}"])
        return [ChatMessage(role="system", content=text)]

    def _list_all(self) -> list[ChatMessage]:
        return [*(stored.message for stored in self._history), *self.turn]

    def _choose_places(self, messages: Sequence[ChatMessage], max_tokens: int) -> list[int]:
        return choose_window(messages, len(self._history) + self._question, max_tokens)
