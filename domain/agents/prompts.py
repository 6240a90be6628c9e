"""What a model agent is told first."""

import re
from typing import Any, Final

import msgspec

from domain.agents.schema import Agent
from domain.chat import Message
from domain.errors import invalid

# What inputs may add to an agent's texts, in characters: a text may name one as often as it likes.
MAX_FILLED: Final = 4_000_000
_PLACE: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


def messages(agent: Agent, given: Any) -> list[Message]:
    """Who it is, and its task with the inputs. `{name}` in any of its texts is the input of that name.

    Errors: `invalid_field` when that comes to too much.
    """
    inputs = dict(given) if isinstance(given, dict) else {}
    room = MAX_FILLED

    def put(found: re.Match[str]) -> str:
        nonlocal room
        if found[1] not in inputs:
            return found[0]
        words = _worded(inputs[found[1]])
        room -= len(words)
        if room < 0:
            raise invalid("inputs", f"add more than {MAX_FILLED} characters to the agent's texts.")
        return words

    def filled(text: str) -> str:
        return _PLACE.sub(put, text)

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
