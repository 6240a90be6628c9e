"""Serve OpenAI's chat API: parse requests, and render answers whole or in chunks.

Source: platform.openai.com/docs/api-reference/chat. A field that does not change the answer is accepted; one that
would change it and is not supported is refused by name.
"""

from workers.run.openai_wire.errors import GatewayRefusal, refuse_unknown_model, render_refusal
from workers.run.openai_wire.parser import parse_request
from workers.run.openai_wire.renderer import CompletionRenderer, render_failure, render_model
from workers.run.openai_wire.schema import CompletionRequest

__all__ = [
    "CompletionRenderer",
    "CompletionRequest",
    "GatewayRefusal",
    "parse_request",
    "refuse_unknown_model",
    "render_failure",
    "render_model",
    "render_refusal",
]
