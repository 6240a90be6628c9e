"""Run model agents: the loop of model calls and tool calls, and the tools themselves."""
