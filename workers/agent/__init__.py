"""Run model agents: the loop of model calls and tool calls, and the tools themselves."""

from workers.agent.runner import AgentRunner
from workers.agent.schema import ToolDependencies

__all__ = ["AgentRunner", "ToolDependencies"]
