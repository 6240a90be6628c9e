"""What a model agent is told first."""

import re
from typing import Any, Final

import msgspec

from domain.agents.schema import Agent
from domain.chat import Message

_PLACE: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


def messages(agent: Agent, given: Any) -> list[Message]:
    """Who it is, and its task with the inputs. `{name}` in any of its texts is the input of that name."""
    inputs = dict(given) if isinstance(given, dict) else {}

    def filled(text: str) -> str:
        return _PLACE.sub(lambda found: _worded(inputs[found[1]]) if found[1] in inputs else found[0], text)

    told = [
        f"You are {agent.role}." if agent.role else "",
        agent.backstory or "",
        f"Your goal: {agent.goal}" if agent.goal else "",
        agent.instructions or "",
    ]
    system = filled("\n\n".join(part for part in told if part))
    task = inputs.pop("task", None)
    asked = filled(_worded(task)) if task is not None else ""
    if inputs:
        asked += ("\n\n" if asked else "") + "Inputs:\n" + msgspec.json.format(msgspec.json.encode(inputs)).decode()
    return [*([Message(role="system", content=system)] if system else []), Message(role="user", content=asked)]


def _worded(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
