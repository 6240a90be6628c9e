"""OpenAI's wire as the gateway speaks it: what is asked for becomes our shapes, our parts become chunks.

From platform.openai.com/docs/api-reference/chat. What changes nothing about an answer is taken; what would change it
and is not done here is refused by name.
"""

from workers.run.openai_wire.errors import GatewayRefusal, refusal_from_error, unknown_model
from workers.run.openai_wire.parser import parse_request
from workers.run.openai_wire.renderer import CompletionRenderer, render_failure, render_model
from workers.run.openai_wire.schema import CompletionRequest

__all__ = [
    "CompletionRenderer",
    "CompletionRequest",
    "GatewayRefusal",
    "parse_request",
    "refusal_from_error",
    "render_failure",
    "render_model",
    "unknown_model",
]
