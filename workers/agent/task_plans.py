"""Have an agent write a plan before it does a task, and refine it until it is ready."""

import re
from typing import Final

import msgspec

from domain.agents import Agent, AgentSpec, CrewAgent
from domain.llms import ChatMessage
from workers.agent.conversation import AgentConversation
from workers.agent.model_steps import ModelSteps
from workers.agent.schema import ModelPrompt

_NOT_READY: Final = re.compile(r"\bNOT[ _-]READY\b", re.IGNORECASE)
_READY_LINE: Final = re.compile(r"[\s*#>]*(?:NOT[ _-])?READY\W*\Z", re.IGNORECASE)
_PLAN_REQUEST: Final = (
    "Do not do the task yet. First write a short plan: what you have to find out, the steps in their order, and how "
    "you will know that the result is good.{tools} End with a line of its own: READY if you can begin with this plan, "
    "NOT READY if it still has gaps."
)
_REFINE_REQUEST: Final = "Close the gaps, and write the whole plan again. End with READY or NOT READY as before."


class TaskPlans:
    """Write the plans of one run's tasks."""

    def __init__(self, model_steps: ModelSteps) -> None:
        self._model_steps = model_steps

    async def add_plan(self, agent: Agent, messages: AgentConversation, tool_names: list[str], prefix: str) -> None:
        """Add a plan to the task, if the agent is one that plans. A task that is done again keeps its plan.

        Errors: those of a model call.
        """
        attempts = agent.crew_options.plan_attempts if isinstance(agent, CrewAgent) and agent.crew_options else None
        turn = messages.turn
        if attempts is None or not turn or turn[-1].role != "user" or prefix.startswith("again"):
            return
        planner = msgspec.structs.replace(agent, tools=[])
        if isinstance(planner, AgentSpec):
            planner = msgspec.structs.replace(
                planner, answer_schema=None, output_schema=None, team=[], manager=False, client_tools=[]
            )
        tools = f" You will have these tools: {', '.join(tool_names)}." if tool_names else ""
        asked = [*messages.list_messages(), ChatMessage(role="user", content=_PLAN_REQUEST.format(tools=tools))]
        plan = ""
        for number in range(1, attempts + 1):
            prompt = ModelPrompt(path=f"{prefix}plan/{number}", agent=planner, messages=tuple(asked), tools=())
            plan = (await self._model_steps.ask_model(prompt)).content
            if _NOT_READY.search(plan) is None:
                break
            asked += [ChatMessage(role="assistant", content=plan), ChatMessage(role="user", content=_REFINE_REQUEST)]
        text = f"{turn[-1].content}\n\nThis is your plan:\n{_READY_LINE.sub('', plan).strip()}"
        turn[-1] = msgspec.structs.replace(turn[-1], content=text)
