"""Two agents: one receives a question and hands it over, the other looks an order up and answers."""

import os
from typing import Any

from agents import Agent, Runner, function_tool

MODEL = os.environ.get("MODEL", "gpt-5-mini")
ORDERS = {"A-17": "left the warehouse on Monday", "B-4": "was delivered on Friday"}


@function_tool
def find_order(number: str) -> str:
    """Find out where an order is.

    Args:
        number: The order's number, such as A-17.
    """
    return ORDERS.get(number, "There is no such order.")


orders = Agent(
    name="Orders",
    handoff_description="Knows where orders are.",
    instructions="Look the order up, and answer in one sentence.",
    model=MODEL,
    tools=[find_order],
)
reception = Agent(
    name="Reception",
    instructions="Hand questions about orders over. Answer everything else yourself, in one sentence.",
    model=MODEL,
    handoffs=[orders],
)


async def handle(payload: dict[str, Any]) -> dict[str, Any]:
    result = await Runner.run(reception, payload.get("question") or "Where is my order A-17?")
    print(f"{len(result.new_items)} steps, {result.context_wrapper.usage.total_tokens} tokens")
    return {"answer": result.final_output, "answered_by": result.last_agent.name}
