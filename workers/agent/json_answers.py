"""Have a model answer in JSON of a given schema: check its answers, and ask again with what is wrong with them."""

import re
from typing import Any, Final

import msgspec

from domain import schemas
from domain.agents import Agent, AgentSpec
from domain.llms import ChatMessage
from domain.shared.json_limits import JsonTooLarge, check_json
from workers.agent.attempt import AgentAttempt
from workers.agent.schema import AgentFailed

# Times that a model is asked again after an answer that breaks its schema. Each is a step, and is billed.
MAX_CORRECTIONS: Final = 2
# Models often put JSON between fences.
_FENCED_JSON: Final = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", re.DOTALL)


class SchemaAnswers:
    """Check the answers of one agent against its schema, if it has one, and keep the corrections that it was sent.

    `corrections` counts them. They are part of what the model is asked, and no part of the conversation.
    """

    def __init__(self, agent: Agent | None, attempt: AgentAttempt, *, has_tools: bool) -> None:
        self._schema = agent.expected_schema if isinstance(agent, AgentSpec) else None
        # With tools, no provider holds the model to a schema: it could call none of them.
        self._has_tools = has_tools
        self._attempt = attempt
        # A generation is awaited by its caller, who describes the thing again.
        self._max_corrections = 0 if attempt.execution.kind == "generation" else MAX_CORRECTIONS
        self._messages: list[ChatMessage] = []
        self.corrections = 0

    def extend_messages(self, messages: list[ChatMessage]) -> tuple[ChatMessage, ...]:
        """Return what the model is asked: the messages, with the schema if need be, and the corrections."""
        if self._schema is None or not self._has_tools:
            return (*messages, *self._messages)
        written = msgspec.json.encode(self._schema).decode()
        rule = f"When you give your final answer, write JSON alone that fits this JSON Schema:\n{written}"
        head = messages[:1] if messages and messages[0].role == "system" else []
        text = f"{head[0].content}\n\n{rule}" if head else rule
        return (ChatMessage(role="system", content=text), *messages[len(head) :], *self._messages)

    def take_corrections(self) -> list[ChatMessage]:
        """Return the corrections so far, for a conversation that goes on with tool calls."""
        messages, self._messages = self._messages, []
        return messages

    async def accept_answer(self, message: ChatMessage, path: str) -> bool:
        """Return whether an answer is the last one; False to ask again. Errors: `AgentFailed`."""
        if self._schema is None:
            return True
        problem = await self._find_problem(message.content)
        if problem is None:
            return True
        if self.corrections >= self._max_corrections:
            begin = schemas.show_value(message.content)
            raise AgentFailed("output_invalid", f"{problem} The last answer begins: {begin}")
        self.corrections += 1
        self._attempt.warn(f"The answer breaks its schema, and the model is asked again. {problem}", step=path)
        request = f"Your answer cannot be used. {problem} Answer again, with the whole corrected JSON alone."
        self._messages += [message, ChatMessage(role="user", content=request)]
        return False

    async def _find_problem(self, text: str) -> str | None:
        try:
            value = msgspec.json.decode(read_json_answer(text))
        except JsonTooLarge as error:
            return f"The answer {error.reason}"
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return f"The answer is not JSON: {error}."
        errors = await schemas.list_value_errors(self._schema or {}, value, "output", self._attempt.tenant_id)
        return schemas.describe_errors(errors) if errors else None


def read_json_answer(text: str) -> bytes:
    """Return the JSON of an answer, without fences. Errors: `JsonTooLarge`, and those of msgspec's decoder."""
    fenced = _FENCED_JSON.fullmatch(text)
    written = (fenced[1] if fenced else text).encode("utf-8", "surrogatepass")
    check_json(written)
    value: Any = msgspec.json.decode(written)
    return msgspec.json.encode(value)
