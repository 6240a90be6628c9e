"""Build the first messages of a model agent's run."""

from typing import Any

import msgspec

from domain.agents.schema import Agent, AgentSpec
from domain.llms import ChatMessage
from domain.shared.placeholders import create_filler, format_value


def build_messages(agent: Agent, payload: Any) -> list[ChatMessage]:
    """Return the system message about the agent, and the user message with its task and inputs.

    `{name}` in a text of the agent is replaced by the input of that name. A task without other inputs is not a template
    and stays as it is. Errors: `invalid_field` if the texts become too long.
    """
    inputs = dict(payload) if isinstance(payload, dict) else {}
    values = dict(inputs)
    filled = create_filler(values, "inputs")
    task = inputs.pop("task", None)
    user_text = format_value(task) if task is not None else ""
    if inputs:
        user_text = filled(user_text)
    if task is not None:
        values["task"] = user_text  # replaces `{task}` in the agent's texts
    sections = [
        f"You are {agent.role}." if agent.role else "",
        agent.backstory or "",
        f"Your goal: {agent.goal}" if agent.goal else "",
        agent.template_text or "",
        agent.instructions or "",
    ]
    system = filled("\n\n".join(section for section in sections if section))
    if isinstance(agent, AgentSpec) and agent.caller_instructions:
        system += ("\n\n" if system else "") + agent.caller_instructions
    if inputs:
        user_text += (
            ("\n\n" if user_text else "") + "Inputs:\n" + msgspec.json.format(msgspec.json.encode(inputs)).decode()
        )
    return [
        *([ChatMessage(role="system", content=system)] if system else []),
        ChatMessage(role="user", content=user_text),
    ]
