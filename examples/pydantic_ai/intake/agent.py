"""A message becomes a ticket whose fields have types. What does not fit goes back to the model with the reason."""

import os
from typing import Any, Literal

from pydantic import BaseModel, Field
from pydantic_ai import Agent


class Ticket(BaseModel):
    """What a customer wants."""

    subject: str = Field(max_length=80)
    category: Literal["billing", "delivery", "other"]
    urgency: int = Field(ge=1, le=5)


agent = Agent(
    os.environ.get("MODEL", "openai:gpt-5-mini"),
    output_type=Ticket,
    instructions="Make a ticket of the customer's message.",
    retries=2,
)


async def handle(payload: dict[str, Any]) -> dict[str, Any]:
    result = await agent.run(payload.get("message") or "My parcel has not come for two weeks. Please hurry!")
    return {**result.output.model_dump(), "requests": result.usage.requests}
