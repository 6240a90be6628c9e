"""Show an agent's model the tools of its caller. A call of one ends the run: the caller makes it, and asks again."""

import msgspec

from domain.agents import Agent, AgentSpec
from domain.llms import ChatMessage, ModelOptions, ToolSpec


def list_client_tools(agent: Agent) -> list[ToolSpec]:
    """Return the tools that the caller of a run brings."""
    return agent.client_tools if isinstance(agent, AgentSpec) else []


def select_client_calls(agent: Agent, message: ChatMessage) -> ChatMessage | None:
    """Return an answer with its calls of the caller's tools alone, None if it has no such call."""
    names = {tool.name for tool in list_client_tools(agent)}
    calls = tuple(call for call in message.tool_calls if call.name in names)
    if not calls:
        return None
    if len(calls) == len(message.tool_calls):
        return message
    # The provider's own form of the answer names all calls, and a provider wants a result for each.
    return msgspec.structs.replace(message, tool_calls=calls, provider_parts=None)


def render_client_calls(answer: ChatMessage) -> bytes:
    """Return the result of a run that ends with calls of the caller's tools, as JSON."""
    return msgspec.json.encode({"content": answer.content, "tool_calls": answer.tool_calls})


def merge_options(agent: AgentSpec, options: ModelOptions) -> ModelOptions:
    """Return options of a call with those that the caller set for this run. What a model cannot apply is refused."""
    if agent.options is None:
        return options
    sent = {name: value for name, value in msgspec.structs.asdict(agent.options).items() if value is not None}
    return msgspec.structs.replace(options, **sent)
