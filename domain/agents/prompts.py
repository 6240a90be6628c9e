"""What a model agent is told first."""

from typing import Any

import msgspec

from domain.agents.schema import Agent
from domain.llms.messages import ChatMessage
from domain.shared.placeholders import create_filler, format_value


def build_messages(agent: Agent, given: Any) -> list[ChatMessage]:
    """Who it is, and its task with the inputs. `{name}` in any of its texts is the input of that name.

    A task that comes alone is no text with places: it stays as somebody wrote it.

    Errors: `invalid_field` when that comes to too much.
    """
    inputs = dict(given) if isinstance(given, dict) else {}
    values = dict(inputs)
    filled = create_filler(values, "inputs")
    task = inputs.pop("task", None)
    asked = format_value(task) if task is not None else ""
    if inputs:
        asked = filled(asked)
    if task is not None:
        values["task"] = asked  # `{task}` in the agent's texts is what is asked
    told = [
        f"You are {agent.role}." if agent.role else "",
        agent.backstory or "",
        f"Your goal: {agent.goal}" if agent.goal else "",
        agent.template_text or "",
        agent.instructions or "",
    ]
    system = filled("\n\n".join(part for part in told if part))
    if inputs:
        asked += ("\n\n" if asked else "") + "Inputs:\n" + msgspec.json.format(msgspec.json.encode(inputs)).decode()
    return [
        *([ChatMessage(role="system", content=system)] if system else []),
        ChatMessage(role="user", content=asked),
    ]
