"""Make the tool calls of an agent. Each is a step; a call with effects is made at most once."""

from typing import Any

from domain.llms import ModelToolCall, ToolFailed
from workers.agent.attempt import AgentAttempt
from workers.agent.messages import limit_result
from workers.agent.schema import BoundTool
from workers.agent.tools import Toolbox
from workers.model_calls import clean_text


class ToolSteps:
    """Make the tool calls of one attempt."""

    def __init__(self, toolbox: Toolbox, attempt: AgentAttempt) -> None:
        self._toolbox, self._attempt = toolbox, attempt

    async def call_tool(self, path: str, call: ModelToolCall, tools: dict[str, BoundTool]) -> dict[str, Any] | None:
        """Return the answer of a tool call, `{"result": …}` or `{"error": …}`; None if it waits for a decision.

        Errors: `HandOver`, `LostLease`.
        """
        attempt, tool = self._attempt, tools.get(call.name)
        output = attempt.find_output(path)
        if output is not None:
            return output
        attempt.stop_if_draining()
        if tool is None:
            message = f"there is no tool {call.name!r}; the tools are: {', '.join(tools) or 'none'}."
            return await attempt.finish_tool_step(path, call, {"error": message})
        step = attempt.find_step(path)
        if step is not None and step.status == "rejected":
            message = "The call was rejected." + (f" {step.reason}" if step.reason else "")
            return await attempt.finish_tool_step(path, call, {"error": message, "rejected": True})
        if step is not None and step.status == "started" and tool.has_effects:
            message = "The worker was lost during this call. It may have taken effect, and is not made again."
            return await attempt.finish_tool_step(path, call, {"error": message})
        needs_approval = tool.has_effects and attempt.execution.mode == "safe"
        if needs_approval and (step is None or step.status == "waiting"):
            if step is None:
                await attempt.begin_tool_step(path, call, "waiting")
            return None
        if tool.has_effects or step is None:
            await attempt.begin_tool_step(path, call, "started")
        try:
            tool_result = await self._toolbox.call_tool(tool, call.arguments)
            result = limit_result(tool_result.result)
        except ToolFailed as error:
            return await attempt.finish_tool_step(path, call, {"error": clean_text(str(error))})
        return await attempt.finish_tool_step(path, call, {"result": result}, tool_result.commit)
